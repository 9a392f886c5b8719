"""Actions that do not start at 0: everything acts in the environment's own numbers, or is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO

from rlsmooth.agents import (
    AIRL,
    BC,
    BCO,
    GAIL,
    DAgger,
    SmoothedA2C,
    SmoothedActorCriticPolicy,
    SmoothedMaskablePPO,
    SmoothedPPO,
    SmoothedRecurrentPPO,
    load_agent,
    save_agent,
)
from rlsmooth.data import Demonstrations, ObservationOnly
from rlsmooth.data.arrays import action_dims
from rlsmooth.scripts.main import main
from support import assert_raises

ABOVE = spaces.Discrete(3, start=5)
SPACES = {
    "below": spaces.Discrete(4, start=-1),
    "by_dimension": spaces.MultiDiscrete([3, 2], start=[2, -4]),
}
COUNT, LENGTH = 64, 8
CPU: dict[str, Any] = {"seed": 0, "device": "cpu"}


class Strict(gym.Env[Any, Any]):
    """Pays for the first legal numbers, and stops at an action outside its space."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (3,))
        self.action_space = action_space
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.moment = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(np.asarray(action)[()]), action
        self.steps, self.moment = self.steps + 1, self.moment + 1
        reward = float(np.all(action == self.action_space.start))  # type: ignore[attr-defined]
        return self._observation(), reward, False, self.moment == LENGTH, {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


class Masked(Strict):
    """The same with masks, under which all is legal."""

    def action_masks(self) -> Any:
        return np.ones(int(action_dims(self.action_space).sum()), dtype=bool)


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Any:
    return SPACES[request.param]


def expert_of(space: spaces.Space[Any], observations: Any) -> Any:
    """By the sign of the first number the lowest action or the highest."""
    lowest = np.asarray(space.start)  # type: ignore[attr-defined]
    highest = lowest + action_dims(space).reshape(lowest.shape) - 1
    up = np.asarray(observations)[..., 0] > 0
    return np.where(up[:, None] if lowest.ndim else up, highest, lowest)


def demonstrations_of(space: spaces.Space[Any], **more: Any) -> Demonstrations:
    observations = np.random.default_rng(0).uniform(-1, 1, (COUNT, 3)).astype(np.float32)
    ends = list(range(LENGTH, COUNT + 1, LENGTH))
    own: dict[str, Any] = {"observation_space": spaces.Box(-1.0, 1.0, (3,)), "action_space": space}
    own |= {"next_observations": np.roll(observations, -1, 0), "episode_ends": ends}
    return Demonstrations.from_arrays(observations, expert_of(space, observations), **own, **more)


def clone_of(space: spaces.Space[Any], **more: Any) -> BC:
    agent = BC("MlpPolicy", Strict(space), demonstrations_of(space), learning_rate=0.01, smoothing=0.0, **CPU, **more)
    return agent.learn(total_epochs=30)


def test_a_clone_its_policy_and_their_copies_answer_alike(space: Any, tmp_path: Path) -> None:
    agent = clone_of(space)
    observations = demonstrations_of(space).observations
    wanted = expert_of(space, observations)
    policies = [agent, agent.policy, copy.deepcopy(agent.policy), pickle.loads(pickle.dumps(agent.policy))]
    policies += [BC.load(agent.save(tmp_path / "agent"), device="cpu").policy]
    for policy in policies:
        found, _ = policy.predict(observations, deterministic=True)
        assert (found == wanted).mean() > 0.9
        sampled, _ = policy.predict(observations)
        assert all(space.contains(one) for one in sampled)
    # Stable-Baselines3's own view of the policy: actions, their log-probabilities, and the demonstrated ones'.
    policy: Any = agent.policy
    tensors, _ = policy.obs_to_tensor(observations)
    with torch.no_grad():
        actions, _, log_probability = policy.forward(tensors)
        torch.testing.assert_close(policy.evaluate_actions(tensors, actions)[1], log_probability)
        _, likelihood, _ = policy.evaluate_actions(tensors, torch.as_tensor(wanted))
    assert -float(likelihood.mean()) == pytest.approx(agent.measures.training(1.0)["nll_hard"], abs=1e-5)


@pytest.mark.parametrize("knobs", [{}, {"smoothing": 0.1, "exploration_floor": 0.5}])
@pytest.mark.parametrize("algorithm", [SmoothedPPO, SmoothedA2C, SmoothedMaskablePPO, SmoothedRecurrentPPO])
def test_smoothed_algorithms_act_and_learn_in_the_space(
    algorithm: Any, knobs: dict[str, Any], space: Any, tmp_path: Path
) -> None:
    env = Masked(space) if algorithm is SmoothedMaskablePPO else Strict(space)
    policy = "MlpLstmPolicy" if algorithm is SmoothedRecurrentPPO else "MlpPolicy"
    batch = {} if algorithm is SmoothedA2C else {"batch_size": 32}
    model = algorithm(policy, env, n_steps=32, **batch, **knobs, **CPU).learn(64)
    assert env.steps == 64
    loaded = load_agent(save_agent(model, tmp_path / "agent"), device="cpu")
    observations = demonstrations_of(space).observations
    np.testing.assert_array_equal(*(one.predict(observations, deterministic=True)[0] for one in (model, loaded)))


def test_the_mixture_counts_from_the_start_with_the_probabilities_of_the_plain_space() -> None:
    plain, shifted = spaces.MultiDiscrete([3, 2]), SPACES["by_dimension"]
    observations = torch.rand(5, 3)
    found = []
    for space, first in ((plain, [0, 0]), (shifted, [2, -4])):
        torch.manual_seed(0)
        policy = SmoothedActorCriticPolicy(
            spaces.Box(-1.0, 1.0, (3,)), space, lambda _: 1e-3, reference="adjacent", exploration_floor=0.3
        )
        mode = policy.get_distribution(observations).mode() - torch.tensor(first)
        _, likelihood, kl = policy.evaluate_actions(observations, torch.tensor([[1, 1]] * 5) + torch.tensor(first))
        found.append((mode, likelihood, kl, policy.action_probabilities(observations.numpy())))
    torch.testing.assert_close(*found)


def test_a_clone_is_fine_tuned_and_warm_starts_a_smoothed_policy(space: Any) -> None:
    agent, env = clone_of(space), Strict(space)
    model = SmoothedPPO.from_bc(agent, env, n_steps=32, batch_size=32, value_warmup_steps=32, device="cpu")
    plain = PPO(SmoothedActorCriticPolicy, env, n_steps=32, batch_size=32, **CPU)
    agent.warm_start(plain)
    observations = demonstrations_of(space).observations
    wanted, _ = agent.predict(observations, deterministic=True)
    for one in (model, plain):
        np.testing.assert_array_equal(one.predict(observations, deterministic=True)[0], wanted)
        one.learn(64)
    assert env.steps == 128


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("trainer", [GAIL, AIRL])
def test_adversarial_training_acts_in_the_space(trainer: Any, masked: bool, space: Any) -> None:
    env = Masked(space) if masked else Strict(space)
    algorithm = SmoothedMaskablePPO if masked else SmoothedPPO
    generator = algorithm("MlpPolicy", env, n_steps=64, batch_size=64, **CPU)
    more = {"action_masks": np.ones((COUNT, int(action_dims(space).sum())), dtype=bool)} if masked else {}
    trained = trainer(demonstrations_of(space, **more), generator, demo_batch_size=32, horizon=LENGTH, seed=0)
    trained.learn(128)
    assert env.steps == 128


def test_dagger_and_bco_act_in_the_space(space: Any) -> None:
    env = Strict(space)
    agent = DAgger("MlpPolicy", env, clone_of(space), learning_rate=0.01, bc_train_n_epochs=20, **CPU).learn(100)
    assert env.steps >= 100
    labels = np.asarray(agent.demonstrations.actions)
    assert (labels == expert_of(space, agent.demonstrations.observations)).mean() > 0.8
    assert (agent.policy.predict(agent.demonstrations.observations, deterministic=True)[0] == labels).mean() > 0.6
    env, observed = Strict(space), ObservationOnly.from_demonstrations(demonstrations_of(space))
    cloned = BCO(
        "MlpPolicy", env, observed, n_rounds=2, transitions_per_round=64, n_epochs=1, inverse_epochs=1, **CPU
    ).learn()
    assert env.steps >= 64
    assert all(space.contains(one) for one in cloned.policy.predict(demonstrations_of(space).observations)[0])


def test_policies_that_count_from_zero_are_refused(tmp_path: Path) -> None:
    space = ABOVE
    env, why = Strict(space), r"action_space=Discrete\(3, start=5\), but .* count from 0"
    for build in (PPO, A2C, DQN):
        assert_raises(ValueError, f"gen_algo has {why}", GAIL, demonstrations_of(space), build("MlpPolicy", env))
    plain = PPO("MlpPolicy", env, **CPU)
    assert_raises(ValueError, f"model has {why}", clone_of(space).warm_start, plain)
    assert_raises(ValueError, f"model has {why}", save_agent, plain, tmp_path / "agent")
    assert not list(tmp_path.iterdir())
    for expert in (plain, plain.policy):
        assert_raises(ValueError, f"expert has {why}", DAgger, "MlpPolicy", env, expert)
    assert_raises(ValueError, f"policy has {why}", SmoothedPPO, PPO.policy_aliases["MlpPolicy"], env)
    far = spaces.Discrete(3, start=2**24 - 1)
    assert_raises(ValueError, "float32 buffers round", SmoothedPPO, "MlpPolicy", Strict(far))
    observations = np.zeros((2, 3), dtype=np.float32)
    agent = BC("MlpPolicy", (env.observation_space, far), None, **CPU)  # whose numbers are int64 throughout
    assert all(far.contains(one) for one in agent.policy.predict(observations)[0])


def test_dimensions_of_one_action_keep_their_place() -> None:
    space = spaces.MultiDiscrete([1], start=[9])
    agent = BC("MlpPolicy", None, demonstrations_of(space), **CPU)
    assert agent.policy.predict(np.zeros(3, dtype=np.float32))[0].tolist() == [9]


def test_record_trains_an_expert_where_actions_do_not_start_at_0(space: Any, tmp_path: Path) -> None:
    """The environment stops at an action outside its space, in training, evaluation and recording."""
    if "Strict-v0" in gym.registry:
        del gym.registry["Strict-v0"]
    gym.register("Strict-v0", entry_point=lambda: Strict(space))
    words = "record --env Strict-v0 --train-expert 256 --n-episodes 3 --eval-episodes 1 --device cpu --log-folder"
    assert main([*words.split(), str(tmp_path)]) == 0
    folder = tmp_path / "record" / "Strict-v0_1"
    assert (folder / "expert.zip").is_file()
    made = Demonstrations.load(folder / "demonstrations.npz")
    assert made.action_space == space
    assert len(made) == 3 * LENGTH
    assert all(space.contains(action) for action in np.asarray(made.actions))
