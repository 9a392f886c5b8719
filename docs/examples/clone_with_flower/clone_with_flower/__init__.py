"""Clones CartPole-v1 from demonstrations that several clients keep."""
