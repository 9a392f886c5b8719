"""Samples for `Classifier.fit`: inputs, labels and weights, checked once, then tensors on the device."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.targets import Smoothing, Target, Tree
from rlsmooth.training.classifier_model import check_feature_names
from rlsmooth.training.distributed import Ranks
from rlsmooth.training.run import fingerprint, spread_evenly
from rlsmooth.training.seeding import EpochCut, mean_weight

BLOCK_BYTES = 64 * 2**20
DENSE_CLASSES = 32
"""Up to so many classes a smoothed target is kept dense: faster to compare with, at 4 bytes a class and sample."""
CHECKED_AT_ONCE = 65536
FINGERPRINT_SAMPLES = 4096


# ---- samples on the device


@dataclass(frozen=True)
class ClassifierSamples:
    """Samples to train or validate on, all on one device: a data set, or a minibatch of it.

    Attributes:
        inputs: `[N, ...]`, as the model takes them.
        labels: int64 `[N]`, places in `classes_`.
        weights: float32 or float64 `[N]`, sample weight times class weight, or None where each sample counts once.
        mask: bool `[N, K]`, True = legal, or None.
        target: of batch shape `[N]`, or None where each minibatch makes it, since alpha follows a schedule.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor | None = None
    mask: Tensor | None = None
    target: Target | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> ClassifierSamples:
        """Views of a slice of the samples, or copies of those that an int64 tensor names."""

        def select(tensor: Tensor) -> Tensor:
            return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)

        return ClassifierSamples(
            select(self.inputs),
            select(self.labels),
            None if self.weights is None else select(self.weights),
            None if self.mask is None else select(self.mask),
            None if self.target is None else self.target[index],
        )

    def batches(self, order: Tensor, cut: EpochCut, ranks: Ranks) -> Iterator[ClassifierSamples]:
        """The samples in an order, divided into minibatches.

        They are gathered in blocks of at most 64 MiB, one `index_select` a tensor; minibatches are views of a block.

        Args:
            order: int64 `[N]`, on the CPU.
            cut: how the epoch is divided.
            ranks: the processes that train together; each gets its share of every minibatch.
        """
        sample_bytes = self.inputs.element_size() * self.inputs[:1].numel()
        in_block = max(1, BLOCK_BYTES // (max(sample_bytes, 1) * cut.size))
        for first in range(0, len(cut), in_block):
            places = [ranks.share(*cut.bounds(number)) for number in range(first, min(first + in_block, len(cut)))]
            if ranks.size == 1:
                chosen = order[places[0][0] : places[-1][1]]
            else:
                chosen = torch.cat([order[start:end] for start, end in places])
            block, begin = self[chosen.to(self.labels.device)], 0
            for start, end in places:
                yield block[begin : (begin := begin + end - start)]


@dataclass(frozen=True)
class ClassifierData:
    """All samples that `fit` was given, checked and on the device.

    Attributes:
        samples: to train on.
        places: int64 `[N]` on the CPU, their places in `X`; None: all of `X` in its order.
        validation: held out, or None.
        classes: `[K]`, sorted.
        smoothing: the recipe of labels.
        has_given_target: whether `fit(target=)` was given.
        mean_weight: of the samples to train on; None where all weigh the same.
    """

    samples: ClassifierSamples
    places: Tensor | None
    validation: ClassifierSamples | None
    classes: NDArray[Any]
    smoothing: Smoothing
    has_given_target: bool
    mean_weight: float | None

    def target_of(self, samples: ClassifierSamples, remaining: float) -> Target:
        """The target of some of the samples, made anew where alpha follows a schedule of the progress remaining."""
        if samples.target is not None:
            return samples.target
        return self.smoothing(samples.labels, len(self.classes), samples.mask, remaining, validate=False)

    def fingerprint(self) -> str:
        """A sha256 that tells data apart: of classes, labels, weights and up to 4096 samples of the rest."""
        parts: list[str | Tensor] = [repr(self.classes.tolist())]
        for samples in (self.samples, self.validation):
            if samples is None:
                continue
            some = samples[spread_evenly(len(samples), FINGERPRINT_SAMPLES).to(samples.labels.device)]
            target = None if some.target is None else some.target.dense()
            for tensor in (samples.labels, samples.weights, some.inputs, some.mask, target):
                if tensor is not None:
                    parts += [f"{tensor.dtype} {tuple(tensor.shape)}", tensor]
        return fingerprint(*parts)


def mix_samples(
    batch: ClassifierSamples, target: Target, concentration: float, *, weighted: bool
) -> tuple[ClassifierSamples, Target]:
    """Mixup (Zhang et al. 2018): `lam · batch + (1 - lam) · batch in another order`, samples and targets alike.

    One `lam ~ Beta(concentration, concentration)` a batch, from torch's CPU generator. A mixed sample may be of any
    class that is legal for one of its two. Weights go into the target, which then has the mixed weight as its mass.

    Args:
        batch: of floating-point inputs.
        target: of the batch.
        concentration: above 0; small: mostly one of the two.
        weighted: whether the weights count; they don't where all are the same.
    """
    lam = float(torch.distributions.Beta(concentration, concentration).sample())
    other = torch.randperm(len(batch)).to(batch.labels.device)
    if weighted and batch.weights is not None:
        target = target.scale(batch.weights)
    mask = batch.mask
    mixed = ClassifierSamples(
        torch.lerp(batch.inputs[other], batch.inputs, lam),
        batch.labels,
        batch.weights,
        None if mask is None else mask | mask[other],
    )
    return mixed, Target.mix(target, target[other], lam)


# ---- inputs and masks


def as_array(X: Any) -> Any:
    """A detached tensor of a tensor, an array of anything else, `[N, ...]`.

    Raises:
        TypeError: a sparse matrix.
        ValueError: not at least two axes.
    """
    if type(X).__module__.startswith("scipy.sparse"):
        raise TypeError("X is a sparse matrix, sparse input is not supported: give X.toarray().")
    array: Any = X.detach() if isinstance(X, Tensor) else np.asarray(X)
    if array.ndim < 2:
        raise ValueError(
            f"X has shape {tuple(array.shape)}, needs [samples, features] or more axes. Reshape your data: "
            "X.reshape(-1, 1) if it is one feature, X.reshape(1, -1) if it is one sample."
        )
    return array


def as_inputs(X: Any, dtype: torch.dtype) -> Tensor:
    """The features as a tensor of finite numbers.

    Args:
        X: `[N, ...]`: an array, a data frame or a list, whose numbers become `dtype`; or a tensor, of which only a
            floating-point one does: pixels (uint8) and tokens (int64) are left to the model.
        dtype: of the model's parameters.

    Raises:
        TypeError: a sparse matrix, or something that is no number.
        ValueError: no sample, no feature, not at least two axes, complex numbers, NaN, infinity.
    """
    given = as_array(X)
    if isinstance(given, Tensor):
        values = given
    else:
        array: NDArray[Any] = given
        if array.dtype.kind not in "biufc":
            array = array.astype(np.float64)  # says what is no number
        # A copy in torch's own memory: the alignment of numpy's differs, and with it the last bits of a product.
        if array.dtype.kind != "c":
            with np.errstate(over="ignore"):  # what is too large becomes infinity, which is an error below
                array = array.astype(_numpy_dtype(dtype))
        values = torch.tensor(array)
    if values.is_complex():
        raise ValueError("X is complex. Complex data not supported: give real and imaginary parts as features.")
    _check_not_empty(tuple(values.shape))
    if values.is_floating_point():
        values = values.to(dtype)
        finite = values.isfinite()
        if not bool(finite.all()):
            bad = int(finite.flatten(1).all(-1).logical_not().nonzero()[0])
            raise ValueError(
                f"X[{bad}] contains NaN, infinity or a value too large for {str(dtype).removeprefix('torch.')}: drop "
                "the sample or impute it."
            )
    return values


def features_and_classes(X: Any, y: Any, classes: Any) -> tuple[int, NDArray[Any], NDArray[Any]]:
    """What a network is built for, before the features are converted to its type.

    Args:
        X: as in `Classifier.fit`.
        y: labels.
        classes: all labels, or None.

    Returns:
        The number of features of a sample, all axes counted; the labels; the sorted classes.

    Raises:
        TypeError: a sparse matrix.
        ValueError: no sample, no feature; labels that `as_label_array` refuses or that can't be sorted.
    """
    array = as_array(X)
    _check_not_empty(tuple(array.shape))
    labels = as_label_array(y, len(array))
    given = labels if classes is None else as_label_array(classes, len(classes), "classes")
    known = sorted_classes(given, "y" if classes is None else "classes")
    return int(np.prod(array.shape[1:])), labels, known


def _check_not_empty(shape: tuple[int, ...]) -> None:
    for what, size in (("sample", shape[0]), ("feature", np.prod(shape[1:]) if shape[0] else 1)):
        if size == 0:
            raise ValueError(f"X has 0 {what}(s) (shape={shape}) while a minimum of 1 is required: give some.")


def feature_names(X: Any) -> NDArray[np.object_] | None:
    """The columns' names of a data frame or an Arrow table, where they are text; None for anything else.

    Raises:
        TypeError: some are text and some are not, so that their order could not be checked.
    """
    columns = _column_names(X)
    are_text = {isinstance(name, str) for name in columns}
    if len(are_text) > 1:
        raise TypeError(
            "X has columns named by text and columns that are not, and feature names are only supported if all input "
            "features have string names: rename them, X.columns = X.columns.astype(str), or give an array."
        )
    return np.asarray(columns, dtype=object) if are_text == {True} else None


def _column_names(table: Any) -> list[Any]:
    """Those of a data frame or an Arrow table; empty for anything else."""
    names = getattr(table, "column_names", None)
    return list(getattr(table, "columns", ()) if names is None else names)


def keep_feature_names(X: Any, *estimators: Any) -> None:
    """Set `feature_names_in_` of fitted estimators, or delete what an earlier fit left."""
    names = feature_names(X)
    for estimator in estimators:
        if names is not None:
            estimator.feature_names_in_ = names
        elif "feature_names_in_" in vars(estimator):
            del estimator.feature_names_in_


def as_mask(mask: Any, num_samples: int, classes: NDArray[Any]) -> Tensor | None:
    """Which classes are legal, bool `[N, K]`, or None.

    Args:
        mask: or None.
        num_samples: `N`.
        classes: `[K]`, sorted.

    Raises:
        TypeError: it is not bool.
        ValueError: it does not broadcast to `[N, K]`; a sample without a legal class; a data frame whose columns are
            the classes in another order.
    """
    if mask is None:
        return None
    num_classes, columns = len(classes), _column_names(mask)
    if columns != classes.tolist() and set(columns) == set(classes.tolist()):
        raise ValueError(f"mask has the columns {columns[:8]}, the classes are {classes.tolist()[:8]}: reorder them.")
    given = mask if isinstance(mask, Tensor) else torch.tensor(np.array(mask, order="C"))
    if given.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = legal), got {given.dtype}: use mask.bool() for 0/1 masks.")
    if given.ndim not in (1, 2) or given.shape[-1] != num_classes or given.shape[:-1] not in ((), (1,), (num_samples,)):
        raise ValueError(f"mask has shape {tuple(given.shape)}, needs ({num_samples}, {num_classes}).")
    empty = (~given.any(-1)).reshape(-1).nonzero()
    if len(empty):
        raise ValueError(f"mask[{int(empty[0])}] allows no class at all: every sample needs at least one legal class.")
    return given.expand(num_samples, num_classes)


