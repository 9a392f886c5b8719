"""Random agents in random spaces: outputs, probabilities and actions against float64 formulas, from their weights."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.lib.stride_tricks import sliding_window_view
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from torch import nn

from rlsmooth import agents
from rlsmooth.agents import BC, SmoothedA2C, SmoothedMaskablePPO, SmoothedPPO, load_agent, save_agent
from rlsmooth.data import Demonstrations
from support import draw_masks, same_parameters, samples

pytestmark = pytest.mark.fuzz
CASES, ROWS, DRAWS = 100, 6, 2000
LOG_LEVEL = math.log(2 / 1e-12)  # of a bound that a true sampler passes once in 1e12 comparisons
INF = math.inf
BOUNDS = (
    *((-1, 1), (0, 1), (300, 500), (1e6, 1e6 + 1), (-5, 1e5), (2, 2), (-1e-6, 1e-6), (0, 1e-15), (-1e15, 1e15)),
    *((-1e30, 1e30), (-3e38, 3e38), (-INF, INF), (0, INF), (-INF, -7)),
)
FLOATS: tuple[Any, ...] = (np.float32, np.float64)
IMAGES = [(36, 40, 3), (36, 36, 1), (4, 37, 36)]


# ---- spaces and what is in them


def draw_actions(rng: random.Random, kind: str, finite: bool) -> spaces.Space[Any]:
    if kind == "box":
        shape, dtype = rng.choice([(1,), (3,), (2, 2), (1, 1, 3)]), rng.choice(FLOATS)
        chosen = [pair for pair in BOUNDS if not finite or np.isfinite(pair).all()]
        low, high = np.array([rng.choice(chosen) for _ in range(math.prod(shape))], dtype).T
        return spaces.Box(low.reshape(shape), high.reshape(shape), dtype=dtype)
    if kind == "discrete":
        return spaces.Discrete(rng.choice([1, 2, 3, 7, 300]), start=rng.choice([0, 0, 5, -1, -300, 2**20]))
    if kind == "multi_binary":
        return spaces.MultiBinary(rng.choice([1, 2, 5]))
    sizes = [rng.choice([1, 2, 3, 9]) for _ in range(rng.randint(1, 4))]
    return spaces.MultiDiscrete(sizes, start=[rng.choice([0, 0, 4, -9]) for _ in sizes])


def draw_observations(rng: random.Random, nested: bool = True) -> spaces.Space[Any]:
    if nested and rng.random() < 0.2:
        return spaces.Dict({name: draw_observations(rng, False) for name in rng.sample("zebra", rng.randint(1, 3))})
    bounds, shape = rng.choice([(-1, 1), (-INF, INF), (0, INF)]), rng.choice([(1,), (4,), (2, 3)])
    choices: list[spaces.Space[Any]] = [
        *(spaces.Box(*bounds, shape, dtype) for dtype in FLOATS),
        spaces.Box(0, 255, rng.choice(IMAGES if nested else IMAGES[:2]), np.uint8),
        spaces.Box(0, 255, (5, 4), np.uint8),  # of two axes: no image for Stable-Baselines3
        spaces.Discrete(rng.randint(1, 6)),
        spaces.MultiDiscrete([rng.randint(1, 4) for _ in range(rng.randint(1, 3))]),
        spaces.MultiBinary(rng.choice([3, (2, 2)])),
    ]
    return rng.choice(choices)


def each_part(change: Callable[[Any], Any], value: Any) -> Any:
    return {name: change(part) for name, part in value.items()} if isinstance(value, dict) else change(value)


# ---- the network, in numpy's float64


class Network:
    """What a policy's weights make of observations, one layer after the other."""

    def __init__(self, policy: Any, space: spaces.Space[Any]) -> None:
        self.weights = {name: tensor.double().numpy() for name, tensor in policy.state_dict().items()}
        self.space, self.is_cnn = space, "Cnn" in type(policy).__name__
        self.activate = np.tanh if policy.activation_fn is nn.Tanh else lambda x: np.maximum(x, 0)

    def layers(self, prefix: str) -> list[tuple[Any, Any]]:
        names = [name for name in self.weights if name.startswith(prefix) and name.endswith("weight")]
        return [(self.weights[name], self.weights[name.replace("weight", "bias")]) for name in names]

    def convolved(self, images: Any, prefix: str) -> Any:
        for (kernel, bias), stride in zip(self.layers(f"{prefix}.cnn."), (4, 2, 1), strict=True):
            windows = sliding_window_view(images, kernel.shape[2:], (2, 3))[:, :, ::stride, ::stride]
            images = np.einsum("bcyxhw,ochw->boyx", windows, kernel, optimize=True)
            images = np.maximum(images + bias[:, None, None], 0)
        ((weight, bias),) = self.layers(f"{prefix}.linear.")
        return np.maximum(images.reshape(len(images), -1) @ weight.T + bias, 0)

    def features(self, space: Any, value: Any, prefix: str, is_cnn: bool) -> Any:
        if isinstance(space, spaces.Dict):
            parts = ((part, value[name], f"{prefix}.extractors.{name}", True) for name, part in space.items())
            return np.concatenate([self.features(*part) for part in parts], axis=1)
        if isinstance(space, spaces.Discrete):
            return np.eye(int(space.n))[value]
        if isinstance(space, spaces.MultiDiscrete):
            return np.concatenate([np.eye(n)[column] for n, column in zip(space.nvec, value.T, strict=True)], axis=1)
        value = np.asarray(value, np.float64)
        if space.shape in IMAGES:
            value = (value if space.shape[0] == 4 else value.transpose(0, 3, 1, 2)) / 255
        return self.convolved(value, prefix) if is_cnn and space.shape in IMAGES else value.reshape(len(value), -1)

    def output(self, value: Any, which: str, last: str) -> tuple[Any, Any]:
        """`[B, outputs]`, and the size of the summands, which rounding is relative to."""
        prefix = f"{'pi' if which == 'policy' else 'vf'}_features_extractor"
        x = self.features(self.space, value, prefix, self.is_cnn)
        for weight, bias in self.layers(f"mlp_extractor.{which}_net."):
            x = self.activate(x @ weight.T + bias)
        ((weight, bias),) = self.layers(f"{last}.")
        return x @ weight.T + bias, (1 + np.abs(x)) @ np.abs(weight).T + np.abs(bias)


