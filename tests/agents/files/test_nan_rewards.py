"""A reward or observation that is not finite never replaces a good checkpoint, whatever algorithm is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rlsmooth.agents import (
    AIRL,
    BC,
    BCO,
    GAIL,
    DAgger,
    ExactCheckpointCallback,
    RewardNet,
    SmoothedA2C,
    SmoothedPPO,
    TrainingDivergedError,
    load_checkpoint,
    save_agent,
)
from rlsmooth.agents.acting import play_episodes
from rlsmooth.data import cartpole_v1, record
from support import assert_equal

FIRST = 150
ON, OFF = {"n_steps": 32, "batch_size": 32}, {"learning_starts": 20}


class Spoilt(gym.Wrapper[Any, Any, Any, Any]):
    """Gives `value` as a reward, or in the observation, from step `FIRST` on."""

    def __init__(self, env: str, what: str, value: float) -> None:
        super().__init__(gym.make(env))
        self.what, self.value, self.steps = what, value, 0

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self.steps += 1
        if self.steps >= FIRST and self.what == "reward":
            reward = self.value
        elif self.steps >= FIRST:
            observation = np.where(np.arange(len(observation)) == 0, np.float32(self.value), observation)
        return observation, reward, *rest


def is_finite(module: torch.nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in module.state_dict().values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize(
    ("algorithm", "env", "arguments"),
    [
        (SmoothedPPO, "CartPole-v1", ON),
        (SmoothedA2C, "CartPole-v1", {}),
        (PPO, "CartPole-v1", ON),
        (A2C, "CartPole-v1", {}),
        (DQN, "CartPole-v1", OFF),
        pytest.param(SAC, "Pendulum-v1", OFF, marks=pytest.mark.slow),
    ],
)
def test_the_last_checkpoint_stays_good(
    tmp_path: Path, algorithm: Any, env: str, arguments: dict[str, Any], what: str, value: float
) -> None:
    model = algorithm("MlpPolicy", Spoilt(env, what, value), seed=0, device="cpu", **arguments)
    message = rf"stopped at step {FIRST}: environment 0 gave .*{what}.* {value}.*last good checkpoint stays in"
    with pytest.raises(TrainingDivergedError, match=message):
        model.learn(400, callback=ExactCheckpointCallback(32, tmp_path, keep=1))
    assert is_finite(model.policy)
    run = load_checkpoint(tmp_path, Spoilt(env, what, value), device="cpu")
    assert FIRST - 64 < run.model.num_timesteps < FIRST
    assert is_finite(run.model.policy)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, while SB3 computes advantages
@pytest.mark.parametrize("algorithm", [SmoothedPPO, SmoothedA2C])
@pytest.mark.parametrize("normalised", [False, True])
def test_without_a_callback_the_policy_stays_good(algorithm: Any, normalised: bool) -> None:
    venv: Any = DummyVecEnv([lambda: Spoilt("CartPole-v1", "reward", -np.inf)] * 2)
    venv = VecNormalize(venv) if normalised else venv
    model = algorithm("MlpPolicy", venv, n_steps=32, seed=0, device="cpu")
    with pytest.raises(TrainingDivergedError, match=rf"stopped at step {2 * FIRST}: environment 0 gave the reward"):
        model.learn(800)
    assert is_finite(model.policy)


# ---- trainers around an algorithm or a clone, which learn from observations, and not from the environment's rewards
DEMONSTRATIONS = cartpole_v1().sample_episodes(2, seed=0)
SMALL: dict[str, Any] = {"seed": 0, "device": "cpu"}


def played(venv: Any) -> Any:
    agent = PPO("MultiInputPolicy", venv, **SMALL)
    return play_episodes(agent, venv, n_episodes=50, seed=0, use_masks=False, deterministic=False)


def in_dict(env: gym.Env[Any, Any]) -> DummyVecEnv:
    spaces = gym.spaces.Dict({"far": env.observation_space, "near": gym.spaces.Discrete(2)})
    return DummyVecEnv([lambda: gym.wrappers.TransformObservation(env, lambda o: {"near": 0, "far": o}, spaces)])


ONLY_ACT: dict[str, Callable[[Any], Any]] = {
    "play": lambda env: BC("MlpPolicy", env, DEMONSTRATIONS, **SMALL).play(n_episodes=50, seed=0),
    "learn": lambda env: BC("MlpPolicy", None, DEMONSTRATIONS, eval_env=env, n_eval_episodes=50, **SMALL).learn(1),
    "record": lambda env: record(BC("MlpPolicy", None, DEMONSTRATIONS, **SMALL), env, 50),
    "Dict": lambda env: played(in_dict(env)),
}


@pytest.mark.parametrize(("where", "value"), [*zip(ONLY_ACT, (np.nan, -np.inf) * 2, strict=True)])
def test_an_observation_that_an_agent_is_only_to_act_on_is_refused(where: str, value: float) -> None:
    name = "observation 'far'" if where == "Dict" else "observation"
    message = (
        rf"environment 0 gave an {name} that holds {value} after step \d+ of these episodes.*Fix the environment's"
    )
    with pytest.raises(ValueError, match=message):
        ONLY_ACT[where](Spoilt("CartPole-v1", "observation", value))


def adversarial(kind: Any, algorithm: Any = PPO, reward_net: Any = None) -> tuple[Callable[..., Any], ...]:
    """What trains in an environment with checkpoints in a folder (None: without), and what resumes there."""
    arguments = {"n_steps": 32, "batch_size": 32, "n_epochs": 1} if algorithm is PPO else {"learning_starts": 20}

    def train(env: Any, folder: Path | None) -> Any:
        generator = algorithm("MlpPolicy", env, **arguments, **SMALL)
        trainer = kind(DEMONSTRATIONS, generator, reward_net, gen_train_timesteps=32, demo_batch_size=32, seed=0)
        kept = None if folder is None else ExactCheckpointCallback(32, folder, keep=1)
        return trainer.learn(256, callback=kept)

    return train, lambda env, folder: kind.resume(folder, DEMONSTRATIONS, env, device="cpu").trainer


def bco(env: Any, folder: Path | None) -> BCO:
    given: dict[str, Any] = {"transitions_per_round": 60, "n_rounds": 4, "n_epochs": 1, "inverse_epochs": 2, **SMALL}
    return BCO("MlpPolicy", env, DEMONSTRATIONS, checkpoint_folder=folder, **given).learn()


def dagger(env: Any, folder: Path | None, expert: Any = lambda _: 0, **arguments: Any) -> DAgger:
    given = {"rollout_round_min_timesteps": 60, "rollout_round_min_episodes": 1, **SMALL, **arguments}
    return DAgger("MlpPolicy", env, expert, scratch_dir=folder, **given).learn(256)


TRAINERS: dict[str, tuple[Callable[..., Any], ...]] = {
    "GAIL": adversarial(GAIL),
    "AIRL": adversarial(AIRL),
    "GAIL of DQN": adversarial(GAIL, DQN),
    "BCO": (bco, lambda env, folder: BCO.resume(folder, env, DEMONSTRATIONS, device="cpu")),
    "DAgger": (dagger, lambda env, folder: DAgger.resume(folder, env, lambda _: 0, device="cpu")),
}
of_each = pytest.mark.parametrize(("train", "resume"), TRAINERS.values(), ids=TRAINERS)


@pytest.mark.parametrize(("name", "value"), [*zip(TRAINERS, (np.nan, -np.inf) * 3, strict=False)])
def test_an_observation_stops_what_would_learn_from_it(tmp_path: Path, name: str, value: float) -> None:
    train, resume = TRAINERS[name]
    message = rf"stopped at step {FIRST}: environment 0 gave an observation that holds {value}"
    with pytest.raises(TrainingDivergedError, match=message + ".*last good checkpoint stays in") as found:
        train(Spoilt("CartPole-v1", "observation", value), tmp_path)
    assert str(tmp_path) in str(found.value)
    again = resume(Spoilt("CartPole-v1", "observation", value), tmp_path)
    assert is_finite(again.policy)
    with pytest.raises(TrainingDivergedError, match=message):
        train(Spoilt("CartPole-v1", "observation", value), None)


@of_each
def test_a_reward_that_nothing_learns_from_does_not_matter(tmp_path: Path, train: Any, resume: Any) -> None:
    trained = train(Spoilt("CartPole-v1", "reward", np.nan), tmp_path)
    assert is_finite(trained.policy)
    again = resume(Spoilt("CartPole-v1", "reward", np.inf), tmp_path)
    assert_equal(again.policy.state_dict(), trained.policy.state_dict())


class SpoiltNet(RewardNet):
    """A reward network of the user's own that gives infinity from step `FIRST` on, where only the generator learns."""

    def forward(self, *parts: Any) -> torch.Tensor:
        found = super().forward(*parts)
        self.steps = getattr(self, "steps", 0) + (0 if self.training else len(found))
        return torch.where(torch.tensor(self.steps >= FIRST and not self.training), torch.inf, found)


