"""Pseudo-labels: the choice of samples, the targets that labels become, and the teacher's moving average."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.targets import Smoothing, Target, as_smoothing, confidence_adaptive, from_probs
from rlsmooth.training.classifier_samples import as_array, as_label_array, as_weights, encode_labels, sorted_classes

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
    """Which of the samples without a label get their pseudo-label in this round, as scikit-learn chooses.

    Args:
        confidence: `[M]`, the largest probability of each sample.
        places: int64 `[M]`, the class of each sample's pseudo-label.
        num_classes: `K`.
        criterion: `"threshold"`: all above `threshold`; `"k_best"`: the `k_best` highest.
        threshold: in [0, 1).
        k_best: 1 or more.
        class_balance: `"threshold"`: from each class that has any above it, as many as the rarest of them has, its
            most confident; `"k_best"`: from each class at most `k_best // K`.

    Returns:
        int64, the chosen samples.
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
        ValueError: a schedule, or one alpha a sample; `"confidence_adaptive"` or a whole distribution (`alpha=None`)
            with soft labels.
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
    """The classifier's own recipe, which its labelled samples are smoothed by.

    Raises:
        TypeError: it is nothing that `Smoothing` takes.
        ValueError: a schedule, or one alpha a sample.
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


def _fixed(name: str, recipe: Smoothing) -> Smoothing:
    if not recipe.is_constant:
        raise ValueError(f"{name} follows a schedule, but a round's targets are made once: give one number.")
    if isinstance(recipe.alpha, Tensor) and recipe.alpha.ndim > 0:
        raise ValueError(f"{name} has an alpha for each sample, but the labelled samples change: give one number.")
    return recipe


UNLABELLED = -1


@dataclass
class SelfTrainingSamples:
    """All samples of a fit: which have a label, since when, and how sure the teacher was.

    Attributes:
        inputs: `[N, ...]`.
        weights: float64 `[N]`, or None.
        labels: `[N]`, as given, and pseudo-labels as they are made.
        truth: `[N]`, or None.
        classes: `[K]`, sorted.
        places: int64 `[N]`, the labels as places in `classes`; -1 without a label.
        labelled_in: int64 `[N]`: 0 given, the round of a pseudo-label, -1 none.
        confidence: float64 `[N]`, with which a label was made; 1 for given ones.
        soft: float64 `[N, K]`, soft pseudo-labels, or None.
    """

    inputs: Any
    weights: NDArray[np.float64] | None
    labels: NDArray[Any]
    truth: NDArray[Any] | None
    classes: NDArray[Any]
    places: NDArray[np.int64]
    labelled_in: NDArray[np.int64]
    confidence: NDArray[np.float64]
    soft: NDArray[np.float64] | None

    @classmethod
    def of(cls, X: Any, y: Any, sample_weight: Any, true_labels: Any, *, soft: bool) -> Self:
        """The samples before the first round.

        Args:
            X: as `SelfTraining.fit` takes it, like all up to `true_labels`.
            y: labels, -1 where there is none.
            sample_weight: or None.
            true_labels: or None.
            soft: whether soft pseudo-labels will be kept.

        Raises:
            TypeError: a sparse matrix.
            ValueError: shapes that do not fit, text that is no object, no sample with a label.
        """
        inputs = as_array(X)
        labels = _labels(y, len(inputs), "y").copy()
        has_label = np.asarray(labels != UNLABELLED, dtype=bool)
        if not has_label.any():
            raise ValueError("y has no sample with a label (all are -1): give some of each class.")
        classes = sorted_classes(labels[has_label])
        places = np.full(len(labels), UNLABELLED, dtype=np.int64)
        places[has_label] = encode_labels(labels[has_label], classes)
        return cls(
            inputs,
            as_weights(sample_weight, len(labels)),
            labels,
            None if true_labels is None else as_label_array(true_labels, len(labels), "true_labels"),
            classes,
            places,
            np.where(has_label, 0, UNLABELLED),
            np.ones(len(labels)),
            np.full((len(labels), len(classes)), 1 / len(classes)) if soft else None,
        )

    def labelled(self) -> NDArray[np.int64]:
        """The samples that have a label, ascending."""
        return np.flatnonzero(self.labelled_in >= 0)

    def unlabelled(self) -> NDArray[np.int64]:
        """The samples that have none, ascending."""
        return np.flatnonzero(self.labelled_in < 0)

    def is_right(self, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Those of `chosen` whose truth is known, and whether their labels are it."""
        assert self.truth is not None
        known = chosen[self.truth[chosen] != UNLABELLED]
        return known, np.asarray(self.labels[known] == self.truth[known], dtype=bool)

    def target(self, chosen: NDArray[np.int64], recipes: Recipes) -> Target:
        """The targets `[M]` of labelled samples, each by the smoothing of its kind of label."""
        given, pseudo, num_classes = recipes.given, recipes.pseudo, len(self.classes)
        places, is_pseudo = torch.from_numpy(self.places[chosen]), torch.from_numpy(self.labelled_in[chosen] > 0)
        own = given(places, num_classes)
        if not bool(is_pseudo.any()):
            return own
        confidence = torch.from_numpy(self.confidence[chosen])
        soft = None if self.soft is None else torch.from_numpy(self.soft[chosen])
        made = pseudo_target(places, confidence, soft, num_classes, pseudo)
        if soft is None and given.is_off and isinstance(pseudo, Smoothing) and pseudo.is_off:
            return own
        return Target.mix(made, own, is_pseudo.to(torch.float64))

    def keep(
        self,
        chosen: NDArray[np.int64],
        places: NDArray[np.int64],
        confidence: NDArray[np.float64],
        soft: NDArray[np.float64] | None,
        *,
        number: int,
    ) -> None:
        """Give `chosen` their pseudo-labels, in round `number`."""
        self.labels[chosen] = self.classes[places]
        self.places[chosen] = places
        self.labelled_in[chosen] = number
        self.confidence[chosen] = confidence
        if self.soft is not None and soft is not None:
            self.soft[chosen] = soft


def take(inputs: Any, chosen: NDArray[np.int64]) -> Any:
    """Some samples of an array or a tensor."""
    return inputs[torch.from_numpy(chosen).to(inputs.device)] if isinstance(inputs, Tensor) else inputs[chosen]


def _labels(y: Any, num_samples: int, name: str) -> NDArray[Any]:
    array = as_label_array(y, num_samples, name)
    if array.dtype.kind in "US":
        raise ValueError(
            f"{name} has dtype string: make it an array of dtype object, with the number -1 where there is no label."
        )
    return array
