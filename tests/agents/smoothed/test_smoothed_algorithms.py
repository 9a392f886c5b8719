"""What the smoothed algorithms do while they are on: the loss they minimise, floors, tags, schedules, errors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.agents.smoothed.entropy import EntropySlot
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy, SmoothedPolicy
from rlsmooth.envs import IdentityEnv, IdentityMaskedEnv
from rlsmooth.targets import Smoothing

Model = OnPolicyAlgorithm
PPO_ARGUMENTS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}
ALL: list[tuple[type[Model], str, str, dict[str, Any]]] = [
    (SmoothedPPO, "MlpPolicy", "CartPole-v1", PPO_ARGUMENTS),
    (SmoothedPPO, "MlpPolicy", "Pendulum-v1", PPO_ARGUMENTS),
    (SmoothedA2C, "MlpPolicy", "CartPole-v1", {"n_steps": 16}),
    (SmoothedMaskablePPO, "MlpPolicy", "masked", PPO_ARGUMENTS),
    (
        SmoothedRecurrentPPO,
        "MlpLstmPolicy",
        "CartPole-v1",
        {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "policy_kwargs": {"lstm_hidden_size": 8}},
    ),
]


def build(algorithm: type[Model], policy: Any, env: str, arguments: dict[str, Any], **more: Any) -> Any:
    """A seeded model on the CPU."""
    made: Any = IdentityMaskedEnv(5) if env == "masked" else gym.make(env)
    return algorithm(policy, made, seed=1, device="cpu", **{**arguments, **more})


def ppo(**arguments: Any) -> Any:
    """SmoothedPPO on CartPole."""
    return build(SmoothedPPO, "MlpPolicy", "CartPole-v1", PPO_ARGUMENTS, **arguments)


class Rollouts(BaseCallback):
    """At each rollout's end: the floor in force, and by how much the ratio of its updates differs from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.floors: list[float] = []
        self.errors: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        buffer = model.rollout_buffer
        self.floors.append(model.policy.exploration_floor)
        errors = []
        for step in range(buffer.buffer_size):
            observations = torch.as_tensor(buffer.observations[step])
            actions = torch.as_tensor(buffer.actions[step])
            if isinstance(model.action_space, gym.spaces.Discrete):
                actions = actions.long().flatten()
            more: tuple[Any, ...] = ()
            if isinstance(model, SmoothedMaskablePPO):
                more = (torch.as_tensor(buffer.action_masks[step]),)
            if isinstance(model, SmoothedRecurrentPPO):
                hidden, cell = (
                    torch.as_tensor(states[step]) for states in (buffer.hidden_states_pi, buffer.cell_states_pi)
                )
                from sb3_contrib.common.recurrent.type_aliases import RNNStates

                critic = tuple(
                    torch.as_tensor(states[step]) for states in (buffer.hidden_states_vf, buffer.cell_states_vf)
                )
                more = (RNNStates((hidden, cell), critic), torch.as_tensor(buffer.episode_starts[step]))
            with torch.no_grad():
                log_prob = model.policy.evaluate_actions(observations, actions, *more)[1]
            errors.append(float((log_prob - torch.as_tensor(buffer.log_probs[step])).exp().sub(1).abs().max()))
        self.errors.append(max(errors))


@pytest.mark.parametrize(("algorithm", "policy", "env", "arguments"), ALL)
def test_the_ratio_is_one_before_the_first_update_of_each_rollout(
    algorithm: type[Model], policy: str, env: str, arguments: dict[str, Any]
) -> None:
    model = build(algorithm, policy, env, arguments, smoothing=0.1, exploration_floor="lin_0.4")
    seen = Rollouts()
    steps = 4 * model.n_steps
    model.learn(steps, callback=seen)
    assert seen.floors == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert max(seen.errors) < 1e-5
    # The next rollout starts lower, but the updates of the last one had its floor.
    assert model.policy.exploration_floor == pytest.approx(0.1)
    assert model.logger.name_to_value["train/exploration_floor"] == pytest.approx(0.1)


def test_a_second_learn_starts_the_floor_anew() -> None:
    model, seen = ppo(exploration_floor="lin_0.2"), Rollouts()
    model.learn(128, callback=seen)
    model.learn(128, callback=seen)
    assert seen.floors == pytest.approx([0.2, 0.1, 0.2, 0.1])
    model.learn(128, callback=seen, reset_num_timesteps=False)  # steps 128 to 256 of 256
    assert seen.floors[4:] == pytest.approx([0.1, 0.05])


