"""The state of environments as plain data: the same steps follow from it, and what can't be kept says so."""

from __future__ import annotations

import enum
import json
import random
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation, NormalizeObservation, RecordEpisodeStatistics, TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from rlsmooth.agents.files.run_state import arrays_from_tensors, set_vec_env_state, tensors_from_arrays, vec_env_state
from rlsmooth.envs.snapshot import CannotSnapshotError, Resumable, env_state, set_env_state
from rlsmooth.envs.snapshot_values import plain_value, value_from_plain
from rlsmooth.training import tree_from_json, tree_to_json
from support import assert_raises

ENVIRONMENTS: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "CartPole": lambda: Monitor(gym.make("CartPole-v1")),
    "Pendulum": lambda: Monitor(gym.make("Pendulum-v1")),
    "MountainCar": lambda: gym.make("MountainCar-v0"),
    "Acrobot": lambda: RecordEpisodeStatistics(gym.make("Acrobot-v1")),
    "Taxi": lambda: gym.make("Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3"),
    "Blackjack": lambda: gym.make("Blackjack-v1"),
    "FrozenLake": lambda: gym.make("FrozenLake-v1"),
    "Masked": lambda: gym.make("rlsmooth.envs:rlsmooth/IdentityMasked-v0"),
    "normalised": lambda: NormalizeObservation(FrameStackObservation(gym.make("Pendulum-v1"), 3)),
    "short": lambda: TimeLimit(gym.make("Pendulum-v1").unwrapped, 13),
}
Point = namedtuple("Point", "x y")


class Mode(enum.Enum):
    CALM = 1
    WILD = 2


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Helper:
    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.count = 0


class Everything(gym.Env[Any, Any]):
    """One of each kind of thing that environments keep their state in."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        generator = np.random.default_rng(1)
        self.generator = generator
        self.helper = Helper(generator)  # shared
        self.python = random.Random(3)
        self.legacy = np.random.RandomState(4)
        self.bits = np.random.Generator(np.random.MT19937(5))
        self.queue: deque[Any] = deque([1, 2.5], maxlen=3)
        self.table: Any = defaultdict(int, {(1, 2): 3})
        self.ordered: Any = OrderedDict(b=1, a=np.float32(0.1))
        self.members = {3, 5}
        self.mode = Mode.CALM
        self.point = Point(1, 2)
        self.slotted = Slotted()
        self.grid = np.zeros((2, 3), np.uint16)
        self.number: Any = np.float32(0.1)
        self.complex = 1 + 2j
        self.raw = b"ab"
        self.span = range(3)
        self.history: Any = [0.5] * 40
        self.itself: Any = [self]
        self.function = len
        self.spaces = gym.spaces.Dict({"a": gym.spaces.Discrete(5), "b": gym.spaces.Box(0, 1, (2,))})

    def change(self) -> None:
        self.helper.count += 1
        self.queue.append(self.python.random())
        self.table[4, 5] += 7
        self.ordered["c"] = np.int8(3)
        self.members |= {9}
        self.mode = Mode.WILD
        self.point = Point(np.float64(3), 4)
        self.slotted.value = 8
        self.grid = self.grid + self.generator.integers(0, 9, (2, 3)).astype(np.uint16)
        self.number = np.float32(7)
        self.complex *= 2j
        self.raw, self.span = b"\x00c", range(1, 9, 2)
        self.history.append(2.0)
        self.spaces.seed(6)
        self.text = np.array([["ab", "c"]])
        self.late = {"made": [self.bits.random(), None, True, "text"]}  # an attribute that __init__ does not make

    def view(self) -> list[Any]:
        draws = [self.generator.random(), self.helper.generator.random(), self.python.random(), self.legacy.rand()]
        return [
            draws,
            self.bits.random(),
            self.spaces.sample(),
            [(type(value), value) for name, value in sorted(vars(self).items()) if name in self.shown],
            self.helper.count,
            self.slotted.value,
            [type(value) for value in self.ordered.values()],
        ]

    shown = (
        "complex", "grid", "history", "late", "members", "mode", "number", "ordered", "point", "queue", "raw", "span",
        "table", "text",
    )  # fmt: skip


def through_file(state: Any) -> Any:
    """As a file would give the state back."""
    encoded, tensors = tree_to_json(tensors_from_arrays(state))
    return arrays_from_tensors(tree_from_json(json.loads(json.dumps(encoded)), tensors))


def steps(env: gym.Env[Any, Any], count: int) -> list[Any]:
    """What follows, over the ends of episodes, with actions from the environment's own space."""
    found = []
    for _ in range(count):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        found.append((np.array(observation), reward, terminated, truncated))
        if terminated or truncated:
            found.append((np.array(env.reset()[0]), 0.0, False, False))
    return found


