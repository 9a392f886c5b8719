"""`engine="numpy"` in SmoothedPPO and SmoothedA2C: against the torch engine on the same rollouts, and by itself."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlsmooth.agents import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.numpy_training import NumpyActorCritic
from rlsmooth.targets import Smoothing
from rlsmooth.training import TrainingDivergedError
from support import same_parameters

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")


class Bandit(gym.Env[Any, Any]):
    """The reward is the action's sum times an observation; episodes are cut off after 37 steps."""

    def __init__(self, space: spaces.Space[Any], observation_space: spaces.Space[Any] | None = None) -> None:
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> Any:
        self.seen = self.observation_space.sample()
        return self.seen

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(np.sum(action) * np.sum(self.seen))
        return self.observe(), reward, False, self.steps >= 37, {}


BOX = spaces.Box(np.float32([-2, 0]), np.float32([5, 300]))
PPO = {"n_steps": 64, "batch_size": 48, "n_epochs": 3}
CASES: dict[str, tuple[type[OnPolicyAlgorithm], spaces.Space[Any], dict[str, Any]]] = {
    "off": (SmoothedPPO, spaces.Discrete(4), PPO),
    "smoothed": (SmoothedPPO, spaces.Discrete(4, start=3), {**PPO, "smoothing": "lin_0.2", "ent_coef": 0.05}),
    "box": (SmoothedPPO, BOX, {**PPO, "smoothing": 0.01, "ent_coef": 0.01, "learning_rate": lambda left: 1e-3 * left}),
    "floor": (SmoothedPPO, spaces.Discrete(4), {**PPO, "smoothing": 0.1, "exploration_floor": 0.2}),
    "guarantee": (SmoothedPPO, spaces.Discrete(4), {**PPO, "min_entropy_frac": 0.5, "ent_coef": 0.01}),
    "smoothed guarantee": (
        SmoothedPPO,
        spaces.Discrete(4, start=2),
        {**PPO, "min_entropy_frac": 0.6, "smoothing": 0.1},
    ),
    "box guarantee": (SmoothedPPO, BOX, {**PPO, "min_entropy_nats": 3.0}),
    "box floor": (SmoothedPPO, BOX, {**PPO, "exploration_floor": 0.2}),
    "multi-discrete": (SmoothedPPO, spaces.MultiDiscrete([3, 2]), {**PPO, "smoothing": 0.1}),
    "multi-binary": (SmoothedPPO, spaces.MultiBinary(3), {**PPO, "smoothing": 0.1}),
    "target": (SmoothedPPO, spaces.Discrete(4), {**PPO, "target_entropy_frac": 0.5}),
    "kernel": (SmoothedPPO, spaces.Discrete(4), {**PPO, "smoothing": Smoothing(0.1, reference="exponential")}),
    "clipped values": (SmoothedPPO, spaces.Discrete(4), {**PPO, "smoothing": 0.1, "clip_range_vf": 0.2}),
    "stops": (SmoothedPPO, spaces.Discrete(4), {**PPO, "target_kl": 1e-4}),
    "one layer": (SmoothedPPO, spaces.Discrete(4), {**PPO, "policy_kwargs": {"net_arch": []}}),
    "relu": (SmoothedPPO, BOX, {**PPO, "policy_kwargs": {"net_arch": [16], "activation_fn": torch.nn.ReLU}}),
    "elu": (SmoothedPPO, BOX, {**PPO, "policy_kwargs": {"net_arch": [16, 8], "activation_fn": torch.nn.ELU}}),
    "a2c": (SmoothedA2C, spaces.Discrete(4), {"n_steps": 32, "smoothing": 0.1, "normalize_advantage": True}),
    "a2c adam": (SmoothedA2C, BOX, {"n_steps": 32, "use_rms_prop": False}),
}


def build(case: str, **more: Any) -> Any:
    algorithm, space, arguments = CASES[case]
    make: Any = algorithm
    return make("MlpPolicy", Bandit(space), seed=0, device="cpu", **arguments, **more)


