"""Reinforcement learning with smoothed policy targets.

`rlsmooth.targets` makes targets, `rlsmooth.losses` compares logits with them, and everything else is built on the two.
Importing this package loads nothing heavy: import the part that you need.
"""

from importlib.metadata import version

__all__ = ["__version__"]

__version__: str = version("rlsmooth")
"""The installed version."""
