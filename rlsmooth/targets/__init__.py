"""Everything that makes a target distribution. A loss only compares logits with what is made here.

One file a family: `labelled` (hard, uniform, prior, mixtures, atoms), `structured` (kernels, trees, ordered classes),
`dense` (search, values, teachers), `gaussian` (continuous actions). Value targets (`two_hot`, `hl_gauss`) and
`completed_q` / `confidence_adaptive` will be files of their own beside them.
"""

from rlsmooth.targets.dense import boltzmann, from_probs, teacher, visit_counts
from rlsmooth.targets.gaussian import GaussianTarget, gaussian
from rlsmooth.targets.kernels import ordinal_kernel
from rlsmooth.targets.labelled import mixture, one_hot, prior, sparse, uniform
from rlsmooth.targets.reference import Reference
from rlsmooth.targets.smoothing import Smoothing, as_smoothing
from rlsmooth.targets.structured import hierarchical, kernel, ordinal
from rlsmooth.targets.target import Target
from rlsmooth.targets.tree import Tree

__all__ = [
    "GaussianTarget",
    "Reference",
    "Smoothing",
    "Target",
    "Tree",
    "as_smoothing",
    "boltzmann",
    "from_probs",
    "gaussian",
    "hierarchical",
    "kernel",
    "mixture",
    "one_hot",
    "ordinal",
    "ordinal_kernel",
    "prior",
    "sparse",
    "teacher",
    "uniform",
    "visit_counts",
]
