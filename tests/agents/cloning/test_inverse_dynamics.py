"""The inverse dynamics model: every action space, masks, statistics, files; on transitions whose actions are plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlsmooth.agents import BC, InverseDynamics, load_agent, save_agent_file
from rlsmooth.agents.cloning.transition_features import TransitionFeatures, transition_statistics
from rlsmooth.data import Demonstrations
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError
from support import FLAT, assert_raises, recorded, same_parameters


def moved(action_space: spaces.Space[Any], rows: int = 300, seed: int = 0, **more: Any) -> Demonstrations:
    """From noise to noise plus a hundredth of the action, one coordinate a component."""
    rng = np.random.default_rng(seed)
    if isinstance(action_space, spaces.Discrete):
        actions = rng.integers(action_space.start, action_space.start + action_space.n, size=rows)
        steps = np.stack([actions - action_space.start, 0 * actions, 0 * actions], axis=1)
    elif isinstance(action_space, spaces.Box):
        actions = rng.uniform(-1, 1, size=(rows, 2)).astype(np.float32)
        steps = np.pad(actions, ((0, 0), (0, 1)))
    else:
        dims = [2, 2, 2] if isinstance(action_space, spaces.MultiBinary) else action_space.nvec
        actions = np.stack([rng.integers(size, size=rows) for size in dims], axis=1)
        steps = np.pad(actions, ((0, 0), (0, 3 - actions.shape[1])))
    before = rng.normal(size=(rows, 3)).astype(np.float32)
    more |= {"next_observations": before + 0.01 * steps.astype(np.float32)}
    return recorded(before, actions, FLAT, action_space, np.arange(10, rows + 1, 10), **more)


def make(data: Demonstrations, **arguments: Any) -> InverseDynamics:
    given = {"seed": 0, "device": "cpu", "learning_rate": 0.01, "batch_size": 32, "max_epochs": 15, **arguments}
    return InverseDynamics(data.observation_space, data.action_space, **given)


# ---- spaces
@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3), spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)],
    ids=str,
)
def test_it_reads_actions_off_observations_it_has_not_seen(space: spaces.Space[Any]) -> None:
    model = make(moved(space)).fit(moved(space))
    unseen = moved(space, seed=1)
    predicted = model.predict(unseen.observations, unseen.next_observations)
    assert predicted.dtype == unseen.actions.dtype
    assert predicted.shape == unseen.actions.shape
    assert np.mean(predicted == unseen.actions) > 0.99
    assert model.metrics["val_accuracy"] > 0.95
    parts = model.probabilities(unseen.observations, unseen.next_observations)
    for part in parts if isinstance(parts, tuple) else (parts,):
        np.testing.assert_allclose(part.sum(-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("bins", [None, 20])
def test_it_reads_continuous_actions(bins: int | None) -> None:
    space = spaces.Box(-1, 1, (2,))
    data = moved(space, rows=400)
    model = make(data, action_bins=bins, max_epochs=30, smoothing=0.0).fit(data)
    unseen = moved(space, seed=1)
    predicted = model.predict(unseen.observations, unseen.next_observations)
    assert predicted.dtype == np.float32
    assert np.sqrt(np.mean((predicted - unseen.actions) ** 2)) < 0.2  # of random guesses: 0.8
    assert space.contains(predicted[0])
    if bins is None:
        assert_raises(ValueError, "densities", model.probabilities, unseen.observations, unseen.next_observations)
        with pytest.raises(ValueError, match="action_masks can't be used"):
            model.predict(unseen.observations, unseen.next_observations, np.ones((300, 2), bool))


def circle(form: str, rows: int = 200, seed: int = 0) -> Demonstrations:
    """Places on a circle of 5, and steps of -1, 0, 1 between them."""
    rng = np.random.default_rng(seed)
    before, actions = rng.integers(5, size=rows), rng.integers(3, size=rows)
    after = (before + actions - 1) % 5

    def image(places: Any) -> Any:
        shown = np.zeros((rows, 36, 36, 1), np.uint8)
        for row, place in enumerate(places):
            shown[row, :, 7 * place : 7 * place + 7] = 255
        return shown

    grey = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    forms: dict[str, tuple[Any, Any]] = {
        "discrete": (spaces.Discrete(5), lambda places: places),
        "multi_discrete": (spaces.MultiDiscrete([5, 2]), lambda places: np.stack([places, 0 * places], axis=1)),
        "multi_binary": (spaces.MultiBinary(5), lambda places: np.eye(5, dtype=np.int8)[places]),
        "image": (grey, image),
        "dict": (
            spaces.Dict({"image": grey, "turn": spaces.Box(-1, 1, (1,))}),
            lambda places: {"image": image(places), "turn": np.cos(places)[:, None].astype(np.float32)},
        ),
    }
    space, show = forms[form]
    ends = np.arange(10, rows + 1, 10)
    return recorded(show(before), actions, space, spaces.Discrete(3), ends, next_observations=show(after))


@pytest.mark.parametrize("form", ["discrete", "multi_discrete", "multi_binary", "image", "dict"])
def test_it_reads_every_kind_of_observation(form: str, tmp_path: Path) -> None:
    pictures = form in ("image", "dict")
    model = make(circle(form), max_epochs=4 if pictures else 30, learning_rate=2e-3 if pictures else 0.02)
    model.fit(circle(form))
    unseen = circle(form, seed=1)
    predicted = model.predict(unseen.observations, unseen.next_observations)
    assert np.mean(predicted == unseen.actions) > 0.95
    loaded = InverseDynamics.load(model.save(tmp_path / "model"), device="cpu")
    assert np.array_equal(loaded.predict(unseen.observations, unseen.next_observations), predicted)


# ---- masks and probabilities
def twins(rows: int = 2000, seed: int = 0) -> Demonstrations:
    """Actions 0 and 1 do the same, 2 does something else; masks forbid one of the twins, or none."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=rows)
    masks = np.ones((rows, 3), bool)
    masks[kind == 1, 1] = False
    masks[kind == 2, 0] = False
    actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
    before = rng.normal(size=(rows, 3)).astype(np.float32)
    after = before.copy()
    after[:, 0] += np.where(actions == 2, 0.5, -0.5)
    given = {"next_observations": after, "action_masks": masks}
    return recorded(before, actions, FLAT, spaces.Discrete(3), np.arange(20, rows + 1, 20), **given)


