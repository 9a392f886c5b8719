"""rlsmooth.losses"""
