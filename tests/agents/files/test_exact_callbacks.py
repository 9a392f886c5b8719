"""State in checkpoints beside SB3's own: of callbacks, and of the smoothed algorithms."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rlsmooth.agents import (
    BC,
    SmoothedA2C,
    SmoothedMaskablePPO,
    SmoothedPPO,
    SmoothedRecurrentPPO,
    load_agent,
    save_agent,
)
from rlsmooth.agents.files.exact_checkpoint import (
    ExactCheckpointCallback,
    HasExactState,
    ResumedRun,
    callback_states,
    load_checkpoint,
    own_states,
    set_own_states,
)
from rlsmooth.agents.files.run_state import TransientVecEnvWrapper, state_from_tree, state_to_tree, vec_env_state
from rlsmooth.agents.smoothed.algorithms import SmoothedTraining
from rlsmooth.data import cartpole_v1
from rlsmooth.envs.snapshot_values import CannotSnapshotError
from rlsmooth.targets import Smoothing
from rlsmooth.training import rng_state, seed_everything
from support import Hidden, KillAt, KilledError, assert_equal, assert_raises, same_tensors


class Rewarded(TransientVecEnvWrapper):
    """Gives what a net says of the observation before the step, and counts the steps of the running episodes."""

    def __init__(self, venv: VecEnv, net: torch.nn.Module) -> None:
        super().__init__(venv)
        self.net = net
        self.observations = np.zeros((venv.num_envs, 3), np.float32)

    def reset(self) -> Any:
        self.observations = self.venv.reset()
        return self.observations

    def step_wait(self) -> Any:
        observations, _, dones, infos = self.venv.step_wait()
        with torch.no_grad():
            rewards = self.net(torch.as_tensor(self.observations))[:, 0].numpy()
        self.observations = observations
        return observations, rewards, dones, infos


class Trainer:
    """As GAIL's: a net that is trained between rollouts and gives the rewards, with draws of its own."""

    def __init__(self, env: VecEnv) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1)
        self.draws = np.random.default_rng(5)
        self.rounds = 0
        self.env = env
        self.wrapper = self.install()

    def install(self) -> Rewarded:
        if not isinstance(self.env, VecNormalize):
            return Rewarded(self.env, self.net)
        self.env.venv = Rewarded(self.env.venv, self.net)
        return self.env.venv

    def learn(self, model: PPO, total: int, *others: BaseCallback, resume: bool = False) -> None:
        model.learn(total, callback=[TrainerCallback(self), *others], reset_num_timesteps=not resume)