def test_illegal_actions_are_neither_learned_nor_predicted() -> None:
    data = twins()
    model = make(data, max_epochs=40, smoothing=0.0, learning_rate="lin_0.01").fit(data)
    unseen = twins(rows=500, seed=1)
    masks = np.asarray(unseen.action_masks)
    found = model.probabilities(unseen.observations, unseen.next_observations, masks)
    assert isinstance(found, np.ndarray)
    assert (found[~masks] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-6)
    predicted = model.predict(unseen.observations, unseen.next_observations, masks)
    assert masks[np.arange(500), predicted].all()
    # What can be told is told, and what can't has the probability that it has: one half each.
    other = unseen.actions == 2
    assert (predicted[other] == 2).all()
    both = ~other & masks.all(1)
    np.testing.assert_allclose(found[both, 0].mean(), 0.5, atol=0.05)
    single = ~other & ~masks.all(1)
    assert (predicted[single] == unseen.actions[single]).all()
    assert found[single].max(1).min() > 0.9


@pytest.mark.parametrize(
    ("masks", "problem"),
    [
        (np.ones((4, 3), bool), r"Boolean \(40, 3\)"),
        (np.ones((40, 3)), "Boolean"),
        (np.zeros((40, 3), bool), "no legal action"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: Any, problem: str) -> None:
    data = moved(spaces.Discrete(3), rows=40)
    model = make(data, max_epochs=1, validation_fraction=0.25).fit(data)
    assert_raises(ValueError, problem, model.predict, data.observations, data.next_observations, masks)


def test_smoothing_reaches_the_model() -> None:
    data = moved(spaces.Discrete(3))
    sure, unsure = (make(data, smoothing=alpha).fit(data) for alpha in (0.0, 0.3))
    means = [model.probabilities(data.observations, data.next_observations).max(1).mean() for model in (sure, unsure)]
    assert means[0] > 0.98
    assert abs(means[1] - 0.8) < 0.05  # 1 - 0.3 + 0.3 / 3
    ordered = make(data, smoothing=Smoothing(0.2, reference="adjacent")).fit(data)
    assert ordered.bc.smoothings[0].reference == "adjacent"


# ---- statistics
@pytest.mark.parametrize("inputs", ["difference", "pair"])
def test_the_network_sees_standardised_columns(inputs: Any) -> None:
    data = moved(spaces.Discrete(3), rows=500)
    model = make(data, max_epochs=1, inputs=inputs).fit(data)
    extractor: Any = model.bc.policy.features_extractor
    assert isinstance(extractor, TransitionFeatures)
    before, after = (torch.as_tensor(part) for part in (data.observations, data.next_observations))
    seen = extractor({"observation": before, "next_observation": after}).double()
    second = (after - before if inputs == "difference" else after).double()
    moving = torch.cat([torch.ones(3, dtype=torch.bool), second.std(0) > 0])
    torch.testing.assert_close(seen.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        seen.std(0, correction=0)[moving], torch.ones(int(moving.sum()), dtype=torch.float64), atol=1e-5, rtol=0
    )
    assert (seen.std(0)[~moving] == 0).all()


def test_rounding_is_no_signal() -> None:
    rng = np.random.default_rng(0)
    before = (1000 + rng.normal(size=(100, 1))).astype(np.float32)
    after = before + np.float32(6e-5) * rng.integers(2, size=(100, 1)).astype(np.float32)  # the last bit, or nothing
    space = spaces.Dict({name: spaces.Box(-np.inf, np.inf, (1,)) for name in ("observation", "next_observation")})
    _, std = transition_statistics(space, {"observation": before, "next_observation": after}, "difference")
    assert std[0] == pytest.approx(before.std(dtype=np.float64))
    assert std[1] == 1.0


def test_units_of_the_observations_play_no_part() -> None:
    data = moved(spaces.Discrete(3))
    scale = np.array([4, 2**-8, 1024], np.float32)  # powers of two: no rounding
    scaled = data.replace_unchecked(
        observations=data.observations * scale, next_observations=data.next_observations * scale
    )
    one, two = make(data).fit(data), make(scaled).fit(scaled)
    first = one.probabilities(data.observations, data.next_observations)
    second = two.probabilities(scaled.observations, scaled.next_observations)
    assert np.array_equal(first, second)


# ---- repeats and files
def test_fitting_starts_anew_repeats_and_draws_from_nobody() -> None:
    data = moved(spaces.Discrete(3), rows=100)
    state = torch.get_rng_state()
    one = make(data, max_epochs=3).fit(data)
    assert torch.equal(torch.get_rng_state(), state)
    two = make(data, max_epochs=3).fit(moved(spaces.Discrete(3), rows=200, seed=1)).fit(data)
    assert same_parameters(one.bc, two.bc)
    assert one.metrics["val_accuracy"] == two.metrics["val_accuracy"]
    assert not same_parameters(one.bc, make(data, max_epochs=3, seed=1).fit(data).bc)


def test_a_file_keeps_all_that_fitting_needs(tmp_path: Path) -> None:
    data = moved(spaces.MultiDiscrete([2, 3]), rows=100)
    smoothing = [0.1, Smoothing(0.2, reference="adjacent")]
    model = make(data, inputs="pair", smoothing=smoothing, max_epochs=3, early_stopping_patience=2).fit(data)
    path = model.save(tmp_path / "model")
    loaded = InverseDynamics.load(path, device="cpu")
    assert same_parameters(model.bc, loaded.bc)
    assert (loaded.inputs, loaded.max_epochs, loaded.early_stopping_patience) == ("pair", 3, 2)
    assert loaded.metrics == model.metrics
    assert same_parameters(model.fit(data).bc, loaded.fit(data).bc)
    assert isinstance(load_agent(path, device="cpu"), BC)  # its statistics are the policy's, and come with it


def test_a_callable_is_not_forgotten_in_silence(tmp_path: Path) -> None:
    data = moved(spaces.Discrete(3), rows=100)
    model = make(data, max_epochs=1, learning_rate=lambda progress: 0.01 * progress).fit(data)
    loaded = InverseDynamics.load(model.save(tmp_path / "model"), device="cpu")
    one, two = (each.predict(data.observations, data.next_observations) for each in (loaded, model))
    assert np.array_equal(one, two)
    assert_raises(ValueError, "learning_rate was a callable", loaded.fit, data)


def test_other_files_are_refused(tmp_path: Path) -> None:
    data = moved(spaces.Discrete(3), rows=100)
    plain = BC("MlpPolicy", None, data, device="cpu")
    assert_raises(SafeFileError, "no inverse dynamics model", InverseDynamics.load, plain.save(tmp_path / "plain"))
    forged = save_agent_file(
        tmp_path / "forged", kind="bc", policy=plain.policy, config={"inverse_dynamics": {"max_epochs": 1}}
    )
    assert_raises(SafeFileError, "no inverse dynamics model", InverseDynamics.load, forged)


def test_mistakes_are_told() -> None:
    data = moved(spaces.Discrete(3), rows=100)
    model = make(data)
    assert_raises(ValueError, "call fit", model.predict, data.observations, data.next_observations)
    assert_raises(ValueError, "call fit", model.save, "nowhere")
    assert_raises(TypeError, "transitions must be", model.fit, [1, 2])
    assert_raises(ValueError, "next_observations", model.fit, data.replace_unchecked(next_observations=None))
    assert_raises(ValueError, "transitions has action_space", model.fit, moved(spaces.Discrete(4), rows=100))
    assert_raises(ValueError, "inputs='both'", make, data, inputs="both")
    with pytest.raises(TypeError, match="Dict in a Dict"):
        InverseDynamics(spaces.Dict({"a": spaces.Dict({"b": FLAT})}), spaces.Discrete(2))
    model.fit(data)
    assert_raises(ValueError, "transitions: as many", model.predict, data.observations, data.next_observations[:5])
