"""The bridge from Gymnasium's vector environments, against SB3's `DummyVecEnv` over the same environments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import NormalizeReward
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rlsmooth.agents import ExactCheckpointCallback, SmoothedMaskablePPO, SmoothedPPO, load_checkpoint
from rlsmooth.data import record
from rlsmooth.envs import CannotSnapshotError, EnvPoolVectorEnv, Resumable, SameStepCartPole, VectorEnvBridge
from support import assert_raises

LAKE: dict[str, Any] = {"max_episode_steps": 6}
MASKED: dict[str, Any] = {"observation": "dict", "episode_length": 5}
SHORT: dict[str, Any] = {"max_episode_steps": 18}
CASES: list[tuple[str, str, dict[str, Any], int]] = [
    ("CartPole-v1", "vector_entry_point", SHORT, 7),
    ("CartPole-v1", "sync", SHORT, 3),
    ("CartPole-v1", "SameStep", SHORT, 3),
    ("CartPole-v1", "async", SHORT, 2),
    ("FrozenLake-v1", "sync", LAKE, 4),
    ("rlsmooth/IdentityMasked-v0", "sync", MASKED, 3),
    ("rlsmooth/IdentityMasked-v0", "SameStep", MASKED, 3),
    ("rlsmooth/IdentityMasked-v0", "async", MASKED, 2),
    ("Pendulum-v1", "sync", {"max_episode_steps": 7}, 2),
]


def bridge(name: str, vectorization: Any, kwargs: dict[str, Any], count: int) -> VectorEnvBridge:
    if vectorization != "SameStep":
        return VectorEnvBridge(name, count, vectorization=vectorization, env_kwargs=kwargs)
    return VectorEnvBridge(SyncVectorEnv([lambda: gym.make(name, **kwargs)] * count, autoreset_mode="SameStep"))


def assert_same(one: Any, other: Any) -> None:
    """Equal in keys, shapes and values, through dicts and lists; the clock `t` of an episode apart."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"t"}:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert np.shape(one) == np.shape(other)
        assert np.array_equal(one, other)


def play(ours: VecEnv, theirs: VecEnv, steps: int, seed: int = 3) -> dict[str, int]:
    """Both with the same seed and random actions; all that they return must be the same. Returns what was seen."""
    for env in (ours, theirs):
        assert env.seed(seed) == [seed + place for place in range(env.num_envs)]
    assert_same(ours.reset(), theirs.reset())
    rng, seen = np.random.default_rng(seed), {"ended": 0, "truncated": 0}
    space = theirs.action_space
    masked = theirs.has_attr("action_masks")
    assert ours.has_attr("action_masks") == masked
    for _ in range(steps):
        if masked:
            assert_same(ours.env_method("action_masks"), theirs.env_method("action_masks"))
        if isinstance(space, spaces.Discrete):
            actions: Any = rng.integers(space.n, size=ours.num_envs)
        else:
            actions = rng.uniform(space.low, space.high, (ours.num_envs, *space.shape)).astype(np.float32)
        one, other = ours.step(actions), theirs.step(actions)
        assert_same(one, other)
        assert one[1].dtype == other[1].dtype == np.float32
        assert_same(ours.reset_infos, theirs.reset_infos)
        seen["ended"] += int(one[2].sum())
        seen["truncated"] += sum(info["TimeLimit.truncated"] is True for info in one[3])
    return seen


@pytest.mark.parametrize(("name", "vectorization", "kwargs", "count"), CASES)
def test_all_that_is_returned_is_dummy_vec_envs(
    name: str, vectorization: str, kwargs: dict[str, Any], count: int
) -> None:
    ours, theirs = bridge(name, vectorization, kwargs, count), make_vec_env(name, count, env_kwargs=kwargs)
    seen = play(ours, theirs, 90)
    assert seen["truncated"] > 3  # the case shows both kinds of ends, where the environment has both
    assert (seen["ended"] > seen["truncated"] + 3) == (name in ("CartPole-v1", "FrozenLake-v1"))
    play(ours, theirs, 5, seed=11)  # again, from the middle of episodes
    ours.close()