# ---- the behaviour policy, from the network's outputs


def log(x: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(x)


def log_softmax(logits: Any, legal: Any) -> Any:
    logits = np.where(legal, logits, -INF)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def mean_log_ratio(p: Any, log_p: Any, log_q: Any = 0.0) -> Any:
    with np.errstate(invalid="ignore"):
        return np.sum(p * np.where(p > 0, log_p - log_q, 0), axis=-1)


class Categorical:
    """Independent components: lists of `[B, K_d]`."""

    def __init__(self, case: Case, outputs: Any, masks: Any) -> None:
        outputs = outputs.astype(np.float64)
        if outputs.shape[1] != sum(case.sizes):  # one logit a bit
            outputs = np.stack([np.zeros_like(outputs), outputs], -1).reshape(len(outputs), -1)
        masks, cuts = np.ones(outputs.shape, bool) if masks is None else masks, np.cumsum(case.sizes)[:-1]
        self.starts, self.log_network, self.references = case.starts, [], []
        for logits, ok, table in zip(np.split(outputs, cuts, 1), np.split(masks, cuts, 1), case.tables, strict=True):
            log_p = log_softmax(logits, ok)
            greedy = log_p.argmax(-1)
            alone = np.eye(logits.shape[1])[greedy]
            if table is not None and table.ndim == 2:  # a similarity to others: itself counts only where it is alone
                table = table[greedy] * (1 - alone)
            rows = ok * (1.0 if table is None else table)
            rows = np.where(rows.any(-1, keepdims=True), rows, alone)
            self.log_network.append(log_p)
            self.references.append(rows / rows.sum(-1, keepdims=True))
        pairs = zip(self.log_network, self.references, strict=True)
        self.log_p = [log((1 - case.floor) * np.exp(x) + case.floor * q) if case.floor else x for x, q in pairs]
        self.p = [np.exp(log_p) for log_p in self.log_p]

    def places(self, actions: Any) -> Any:
        return (np.asarray(actions).reshape(len(actions), -1).astype(np.int64) - self.starts).T

    def log_prob(self, actions: Any) -> Any:
        pairs = zip(self.log_p, self.places(actions), strict=True)
        return sum(np.take_along_axis(log_p, at[:, None], 1)[:, 0] for log_p, at in pairs)

    def entropy(self) -> Any:
        return -sum(map(mean_log_ratio, self.p, self.log_p))

    def kl(self) -> Any:
        return sum(mean_log_ratio(q, log(q), x) for q, x in zip(self.references, self.log_network, strict=True))

    def check_best(self, actions: Any) -> None:
        for p, at in zip(self.p, self.places(actions), strict=True):
            assert (np.take_along_axis(p, at[:, None], 1)[:, 0] >= p.max(-1) * (1 - 1e-5)).all()

    def check_draws(self, actions: Any) -> None:
        """Draws for the first observation: Bernstein's bound on each frequency, and on those of neighbouring pairs."""
        before: Any = np.zeros(len(actions), np.int64), np.ones(1)
        for at, p in zip(self.places(actions), self.p, strict=True):
            joint = np.outer(before[1], p[0]).ravel()
            counts = np.bincount(before[0] * len(p[0]) + at, minlength=len(joint))
            bound = np.sqrt(2 * joint * (1 - joint) * LOG_LEVEL / len(at)) + 2 * LOG_LEVEL / (3 * len(at))
            assert len(counts) == len(joint)
            assert (np.abs(counts / len(at) - joint) <= bound).all(), (counts, joint)
            assert not counts[joint == 0].any()
            before = at, p[0]


class Gaussian:
    """`(1 - floor) · N(mean, std²) + floor · N(middle, spread²)`, mixed as whole vectors, before clipping."""

    def __init__(self, case: Case, outputs: Any, masks: Any) -> None:
        self.mean, self.floor, self.box = outputs.astype(np.float64), case.floor, case.box
        self.std = np.exp(case.policy.log_std.detach().double().numpy())
        low, high = (bound.astype(np.float64).ravel() for bound in (case.box.low, case.box.high))
        bounded = (high - low) / 2 < 1e18
        self.middle = np.where(bounded, low + np.where(bounded, high - low, 0) / 2, 0)
        self.spread = np.where(bounded & (high > low), (high - low) / 2, 1.0)

    def log_prob(self, actions: Any) -> Any:
        actions = np.asarray(actions, np.float64).reshape(len(actions), -1)

        def log_density(mean: Any, std: Any) -> Any:
            return np.sum(-0.5 * ((actions - mean) / std) ** 2 - np.log(std) - 0.5 * math.log(2 * math.pi), axis=1)

        parts = log_density(self.mean, self.std), log_density(self.middle, self.spread)
        return np.logaddexp(log(1 - self.floor) + parts[0], log(self.floor) + parts[1])

    def entropy(self) -> Any:
        each = np.log(self.std) + 0.5 * math.log(2 * math.pi * math.e)
        return None if self.floor else np.full(len(self.mean), each.sum())

    def kl(self) -> Any:
        squares = self.spread**2 + (self.mean - self.middle) ** 2
        return (np.log(self.std / self.spread) + squares / (2 * self.std**2) - 0.5).sum(-1)

    def check_best(self, actions: Any) -> None:
        wanted = np.clip(self.mean.reshape(actions.shape), self.box.low, self.box.high)
        np.testing.assert_allclose(actions, wanted, rtol=1e-5, atol=1e-5 * float(self.std.max()))

    def check_draws(self, actions: Any) -> None:
        """Draws for the first observation: the bound of Dvoretzky, Kiefer and Wolfowitz, between the Box's bounds."""
        cdf, (count, *_) = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2))), actions.shape
        bounds = self.box.low.ravel(), self.box.high.ravel()
        for place, column in enumerate(np.sort(actions.reshape(count, -1).astype(np.float64), axis=0).T):
            wanted = (1 - self.floor) * cdf((column - self.mean[0, place]) / self.std[place])
            wanted += self.floor * cdf((column - self.middle[place]) / self.spread[place])
            inside = (column > bounds[0][place]) & (column < bounds[1][place])
            # Where float32 has few numbers within a standard deviation, the steps between them count as error.
            grain = np.spacing(np.abs(column).astype(np.float32)) / self.std[place]
            bound = math.sqrt(LOG_LEVEL / (2 * count)) + 1 / count + grain
            assert (np.abs(np.arange(count) / count - wanted) <= bound)[inside].all()


