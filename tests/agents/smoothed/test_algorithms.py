"""The smoothed algorithms while they are on: the loss they minimise, floors, tags, schedules, targets, errors."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.agents.smoothed.entropy import EntropyTarget, EntropyTerm, entropy_target_for
from rlsmooth.agents.smoothed.measures import measure_rollout
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy, SmoothedPolicy
from rlsmooth.envs import IdentityEnv, IdentityMaskedEnv
from rlsmooth.targets import Smoothing, Tree
from support import assert_raises, same_parameters
from trainers import LogProbsAgree

Model = OnPolicyAlgorithm
PPO_ARGUMENTS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2}
LSTM_ARGUMENTS = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "policy_kwargs": {"lstm_hidden_size": 8}}
ALL: list[tuple[type[Model], str, str, dict[str, Any]]] = [
    (SmoothedPPO, "MlpPolicy", "CartPole-v1", PPO_ARGUMENTS),
    (SmoothedPPO, "MlpPolicy", "Pendulum-v1", PPO_ARGUMENTS),
    (SmoothedA2C, "MlpPolicy", "CartPole-v1", {"n_steps": 16}),
    (SmoothedMaskablePPO, "MlpPolicy", "masked", PPO_ARGUMENTS),
    (SmoothedRecurrentPPO, "MlpLstmPolicy", "CartPole-v1", LSTM_ARGUMENTS),
]
of_each = pytest.mark.parametrize(("algorithm", "policy", "env", "arguments"), ALL)


def build(algorithm: type[Model], policy: Any, env: str, arguments: dict[str, Any], **more: Any) -> Any:
    made: Any = IdentityMaskedEnv(5) if env == "masked" else gym.make(env)
    return algorithm(policy, made, seed=1, device="cpu", **{**arguments, **more})


def ppo(**arguments: Any) -> Any:
    return build(SmoothedPPO, "MlpPolicy", "CartPole-v1", PPO_ARGUMENTS, **arguments)


@of_each
def test_the_ratio_is_one_before_the_first_update_of_each_rollout(
    algorithm: type[Model], policy: str, env: str, arguments: dict[str, Any]
) -> None:
    model = build(algorithm, policy, env, arguments, smoothing=0.1, exploration_floor="lin_0.4")
    seen = LogProbsAgree()
    steps = 4 * model.n_steps
    model.learn(steps, callback=seen)
    assert seen.floors == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert max(seen.gaps) < 1e-5
    # The next rollout starts lower, but the updates of the last one had its floor.
    assert model.policy.exploration_floor == pytest.approx(0.1)
    assert model.logger.name_to_value["train/exploration_floor"] == pytest.approx(0.1)


def test_a_second_learn_starts_the_floor_anew() -> None:
    model, seen = ppo(exploration_floor="lin_0.2"), LogProbsAgree()
    model.learn(128, callback=seen)
    model.learn(128, callback=seen)
    assert seen.floors == pytest.approx([0.2, 0.1, 0.2, 0.1])
    model.learn(128, callback=seen, reset_num_timesteps=False)  # steps 128 to 256 of 256
    assert seen.floors[4:] == pytest.approx([0.1, 0.05])


def test_a_callable_floor_and_one_of_the_policy() -> None:
    seen = LogProbsAgree()
    ppo(exploration_floor=lambda progress: 0.3 * progress**2).learn(128, callback=seen)
    assert seen.floors == pytest.approx([0.3, 0.075])
    fixed = ppo(policy_kwargs={"exploration_floor": 0.25})
    assert fixed.learn(64).policy.exploration_floor == 0.25


@of_each
def test_entropy_loss_is_minus_the_mean_entropy_as_the_parent_records_it(
    algorithm: type[Model], policy: str, env: str, arguments: dict[str, Any]
) -> None:
    """With a coefficient too small to change any number, the tags must be the parent's."""
    parent = algorithm.__mro__[3]
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
    expected = tags["train/policy_gradient_loss"] + 0.2 * tags["train/entropy_loss"]
    expected += 0.3 * tags["train/kl_uniform"] + 0.5 * tags["train/value_loss"]
    assert tags["train/loss"] == pytest.approx(expected, rel=1e-4)
    assert tags["train/kl_reference"] == pytest.approx(tags["train/kl_uniform"], rel=1e-5)