def _numpy_dtype(dtype: torch.dtype) -> type[np.floating[Any]]:
    return np.float64 if dtype == torch.float64 else np.float32


# ---- labels and weights


def as_label_array(y: Any, num_samples: int, name: str = "y") -> NDArray[Any]:
    """Labels of any kind that can be sorted, as an array `[N]`.

    Raises:
        ValueError: None, another length than `num_samples`, fractions, missing labels, more than one column.
    """
    if y is None:
        raise ValueError(f"Classifier requires {name} to be passed, but the target {name} is None.")
    array = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if array.ndim == 2 and array.shape[1] == 1:
        warnings.warn(
            f"A column-vector {name} was passed when a 1d array was expected: use {name}.ravel().",
            _conversion_warning(),
            stacklevel=4,
        )
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}, {name} should be a 1d array of one label a sample: give soft labels as "
            "target=from_probs(...)."
        )
    if array.dtype.kind == "c":
        raise ValueError(f"{name} is complex. Complex data not supported: give labels.")
    if array.dtype.kind == "S":
        raise ValueError(f"{name} holds bytes, which no file can keep: give text, {name}.astype(str).")
    _check_none_missing(y, array, name)
    if array.dtype.kind == "f":
        bad = np.flatnonzero(array != np.trunc(array))
        if len(bad):
            raise ValueError(
                f"Unknown label type: continuous. {name}[{bad[0]}]={array[bad[0]]!r} is no class: give whole numbers "
                "or names."
            )
    if len(array) != num_samples:
        raise ValueError(
            f"{name} has {len(array)} labels, but X has {num_samples} samples (inconsistent numbers of samples)."
        )
    return array


