"""Smoothed algorithms with everything off, saved by SB3's own means, and started from a clone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from rlsmooth.agents.acting import CRITIC
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy
from rlsmooth.data import Demonstrations, cartpole_v1
from rlsmooth.envs import IdentityMaskedEnv, IdentityMaskedMultiDiscreteEnv
from rlsmooth.targets import Smoothing, Tree
from support import FLAT, InTwoParts, assert_equal, assert_raises, recorded, same_parameters, samples

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


def make(name: str) -> gym.Env[Any, Any]:
    if name == "masked":
        return IdentityMaskedEnv(5)
    if name == "masked components":
        return IdentityMaskedMultiDiscreteEnv((3, 4))
    if name == "dict":
        return InTwoParts(gym.make("CartPole-v1"))
    return gym.make(name)


def trained(algorithm: type[OnPolicyAlgorithm], policy: Any, env: str, steps: int, **arguments: Any) -> Any:
    return algorithm(policy, make(env), seed=3, device="cpu", **arguments).learn(steps)


def state_of(model: OnPolicyAlgorithm) -> dict[str, torch.Tensor]:
    """Parameters, and what the optimiser keeps of them."""
    found = dict(model.policy.state_dict())
    for place, entry in model.policy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{place}.{name}": value for name, value in entry.items()}
    return found


@pytest.mark.parametrize(("ours", "parent", "policy", "env", "arguments"), CASES)
def test_off_is_the_parent_bit_for_bit(ours: Any, parent: Any, policy: str, env: str, arguments: Any) -> None:
    mine, its = (trained(algorithm, policy, env, 192, **arguments) for algorithm in (ours, parent))
    assert_equal(state_of(mine), state_of(its))
    untrained = parent(policy, make(env), seed=3, device="cpu", **arguments)
    assert not same_parameters(untrained, its)
    # The parent's own tags, too, have its numbers.
    for name, value in its.logger.name_to_value.items():
        if not name.startswith("time/"):
            np.testing.assert_equal(mine.logger.name_to_value[name], value, err_msg=name)


ONE_EACH = [CASES[place] for place in (0, 1, 5, 7, 9)]


@pytest.mark.parametrize(("ours", "parent", "policy", "env", "arguments"), ONE_EACH)
def test_on_differs_from_the_parent(ours: Any, parent: Any, policy: str, env: str, arguments: dict[str, Any]) -> None:
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


def test_the_names_of_policies_stand_for_smoothed_ones() -> None:
    assert type(SmoothedPPO("MlpPolicy", "CartPole-v1").policy).__name__ == "SmoothedActorCriticPolicy"
    assert SmoothedA2C.policy_aliases.keys() == A2C.policy_aliases.keys()
    assert SmoothedMaskablePPO.policy_aliases.keys() == MaskablePPO.policy_aliases.keys()
    assert SmoothedRecurrentPPO.policy_aliases.keys() == RecurrentPPO.policy_aliases.keys()
    for ours in (SmoothedPPO, SmoothedA2C, SmoothedMaskablePPO, SmoothedRecurrentPPO):
        parent = ours.__mro__[3]
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
    assert type(models[0].policy) is OwnPolicy
    assert_equal(*map(state_of, models))
    assert "train/policy_entropy" not in models[0].logger.name_to_value


# ---- SB3's own save and load
SAVED_ARGUMENTS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}
ALL: list[tuple[type[OnPolicyAlgorithm], str, Any, dict[str, Any]]] = [
    (SmoothedPPO, "MlpPolicy", "CartPole-v1", SAVED_ARGUMENTS),
    (SmoothedA2C, "MlpPolicy", "CartPole-v1", {"n_steps": 16}),
    (SmoothedMaskablePPO, "MlpPolicy", "masked", SAVED_ARGUMENTS),
    (SmoothedRecurrentPPO, "MlpLstmPolicy", "CartPole-v1", {"n_steps": 32, "batch_size": 16, **LSTM}),
]


def saved_and_loaded(model: Any, *, exclude: tuple[str, ...] = (), **overrides: Any) -> Any:
    """Through SB3's zip in memory."""
    file = io.BytesIO()
    model.save(file, exclude=exclude)
    file.seek(0)
    return type(model).load(file, device="cpu", **overrides)


