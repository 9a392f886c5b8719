"""Spaces and learning rates that are legal for Gymnasium, in every trainer: they work, or the message names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from rlsmooth.agents import (
    AIRL,
    BC,
    BCO,
    GAIL,
    DAgger,
    InverseDynamics,
    RewardNet,
    SmoothedA2C,
    SmoothedMaskablePPO,
    SmoothedPPO,
    SmoothedRecurrentPPO,
)
from rlsmooth.agents.adversarial.airl import log_probability
from rlsmooth.data import Demonstrations, ObservationOnly, record
from support import assert_raises

SHORT: dict[Any, dict[str, Any]] = {
    PPO: {"n_steps": 16, "batch_size": 16},
    A2C: {"n_steps": 16},
    TRPO: {"n_steps": 16, "batch_size": 16},
    SmoothedPPO: {"n_steps": 16, "batch_size": 16},
    SmoothedA2C: {"n_steps": 16},
    SAC: {"learning_starts": 5},
    TD3: {"learning_starts": 5},
}
SMOOTHED = [SmoothedPPO, SmoothedA2C, SmoothedMaskablePPO, SmoothedRecurrentPPO]
VECTOR = spaces.Box(-1, 1, (3,))


class Random(gym.Env[Any, Any]):
    """Random observations of any space, episodes of five steps, and actions checked."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space, self.time = observation_space, action_space, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.time += 1
        return self.observation_space.sample(), 0.0, False, self.time >= 5, {}


def alias_of(space: spaces.Space[Any], algorithm: Any = PPO) -> str:
    kind = "MultiInput" if isinstance(space, spaces.Dict) else "Mlp"
    return f"{kind}{'Lstm' if algorithm is SmoothedRecurrentPPO else ''}Policy"


OBSERVATIONS = [
    spaces.Box(-1, 1, (2, 2)),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary((2, 2)),
    spaces.Dict({"a": spaces.Box(-1, 1, (2, 2)), "b": spaces.Discrete(3)}),
]


@pytest.mark.parametrize("trainer", [AIRL, GAIL])
@pytest.mark.parametrize(
    ("algorithm", "observations"), [*((one, VECTOR) for one in SHORT), *((PPO, space) for space in OBSERVATIONS)]
)
def test_box_actions_of_two_axes(trainer: Any, algorithm: Any, observations: spaces.Space[Any]) -> None:
    if trainer is AIRL and algorithm is TD3:
        pytest.skip("TD3 has no log-probability")
    env = Random(observations, spaces.Box(-2, 3, (2, 3)))
    demonstrations = record(lambda _: env.action_space.sample(), env, 3, seed=0)
    generator = algorithm(alias_of(observations), env, seed=0, device="cpu", **SHORT[algorithm])
    agent = trainer(demonstrations, generator, demo_batch_size=8, gen_train_timesteps=16, seed=0).learn(32)
    assert agent.rounds == 2