@pytest.mark.parametrize(
    ("name", "count"),
    [*((name, 17) for name in ENVIRONMENTS), ("CartPole", 0), ("CartPole", 1)],  # at first gymnasium still checks
)
def test_the_same_steps_follow(name: str, count: int) -> None:
    env = ENVIRONMENTS[name]()
    env.reset(seed=3)
    env.action_space.seed(4)
    steps(env, count)
    state = through_file(env_state(env))
    expected = steps(env, 300)
    for is_fresh in (True, False):
        other = ENVIRONMENTS[name]()
        if not is_fresh:
            other.reset(seed=9)
            steps(other, 30)
        set_env_state(other, state)
        for one, two in zip(steps(other, 300), expected, strict=True):
            assert np.array_equal(one[0], two[0])
            assert one[1:] == two[1:]


def test_every_kind_of_attribute_comes_back() -> None:
    env, other = Everything(), Everything()
    env.change()
    state = through_file(env_state(env))
    set_env_state(other, state)
    assert other.helper.generator is other.generator  # still shared
    assert other.itself[0] is other
    assert other.queue.maxlen == 3
    assert other.table["absent"] == 0
    del other.table["absent"]
    assert repr(other.view()) == repr(env.view())


def test_the_state_is_a_copy() -> None:
    env = Everything()
    env.change()
    state = env_state(env)
    before = repr(state)
    env.grid += 1
    env.change()
    assert repr(state) == before
    other = Everything()
    set_env_state(other, state)
    other.grid += 1
    assert repr(state) == before


class Hidden(Everything):
    """Keeps its state where Python can't see it, as MuJoCo and Box2D do."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Any = torch.zeros(3)


class Own(Hidden):
    """Knows its own state."""

    def get_state(self) -> dict[str, Any]:
        return {"hidden": self.hidden.numpy(), "number": (1, 2)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.hidden = torch.from_numpy(state["hidden"].copy())
        self.number = state["number"]


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        iter([1]),
        np.array([None]),
        np.ma.masked_array([1]),
        open,
        Exception("x"),
        memoryview(b"a"),
        [iter([1])],
    ],
)
def test_what_can_not_be_kept_says_where(value: Any) -> None:
    env = Everything()
    env.number = value
    if value is open:  # a function is a constant
        assert env_state(env)
        return
    assert_raises(CannotSnapshotError, r"env\.number", env_state, env)


def test_an_environment_of_its_own_state() -> None:
    with pytest.raises(CannotSnapshotError, match=r"env\.env\.hidden is a torch.Tensor.*get_state"):
        env_state(TimeLimit(Hidden(), 5))
    env, other = Own(), Own()
    env.reset(seed=3)
    env.hidden[1] = 5.0
    set_env_state(TimeLimit(other, 5), through_file(env_state(TimeLimit(env, 5))))
    assert other.hidden.tolist() == [0.0, 5.0, 0.0]
    assert other.number == (1, 2)
    assert other.np_random.random() == env.np_random.random()


def test_another_environment_is_refused() -> None:
    state = env_state(gym.make("CartPole-v1"))
    with pytest.raises(CannotSnapshotError, match=r"env\.env\.env\.env was a .*CartPoleEnv and is a .*PendulumEnv"):
        set_env_state(gym.make("Pendulum-v1"), state)
    with pytest.raises(CannotSnapshotError, match=r"was a .*TimeLimit and is a .*CartPoleEnv"):
        set_env_state(gym.make("CartPole-v1").unwrapped, state)


@pytest.mark.parametrize("change", ["kind", "class", "missing", "generator"])
def test_a_forged_state_builds_nothing(change: str) -> None:
    env = Everything()
    state = env_state(env)
    if change == "kind":
        state["state"]["queue"] = {"kind": "os.system", "number": 999, "items": ["true"]}
    elif change == "class":
        state["state"]["helper"] = {"kind": "object", "number": 999, "class": "subprocess.Popen", "state": {}}
    elif change == "missing":
        del state["state"]["queue"]["items"]
    else:
        state["state"]["generator"]["state"]["items"][0][1] = "os.system"
    assert_raises(CannotSnapshotError, None, set_env_state, Everything(), state)


@pytest.mark.parametrize("name", ["step", "close", "__class__", "__dict__"])
def test_a_forged_state_replaces_no_method(name: str) -> None:
    state = env_state(gym.make("CartPole-v1"))
    state["state"][name] = {"kind": "left"} if name == "close" else {"kind": "dict", "number": 10**6, "items": []}
    env = gym.make("CartPole-v1")
    if name == "close":  # what stands there, not even that
        set_env_state(env, state)
    else:
        assert_raises(CannotSnapshotError, f"env has '{name}', which is no data there", set_env_state, env, state)
    assert name not in vars(env)


class OwnFolder(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: gym.Env[Any, Any], text: str) -> None:
        super().__init__(env)
        self.text = text


class Recorder(OwnFolder):
    """As gymnasium's RecordVideo, which needs a package that may be missing."""

    episode_id = 0