@pytest.mark.parametrize(("algorithm", "policy", "env", "arguments"), ALL)
@pytest.mark.parametrize("on", [False, True])
def test_every_algorithm_comes_back_and_trains_on(
    algorithm: type[OnPolicyAlgorithm], policy: str, env: str, arguments: dict[str, Any], on: bool
) -> None:
    extra = {"smoothing": 0.02, "target_entropy_frac": 0.9, "exploration_floor": "lin_0.2"} if on else {}
    model: Any = algorithm(policy, make(env), seed=0, device="cpu", **arguments, **extra)
    model.learn(3 * model.n_steps)
    loaded = saved_and_loaded(model, env=make(env))
    assert same_parameters(loaded, model)
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
    for smoothing, env in (
        ("lin_0.1", "CartPole-v1"),
        (Smoothing(lambda progress: 0.1 * progress**2, reference=torch.tensor([0.9, 0.1])), "CartPole-v1"),
        (Smoothing("lin_0.1", reference="adjacent"), "CartPole-v1"),
        (Smoothing(0.1, reference=tree, decay=2.0), IdentityMaskedEnv(3)),
    ):
        model = SmoothedPPO("MlpPolicy", env, smoothing=smoothing, device="cpu", **SAVED_ARGUMENTS).learn(64)
        loaded = saved_and_loaded(model)
        assert loaded.smoothing.alpha_at(0.5) == model.smoothing.alpha_at(0.5)
        observation = model.rollout_buffer.observations[0] * 1.0
        tensor, _ = model.policy.obs_to_tensor(observation)
        with torch.no_grad():
            theirs, ours = (one.policy.smoothed_distribution(tensor).kl_reference() for one in (model, loaded))
        assert torch.equal(theirs, ours)


def test_load_takes_other_arguments_and_checks_them() -> None:
    given: dict[str, Any] = {"smoothing": 0.1, "exploration_floor": 0.2, "seed": 0, "device": "cpu"}
    model, env = SmoothedPPO("MlpPolicy", "CartPole-v1", **given, **SAVED_ARGUMENTS).learn(64), gym.make("CartPole-v1")
    for smoothing, is_smoothed in ((0.0, False), ("lin_0.3", True)):
        assert saved_and_loaded(model, env=env, smoothing=smoothing).is_smoothed == is_smoothed
    assert_raises(ValueError, "smoothing", saved_and_loaded, model, smoothing=-1.0)
    assert not saved_and_loaded(model, exclude=("smoothing",)).is_smoothed
    for floor in (0.5, 0.0):
        assert saved_and_loaded(model, exploration_floor=floor).policy.exploration_floor == floor


def test_a_model_that_is_off_loads_as_its_parent_and_back(tmp_path: Path) -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **SAVED_ARGUMENTS).learn(64)
    model.save(tmp_path / "model")
    parent = PPO.load(tmp_path / "model", device="cpu")
    observation = np.full(4, 0.1, dtype=np.float32)
    assert parent.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]
    parent.save(tmp_path / "parent")
    assert not SmoothedPPO.load(tmp_path / "parent", device="cpu").is_smoothed


def test_the_reference_policy_and_the_rest_of_the_warm_up_come_back() -> None:
    clone = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=20)
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=128, exploration_floor=0.1, **CLONE_ARGUMENTS)
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


def test_a_kickstarted_model_can_go_on_without_its_clone() -> None:
    clone = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=20)
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=0, seed=0, device="cpu", **SAVED_ARGUMENTS)
    env = gym.make("CartPole-v1")
    loaded = saved_and_loaded(model, env=env, smoothing=0.0, ent_coef=0.01)
    assert not loaded.policy.is_regularised
    assert saved_and_loaded(loaded, env=env, smoothing=0.1).policy.reference_policy is not None


# ---- from a clone to reinforcement learning: weights, spaces, the critic's warm-up and KL to the clone
CLONE_ARGUMENTS: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def clone() -> BC:
    return BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=100)


def demonstrations(action_space: spaces.Space[Any], rows: int = 20) -> Demonstrations:
    """Random transitions of a Box of three numbers."""
    seen = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    return recorded(seen, samples(action_space, rows, 0), FLAT, action_space)


def actor_of(policy: Any) -> dict[str, torch.Tensor]:
    """Copies of all that is not the critic's."""
    return {name: tensor.clone() for name, tensor in policy.state_dict().items() if not name.startswith(CRITIC)}


