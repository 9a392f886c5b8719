"""Which rows get a pseudo-label, the target that labelled rows are trained on, and the teacher's moving average."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.checks import check_in_range
from rlsmooth.targets import Smoothing, Target, as_smoothing, confidence_adaptive, from_probs

__all__ = [
    "PseudoSmoothing",
    "Recipes",
    "as_given",
    "as_pseudo",
    "average_into",
    "labelled_target",
    "pseudo_target",
    "select",
]

PseudoSmoothing: TypeAlias = Smoothing | Literal["confidence_adaptive"]


@dataclass(frozen=True)
class Recipes:
    """What given labels are smoothed by, and what pseudo-labels are."""

    given: Smoothing
    pseudo: PseudoSmoothing


def select(
    confidence: NDArray[np.float64],
    places: NDArray[np.int64],
    num_classes: int,
    *,
    criterion: str,
    threshold: float,
    k_best: int,
    class_balance: bool,
) -> NDArray[np.int64]:
    """Which of the rows without a label get their pseudo-label in this round, as scikit-learn chooses.

    Args:
        confidence: `[M]`, the largest probability of each row.
        places: int64 `[M]`, the class of each row's pseudo-label.
        num_classes: `K`.
        criterion: `"threshold"`: all above `threshold`; `"k_best"`: the `k_best` highest.
        threshold: in [0, 1).
        k_best: 1 or more.
        class_balance: `"threshold"`: from each class that has any above it, as many as the rarest of them has, its
            most confident; `"k_best"`: from each class at most `k_best // K`.

    Returns:
        int64, the chosen rows.
    """
    if class_balance:
        above = np.flatnonzero(confidence > threshold) if criterion == "threshold" else np.arange(len(confidence))
        counts = np.bincount(places[above], minlength=num_classes)
        each = (
            int(counts[counts > 0].min(initial=len(confidence))) if criterion == "threshold" else k_best // num_classes
        )
        order = above[np.argsort(-confidence[above], kind="stable")]
        parts = [order[places[order] == place][:each] for place in range(num_classes)]
        balanced: NDArray[np.int64] = np.concatenate(parts)
        return balanced
    if criterion == "threshold":
        return np.flatnonzero(confidence > threshold)
    if k_best >= len(confidence):
        return np.arange(len(confidence))
    best: NDArray[np.int64] = np.argpartition(-confidence, k_best)[:k_best]
    return best


def as_pseudo(value: Any, labels: str) -> PseudoSmoothing:
    """What `SelfTraining(smoothing=)` means.

    Raises:
        TypeError: it is nothing that `Smoothing` takes.
        ValueError: a schedule, or one alpha a row; `"confidence_adaptive"` or a whole distribution (`alpha=None`) with
            soft labels.
    """
    if isinstance(value, str) and value == "confidence_adaptive":
        if labels == "soft":
            raise ValueError(
                'smoothing="confidence_adaptive" is for hard pseudo-labels: soft ones hold their confidence already.'
            )
        return "confidence_adaptive"
    recipe = _fixed("smoothing", as_smoothing(value))
    if recipe.alpha is None and labels == "soft":
        raise ValueError(
            'smoothing with alpha=None leaves nothing of soft pseudo-labels: give alpha, or labels="hard".'
        )
    return recipe


def as_given(value: Any) -> Smoothing:
    """The classifier's own recipe, which its labelled rows are smoothed by.

    Raises:
        TypeError: see `as_smoothing`.
        ValueError: a schedule, or one alpha a row.
    """
    return _fixed("classifier.smoothing", as_smoothing(value))


def pseudo_target(
    places: Tensor, confidence: Tensor, soft: Tensor | None, num_classes: int, smoothing: PseudoSmoothing
) -> Target:
    """The target of pseudo-labels.

    Args:
        places: int64 `[M]`, the pseudo-labels.
        confidence: float64 `[M]`, with which they were made.
        soft: float64 `[M, K]`, the teacher's sharpened probabilities; None: hard pseudo-labels.
        num_classes: `K`.
        smoothing: what smooths them; soft ones become `(1 - alpha) · soft + alpha · reference`.
    """
    if not isinstance(smoothing, Smoothing):
        return confidence_adaptive(places, confidence, num_classes)
    if soft is None:
        return smoothing(places, num_classes)
    target = from_probs(soft)
    alpha = smoothing.alpha_at()
    if smoothing.is_off or alpha is None:
        return target
    reference = dataclasses.replace(smoothing, alpha=1.0)(places, num_classes)
    return Target.mix(target, reference, 1 - alpha)


def labelled_target(
    places: Tensor,
    is_pseudo: Tensor,
    confidence: Tensor,
    soft: Tensor | None,
    num_classes: int,
    recipes: Recipes,
) -> Target:
    """One target for all labelled rows: given labels by the classifier's smoothing, pseudo-labels by their own.

    Args:
        places: int64 `[M]`, given labels and pseudo-labels.
        is_pseudo: bool `[M]`.
        confidence: float64 `[M]`, 1 for given labels.
        soft: float64 `[M, K]`, or None; the rows of given labels may hold any distribution.
        num_classes: `K`.
        recipes: of the two kinds of label.
    """
    given, pseudo = recipes.given, recipes.pseudo
    own = given(places, num_classes)
    if not bool(is_pseudo.any()):
        return own
    made = pseudo_target(places, confidence, soft, num_classes, pseudo)
    if soft is None and given.is_off and isinstance(pseudo, Smoothing) and pseudo.is_off:
        return own
    return Target.mix(made, own, is_pseudo.to(torch.float64))


@torch.no_grad()
def average_into(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """`teacher = decay · teacher + (1 - decay) · student`, in place, for parameters and floating-point buffers.

    Other buffers (counters) are the student's. After n more students the first teacher has become
    `decay^n · first + (1 - decay) · sum_i decay^(n - i) · student_i`: mean teachers (Tarvainen and Valpola 2017).

    Args:
        teacher: changed in place; of the same shapes.
        student: read.
        decay: in [0, 1): 0 is the student itself.

    Example:
        >>> teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> _ = nn.init.zeros_(teacher.weight), nn.init.ones_(student.weight)
        >>> average_into(teacher, student, 0.75)
        >>> teacher.weight.item()
        0.25
    """
    decay = check_in_range("decay", decay, 0.0, 1.0, high_open=True)
    # Not state_dict, which names a shared parameter twice.
    for mean, now in zip(
        (*teacher.parameters(), *teacher.buffers()), (*student.parameters(), *student.buffers()), strict=True
    ):
        if mean.is_floating_point():
            mean.lerp_(now.to(mean), 1 - decay)
        else:
            mean.copy_(now)


def _fixed(name: str, recipe: Smoothing) -> Smoothing:
    if not recipe.is_constant:
        raise ValueError(f"{name} follows a schedule, but a round's targets are made once: give one number.")
    if isinstance(recipe.alpha, Tensor) and recipe.alpha.ndim > 0:
        raise ValueError(f"{name} has an alpha for each row, but the labelled rows change: give one number.")
    return recipe
