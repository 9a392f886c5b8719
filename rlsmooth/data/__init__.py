"""Demonstrations: an expert's transitions, checked once, read from and written to safe files.

`Demonstrations` holds them, `record` makes them, `load_demonstrations` finds them, `cartpole_v1` is a set that ships
with the package. Importing this package loads numpy and gymnasium, and neither Stable-Baselines3 nor torch.
"""

from rlsmooth.data.arrays import EpisodeView
from rlsmooth.data.batch import Batch
from rlsmooth.data.demonstrations import Demonstrations
from rlsmooth.data.file_format import DemonstrationsFileError
from rlsmooth.data.recording import record
from rlsmooth.data.shipped import cartpole_v1, cartpole_v1_noisy, load_demonstrations
from rlsmooth.data.space_json import space_from_json, space_to_json

__all__ = [
    "Batch",
    "Demonstrations",
    "DemonstrationsFileError",
    "EpisodeView",
    "cartpole_v1",
    "cartpole_v1_noisy",
    "load_demonstrations",
    "record",
    "space_from_json",
    "space_to_json",
]
