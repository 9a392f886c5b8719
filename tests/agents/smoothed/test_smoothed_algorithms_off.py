"""With everything off, our algorithms are their parents: every parameter and optimiser state, bit for bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.envs import IdentityMaskedEnv, IdentityMaskedMultiDiscreteEnv

PPO_ARGUMENTS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "ent_coef": 0.01}
LSTM_ARGUMENTS = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "ent_coef": 0.01}
LSTM = {"policy_kwargs": {"lstm_hidden_size": 8}}
CASES = [
    (SmoothedPPO, PPO, "MlpPolicy", "CartPole-v1", PPO_ARGUMENTS),
    (SmoothedPPO, PPO, "MlpPolicy", "Pendulum-v1", PPO_ARGUMENTS),
    (SmoothedPPO, PPO, "MlpPolicy", "Pendulum-v1", {**PPO_ARGUMENTS, "use_sde": True, "sde_sample_freq": 4}),
    (SmoothedPPO, PPO, "MultiInputPolicy", "dict", PPO_ARGUMENTS),
    (SmoothedPPO, PPO, "MlpPolicy", "rlsmooth/IdentityMultiBinary-v0", PPO_ARGUMENTS),
    (SmoothedA2C, A2C, "MlpPolicy", "CartPole-v1", {"ent_coef": 0.01}),
    (SmoothedA2C, A2C, "MlpPolicy", "Pendulum-v1", {"ent_coef": 0.01}),
    (SmoothedMaskablePPO, MaskablePPO, "MlpPolicy", "masked", PPO_ARGUMENTS),
    (SmoothedMaskablePPO, MaskablePPO, "MlpPolicy", "masked components", PPO_ARGUMENTS),
    (SmoothedRecurrentPPO, RecurrentPPO, "MlpLstmPolicy", "CartPole-v1", {**LSTM_ARGUMENTS, **LSTM}),
    (SmoothedRecurrentPPO, RecurrentPPO, "MlpLstmPolicy", "Pendulum-v1", {**LSTM_ARGUMENTS, **LSTM}),
]


class DictObservations(gym.ObservationWrapper[Any, Any, Any]):
    """The observation as a part of a Dict."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Dict({"state": env.observation_space})

    def observation(self, observation: Any) -> Any:
        return {"state": observation}


def make(name: str) -> gym.Env[Any, Any]:
    """The environment of a case."""
    if name == "masked":
        return IdentityMaskedEnv(5)
    if name == "masked components":
        return IdentityMaskedMultiDiscreteEnv((3, 4))
    if name == "dict":
        return DictObservations(gym.make("CartPole-v1"))
    return gym.make(name)


def trained(algorithm: type[OnPolicyAlgorithm], policy: Any, env: str, steps: int, **arguments: Any) -> Any:
    """A model after a short seeded run."""
    return algorithm(policy, make(env), seed=3, device="cpu", **arguments).learn(steps)


def state_of(model: OnPolicyAlgorithm) -> dict[str, torch.Tensor]:
    """Parameters, and what the optimiser keeps of them."""
    found = dict(model.policy.state_dict())
    for place, entry in model.policy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{place}.{name}": value for name, value in entry.items()}
    return found


def assert_same(ours: OnPolicyAlgorithm, theirs: OnPolicyAlgorithm) -> None:
    """Fail unless every tensor is the same, bit for bit."""
    mine, its = state_of(ours), state_of(theirs)
    assert mine.keys() == its.keys()
    for name, tensor in its.items():
        assert torch.equal(mine[name], tensor), name


@pytest.mark.parametrize(("ours", "parent", "policy", "env", "arguments"), CASES)
def test_off_is_the_parent_bit_for_bit(
    ours: type[OnPolicyAlgorithm],
    parent: type[OnPolicyAlgorithm],
    policy: str,
    env: str,
    arguments: dict[str, Any],
) -> None:
    mine, its = (trained(algorithm, policy, env, 192, **arguments) for algorithm in (ours, parent))
    assert_same(mine, its)
    untrained = parent(policy, make(env), seed=3, device="cpu", **arguments)
    assert any(
        not torch.equal(tensor, its.policy.state_dict()[name]) for name, tensor in untrained.policy.state_dict().items()
    )
    # The parent's own tags, too, have its numbers.
    for name, value in its.logger.name_to_value.items():
        if not name.startswith("time/"):
            np.testing.assert_equal(mine.logger.name_to_value[name], value, err_msg=name)


