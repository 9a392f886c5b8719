"""The entropy slot: what it records, what it tells a controller, and the warning where no loss uses it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.envs import IdentityEnv
from torch import Tensor

from rlsmooth.agents.smoothed.contrib import SmoothedMaskableActorCriticPolicy, SmoothedRecurrentActorCriticPolicy
from rlsmooth.agents.smoothed.entropy import EntropySlot
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy

ROWS = 16
ACTIONS = spaces.Discrete(4)
OBSERVATIONS = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(5))


def policy_of(actions: spaces.Space[Any], **arguments: Any) -> Any:
    """Build a policy whose logits differ by several units."""
    policy = SmoothedActorCriticPolicy(spaces.Box(-1.0, 1.0, (4,)), actions, lambda _: 1e-3, **arguments)
    torch.nn.init.normal_(policy.action_net.weight, std=3.0)
    return policy


def test_a_padded_row_does_not_count_in_the_mean_entropy() -> None:
    policy = policy_of(ACTIONS)
    policy.slot = slot = EntropySlot(entropy_coef=1.0)
    assert math.isnan(slot.mean_entropy())
    means = []
    for counted in (torch.arange(ROWS) < 5, torch.arange(ROWS) % 2 == 0):
        slot.row_mask = counted
        rows = policy.evaluate_actions(OBSERVATIONS, torch.zeros(ROWS))[2]
        means.append(rows[counted].mean().item())
    assert means[0] != pytest.approx(means[1], abs=1e-3)
    assert slot.mean_entropy() == pytest.approx(sum(means) / 2, abs=1e-5)


class Controller:
    """A coefficient of 3 that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Tensor, Any, Tensor | None]] = []

    def coefficient(self) -> Tensor:
        return torch.tensor(3.0)

    def update(self, entropies: Tensor, fractions: Any, row_weights: Tensor | None) -> None:
        self.told.append((entropies, fractions, row_weights))


def test_a_controller_gives_the_coefficient_and_is_told_of_what_acts() -> None:
    policy = policy_of(ACTIONS, exploration_floor=0.5)
    controller = Controller()
    policy.slot = EntropySlot(target=controller)
    policy.slot.row_mask = torch.arange(ROWS) < 5
    slot = policy.evaluate_actions(OBSERVATIONS, torch.zeros(ROWS))[2]
    acting = policy.smoothed_distribution(OBSERVATIONS)
    assert torch.allclose(slot, -3.0 * acting.kl_reference())
    [(entropies, fractions, weights)] = controller.told
    assert torch.allclose(entropies, acting.acting_entropy())
    assert torch.allclose(fractions[0], entropies / math.log(4))
    assert fractions[1].all()
    assert weights is not None
    assert weights.sum() == 5
    assert not entropies.requires_grad


WARNED = "ent_coef is 0"
ALGORITHMS = [
    (PPO, SmoothedActorCriticPolicy, lambda: IdentityEnv(dim=3)),
    (A2C, SmoothedActorCriticPolicy, lambda: IdentityEnv(dim=3)),
    (MaskablePPO, SmoothedMaskableActorCriticPolicy, lambda: InvalidActionEnvDiscrete(dim=4, n_invalid_actions=2)),
    (RecurrentPPO, SmoothedRecurrentActorCriticPolicy, lambda: IdentityEnv(dim=3)),
]


@pytest.mark.parametrize(("algorithm", "policy_class", "env"), ALGORITHMS)
@pytest.mark.parametrize(
    ("reference", "ent_coef", "warned"), [("uniform", 0.0, True), ("uniform", 0.01, False), (None, 0.0, False)]
)
def test_a_reference_that_nothing_uses_is_told_once(
    algorithm: Any, policy_class: Any, env: Any, reference: Any, ent_coef: float, warned: bool
) -> None:
    arguments: dict[str, Any] = {} if algorithm is A2C else {"batch_size": 8}
    knobs = {"reference": reference}
    model = algorithm(policy_class, env(), n_steps=8, ent_coef=ent_coef, device="cpu", policy_kwargs=knobs, **arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(24)
    assert [WARNED in str(warning.message) for warning in caught] == [True] * warned


def test_an_algorithm_of_ours_that_brings_a_slot_hears_no_warning() -> None:
    policy = policy_of(ACTIONS, reference="uniform")
    policy.slot = EntropySlot(kl_coef=0.0)
    _, log_prob, slot = policy.evaluate_actions(OBSERVATIONS, torch.zeros(ROWS))
    assert torch.equal(slot, torch.zeros(ROWS))
    assert not slot.requires_grad
    (log_prob.mean() + 0.0 * slot.mean()).backward()
    policy.slot = EntropySlot(kl_coef=torch.tensor(0.0))
    _, log_prob, slot = policy.evaluate_actions(OBSERVATIONS, torch.zeros(ROWS))
    (log_prob.mean() + 0.0 * slot.mean()).backward()