@pytest.mark.parametrize("case", CASES)
def test_updates_on_the_same_rollouts_are_those_of_torch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CASES[case][0], "collect_in_numpy", OnPolicyAlgorithm.collect_rollouts)
    one, other = (build(case, engine=engine).learn(256) for engine in ("torch", "numpy"))
    for name, parameter in one.policy.named_parameters():
        torch.testing.assert_close(dict(other.policy.named_parameters())[name], parameter, rtol=1e-6, atol=1e-6)
    there, here = (model.logger.name_to_value for model in (one, other))
    assert there.keys() == here.keys()
    for name in there:
        if not name.startswith("time/"):
            assert here[name] == pytest.approx(there[name], rel=1e-3, abs=1e-5), name
    states = [model.policy.optimizer.state_dict()["state"] for model in (one, other)]
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "case", ["smoothed", "box", "floor", "guarantee", "box guarantee", "box floor", "multi-discrete", "multi-binary"]
)
def test_rollouts_are_draws_of_the_policy(case: str) -> None:
    """Log-probabilities and values are the policy's own of what was drawn, and the draws follow its distribution."""
    model = build(case, engine="numpy")
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100)
    networks = NumpyActorCritic(model.policy)
    observations = np.repeat(np.float32([[0.5, -1.0, 1.0]]), 20_000, axis=0)
    np.random.seed(0)  # noqa: NPY002 - the generator that it draws from
    torch.manual_seed(0)
    actions, log_probs = networks.act(networks.features(observations))
    with torch.no_grad():
        tensors = torch.from_numpy(observations)
        values, expected, _ = model.policy.evaluate_actions(tensors, torch.from_numpy(actions))
        drawn, _, _ = model.policy(tensors)
    torch.testing.assert_close(torch.from_numpy(log_probs), expected, rtol=1e-5, atol=1e-5)
    found = torch.from_numpy(networks.values(networks.features(observations)))
    torch.testing.assert_close(found, values.flatten(), rtol=1e-5, atol=1e-5)
    ours, theirs = (np.asarray(each, float).reshape(20_000, -1) for each in (actions, drawn))
    error = 6 * theirs.std(0) / 100  # of the difference of two means, with room
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < error).all()
    assert np.abs(ours.std(0) - theirs.std(0)) == pytest.approx(0, abs=0.05 * theirs.std())


