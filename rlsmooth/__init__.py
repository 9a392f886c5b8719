"""Reinforcement learning with smoothed policy targets.

`rlsmooth.targets` makes targets, `rlsmooth.losses` compares logits with them, and everything else is built on the two.
Importing this package loads nothing heavy: import the part that you need.
"""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__: str = version("rlsmooth")
except PackageNotFoundError as error:
    raise ImportError(
        "rlsmooth is found as a folder, but it is not installed: run `pip install -e .` in the checkout."
    ) from error
"""The installed version."""
