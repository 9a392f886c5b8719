"""Recording: what is played is what is stored, from any environment and any policy."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from rlsmooth.data import Demonstrations, record
from support import assert_raises

TWO = spaces.Discrete(2)

# ---- recording: every row can be checked by eye


class Clock(gym.Env[Any, Any]):
    """Observation (length of its episodes, episode, step)."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(
        self, length: int, *, truncates: bool = False, observation: str = "box", reuses_array: bool = False
    ) -> None:
        self.length = length
        self.reuses_array = reuses_array
        self.truncates = truncates
        self.kind = observation
        box = spaces.Box(0, 100, (3,))
        self.observation_space = (
            spaces.Dict({"now": box, "step": spaces.Discrete(50)}) if observation == "dict" else box
        )
        self.action_space = spaces.Discrete(4)
        self.now = np.array([length, -1, 0], np.float32)
        self.drawn: list[float] = []

    def show(self) -> Any:
        now = self.now if self.reuses_array else self.now.copy()
        return {"now": now, "step": int(now[2])} if self.kind == "dict" else now

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.now[1:] = self.now[1] + 1, 0
        return self.show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.now[2] += 1
        end = bool(self.now[2] == self.length)
        return self.show(), float(action), end and not self.truncates, end and self.truncates, {}


class MaskedClock(Clock):
    def action_masks(self) -> Any:
        return np.arange(4) >= self.now[2]


def step_of(observation: Any) -> Any:
    """The policy: the action is the number of the step, for one observation or a batch."""
    now = observation["now"] if isinstance(observation, dict) else observation
    return now[..., 2].astype(int) % 4


Maker = Callable[[list[Callable[[], gym.Env[Any, Any]]]], Any]

VECTORS: dict[str, Maker] = {
    "DummyVecEnv": DummyVecEnv,
    "next step": lambda makers: SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP),
    "same step": lambda makers: SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP),
    "disabled": lambda makers: SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED),
}


def expected_rows(lengths_of_envs: list[int], episodes_of_envs: list[int]) -> list[list[float]]:
    return [
        [length, episode, step]
        for length, episodes in zip(lengths_of_envs, episodes_of_envs, strict=True)
        for episode in range(episodes)
        for step in range(length)
    ]


def check(demonstrations: Demonstrations, lengths: list[int], episodes: list[int], *, truncates: bool) -> None:
    rows = np.array(expected_rows(lengths, episodes))
    observations, following = demonstrations.observations, demonstrations.next_observations
    if isinstance(observations, dict):
        assert isinstance(following, dict)
        assert np.array_equal(observations["step"], rows[:, 2])
        assert np.array_equal(following["step"], rows[:, 2] + 1)
        observations, following = observations["now"], following["now"]
    assert np.array_equal(observations, rows)
    # At an episode's end too: the final observation, not the first one of the next episode.
    assert np.array_equal(following, rows + np.array([0, 0, 1]))  # type: ignore[arg-type]
    assert np.array_equal(demonstrations.actions, rows[:, 2] % 4)
    assert np.array_equal(demonstrations.rewards, rows[:, 2] % 4)  # type: ignore[arg-type]
    ends = rows[:, 2] + 1 == rows[:, 0]
    assert np.array_equal(demonstrations.episode_ends, np.flatnonzero(ends) + 1)
    assert np.array_equal(demonstrations.truncations, ends & truncates)  # type: ignore[arg-type]
    assert np.array_equal(demonstrations.terminations, ends & (not truncates))  # type: ignore[arg-type]


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize("kind", ["box", "dict"])
def test_a_single_environment(kind: str, truncates: bool) -> None:
    env = Clock(3, truncates=truncates, observation=kind, reuses_array=True)
    demonstrations = record(step_of, env, 2, seed=0)
    check(demonstrations, [3], [2], truncates=truncates)


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize("kind", ["box", "dict"])
@pytest.mark.parametrize("vector", VECTORS)
def test_each_environment_has_its_share_and_its_final_observations(vector: str, kind: str, truncates: bool) -> None:
    """5 episodes of 3 environments, of which the first is 7 times as fast: 1, 2 and 2 episodes, not 5 short ones."""
    lengths = [2, 5, 14]
    makers = [lambda n=n: Clock(n, truncates=truncates, observation=kind) for n in lengths]
    env = VECTORS[vector](makers)  # type: ignore[arg-type]
    check(record(step_of, env, 5, seed=0), lengths, [1, 2, 2], truncates=truncates)
    env.close()


