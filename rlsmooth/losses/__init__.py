"""Everything that compares logits with a target. A loss never knows alpha: what is smoothed, is in the target.

`reference` has the definitions, dense and exact; `closed_form` the fast layer behind the public functions.
"""

from rlsmooth.losses.binary import binary_cross_entropy
from rlsmooth.losses.categorical import cross_entropy, entropy, kl_divergence
from rlsmooth.losses.gaussian import gaussian_cross_entropy, gaussian_entropy, gaussian_kl_divergence
from rlsmooth.losses.regularisers import confidence_penalty, label_relaxation, margin_penalty
from rlsmooth.losses.summary import Statistics, statistics

__all__ = [
    "Statistics",
    "binary_cross_entropy",
    "confidence_penalty",
    "cross_entropy",
    "entropy",
    "gaussian_cross_entropy",
    "gaussian_entropy",
    "gaussian_kl_divergence",
    "kl_divergence",
    "label_relaxation",
    "margin_penalty",
    "statistics",
]