def _check_none_missing(y: Any, array: NDArray[Any], name: str) -> None:
    """Raise ValueError where a label is None, NaN, NaT, pandas' NA, masked or infinite.

    Args:
        y: labels as given: numpy makes the text "nan" of a NaN in a list of text.
        array: the same as an array `[N]`.
        name: of the argument.
    """
    is_text = isinstance(y, (list, tuple)) and array.dtype.kind == "U"
    listed = y if is_text else array.tolist() if array.dtype.kind == "O" else []
    bad = np.zeros(len(array), dtype=bool)
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array)
    elif array.dtype.kind in "mM":
        bad = np.isnat(array)
    elif len(listed) == len(array):
        bad = np.array([_is_missing(label) for label in listed], dtype=bool)
    if isinstance(y, np.ma.MaskedArray):
        bad = bad | np.ma.getmaskarray(y).reshape(-1)
    if bad.any():
        place = int(np.flatnonzero(bad)[0])
        number = f"NaN or infinity (Input {name} contains NaN or infinity), " if array.dtype.kind == "f" else ""
        shown = f" ({listed[place]!r})" if len(listed) else ""
        raise ValueError(
            f"{name}[{place}]{shown} is {number}a missing label: drop the sample, or label it. SelfTraining takes -1 "
            "where there is none."
        )