def test_a_callable_floor_and_one_of_the_policy() -> None:
    seen = Rollouts()
    ppo(exploration_floor=lambda progress: 0.3 * progress**2).learn(128, callback=seen)
    assert seen.floors == pytest.approx([0.3, 0.075])
    fixed = ppo(policy_kwargs={"exploration_floor": 0.25})
    assert fixed.learn(64).policy.exploration_floor == 0.25


@pytest.mark.parametrize(("algorithm", "policy", "env", "arguments"), ALL)
def test_entropy_loss_is_minus_the_mean_entropy_as_the_parent_records_it(
    algorithm: type[Model], policy: str, env: str, arguments: dict[str, Any]
) -> None:
    """With a coefficient too small to change any number, the tags must be the parent's."""
    parent = algorithm.__mro__[2]
    once = {**arguments, "learning_rate": 0.0}
    mine = build(algorithm, policy, env, once, smoothing=1e-12, ent_coef=0.01)
    mine.learn(mine.n_steps)
    its = build(parent, policy, env, once, ent_coef=0.01)
    its.learn(its.n_steps)
    recorded = mine.logger.name_to_value
    assert recorded["train/entropy_loss"] == pytest.approx(its.logger.name_to_value["train/entropy_loss"], rel=1e-5)
    for name in ("train/value_loss", "train/loss"):
        if name in its.logger.name_to_value:
            assert recorded[name] == pytest.approx(its.logger.name_to_value[name], rel=1e-4)


def test_the_loss_holds_both_terms_with_their_own_coefficients() -> None:
    """From the recorded parts, for one update on all rows: loss = policy - ent_coef·H + alpha·KL + vf_coef·value."""
    model = ppo(smoothing=0.3, ent_coef=0.2, vf_coef=0.5, batch_size=64, n_epochs=1)
    model.learn(64)
    tags = model.logger.name_to_value
    entropy = torch.tensor(-tags["train/entropy_loss"])
    assert entropy == pytest.approx(tags["train/policy_entropy"], rel=1e-5)
    expected = (
        tags["train/policy_gradient_loss"]
        + 0.2 * tags["train/entropy_loss"]
        + 0.3 * tags["train/kl_uniform"]
        + 0.5 * tags["train/value_loss"]
    )
    assert tags["train/loss"] == pytest.approx(expected, rel=1e-4)
    assert tags["train/kl_reference"] == pytest.approx(tags["train/kl_uniform"], rel=1e-5)


def test_learning_ends_at_the_known_optimum_of_expected_reward_minus_alpha_times_kl() -> None:
    model = SmoothedA2C(
        "MlpPolicy",
        make_vec_env(lambda: IdentityEnv(3), n_envs=16),
        smoothing=0.5,
        n_steps=8,
        gamma=0.0,
        learning_rate=LinearSchedule(2e-2, 0.0, 1.0),
        use_rms_prop=False,
        seed=0,
        device="cpu",
    ).learn(15_000)
    optimum = IdentityEnv(3).soft_optimal_policy(0.5, direction="reference_to_policy")
    found = model.policy.action_probabilities(np.arange(3))
    np.testing.assert_allclose(found.numpy(), optimum, atol=0.05)


