"""Adversarial imitation: GAIL, AIRL and the rewards they learn."""
