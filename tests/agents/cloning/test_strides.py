"""Arrays with negative strides (`frames[..., ::-1]`), which torch can't read, train and act as their copies do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from rlsmooth.agents import BC, InverseDynamics, RewardNet, SmoothedActorCriticCnnPolicy
from rlsmooth.agents.adversarial.reward_nets import reward_of
from rlsmooth.data import Demonstrations
from rlsmooth.targets import one_hot, prior
from rlsmooth.training import Classifier
from support import recorded

CPU: dict[str, Any] = {"seed": 0, "device": "cpu"}
COUNT = 12
IMAGES = spaces.Box(0, 255, (36, 36, 3), np.uint8)
FRAMES = np.random.default_rng(0).integers(0, 256, (COUNT, 36, 36, 3), dtype=np.uint8)
NUMBERS = np.random.default_rng(1).uniform(-1, 1, (COUNT, 3)).astype(np.float32)
VIEWS: dict[str, Any] = {
    "colours": lambda array: array[..., ::-1],
    "upside down": lambda array: array[:, ::-1],
    "backwards": lambda array: array[::-1],
    "all axes": np.flip,
}


def demonstrations(observations: Any, space: spaces.Space[Any], *, copied: bool) -> Demonstrations:
    """All fields reversed."""
    given: dict[str, NDArray[Any]] = {
        "actions": np.arange(COUNT)[::-1] % 2,
        "action_masks": np.ones((COUNT, 2), dtype=bool)[::-1, ::-1],
        "weights": np.linspace(0.5, 1.5, COUNT)[::-1],
        "action_probs": np.tile(np.array([0.3, 0.7], dtype=np.float32), (COUNT, 1))[:, ::-1],
    }
    if copied:
        given = {name: array.copy() for name, array in given.items()}
        is_dict = isinstance(observations, dict)
        observations = {k: v.copy() for k, v in observations.items()} if is_dict else observations.copy()
    own: dict[str, Any] = {"observation_space": space, "action_space": spaces.Discrete(2), "episode_ends": [COUNT]}
    return Demonstrations.from_arrays(observations, **given, **own)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("kind", ["images", "numbers", "dict"])
def test_clones_learn_and_act_alike(kind: str, view: Any) -> None:
    box = spaces.Box(-1.0, 1.0, (3,))
    observations: Any = {"images": view(FRAMES), "numbers": view(NUMBERS)}
    space: Any = spaces.Dict({"images": IMAGES, "numbers": box})
    policy = {"images": "CnnPolicy", "numbers": "MlpPolicy", "dict": "MultiInputPolicy"}[kind]
    if kind != "dict":
        observations, space = observations[kind], space[kind]
    found = []
    for copied in (False, True):
        data = demonstrations(observations, space, copied=copied)
        agent = BC(policy, None, data, smoothing=0.1, batch_size=5, **CPU).learn(total_batches=2)
        seen: Any = data.observations
        found.append((agent.policy.state_dict(), agent.predict(seen, deterministic=True)[0]))
    (one, acted), (two, wanted) = found
    assert all(torch.equal(one[name], two[name]) for name in two)
    np.testing.assert_array_equal(acted, wanted)


def test_the_other_entrances() -> None:
    policy = SmoothedActorCriticCnnPolicy(
        spaces.Box(0, 255, (3, 36, 36), np.uint8), spaces.Discrete(2), lambda _: 1e-3, exploration_floor=0.1
    )
    shown = np.moveaxis(FRAMES, -1, 1)[:, ::-1]
    torch.testing.assert_close(policy.action_probabilities(shown), policy.action_probabilities(shown.copy()))
    for seen in (shown, FRAMES[:, ::-1], FRAMES[0, ..., ::-1]):  # to be transposed, and one alone
        acted, wanted = (policy.predict(one, deterministic=True)[0] for one in (seen, seen.copy()))
        np.testing.assert_array_equal(acted, wanted)
    box = spaces.Box(-1.0, 1.0, (3,))
    score = reward_of(RewardNet(box, box, net_arch=[4]).eval())
    ended = np.zeros(COUNT, dtype=bool)
    flipped = np.flip(NUMBERS)
    np.testing.assert_array_equal(score(flipped, flipped, flipped, ended[::-1]), score(*[flipped.copy()] * 3, ended))
    data = demonstrations(NUMBERS, box, copied=True)
    data = recorded(NUMBERS, data.actions, box, data.action_space, [6, COUNT], next_observations=NUMBERS[:, ::-1])
    inverse = InverseDynamics(box, spaces.Discrete(2), max_epochs=1, validation_fraction=0.5, **CPU).fit(data)
    masks = np.ones((COUNT, 2), dtype=bool)[::-1]
    assert inverse.predict(NUMBERS[::-1], NUMBERS[:, ::-1], masks).shape == (COUNT,)
    labels = np.arange(COUNT)[::-1] % 2
    assert torch.equal(one_hot(labels, 2).dense(), one_hot(labels.copy(), 2).dense())
    shares = np.array([0.3, 0.7])[::-1]
    assert torch.equal(prior(labels, shares, 0.1).dense(), prior(labels, shares.copy(), 0.1).dense())
    Classifier("mlp", max_epochs=1, device="cpu").fit(NUMBERS[::-1], labels, mask=masks)