def test_learning_ends_at_the_known_optimum_of_expected_reward_minus_alpha_times_kl() -> None:
    given: dict[str, Any] = {"smoothing": 0.5, "n_steps": 8, "gamma": 0.0}
    given |= {"learning_rate": LinearSchedule(2e-2, 0.0, 1.0), "use_rms_prop": False, "seed": 0, "device": "cpu"}
    model = SmoothedA2C("MlpPolicy", make_vec_env(lambda: IdentityEnv(3), n_envs=16), **given).learn(15_000)
    optimum = IdentityEnv(3).soft_optimal_policy(0.5, direction="reference_to_policy")
    found = model.policy.action_probabilities(np.arange(3))
    np.testing.assert_allclose(found.numpy(), optimum, atol=0.05)


@of_each
def test_ent_coef_and_entropy_term_are_put_back_even_when_train_raises(
    algorithm: type[Model], policy: str, env: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(algorithm, policy, env, arguments, smoothing=0.1, ent_coef=0.02)
    seen = []

    def interrupt(*_: Any, action_masks: Any = None) -> Any:
        seen.append((model.ent_coef, model.policy.entropy_term))
        raise KeyboardInterrupt

    model.learn(model.n_steps)
    monkeypatch.setattr(model.policy, "evaluate_actions", interrupt)
    assert_raises(KeyboardInterrupt, None, model.train)
    [(ent_coef, term)] = seen
    assert ent_coef == 1.0
    assert isinstance(term, EntropyTerm)
    assert term.entropy_coef == 0.02
    assert model.ent_coef == 0.02
    assert model.policy.entropy_term is None
    assert "get" not in vars(model.rollout_buffer)


def test_a2c_measures_each_500_steps_only() -> None:
    model = build(SmoothedA2C, "MlpPolicy", "CartPole-v1", {"n_steps": 50})
    measured = []

    def look(local: dict[str, Any], _: Any) -> bool:
        if "train/policy_entropy" in model.logger.name_to_value:
            measured.append(model.num_timesteps - 1)
        model.logger.name_to_value.clear()
        return True

    model.learn(1200, callback=look, log_interval=None)
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
    assert ppo(smoothing=lambda progress: 0.1 * progress).alpha == 0.1
    assert ppo(smoothing=ConstantSchedule(0.3)).alpha == 0.3


def test_the_reference_of_a_smoothing_is_the_policys() -> None:
    model = ppo(smoothing=Smoothing(0.1, reference=torch.tensor([0.9, 0.1])))
    [recipe] = model.policy.references
    assert torch.equal(recipe.reference, torch.tensor([0.9, 0.1]))
    assert "reference" not in model.policy_kwargs
    adjacent = {"reference": Smoothing(0.3, reference="adjacent")}
    same = ppo(smoothing=Smoothing("lin_0.1", reference="adjacent"), policy_kwargs=adjacent)
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
    model = ppo(smoothing=0.1, exploration_floor="lin_0.1", target_entropy_frac=None)
    model.learn(1000, callback=lambda local, _: local["self"].num_timesteps < 100)
    assert model.num_timesteps == 100
    assert model.policy.entropy_term is None
    assert model.learn(128).num_timesteps == 128


class PlainPolicy(ActorCriticPolicy):
    """One that knows nothing of entropy terms."""


TWO_FLOORS = {"exploration_floor": 0.1, "policy_kwargs": {"exploration_floor": 0.2}}
TWO_REFERENCES = {"smoothing": Smoothing(0.1, "adjacent"), "policy_kwargs": {"reference": "binomial"}}
TOO_SURE = {"target_entropy_frac": 0.5, "smoothing": Smoothing(0.1, torch.tensor([0.99, 0.01]))}


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
        (TWO_FLOORS, ValueError, r"policy_kwargs\['exploration_floor'\]=0.2"),
        (TWO_REFERENCES, ValueError, r"policy_kwargs\['reference'\]='binomial'"),
        ({"policy": PlainPolicy, "smoothing": 0.1}, TypeError, "PlainPolicy can't be used with smoothing"),
        ({"policy": PlainPolicy, "exploration_floor": 0.1}, TypeError, "exploration_floor"),
        ({"policy": PlainPolicy, "target_entropy_frac": 0.5}, TypeError, "PlainPolicy"),
        ({"target_entropy_frac": 0.5, "target_entropy_nats": 0.5}, ValueError, "choose one"),
        ({"target_entropy_frac": 1.1}, ValueError, "target_entropy_frac"),
        ({"target_entropy_frac": 0.0}, ValueError, "target_entropy_frac"),
        ({"target_entropy_nats": 0.7}, ValueError, "0.6931 nats"),
        ({"target_entropy_nats": "high"}, TypeError, "target_entropy_nats"),
        ({"target_entropy_frac": 0.5, "smoothing": "lin_0.1"}, ValueError, "schedule"),
        (TOO_SURE, ValueError, "exceeds the entropy of the reference, 0.056 nats"),
        ({"env": "Pendulum-v1", "target_entropy_frac": 0.5}, ValueError, "target_entropy_nats"),
        ({"env": "Pendulum-v1", "target_entropy_nats": 2.2}, ValueError, "2.112 nats"),
        ({"env": "Pendulum-v1", "use_sde": True, "exploration_floor": 0.1}, ValueError, "gSDE"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"policy": "MlpPolicy", "env": "CartPole-v1", **arguments}
    assert_raises(error, message, build, SmoothedPPO, given.pop("policy"), given.pop("env"), PPO_ARGUMENTS, **given)


def test_a_schedule_that_gives_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"exploration_floor, a callable, gave 2\.0 at progress 1"):
        ppo(exploration_floor=lambda progress: 2.0 * progress).learn(64)
    assert_raises(ValueError, "smoothing", ppo(smoothing=Smoothing(lambda progress: -progress)).learn, 256)


