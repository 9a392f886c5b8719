"""rlsmooth.agents"""