def test_environments_in_other_processes() -> None:
    makers = [lambda: Clock(2, truncates=True), lambda: Clock(3, truncates=True)]
    for env in (SubprocVecEnv(makers, start_method="fork"), AsyncVectorEnv(makers, context="fork")):  # type: ignore[arg-type]
        check(record(step_of, env, 4, seed=0), [2, 3], [2, 2], truncates=True)
        env.close()


@pytest.mark.parametrize("vector", ["single", *VECTORS])
def test_masks_line_up_with_the_observations(vector: str) -> None:
    if vector == "single":
        env: Any = MaskedClock(3)
    else:
        env = VECTORS[vector]([lambda: MaskedClock(3), lambda: MaskedClock(2)])  # type: ignore[list-item]
    demonstrations = record(step_of, env, 2, seed=0)
    steps = demonstrations.observations[:, 2]  # type: ignore[index, call-overload]
    assert np.array_equal(demonstrations.action_masks, np.arange(4) >= steps[:, None])  # type: ignore[arg-type]


def test_masks_can_be_left_out_and_illegal_actions_are_refused() -> None:
    assert record(lambda _: 0, MaskedClock(3), 1, action_masks=False).action_masks is None
    with pytest.raises(ValueError, match=r"actions\[1\] is 0, which its action mask forbids"):
        record(lambda _: 0, MaskedClock(3), 1)


class Dice(gym.Env[Any, Any]):
    """Everything is random: observations by the environment's generator, ends after 1 to 5 steps."""

    observation_space = spaces.Box(0, 1, (2,))
    action_space = spaces.Discrete(3)

    def draw(self) -> Any:
        return self.np_random.random(2).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.draw(), 0.0, bool(self.np_random.random() < 0.3), False, {}


@pytest.fixture(scope="module")
def agent() -> PPO:
    return PPO("MlpPolicy", DummyVecEnv([Dice]), n_steps=8, batch_size=8, seed=3, device="cpu")


def same(one: Demonstrations, two: Demonstrations) -> bool:
    return np.array_equal(one.observations, two.observations) and np.array_equal(one.actions, two.actions)  # type: ignore[arg-type]


@pytest.mark.parametrize("vectorised", [False, True])
def test_the_seed_decides_everything(agent: PPO, vectorised: bool) -> None:
    def make() -> Any:
        return DummyVecEnv([Dice, Dice]) if vectorised else Dice()

    for policy, deterministic in ((agent, True), (agent, False)):
        first = record(policy, make(), 6, seed=5, deterministic=deterministic)
        np.random.random(), random.random(), torch.rand(3)  # noqa: NPY002  whatever ran in between
        assert same(first, record(policy, make(), 6, seed=5, deterministic=deterministic))
        assert not same(first, record(policy, make(), 6, seed=6, deterministic=deterministic))
    env = make()
    sampling = (lambda _: env.action_space.sample()) if not vectorised else (lambda o: np.random.randint(0, 3, len(o)))  # noqa: NPY002
    assert same(record(sampling, env, 6, seed=5), record(sampling, env, 6, seed=5))


def test_the_callers_generators_are_left_alone(agent: PPO) -> None:
    def states() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = states()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    record(agent, Dice(), 2, seed=9, deterministic=False)
    assert states() == expected


def test_deterministic_actions_are_those_of_predict(agent: PPO) -> None:
    demonstrations = record(agent, Dice(), 8, seed=1)
    assert np.array_equal(
        demonstrations.actions, agent.predict(np.asarray(demonstrations.observations), deterministic=True)[0]
    )
    sampled = record(agent.policy, Dice(), 8, seed=1, deterministic=False)
    assert len(np.unique(np.asarray(sampled.actions))) > 1
    assert demonstrations.metadata["deterministic"] is True
    assert sampled.metadata["policy"] == "ActorCriticPolicy"


