"""Data to learn from, checked once, read from and written to safe files: demonstrations, and labelled data sets.

`Demonstrations` holds an expert's transitions, `record` makes them, `load_demonstrations` finds them, `cartpole_v1` is
a set that ships with the package. `LabelledData` holds features and classes, `load_labelled` finds them. Importing this
package loads numpy and gymnasium, and neither Stable-Baselines3 nor torch.
"""

from rlsmooth.data.arrays import EpisodeView
from rlsmooth.data.demonstrations import Batch, Demonstrations, concatenate
from rlsmooth.data.densities import GaussianMixture, grid_of_gaussians, ring_of_gaussians
from rlsmooth.data.files import DemonstrationsFileError
from rlsmooth.data.labelled import LabelledData, load_labelled
from rlsmooth.data.observation_only import ObservationOnly
from rlsmooth.data.recording import record
from rlsmooth.data.shipped import cartpole_v1, cartpole_v1_noisy, load_demonstrations
from rlsmooth.data.space_json import space_from_json, space_to_json

__all__ = [
    "Batch",
    "Demonstrations",
    "DemonstrationsFileError",
    "EpisodeView",
    "GaussianMixture",
    "LabelledData",
    "ObservationOnly",
    "cartpole_v1",
    "cartpole_v1_noisy",
    "concatenate",
    "grid_of_gaussians",
    "load_demonstrations",
    "load_labelled",
    "record",
    "ring_of_gaussians",
    "space_from_json",
    "space_to_json",
]