# ---- agents


class Still(gym.Env[Any, Any]):
    """Has spaces, and nothing else."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


class Case:
    """One agent with its spaces, and observations and masks to act on."""

    def __init__(self, seed: int, number: int) -> None:
        rng = self.rng = random.Random(f"{seed} acting {number}")
        torch.manual_seed(rng.getrandbits(31))
        self.generator = np.random.default_rng(rng.getrandbits(31))
        self.trainer = rng.choice(["bc", "bc", "smoothed bc", "smoothed", "sb3"])
        self.clones = "bc" in self.trainer
        self.kind = kind = rng.choice(["discrete", "multi_discrete", "multi_binary", "box"])
        self.action_space: Any = draw_actions(rng, kind, finite=not self.clones)
        self.observation_space = draw_observations(rng)
        self.box: Any = self.action_space if kind == "box" else None
        self.find_components()
        self.observations = samples(self.observation_space, ROWS, rng.getrandbits(31))
        masked = self.sizes and self.bins is None and rng.random() < 0.5
        self.masks = draw_masks(self.sizes, ROWS, rng.getrandbits(31)).numpy() if masked else None
        self.floor, self.reference, self.tables = 0.0, None, [None] * len(self.sizes)
        if self.trainer != "bc":
            self.draw_knobs()
        self.agent = self.build()
        self.policy: Any = self.agent.policy
        self.sharpen()
        self.network = Network(self.policy, self.observation_space)

    def find_components(self) -> None:
        """Sizes and first numbers of the categorical components, none for a Gaussian."""
        space, self.bins, self.starts = self.action_space, None, np.zeros(1, np.int64)
        if self.kind == "box":
            finite = np.isfinite(self.box.low) & np.isfinite(self.box.high) & (self.box.low < self.box.high)
            if self.trainer == "bc" and finite.all() and self.rng.random() < 0.7:
                self.bins = self.rng.choice([2, 5])
            self.sizes = [] if self.bins is None else [self.bins] * self.box.low.size
        elif self.kind == "multi_binary":
            self.sizes = [2] * space.n
        else:
            self.sizes = [int(size) for size in np.ravel(space.n if self.kind == "discrete" else space.nvec)]
            self.starts = np.ravel(space.start)

    def draw_knobs(self) -> None:
        self.floor = self.rng.choice([0.0, 0.05, 0.7, 1.0])
        chosen = self.rng.choice([None, "uniform", "table", "table"])
        if self.box is not None or chosen != "table":
            self.reference = None if chosen is None else "uniform"
            return
        several = self.kind == "multi_discrete"
        for size in self.sizes if several else self.sizes[:1]:
            shape = self.rng.choice([(size,), (size, size)]) if size <= 10 else (size,)
            table = self.generator.random(shape) + 0.01
            self.tables.append(table / table.sum(-1, keepdims=True))
        self.tables = self.tables[len(self.sizes) :] * (1 if several else len(self.sizes))
        tensors: Any = [torch.from_numpy(table) for table in self.tables]
        self.reference = tensors if several else tensors[0]

    def build(self) -> Any:
        rng, masked = self.rng, self.masks is not None
        form = "MultiInput" if isinstance(self.observation_space, spaces.Dict) else "Mlp"
        if self.observation_space.shape in IMAGES and rng.random() < 0.5:
            form = "Cnn"
        first, last = form.replace("Mlp", "").replace("Cnn", ""), "Cnn" * (form == "Cnn")
        own = getattr(agents, f"Smoothed{'Maskable' * masked}{first}ActorCritic{last}Policy")
        arguments: dict[str, Any] = {"net_arch": rng.choice([[], [8], {"pi": [5, 5], "vf": [3]}])}
        arguments |= {"activation_fn": rng.choice([nn.Tanh, nn.ReLU]), "share_features_extractor": rng.random() < 0.5}
        if self.trainer != "bc":
            arguments |= {"exploration_floor": self.floor, "reference": self.reference}
        given: dict[str, Any] = {"policy_kwargs": arguments, "seed": rng.getrandbits(31), "device": "cpu"}
        if self.clones:
            weights = rng.choice([None, self.generator.random(ROWS) + 0.1])
            self.demonstrations = Demonstrations.from_arrays(
                *(self.observations, self.legal_actions()), episode_ends=[2, ROWS], action_masks=self.masks,
                observation_space=self.observation_space, action_space=self.action_space, weights=weights,
            )  # fmt: skip
            policy = f"{form}Policy" if self.trainer == "bc" else own
            agent = BC(policy, None, self.demonstrations, action_bins=self.bins, batch_size=4, **given)
            return agent.learn(total_batches=2)
        ours = self.trainer == "smoothed"
        kinds: list[Any] = [SmoothedPPO, SmoothedA2C] if ours else [PPO, A2C]
        kind = rng.choice([SmoothedMaskablePPO if ours else MaskablePPO] if masked else kinds)
        given |= {"n_steps": 8} if issubclass(kind, A2C) else {"n_steps": 8, "batch_size": 8}
        return kind(f"{form}Policy" if ours else own, Still(self.observation_space, self.action_space), **given)

    def legal_actions(self) -> Any:
        """One for each observation."""
        if self.box is not None:
            low, high = (np.clip(bound.astype(np.float64), -1e18, 1e18) for bound in (self.box.low, self.box.high))
            share = self.generator.random((ROWS, *self.box.shape))
            wide = np.clip(self.generator.normal(size=share.shape), low, high)
            return np.where(high - low < 1e17, low * (1 - share) + high * share, wide).astype(self.box.dtype)
        masks = np.ones((ROWS, sum(self.sizes)), bool) if self.masks is None else self.masks
        parts = np.split(self.generator.random(masks.shape) * masks, np.cumsum(self.sizes)[:-1], axis=1)
        return (np.stack([part.argmax(1) for part in parts], axis=1) + self.starts).reshape(
            ROWS, *self.action_space.shape
        )

    @torch.no_grad()
    def sharpen(self) -> None:
        """Let the outputs differ between observations and actions, by up to some tens."""
        layer, gain = self.policy.action_net, self.rng.choice([0.01, 0.3, 3.0])
        unit = torch.ones(1) if self.sizes else self.policy.log_std.exp()
        layer.weight.add_(gain * unit[:, None] * torch.randn_like(layer.weight))
        layer.bias.add_(gain * unit * torch.randn_like(layer.bias))

    @torch.no_grad()
    def exact(self, observations: Any, masks: Any = None) -> tuple[Any, Any]:
        """The action net's own float32 numbers, and the behaviour policy that they make."""
        kept: list[Any] = []
        hook = self.policy.action_net.register_forward_hook(lambda *call: kept.append(call[2].numpy()))
        self.policy.get_distribution(self.policy.obs_to_tensor(observations)[0])
        hook.remove()
        return kept[0], (Categorical if self.sizes else Gaussian)(self, kept[0], masks)

    def predict(self, observations: Any, masks: Any = None, **named: Any) -> Any:
        """Actions as the policy's components, and as the environment gets them, all of which must be legal."""
        more = {} if self.masks is None else {"action_masks": masks}
        actions = np.asarray(self.agent.predict(observations, **more, **named)[0])
        alone = actions.shape == self.action_space.shape
        actions = actions[None] if alone else actions
        assert actions.shape[1:] == self.action_space.shape
        for action in actions[:ROWS]:
            assert self.action_space.contains(action if self.kind == "box" else action.astype(np.int64)[()]), action
        if self.bins is None:
            return actions
        low, high = (bound.astype(np.float64).ravel() for bound in (self.box.low, self.box.high))
        middles = low + (np.arange(self.bins)[:, None] + 0.5) / self.bins * (high - low)
        flat = actions.reshape(len(actions), 1, -1).astype(np.float64)
        places = np.abs(flat - middles).argmin(1)
        np.testing.assert_allclose(flat[:, 0], np.take_along_axis(middles, places, 0), rtol=1e-6)
        return places


