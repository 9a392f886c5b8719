"""rlsmooth.audits"""
