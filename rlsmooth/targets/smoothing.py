"""`Smoothing`: the settings of label smoothing, as agents and trainers accept them."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

import torch
from torch import Tensor

from rlsmooth.checks import check_choice
from rlsmooth.schedules import Schedule, start_of
from rlsmooth.targets.arguments import (
    Labels,
    broadcast_mask,
    check_alpha,
    check_labels,
    check_mask,
    check_ordinal_parameters,
    check_probabilities,
    to_labels,
)
from rlsmooth.targets.fields import ComparedByFields
from rlsmooth.targets.kernels import ORDINAL_SCHEMES, OrdinalScheme, is_steep, off_label_rows
from rlsmooth.targets.labelled import from_prior, one_hot, uniform, uniform_over
from rlsmooth.targets.structured import cached_ordinal_kernel, from_rows, hierarchical
from rlsmooth.targets.target import Reference, Target, from_array, is_traced, weight_dtype
from rlsmooth.targets.tree import Tree

_KEPT_PATTERNS = 8


class TargetPattern:
    """The common part of targets of labels that are smoothed alike, so that the next one is made without arithmetic.

    `around` makes one of other labels of the same shape, on the same device. All of them share their weights: these are
    one number, expanded, into which torch does not write.
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
        own = {**vars(target), "alike": {}, "atom_indices": None}  # losses keep in `alike` what they look labels up in
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