@pytest.mark.parametrize(("algorithm", "policy", "env", "arguments"), ALL)
def test_ent_coef_and_slot_are_put_back_even_when_train_raises(
    algorithm: type[Model], policy: str, env: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(algorithm, policy, env, arguments, smoothing=0.1, ent_coef=0.02)
    seen = []

    def interrupt(*_: Any, action_masks: Any = None) -> Any:
        seen.append((model.ent_coef, model.policy.slot))
        raise KeyboardInterrupt

    model.learn(model.n_steps)
    monkeypatch.setattr(model.policy, "evaluate_actions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.train()
    [(ent_coef, slot)] = seen
    assert ent_coef == 1.0
    assert isinstance(slot, EntropySlot)
    assert slot.entropy_coef == 0.02
    assert model.ent_coef == 0.02
    assert model.policy.slot is None
    assert "get" not in vars(model.rollout_buffer)


@pytest.mark.parametrize(("algorithm", "policy", "env", "arguments"), ALL)
def test_every_algorithm_records_the_tags_on_and_off(
    algorithm: type[Model], policy: str, env: str, arguments: dict[str, Any]
) -> None:
    for smoothing in (0.0, 0.1):
        model = build(algorithm, policy, env, arguments, smoothing=smoothing)
        model.learn(model.n_steps)
        tags = model.logger.name_to_value
        expected = {"policy_entropy", "kl_reference", "smoothing", "exploration_floor", "entropy_loss", "n_updates"}
        if env != "Pendulum-v1":
            expected |= {"entropy_frac", "kl_uniform"}
        assert {f"train/{name}" for name in expected} <= tags.keys()
        assert tags["train/smoothing"] == smoothing


def test_a2c_measures_each_500_steps_only() -> None:
    model = build(SmoothedA2C, "MlpPolicy", "CartPole-v1", {"n_steps": 50})
    measured = []

    class Seen(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if "train/policy_entropy" in model.logger.name_to_value:
                measured.append(self.num_timesteps - 50)
            model.logger.name_to_value.clear()

    model.learn(1200, callback=Seen(), log_interval=None)
    assert measured == [50, 550, 1050]


def test_smoothing_follows_its_schedule() -> None:
    alphas = []

    class Seen(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            alphas.append(model.logger.name_to_value.get("train/smoothing"))

    model = ppo(smoothing="lin_0.4")
    model.learn(256, callback=Seen(), log_interval=None)
    alphas.append(model.logger.name_to_value["train/smoothing"])
    assert alphas[0] is None
    assert alphas[1:] == pytest.approx([0.3, 0.2, 0.1, 0.0])  # after a rollout, as SB3's own schedules


def test_the_reference_of_a_smoothing_is_the_policys() -> None:
    model = ppo(smoothing=Smoothing(0.1, reference=torch.tensor([0.9, 0.1])))
    [recipe] = model.policy.references
    assert torch.equal(recipe.reference, torch.tensor([0.9, 0.1]))
    assert "reference" not in model.policy_kwargs
    same = ppo(
        smoothing=Smoothing("lin_0.1", reference="adjacent"),
        policy_kwargs={"reference": Smoothing(0.3, reference="adjacent")},
    )
    assert same.policy.references[0].reference == "adjacent"
    number = ppo(smoothing=0.1, policy_kwargs={"reference": Smoothing(alpha=None, reference="binomial")})
    assert number.policy.references[0].alpha is None
    for one in (model, same, number):
        one.learn(64)


def test_a_prior_draws_the_policy_towards_it() -> None:
    towards = Smoothing(1.0, reference=torch.tensor([0.9, 0.1]))
    model = ppo(smoothing=towards, learning_rate=3e-3, normalize_advantage=False, gamma=0.0, n_epochs=5)
    model.learn(1000)
    observations = model.rollout_buffer.observations.reshape(-1, 4)
    assert model.policy.action_probabilities(observations)[:, 0].mean() == pytest.approx(0.9, abs=0.1)


def test_a_callback_may_stop_a_rollout_early() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 100

    model = ppo(smoothing=0.1, exploration_floor="lin_0.1", target_entropy_frac=None)
    model.learn(1000, callback=Stop())
    assert model.num_timesteps == 100
    assert model.policy.slot is None
    assert model.learn(128).num_timesteps == 128


class PlainPolicy(ActorCriticPolicy):
    """One that knows nothing of slots."""


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"smoothing": -0.1}, ValueError, "smoothing"),
        ({"smoothing": "lin"}, ValueError, "lin_0.1"),
        ({"smoothing": None}, TypeError, "smoothing"),
        ({"smoothing": Smoothing(alpha=None, reference="binomial")}, ValueError, "alpha=None"),
        ({"smoothing": Smoothing(alpha=torch.tensor([0.1, 0.2]))}, ValueError, "one number"),
        ({"exploration_floor": 1.5}, ValueError, "exploration_floor"),
        ({"exploration_floor": "lin_2"}, ValueError, "exploration_floor"),
        ({"exploration_floor": "0.1"}, ValueError, "exploration_floor='0.1'"),
        ({"exploration_floor": None}, TypeError, "exploration_floor"),
        (
            {"exploration_floor": 0.1, "policy_kwargs": {"exploration_floor": 0.2}},
            ValueError,
            "policy_kwargs\\['exploration_floor'\\]=0.2",
        ),
        (
            {"smoothing": Smoothing(0.1, "adjacent"), "policy_kwargs": {"reference": "binomial"}},
            ValueError,
            "policy_kwargs\\['reference'\\]='binomial'",
        ),
        ({"policy": PlainPolicy, "smoothing": 0.1}, TypeError, "PlainPolicy can't be used with smoothing"),
        ({"policy": PlainPolicy, "exploration_floor": 0.1}, TypeError, "exploration_floor"),
        ({"policy": PlainPolicy, "target_entropy_frac": 0.5}, TypeError, "PlainPolicy"),
        ({"target_entropy_frac": 0.5, "target_entropy_nats": 0.5}, ValueError, "choose one"),
        ({"target_entropy_frac": 1.1}, ValueError, "target_entropy_frac"),
        ({"target_entropy_frac": 0.0}, ValueError, "target_entropy_frac"),
        ({"target_entropy_nats": 0.7}, ValueError, "0.6931 nats"),
        ({"target_entropy_nats": "high"}, TypeError, "target_entropy_nats"),
        ({"target_entropy_frac": 0.5, "smoothing": "lin_0.1"}, ValueError, "schedule"),
        (
            {"target_entropy_frac": 0.5, "smoothing": Smoothing(0.1, torch.tensor([0.99, 0.01]))},
            ValueError,
            "exceeds the entropy of the reference, 0.056 nats",
        ),
        ({"env": "Pendulum-v1", "target_entropy_frac": 0.5}, ValueError, "target_entropy_nats"),
        ({"env": "Pendulum-v1", "target_entropy_nats": 2.2}, ValueError, "2.112 nats"),
        ({"env": "Pendulum-v1", "use_sde": True, "exploration_floor": 0.1}, ValueError, "gSDE"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"policy": "MlpPolicy", "env": "CartPole-v1", **arguments}
    with pytest.raises(error, match=message):
        build(SmoothedPPO, given.pop("policy"), given.pop("env"), PPO_ARGUMENTS, **given)


def test_a_schedule_that_gives_nonsense_is_told() -> None:
    with pytest.raises(ValueError, match=r"exploration_floor, a callable, gave 2\.0 at progress 1"):
        ppo(exploration_floor=lambda progress: 2.0 * progress).learn(64)
    with pytest.raises(ValueError, match="smoothing"):
        ppo(smoothing=Smoothing(lambda progress: -progress)).learn(256)


class OwnPolicy(SmoothedPolicy, ActorCriticPolicy):
    """As a user makes one."""


class OwnEvaluation(SmoothedActorCriticPolicy):
    """One whose loss goes past the slot."""

    def evaluate_actions(self, obs: Any, actions: Any, *more: Any, **named: Any) -> Any:
        """A copy of SB3's older code."""
        found = self.get_distribution(obs)
        return self.predict_values(obs), found.log_prob(actions), found.entropy()


def test_a_policy_of_ones_own_carries_the_slot_or_is_told() -> None:
    own = build(SmoothedPPO, OwnPolicy, "CartPole-v1", PPO_ARGUMENTS, smoothing=0.1).learn(64)
    ours = ppo(smoothing=0.1).learn(64)
    assert all(map(torch.equal, own.policy.parameters(), ours.policy.parameters()))
    with pytest.raises(TypeError, match=r"OwnEvaluation can't be used with smoothing.*super\(\)\.evaluate_actions"):
        build(SmoothedPPO, OwnEvaluation, "CartPole-v1", PPO_ARGUMENTS, smoothing=0.1).learn(64)


def test_arguments_may_be_changed_between_two_learns() -> None:
    model = ppo(exploration_floor=0.2).learn(64)
    model.exploration_floor, model.smoothing = 0.0, lambda progress: 0.5
    model.learn(64)
    assert (model.policy.exploration_floor, model.alpha) == (0.0, 0.5)
    model.smoothing = 0.25
    assert model.learn(64).alpha == 0.25
    plain = build(SmoothedPPO, PlainPolicy, "CartPole-v1", PPO_ARGUMENTS)
    plain.smoothing = 0.1
    with pytest.raises(TypeError, match="PlainPolicy can't be used with smoothing"):
        plain.learn(64)


def test_a_callable_is_a_schedule_of_smoothing() -> None:
    assert ppo(smoothing=lambda progress: 0.1 * progress).alpha == 0.1
    assert ppo(smoothing=ConstantSchedule(0.3)).alpha == 0.3


class NothingLegal(IdentityMaskedEnv):
    """Its masks forget to allow anything."""

    def action_masks(self) -> Any:
        """No action."""
        return np.zeros_like(super().action_masks())


def test_a_mask_that_allows_nothing_is_told_where_it_has_no_answer() -> None:
    env = NothingLegal(4)
    assert SmoothedMaskablePPO("MlpPolicy", env, device="cpu", **PPO_ARGUMENTS).learn(64).num_timesteps == 64
    for on in ({"smoothing": 0.1}, {"exploration_floor": 0.1}):
        with pytest.raises(ValueError, match="action_masks allows nothing in row 0"):
            SmoothedMaskablePPO("MlpPolicy", env, device="cpu", **PPO_ARGUMENTS, **on).learn(64)