Recorder.__module__ = "gymnasium.wrappers.rendering"


def test_a_state_says_not_where_to_write() -> None:
    there = Recorder(OwnFolder(gym.make("CartPole-v1"), "there"), "there")
    there.episode_id = 3
    here = Recorder(OwnFolder(gym.make("CartPole-v1"), "here"), "here")
    set_env_state(here, env_state(there))
    assert (here.text, here.episode_id) == ("here", 3)
    assert here.env.get_wrapper_attr("text") == "there"  # an environment's own text may be what it plays with


class AnotherGetState(gym.Env[Any, Any]):
    def get_state(self, player: int) -> int:
        return player

    def set_state(self, state: int) -> None:
        raise NotImplementedError


def test_a_get_state_that_is_something_else_is_told() -> None:
    with pytest.raises(CannotSnapshotError, match=r"env is a .*AnotherGetState, whose get_state\(\) fails: .*'player'"):
        env_state(AnotherGetState())


def test_plain_values_refuse_objects() -> None:
    assert_raises(CannotSnapshotError, r"x\[1\] is a .*Helper", plain_value, [1, Helper(np.random.default_rng(0))], "x")
    with pytest.raises(CannotSnapshotError, match=r"unknown kind|malformed"):
        value_from_plain({"kind": "object", "class": "x", "number": 1})


class Opaque(VecEnvWrapper):
    """A wrapper that keeps something in no form that a file holds."""

    def __init__(self, venv: DummyVecEnv) -> None:
        super().__init__(venv)
        self.hidden = torch.zeros(1)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def wrapped() -> Any:
    return VecMonitor(VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1", 2, monitor_dir=None), 2)))


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor` wrapper:UserWarning")
def test_wrappers_of_vectorised_environments() -> None:
    env, other = wrapped(), wrapped()
    env.seed(1)
    env.reset()
    act = [np.array([[0.5], [-1.0]])] * 250
    for action in act:
        env.step(action)
    assert set_vec_env_state(other, through_file(vec_env_state(env))) == ""
    for action in act:
        one, two = env.step(action), other.step(action)
        assert all(np.array_equal(a, b) for a, b in zip(one[:3], two[:3], strict=True))
    assert other.get_attr("total_steps") == [500, 500]
    assert one[0].shape == (2, 6)


def test_what_of_a_vectorised_environment_can_not_be_kept() -> None:
    venv = DummyVecEnv([Hidden, Own])
    state = vec_env_state(venv)
    assert "env.hidden" in state["problem"]
    assert "env.hidden" in set_vec_env_state(DummyVecEnv([Hidden, Own]), state)
    statistics = VecNormalize(Opaque(DummyVecEnv([Own])))
    statistics.obs_rms.mean += 3.0
    state = vec_env_state(statistics)
    assert "Opaque.hidden" in state["problem"]
    other = VecNormalize(Opaque(DummyVecEnv([Own])))
    assert "Opaque.hidden" in set_vec_env_state(other, state)
    assert other.obs_rms.mean.tolist() == [3.0]  # what can be kept is
    with pytest.raises(CannotSnapshotError, match="0 VecEnvWrappers, the saved one had 2"):
        set_vec_env_state(DummyVecEnv([Own]), state)


def test_the_wrapper_for_other_processes_returns_what_went_wrong() -> None:
    env = Resumable(Hidden())
    state, problem = env.get_snapshot()
    assert state is None
    assert "hidden" in problem
    good, problem = Resumable(Everything()).get_snapshot()
    assert problem == ""
    assert "is a" in env.set_snapshot({**(good or {}), "class": "elsewhere.Env"})


def test_a_bandit_is_kept_without_its_data() -> None:
    one, other = (gym.make("rlsmooth/DatasetBanditMasked-v0", data="iris") for _ in range(2))
    one.reset(seed=3)
    one.step(1)
    other.reset()
    state = env_state(one)
    assert len(json.dumps(state, default=np.ndarray.tolist)) < 3000  # 600 features need more
    set_env_state(other, state)
    for _ in range(12):
        pair = one.step(2), other.step(2)
        assert np.array_equal(pair[0][0], pair[1][0])
        assert pair[0][1:4] == pair[1][1:4]
        if pair[0][3]:
            assert np.array_equal(one.reset()[0], other.reset()[0])
    with pytest.raises(CannotSnapshotError, match="state=999 must lie in"):
        set_env_state(other, forged_sample(state))


def forged_sample(state: Any) -> Any:
    """The state with another number wherever it names a sample."""
    if isinstance(state, dict) and state.get("kind") == "own":
        pairs = [[key, 999 if key == "sample" else value] for key, value in state["own"]["items"]]
        return {**state, "own": {**state["own"], "items": pairs}}
    if isinstance(state, dict):
        return {key: forged_sample(value) for key, value in state.items()}
    return state
