"""Smoothed targets for continuous actions: a point mass mixed with a broad Gaussian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsmooth.targets.arguments import Alpha, broadcast_alpha, check_alpha, first_row, kind_of, values_can_be_checked
from rlsmooth.targets.fields import ComparedByFields
from rlsmooth.targets.target import from_array


@dataclass(frozen=True, eq=False)
class GaussianTarget(ComparedByFields):
    """A distribution over `D`-dimensional actions, for any leading batch shape `[...]`.

        q = atom_weight · delta(actions) + background_weight · N(reference_mean, diag(reference_std^2))

    Attributes:
        actions: `[..., D]`, the labels.
        atom_weight: float64 `[...]`.
        background_weight: float64 `[...]`, or None where there is no background.
        reference_mean: broadcasts to `[..., D]`.
        reference_std: broadcasts to `[..., D]`, positive.
    """

    actions: Tensor
    atom_weight: Tensor
    background_weight: Tensor | None
    reference_mean: Tensor
    reference_std: Tensor

    @staticmethod
    def cat(targets: Sequence[GaussianTarget]) -> GaussianTarget:
        """Targets joined along the first batch axis.

        Raises:
            ValueError: no target; targets of other references.
        """
        targets = list(targets)
        if not targets:
            raise ValueError("targets is empty: give at least one.")
        first = targets[0]
        for other in targets[1:]:
            same = torch.equal(first.reference_mean, other.reference_mean)
            if not same or not torch.equal(first.reference_std, other.reference_std):
                raise ValueError("cat needs targets of the same reference_mean and reference_std.")
        weights = [
            torch.zeros_like(one.atom_weight) if one.background_weight is None else one.background_weight
            for one in targets
        ]
        return GaussianTarget(
            torch.cat([one.actions for one in targets]),
            torch.cat([one.atom_weight for one in targets]),
            None if all(one.background_weight is None for one in targets) else torch.cat(weights),
            first.reference_mean,
            first.reference_std,
        )

    @property
    def batch_shape(self) -> torch.Size:
        """The leading shape `[...]`."""
        return self.actions.shape[:-1]

    def mass(self) -> Tensor:
        """The sum of the weights, `[...]`."""
        return self.atom_weight if self.background_weight is None else self.atom_weight + self.background_weight

    def __getitem__(self, index: int | slice | Tensor) -> GaussianTarget:
        """Index the first batch axis."""

        def select(tensor: Tensor) -> Tensor:
            return tensor[index]

        return self.map_rows(select)

    def with_batch_axis(self) -> GaussianTarget:
        """The same as a batch of one: a first axis of size 1."""
        return self.map_rows(lambda tensor: tensor.unsqueeze(0))

    def to(self, device: torch.device | str) -> GaussianTarget:
        """The same target on another device."""
        return GaussianTarget(
            self.actions.to(device),
            self.atom_weight.to(device),
            None if self.background_weight is None else self.background_weight.to(device),
            self.reference_mean.to(device),
            self.reference_std.to(device),
        )

    def map_rows(self, select: Callable[[Tensor], Tensor]) -> GaussianTarget:
        """The target of the rows that `select` takes from each tensor of theirs."""
        return GaussianTarget(
            select(self.actions),
            select(self.atom_weight),
            None if self.background_weight is None else select(self.background_weight),
            self.reference_mean,
            self.reference_std,
        )


def gaussian(
    actions: Tensor,
    alpha: Alpha = 0.1,
    *,
    reference_mean: Tensor | float = 0.0,
    reference_std: Tensor | float = 1.0,
    validate: bool = True,
) -> GaussianTarget:
    """`(1 - alpha) · delta(action) + alpha · N(reference_mean, reference_std^2)`: label smoothing on a continuum.

    Cross-entropy with it is `(1 - alpha) · NLL + alpha · KL(reference‖policy) + const`, the same identity as for
    classes, so that the policy's standard deviation can't collapse.

    Args:
        actions: float `[..., D]`.
        alpha: at most 1; a number, or a tensor that broadcasts over the batch.
        reference_mean: a number, or a tensor that broadcasts to `[D]`.
        reference_std: of the same shape, positive.
        validate: check values, which waits for the device.

    Raises:
        TypeError: actions that are not floating-point.
        ValueError: alpha above 1, an action that is not finite, a reference_std that is not above 0, shapes that don't
            fit.

    Examples:
        >>> gaussian(torch.tensor([[0.5]]), alpha=0.25).mass()
        tensor([1.], dtype=torch.float64)
    """
    actions = from_array(actions)
    if not isinstance(actions, Tensor) or not actions.is_floating_point() or actions.ndim == 0:
        found = f"{kind_of(actions)} of shape {tuple(actions.shape)}" if isinstance(actions, Tensor) else repr(actions)
        raise TypeError(f"actions must be a floating-point tensor [..., D], got {found}.")
    check_values = values_can_be_checked(validate)
    batch = actions[..., 0] if actions.shape[-1] else actions.new_zeros(actions.shape[:-1])
    check_alpha(alpha, batch.shape, values=check_values)
    mean = torch.as_tensor(reference_mean, dtype=actions.dtype, device=actions.device).detach()
    std = torch.as_tensor(reference_std, dtype=actions.dtype, device=actions.device).detach()
    for name, tensor in (("reference_mean", mean), ("reference_std", std)):
        if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] not in (1, actions.shape[-1])):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, needs a number or ({actions.shape[-1]},).")
    if check_values:
        bad = first_row(~actions.isfinite())
        if bad is not None:
            raise ValueError(f"actions{list(bad)}={float(actions[bad])!r} must be finite.")
        if bool((~(std.isfinite() & (std > 0))).any()):
            raise ValueError(f"reference_std={std.tolist()!r} must be finite and above 0.")
        if bool((~mean.isfinite()).any()):
            raise ValueError(f"reference_mean={mean.tolist()!r} must be finite.")
    background = broadcast_alpha(alpha, batch)
    return GaussianTarget(actions.detach(), 1 - background, background, mean, std)