@pytest.fixture(params=range(CASES))
def case(request: pytest.FixtureRequest, seed: int) -> Case:
    return Case(seed, request.param)


def close(found: Any, wanted: Any, size: Any = 0.0, tolerance: float = 1e-5) -> None:
    found = np.asarray(found, np.float64)
    assert found.shape == wanted.shape
    assert (np.abs(found - wanted) <= tolerance * (1 + np.abs(wanted) + size)).all(), (found, wanted)


@torch.no_grad()
def test_outputs_probabilities_and_densities(case: Case) -> None:
    outputs, exact = case.exact(case.observations, case.masks)
    close(outputs, *case.network.output(case.observations, "policy", "action_net"))
    tensors = case.policy.obs_to_tensor(case.observations)[0]
    masks = () if case.masks is None else (torch.from_numpy(case.masks),)
    actions, values, log_prob = case.policy.forward(tensors, False, *masks)
    flat = actions.flatten(1) if actions.ndim > 1 else actions
    _, again, entropy = case.policy.evaluate_actions(tensors, flat, *masks)
    for found in (values, case.policy.predict_values(tensors)):
        close(found, *case.network.output(case.observations, "value", "value_net"))
    for found in (log_prob, again):
        close(found, exact.log_prob(actions))
    wanted = exact.entropy() if case.reference is None else -exact.kl()
    assert (entropy is None) == (wanted is None)
    if entropy is not None:
        close(entropy, wanted)
    if case.clones and not case.floor:
        shown, weights = case.demonstrations.actions, case.demonstrations.weights
        places = shown
        if case.bins is not None:
            low, high = (bound.astype(np.float64) for bound in (case.box.low, case.box.high))
            places = np.minimum((shown.astype(np.float64) - low) / (high - low) * case.bins, case.bins - 1) // 1
        each = -exact.log_prob(places.astype(np.float32) if case.box is not None else places)
        close(case.agent.measures.training(0.0)["nll_hard"], np.average(each, weights=weights), np.abs(each).max())
    if case.trainer == "bc":
        return
    queries = {} if case.masks is None else {"action_masks": case.masks}
    if case.sizes:
        found = case.policy.action_probabilities(case.observations, **queries)
        parts = found if isinstance(found, tuple) else (found,) if found.ndim == 2 else found.unbind(1)
        for part, p in zip(parts, exact.p, strict=True):
            close(part, p, tolerance=2e-6)
            assert not part.numpy()[p == 0].any()
    if exact.entropy() is not None:
        close(case.policy.entropy(case.observations, **queries), exact.entropy())