class Remembering:
    """A recurrent policy in the manner of SB3: its state counts the steps since the episode's start."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        state = np.zeros(len(observation), int) if state is None else state
        state = np.where(episode_start, 0, state)
        return state % 4, state + 1


@pytest.mark.parametrize("vector", ["single", *VECTORS])
def test_recurrent_policies_start_each_episode_afresh(vector: str) -> None:
    env: Any = Clock(3) if vector == "single" else VECTORS[vector]([lambda: Clock(3), lambda: Clock(5)])  # type: ignore[list-item]
    demonstrations = record(Remembering(), env, 6, seed=0)
    assert np.array_equal(demonstrations.actions, demonstrations.observations[:, 2] % 4)  # type: ignore[index, call-overload]


def test_maskable_policies_get_the_masks() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    agent = contrib.MaskablePPO("MlpPolicy", DummyVecEnv([lambda: MaskedClock(4)]), n_steps=8, batch_size=8, seed=0)
    demonstrations = record(agent, DummyVecEnv([lambda: MaskedClock(4)] * 2), 6, seed=0, deterministic=False)
    assert demonstrations.action_masks is not None  # and every action is legal, or it would not have been let in
    assert np.asarray(demonstrations.actions)[demonstrations.episode_ends - 1].tolist() == [3] * 6


class Continuous(Dice):
    action_space = spaces.Box(-1, 1, (2,))  # type: ignore[assignment]


def test_continuous_actions_are_stored_as_the_environment_got_them() -> None:
    demonstrations = record(lambda _: np.array([0.1, -1.0]), Continuous(), 2, seed=0)
    assert demonstrations.actions.dtype == np.float32
    assert np.array_equal(np.unique(np.asarray(demonstrations.actions), axis=0), np.array([[0.1, -1]], np.float32))
    assert_raises(ValueError, "outside action_space", record, lambda _: np.array([0.1, 1.01]), Continuous(), 1)


def test_an_id_makes_and_closes_its_own_environments() -> None:
    policy = lambda observation: int(observation[2] + observation[3] > 0)  # noqa: E731
    alone = record(policy, "CartPole-v1", 2, seed=4)
    assert alone.metadata["env_id"] == "CartPole-v1"
    assert alone.episode_returns().tolist() == alone.episode_lengths().tolist()
    pair = record(policy, "CartPole-v1", 2, seed=4, n_envs=2)
    first = int(pair.episode_ends[0])
    assert np.array_equal(pair.observations[:first], alone.observations[:first])  # type: ignore[index]
    assert not np.array_equal(pair.observations[first], alone.observations[first])  # type: ignore[index, call-overload]


def test_normalising_environments_must_hold_still() -> None:
    env: VecEnv = VecNormalize(DummyVecEnv([Dice]))
    assert_raises(ValueError, r"env.training=False", record, lambda o: np.zeros(len(o), int), env, 1)
    env.training = env.norm_reward = False  # type: ignore[attr-defined]
    assert record(lambda o: np.zeros(len(o), int), env, 1).num_episodes == 1


@pytest.mark.parametrize(
    ("policy", "env", "changes", "error", "message"),
    [
        (step_of, "NoSuchEnv-v0", {}, ValueError, "env='NoSuchEnv-v0' can't be made"),
        (step_of, 3, {}, TypeError, "env must be an environment id"),
        (step_of, Clock(2), {"n_envs": 2}, ValueError, "n_envs=2 is for an environment id"),
        (step_of, Clock(2), {"n_episodes": 0}, ValueError, "n_episodes=0"),
        (step_of, Clock(2), {"n_episodes": 1.5}, TypeError, "n_episodes"),
        (step_of, Clock(2), {"seed": -1}, ValueError, "seed=-1"),
        (None, Clock(2), {}, TypeError, "policy must have SB3's predict or be a function, got NoneType"),
        (lambda _: 4, Clock(2), {}, ValueError, "chose 4, which is outside action_space=Discrete"),
        (lambda _: 0.5, Clock(2), {}, ValueError, "chose 0.5, which is outside"),
        (lambda _: [0, 1], Clock(2), {}, ValueError, r"chose \[0, 1\], which is outside"),
        (lambda _: [0], DummyVecEnv([lambda: Clock(2)] * 2), {}, ValueError, "1 actions for 2 environments"),
    ],
)
def test_bad_arguments(policy: Any, env: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    assert_raises(error, message, record, policy, env, **{"n_episodes": 1, "seed": 0, **changes})


def test_a_sampled_action_is_not_the_environments_own_noise() -> None:
    class Draws(gym.Env[Any, Any]):
        observation_space = spaces.Box(0, 1, (1,))
        action_space = spaces.Box(0, 1, (1,))

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed=seed)
            self.time = 0
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            self.time += 1
            draws.append(self.np_random.random())
            return np.zeros(1, np.float32), 0.0, self.time >= 50, False, {}

    draws: list[float] = []
    env = Draws()
    made = record(lambda _: env.action_space.sample(), env, 1, seed=5)
    assert abs(np.corrcoef(draws, np.asarray(made.actions)[:, 0])[0, 1]) < 0.5


# ---- vector environments of other libraries, which lack what Gymnasium's and SB3's have
class Foreign(gym.vector.VectorEnv[Any, Any, Any]):
    """Two environments that count to 3, in a library that has no ids and its own form of infos."""

    def __init__(self, spec: Any, infos: str, mode: AutoresetMode) -> None:
        self.num_envs, self.spec, self.infos = 2, spec, infos
        self.metadata = {"autoreset_mode": mode} if infos else None  # type: ignore[assignment]
        self.single_observation_space, self.single_action_space = spaces.Dict({"now": spaces.Box(0, 9, (1,))}), TWO
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, 2)
        self.action_space = gym.vector.utils.batch_space(TWO, 2)
        self.time = np.zeros((2, 1), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.time[:] = 0
        return {"now": self.time.copy()}, {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        self.time += 1
        final, ended = self.time.copy(), self.time[:, 0] == 3
        if self.infos:
            self.time[ended] = 0
        elif (self.time > 3).any():
            self.time[:] = 0  # restarts in the next step
        infos = {"final_obs": {"now": final}} if self.infos == "dict of arrays" else {}
        return {"now": self.time.copy()}, np.ones(2), ended, np.zeros(2, bool), infos


@pytest.mark.parametrize("spec", [None, "Foreign-v0", type("Spec", (), {})()], ids=["none", "text", "no id"])
@pytest.mark.parametrize("infos", ["", "dict of arrays"])
def test_a_vector_environment_of_another_library(spec: Any, infos: str) -> None:
    recorded = record(lambda now: np.zeros(2, int), Foreign(spec, infos, AutoresetMode.SAME_STEP), 4)
    assert recorded.metadata["env_id"] is None
    assert recorded.episode_lengths().tolist() == [3] * 4
    assert isinstance(recorded.next_observations, dict)
    assert np.ravel(recorded.next_observations["now"]).tolist() == [1, 2, 3] * 4  # type: ignore[arg-type]


def test_a_vector_environment_without_final_observations_is_refused() -> None:
    message = "Foreign restarts within a step .*lack final_obs"
    env = Foreign(None, "none", AutoresetMode.SAME_STEP)
    assert_raises(ValueError, message, record, lambda now: np.zeros(2, int), env, 4)


def test_a_vec_env_of_another_library() -> None:
    class NoFinal(DummyVecEnv):
        def has_attr(self, attr_name: str) -> bool:
            raise NotImplementedError

        def step_wait(self) -> Any:
            *parts, infos = super().step_wait()
            return (*parts, [{key: value for key, value in info.items() if key == "kept"} for info in infos])

    env = NoFinal([lambda: gym.make("CartPole-v1")])
    message = "NoFinal: the info of an ended episode lacks terminal_observation"
    assert_raises(ValueError, message, record, lambda now: np.zeros(1, int), env, 1)