@pytest.mark.parametrize("algorithm", [PPO, SmoothedPPO, SAC])
def test_the_log_probability_of_a_box_does_not_depend_on_its_axes(algorithm: Any) -> None:
    flat, deep = spaces.Box(-2, 3, (6,)), spaces.Box(-2, 3, (2, 3))
    found = []
    observations = torch.linspace(-1, 1, 12).reshape(4, 3)
    actions = torch.linspace(-1.5, 2.5, 24).reshape(4, 6)
    for space in (flat, deep):
        generator = algorithm("MlpPolicy", Random(VECTOR, space), seed=0, device="cpu", **SHORT[algorithm])
        found.append(log_probability(generator, observations, actions.reshape(4, *space.shape)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    if algorithm is not SAC:  # the density of independent normal distributions of width 1, in float64
        mean = generator.policy.get_distribution(observations).distribution.mean.double()
        oracle = -0.5 * ((actions.double() - mean) ** 2 + np.log(2 * np.pi)).sum(-1)
        torch.testing.assert_close(found[0].double(), oracle, rtol=1e-5, atol=1e-5)


TRAINERS: dict[str, Callable[[Any, Demonstrations], Any]] = {
    "BC": lambda env, given: BC(alias_of(env.observation_space), env, given, device="cpu"),
    "BCO": lambda env, given: BCO(alias_of(env.observation_space), env, ObservationOnly.from_demonstrations(given)),
    "DAgger": lambda env, _: DAgger(alias_of(env.observation_space), env, lambda _: env.action_space.sample()),
    "GAIL": lambda env, given: GAIL(given, PPO(alias_of(env.observation_space), env, device="cpu", **SHORT[PPO])),
    "AIRL": lambda env, given: AIRL(given, PPO(alias_of(env.observation_space), env, device="cpu", **SHORT[PPO])),
    "InverseDynamics": lambda env, _: InverseDynamics(env.observation_space, env.action_space),
    "RewardNet": lambda env, _: RewardNet(env.observation_space, env.action_space),
    **{
        one.__name__: lambda env, _, one=one: one(  # type: ignore[misc]
            alias_of(env.observation_space, one), env, device="cpu", n_steps=64
        )
        for one in SMOOTHED
    },
}
NO_AXES, TWO_AXES, NO_NUMBERS = spaces.Box(-1, 1, ()), spaces.MultiDiscrete([[2, 3], [2, 2]]), spaces.Box(-1, 1, (0,))


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (NO_AXES, spaces.Discrete(2), r"(?s)observation_space=Box\(.*has no axes.*shape \(1,\)"),
        (spaces.Dict({"k": NO_AXES}), spaces.Discrete(2), r"(?s)observation_space\['k'\]=Box\(.*has no axes"),
        (VECTOR, NO_AXES, r"(?s)action_space=Box\(.*has no axes.*shape \(1,\)"),
        (TWO_AXES, spaces.Discrete(2), r"(?s)observation_space=MultiDiscrete\(.*must have one axis.*flatten"),
        (VECTOR, TWO_AXES, r"(?s)action_space=MultiDiscrete\(.*must have one axis.*flatten"),
        (NO_NUMBERS, spaces.Discrete(2), r"observation_space=Box\(.*holds no number"),
    ],
    ids=["0-d", "0-d in a Dict", "0-d action", "2-D", "2-D action", "empty"],
)
def test_shapes_that_no_network_takes_are_named(
    trainer: str, observation: spaces.Space[Any], action: spaces.Space[Any], message: str
) -> None:
    if action == NO_AXES and trainer == "SmoothedMaskablePPO":
        pytest.skip("it has no Box actions at all")
    if trainer in ("GAIL", "AIRL") and (TWO_AXES in (observation, action) or observation == NO_NUMBERS):
        pytest.skip("Stable-Baselines3 itself builds no generator for it")
    env = Random(observation, action)
    given = record(lambda _: env.action_space.sample(), env, 2, seed=0)
    assert_raises(ValueError, message, TRAINERS[trainer], env, given)


IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)


@pytest.mark.parametrize("trainer", ["BC", "BCO", "GAIL"])
@pytest.mark.parametrize("space", [VECTOR, IMAGE, spaces.Dict({"camera": IMAGE, "speed": VECTOR})], ids=str)
def test_demonstrations_with_and_without_a_frame_stack_are_named(trainer: str, space: spaces.Space[Any]) -> None:
    def venv(*frames: int) -> VecEnv:
        one: VecEnv = DummyVecEnv([lambda: Random(space, spaces.Discrete(2))])
        return VecFrameStack(one, *frames) if frames else one

    single, stacked = (record(lambda _: np.zeros(1, np.int64), env, 2, seed=0) for env in (venv(), venv(4)))
    says = r"(?s)demonstrations has .*must be the same\. These look like single observations.*record --frame-stack 4"
    assert_raises(ValueError, says, TRAINERS[trainer], venv(4), single)
    says = r"(?s)must be the same\. These look like 4 observations at once.*give its environment one.*--frame-stack 4"
    assert_raises(ValueError, says, TRAINERS[trainer], venv(), stacked)
    TRAINERS[trainer](venv(4), stacked)


@pytest.mark.parametrize("algorithm", SMOOTHED)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("lin_1e-3", TypeError, r"learning_rate='lin_1e-3' must be a number or a function.*0\.001 \* remaining"),
        ([1e-3], TypeError, r"learning_rate=\[0\.001\] must be a number or a function"),
        (None, TypeError, "learning_rate=None must be a number or a function"),
        (-1.0, ValueError, r"learning_rate=-1\.0 must be"),
        (float("nan"), ValueError, "learning_rate=nan must be"),
    ],
)
def test_a_learning_rate_that_is_none(algorithm: Any, value: Any, error: Any, message: str) -> None:
    env = Random(VECTOR, spaces.Discrete(2))
    with pytest.raises(error, match=message):
        algorithm(alias_of(VECTOR, algorithm), env, n_steps=64, device="cpu", learning_rate=value)
