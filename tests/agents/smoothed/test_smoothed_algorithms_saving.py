"""Stable-Baselines3's own save and load keep all that the smoothed algorithms add."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.data import cartpole_v1
from rlsmooth.envs import IdentityMaskedEnv
from rlsmooth.targets import Smoothing, Tree

PPO_ARGUMENTS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}
ALL: list[tuple[type[OnPolicyAlgorithm], str, Any, dict[str, Any]]] = [
    (SmoothedPPO, "MlpPolicy", "CartPole-v1", PPO_ARGUMENTS),
    (SmoothedA2C, "MlpPolicy", "CartPole-v1", {"n_steps": 16}),
    (SmoothedMaskablePPO, "MlpPolicy", "masked", PPO_ARGUMENTS),
    (
        SmoothedRecurrentPPO,
        "MlpLstmPolicy",
        "CartPole-v1",
        {"n_steps": 32, "batch_size": 16, "policy_kwargs": {"lstm_hidden_size": 8}},
    ),
]


def make(name: str) -> gym.Env[Any, Any]:
    """The environment of a case."""
    return IdentityMaskedEnv(5) if name == "masked" else gym.make(name)


def saved_and_loaded(model: Any, **overrides: Any) -> Any:
    """Through SB3's zip in memory."""
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, device="cpu", **overrides)


@pytest.mark.parametrize(("algorithm", "policy", "env", "arguments"), ALL)
@pytest.mark.parametrize("on", [False, True])
def test_every_algorithm_comes_back_and_trains_on(
    algorithm: type[OnPolicyAlgorithm], policy: str, env: str, arguments: dict[str, Any], on: bool
) -> None:
    extra: dict[str, Any] = (
        {"smoothing": 0.02, "target_entropy_frac": 0.9, "exploration_floor": "lin_0.2"} if on else {}
    )
    model: Any = algorithm(policy, make(env), seed=0, device="cpu", **arguments, **extra)
    model.learn(3 * model.n_steps)
    loaded = saved_and_loaded(model, env=make(env))
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], tensor), name
    assert loaded.policy.exploration_floor == model.policy.exploration_floor
    assert loaded.is_smoothed == on
    if on:
        assert model.policy.exploration_floor > 0
        assert torch.equal(loaded.entropy_target.state, model.entropy_target.state)
        assert float(model.entropy_target.state[0]) != np.float32(np.log(0.02))
        assert loaded.alpha == model.alpha
    loaded.learn(model.n_steps, reset_num_timesteps=False)
    assert loaded.num_timesteps == 4 * model.n_steps


def test_schedules_and_references_come_back() -> None:
    tree = Tree.from_nested({"left": ["a", "b"], "right": ["c"]})
    for smoothing in (
        "lin_0.1",
        Smoothing(lambda progress: 0.1 * progress**2, reference=torch.tensor([0.9, 0.1])),
        Smoothing("lin_0.1", reference="adjacent"),
        Smoothing(0.1, reference=tree, decay=2.0),
    ):
        env = (
            IdentityMaskedEnv(3) if isinstance(smoothing, Smoothing) and smoothing.reference is tree else "CartPole-v1"
        )
        model = SmoothedPPO("MlpPolicy", env, smoothing=smoothing, device="cpu", **PPO_ARGUMENTS).learn(64)
        loaded = saved_and_loaded(model)
        assert loaded.smoothing.alpha_at(0.5) == model.smoothing.alpha_at(0.5)
        observation = model.rollout_buffer.observations[0] * 1.0
        tensor, _ = model.policy.obs_to_tensor(observation)
        with torch.no_grad():
            theirs, ours = (one.policy.smoothed_distribution(tensor).kl_reference() for one in (model, loaded))
        assert torch.equal(theirs, ours)


def test_load_takes_other_arguments_and_checks_them() -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", smoothing=0.1, device="cpu", **PPO_ARGUMENTS)
    file = io.BytesIO()
    model.save(file)
    for smoothing, is_smoothed in ((0.0, False), ("lin_0.3", True)):
        file.seek(0)
        loaded = SmoothedPPO.load(file, env="CartPole-v1" and gym.make("CartPole-v1"), smoothing=smoothing)
        assert loaded.is_smoothed == is_smoothed
    file.seek(0)
    with pytest.raises(ValueError, match="smoothing"):
        SmoothedPPO.load(file, smoothing=-1.0)


def test_a_model_that_is_off_loads_as_its_parent_and_back(tmp_path: Path) -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **PPO_ARGUMENTS).learn(64)
    model.save(tmp_path / "model")
    parent = PPO.load(tmp_path / "model", device="cpu")
    observation = np.full(4, 0.1, dtype=np.float32)
    assert parent.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]
    parent.save(tmp_path / "parent")
    assert not SmoothedPPO.load(tmp_path / "parent", device="cpu").is_smoothed


def test_excluded_attributes_are_left_out() -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", smoothing=0.1, device="cpu", **PPO_ARGUMENTS)
    file = io.BytesIO()
    model.save(file, exclude=["smoothing"])
    file.seek(0)
    assert not SmoothedPPO.load(file, device="cpu").is_smoothed


def test_the_reference_policy_and_the_rest_of_the_warm_up_come_back() -> None:
    clone = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=20)
    model = SmoothedPPO.from_bc(
        clone, "CartPole-v1", value_warmup_steps=128, exploration_floor=0.1, seed=0, device="cpu", **PPO_ARGUMENTS
    )
    for steps, left in ((64, 64), (128, 0)):
        model.learn(steps, reset_num_timesteps=False)
        loaded = saved_and_loaded(model, env=gym.make("CartPole-v1"))
        assert loaded.value_warmup_left == left
        assert loaded.reference_policy is not None
        assert loaded.policy.reference_policy is loaded.reference_policy
        for name, tensor in clone.policy.state_dict().items():
            if not name.startswith(("value_net", "mlp_extractor.value_net")):
                assert torch.equal(loaded.reference_policy.state_dict()[name], tensor), name
    assert not torch.equal(loaded.policy.action_net.weight, clone.policy.action_net.weight)
    assert "reference_policy.action_net.weight" not in dict(loaded.policy.named_parameters())
    before = {name: tensor.clone() for name, tensor in loaded.reference_policy.state_dict().items()}
    loaded.learn(64, reset_num_timesteps=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.reference_policy.state_dict().items())


def test_load_can_leave_the_target_out() -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", target_entropy_frac=0.9, seed=0, device="cpu", **PPO_ARGUMENTS)
    model.learn(64)
    loaded = saved_and_loaded(model, env=gym.make("CartPole-v1"), target_entropy_frac=None)
    assert loaded.entropy_target is None
    assert loaded.alpha == 0
    assert not loaded.learn(64).is_smoothed


def test_a_floor_given_to_load_is_in_force_at_once() -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", exploration_floor=0.2, seed=0, device="cpu", **PPO_ARGUMENTS)
    model.learn(64)
    assert saved_and_loaded(model, exploration_floor=0.5).policy.exploration_floor == 0.5
    assert saved_and_loaded(model, exploration_floor=0.0).policy.exploration_floor == 0.0


def test_a_kickstarted_model_can_go_on_without_its_clone() -> None:
    clone = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=20)
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=0, seed=0, device="cpu", **PPO_ARGUMENTS)
    env = gym.make("CartPole-v1")
    loaded = saved_and_loaded(model, env=env, smoothing=0.0, ent_coef=0.01)
    assert not loaded.policy.is_regularised
    assert saved_and_loaded(loaded, env=env, smoothing=0.1).policy.reference_policy is not None
