"""Agent files and checkpoints of our algorithms: adaptive coefficient, floor, reference policy and warm-up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents import (
    BC,
    ExactCheckpointCallback,
    SmoothedA2C,
    SmoothedMaskablePPO,
    SmoothedPPO,
    SmoothedRecurrentPPO,
    load_agent,
    load_checkpoint,
    save_agent,
)
from rlsmooth.agents.smoothed.algorithms import SmoothedTraining
from rlsmooth.data import cartpole_v1
from rlsmooth.targets import Smoothing
from rlsmooth.training import rng_state, seed_everything

MASKED = "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
DEEP_SEA = "rlsmooth.envs:rlsmooth/DeepSea-v0"
SHORT: dict[str, Any] = {"n_steps": 64, "n_epochs": 3, "seed": 1, "device": "cpu"}


def from_bc(env: VecEnv) -> SmoothedTraining:
    agent = BC("MlpPolicy", env, cartpole_v1(), seed=1, device="cpu")
    return SmoothedPPO.from_bc(agent, env, exploration_floor="lin_0.2", value_warmup_steps=300, **SHORT)


CASES: dict[str, tuple[str, Callable[[VecEnv], SmoothedTraining]]] = {
    "entropy target": (
        "CartPole-v1",
        lambda env: SmoothedPPO("MlpPolicy", env, target_entropy_frac=0.5, ent_coef=0.01, **SHORT),
    ),
    "Box": (
        "Pendulum-v1",
        lambda env: SmoothedPPO("MlpPolicy", env, target_entropy_nats=0.3, exploration_floor="lin_0.1", **SHORT),
    ),
    "reference": (
        DEEP_SEA,
        lambda env: SmoothedPPO(
            "MlpPolicy", env, smoothing=Smoothing("lin_0.1", torch.tensor([0.7, 0.3])), exploration_floor=0.1, **SHORT
        ),
    ),
    "A2C": (
        "CartPole-v1",
        lambda env: SmoothedA2C("MlpPolicy", env, smoothing="lin_0.1", n_steps=8, seed=1, device="cpu"),
    ),
    "masks": (MASKED, lambda env: SmoothedMaskablePPO("MlpPolicy", env, target_entropy_frac=0.4, **SHORT)),
    "recurrent": (
        "CartPole-v1",
        lambda env: SmoothedRecurrentPPO(
            "MlpLstmPolicy",
            env,
            smoothing=0.1,
            exploration_floor="lin_0.1",
            policy_kwargs={"lstm_hidden_size": 8},
            **SHORT,
        ),
    ),
    "from BC": ("CartPole-v1", from_bc),
}


class KilledError(Exception):
    """Ends a run in the middle of a rollout."""


class KillAt(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps >= 390:
            raise KilledError
        return True


def state_of(model: SmoothedTraining) -> dict[str, Any]:
    """All that training goes on from, as tensors."""
    found = {f"policy.{name}": tensor for name, tensor in model.policy.state_dict().items()}
    for index, entries in model.policy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
    if model.entropy_target is not None:
        found["entropy_target"] = model.entropy_target.state
    if model.reference_policy is not None:
        found |= {f"reference.{name}": tensor for name, tensor in model.reference_policy.state_dict().items()}
    counters = [model.num_timesteps, model._n_updates, model.value_warmup_left, model.alpha]
    found["counters"] = torch.tensor([*counters, float(model._rollout_floor or 0.0)], dtype=torch.float64)
    returns = [[float(info["r"]), float(info["l"])] for info in model.ep_info_buffer or ()]
    found["episodes"] = torch.tensor(returns, dtype=torch.float64)
    return found


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_as_an_uninterrupted_one(case: str, tmp_path: Path) -> None:
    name, build = CASES[case]
    seed_everything(7)
    whole = build(make_vec_env(name, 2))
    whole.learn(640)
    expected = {**state_of(whole), **rng_state()}
    seed_everything(7)
    with pytest.raises(KilledError):
        build(make_vec_env(name, 2)).learn(640, callback=[ExactCheckpointCallback(100, tmp_path), KillAt()])
    seed_everything(99)
    run = load_checkpoint(tmp_path, make_vec_env(name, 2), device="cpu")
    assert run.is_exact
    assert 0 < run.model.num_timesteps < 390
    run.model.learn(run.remaining_timesteps, callback=run.callback, reset_num_timesteps=False)
    assert isinstance(run.model, SmoothedTraining)
    assert_equal({**state_of(run.model), **rng_state()}, expected)


@pytest.mark.parametrize("case", CASES)
def test_an_agent_file_keeps_everything(case: str, tmp_path: Path) -> None:
    name, build = CASES[case]
    model = build(make_vec_env(name, 2))
    model.learn(256)
    path = save_agent(model, tmp_path / "agent.zip")
    loaded = load_agent(path, env=make_vec_env(name, 2), device="cpu")
    assert type(loaded) is type(model)
    saved, found = state_of(model), state_of(loaded)
    del saved["episodes"], found["episodes"]
    assert_equal(found, saved)
    assert loaded.smoothing.to_config() == model.smoothing.to_config()
    for argument in ("target_entropy_frac", "target_entropy_nats", "exploration_floor", "ent_coef"):
        assert getattr(loaded, argument) == getattr(model, argument)
    assert loaded.policy.exploration_floor == model.policy.exploration_floor
    if model.reference_policy is not None:
        assert loaded.reference_policy is not None
        assert not any(parameter.requires_grad for parameter in loaded.reference_policy.parameters())
    model.save(tmp_path / "theirs.zip")  # goes on as the zip of Stable-Baselines3 does
    theirs = type(model).load(tmp_path / "theirs.zip", env=make_vec_env(name, 2), device="cpu")
    for other in (loaded, theirs):
        other.ep_info_buffer = None
        other.set_random_seed(5)
        other.learn(128, reset_num_timesteps=False)
    assert_equal(state_of(loaded), state_of(theirs))


def test_a_callable_coefficient_is_asked_for(tmp_path: Path) -> None:
    smoothing = Smoothing(alpha=lambda progress: 0.1 * progress)
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", smoothing=smoothing, **SHORT)
    path = save_agent(model, tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="smoothing that no file can hold"):
        load_agent(path)
    assert load_agent(path, custom_objects={"smoothing": smoothing}).smoothing.alpha_at(0.5) == 0.05
