"""Whether a generator has found all modes of a known density: PacGAN's measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlsmooth.losses import kl_divergence

if TYPE_CHECKING:
    from rlsmooth.data import GaussianMixture

__all__ = ["ModeCoverage", "mode_coverage"]

HIGH_QUALITY = 3.0


class ModeCoverage(NamedTuple):
    """The measures of Lin et al. (2018, section 4.1), after Srivastava et al. (2017).

    A sample is of high quality if it is within three standard deviations of the nearest mode. A mode is recovered if
    at least one high-quality sample is nearest to it.

    Attributes:
        modes: 0-dim int64, how many are recovered.
        high_quality: 0-dim float32, the share of high-quality samples; NaN without samples.
        reverse_kl: 0-dim float32, KL in nats from how the high-quality samples are spread over the modes to the
            uniform: 0 where all are equally frequent, `log M` where there is only one; NaN where no sample is of high
            quality.
        counts: int64 `[M]`, high-quality samples at each mode.
    """

    modes: Tensor
    high_quality: Tensor
    reverse_kl: Tensor
    counts: Tensor


@torch.no_grad()
def mode_coverage(samples: Tensor, mixture: GaussianMixture) -> ModeCoverage:
    """`ModeCoverage` of some samples; PacGAN takes 2,500.

    Args:
        samples: floating-point `[N, D]`. One with NaN is of low quality.
        mixture: of `M` modes in `D` dimensions.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> from rlsmooth.data import ring_of_gaussians
        >>> ring = ring_of_gaussians()
        >>> found = mode_coverage(torch.tensor([[1.0, 0.0], [1.0, 0.029], [1.0, 0.031], [-1.0, 0.0]]), ring)
        >>> found.modes, found.high_quality
        (tensor(2), tensor(0.7500))
    """
    centres = torch.as_tensor(mixture.centres, device=samples.device).to(torch.float32)
    if samples.ndim != 2 or samples.shape[1] != centres.shape[1]:
        raise ValueError(f"samples {tuple(samples.shape)} must be of shape [N, {centres.shape[1]}].")
    # Not by a matrix product, whose rounding is larger than the deviation of narrow modes allows.
    distances = torch.cdist(samples.float(), centres, compute_mode="donot_use_mm_for_euclid_dist")  # [N, M]
    nearest, mode = distances.nan_to_num(torch.inf).min(dim=1)
    is_high_quality = nearest < HIGH_QUALITY * mixture.deviation
    counts = torch.zeros(len(centres), dtype=torch.int64, device=samples.device)
    counts.index_add_(0, mode, is_high_quality.long())
    total = counts.sum()
    reverse_kl = kl_divergence(counts.float().log(), direction="policy_to_reference", reduction="sum")
    return ModeCoverage(
        modes=(counts > 0).sum(),
        high_quality=is_high_quality.float().mean(),
        reverse_kl=torch.where(total > 0, reverse_kl, torch.nan),
        counts=counts,
    )
