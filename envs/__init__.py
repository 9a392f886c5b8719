"""rlsmooth.envs"""