class Buffered(VectorEnv[Any, Any, Any]):
    """Two counters that write all they return into the same arrays, restart when asked, and know masks and infos."""

    num_envs = 2
    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012
    single_observation_space = observation_space = spaces.Box(-100, 100, (1,))
    single_action_space = action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        self.seen = np.zeros((2, 1), np.float32)
        self.rewards, self.terminated, self.truncated = np.zeros(2), np.zeros(2, bool), np.zeros(2, bool)
        self.weight = np.array([1.0, 2.0])
        self.shared = 5

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        mask = (options or {}).get("reset_mask", np.ones(2, bool))
        self.seen[mask] = 0 if seed is None else seed
        for one in (self.rewards, self.terminated, self.truncated):
            one[mask] = 0
        return self.seen, {"first": np.arange(2), "_first": mask}

    def step(self, actions: Any) -> Any:
        self.seen += np.asarray(actions)[:, None]
        infos = {"nested": {"place": np.arange(2)}, "all": "both", "odd": np.arange(2), "_odd": np.array([False, True])}
        self.rewards[:], self.terminated[:], self.truncated[1] = self.weight, self.seen[:, 0] >= 4, True
        return self.seen, self.rewards, self.terminated, self.truncated, infos

    def action_masks(self) -> Any:
        return np.array([[True, True, False], [True, True, True]])

    def set_shared(self, value: int) -> None:
        self.shared = value

    def wrong(self) -> Any:
        return [1]


def test_arrays_that_are_written_again_and_infos_of_all() -> None:
    env = VectorEnvBridge(Buffered())
    first = env.reset()
    assert env.reset_infos == [{"first": 0}, {"first": 1}]
    observations, rewards, dones, infos = env.step(np.array([3, 1]))
    assert first.tolist() == [[0.0], [0.0]]  # not overwritten by the step
    assert observations.tolist() == [[3.0], [0.0]]
    assert (rewards.tolist(), dones.tolist()) == ([1.0, 2.0], [False, True])
    assert infos[0] == {"nested": {"place": 0}, "all": "both", "TimeLimit.truncated": False}
    last = infos[1]
    assert (last["odd"], last["nested"], last["terminal_observation"].tolist()) == (1, {"place": 1}, [1.0])
    assert (last["episode"]["r"], last["episode"]["l"], last["TimeLimit.truncated"]) == (2.0, 1, True)
    *_, infos = env.step(np.array([1, 4]))  # both end, the second by both: a termination
    assert [info["TimeLimit.truncated"] for info in infos] == [False, False]
    assert [info["terminal_observation"].tolist() for info in infos] == [[4.0], [4.0]]
    assert [(info["episode"]["r"], info["episode"]["l"]) for info in infos] == [(2.0, 2), (2.0, 1)]


def test_a_vector_environment_without_single_ones_is_asked_once() -> None:
    env = VectorEnvBridge(Buffered())
    assert np.array_equal(env.env_method("action_masks"), env.vector.action_masks())
    assert env.has_attr("action_masks")
    assert not env.has_attr("missing")
    assert env.get_attr("weight") == [1.0, 2.0]
    assert env.get_attr("shared", [1]) == [5]
    env.set_attr("weight", 9.0, indices=1)
    env.set_attr("shared", 6)
    assert (env.get_attr("weight"), env.get_attr("shared")) == ([1.0, 9.0], [6, 6])
    assert env.env_method("set_shared", 7) == [None, None]
    assert env.get_attr("shared") == [7, 7]
    assert_raises(AttributeError, "has no 'missing'", env.get_attr, "missing")
    assert_raises(AttributeError, "has no 'missing'", env.set_attr, "missing", 1)
    assert_raises(ValueError, r"indices=\[0\]: 'shared'.*one for all", env.set_attr, "shared", 1, 0)
    assert_raises(ValueError, r"indices=\[1\]: 'set_shared'", env.env_method, "set_shared", 1, indices=1)
    assert_raises(ValueError, r"wrong\(\) returned \[1\]: it needs an entry for each of 2", env.env_method, "wrong")
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False, False]
    env.set_options([{"a": 1}, {}])
    assert_raises(ValueError, "options differ", env.reset)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_single_environments_are_asked_one_by_one(vectorization: Any) -> None:
    env = VectorEnvBridge("CartPole-v1", 2, vectorization=vectorization, env_kwargs={"render_mode": "rgb_array"})
    env.set_attr("gravity", 1.0, indices=[1])
    assert env.get_attr("gravity") == [9.8, 1.0]
    env.set_attr("gravity", 3.0)
    assert env.get_attr("gravity", 0) == [3.0]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, [1]) == [True]
    assert env.env_is_wrapped(gym.wrappers.FlattenObservation) == [False, False]
    assert env.get_attr("spec")[0].max_episode_steps == 500
    assert_raises(AttributeError, "missing", env.env_method, "missing")
    env.seed(1)
    first = env.reset()  # the environments live after the error
    assert env.env_method("get_wrapper_attr", "gravity") == [3.0, 3.0]
    assert not np.array_equal(first[0], first[1])
    images = env.get_images()
    assert [np.shape(image) for image in images] == [(400, 600, 3)] * 2
    assert env.render_mode == "rgb_array"
    if vectorization == "sync":
        assert env.env_method("get_wrapper_attr", "gravity", indices=1) == [3.0]
    else:
        assert_raises(ValueError, "indices", env.env_method, "get_wrapper_attr", "gravity", indices=1)
    env.close()


