"""rlsmooth.scripts"""
