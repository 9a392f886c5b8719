"""Targets for the entropy: feedback that holds them, and rows that must not count."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from rlsmooth.agents.smoothed.algorithms import SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.agents.smoothed.entropy import EntropySlot
from rlsmooth.agents.smoothed.entropy_target import EntropyTarget, entropy_target_for
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy
from rlsmooth.envs import IdentityEnv, IdentityMaskedEnv
from rlsmooth.targets import Smoothing, Tree

OBSERVATIONS = spaces.Box(-1.0, 1.0, (2,))


def target_of(action_space: spaces.Space[Any], reference: Any = None, **wanted: float) -> EntropyTarget:
    """The feedback for a policy of that space and reference."""
    policy = SmoothedActorCriticPolicy(OBSERVATIONS, action_space, lambda _: 1e-3, reference=reference)
    given = {"frac": None, "nats": None, "initial_alpha": 0.0, **wanted}
    return entropy_target_for(policy, device="cpu", **given)  # type: ignore[arg-type]


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
    """The state changes in place after the slot was computed: its gradient must not."""

    class Fixed:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

        def network_entropy(self) -> torch.Tensor:
            return self.logits.detach().sum(-1)

        acting_entropy = network_entropy

        def kl_reference(self) -> torch.Tensor:
            return self.logits.square().sum(-1)

        def entropy_fractions(self) -> None:
            return None

    logits = torch.ones(3, 2, requires_grad=True)
    feedback = EntropyTarget(5.0, is_fraction=False, scale=1.0, initial_alpha=0.25)
    slot = EntropySlot(entropy_coef=0.0, target=feedback)
    slot.rows(Fixed(logits)).sum().backward()  # type: ignore[no-untyped-call]
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
    with pytest.raises(ValueError, match=r"target_entropy_frac=0\.9"):
        target_of(spaces.Discrete(3), "adjacent", frac=0.9)
    assert target_of(box, nats=-4.0).scale == 3.0


class Fractions(BaseCallback):
    """The mean entropy of each update, as a fraction of the largest."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.largest = math.log(num_actions)
        self.values: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        recorded = self.model.logger.name_to_value
        if "train/entropy_loss" in recorded:
            self.values.append(-recorded["train/entropy_loss"] / self.largest)


def test_a_target_holds_where_entropy_would_fall() -> None:
    """IdentityEnv is solved within a few updates, so that plain PPO's entropy falls to almost 0."""
    found = {}
    for target in (None, 0.6):
        seen = Fractions(4)
        SmoothedPPO(
            "MlpPolicy",
            make_vec_env(lambda: IdentityEnv(4), n_envs=8),
            n_steps=32,
            batch_size=64,
            n_epochs=5,
            gamma=0.0,
            learning_rate=2e-3,
            target_entropy_frac=target,
            seed=0,
            device="cpu",
        ).learn(2_000 if target is None else 7_000, callback=seen, log_interval=None)
        found[target] = np.array(seen.values)
    assert found[None][-5:].mean() < 0.2
    late = found[0.6][len(found[0.6]) // 2 :]
    assert late.mean() == pytest.approx(0.6, abs=0.03)
    assert np.mean(np.abs(late - 0.6) <= 0.06) > 0.9


@pytest.mark.slow
def test_cartpole_holds_a_target_that_the_parent_leaves() -> None:
    late = {}
    for target in (None, 0.9):
        seen = Fractions(2)
        SmoothedPPO(
            "MlpPolicy",
            make_vec_env("CartPole-v1", n_envs=8, seed=0),
            n_steps=32,
            batch_size=256,
            n_epochs=10,
            gae_lambda=0.8,
            gamma=0.98,
            learning_rate=3e-3,
            target_entropy_frac=target,
            seed=0,
            device="cpu",
        ).learn(10_000, callback=seen, log_interval=None)
        late[target] = np.array(seen.values[len(seen.values) // 2 :])
    assert late[None].mean() < 0.81
    assert late[0.9].mean() == pytest.approx(0.9, abs=0.03)
    assert np.mean(np.abs(late[0.9] - 0.9) <= 0.09) > 0.9


@pytest.mark.parametrize(
    ("algorithm", "policy", "env", "arguments"),
    [
        (SmoothedPPO, "MlpPolicy", "Pendulum-v1", {"target_entropy_nats": 1.0, "n_steps": 64}),
        (
            SmoothedPPO,
            "MlpPolicy",
            "Pendulum-v1",
            {"target_entropy_nats": 1.0, "n_steps": 64, "exploration_floor": 0.1},
        ),
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
    from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer

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
            model = SmoothedRecurrentPPO(
                "MlpLstmPolicy",
                "CartPole-v1",
                n_steps=64,
                batch_size=32,
                n_epochs=2,
                target_entropy_frac=0.9,
                ent_coef=0.01,
                policy_kwargs={"lstm_hidden_size": 8},
                seed=0,
                device="cpu",
            ).learn(128)
        assert sum(padded) > 0
        return model

    plain, odd = trained(0.0), trained(50.0)
    for name, tensor in plain.policy.state_dict().items():
        assert torch.equal(odd.policy.state_dict()[name], tensor), name
    assert torch.equal(odd.entropy_target.state, plain.entropy_target.state)
    assert odd.logger.name_to_value["train/entropy_loss"] == plain.logger.name_to_value["train/entropy_loss"]
