"""The entropy term: what smoothed policies return, against dense formulas in float64, and what a controller gets."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from rlsmooth.agents.smoothed.contrib import SmoothedMaskableActorCriticPolicy, SmoothedRecurrentActorCriticPolicy
from rlsmooth.agents.smoothed.entropy import EntropyTerm
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy
from rlsmooth.targets import Smoothing, Tree, ordinal_kernel
from support import assert_raises, draw_masks

ROWS = 16
OBSERVATIONS = spaces.Box(-1.0, 1.0, (4,))
DISCRETE = spaces.Discrete(4)
MULTI = spaces.MultiDiscrete([4, 3])
BITS = spaces.MultiBinary(3)
BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
KERNEL = torch.tensor([[5.0, 3, 2, 1], [1, 5, 1, 2], [2, 2, 9, 4], [1, 2, 3, 4]], dtype=torch.float64)
TREE = Tree.from_nested({"left": ["a", "b"], "right": ["c", "d"]})


def policy_of(actions: spaces.Space[Any], *, maskable: bool = False, **arguments: Any) -> Any:
    """Build a policy whose logits differ by several units, so that KL and entropy are far from their optima."""
    policy_class: Any = SmoothedMaskableActorCriticPolicy if maskable else SmoothedActorCriticPolicy
    policy = policy_class(OBSERVATIONS, actions, lambda _: 1e-3, **arguments)
    torch.nn.init.normal_(policy.action_net.weight, std=3.0)
    torch.nn.init.normal_(policy.action_net.bias)
    return policy


def observations(device: torch.device | str = "cpu") -> Tensor:
    return torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(5)).to(device)


def latent_of(policy: Any, rows: Tensor) -> Tensor:
    with torch.no_grad():
        latent: Tensor = policy.mlp_extractor.forward_actor(
            BaseModel.extract_features(policy, rows, policy.pi_features_extractor)
        )
    return latent.double()


def components(space: spaces.Space[Any], outputs: Tensor) -> list[Tensor]:
    """Cut a network's outputs into the logits of each component."""
    if isinstance(space, spaces.Discrete):
        return [outputs]
    if isinstance(space, spaces.MultiDiscrete):
        return list(outputs.split(space.nvec.tolist(), dim=-1))
    if outputs.shape[-1] == int(space.shape[0]):  # type: ignore[index]
        return [torch.stack((torch.zeros_like(bit), bit), -1) for bit in outputs.unbind(-1)]
    return list(outputs.split(2, dim=-1))


def dense_reference(rows: Tensor | None, logits: Tensor, legal: Tensor) -> Tensor:
    """Write out each row's reference: a prior `[K]`, a matrix by greedy action `[K, K]`, or None for the uniform."""
    greedy = logits.detach().masked_fill(~legal, -math.inf).argmax(-1)
    if rows is None:
        whole = torch.ones_like(logits)
    else:
        whole = rows.double().expand_as(logits) if rows.ndim == 1 else rows.double()[greedy]
    kept = whole.detach() * legal
    alone = torch.nn.functional.one_hot(greedy, logits.shape[-1]).double()
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total, alone)


def safe_log(probabilities: Tensor) -> Tensor:
    return torch.where(probabilities > 0, probabilities, 1.0).log()


