"""Policies, algorithms and measures that keep a policy exploring."""