def test_next_step_is_refused_with_the_reason() -> None:
    made = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    assert_raises(ValueError, "restarts an ended episode in the next step.*SAME_STEP", VectorEnvBridge, made)
    cartpole = gym.make_vec("CartPole-v1", 2, "vector_entry_point")
    assert_raises(ValueError, "in the next step", VectorEnvBridge, NormalizeReward(cartpole))
    assert isinstance(VectorEnvBridge(cartpole).vector, SameStepCartPole)
    nameless = Buffered()
    nameless.metadata = {}  # as all had it in Gymnasium 1.0
    assert_raises(ValueError, "in the next step", VectorEnvBridge, nameless)


def test_wrong_arguments() -> None:
    assert_raises(
        TypeError,
        "env must be a gymnasium.vector.VectorEnv or an id, got CartPole",
        VectorEnvBridge,
        gym.make("CartPole-v1").unwrapped,
    )
    assert_raises(ValueError, "are for an id: Buffered is made already", VectorEnvBridge, Buffered(), 2)
    assert_raises(ValueError, "num_envs=0", VectorEnvBridge, "CartPole-v1", 0)
    assert_raises(ValueError, "vectorization='fast'", VectorEnvBridge, "CartPole-v1", 1, vectorization="fast")
    assert_raises(
        gym.error.Error, "vector entry point", VectorEnvBridge, "Pendulum-v1", 1, vectorization="vector_entry_point"
    )
    lost = Buffered()
    lost.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    env = VectorEnvBridge(lost)
    env.reset()
    assert_raises(ValueError, "infos lack final_obs", env.step, np.array([0, 0]))
    assert isinstance(VectorEnvBridge("Pendulum-v1", 2).vector, SyncVectorEnv)  # the default
    assert isinstance(VectorEnvBridge("CartPole-v1", 2).vector, SameStepCartPole)
    assert isinstance(VectorEnvBridge("rlsmooth.envs:rlsmooth/DeepSea-v0").vector, SyncVectorEnv)


# ---- with algorithms


class KillAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


def make(algorithm: type[Any], env: VecEnv) -> Any:
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    more = {"engine": "numpy"} if algorithm is SmoothedPPO else {}
    return algorithm(policy, env, n_steps=32, batch_size=32, n_epochs=1, seed=5, smoothing=0.1, device="cpu", **more)


@pytest.mark.parametrize(
    ("name", "vectorization", "kwargs", "algorithm"),
    [
        ("CartPole-v1", "vector_entry_point", SHORT, SmoothedPPO),
        ("rlsmooth/IdentityMasked-v0", "sync", MASKED, SmoothedMaskablePPO),
    ],
)
def test_training_is_the_same_to_the_bit(
    name: str, vectorization: str, kwargs: dict[str, Any], algorithm: type[Any]
) -> None:
    envs = (bridge(name, vectorization, kwargs, 4), make_vec_env(name, 4, env_kwargs=kwargs))
    ours, theirs = (make(algorithm, env).learn(384) for env in envs)
    for one, other in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [(row["r"], row["l"]) for row in ours.ep_info_buffer] == [
        (row["r"], row["l"]) for row in theirs.ep_info_buffer
    ]
    for env in envs:
        env.seed(0)
    evaluated = [evaluate_policy(ours, env, 8, return_episode_rewards=True) for env in envs]
    assert evaluated[0] == evaluated[1]