class Continuing(gym.Env[Any, Any]):
    """Three random numbers, any action space, no end."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = FLAT, action_space

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
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", **CLONE_ARGUMENTS)
    assert type(model.policy) is SmoothedActorCriticPolicy
    for name, tensor in actor_of(clone.policy).items():
        assert torch.equal(model.policy.state_dict()[name], tensor), name
    observations = cartpole_v1().observations[:50]
    np.testing.assert_array_equal(*(one.predict(observations, deterministic=True)[0] for one in (model, clone)))
    # The optimiser is the algorithm's own, not the clone's.
    assert type(model.policy.optimizer) is torch.optim.Adam
    assert model.policy.optimizer.param_groups[0]["lr"] == 3e-4


@pytest.mark.parametrize("engine", ["torch", "numpy"])
@pytest.mark.parametrize("algorithm", [SmoothedPPO, SmoothedA2C, SmoothedRecurrentPPO])
def test_the_warm_up_trains_the_critic_and_nothing_else(clone: BC, algorithm: Any, engine: Any) -> None:
    arguments = {"n_steps": 64, "seed": 0, "device": "cpu"} if algorithm is SmoothedA2C else CLONE_ARGUMENTS
    if algorithm is SmoothedRecurrentPPO:
        if engine == "numpy":
            assert_raises(ValueError, "engine='numpy'", algorithm.from_bc, clone, "CartPole-v1", engine=engine)
            return
        arguments = {**arguments, "policy_kwargs": {"lstm_hidden_size": 8}}
    guarantee = {"min_entropy_frac": 0.3, "engine": engine}
    model = algorithm.from_bc(clone, "CartPole-v1", value_warmup_steps=150, **guarantee, **arguments)
    actor, critic = actor_of(model.policy), model.policy.value_net.weight.clone()
    model.learn(192)  # 150 rounded up to whole rollouts of 64
    assert model.value_warmup_left == 0
    assert all(torch.equal(model.policy.state_dict()[name], tensor) for name, tensor in actor.items())
    assert not torch.equal(model.policy.value_net.weight, critic)
    assert model.logger.name_to_value["train/value_loss"] > 0
    assert model._n_updates == (3 if algorithm is SmoothedA2C else 6)
    assert model.logger.name_to_value["train/entropy_frac_min"] > 0.3 - 1e-6
    model.learn(64, reset_num_timesteps=False)
    assert not torch.equal(model.policy.action_net.weight, actor["action_net.weight"])


@pytest.mark.parametrize(
    "memory", [{}, {"shared_lstm": True, "enable_critic_lstm": False}, {"n_lstm_layers": 2, "net_arch": []}], ids=str
)
@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))], ids=str)
def test_a_recurrent_policy_starts_as_the_clone_and_learns_what_to_remember(space: Any, memory: Any) -> None:
    layers = {"net_arch": memory["net_arch"]} if "net_arch" in memory else {}
    agent = BC("MlpPolicy", None, demonstrations(space), seed=0, device="cpu", policy_kwargs=layers)
    agent.learn(total_batches=20)
    given = {**CLONE_ARGUMENTS, "value_warmup_steps": 64, "policy_kwargs": {"lstm_hidden_size": 8, **memory}}
    model = SmoothedRecurrentPPO.from_bc(agent, Continuing(space), smoothing=0.3, **given)
    seen = torch.as_tensor(np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32))
    filled = torch.randn(2, memory.get("n_lstm_layers", 1), 4, 8)
    with torch.no_grad():  # whatever is remembered, and however long the sequences are
        states, starts = (filled[0], filled[1]), torch.tensor([1.0, 0.0, 1.0] * 4)
        ours, _ = model.policy.get_distribution(seen, states, starts)
        theirs = agent.policy.get_distribution(seen)  # type: ignore[operator]
        actions = theirs.get_actions()
        torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions), rtol=1e-5, atol=1e-5)
        assert float(model.policy.smoothed_distribution(seen).kl_reference().abs().max()) < 1e-5
    first = (
        model.policy.action_net
        if not model.policy.mlp_extractor.policy_net
        else model.policy.mlp_extractor.policy_net[0]
    )
    model.learn(64)
    assert not first.weight[:, 3:].any()
    kept = {name: tensor.clone() for name, tensor in model.reference_policy.state_dict().items()}
    model.learn(256, reset_num_timesteps=False)
    assert first.weight[:, 3:].any(dim=0).all()  # the memory is read now
    assert model.logger.name_to_value["train/kl_reference"] > 0
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.reference_policy.state_dict().items())


def test_the_warm_up_fits_the_returns(clone: BC) -> None:
    arguments = {**CLONE_ARGUMENTS, "n_steps": 256, "n_epochs": 10, "learning_rate": 3e-3}
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=10_000, gamma=0.9, **arguments)
    model.learn(256)
    before = model.logger.name_to_value["train/value_loss"]
    model.learn(1024, reset_num_timesteps=False)
    assert model.logger.name_to_value["train/value_loss"] < 0.5 * before


def test_a_shared_extractor_stays_the_actors() -> None:
    space = spaces.Discrete(4)
    images = {"image": np.zeros((8, 3, 36, 36), dtype=np.uint8)}
    data = recorded(images, np.arange(8) % 4, spaces.Dict({"image": spaces.Box(0, 255, (3, 36, 36), np.uint8)}), space)
    agent = BC("MultiInputPolicy", None, data, seed=0, device="cpu").learn(total_batches=2)

    class Pictures(Continuing):
        def __init__(self) -> None:
            super().__init__(space)
            self.observation_space = agent.observation_space

        def _observation(self) -> Any:
            return {"image": self.np_random.integers(0, 255, (3, 36, 36), dtype=np.uint8)}

    small = {**CLONE_ARGUMENTS, "n_steps": 16, "batch_size": 8}
    model = SmoothedPPO.from_bc(agent, Pictures(), value_warmup_steps=16, **small)
    actor = actor_of(model.policy)
    assert any(name.startswith("features_extractor.") for name in actor)
    model.learn(16)
    assert all(torch.equal(model.policy.state_dict()[name], tensor) for name, tensor in actor.items())


def test_the_clone_is_the_reference_of_the_kl_term(clone: BC) -> None:
    model = SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=0, smoothing="lin_0.4", **CLONE_ARGUMENTS)
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
        given = {**CLONE_ARGUMENTS, "learning_rate": 1e-2, "n_epochs": 5, "smoothing": smoothing}
        model = SmoothedPPO.from_bc(clone, "CartPole-v1", value_warmup_steps=0, **given)
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
        model = SmoothedPPO.from_bc(agent, Continuing(space), value_warmup_steps=64, **CLONE_ARGUMENTS)
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
    data = recorded(states, states, env.observation_space, env.action_space, action_masks=masks)
    agent = BC(policy, None, data, seed=0, device="cpu").learn(total_batches=30)
    model = SmoothedMaskablePPO.from_bc(agent, env, value_warmup_steps=64, smoothing=0.1, **CLONE_ARGUMENTS)
    for name, tensor in actor_of(agent.policy).items():
        assert torch.equal(model.policy.state_dict()[name], tensor), name
    model.learn(192)
    assert np.isfinite(model.logger.name_to_value["train/loss"])
    with pytest.raises(TypeError, match="SmoothedMaskablePPO") if "Maskable" in policy else pytest.raises(ValueError):
        SmoothedPPO.from_bc(agent, "CartPole-v1" if policy == "MlpPolicy" else env, **CLONE_ARGUMENTS)
    assert_raises(TypeError, "uses action masks", SmoothedRecurrentPPO.from_bc, agent, env)


def test_what_does_not_fit_is_told(clone: BC) -> None:
    with pytest.raises(TypeError, match=r"bc_agent must be an rlsmooth\.agents\.BC"):
        SmoothedPPO.from_bc(clone.policy, "CartPole-v1")  # type: ignore[arg-type]
    assert_raises(ValueError, "env has observation_space", SmoothedPPO.from_bc, clone, "Acrobot-v1")
    assert_raises(ValueError, "value_warmup_steps=-1", SmoothedPPO.from_bc, clone, "CartPole-v1", value_warmup_steps=-1)
    for arguments, message in (
        ({"skip_connection": False}, "another architecture|no layers of the clone's"),
        ({"enable_critic_lstm": False}, "skip_connection needs an LSTM"),
    ):
        assert_raises(ValueError, message, SmoothedRecurrentPPO.from_bc, clone, "CartPole-v1", policy_kwargs=arguments)
    with pytest.raises(ValueError, match="architecture"):
        SmoothedPPO.from_bc(clone, "CartPole-v1", policy_kwargs={"net_arch": [8]})
    with pytest.raises(ValueError, match="smoothing has reference='adjacent', but the clone is the reference"):
        SmoothedPPO.from_bc(clone, "CartPole-v1", smoothing=Smoothing(0.1, "adjacent"))
    box = spaces.Box(-1.0, 1.0, (2,))
    agent = BC("MlpPolicy", None, demonstrations(box), action_bins=3, seed=0, device="cpu")
    assert_raises(ValueError, "action_bins=3", SmoothedPPO.from_bc, agent, Continuing(box))


def test_a_clone_with_a_class_of_its_own_needs_policy() -> None:
    class Mine(ActorCriticPolicy):
        pass

    class MineSmoothed(SmoothedActorCriticPolicy):
        pass

    agent = BC(Mine, None, cartpole_v1(), policy_kwargs={"net_arch": [16]}, seed=0, device="cpu")
    assert_raises(TypeError, "Mine: give policy=", SmoothedPPO.from_bc, agent, "CartPole-v1", **CLONE_ARGUMENTS)
    model = SmoothedPPO.from_bc(agent, "CartPole-v1", policy=MineSmoothed, **CLONE_ARGUMENTS)
    assert type(model.policy) is MineSmoothed
    assert model.policy.mlp_extractor.policy_net[0].out_features == 16