def test_actions_are_legal_and_as_frequent_as_they_are_probable(case: Case) -> None:
    _, exact = case.exact(case.observations, case.masks)
    layouts: tuple[Callable[[Any], Any], ...] = (
        *(np.asarray, np.asfortranarray, lambda part: part[::-1].copy()[::-1]),
        *(lambda part: np.flip(np.flip(part).copy()), lambda part: np.moveaxis(np.moveaxis(part, 0, -1).copy(), -1, 0)),
    )
    for layout in layouts:
        exact.check_best(case.predict(each_part(layout, case.observations), case.masks, deterministic=True))
    assert np.isfinite(exact.log_prob(case.predict(case.observations, case.masks))).all()
    case.exact(case.observations)[1].check_best(case.predict(case.observations, deterministic=True))  # without masks
    first, mask = each_part(lambda part: part[0], case.observations), None if case.masks is None else case.masks[:1]
    case.exact(first, mask)[1].check_best(case.predict(first, mask, deterministic=True))
    count = DRAWS // 8 if case.network.is_cnn or isinstance(case.observation_space, spaces.Dict) else DRAWS
    many = each_part(lambda part: np.repeat(part[:1], count, axis=0), case.observations)
    exact.check_draws(case.predict(many, None if mask is None else np.repeat(mask, count, axis=0)))


def test_a_saved_agent_acts_alike(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    again = load_agent(case.agent.save(path) if case.clones else save_agent(case.agent, path), device="cpu")
    assert same_parameters(case.agent, again)
    found = []
    for agent in (case.agent, again):
        case.agent = agent
        torch.manual_seed(3)
        found.append([case.predict(case.observations, case.masks, deterministic=greedy) for greedy in (True, False)])
    np.testing.assert_array_equal(*found)