class OwnPolicy(SmoothedPolicy, ActorCriticPolicy):
    """As a user makes one."""


class OwnEvaluation(SmoothedActorCriticPolicy):
    """One whose loss does not read the entropy term."""

    def evaluate_actions(self, obs: Any, actions: Any, *more: Any, **named: Any) -> Any:
        found = self.get_distribution(obs)
        return self.predict_values(obs), found.log_prob(actions), found.entropy()


def test_a_policy_of_ones_own_carries_the_entropy_term_or_is_refused() -> None:
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
    assert_raises(TypeError, "PlainPolicy can't be used with smoothing", plain.learn, 64)


class NothingLegal(IdentityMaskedEnv):
    """Its masks forget to allow anything."""

    def action_masks(self) -> Any:
        return np.zeros_like(super().action_masks())


def test_a_mask_that_allows_nothing_is_refused_where_it_has_no_answer() -> None:
    env = NothingLegal(4)
    assert SmoothedMaskablePPO("MlpPolicy", env, device="cpu", **PPO_ARGUMENTS).learn(64).num_timesteps == 64
    for on in ({"smoothing": 0.1}, {"exploration_floor": 0.1}):
        with pytest.raises(ValueError, match="action_masks allows nothing in state 0"):
            SmoothedMaskablePPO("MlpPolicy", env, device="cpu", **PPO_ARGUMENTS, **on).learn(64)


# ---- targets for the entropy
OBSERVATIONS = spaces.Box(-1.0, 1.0, (2,))


def target_of(action_space: spaces.Space[Any], reference: Any = None, **wanted: float) -> EntropyTarget:
    """The feedback for a policy of that space and reference."""
    policy = SmoothedActorCriticPolicy(OBSERVATIONS, action_space, lambda _: 1e-3, reference=reference)
    given = {"frac": None, "nats": None, "initial_alpha": 0.0, **wanted}
    return entropy_target_for(action_space, policy.references, device="cpu", **given)  # type: ignore[arg-type]


