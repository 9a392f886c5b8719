"""From a clone to reinforcement learning: weights, spaces, the critic's warm-up and KL to the clone."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from rlsmooth.agents.acting import CRITIC
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy
from rlsmooth.data import Demonstrations, cartpole_v1
from rlsmooth.envs import IdentityMaskedEnv
from rlsmooth.targets import Smoothing

PPO_ARGUMENTS: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def clone() -> BC:
    """A clone of CartPole's demonstrations."""
    return BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=100)


def demonstrations(action_space: spaces.Space[Any], rows: int = 20) -> Demonstrations:
    """Random transitions of a Box of three numbers."""
    rng = np.random.default_rng(0)
    action_space.seed(0)
    return Demonstrations.from_arrays(
        rng.normal(size=(rows, 3)).astype(np.float32),
        np.stack([action_space.sample() for _ in range(rows)]),
        observation_space=spaces.Box(-np.inf, np.inf, (3,)),
        action_space=action_space,
        episode_ends=[rows],
    )


def actor_of(policy: Any) -> dict[str, torch.Tensor]:
    """Copies of all that is not the critic's."""
    return {name: tensor.clone() for name, tensor in policy.state_dict().items() if not name.startswith(CRITIC)}


class Continuing(gym.Env[Any, Any]):
    """Three random numbers, any action space, no end."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,))
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        return self._observation(), float(self.np_random.normal()), False, self.np_random.random() < 0.05, {}

    def action_masks(self) -> Any:
        return np.ones(4, dtype=bool)

    def _observation(self) -> Any:
        return self.np_random.normal(size=3).astype(np.float32)


def test_the_actor_starts_as_the_clone_and_acts_alike(clone: BC) -> None:
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", **PPO_ARGUMENTS)
    assert type(model.policy) is SmoothedActorCriticPolicy
    for name, tensor in actor_of(clone.policy).items():
        assert torch.equal(model.policy.state_dict()[name], tensor), name
    observations = cartpole_v1().observations[:50]
    np.testing.assert_array_equal(*(one.predict(observations, deterministic=True)[0] for one in (model, clone)))
    # The optimiser is the algorithm's own, not the clone's.
    assert type(model.policy.optimizer) is torch.optim.Adam
    assert model.policy.optimizer.param_groups[0]["lr"] == 3e-4


@pytest.mark.parametrize("algorithm", [SmoothedPPO, SmoothedA2C])
def test_the_warm_up_trains_the_critic_and_nothing_else(clone: BC, algorithm: Any) -> None:
    arguments = PPO_ARGUMENTS if algorithm is SmoothedPPO else {"n_steps": 64, "seed": 0, "device": "cpu"}
    model = algorithm.from_bc(clone, "CartPole-v1", value_warmup_steps=150, **arguments)
    actor, critic = actor_of(model.policy), model.policy.value_net.weight.clone()
    model.learn(192)  # 150 rounded up to whole rollouts of 64
    assert model.value_warmup_left == 0
    assert all(torch.equal(model.policy.state_dict()[name], tensor) for name, tensor in actor.items())
    assert not torch.equal(model.policy.value_net.weight, critic)
    assert model.logger.name_to_value["train/value_loss"] > 0
    assert model._n_updates == (6 if algorithm is SmoothedPPO else 3)
    model.learn(64, reset_num_timesteps=False)
    assert not torch.equal(model.policy.action_net.weight, actor["action_net.weight"])


def test_the_warm_up_fits_the_returns(clone: BC) -> None:
    arguments = {**PPO_ARGUMENTS, "n_steps": 256, "n_epochs": 10, "learning_rate": 3e-3}
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=10_000, gamma=0.9, **arguments)
    model.learn(256)
    before = model.logger.name_to_value["train/value_loss"]
    model.learn(1024, reset_num_timesteps=False)
    assert model.logger.name_to_value["train/value_loss"] < 0.5 * before


def test_a_shared_extractor_stays_the_actors() -> None:
    space = spaces.Discrete(4)
    agent = BC(
        "MultiInputPolicy",
        None,
        Demonstrations.from_arrays(
            {"image": np.zeros((8, 3, 36, 36), dtype=np.uint8)},
            np.arange(8) % 4,
            observation_space=spaces.Dict({"image": spaces.Box(0, 255, (3, 36, 36), np.uint8)}),
            action_space=space,
            episode_ends=[8],
        ),
        seed=0,
        device="cpu",
    ).learn(total_batches=2)

    class Pictures(Continuing):
        def __init__(self) -> None:
            super().__init__(space)
            self.observation_space = agent.observation_space

        def _observation(self) -> Any:
            return {"image": self.np_random.integers(0, 255, (3, 36, 36), dtype=np.uint8)}

    small = {**PPO_ARGUMENTS, "n_steps": 16, "batch_size": 8}
    model = SmoothedPPO.from_bc(agent, Pictures(), value_warmup_steps=16, **small)
    actor = actor_of(model.policy)
    assert any(name.startswith("features_extractor.") for name in actor)
    model.learn(16)
    assert all(torch.equal(model.policy.state_dict()[name], tensor) for name, tensor in actor.items())


def test_the_clone_is_the_reference_of_the_kl_term(clone: BC) -> None:
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=0, smoothing="lin_0.4", **PPO_ARGUMENTS)
    observations = torch.as_tensor(cartpole_v1().observations[:20])
    with torch.no_grad():
        assert model.policy.smoothed_distribution(observations).kl_reference().abs().max() < 1e-6
    model.learn(128)
    with torch.no_grad():
        ours = model.policy.smoothed_distribution(observations)
        theirs = clone.policy.get_distribution(observations).distribution
        mine = model.policy.get_distribution(observations).distribution
        expected = torch.distributions.kl_divergence(theirs, mine)
    assert expected.max() > 0
    torch.testing.assert_close(ours.kl_reference(), expected, rtol=1e-3, atol=1e-6)


def test_a_strong_kl_keeps_the_policy_near_the_clone(clone: BC) -> None:
    observations = torch.as_tensor(cartpole_v1().observations[:200])
    distances = []
    for smoothing in (0.0, 1.0):
        model = SmoothedPPO.from_bc(
            clone,
            "CartPole-v1",
            value_warmup_steps=0,
            smoothing=smoothing,
            **{**PPO_ARGUMENTS, "learning_rate": 1e-2, "n_epochs": 5},
        )
        assert (model.reference_policy is None) == (smoothing == 0.0)
        model.learn(512)
        with torch.no_grad():
            pair = [one.policy.get_distribution(observations).distribution for one in (clone, model)]
        distances.append(float(torch.distributions.kl_divergence(*pair).mean()))
    assert distances[1] < 0.25 * distances[0]


def test_a_box_and_components() -> None:
    box = spaces.Box(-1.0, 1.0, (2,))
    for space in (box, spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)):
        agent = BC("MlpPolicy", None, demonstrations(space), seed=0, device="cpu").learn(total_batches=3)
        model = SmoothedPPO.from_bc(agent, Continuing(space), value_warmup_steps=64, **PPO_ARGUMENTS)
        if space is box:
            assert torch.equal(model.policy.log_std, agent.policy.log_std)
        model.learn(128)
        assert model.logger.name_to_value["train/smoothing"] == 0.0
        assert not torch.equal(model.policy.action_net.weight, agent.policy.action_net.weight)


@pytest.mark.parametrize("policy", ["MlpPolicy", "MaskableMlpPolicy"])
def test_maskable_ppo_goes_on_from_a_clone_with_masks(policy: str) -> None:
    env = IdentityMaskedEnv(4)
    states = np.arange(12) % 4
    masks = np.array([[(action - state) % 4 <= state for action in range(4)] for state in states])
    data = Demonstrations.from_arrays(
        states,
        states,
        observation_space=env.observation_space,
        action_space=env.action_space,
        action_masks=masks,
        episode_ends=[12],
    )
    agent = BC(policy, None, data, seed=0, device="cpu").learn(total_batches=30)
    model = SmoothedMaskablePPO.from_bc(agent, env, value_warmup_steps=64, smoothing=0.1, **PPO_ARGUMENTS)
    for name, tensor in actor_of(agent.policy).items():
        assert torch.equal(model.policy.state_dict()[name], tensor), name
    model.learn(192)
    assert np.isfinite(model.logger.name_to_value["train/loss"])
    with pytest.raises(TypeError, match="SmoothedMaskablePPO") if "Maskable" in policy else pytest.raises(ValueError):
        SmoothedPPO.from_bc(agent, "CartPole-v1" if policy == "MlpPolicy" else env, **PPO_ARGUMENTS)


def test_what_does_not_fit_is_refused(clone: BC) -> None:
    with pytest.raises(TypeError, match=r"bc_agent must be an rlsmooth\.agents\.BC"):
        SmoothedPPO.from_bc(clone.policy, "CartPole-v1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="env has observation_space"):
        SmoothedPPO.from_bc(clone, "Acrobot-v1")
    with pytest.raises(ValueError, match="value_warmup_steps=-1"):
        SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=-1)
    with pytest.raises(TypeError, match="recurrent"):
        SmoothedRecurrentPPO.from_bc(clone, "CartPole-v1")
    with pytest.raises(ValueError, match="architecture"):
        SmoothedPPO.from_bc(clone, "CartPole-v1", policy_kwargs={"net_arch": [8]})
    with pytest.raises(ValueError, match="smoothing has reference='adjacent', but the clone is the reference"):
        SmoothedPPO.from_bc(clone, "CartPole-v1", smoothing=Smoothing(0.1, "adjacent"))
    shifted = spaces.Discrete(4, start=1)
    agent = BC("MlpPolicy", None, demonstrations(shifted), seed=0, device="cpu")
    with pytest.raises(ValueError, match="count from 0"):
        SmoothedPPO.from_bc(agent, Continuing(shifted))
    box = spaces.Box(-1.0, 1.0, (2,))
    agent = BC("MlpPolicy", None, demonstrations(box), action_bins=3, seed=0, device="cpu")
    with pytest.raises(ValueError, match="action_bins=3"):
        SmoothedPPO.from_bc(agent, Continuing(box))


def test_a_clone_with_a_class_of_its_own_needs_policy() -> None:
    class Mine(ActorCriticPolicy):
        pass

    class MineSmoothed(SmoothedActorCriticPolicy):
        pass

    agent = BC(Mine, None, cartpole_v1(), policy_kwargs={"net_arch": [16]}, seed=0, device="cpu")
    with pytest.raises(TypeError, match="Mine: give policy="):
        SmoothedPPO.from_bc(agent, "CartPole-v1", **PPO_ARGUMENTS)
    model = SmoothedPPO.from_bc(agent, "CartPole-v1", policy=MineSmoothed, **PPO_ARGUMENTS)
    assert type(model.policy) is MineSmoothed
    assert model.policy.mlp_extractor.policy_net[0].out_features == 16
