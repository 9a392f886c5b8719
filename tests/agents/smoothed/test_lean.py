"""Rollouts, updates and predictions of plain MLP policies equal Stable-Baselines3's own, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from threadpoolctl import threadpool_info
from torch import nn
from torch.distributions import Distribution

from rlsmooth.agents.acting import play_episodes, quick_actor
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.plain_mlp import predict_plainly
from rlsmooth.agents.smoothed import algorithms, lean
from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib import SmoothedMaskableActorCriticPolicy
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy
from rlsmooth.data import cartpole_v1, record
from rlsmooth.envs import IdentityMaskedEnv, IdentityMaskedMultiDiscreteEnv
from rlsmooth.targets import Smoothing
from rlsmooth.training import TrainingDivergedError
from support import assert_equal


class Wandering(gym.Env[Any, Any]):
    """A state that drifts with the action, in episodes that end or are cut at random."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**30)))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        ends, cut = (bool(chance) for chance in self.np_random.random(2) < 0.1)
        reward = float(np.sum(action)) + float(self.np_random.normal())
        return self.observation_space.sample(), reward, ends, cut, {}


pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
SHORT = {"n_steps": 32, "batch_size": 32, "n_epochs": 3}
BOX = spaces.Box(-1.0, 1.0, (3,))
MULTI = spaces.MultiDiscrete([3, 2, 4])
ARM = spaces.Box(np.float32([-1, -2]), np.float32([1, 0.5]))


def make(name: str) -> Any:
    if name == "masked":
        return IdentityMaskedEnv(5)
    if name == "masked components":
        return IdentityMaskedMultiDiscreteEnv((3, 4))
    kinds = {
        "discrete": (BOX, spaces.Discrete(4)),
        "components": (spaces.Box(-1, 1, (2, 3), np.float64), MULTI),
        "arm": (BOX, ARM),
        "matrix": (spaces.Discrete(5), spaces.Box(-1.0, 1.0, (2, 2))),
        "bits": (spaces.MultiBinary(4), spaces.Discrete(2)),
        "switches": (BOX, spaces.MultiBinary(3)),
    }
    if name in kinds:
        return make_vec_env(lambda: gym.wrappers.TimeLimit(Wandering(*kinds[name]), 20), 2, seed=4)
    return make_vec_env(name, 2, seed=4)


class Recorded(BaseCallback):
    """Keeps the logged numbers of each update, and stops early if asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.numbers: list[dict[str, Any]] = []

    def _on_rollout_start(self) -> None:
        self.numbers.append({name: value for name, value in self.logger.name_to_value.items() if "time/" not in name})

    def _on_step(self) -> bool:
        return self.stop_at is None or self.num_timesteps < self.stop_at


def trained(
    algorithm: type[OnPolicyAlgorithm],
    env: str,
    policy: Any = "MlpPolicy",
    stop_at: int | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Parameters, optimiser's state, the rollout, the random generators and the logged numbers after some updates."""
    model = algorithm(policy, make(env), seed=3, device="cpu", **arguments)
    callback = Recorded(stop_at)
    model.learn(129, callback, log_interval=1)
    buffer = model.rollout_buffer
    found: dict[str, Any] = dict(model.policy.state_dict())
    for place, entry in model.policy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer {place} {name}": value for name, value in entry.items()}
    found |= {f"gradient {name}": one.grad for name, one in model.policy.named_parameters() if one.grad is not None}
    found |= {name: getattr(buffer, name) for name in ("observations", "actions", "returns", "log_probs", "values")}
    found |= {"torch": torch.get_rng_state(), "numpy": np.random.get_state()[1], "log": callback.numbers}  # noqa: NPY002
    found["updates"] = model._n_updates
    return found


def assert_same(mine: dict[str, Any], its: dict[str, Any], *, without: tuple[str, ...] = ()) -> None:
    assert mine.keys() == its.keys()
    for name, value in its.items():
        if name == "log":
            assert len(mine[name]) == len(value)
            for own, one in zip(mine[name], value, strict=True):
                names = [tag for tag in one if tag not in without]
                np.testing.assert_equal([own[tag] for tag in names], [one[tag] for tag in names], err_msg=str(names))
        else:
            np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(value), err_msg=name)