@pytest.mark.parametrize(
    "made",
    [
        lambda: bridge("CartPole-v1", "vector_entry_point", SHORT, 2),
        lambda: VecNormalize(bridge("Pendulum-v1", "sync", {"max_episode_steps": 50}, 2)),
        pytest.param(lambda: bridge("CartPole-v1", "SameStep", SHORT, 2), marks=pytest.mark.slow),
        lambda: bridge("CartPole-v1", "async", SHORT, 2),
    ],
    ids=["cartpole", "sync", "same-step", "async"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(made: Callable[[], VecEnv], tmp_path: Path) -> None:
    whole = make(SmoothedPPO, made()).learn(320)
    make(SmoothedPPO, made()).learn(320, [ExactCheckpointCallback(100, tmp_path), KillAt(200)])
    run = load_checkpoint(tmp_path, made(), device="cpu")
    assert run.is_exact
    assert 0 < run.remaining_timesteps < 320
    run.model.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)
    for one, other in zip(run.model.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row["r"] for row in run.model.ep_info_buffer] == [row["r"] for row in whole.ep_info_buffer]
    for model in (run.model, whole):
        model.get_env().close()


def test_a_run_that_was_vectorised_in_another_way_starts_new_episodes(tmp_path: Path) -> None:
    make(SmoothedPPO, bridge("CartPole-v1", "sync", {}, 2)).learn(64, ExactCheckpointCallback(32, tmp_path))
    for other in (make_vec_env("CartPole-v1", 2), bridge("CartPole-v1", "vector_entry_point", {}, 2)):
        with pytest.warns(RuntimeWarning, match="starts new episodes: (the environments were vectorised|env was a)"):
            assert not load_checkpoint(tmp_path, other, device="cpu").is_exact


def test_processes_without_the_wrapper_cannot_be_kept() -> None:
    made = AsyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    env = VectorEnvBridge(made)
    env.reset()
    assert_raises(CannotSnapshotError, "in processes of their own.*Resumable", env.get_snapshot)
    assert_raises(ValueError, "can't be asked for their wrappers", env.env_is_wrapped, Resumable)
    assert env.env_is_wrapped(Monitor) == [True, True]
    env.close()


def test_recording_gives_what_dummy_vec_env_gives() -> None:
    envs = bridge("CartPole-v1", "vector_entry_point", SHORT, 3), make_vec_env("CartPole-v1", 3, env_kwargs=SHORT)
    ours, theirs = (record(lambda seen: (seen[:, 2] > 0).astype(np.int64), env, 5, seed=2) for env in envs)
    for name in ("observations", "actions", "next_observations", "rewards", "terminations", "truncations"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.metadata["env_id"] == theirs.metadata["env_id"] == "CartPole-v1"


# ---- EnvPool, where it is installed


@pytest.mark.filterwarnings("ignore")
def test_the_extra_of_envpool_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r'pip install "rlsmooth\[envpool\]"'):
        VectorEnvBridge("CartPole-v1", 2, vectorization="envpool")


def test_envpool_restarts_within_the_step() -> None:
    pytest.importorskip("envpool")
    env = VectorEnvBridge("CartPole-v1", 5, vectorization="envpool", env_kwargs={"max_episode_steps": 25})
    env.seed(3)
    first = env.reset()
    observations, seen, rng = first, 0, np.random.default_rng(0)
    pole: Any = gym.make("CartPole-v1").unwrapped
    for _ in range(200):
        actions = rng.integers(2, size=5)
        following, rewards, dones, infos = env.step(actions)
        for place in range(5):  # one step of the single environment from what was seen
            pole.reset()
            pole.state = observations[place].astype(np.float64)
            expected = pole.step(int(actions[place]))[0]
            true = infos[place]["terminal_observation"] if dones[place] else following[place]
            assert true == pytest.approx(expected, abs=2e-4)
        assert (np.abs(following[dones]) <= 0.05).all()
        assert (rewards == 1).all()  # no step that only restarts
        seen += int(dones.sum())
        observations = following
    assert seen > 20
    env.seed(3)
    assert np.array_equal(env.reset(), first)
    assert_raises(CannotSnapshotError, "EnvPool's environments can't be kept", env.get_snapshot)
    assert env.get_attr("spec")[0].max_episode_steps == 25
    assert_raises(ValueError, "'No-v1' is no environment of EnvPool", EnvPoolVectorEnv, "No-v1")
    import envpool

    made = VectorEnvBridge(envpool.make_gymnasium("CartPole-v1", num_envs=2))
    assert made.reset().shape == (2, 4)
    made.seed(1)
    assert_raises(ValueError, "seeded when it is made", made.reset)