class TrainerCallback(BaseCallback):
    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer = trainer

    def _on_rollout_start(self) -> None:
        trainer = self.trainer
        trainer.optimizer.zero_grad()
        trainer.net(torch.as_tensor(trainer.draws.normal(size=(4, 3)).astype(np.float32))).square().mean().backward()
        trainer.optimizer.step()
        trainer.rounds += 1

    def _on_step(self) -> bool:
        return True

    def exact_state(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "net": dict(trainer.net.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "draws": trainer.draws,
            "rounds": trainer.rounds,
            "observations": trainer.wrapper.observations,
        }

    def set_exact_state(self, state: dict[str, Any], *, episodes_continue: bool) -> None:
        trainer = self.trainer
        trainer.net.load_state_dict(state["net"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.draws, trainer.rounds = state["draws"], state["rounds"]
        if episodes_continue:
            trainer.wrapper.observations = state["observations"]


def started(**how: Any) -> tuple[PPO, Trainer]:
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, **how))
    trainer = Trainer(env)
    seed_everything(7)
    return PPO("MlpPolicy", env, n_steps=64, n_epochs=2, seed=1), trainer


def cut_off(folder: Path, **how: Any) -> None:
    model, trainer = started(**how)
    assert_raises(KilledError, None, trainer.learn, model, 640, ExactCheckpointCallback(100, folder), KillAt(300))


def test_a_trainer_around_an_algorithm_is_resumed_with_it(tmp_path: Path) -> None:
    model, trainer = started()
    trainer.learn(model, 640)
    cut_off(tmp_path)
    seed_everything(99)
    env = VecNormalize(make_vec_env("Pendulum-v1", 2))
    run = load_checkpoint(tmp_path, env)  # before the trainer's wrapper is there
    assert run.is_exact
    (name,) = run.callback_states
    assert name == f"{TrainerCallback.__module__}.TrainerCallback"
    assert run.callback_states[name]["rounds"] == 1 + run.model.num_timesteps // 128
    resumed = Trainer(env)
    resumed.learn(run.model, run.remaining_timesteps, run.callback, resume=True)
    assert resumed.rounds == trainer.rounds == 5
    for one, other in ((resumed.net, trainer.net), (run.model.policy, model.policy)):
        assert same_tensors(one.parameters(), other.parameters())


def test_environments_that_start_anew_are_told(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="A run resumed from here starts new episodes"):
        cut_off(tmp_path, wrapper_class=Hidden)
    env = VecNormalize(make_vec_env("Pendulum-v1", 2, wrapper_class=Hidden))
    with pytest.warns(RuntimeWarning, match="The resumed run starts new episodes"):
        run = load_checkpoint(tmp_path, env)
    trainer = Trainer(env)
    seen = []

    class Look(BaseCallback):
        def _on_rollout_start(self) -> None:
            seen.append((trainer.rounds, trainer.wrapper.observations.copy(), trainer.env.get_original_obs()))  # type: ignore[attr-defined]

        def _on_step(self) -> bool:
            return True

    trainer.learn(run.model, 128, run.callback, Look(), resume=True)
    rounds, observations, original = seen[0]
    assert rounds == run.callback_states[f"{TrainerCallback.__module__}.TrainerCallback"]["rounds"] > 1
    assert np.array_equal(observations, original)


def test_a_run_without_the_trainer_is_told(tmp_path: Path) -> None:
    cut_off(tmp_path)
    run: ResumedRun = load_checkpoint(tmp_path, VecNormalize(make_vec_env("Pendulum-v1", 2)))
    with pytest.warns(RuntimeWarning, match=r"there were 1 callbacks of class .*TrainerCallback, and are 0"):
        run.model.learn(128, callback=run.callback, reset_num_timesteps=False)


def test_a_callback_can_refuse_its_state(tmp_path: Path) -> None:
    _, trainer = started()
    callback = TrainerCallback(trainer)
    own = ExactCheckpointCallback(1, tmp_path)
    states = own_states(callback, own)
    assert callback_states(callback, own) == []
    assert set_own_states(callback, own, states, episodes_continue=True) == ""
    states[0]["state"]["items"][0][1] = {"kind": "dict", "number": 1, "items": []}
    assert_raises(RuntimeError, "Missing key", set_own_states, callback, own, states, episodes_continue=True)
    states[0]["state"] = {"kind": "dict", "number": 0, "items": 3}
    assert_raises(CannotSnapshotError, "malformed", set_own_states, callback, own, states, episodes_continue=True)
    assert isinstance(callback, HasExactState)
    assert not isinstance(own, HasExactState)


def test_every_kind_of_value_comes_back() -> None:
    generator = np.random.default_rng(1)
    generator.normal()
    state = {
        "numbers": (1, 2.5, True, None, float("inf")),
        "text": "gail",
        "array": np.arange(3, dtype=np.uint8),
        "deque": deque([1.0], maxlen=4),
        "kind": "tensor",
        "tensors": [torch.ones(2, 3), torch.tensor(7), torch.zeros(0, dtype=torch.bool)],
        3: {"nested": np.float32(2)},
    }
    back = state_from_tree(state_to_tree({**state, "draws": generator}, "state"))
    draws = back.pop("draws")
    assert draws is not generator
    assert draws.normal() == generator.normal()
    assert_equal(back, state)
    assert back["deque"].maxlen == 4
    for bad, message in ((object(), "state is a builtins.object"), (torch.ones(1, dtype=torch.bfloat16), "bfloat16")):
        assert_raises(CannotSnapshotError, message, state_to_tree, bad, "state")
    weight = torch.zeros(2)
    tree = state_to_tree(weight, "weight")
    weight += 1
    assert not state_from_tree(tree).any()  # a copy


def test_the_wrapper_of_the_moment_is_passed_over() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 2))
    env.reset()
    before = vec_env_state(env)
    Trainer(env)
    after = vec_env_state(env)
    assert len(after["wrappers"]) == len(before["wrappers"]) == 1
    assert after["problem"] == before["problem"] == ""