@dataclass(frozen=True, eq=False)
class Smoothing(ComparedByFields):
    """How labels become targets. Callable: `smoothing(labels, num_classes, mask=None, progress=1.0) -> Target`.

    Attributes:
        alpha: the mass that leaves the label for the reference. A number at most 1; a schedule, as a callable of the
            progress remaining (1 at the start, 0 at the end, as in SB3) or as `"lin_0.1"` (from 0.1 down to 0);
            a tensor that broadcasts over the batch; or None (trees and ordinal schemes only): the target is the
            reference's whole distribution, label included. 0 means exactly the hard target.
        reference: `"uniform"`; a prior `[K]`; a similarity kernel `[K, K]`; a `Tree`; or the name of an ordinal scheme
            (`"adjacent"`, `"triangular"`, `"binomial"`, `"poisson"`, `"beta"`, `"exponential"`).
        spread: for `"uniform"`: over `"all"` classes, or over the `"others"` without the label.
        decay: for a `Tree` (per edge) and for `"exponential"`.
        power: for `"exponential"`.
        width: for `"triangular"`.
        concentration: for `"beta"`.
        edge: for `"adjacent"`.

    Raises:
        TypeError: an alpha or reference of an unknown kind.
        ValueError: a value outside its range; `alpha=None` with a reference that has no whole distribution.

    Examples:
        >>> smoothing = Smoothing(alpha="lin_0.2")
        >>> smoothing(torch.tensor([0]), 2, progress=0.5).dense()
        tensor([[0.9500, 0.0500]])
    """

    alpha: float | str | Schedule | Tensor | None = 0.1
    reference: str | Tensor | Tree = "uniform"
    spread: Literal["all", "others"] = "all"
    decay: float = 1.0
    power: float = 2.0
    width: float = 2.0
    concentration: float = 20.0
    edge: Literal["all", "half"] = "all"
    _tables: dict[tuple[int, bool, bool, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _steepness: dict[tuple[int, bool], bool] = field(default_factory=dict, init=False, repr=False, compare=False)
    _patterns: dict[tuple[Any, ...], TargetPattern] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice("spread", self.spread, ("all", "others"))
        if isinstance(self.reference, str):
            check_choice("reference", self.reference, ("uniform", *ORDINAL_SCHEMES))
        elif not isinstance(self.reference, Tree):
            object.__setattr__(self, "reference", from_array(self.reference))
        if isinstance(self.reference, Tensor):
            if self.reference.ndim == 1:
                check_probabilities("reference", self.reference, "give counts / counts.sum()")
            else:
                off_label_rows(self.reference, "reference")
        elif not isinstance(self.reference, (str, Tree)):
            raise TypeError(
                f"reference must be a name, a tensor ([K] prior or [K, K] kernel) or a Tree, got "
                f"{type(self.reference).__name__}."
            )
        check_ordinal_parameters(self.width, self.concentration, self.decay, self.power, self.edge)
        if self.alpha is None:
            if not (isinstance(self.reference, Tree) or self.reference in ORDINAL_SCHEMES[1:]):
                raise ValueError("alpha=None needs a reference with a whole distribution: a Tree or an ordinal scheme.")
        elif isinstance(self.alpha, str):
            _linear(self.alpha)
        elif isinstance(self.alpha, Tensor):
            check_alpha(self.alpha, self.alpha.shape, values=True)
        elif not callable(self.alpha):
            check_alpha(self.alpha, torch.Size(), values=True)
            object.__setattr__(self, "alpha", float(self.alpha))  # JSON can't hold numpy's scalars
        for name in ("decay", "power", "width", "concentration"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def is_off(self) -> bool:
        """Whether alpha is the number 0: exactly the unsmoothed algorithm."""
        return not isinstance(self.alpha, Tensor) and self.alpha == 0

    @property
    def is_constant(self) -> bool:
        """Whether alpha stays the same over a run, so that targets can be computed once."""
        return not (isinstance(self.alpha, str) or callable(self.alpha))

    def alpha_at(self, progress: float = 1.0) -> float | Tensor | None:
        """Alpha at the progress remaining, `progress` (1 at the start, 0 at the end)."""
        if isinstance(self.alpha, str):
            return _linear(self.alpha) * progress
        if callable(self.alpha):
            value = self.alpha(progress)
            # The target's builder checks the value of a tensor: reading it here would wait for the device.
            check_alpha(value, torch.Size(), values=False)
            return value
        return self.alpha

    def __call__(
        self,
        labels: Labels,
        num_classes: int,
        mask: Tensor | None = None,
        progress: float = 1.0,
        validate: bool = True,
    ) -> Target:
        """The target of `labels`.

        Args:
            labels: int64 `[...]`; names of classes too where the reference is a `Tree`.
            num_classes: `K`; must agree with the reference.
            mask: bool, broadcasts to `[..., K]`; True = legal.
            progress: the progress remaining, 1 at the start, for a schedule.
            validate: False skips the checks that wait for the device, for trainers that have checked their data set.

        Raises:
            TypeError: as the builders of targets, such as `uniform`.
            ValueError: as those builders; or the reference is made for another number of classes.
        """
        labels = self.reference.to_labels(labels) if isinstance(self.reference, Tree) else to_labels(labels)
        alpha = self.alpha_at(progress)
        if isinstance(alpha, Tensor) or self.spread != "all" or type(num_classes) is not int or labels.numel() < 2:
            return self._make(labels, num_classes, mask, alpha, validate)
        is_uniform = isinstance(self.reference, str) and self.reference == "uniform" and alpha != 0
        if (mask is not None and not is_uniform) or is_traced():
            return self._make(labels, num_classes, mask, alpha, validate)
        key = (num_classes, alpha, labels.shape, labels.device)
        pattern = self._patterns.get(key)
        if pattern is None or not pattern.is_untouched():
            made = self._make(labels, num_classes, None, alpha, validate)
            pattern = TargetPattern.of(made)
            if pattern is not None:
                while len(self._patterns) >= _KEPT_PATTERNS:  # the oldest goes
                    self._patterns.pop(next(iter(self._patterns)))
                self._patterns[key] = pattern
            return made if mask is None else self._make(labels, num_classes, mask, alpha, validate)
        if validate:
            check_labels(labels, num_classes)
        if mask is None:
            return pattern.around(labels)
        mask = broadcast_mask(mask, labels.shape, num_classes)
        if validate:
            check_mask(mask, labels)
        return pattern.around(labels, uniform_over(mask)[1])

    def _make(
        self, labels: Tensor, num_classes: int, mask: Tensor | None, alpha: float | Tensor | None, validate: bool
    ) -> Target:
        if not isinstance(alpha, Tensor) and alpha == 0:
            return one_hot(labels, num_classes, mask=mask, validate=validate)
        if isinstance(self.reference, str) and self.reference == "uniform":
            assert alpha is not None
            return uniform(labels, num_classes, alpha, self.spread, mask=mask, validate=validate)
        if isinstance(self.reference, Tree):
            self._check_size(self.reference.num_classes, num_classes)
            return hierarchical(labels, self.reference, alpha, self.decay, mask=mask, validate=validate)
        steep = mask is not None and self._is_steep(num_classes, alpha is None)
        form: dict[str, Any] = {"mask": mask, "validate": validate, "in_logarithms": steep}
        if isinstance(self.reference, Tensor) and self.reference.ndim == 1:
            assert alpha is not None
            return from_prior(labels, self._table(num_classes, False, False, labels.device), alpha, **form)
        return from_rows(labels, self._table(num_classes, alpha is None, steep, labels.device), alpha, **form)

    def _is_steep(self, num_classes: int, include_label: bool) -> bool:
        """Whether masks need the reference in logarithms; found once."""
        key = (num_classes, include_label)
        found = self._steepness.get(key)
        if found is None:
            table = self._make_table(num_classes, include_label, in_logarithms=True)
            found = is_steep(table.log() if table.ndim == 1 else table)
            if not is_traced():
                self._steepness[key] = found
        return found

    def _table(self, num_classes: int, include_label: bool, in_logarithms: bool, device: torch.device) -> Tensor:
        """The reference's prior or normalised kernel, or the logarithms of a kernel, made once for each device."""
        key = (num_classes, include_label, in_logarithms, device)
        table = self._tables.get(key)
        if table is None:
            self._is_steep(num_classes, include_label)  # found now, so that no later call reads a value
            with torch.inference_mode(False):  # it is cached, and a later training may use it
                made = self._make_table(num_classes, include_label, in_logarithms)
                table = made.to(device, weight_dtype(device))
            if not is_traced():  # a tensor of the compiler's tracing must not be cached
                self._tables[key] = table
        return table

    def _make_table(self, num_classes: int, include_label: bool, in_logarithms: bool) -> Tensor:
        if isinstance(self.reference, str):
            table: Tensor = cached_ordinal_kernel(
                num_classes,
                cast("OrdinalScheme", self.reference),
                include_label,
                self.width,
                self.concentration,
                self.decay,
                self.power,
                self.edge,
                in_logarithms,
            )
            return table
        assert isinstance(self.reference, Tensor)
        self._check_size(self.reference.shape[-1], num_classes)
        if self.reference.ndim == 1:
            return self.reference.detach()
        return off_label_rows(self.reference, in_logarithms=in_logarithms)

    @staticmethod
    def _check_size(size: int, num_classes: int) -> None:
        if size != num_classes:
            raise ValueError(f"The smoothing's reference is made for {size} classes, the labels have {num_classes}.")

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON-able values; `Smoothing.from_config` reads them.

        Raises:
            ValueError: alpha is a callable, which a file without code cannot contain; use `"lin_…"` instead.
        """
        if callable(self.alpha) and not isinstance(self.alpha, Tensor):
            raise ValueError('A callable alpha can\'t be written to a file: use a number or "lin_…".')
        alpha = {"tensor": self.alpha.tolist()} if isinstance(self.alpha, Tensor) else self.alpha
        reference: object = self.reference
        if isinstance(self.reference, Tensor):
            reference = {"tensor": self.reference.to(torch.float64).tolist()}
        elif isinstance(self.reference, Tree):
            reference = {"tree": self.reference.to_config()}
        return {
            "alpha": alpha,
            "reference": reference,
            "spread": self.spread,
            "decay": self.decay,
            "power": self.power,
            "width": self.width,
            "concentration": self.concentration,
            "edge": self.edge,
        }

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Smoothing:
        """The `Smoothing` with the settings that `to_config` wrote.

        Raises:
            ValueError: a key is missing or unknown, or a value is refused by `Smoothing`.
        """
        known = {entry.name for entry in fields(Smoothing) if entry.init}
        if set(config) != known:
            odd = ", ".join(sorted(set(config) ^ known))
            raise ValueError(f"config needs the keys {sorted(known)}; missing or unknown: {odd}.")
        alpha, reference = config["alpha"], config["reference"]
        if isinstance(alpha, Mapping):
            alpha = torch.tensor(alpha["tensor"], dtype=torch.float64)
        if isinstance(reference, Mapping):
            reference = (
                Tree.from_config(reference["tree"])
                if "tree" in reference
                else torch.tensor(reference["tensor"], dtype=torch.float64)
            )
        return Smoothing(
            alpha,
            reference,
            spread=config["spread"],
            decay=config["decay"],
            power=config["power"],
            width=config["width"],
            concentration=config["concentration"],
            edge=config["edge"],
        )


def as_smoothing(value: float | str | Smoothing) -> Smoothing:
    """Interpret a `smoothing=` argument: a number or `"lin_…"` is short for `Smoothing(alpha=value)`.

    Raises:
        TypeError: it is none of these.
        ValueError: the number is above 1 or not finite, or the text is no schedule.

    Examples:
        >>> as_smoothing(0.1).alpha
        0.1
    """
    if isinstance(value, Smoothing):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, str, numbers.Real)):
        raise TypeError(f'smoothing must be a number, "lin_…" or a Smoothing, got {type(value).__name__} {value!r}.')
    try:
        return Smoothing(alpha=value)
    except ValueError as error:
        raise ValueError(f"smoothing={value!r}: {error}") from error


def _linear(text: str) -> float:
    start = start_of("alpha", text)
    check_alpha(start, torch.Size(), values=True)
    return start
