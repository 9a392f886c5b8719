"""Behaviour cloning, cloning from observations (BCO) and DAgger."""
