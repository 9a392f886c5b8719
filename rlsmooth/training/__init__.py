"""rlsmooth.training"""