def _is_missing(label: Any) -> bool:
    # pandas' NA and NaT are known by name: pandas need not be installed.
    is_nan = isinstance(label, (float, np.floating)) and bool(np.isnan(label))
    return label is None or is_nan or type(label).__name__ in ("NAType", "NaTType")


def sorted_classes(labels: NDArray[Any], name: str = "y") -> NDArray[Any]:
    """The different labels, sorted.

    Raises:
        ValueError: they can't be sorted.
    """
    try:
        return np.unique(labels)
    except TypeError as error:
        raise ValueError(
            f"{name} mixes kinds of labels that can't be sorted ({error}): give all of one kind."
        ) from error


def in_class_order(smoothing: Smoothing, classes: NDArray[Any]) -> Smoothing:
    """The recipe for sorted `classes`: the leaves of a `Tree` are matched with text labels by their names.

    Numbers count the leaves in the tree's own order.

    Raises:
        ValueError: the tree's leaves have other names than the labels.
    """
    if not isinstance(smoothing.reference, Tree) or not all(isinstance(name, str) for name in classes.tolist()):
        return smoothing
    return dataclasses.replace(smoothing, reference=smoothing.reference.in_order(classes.tolist()))


def encode_labels(array: NDArray[Any], classes: NDArray[Any], name: str = "y") -> NDArray[np.int64]:
    """The place of each label in the sorted `classes`.

    Raises:
        ValueError: a label that is no class.
    """
    places = {label: place for place, label in enumerate(classes.tolist())}
    found: NDArray[np.int64] = np.array([places.get(label, -1) for label in array.tolist()], dtype=np.int64)
    if (found < 0).any():
        bad = int(np.flatnonzero(found < 0)[0])
        shown = ", ".join(map(repr, classes[:8].tolist())) + (", ..." if len(classes) > 8 else "")
        raise ValueError(f"{name}[{bad}]={array[bad]!r} is none of the classes {shown}: name all in fit(classes=).")
    return found