def test_alpha_rises_below_the_target_and_falls_above_within_its_bounds(device: torch.device) -> None:
    for entropy, bound in ((0.0, 1e2), (3.0, 1e-6)):
        feedback = EntropyTarget(1.0, is_fraction=False, scale=1.0, device=device)
        entropies = torch.full((8,), entropy, device=device)
        alphas = []
        for _ in range(5000):
            feedback.update(entropies, None, None)
            alphas.append(float(feedback.coefficient()))
        steps = np.diff(alphas)
        assert (steps >= 0).all() if entropy == 0.0 else (steps <= 0).all()
        assert alphas[-1] == pytest.approx(bound, rel=1e-4)
        assert all(1e-6 <= alpha <= 1e2 for alpha in alphas)
        assert feedback.state.device.type == device.type
        # It comes back from the bound at once, not after as long a time as it has been there.
        away = torch.full((8,), 1.1 if entropy == 0.0 else 0.9, device=device)
        for _ in range(20):
            feedback.update(away, None, None)
        assert 2e-6 < float(feedback.coefficient()) < 50.0


def test_the_set_point_follows_what_is_measured_within_a_fifth() -> None:
    feedback = EntropyTarget(0.5, is_fraction=True, scale=0.5, initial_alpha=0.03)
    assert feedback.moved(0.5, 0.45) == pytest.approx(0.51)
    assert feedback.moved(0.5, 0.55) == pytest.approx(0.49)
    assert feedback.moved(0.59, 0.42) == pytest.approx(0.6)
    assert feedback.moved(0.405, 0.55) == pytest.approx(0.4)
    assert [feedback.moved(0.45, measured) for measured in (0.7, 0.2)] == [0.45, 0.45]  # the policy is not held yet
    assert feedback.moved(0.45, 0.7) == 0.45  # the policy is not held: only its own entropy is there
    assert (feedback.moved(0.9, 0.9), feedback.moved(0.1, 0.9)) == pytest.approx((0.6, 0.4))  # of another target
    box = EntropyTarget(-1.0, is_fraction=False, scale=3.0)
    assert [box.moved(-1.0, -0.5), box.moved(-1.5, -0.5)] == pytest.approx([-1.1, -1.6])
    assert box.moved(-0.45, -1.5) == pytest.approx(-0.4)
    least = EntropyTarget(0.5, is_fraction=True, scale=0.5, initial_alpha=1e-6)
    assert (least.moved(0.5, 0.55), least.moved(0.5, 0.45)) == (0.5, pytest.approx(0.51))


def test_the_feedback_holds_the_set_point_and_the_tag_is_alphas_geometric_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ppo(target_entropy_frac=0.9, learning_rate=0.02).learn(256)
    update, points, alphas, before = EntropyTarget.update, [], [], model._set_point

    def watched(self: EntropyTarget, *given: Any) -> None:
        points.append(self.set_point)
        alphas.append(float(self.coefficient()))  # that of the minibatch, which changes what follows
        update(self, *given)

    monkeypatch.setattr(EntropyTarget, "update", watched)
    model.learn(64, reset_num_timesteps=False)
    assert len(points) == 4  # 2 epochs of 2 minibatches
    assert set(points) == {model._set_point}
    assert model._set_point not in (before, 0.9)
    assert len(set(alphas)) == 4
    assert model.logger.name_to_value["train/smoothing"] == pytest.approx(np.exp(np.mean(np.log(alphas))), rel=1e-5)


def test_at_the_target_alpha_stays() -> None:
    feedback = EntropyTarget(0.5, is_fraction=True, scale=0.5, initial_alpha=0.03)
    for _ in range(100):
        feedback.update(torch.zeros(4), (torch.full((4,), 0.5), torch.ones(4, dtype=torch.bool)), None)
    assert float(feedback.coefficient()) == pytest.approx(0.03)