ONE_EACH = [CASES[place] for place in (0, 1, 5, 7, 9)]


@pytest.mark.parametrize(("ours", "parent", "policy", "env", "arguments"), ONE_EACH)
def test_on_differs_from_the_parent(
    ours: type[OnPolicyAlgorithm],
    parent: type[OnPolicyAlgorithm],
    policy: str,
    env: str,
    arguments: dict[str, Any],
) -> None:
    mine = trained(ours, policy, env, 128, smoothing=0.1, **arguments)
    its = trained(parent, policy, env, 128, **arguments)
    assert not torch.equal(mine.policy.action_net.weight, its.policy.action_net.weight)
    assert all(tensor.isfinite().all() for tensor in mine.policy.state_dict().values())


def test_off_stays_off_in_a_second_learn_and_after_set_env() -> None:
    models = []
    for algorithm in (SmoothedPPO, PPO):
        model = trained(algorithm, "MlpPolicy", "CartPole-v1", 128, **PPO_ARGUMENTS)
        model.learn(64, reset_num_timesteps=False)
        env = gym.make("CartPole-v1")
        env.reset(seed=5)
        model.set_env(env)
        models.append(model.learn(128))
    assert_same(*models)


def test_off_takes_any_actor_critic_policy() -> None:
    class MyPolicy(ActorCriticPolicy):
        pass

    models = [trained(one, MyPolicy, "CartPole-v1", 128, **PPO_ARGUMENTS) for one in (SmoothedPPO, PPO)]
    assert type(models[0].policy) is MyPolicy
    assert_same(*models)


def test_the_names_of_policies_stand_for_smoothed_ones() -> None:
    assert type(SmoothedPPO("MlpPolicy", "CartPole-v1").policy).__name__ == "SmoothedActorCriticPolicy"
    assert SmoothedA2C.policy_aliases.keys() == A2C.policy_aliases.keys()
    assert SmoothedMaskablePPO.policy_aliases.keys() == MaskablePPO.policy_aliases.keys()
    assert SmoothedRecurrentPPO.policy_aliases.keys() == RecurrentPPO.policy_aliases.keys()
    for ours in (SmoothedPPO, SmoothedA2C, SmoothedMaskablePPO, SmoothedRecurrentPPO):
        parent = ours.__mro__[2]
        for name, policy in ours.policy_aliases.items():
            assert issubclass(policy, parent.policy_aliases[name])  # type: ignore[attr-defined]


def test_positional_arguments_are_the_parents() -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", 1e-4, 32, 16, 3)
    assert (model.learning_rate, model.n_steps, model.batch_size, model.n_epochs) == (1e-4, 32, 16, 3)


def test_the_parents_advice_against_a_gpu_is_given_too() -> None:
    for algorithm in (SmoothedPPO, PPO):
        model: Any = algorithm("MlpPolicy", "CartPole-v1", device="cpu")
        model.device = torch.device("meta")
        with pytest.warns(UserWarning, match="primarily intended to run on the CPU"):
            model._maybe_recommend_cpu()


def test_a_policy_with_a_distribution_of_its_own_trains_without_tags() -> None:
    class Own(CategoricalDistribution):
        def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
            return super().log_prob(actions)

    class OwnPolicy(ActorCriticPolicy):
        def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Own:
            found = Own(2)
            found.proba_distribution(self.action_net(latent_pi))
            return found

        def get_distribution(self, obs: Any) -> Any:
            raise TypeError("nobody can read this")

    models = [trained(one, OwnPolicy, "CartPole-v1", 128, **PPO_ARGUMENTS) for one in (SmoothedPPO, PPO)]
    assert_same(*models)
    assert "train/policy_entropy" not in models[0].logger.name_to_value