@pytest.fixture
def updates(quick_paths: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the lean updates that ran."""
    names: list[str] = []

    def watched(train: Any) -> Any:
        update = lean.lean_update_of(train)

        def run(*arguments: Any) -> None:
            assert update is not None
            names.append(update.__name__)
            update(*arguments)

        return None if update is None else run

    monkeypatch.setattr(algorithms, "lean_update_of", watched)
    return names


TWO_SIZES = {"net_arch": {"pi": [8], "vf": [16, 16]}, "activation_fn": nn.ReLU}
LINEAR = {"net_arch": []}
ELU = {"net_arch": [8, 8], "activation_fn": nn.ELU}
OFF = [
    ("discrete", SmoothedPPO, PPO, {**SHORT, "policy_kwargs": TWO_SIZES, "clip_range_vf": 0.2, "max_grad_norm": 0.01}),
    ("discrete", SmoothedPPO, PPO, {**SHORT, "policy_kwargs": LINEAR, "target_kl": 1e-4, "learning_rate": 1e-2}),
    ("components", SmoothedPPO, PPO, {**SHORT, "ent_coef": 0.02, "batch_size": 21}),  # the last minibatch has one
    ("arm", SmoothedPPO, PPO, {**SHORT, "policy_kwargs": ELU, "ent_coef": 0.02, "clip_range": lambda left: 0.3 * left}),
    ("matrix", SmoothedPPO, PPO, {**SHORT, "ent_coef": 0.02}),
    ("switches", SmoothedPPO, PPO, {**SHORT, "ent_coef": 0.02, "batch_size": 21}),
    ("CartPole-v1", SmoothedPPO, PPO, {**SHORT, "n_steps": 50, "batch_size": 7}),
    ("masked", SmoothedMaskablePPO, MaskablePPO, {**SHORT, "ent_coef": 0.01, "clip_range_vf": 0.2}),
    ("discrete", SmoothedA2C, A2C, {"ent_coef": 0.01}),
    ("arm", SmoothedA2C, A2C, {"ent_coef": 0.01, "use_rms_prop": False, "normalize_advantage": True}),
]
MORE_OFF = [
    ("discrete", SmoothedPPO, PPO, {**SHORT, "ent_coef": 0.01}),
    ("arm", SmoothedPPO, PPO, {**SHORT, "normalize_advantage": False, "vf_coef": 0.3}),
    ("arm", SmoothedPPO, PPO, {**SHORT, "policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}}),
    ("arm", SmoothedPPO, PPO, {**SHORT, "policy_kwargs": {"optimizer_class": torch.optim.AdamW}}),
    ("bits", SmoothedPPO, PPO, SHORT),
    ("masked components", SmoothedMaskablePPO, MaskablePPO, {**SHORT, "clip_range_vf": 0.2}),
    ("components", SmoothedA2C, A2C, {"normalize_advantage": True}),
]


def slow(cases: list[Any]) -> list[Any]:
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("env", "ours", "parent", "arguments"), OFF + slow(MORE_OFF))
def test_off_equals_the_parent(env: str, ours: Any, parent: Any, arguments: dict[str, Any], updates: list[str]) -> None:
    its = trained(parent, env, **arguments)
    assert_same(trained(ours, env, **arguments), its)
    assert updates, "the parent's own train ran"


class Slow(SmoothedActorCriticPolicy):
    """Another class, so that the parent's way is taken."""


class SlowMaskable(SmoothedMaskableActorCriticPolicy):
    """Another class, so that the parent's way is taken."""


ORDINAL = Smoothing(alpha=0.2, reference="triangular")
ON = [
    ("discrete", SmoothedPPO, {**SHORT, "smoothing": 0.1, "ent_coef": 0.01}),
    ("discrete", SmoothedPPO, {**SHORT, "exploration_floor": "lin_0.2", "ent_coef": 0.01}),
    ("discrete", SmoothedPPO, {**SHORT, "target_entropy_frac": 0.3, "smoothing": ORDINAL}),
    ("components", SmoothedPPO, {**SHORT, "smoothing": 0.1, "batch_size": 21, "min_entropy_frac": 0.4}),
    ("arm", SmoothedPPO, {**SHORT, "smoothing": 0.1, "exploration_floor": 0.1}),
    ("arm", SmoothedPPO, {**SHORT, "target_entropy_nats": 2.0, "min_entropy_nats": 1.9, "target_kl": 0.01}),
    ("masked", SmoothedMaskablePPO, {**SHORT, "smoothing": 0.1, "ent_coef": 0.01, "min_entropy_frac": "lin_0.4"}),
    ("discrete", SmoothedA2C, {"smoothing": 0.1}),
]
MORE_ON = [
    ("discrete", SmoothedPPO, {**SHORT, "smoothing": "lin_0.1", "exploration_floor": 0.1}),
    ("arm", SmoothedPPO, {**SHORT, "smoothing": 0.1, "ent_coef": 0.01}),
    ("masked components", SmoothedMaskablePPO, {**SHORT, "smoothing": 0.1, "exploration_floor": 0.1}),
    ("switches", SmoothedPPO, {**SHORT, "smoothing": 0.1, "exploration_floor": 0.1}),
    ("arm", SmoothedA2C, {"smoothing": 0.1, "ent_coef": 0.01}),
]


@pytest.mark.parametrize(("env", "algorithm", "arguments"), ON + slow(MORE_ON))
def test_on_equals_the_slow_way(env: str, algorithm: Any, arguments: dict[str, Any], updates: list[str]) -> None:
    slow = trained(algorithm, env, SlowMaskable if algorithm is SmoothedMaskablePPO else Slow, **arguments)
    assert not updates
    assert_same(trained(algorithm, env, **arguments), slow)
    assert updates


def test_a_clone_as_reference_equals_the_slow_way(updates: list[str]) -> None:
    def run(policy: Any) -> dict[str, Any]:
        clone = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu")
        more = {**SHORT, "smoothing": 0.2, "value_warmup_steps": 0, "seed": 1, "device": "cpu"}
        model = SmoothedPPO.from_bc(clone, make("CartPole-v1"), policy=policy, **more)
        return {**model.learn(64).policy.state_dict()}

    slow = run(Slow)
    assert not updates
    assert_equal(run(SmoothedActorCriticPolicy), slow)
    assert updates


@pytest.mark.parametrize("stop_at", [40, 100])
def test_a_callback_that_stops_equals_the_parent(stop_at: int, updates: list[str]) -> None:
    its = trained(PPO, "discrete", stop_at=stop_at, **SHORT)
    assert_same(trained(SmoothedPPO, "discrete", stop_at=stop_at, **SHORT), its)
    assert len(updates) == stop_at // 64


def freeze(model: Any) -> None:
    model.policy.action_net.weight.requires_grad_(False)


def hook(model: Any) -> None:
    model.policy.mlp_extractor.policy_net[0].register_forward_hook(lambda module, inputs, output: 2 * output)


def replace(model: Any) -> None:
    model.policy.mlp_extractor.policy_net[1] = nn.Sigmoid()


def override(model: Any) -> None:
    actual = model.policy.mlp_extractor.forward
    model.policy.mlp_extractor.forward = lambda features: tuple(one / 2 for one in actual(features))


def move(model: Any) -> None:
    weight = model.policy.action_net.weight
    weight.data = -2 * weight.data


CHANGES = [freeze, hook, replace, override]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_plain_is_left_to_the_parent(change: Any, updates: list[str]) -> None:
    found = []
    for algorithm in (PPO, SmoothedPPO):
        model = algorithm("MlpPolicy", make("discrete"), seed=3, device="cpu", **SHORT).learn(64)
        change(model)
        before = len(updates)
        found.append({**model.learn(64).policy.state_dict()})
        model.policy.predict(np.zeros(3, np.float32))
    assert len(updates) == before == 1
    assert_equal(*found)


@pytest.mark.parametrize(
    ("env", "arguments"),
    [("arm", {"use_sde": True}), ("discrete", {"policy_kwargs": {"activation_fn": nn.SiLU}}), ("bits", {})],
)
def test_other_kinds_of_policy_equal_the_parent(env: str, arguments: dict[str, Any], updates: list[str]) -> None:
    assert_same(trained(SmoothedPPO, env, **SHORT, **arguments), trained(PPO, env, **SHORT, **arguments))
    assert bool(updates) == (env == "bits")


@pytest.mark.parametrize("env", ["discrete", "arm"])
def test_outputs_that_are_nan_end_in_an_error(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Distribution, "_validate_args", True)  # torch's default, which libraries may turn off
    model = SmoothedPPO("MlpPolicy", make(env), seed=3, device="cpu", learning_rate=1e30, **SHORT)
    with pytest.raises(TrainingDivergedError, match="not finite"):
        model.learn(256)
    with pytest.raises(ValueError, match="Expected parameter"):
        model.predict(np.ones(3, np.float32))


# ---- predictions


def predictions(agent: Any, observations: list[Any], **more: Any) -> list[Any]:
    torch.manual_seed(5)
    return [
        agent.predict(one, deterministic=deterministic, **more)[0]
        for deterministic in (True, False)
        for one in observations
    ]


PREDICTED = ["discrete", "components", "arm", "matrix", "switches", "masked", "masked components"]


@pytest.mark.parametrize("scale", [100, 1e-5])
@pytest.mark.parametrize("env", [*PREDICTED, "masked discrete", "masked switches"])
def test_predictions_equal_the_parents(env: str, scale: float) -> None:
    is_masked = env.startswith("masked")
    venv = make(env.removeprefix("masked ") if env in ("masked discrete", "masked switches") else env)
    ours, parent = (SmoothedMaskablePPO, MaskablePPO) if is_masked else (SmoothedPPO, PPO)
    mine, its = (algorithm("MlpPolicy", venv, seed=2, device="cpu", **SHORT) for algorithm in (ours, parent))
    with torch.no_grad():  # so that actions differ from state to state, and there are ties, or almost
        for model in (mine, its):
            weight = model.policy.action_net.weight.mul_(scale)
            if scale > 1:
                weight.round_()
    space = mine.observation_space
    space.seed(1)
    batch = np.stack([space.sample() for _ in range(9)])
    given: list[Any] = [
        *batch,
        batch,
        batch[:1],
        batch[::-1],
        batch.astype(np.float64),
        np.zeros_like(batch),
    ]
    cases: list[tuple[list[Any], dict[str, Any]]] = [(given, {})]
    if is_masked:
        legal = np.arange(mine.policy.action_net.out_features) % 2 == 1
        cases += [(given[:9], {"action_masks": masks}) for masks in (legal, ~legal, legal & False)]
    for observations, masks in cases:
        expected = predictions(its, observations, **masks)
        for one, other in zip(predictions(mine, observations, **masks), expected, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)
        for one, other in zip(predictions(Plainly(its.policy), observations, **masks), expected, strict=True):
            assert np.array_equal(one, other) if isinstance(space, spaces.Box) else one is None
    assert not mine.policy.training


FLOORS: list[tuple[str, dict[str, Any]]] = [
    ("discrete", {"exploration_floor": 0.3}),
    ("discrete", {"exploration_floor": 0.2, "reference": "exponential"}),
    ("components", {"min_entropy_frac": 0.6}),
    ("components", {"exploration_floor": 1.0}),
    ("switches", {"exploration_floor": 0.1}),
    ("arm", {"exploration_floor": 0.5}),
    ("arm", {"min_entropy_nats": 1.0}),
    ("masked", {"min_entropy_frac": 0.3}),
    ("masked components", {"exploration_floor": 0.05}),
    ("masked switches", {"exploration_floor": 0.4}),
]


@pytest.mark.parametrize(("env", "knobs"), FLOORS)
def test_actions_with_a_floor_equal_the_policys_own(
    env: str, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_masked = env.startswith("masked")
    venv = make("switches" if env == "masked switches" else env)
    algorithm: Any = SmoothedMaskablePPO if is_masked else SmoothedPPO
    model = algorithm("MlpPolicy", venv, seed=2, device="cpu", policy_kwargs=knobs, **SHORT)
    policy, space = model.policy, model.observation_space
    space.seed(1)
    batch = np.stack([space.sample() for _ in range(30)])
    more = {"action_masks": np.arange(policy.action_net.out_features) % 3 != 1} if is_masked else {}

    def all_actions() -> list[Any]:
        given = (*batch, batch[:2])
        with torch.no_grad():
            return [*predictions(model, [*given], **more), *policy(torch.from_numpy(batch), **more), torch.rand(())]

    own = type(policy).plain_network
    for scale in (1.0, 30.0, 1e4, 1e-9):  # among the outputs are large ones, ties, or almost
        with torch.no_grad():
            weight = policy.action_net.weight.mul_(scale)
            if scale > 1:
                weight.round_()
        found = all_actions()
        monkeypatch.setattr(type(policy), "plain_network", lambda policy: None)
        for one, other in zip(found, all_actions(), strict=True):
            np.testing.assert_array_equal(one, other, strict=True)
        monkeypatch.setattr(type(policy), "plain_network", own)


@pytest.mark.parametrize("knobs", [{}, {"exploration_floor": 0.5}, {"min_entropy_nats": 1.0}])
def test_deviations_near_float32s_largest_number_are_drawn_as_by_the_policy(
    knobs: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = Wandering(BOX, spaces.Box(-1e38, 1e38, (2,)))
    model = SmoothedPPO("MlpPolicy", env, seed=2, device="cpu", policy_kwargs=knobs, **SHORT)
    observations = [np.full(3, number, np.float32) for number in np.linspace(-1, 1, 40)]
    own = type(model.policy).plain_network
    for log_std in (0.0, 69.0, 70.0, 88.5):  # numpy would warn of draws with the last
        with torch.no_grad():
            model.policy.log_std[0] = log_std
        found = predictions(model, observations)
        monkeypatch.setattr(type(model.policy), "plain_network", lambda policy: None)
        np.testing.assert_array_equal(found, predictions(model, observations))
        monkeypatch.setattr(type(model.policy), "plain_network", own)


@pytest.mark.parametrize("knobs", [{}, {"exploration_floor": 0.1}])
def test_noise_that_is_zero_decides(knobs: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    model = SmoothedPPO("MlpPolicy", make("discrete"), device="cpu", policy_kwargs=knobs, **SHORT)
    for place in range(4):
        noise = (torch.arange(4) != place).float().unsqueeze(0)
        monkeypatch.setattr(torch.Tensor, "exponential_", lambda drawn, noise=noise: drawn.copy_(noise))
        assert model.predict(np.ones(3, np.float32))[0] == place


def test_hooks_of_all_modules_are_called() -> None:
    model, seen = SmoothedPPO("MlpPolicy", make("discrete"), device="cpu", **SHORT), []
    model.predict(np.ones(3, np.float32))
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    model.predict(np.ones(3, np.float32))
    handle.remove()
    assert seen.count(nn.Linear) == 3


class Plainly:
    """What takes the place of `predict` for a policy of Stable-Baselines3's own class."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def predict(self, observation: Any, **more: Any) -> tuple[Any]:
        return (predict_plainly(self.policy, observation, **more),)


def test_observations_that_are_nan_are_refused_one_by_one() -> None:
    for env in ("discrete", "components", "arm", "switches", "masked"):
        algorithm: Any = SmoothedMaskablePPO if env == "masked" else SmoothedPPO
        model = algorithm("MlpPolicy", make("discrete" if env == "masked" else env), device="cpu", **SHORT)
        seen = np.full(model.observation_space.shape, np.nan, np.float32)
        for deterministic in (True, False):
            with pytest.raises(ValueError, match="constraint"):
                model.predict(seen, deterministic=deterministic)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("algorithm", [PPO, MaskablePPO])
def test_algorithms_of_sb3_are_recorded_and_evaluated_through_their_layers(
    algorithm: Any, deterministic: bool, quick_paths: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = algorithm("MlpPolicy", make("discrete"), seed=2, device="cpu", **SHORT)
    expected = record(model, make("discrete"), 6, deterministic=deterministic)
    monkeypatch.setattr(BasePolicy, "predict", None)
    monkeypatch.setattr(MaskableActorCriticPolicy, "predict", None)
    found = record(quick_actor(model), make("discrete"), 6, deterministic=deterministic)
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)
    played = {"n_episodes": 3, "seed": 0, "use_masks": False, "deterministic": deterministic}
    assert play_episodes(model, make("discrete"), **played)[1].shape == (3,)
    model.predict = model.predict  # a method of its own, which may be anything
    assert quick_actor(model) is model


def test_predictions_follow_the_policy() -> None:
    model = SmoothedPPO("MlpPolicy", make("arm"), seed=2, device="cpu", **SHORT)
    plain = PPO("MlpPolicy", make("arm"), seed=2, device="cpu", **SHORT)
    observation = np.full(3, 0.5, np.float32)
    other = PPO("MlpPolicy", make("arm"), seed=9, device="cpu", **SHORT).policy.state_dict()
    for change in (lambda model: None, lambda model: model.policy.load_state_dict(other), move, *CHANGES):
        for one in (model, plain):
            change(one)
        np.testing.assert_array_equal(*(one.predict(observation, deterministic=True)[0] for one in (model, plain)))
    copied = copy.deepcopy(model.policy)
    with torch.no_grad():
        model.policy.action_net.bias.add_(1.0)
    assert (
        copied.predict(observation, deterministic=True)[0][1]
        < model.policy.predict(observation, deterministic=True)[0][1]
    )


@pytest.mark.parametrize(
    "observation",
    [np.zeros(2, np.float32), np.zeros((3, 2), np.float32), np.zeros((1, 1, 3), np.float32), (np.zeros(3), {})],
)
def test_wrong_observations_get_the_parents_errors(observation: Any) -> None:
    with pytest.raises(ValueError) as expected:
        PPO("MlpPolicy", make("discrete"), device="cpu", **SHORT).predict(observation)
    with pytest.raises(ValueError) as found:
        SmoothedPPO("MlpPolicy", make("discrete"), device="cpu", **SHORT).predict(observation)
    assert str(found.value) == str(expected.value)


# ---- environments


class Reusing(gym.Env[Any, Any]):
    """Gives the same dictionaries and arrays again and again, changed in place."""

    observation_space, action_space = BOX, spaces.Discrete(2)

    def __init__(self) -> None:
        self.state = np.zeros(3, np.float32)
        self.info: dict[str, Any] = {"deep": {"count": [0]}, "array": np.zeros(2), "objects": [{}]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.state[:] = 0
        return self.state, self.info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state += 1
        self.info["deep"]["count"][0] += 1
        self.info["array"] += 1
        return self.state, 1.0, False, bool(self.state[0] == 4), self.info


def test_steps_in_a_rollout_are_as_independent_as_before() -> None:
    seen: list[list[Any]] = []
    for algorithm in (PPO, SmoothedPPO):
        kept: list[Any] = []

        def keep(scope: dict[str, Any], _: Any, kept: list[Any] = kept) -> bool:
            kept.append((scope["infos"], scope["new_obs"], scope["rewards"], scope["dones"]))
            return True

        venv = DummyVecEnv([Reusing, Reusing])
        algorithm("MlpPolicy", venv, n_steps=6, batch_size=12, seed=0, device="cpu").learn(12, keep)
        assert "step_wait" not in vars(venv)
        seen.append(kept)
    np.testing.assert_equal(seen[1], seen[0])
    assert [step[0][0]["deep"]["count"][0] for step in seen[1]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("engine", ["torch", "numpy"])
@pytest.mark.parametrize("algorithm", [SmoothedPPO, SmoothedA2C, BC])
def test_small_networks_act_and_learn_on_one_thread(algorithm: Any, engine: Any, two_threads: None) -> None:
    """Matrix products of numpy too, where they are its."""
    seen = []

    def note(*_: Any) -> bool:
        seen.append((torch.get_num_threads(), blas_threads()))
        return True

    if algorithm is BC:
        BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu", engine=engine).learn(total_batches=16, callback=note)
    else:
        model = algorithm("MlpPolicy", make("discrete"), n_steps=4, seed=0, device="cpu", engine=engine)
        model.learn(16, note)
    assert len(seen) > 1
    assert seen == [(1, {1 if engine == "numpy" else 2})] * len(seen)
    assert (torch.get_num_threads(), blas_threads()) == (2, {2})


def blas_threads() -> set[int]:
    """Of numpy's library of matrix products."""
    return {one["num_threads"] for one in threadpool_info() if "numpy" in one["filepath"]}