def test_rows_without_a_choice_and_padding_do_not_count() -> None:
    states = []
    fractions = torch.tensor([0.2, 0.4, 0.0, 0.9])
    has_choice = torch.tensor([True, True, False, True])
    for padding in (0.9, math.nan):
        feedback = EntropyTarget(0.5, is_fraction=True, scale=0.5)
        values = torch.where(torch.tensor([True, True, True, False]), fractions, padding)
        feedback.update(values, (values, has_choice), torch.tensor([1.0, 1.0, 1.0, 0.0]))
        states.append(feedback.state.clone())
    only = EntropyTarget(0.5, is_fraction=True, scale=0.5)
    only.update(fractions[:2], (fractions[:2], has_choice[:2]), None)
    for state in states:
        torch.testing.assert_close(state, only.state)
    before = only.state.clone()
    only.update(fractions, (fractions, torch.zeros(4, dtype=torch.bool)), None)
    assert only.state[0] == before[0]
    assert only.state.isfinite().all()


def test_the_coefficient_of_a_minibatch_is_kept_for_its_backward_pass() -> None:
    """The state changes in place after the term was computed: its gradient must not."""

    class Fixed:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

        def network_entropy(self) -> torch.Tensor:
            return self.logits.detach().sum(-1)

        mixture_entropy = network_entropy

        def kl_reference(self) -> torch.Tensor:
            return self.logits.square().sum(-1)

        def entropy_fractions(self) -> None:
            return None

    logits = torch.ones(3, 2, requires_grad=True)
    feedback = EntropyTarget(5.0, is_fraction=False, scale=1.0, initial_alpha=0.25)
    term = EntropyTerm(entropy_coef=0.0, target=feedback)
    term.values(Fixed(logits)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.full((3, 2), -0.5))
    assert float(feedback.coefficient()) > 0.25


def test_targets_up_to_the_references_entropy_are_taken_and_no_higher() -> None:
    prior = torch.tensor([0.5, 0.25, 0.25])
    tree = Tree.from_nested({"left": ["a", "b"], "right": ["c"]})
    row = Smoothing(1.0, tree)(torch.arange(3), 3).entropy().max()
    box = spaces.Box(-2.0, 2.0, (3,))
    normal = torch.distributions.Normal(torch.zeros(3), torch.full((3,), 2.0))
    cases: list[tuple[Any, Any, float]] = [
        (spaces.Discrete(3), None, math.log(3)),
        (spaces.Discrete(3), "uniform", math.log(3)),
        (spaces.Discrete(3), prior, float(torch.distributions.Categorical(prior).entropy())),
        (spaces.Discrete(3), "adjacent", math.log(2)),
        (spaces.Discrete(3), tree, float(row)),
        (spaces.MultiDiscrete([3, 4]), None, math.log(12)),
        (spaces.MultiDiscrete([3, 4]), [prior, "uniform"], 1.5 * math.log(2) + math.log(4)),
        (spaces.MultiBinary(3), None, 3 * math.log(2)),
        (box, None, float(normal.entropy().sum())),
    ]
    for space, reference, greatest in cases:
        assert target_of(space, reference, nats=greatest - 1e-5).target == greatest - 1e-5
        with pytest.raises(ValueError, match=r"target_entropy_nats=.* exceeds the entropy of the reference"):
            target_of(space, reference, nats=greatest + 1e-3)
    assert target_of(spaces.Discrete(3), frac=1.0).is_fraction
    assert_raises(ValueError, r"target_entropy_frac=0\.9", target_of, spaces.Discrete(3), "adjacent", frac=0.9)
    assert target_of(box, nats=-4.0).scale == 3.0


