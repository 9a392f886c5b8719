"""With everything off, our algorithms are their parents bit for bit; SB3's own save and load keep what they add."""

from __future__ import annotations

import io
from pathlib import Path
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

from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.data import cartpole_v1
from rlsmooth.envs import IdentityMaskedEnv, IdentityMaskedMultiDiscreteEnv
from rlsmooth.targets import Smoothing, Tree
from support import assert_equal

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


@pytest.mark.parametrize(("ours", "parent", "policy", "env", "arguments"), CASES)
def test_off_is_the_parent_bit_for_bit(
    ours: type[OnPolicyAlgorithm], parent: type[OnPolicyAlgorithm], policy: str, env: str, arguments: dict[str, Any]
) -> None:
    mine, its = (trained(algorithm, policy, env, 192, **arguments) for algorithm in (ours, parent))
    assert_equal(state_of(mine), state_of(its))
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
    ours: type[OnPolicyAlgorithm], parent: type[OnPolicyAlgorithm], policy: str, env: str, arguments: dict[str, Any]
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
    assert_equal(*map(state_of, models))


def test_off_takes_any_actor_critic_policy() -> None:
    class MyPolicy(ActorCriticPolicy):
        pass

    models = [trained(one, MyPolicy, "CartPole-v1", 128, **PPO_ARGUMENTS) for one in (SmoothedPPO, PPO)]
    assert type(models[0].policy) is MyPolicy
    assert_equal(*map(state_of, models))


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
    assert_equal(*map(state_of, models))
    assert "train/policy_entropy" not in models[0].logger.name_to_value


# ---- SB3's own save and load
SAVED_ARGUMENTS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}
ALL: list[tuple[type[OnPolicyAlgorithm], str, Any, dict[str, Any]]] = [
    (SmoothedPPO, "MlpPolicy", "CartPole-v1", SAVED_ARGUMENTS),
    (SmoothedA2C, "MlpPolicy", "CartPole-v1", {"n_steps": 16}),
    (SmoothedMaskablePPO, "MlpPolicy", "masked", SAVED_ARGUMENTS),
    (
        SmoothedRecurrentPPO,
        "MlpLstmPolicy",
        "CartPole-v1",
        {"n_steps": 32, "batch_size": 16, "policy_kwargs": {"lstm_hidden_size": 8}},
    ),
]


def make_env(name: str) -> gym.Env[Any, Any]:
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
    model: Any = algorithm(policy, make_env(env), seed=0, device="cpu", **arguments, **extra)
    model.learn(3 * model.n_steps)
    loaded = saved_and_loaded(model, env=make_env(env))
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
        model = SmoothedPPO("MlpPolicy", env, smoothing=smoothing, device="cpu", **SAVED_ARGUMENTS).learn(64)
        loaded = saved_and_loaded(model)
        assert loaded.smoothing.alpha_at(0.5) == model.smoothing.alpha_at(0.5)
        observation = model.rollout_buffer.observations[0] * 1.0
        tensor, _ = model.policy.obs_to_tensor(observation)
        with torch.no_grad():
            theirs, ours = (one.policy.smoothed_distribution(tensor).kl_reference() for one in (model, loaded))
        assert torch.equal(theirs, ours)


def test_load_takes_other_arguments_and_checks_them() -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", smoothing=0.1, device="cpu", **SAVED_ARGUMENTS)
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
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **SAVED_ARGUMENTS).learn(64)
    model.save(tmp_path / "model")
    parent = PPO.load(tmp_path / "model", device="cpu")
    observation = np.full(4, 0.1, dtype=np.float32)
    assert parent.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]
    parent.save(tmp_path / "parent")
    assert not SmoothedPPO.load(tmp_path / "parent", device="cpu").is_smoothed


def test_excluded_attributes_are_left_out() -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", smoothing=0.1, device="cpu", **SAVED_ARGUMENTS)
    file = io.BytesIO()
    model.save(file, exclude=["smoothing"])
    file.seek(0)
    assert not SmoothedPPO.load(file, device="cpu").is_smoothed


def test_the_reference_policy_and_the_rest_of_the_warm_up_come_back() -> None:
    clone = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=20)
    model = SmoothedPPO.from_bc(
        clone, "CartPole-v1", value_warmup_steps=128, exploration_floor=0.1, seed=0, device="cpu", **SAVED_ARGUMENTS
    )
    for steps, left in ((64, 64), (128, 0)):
        model.learn(steps, reset_num_timesteps=False)
        loaded = saved_and_loaded(model, env=gym.make("CartPole-v1"))
        assert loaded.value_warmup_left == left
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
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", target_entropy_frac=0.9, seed=0, device="cpu", **SAVED_ARGUMENTS)
    model.learn(64)
    loaded = saved_and_loaded(model, env=gym.make("CartPole-v1"), target_entropy_frac=None)
    assert loaded.entropy_target is None
    assert loaded.alpha == 0
    assert not loaded.learn(64).is_smoothed


def test_a_floor_given_to_load_is_in_force_at_once() -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", exploration_floor=0.2, seed=0, device="cpu", **SAVED_ARGUMENTS)
    model.learn(64)
    assert saved_and_loaded(model, exploration_floor=0.5).policy.exploration_floor == 0.5
    assert saved_and_loaded(model, exploration_floor=0.0).policy.exploration_floor == 0.0


def test_a_kickstarted_model_can_go_on_without_its_clone() -> None:
    clone = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=20)
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=0, seed=0, device="cpu", **SAVED_ARGUMENTS)
    env = gym.make("CartPole-v1")
    loaded = saved_and_loaded(model, env=env, smoothing=0.0, ent_coef=0.01)
    assert not loaded.policy.is_regularised
    assert saved_and_loaded(loaded, env=env, smoothing=0.1).policy.reference_policy is not None