@pytest.mark.parametrize(
    "space", [spaces.Box(0, 255, (2, 3), np.uint8), spaces.Discrete(5), spaces.MultiBinary(4), spaces.Box(0, 1, (2, 2))]
)
def test_all_observations_that_a_plain_policy_reads(space: spaces.Space[Any]) -> None:
    model = SmoothedPPO("MlpPolicy", Bandit(spaces.Discrete(2), space), seed=0, device="cpu", engine="numpy", **PPO)
    model.learn(128)
    buffer: Any = model.rollout_buffer
    observations = buffer.observations.reshape(-1, *buffer.obs_shape)
    with torch.no_grad():
        expected = model.policy.predict_values(torch.from_numpy(observations)).flatten()
    networks = NumpyActorCritic(model.policy)
    found = torch.from_numpy(networks.values(networks.features(observations)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_seeded_run_repeats_and_a_saved_one_resumes(tmp_path: Any) -> None:
    """Bit for bit, through files and a second `learn`: nothing of the flat memory is left behind."""
    runs = []
    for _ in range(2):
        model = build("smoothed", engine="numpy").learn(256)
        model.learn(128, reset_num_timesteps=False)
        runs.append(model)
    assert same_parameters(runs[0], runs[1])
    runs[0].save(tmp_path / "model")
    loaded = SmoothedPPO.load(tmp_path / "model", env=runs[0].get_env(), device="cpu")
    assert loaded.engine == "numpy"
    for model in (loaded, runs[1]):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - Stable-Baselines3's
        model.get_env().seed(3)
        model._last_obs = None
        model.learn(128, reset_num_timesteps=False)
    assert same_parameters(loaded, runs[1])


def test_it_learns() -> None:
    """The best action is the one that the sign of the observations asks for."""
    env = Bandit(spaces.Discrete(2, start=3))
    model = SmoothedPPO("MlpPolicy", env, smoothing=0.01, seed=0, device="cpu", engine="numpy", **PPO).learn(2_000)
    for sign, best in ((1, 4), (-1, 3)):
        assert model.predict(np.full(3, sign, np.float32), deterministic=True)[0] == best


def test_actions_of_any_shape_are_clipped_as_they_are() -> None:
    space = spaces.Box(-np.float32([[1], [9], [9]]), np.float32([[1], [9], [9]]))
    env = Bandit(space)
    seen: list[Any] = []
    step = env.step
    env.step = lambda action: (seen.append(action), step(action))[1]  # type: ignore[method-assign]
    model = SmoothedPPO("MlpPolicy", env, seed=0, device="cpu", engine="numpy", **PPO)
    with torch.no_grad():
        model.policy.log_std.fill_(3.0)  # type: ignore[union-attr, operator]
    model.learn(64)
    assert {action.shape for action in seen} == {(3, 1)}
    assert np.abs(seen).max(axis=(0, 2)) == pytest.approx([1, 9, 9])


@pytest.mark.parametrize("case", ["smoothed", "box", "a2c", "floor"])
def test_divergence_is_an_error(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case != "box":
        monkeypatch.setitem(CASES, case, (*CASES[case][:2], {**CASES[case][2], "learning_rate": 1e30}))
    model = build(case, engine="numpy")
    with pytest.raises((TrainingDivergedError, ValueError), match=r"finite|NaN|Expected parameter"):
        model.learn(512, callback=lambda own, _: _spoil(own["self"]) if case == "box" else True)


def _spoil(model: Any) -> bool:
    with torch.no_grad():
        model.policy.action_net.bias.fill_(torch.nan)
    return True


def test_nothing_of_it_is_left_behind_in_the_policy_and_its_optimiser() -> None:
    model = build("smoothed", engine="numpy").learn(64)
    steps = [state["step"] for state in model.policy.optimizer.state.values()]
    assert len({step.data_ptr() for step in steps}) == len(steps)
    for parameter in model.policy.parameters():
        assert parameter.untyped_storage().nbytes() == 4 * parameter.numel()
    updates = int(steps[0])
    model.engine = "torch"
    model.learn(64, reset_num_timesteps=False)
    assert {int(state["step"]) for state in model.policy.optimizer.state.values()} == {2 * updates}


def test_what_is_replaced_between_and_within_rollouts_counts() -> None:
    model = build("off", engine="numpy").learn(64)
    model.policy.optimizer = torch.optim.SGD(model.policy.parameters(), lr=3e-4)
    model.policy.action_net.weight.data = torch.zeros_like(model.policy.action_net.weight)
    before = [one.detach().clone() for one in model.policy.parameters()]
    model.learn(64, reset_num_timesteps=False)
    moved = [
        float((one.detach() - old).abs().max()) for one, old in zip(model.policy.parameters(), before, strict=True)
    ]
    assert 0 < max(moved) < 3e-3  # Adam would have moved each by more
    values: list[Any] = []
    places: list[int] = []

    def replace(own: dict[str, Any], _: Any) -> bool:
        values.append(own["values"])
        places.append(own["rollout_buffer"].pos)
        own["self"].policy.load_from_vector(np.zeros(sum(one.numel() for one in own["self"].policy.parameters())))
        return True

    model.learn(64, callback=replace, reset_num_timesteps=False)
    assert values[0] != 0
    assert not np.any(values[1:])
    assert places == list(range(model.n_steps)) * (64 // model.n_steps)


def shares(model: Any) -> None:
    model.policy.mlp_extractor.value_net = model.policy.mlp_extractor.policy_net


def freezes(model: Any) -> None:
    model.policy.log_std.requires_grad_(False)


def hooks(model: Any) -> None:
    model.policy.optimizer.register_step_post_hook(lambda *_: None)


def forward_hooks(model: Any) -> None:
    model.policy.mlp_extractor.policy_net.register_forward_hook(lambda *_: None)


def has_part(model: Any) -> None:
    model.policy.optimizer = torch.optim.Adam(model.policy.value_net.parameters())


def misspells(model: Any) -> None:
    model.engine = "nump"


@pytest.mark.parametrize("change", [shares, freezes, hooks, forward_hooks, has_part, misspells])
def test_what_is_changed_later_is_not_trained_in_silence(change: Any) -> None:
    model = build("box", engine="numpy")
    change(model)
    with pytest.raises(ValueError, match="engine="):
        model.learn(64)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"policy_kwargs": {"activation_fn": torch.nn.GELU}}, "it has a layer of GELU"),
        ({"policy": "CnnPolicy"}, "SmoothedActorCriticCnnPolicy"),
        ({"use_sde": True}, "gSDE"),
        ({"engine": "jax"}, "engine='jax'"),
    ],
)
def test_what_is_not_served_is_said(more: dict[str, Any], reason: str) -> None:
    arguments = {"policy": "MlpPolicy", "engine": "numpy", **more}
    space = spaces.Box(0, 255, (36, 36, 3), np.uint8) if arguments["policy"] == "CnnPolicy" else None
    with pytest.raises(ValueError, match=reason):
        SmoothedPPO(env=Bandit(BOX, space), device="cpu", **arguments)