class Fractions(BaseCallback):
    """The mean entropy of the behaviour policy in each rollout's states, as a fraction of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        fraction = measure_rollout(self.model).entropy_frac
        assert fraction is not None
        self.values.append(float(fraction))


QUICK = {"batch_size": 64, "n_epochs": 5, "gamma": 0.0, "learning_rate": 2e-3}
SLOW = {"batch_size": 256, "n_epochs": 10, "gae_lambda": 0.8, "gamma": 0.98, "learning_rate": 3e-3}


@pytest.mark.parametrize(
    ("env", "target", "steps", "fallen", "given"),
    [
        (lambda: IdentityEnv(4), 0.6, (2_000, 7_000), 0.2, QUICK),  # solved within a few updates
        pytest.param("CartPole-v1", 0.9, (20_000, 20_000), 0.81, SLOW, marks=pytest.mark.slow),
    ],
)
def test_a_target_holds_where_entropy_would_fall(
    env: Any, target: float, steps: tuple[int, int], fallen: float, given: dict[str, Any]
) -> None:
    late = []
    for wanted, length in zip((None, target), steps, strict=True):
        seen, envs = Fractions(), make_vec_env(env, n_envs=8, seed=0)
        model = SmoothedPPO("MlpPolicy", envs, n_steps=32, target_entropy_frac=wanted, seed=0, device="cpu", **given)
        model.learn(length, callback=seen, log_interval=None)
        late.append(np.array(seen.values[len(seen.values) // 2 :]))
    assert late[0].mean() < fallen
    assert late[1].mean() == pytest.approx(target, rel=0.03)  # a fixed set-point is off by 5 %
    assert np.mean(np.abs(late[1] - target) <= target / 10) > 0.9


NATS = {"target_entropy_nats": 1.0, "n_steps": 64}


@pytest.mark.parametrize(
    ("algorithm", "policy", "env", "arguments"),
    [
        (SmoothedPPO, "MlpPolicy", "Pendulum-v1", NATS),
        (SmoothedPPO, "MlpPolicy", "Pendulum-v1", {**NATS, "exploration_floor": 0.1}),
        (SmoothedMaskablePPO, "MlpPolicy", IdentityMaskedEnv(4), {"target_entropy_frac": 0.5, "n_steps": 64}),
        (SmoothedRecurrentPPO, "MlpLstmPolicy", "CartPole-v1", {"target_entropy_frac": 0.5, "n_steps": 32}),
    ],
)
def test_every_algorithm_takes_a_target(algorithm: Any, policy: str, env: Any, arguments: dict[str, Any]) -> None:
    model = algorithm(policy, env, batch_size=32, n_epochs=2, smoothing=0.05, seed=0, device="cpu", **arguments)
    assert model.alpha == pytest.approx(0.05)
    before = model.entropy_target.state.clone()
    model.learn(2 * model.n_steps)
    assert model.entropy_target.state.isfinite().all()
    assert not torch.equal(model.entropy_target.state, before)
    assert 1e-6 <= model.alpha <= 1e2


def test_recurrent_padding_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that pad a sequence are given absurd observations: parameters, tags and alpha must stay the same."""

    def trained(absurd: float) -> Any:
        original = RecurrentRolloutBuffer._get_samples
        padded = []

        def get_samples(self: Any, *args: Any) -> Any:
            batch = original(self, *args)
            rows = batch.mask < 1e-8
            padded.append(int(rows.sum()))
            observations = batch.observations.clone()
            observations[rows] = absurd
            return batch._replace(observations=observations)

        with monkeypatch.context() as patch:
            patch.setattr(RecurrentRolloutBuffer, "_get_samples", get_samples)
            given: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "target_entropy_frac": 0.9}
            given |= {"ent_coef": 0.01, "policy_kwargs": {"lstm_hidden_size": 8}, "seed": 0, "device": "cpu"}
            model = SmoothedRecurrentPPO("MlpLstmPolicy", "CartPole-v1", **given).learn(128)
        assert sum(padded) > 0
        return model

    plain, odd = trained(0.0), trained(50.0)
    assert same_parameters(odd, plain)
    assert torch.equal(odd.entropy_target.state, plain.entropy_target.state)
    assert odd.logger.name_to_value["train/entropy_loss"] == plain.logger.name_to_value["train/entropy_loss"]
