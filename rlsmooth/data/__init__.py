"""rlsmooth.data"""
