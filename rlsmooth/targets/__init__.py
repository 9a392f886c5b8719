"""rlsmooth.targets"""