@pytest.mark.parametrize("algorithm", [PPO, DQN])  # rewards at the end of a rollout, and at each step
def test_a_learned_reward_stops_what_would_learn_from_it(tmp_path: Path, algorithm: Any) -> None:
    env = gym.make("CartPole-v1")
    train, _ = adversarial(GAIL, algorithm, SpoiltNet(env.observation_space, env.action_space))
    message = r"stopped at step \d+: the reward network gave the reward (-?inf|nan) in environment 0"
    with pytest.raises(TrainingDivergedError, match=message + ".*last good checkpoint stays in") as found:
        train(env, tmp_path)
    assert str(tmp_path) in str(found.value)
    with pytest.raises(TrainingDivergedError, match=r"Fix the reward network\.$"):
        train(env, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("targets", ["actions", "probabilities"])
def test_an_experts_answer_stops_dagger(tmp_path: Path, targets: Any, bad: float) -> None:
    asked = 0

    def expert(_: Any) -> Any:
        nonlocal asked
        asked += 1
        answer = bad if asked > FIRST else 0.5
        return np.array([answer] if targets == "actions" else [answer, 0.5], np.float32)

    env = "Pendulum-v1" if targets == "actions" else "CartPole-v1"
    message = rf"the expert (chose|gave).*{bad}.*Training stopped after step {FIRST}"
    with pytest.raises(ValueError, match=message):
        dagger(env, tmp_path, expert, expert_targets=targets, beta_schedule=1)
    again = DAgger.resume(tmp_path, env, lambda _: 0, device="cpu")
    assert is_finite(again.policy)


def test_a_policy_that_diverged_replaces_nothing(tmp_path: Path) -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", **ON, learning_rate=1e30, seed=0, device="cpu")
    message = r"stopped at step \d+: the policy's .* is not finite.*learning_rate"
    with pytest.raises(TrainingDivergedError, match=message):
        model.learn(400, callback=ExactCheckpointCallback(32, tmp_path / "run", keep=1))
    assert is_finite(load_checkpoint(tmp_path / "run", "CartPole-v1", device="cpu").model.policy)
    good = SmoothedPPO("MlpPolicy", "CartPole-v1", **ON, seed=0, device="cpu")
    path = save_agent(good, tmp_path / "agent.zip")
    before = path.read_bytes()
    with torch.no_grad():
        good.policy.action_net.weight[0, 0] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"action_net.weight is not finite, so nothing was written"):
        save_agent(good, path)
    assert path.read_bytes() == before