# ---- our algorithms: adaptive coefficient, floor, reference policy and warm-up
MASKED = "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
DEEP_SEA = "rlsmooth.envs:rlsmooth/DeepSea-v0"
SEEDED: dict[str, Any] = {"seed": 1, "device": "cpu"}
SHORT: dict[str, Any] = {"n_steps": 64, "n_epochs": 3, **SEEDED}


def from_bc(env: VecEnv) -> SmoothedTraining:
    agent = BC("MlpPolicy", env, cartpole_v1(), seed=1, device="cpu")
    return SmoothedPPO.from_bc(agent, env, exploration_floor="lin_0.2", value_warmup_steps=300, **SHORT)


def built(algorithm: Any, policy: str = "MlpPolicy", **arguments: Any) -> Callable[[VecEnv], SmoothedTraining]:
    return lambda env: algorithm(policy, env, **copy.deepcopy(arguments), **SHORT)


SKEWED = Smoothing("lin_0.1", torch.tensor([0.7, 0.3]))
LSTM: dict[str, Any] = {"policy": "MlpLstmPolicy", "policy_kwargs": {"lstm_hidden_size": 8}}
CASES: dict[str, tuple[str, Callable[[VecEnv], SmoothedTraining]]] = {
    "entropy target": ("CartPole-v1", built(SmoothedPPO, target_entropy_frac=0.5, ent_coef=0.01)),
    "Box": ("Pendulum-v1", built(SmoothedPPO, target_entropy_nats=0.3, exploration_floor="lin_0.1")),
    "reference": (DEEP_SEA, built(SmoothedPPO, smoothing=SKEWED, exploration_floor=0.1)),
    "A2C": ("CartPole-v1", lambda env: SmoothedA2C("MlpPolicy", env, n_steps=8, smoothing="lin_0.1", **SEEDED)),
    "masks": (MASKED, built(SmoothedMaskablePPO, target_entropy_frac=0.4, min_entropy_frac="lin_0.3")),
    "recurrent": ("CartPole-v1", built(SmoothedRecurrentPPO, smoothing=0.1, exploration_floor="lin_0.1", **LSTM)),
    "from BC": ("CartPole-v1", from_bc),
}


def state_of(model: SmoothedTraining) -> dict[str, Any]:
    """All that training goes on from."""
    target, reference = model.entropy_target, model.reference_policy
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict()["state"],
        "entropy_target": None if target is None else target.state,
        "reference": None if reference is None else reference.state_dict(),
        "counters": [model.num_timesteps, model._n_updates, model.value_warmup_left, float(model.alpha)],
        "floor": [float(model._rollout_floor or 0.0), float(model._set_point or 0.0)],
        "episodes": [[float(info["r"]), float(info["l"])] for info in model.ep_info_buffer or ()],
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_as_an_uninterrupted_one(case: str, tmp_path: Path) -> None:
    name, build = CASES[case]
    seed_everything(7)
    whole = build(make_vec_env(name, 2))
    whole.learn(640)
    expected = {**state_of(whole), **rng_state()}
    seed_everything(7)
    with pytest.raises(KilledError):
        build(make_vec_env(name, 2)).learn(640, callback=[ExactCheckpointCallback(100, tmp_path), KillAt(390)])
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
    for argument in ("target_entropy_frac", "target_entropy_nats", "exploration_floor", "min_entropy_frac", "ent_coef"):
        assert getattr(loaded, argument) == getattr(model, argument)
    assert loaded.policy.exploration_floor == model.policy.exploration_floor
    assert loaded.policy.min_entropy_frac == model.policy.min_entropy_frac
    if model.reference_policy is not None:
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
    assert_raises(ValueError, "smoothing was a callable, which no file can hold", load_agent(path).learn, 8)
    assert load_agent(path, custom_objects={"smoothing": smoothing}).smoothing.alpha_at(0.5) == 0.05
