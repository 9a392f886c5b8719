"""What targets of labels that are smoothed alike have in common, so that the next one is made without arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlsmooth.targets.target import Reference, Target


class TargetPattern:
    """A target without its labels: `around` makes one of other labels of the same shape, on the same device.

    All of them share their weights. These are one number, expanded, into which torch does not write.
    """

    def __init__(self, target: dict[str, Any], reference: dict[str, Any] | None, shared: list[Tensor]) -> None:
        self._target, self._reference, self._shared = target, reference, shared
        self._versions = [part._version for part in shared]  # noqa: SLF001 - torch has no other name for it

    @staticmethod
    def of(target: Target) -> TargetPattern | None:
        """The pattern of a target of labels; None: more of it than the atoms' classes depends on the labels."""
        reference, places = target.reference, target.atom_indices
        parts = [target.atom_weights, target.background_weight, None if reference is None else reference.values]
        shared = [part for part in parts if part is not None]
        if places.numel() < 2 or torch.is_inference_mode_enabled() or any(part.is_inference() for part in shared):
            return None
        if any(part.stride().count(0) < part.ndim for part in shared[:2]):  # not expanded: torch would write there
            return None
        if reference is not None and not reference.is_of_labels(places):
            return None
        own = {**vars(target), "alike": {}, "atom_indices": None}
        follows = reference is not None and reference.rows is not None
        return TargetPattern(own, {**vars(reference), "rows": None} if follows else None, shared)

    def is_untouched(self) -> bool:
        """Whether nobody has written into what the targets share."""
        return self._versions == [part._version for part in self._shared]  # noqa: SLF001

    def around(self, labels: Tensor, reference: Reference | None = None) -> Target:
        """The target of labels, int64, that are checked; itself not: it is one that was, with other labels.

        `reference` replaces that of the pattern.
        """
        made: Any = object.__new__(Target)
        own = vars(made)
        own.update(self._target)
        own["atom_indices"] = labels.unsqueeze(-1)
        if reference is not None:
            own["reference"], own["alike"] = reference, None
        elif self._reference is not None:
            copy: Any = object.__new__(Reference)
            vars(copy).update(self._reference)
            vars(copy)["rows"] = labels
            own["reference"] = copy
        return made  # type: ignore[no-any-return]