def oracle(logits: list[Tensor], references: list[Tensor | None], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Entropy of the network's policy and KL(reference‖pi), summed over components, from the definitions."""
    entropies, divergences = [], []
    for values, rows, legal in zip(logits, references, masks, strict=True):
        pi = values.masked_fill(~legal, -math.inf).softmax(-1)
        reference = dense_reference(rows, values, legal)
        entropies.append(-(pi * safe_log(pi)).sum(-1))
        divergences.append((reference * (safe_log(reference) - safe_log(pi))).sum(-1))
    return torch.stack(entropies).sum(0), torch.stack(divergences).sum(0)


def off_diagonal(matrix: Tensor) -> Tensor:
    empty = matrix.clone().fill_diagonal_(0.0)
    return empty / empty.sum(-1, keepdim=True)


REFERENCES: dict[str, tuple[spaces.Space[Any], Any, list[Tensor | None]]] = {
    "uniform": (DISCRETE, "uniform", [None]),
    "prior": (DISCRETE, PRIOR.float(), [PRIOR]),
    "array": (DISCRETE, PRIOR.numpy(), [PRIOR]),
    "kernel": (DISCRETE, KERNEL, [off_diagonal(KERNEL)]),
    "ordinal": (DISCRETE, "exponential", [ordinal_kernel(4, "exponential")]),
    "binomial, whole": (
        DISCRETE,
        Smoothing(alpha=None, reference="binomial"),
        [ordinal_kernel(4, "binomial", include_label=True)],
    ),
    "schedule, which is left aside": (DISCRETE, Smoothing(alpha="lin_0.1", reference=PRIOR), [PRIOR]),
    "tree": (DISCRETE, TREE, [off_diagonal(TREE.kernel())]),
    "a dimension each": (MULTI, (TREE, "adjacent"), [off_diagonal(TREE.kernel()), ordinal_kernel(3, "adjacent")]),
    "one for all dimensions": (spaces.MultiDiscrete([4, 4]), PRIOR, [PRIOR, PRIOR]),
    "uniform, dimensions": (MULTI, "uniform", [None, None]),
    "bits": (BITS, torch.tensor([0.25, 0.75]), [torch.tensor([0.25, 0.75])] * 3),
}


@pytest.mark.parametrize("with_term", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_entropy_term_and_gradients_equal_the_dense_formulas(
    name: str, masked: bool, with_term: bool, device: torch.device
) -> None:
    space, reference, rows = REFERENCES[name]
    policy = policy_of(space, maskable=masked, reference=reference).to(device)
    observed = observations(device)
    weight = policy.action_net.weight.detach().cpu().double().requires_grad_()
    bias = policy.action_net.bias.detach().cpu().double().requires_grad_()
    logits = components(space, latent_of(policy, observed).cpu() @ weight.T + bias)
    sizes = [part.shape[-1] for part in logits]
    flat = draw_masks(sizes, ROWS) if masked else torch.ones(ROWS, sum(sizes), dtype=torch.bool)
    entropy, divergence = oracle(logits, rows, list(flat.split(sizes, dim=1)))
    expected = 0.5 * entropy - 2.0 * divergence if with_term else -divergence
    more = (flat.to(device),) if masked else ()
    actions = policy(observed, False, *more)[0]
    actions = actions.flatten() if isinstance(space, spaces.Discrete) else actions
    if with_term:
        policy.entropy_term = EntropyTerm(entropy_coef=0.5, kl_coef=torch.tensor(2.0, device=device))
    _, _, found = policy.evaluate_actions(observed, actions, *more)
    assert found.shape == (ROWS,)
    assert torch.allclose(found.cpu().double(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.linspace(-1.0, 2.0, ROWS)
    found_gradients = torch.autograd.grad(
        found @ weights.to(device), [policy.action_net.weight, policy.action_net.bias]
    )
    expected_gradients = torch.autograd.grad(expected @ weights.double(), [weight, bias])
    for ours, theirs in zip(found_gradients, expected_gradients, strict=True):
        assert torch.allclose(ours.cpu().double(), theirs, atol=1e-5, rtol=1e-5)
        assert theirs.abs().max() > 1e-2
    if with_term:
        assert policy.entropy_term.mean_entropy() == pytest.approx(entropy.mean().item(), abs=1e-5)


@pytest.mark.parametrize("illegal", [-1e8, -math.inf])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_the_logits_of_illegal_actions_do_not_matter(floor: float, illegal: float) -> None:
    policy = policy_of(DISCRETE, maskable=True, reference="exponential", exploration_floor=floor)
    legal = torch.tensor([[True, True, False, True]]).expand(ROWS, -1)
    actions = torch.tensor([0, 1, 3, 0]).repeat(ROWS // 4)
    expected = policy.evaluate_actions(observations(), actions, legal)
    expected[2].sum().backward()
    gradient = policy.action_net.weight.grad.clone()
    policy.action_net.bias.data[2] = illegal
    policy.zero_grad()
    found = policy.evaluate_actions(observations(), actions, legal)
    assert torch.allclose(found[1], expected[1])
    assert torch.allclose(found[2], expected[2])
    found[2].sum().backward()
    assert torch.allclose(policy.action_net.weight.grad, gradient)
    assert torch.equal(policy.action_net.weight.grad[2], torch.zeros_like(gradient[2]))
    assert not found[0].isnan().any()


@pytest.mark.parametrize("reference", ["uniform", "exponential", PRIOR])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_one_legal_action_leaves_nothing_to_regularise(floor: float, reference: Any) -> None:
    policy = policy_of(DISCRETE, maskable=True, reference=reference, exploration_floor=floor)
    legal = torch.eye(4, dtype=torch.bool)[torch.arange(ROWS) % 4]
    policy.entropy_term = EntropyTerm(entropy_coef=1.0, kl_coef=1.0)
    _, log_prob, term = policy.evaluate_actions(observations(), torch.arange(ROWS) % 4, legal)
    assert log_prob.abs().max() < 1e-6
    assert term.abs().max() < 1e-6
    (term.sum() + log_prob.sum()).backward()
    assert policy.action_net.weight.grad.abs().max() < 1e-6
    assert torch.equal(policy.entropy(observations().numpy(), legal.numpy()), torch.zeros(ROWS))


@pytest.mark.parametrize(
    ("family", "space"), [("plain", BITS), ("plain", MULTI), ("plain", DISCRETE), ("masks", MULTI)]
)
def test_the_floor_is_the_exact_mixture(family: str, space: spaces.Space[Any]) -> None:
    policy = policy_of(space, maskable=family == "masks", exploration_floor=0.3)
    logits = components(
        space,
        latent_of(policy, observations()) @ policy.action_net.weight.detach().double().T
        + policy.action_net.bias.detach().double(),
    )
    sizes = [part.shape[-1] for part in logits]
    flat = draw_masks(sizes, ROWS) if family == "masks" else torch.ones(ROWS, sum(sizes), dtype=torch.bool)
    mixture = []
    for values, legal in zip(logits, flat.split(sizes, dim=1), strict=True):
        pi = values.masked_fill(~legal, -math.inf).softmax(-1)
        mixture.append(0.7 * pi + 0.3 * legal / legal.sum(-1, keepdim=True))
    more = (flat,) if family == "masks" else ()
    actions, _, log_prob = policy(observations(), False, *more)
    columns = actions.reshape(ROWS, -1).long().unbind(-1)
    expected = torch.stack(
        [part.gather(-1, column[:, None])[:, 0].log() for part, column in zip(mixture, columns, strict=True)]
    ).sum(0)
    assert torch.allclose(log_prob.double(), expected, atol=1e-5)
    flat_actions = actions.flatten() if isinstance(space, spaces.Discrete) else actions
    _, again, entropy = policy.evaluate_actions(observations(), flat_actions, *more)
    assert torch.allclose(again, log_prob, atol=1e-6)
    # No reference, no entropy term: the entropy is that of the mixture.
    entropies = torch.stack([-(part * safe_log(part)).sum(-1) for part in mixture]).sum(0)
    assert torch.allclose(entropy.double(), entropies, atol=1e-5)
    named = {"action_masks": flat.numpy()} if family == "masks" else {}
    assert torch.allclose(policy.entropy(observations().numpy(), **named).double(), entropies, atol=1e-5)
    found = policy.action_probabilities(observations().numpy(), **named)
    parts = [found] if isinstance(space, spaces.Discrete) else found
    if isinstance(space, spaces.MultiBinary):
        assert found.shape == (ROWS, 3, 2)
        parts = found.unbind(1)
    assert all(torch.allclose(ours.double(), goal, atol=1e-6) for ours, goal in zip(parts, mixture, strict=True))
    best, _ = policy.predict(observations().numpy(), deterministic=True, **named)
    assert np.array_equal(best.reshape(ROWS, -1), torch.stack([part.argmax(-1) for part in mixture], 1).numpy())


def test_actions_are_drawn_as_often_as_the_floor_says() -> None:
    policy = policy_of(DISCRETE, exploration_floor=0.4)
    one = observations()[:1].expand(20_000, -1)
    actions, _, _ = policy(one)
    shares = torch.bincount(actions, minlength=4) / len(actions)
    expected = policy.action_probabilities(one[:1].numpy())[0]
    assert expected.min() >= 0.1 - 1e-6
    assert (shares - expected).abs().max() < 4 * 0.5 / math.sqrt(len(actions))


@pytest.mark.parametrize("std", [None, 0.7])
@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_a_box_has_a_broad_gaussian(floor: float, std: float | None) -> None:
    policy = policy_of(BOX, reference="uniform", exploration_floor=floor, reference_std=std)
    mean = latent_of(policy, observations()) @ policy.action_net.weight.detach().double().T
    mean = mean + policy.action_net.bias.detach().double()
    stds = torch.tensor([2.0, 0.5]).double() if std is None else torch.tensor([std, std]).double()
    broad = Independent(Normal(torch.tensor([0.0, 0.5]).double().expand(ROWS, 2), stds), 1)
    network = Independent(Normal(mean, policy.log_std.detach().double().exp().expand(ROWS, 2)), 1)
    actions, _, log_prob = policy(observations())
    _, again, term = policy.evaluate_actions(observations(), actions)
    both = Normal(torch.stack((network.mean, broad.mean), 1), torch.stack((network.stddev, broad.stddev), 1))
    mixture = MixtureSameFamily(
        Categorical(torch.tensor([1 - floor, floor]).double().expand(ROWS, 2)), Independent(both, 1)
    )
    assert torch.allclose(log_prob.double(), mixture.log_prob(actions.double()), atol=1e-5)
    assert torch.allclose(again, log_prob, atol=1e-5)
    assert torch.allclose(term.double(), -kl_divergence(broad, network), atol=1e-5)
    assert torch.allclose(policy(observations(), deterministic=True)[0].double(), mean, atol=1e-5)
    estimate = policy.entropy(observations().numpy())
    if floor:
        samples = mixture.sample((20_000,))
        expected = -mixture.log_prob(samples).mean(0)
        assert (estimate.double() - expected).abs().mean() < 0.2
    else:
        assert torch.allclose(estimate.double(), network.entropy(), atol=1e-5)
    assert_raises(ValueError, "densities", policy.action_probabilities, observations().numpy())


def test_a_floor_alone_leaves_a_box_without_an_entropy() -> None:
    policy = policy_of(BOX, exploration_floor=0.1)
    assert policy.evaluate_actions(observations(), torch.zeros(ROWS, 2))[2] is None


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("entropy_coef", [None, 0.5])
def test_gsde_can_be_regularised_but_not_mixed(squash: bool, entropy_coef: float | None) -> None:
    arguments: dict[str, Any] = {"use_sde": True, "squash_output": squash}
    policy = SmoothedActorCriticPolicy(OBSERVATIONS, BOX, lambda _: 1e-3, reference="uniform", **arguments)
    parent = ActorCriticPolicy(OBSERVATIONS, BOX, lambda _: 1e-3, **arguments)
    parent.load_state_dict(policy.state_dict())
    actions = torch.rand(ROWS, 2) - 0.5
    _, log_prob, parents = parent.evaluate_actions(observations(), actions)
    if entropy_coef is not None:
        policy.entropy_term = EntropyTerm(entropy_coef=entropy_coef, kl_coef=1.0)
    _, found, term = policy.evaluate_actions(observations(), actions)
    assert torch.equal(found, log_prob)
    network = Independent(parent.get_distribution(observations()).distribution, 1)
    broad = Independent(Normal(torch.tensor([0.0, 0.5]).expand(ROWS, 2), torch.tensor([2.0, 0.5])), 1)
    expected = -kl_divergence(broad, network)
    if entropy_coef is not None:
        expected = expected + entropy_coef * (-log_prob if parents is None else parents)
    assert term is not None
    assert torch.allclose(term, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"exploration_floor=0\.1 can't be used with gSDE"):
        policy.exploration_floor = 0.1
    if squash:
        assert_raises(ValueError, "squashed outputs have no entropy", policy.entropy, observations().numpy())


@pytest.mark.parametrize("space", [DISCRETE, MULTI, BITS, BOX])
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_a_reference_policy_takes_the_place_of_the_reference(space: spaces.Space[Any], floor: float) -> None:
    policy = policy_of(space, exploration_floor=floor)
    other = ActorCriticPolicy(OBSERVATIONS, space, lambda _: 1e-3)
    torch.nn.init.normal_(other.action_net.weight, std=2.0)
    keys = list(policy.state_dict())
    count = len(list(policy.parameters()))
    policy.set_reference_policy(other)
    assert list(policy.state_dict()) == keys
    assert len(list(policy.parameters())) == count
    actions = policy(observations())[0]
    actions = actions.flatten() if isinstance(space, spaces.Discrete) else actions
    _, log_prob, term = policy.evaluate_actions(observations(), actions)
    network = ActorCriticPolicy(OBSERVATIONS, space, lambda _: 1e-3)
    network.load_state_dict(policy.state_dict())
    theirs, ours = (one.get_distribution(observations()).distribution for one in (other, network))
    if isinstance(theirs, list):
        expected = torch.stack([kl_divergence(p, q) for p, q in zip(theirs, ours, strict=True)]).sum(0)
    else:
        rows = kl_divergence(theirs, ours)
        expected = rows if rows.ndim == 1 else rows.sum(1)
    assert torch.allclose(term, -expected, atol=1e-5)
    term.sum().backward()
    assert all(weights.grad is None for weights in other.parameters())
    assert torch.allclose(policy.smoothed_distribution(observations()).kl_reference(), expected, atol=1e-5)
    policy.set_reference_policy(None)
    assert not policy.is_regularised
    again = policy.evaluate_actions(observations(), actions)[1]
    assert torch.equal(again, log_prob) or floor == 0.0  # the floor mixes with the static reference either way


# ---- what it records, and the warning where no loss uses it


def test_a_padded_row_does_not_count_in_the_mean_entropy() -> None:
    policy = policy_of(DISCRETE)
    policy.entropy_term = term = EntropyTerm(entropy_coef=1.0)
    assert math.isnan(term.mean_entropy())
    means = []
    for counted in (torch.arange(ROWS) < 5, torch.arange(ROWS) % 2 == 0):
        term.mask = counted
        rows = policy.evaluate_actions(observations(), torch.zeros(ROWS))[2]
        means.append(rows[counted].mean().item())
    assert means[0] != pytest.approx(means[1], abs=1e-3)
    assert term.mean_entropy() == pytest.approx(sum(means) / 2, abs=1e-5)


class Controller:
    """A coefficient of 3 that remembers its updates."""

    def __init__(self) -> None:
        self.updates: list[tuple[Tensor, Any, Tensor | None]] = []

    def coefficient(self) -> Tensor:
        return torch.tensor(3.0)

    def update(self, entropies: Tensor, fractions: Any, weights: Tensor | None) -> None:
        self.updates.append((entropies, fractions, weights))


def test_a_controller_gives_the_coefficient_and_gets_the_entropies_of_the_mixture() -> None:
    policy = policy_of(DISCRETE, exploration_floor=0.5)
    controller = Controller()
    policy.entropy_term = EntropyTerm(target=controller)
    policy.entropy_term.mask = torch.arange(ROWS) < 5
    term = policy.evaluate_actions(observations(), torch.zeros(ROWS))[2]
    mixture = policy.smoothed_distribution(observations())
    assert torch.allclose(term, -3.0 * mixture.kl_reference())
    [(entropies, fractions, weights)] = controller.updates
    assert torch.allclose(entropies, mixture.mixture_entropy())
    assert torch.allclose(fractions[0], entropies / math.log(4))
    assert fractions[1].all()
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
def test_a_reference_that_nothing_uses_is_reported_once(
    algorithm: Any, policy_class: Any, env: Any, reference: Any, ent_coef: float, warned: bool
) -> None:
    arguments: dict[str, Any] = {} if algorithm is A2C else {"batch_size": 8}
    knobs = {"reference": reference}
    model = algorithm(policy_class, env(), n_steps=8, ent_coef=ent_coef, device="cpu", policy_kwargs=knobs, **arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(24)
    assert [WARNED in str(warning.message) for warning in caught] == [True] * warned


def test_an_algorithm_of_ours_that_brings_an_entropy_term_hears_no_warning() -> None:
    policy = policy_of(DISCRETE, reference="uniform")
    policy.entropy_term = EntropyTerm(kl_coef=0.0)
    _, log_prob, term = policy.evaluate_actions(observations(), torch.zeros(ROWS))
    assert torch.equal(term, torch.zeros(ROWS))
    assert not term.requires_grad
    (log_prob.mean() + 0.0 * term.mean()).backward()
    policy.entropy_term = EntropyTerm(kl_coef=torch.tensor(0.0))
    _, log_prob, term = policy.evaluate_actions(observations(), torch.zeros(ROWS))
    (log_prob.mean() + 0.0 * term.mean()).backward()
