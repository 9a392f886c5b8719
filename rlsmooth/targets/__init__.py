"""Builders of target distributions. A loss only compares logits with a target made here.

One file a family: `labelled` (hard, uniform, prior, mixtures, atoms), `structured` (kernels, trees, ordered classes),
`dense` (search counts, Boltzmann, teachers), `search` (completed values), `values` (categorical value targets),
`confidence` (pseudo-labels), `gaussian` (continuous actions).
"""

from rlsmooth.targets import containers as _containers  # noqa: F401  for what it registers
from rlsmooth.targets.confidence import confidence_adaptive
from rlsmooth.targets.dense import boltzmann, from_probs, teacher, visit_counts
from rlsmooth.targets.gaussian import GaussianTarget, gaussian
from rlsmooth.targets.kernels import ordinal_kernel
from rlsmooth.targets.labelled import mixture, one_hot, prior, sparse, uniform
from rlsmooth.targets.search import completed_q
from rlsmooth.targets.smoothing import Smoothing, as_smoothing
from rlsmooth.targets.structured import hierarchical, kernel, ordinal
from rlsmooth.targets.target import Reference, Target
from rlsmooth.targets.tree import Tree
from rlsmooth.targets.values import hl_gauss, two_hot

__all__ = [
    "GaussianTarget",
    "Reference",
    "Smoothing",
    "Target",
    "Tree",
    "as_smoothing",
    "boltzmann",
    "completed_q",
    "confidence_adaptive",
    "from_probs",
    "gaussian",
    "hierarchical",
    "hl_gauss",
    "kernel",
    "mixture",
    "one_hot",
    "ordinal",
    "ordinal_kernel",
    "prior",
    "sparse",
    "teacher",
    "two_hot",
    "uniform",
    "visit_counts",
]