def as_weights(sample_weight: Any, num_samples: int) -> NDArray[np.float64] | None:
    """One weight a sample, or None.

    Raises:
        ValueError: another shape than `[N]`, a weight that is negative or not finite, all of them 0.
    """
    if sample_weight is None:
        return None
    given = sample_weight.detach().cpu().numpy() if isinstance(sample_weight, Tensor) else np.asarray(sample_weight)
    weights: NDArray[np.float64] = given.astype(np.float64)
    if weights.shape != (num_samples,):
        raise ValueError(
            f"sample_weight has shape {weights.shape}, needs ({num_samples},), one weight a sample "
            f"(sample_weight.shape == {weights.shape}, expected ({num_samples},)!)."
        )
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(f"sample_weight[{bad[0]}]={weights[bad[0]]!r} must be finite and at least 0.")
    if not weights.any():
        raise ValueError("sample_weight: all weights are zero, nothing is left to learn from.")
    return weights


def class_factors(
    class_weight: Any, classes: NDArray[Any], labels: NDArray[np.int64], weights: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """The factor of each class's samples, `[K]`; as scikit-learn's `compute_class_weight`.

    Args:
        class_weight: None; `"balanced"`: `n / (K · n_k)` with samples counted by their weights; a dict of label to
            factor, where a class that is left out has 1; or an array `[K]` in the order of `classes`.
        classes: `[K]`, sorted.
        labels: int64 `[N]`, places in `classes`.
        weights: sample weights `[N]`, or None.

    Raises:
        TypeError: another kind.
        ValueError: a factor that is negative or not finite, an array of another shape, a label that is no class.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f'class_weight={class_weight!r} is not known: give "balanced", a dict or an array [K].')
        counts = np.bincount(labels, weights=weights, minlength=len(classes))
        present = np.count_nonzero(counts)  # a class without samples has nothing to weigh
        balanced: NDArray[np.float64] = np.ones(len(classes))
        np.divide(counts.sum(), present * counts, out=balanced, where=counts > 0)
        return balanced
    if isinstance(class_weight, Mapping):
        names = classes.tolist()
        unknown = [label for label in class_weight if label not in names]
        if unknown and len(class_weight) - len(unknown) < len(names):
            raise ValueError(f"class_weight has {unknown[0]!r}, which is none of the classes {names[:8]}.")
        given = np.array([class_weight.get(label, 1.0) for label in names], dtype=np.float64)
    elif isinstance(class_weight, (Tensor, np.ndarray, list, tuple)):
        given = np.asarray(class_weight.detach().cpu() if isinstance(class_weight, Tensor) else class_weight, float)
    else:
        raise TypeError(
            f'class_weight must be None, "balanced", a dict or an array [K], got {type(class_weight).__name__}.'
        )
    if given.shape != (len(classes),):
        raise ValueError(f"class_weight has shape {given.shape}, needs ({len(classes)},): one factor a class.")
    for label, factor in zip(classes.tolist(), given.tolist(), strict=True):
        check_in_range(f"class_weight of {label!r}", factor, 0.0)
    return given


def hold_out(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`(training, validation)` samples, each ascending: a seeded, stratified split.

    Args:
        labels: int64 `[N]`.
        fraction: of the samples to hold out; every class gives its share, to within one.
        seed: of the choice.

    Raises:
        ValueError: one of the two would be empty, or a class would be left without a training sample.
    """
    count = round(fraction * len(labels))
    if not 0 < count < len(labels):
        raise ValueError(f"validation_fraction={fraction} of {len(labels)} samples leaves none on one side: change it.")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[by_class[((np.arange(count) + 0.5) * len(labels) / count).astype(np.int64)]] = True
    lost = np.setdiff1d(labels, labels[~chosen])
    if len(lost):
        raise ValueError(
            f"validation_fraction={fraction} would leave class number {lost[0]} without a training sample (the least "
            "populated class has too few): lower it, or give validation=(X, y)."
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _conversion_warning() -> type[Warning]:
    """scikit-learn's own class where it is installed: its users filter by it."""
    try:
        from sklearn.exceptions import DataConversionWarning
    except ModuleNotFoundError:
        return UserWarning
    warning: type[Warning] = DataConversionWarning
    return warning


# ---- all that `fit` was given


def prepare_data(
    X: Any,
    y: NDArray[Any],
    sample_weight: Any,
    *,
    validation: Any,
    target: Target | None,
    mask: Any,
    classes: NDArray[Any],
    smoothing: Smoothing,
    class_weight: Any,
    validation_fraction: float,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> ClassifierData:
    """Check what `fit` was given and bring it to the device.

    Args:
        X: as in `Classifier.fit`, like all up to `mask`.
        y: labels, of `features_and_classes`.
        sample_weight: or None.
        validation: held-out `(X, y)`, or None.
        target: in place of `smoothing`, or None.
        mask: of legal classes, or None.
        classes: `[K]`, sorted.
        smoothing: of the labels.
        class_weight: a factor a class: None, `"balanced"`, a dict or an array `[K]`.
        validation_fraction: of the samples, to hold out.
        seed: of that choice.
        device: where the samples go.
        dtype: of floating-point inputs.

    Raises:
        TypeError: a kind that is not listed there.
        ValueError: values or shapes that do not fit.
    """
    inputs = as_inputs(X, dtype)
    labels = encode_labels(y, classes)
    smoothing = in_class_order(smoothing, classes)
    weights = as_weights(sample_weight, len(labels))
    legal = as_mask(mask, len(labels), classes)
    if target is not None:
        _check_target(target, len(labels), len(classes), legal)
    factors = class_factors(class_weight, classes, labels, weights)
    if factors is not None:
        weights = factors[labels] if weights is None else weights * factors[labels]
    if weights is not None and not weights.any():
        raise ValueError("class_weight and sample_weight leave no sample with a weight above 0: nothing can be learnt.")
    samples = _on_device(inputs, labels, weights, device, dtype)
    samples = dataclasses.replace(samples, mask=None if legal is None else legal.to(device))
    goal = _constant_target(samples, smoothing, len(classes)) if target is None else target.to(device)
    samples = _with_target(samples, goal)

    held_out, places, trained = None, None, weights
    if validation_fraction > 0:
        if validation is not None:
            raise ValueError(f"validation and validation_fraction={validation_fraction} are both given: choose one.")
        places, taken = map(torch.from_numpy, hold_out(labels, validation_fraction, seed))
        samples, held_out = samples[places.to(device)], samples[taken.to(device)]
        if weights is not None:
            trained = weights[places.numpy()]
            _check_weighs(trained, "training samples that validation_fraction leaves")
            _check_weighs(weights[taken.numpy()], "held-out samples")
    elif validation is not None:
        held_out = _validation_samples(validation, smoothing, classes, factors, inputs, feature_names(X), device, dtype)
        if factors is not None:
            _check_weighs(factors[held_out.labels.cpu().numpy()], "samples of validation")
    return ClassifierData(samples, places, held_out, classes, smoothing, target is not None, mean_weight(trained))


def _check_weighs(weights: NDArray[np.float64], which: str) -> None:
    if not weights.any():
        raise ValueError(
            f"class_weight and sample_weight give all {which} weight 0, so that their loss is 0: change the weights, "
            "or choose other samples."
        )


def _on_device(
    inputs: Tensor,
    labels: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> ClassifierSamples:
    return ClassifierSamples(
        inputs.to(device),
        torch.tensor(labels, device=device),
        None if weights is None else torch.tensor(weights, dtype=_exact(dtype), device=device),
    )


def _constant_target(samples: ClassifierSamples, smoothing: Smoothing, num_classes: int) -> Target | None:
    """The targets of labels, values checked; None where alpha follows a schedule."""
    checked = smoothing(samples.labels, num_classes, samples.mask)
    return checked if smoothing.is_constant else None


def _with_target(samples: ClassifierSamples, target: Target | None) -> ClassifierSamples:
    """The samples with their target, which is dense where there are few classes."""
    if target is not None and target.reference is not None and target.num_classes <= DENSE_CLASSES:
        target = target.written_out(_exact(samples.inputs.dtype), find_positive=True)
    return dataclasses.replace(samples, target=target)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The type of weights and targets: float32, or float64 where the network computes in it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_target(target: Target, num_samples: int, num_classes: int, mask: Tensor | None) -> None:
    if not isinstance(target, Target):
        raise TypeError(f"target must be a Target, got {type(target).__name__}: make one by from_probs(...).")
    if target.batch_shape != (num_samples,) or target.num_classes != num_classes:
        raise ValueError(
            f"target is for batch {tuple(target.batch_shape)} and {target.num_classes} classes, X and y have "
            f"{num_samples} samples and {num_classes} classes: name classes that y lacks in fit(classes=)."
        )
    if mask is None:
        return
    for start in range(0, num_samples, CHECKED_AT_ONCE):
        part = slice(start, start + CHECKED_AT_ONCE)
        illegal = (target[part].dense() != 0).cpu() & ~mask[part].cpu()
        if bool(illegal.any()):
            row, column = (int(place) for place in illegal.nonzero()[0])
            raise ValueError(f"target[{start + row}] has mass on class {column}, which its mask forbids: fix one.")


def _validation_samples(
    validation: Any,
    smoothing: Smoothing,
    classes: NDArray[Any],
    factors: NDArray[np.float64] | None,
    like: Tensor,
    names: NDArray[np.object_] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> ClassifierSamples:
    if not (isinstance(validation, (tuple, list)) and len(validation) == 2):
        raise TypeError(f"validation must be (X, y), got {type(validation).__name__}.")
    if isinstance(smoothing.alpha, Tensor) and smoothing.alpha.ndim > 0:
        raise ValueError("smoothing has an alpha for each training sample, but validation has none: give one number.")
    check_feature_names(feature_names(validation[0]), names, "validation: ")
    inputs = as_inputs(validation[0], dtype)
    if inputs.ndim == 2 and inputs.shape[1:] != like.shape[1:]:
        raise ValueError(f"validation has {inputs.shape[1]} features, X has {like.shape[1]}: give the same.")
    labels = encode_labels(as_label_array(validation[1], len(inputs), "validation's y"), classes, "validation's y")
    samples = _on_device(inputs, labels, None if factors is None else factors[labels], device, dtype)
    return _with_target(samples, _constant_target(samples, smoothing, len(classes)))
