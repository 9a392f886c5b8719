"""Weights of demonstrated transitions by how much better they turned out than was to be expected of their states."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs

from rlsmooth.checks import check_choice, check_in_range
from rlsmooth.data import Demonstrations
from rlsmooth.data.arrays import take
from rlsmooth.training.seeding import isolated_rng
from rlsmooth.untrusted import Within, decode

Form: TypeAlias = Literal["advantage", "positive", "top"]
Values: TypeAlias = Literal["critic", "returns"]
Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]
FORMS, VALUES = ("advantage", "positive", "top"), ("critic", "returns")

FOLDS = 5
"""A critic values the episodes that it was not fitted to: of those that it was, it would know the returns by heart."""
TANH_FEATURES, WEIGHT_SCALE, RIDGE, TINY = 128, 2.0, 0.01, 1e-9
MOST_LINEAR, MOST_FITTED, READ = 1024, 32_768, 1024
"""Features that count by themselves, transitions that a critic is fitted to, and how many are read at once."""
ROUNDS, CLOSE = 50, 1e-4
"""Of finding values of what follows where episodes were cut off: at most, and the change that is small enough."""


class EncodedAdvantageWeights(TypedDict):
    """`AdvantageWeights` in a file."""

    form: Form
    temperature: Annotated[float, Within(0, low_open=True)]
    cap: Annotated[float, Within(1)] | None
    share: Annotated[float, Within(0, 1, low_open=True)]
    values: Values
    gamma: Annotated[float, Within(0, 1)]


@dataclasses.dataclass(frozen=True)
class AdvantageWeights:
    """A recipe that weighs each demonstrated transition by its advantage `A = G - V(s)`.

    `G` is the discounted sum of the rewards from the transition on: nothing follows a terminal state, and an episode
    that was cut off is worth `gamma · V` of its final observation (without `next_observations`, V of its last one takes
    the place of what its last step brought). `c` is the root mean square of A over all transitions, so that the
    temperature has no unit. The weights are fixed before training: the critic learns from returns, which do not change
    with the clone. They are divided by their mean and multiplied with the demonstrations' own weights.

    | form | weight | source |
    |---|---|---|
    | `"advantage"` | `min(exp(A / (temperature · c)), cap)` | Wang et al. 2018 (MARWIL), Peng et al. 2019 (AWR) |
    | `"positive"` | 1 where A > 0, else 0 | Wang et al. 2020 (CRR, its binary form) |
    | `"top"` | 1 for at most a share of the transitions, those of the highest A, else 0 | filtered cloning |

    V comes from a critic, or is the mean return of the episodes: then whole episodes are weighed by their return. The
    critic is linear in the features of the policy's kind of extractor and 128 random tanh units of them, and fitted to
    G by ridge regression, which has one solution and takes well under a second. Each episode is valued by the critic
    of the others (five folds).

    Args:
        form: one of those in the table.
        temperature: above 0; the lower, the more the best transitions count (MARWIL's beta is 1 / temperature).
        cap: of the exponential, at least 1; None: none.
        share: of the transitions that `"top"` keeps, in (0, 1].
        values: `"critic"` or `"returns"`.
        gamma: the discount, in [0, 1]; below 1 where a critic values episodes that were cut off.

    Raises:
        TypeError: a value of another kind.
        ValueError: a value outside its range; an option that the form does not use.

    Examples:
        >>> AdvantageWeights(temperature=0.5).weights(np.array([-1.0, 1.0])).round(3).tolist()
        [0.036, 1.964]
    """

    form: Form = "advantage"
    temperature: float = 1.0
    cap: float | None = 20.0
    share: float = 0.5
    values: Values = "critic"
    gamma: float = 0.99

    def __post_init__(self) -> None:
        check_choice("form", self.form, FORMS)
        check_choice("values", self.values, VALUES)
        check_in_range("temperature", self.temperature, 0.0, low_open=True)
        check_in_range("share", self.share, 0.0, 1.0, low_open=True)
        check_in_range("gamma", self.gamma, 0.0, 1.0)
        if self.cap is not None:
            check_in_range("cap", self.cap, 1.0)
        users = {"temperature": "advantage", "cap": "advantage", "share": "top"}
        for field in dataclasses.fields(self):
            if users.get(field.name, self.form) != self.form and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)!r} is for form={users[field.name]!r}, "
                    f"not form={self.form!r}: leave it out."
                )

    def weights(self, advantages: Floats, spread: float | None = None, bar: float | None = None) -> Floats:
        """Weights of mean 1 for some advantages; all are 0 where a filter keeps none.

        Args:
            advantages: `[N]`.
            spread: c; None: of these advantages.
            bar: the lowest advantage that `"top"` keeps; None: that of these.
        """
        if self.form == "advantage":
            c = root_mean_square(advantages) if spread is None else spread
            exponent = advantages / (self.temperature * c) if c > 0 else np.zeros(len(advantages))
            capped = exponent if self.cap is None else np.minimum(exponent, np.log(self.cap))
            found = np.exp(capped - capped.max())  # the largest is 1: nothing overflows, and not all can be 0
        else:
            least = self.bar(advantages) if bar is None else bar
            found = (advantages > 0 if self.form == "positive" else advantages >= least).astype(np.float64)
        weights: Floats = found / (found.mean() or 1.0)
        return weights

    def bar(self, advantages: Floats) -> float:
        """The lowest advantage that `"top"` keeps: equal ones stay together, so that it keeps the share or less.

        The highest is always kept.
        """
        values, counts = np.unique(advantages, return_counts=True)
        kept = np.cumsum(counts[::-1]) <= self.share * len(advantages) * (1 + 1e-12)
        return float(values[::-1][max(int(kept.sum()) - 1, 0)])


WeightsLike: TypeAlias = Form | AdvantageWeights | Callable[[Demonstrations], Any]


class Weighed(NamedTuple):
    """Demonstrations with their new weights, and what is to be known of these.

    Attributes:
        training: to train on.
        validation: held out.
        effective_share: `(sum of weights)² / (N · sum of squared weights)`: as if so many of them counted, all alike.
        explained_variance: of the returns, by the critic, on episodes that it was not fitted to; None: there is none.
    """

    training: Demonstrations
    validation: Demonstrations | None
    effective_share: float
    explained_variance: float | None = None


def as_weights(value: WeightsLike) -> AdvantageWeights | Callable[[Demonstrations], Any]:
    """What a `weights=` argument means.

    Raises:
        TypeError: it is nothing of the kind.
        ValueError: an unknown form.
    """
    if isinstance(value, str):
        check_choice("weights", value, FORMS)
        return AdvantageWeights(value)
    if isinstance(value, AdvantageWeights) or callable(value):
        return value
    raise TypeError(
        f"weights={value!r} must be one of {', '.join(FORMS)}, an AdvantageWeights, a function of the demonstrations, "
        "or None; numbers belong in the demonstrations: Demonstrations.from_arrays(..., weights=...)."
    )


def encode_weights(value: Any) -> dict[str, Any]:
    """JSON of a `weights=` argument; a function, which no file can hold, is empty."""
    return dataclasses.asdict(value) if isinstance(value, AdvantageWeights) else {}


def decode_weights(encoded: Mapping[str, Any]) -> AdvantageWeights | None:
    """The recipe that `encode_weights` wrote; None for a function.

    Raises:
        ValueError: it is malformed.
    """
    return AdvantageWeights(**decode(EncodedAdvantageWeights, encoded, "weights")) if encoded else None


def weigh(
    recipe: AdvantageWeights | Callable[[Demonstrations], Any],
    training: Demonstrations,
    validation: Demonstrations | None,
    *,
    policy: BasePolicy,
    seed: int,
) -> Weighed:
    """Weigh both parts; critic and scale are those of the first.

    Args:
        recipe: or a function of one part that returns its weights.
        training: to train on.
        validation: held out, or None.
        policy: whose kind of features extractor the critic uses.
        seed: of the critic.

    Raises:
        ValueError: rewards or flags are missing, all weights are 0, or a function's weights don't fit.

    Warns:
        UserWarning: the critic explains less than nothing of the returns of episodes that it was not fitted to.
    """
    parts = {"demonstrations": training} | ({} if validation is None else {"validation": validation})
    if not isinstance(recipe, AdvantageWeights):
        own = [_times(part, recipe(part), f"weights({name})") for name, part in parts.items()]
        return Weighed(own[0], own[1] if validation is not None else None, effective_share(own[0].weights))
    for name, part in parts.items():
        _check(name, part, recipe)
    explained = None
    if recipe.values == "returns":
        of_episodes = [_episode_returns(part, recipe.gamma) for part in parts.values()]
        mean = of_episodes[0].mean()
        found = [
            np.repeat(returns - mean, part.episode_lengths())
            for returns, part in zip(of_episodes, parts.values(), strict=True)
        ]
    else:
        found, explained = critic_advantages(training, validation, recipe.gamma, policy, seed)
        if explained < 0:
            warnings.warn(
                f"weights={recipe.form!r}: the critic explains {explained:.2f} of the variance of returns that it was "
                "not fitted to, so that its advantages are noise. Compare whole episodes, "
                "AdvantageWeights(values='returns'), record more of them, or leave weights out.",
                UserWarning,
                stacklevel=4,
            )
    spread, bar = root_mean_square(found[0]), recipe.bar(found[0])
    weighed = [
        _times(part, recipe.weights(advantages, spread, bar), name)
        for (name, part), advantages in zip(parts.items(), found, strict=True)
    ]
    share = effective_share(weighed[0].weights)
    return Weighed(weighed[0], weighed[1] if validation is not None else None, share, explained)


def root_mean_square(values: Floats) -> float:
    """The square root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def effective_share(weights: Any) -> float:
    """`(sum of weights)² / (N · sum of squared weights)`, between 1 / N and 1."""
    values = np.asarray(weights, dtype=np.float64)
    return float(values.sum() ** 2 / (len(values) * np.square(values).sum()))


def returns_to_go(rewards: Floats, episode_ends: Indices, gamma: float) -> tuple[Floats, Floats]:
    """`(G, D)`, both `[N]`: the discounted rewards from each transition to its episode's end, and the discount there.

    A value `v` of what follows the end adds `D · v` to G.

    Examples:
        >>> returns_to_go(np.array([1.0, 2.0, 4.0]), np.array([2, 3]), 0.5)
        (array([2., 2., 4.]), array([0.25, 0.5 , 0.5 ]))
    """
    found, is_end = np.empty(len(rewards)), np.zeros(len(rewards), dtype=bool)
    is_end[episode_ends - 1] = True
    total, step = 0.0, len(rewards)
    for reward, ends in zip(rewards[::-1].tolist(), is_end[::-1].tolist(), strict=True):
        step -= 1
        total = reward if ends else reward + gamma * total
        found[step] = total
    lengths = np.diff(episode_ends, prepend=0)
    to_end = np.repeat(episode_ends, lengths) - np.arange(len(rewards))
    return found, gamma ** to_end.astype(np.float64)


def _check(name: str, part: Demonstrations, recipe: AdvantageWeights) -> None:
    """Raise ValueError if the part lacks what the recipe needs."""
    if part.rewards is None:
        raise ValueError(
            f"{name} have no rewards, which weights={recipe.form!r} needs: record them (rlsmooth record), or give a "
            "function of the demonstrations as weights."
        )
    if recipe.values == "returns":
        return
    if part.terminations is None and part.truncations is None:
        raise ValueError(
            f"{name} have neither terminations nor truncations, so that it is not known whether more would have "
            "followed an episode's end: add terminations, or use AdvantageWeights(values='returns')."
        )
    if recipe.gamma == 1 and len(cut_off(part)):
        raise ValueError(
            f"gamma=1 with {len(cut_off(part))} episodes of {name} that were cut off: their values would have no "
            "bound. Use gamma=0.99, or AdvantageWeights(values='returns')."
        )


def cut_off(part: Demonstrations) -> Indices:
    """The numbers of the episodes that did not end in a terminal state."""
    last = part.episode_ends - 1
    if part.terminations is None:  # there are truncations: the other episodes ended by themselves
        assert part.truncations is not None
        return np.flatnonzero(np.asarray(part.truncations)[last])
    return np.flatnonzero(~np.asarray(part.terminations)[last])


def _episode_returns(part: Demonstrations, gamma: float) -> Floats:
    return returns_to_go(np.asarray(part.rewards, dtype=np.float64), part.episode_ends, gamma)[0][part.episode_starts]


def _times(part: Demonstrations, weights: Any, name: str) -> Demonstrations:
    """The part with these weights, or what its own and these make together.

    Raises:
        ValueError: a function's weights are of another length, not finite, negative, or all 0.
    """
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (len(part),):
        raise ValueError(f"{name} has shape {given.shape}: it must be one number for each of {len(part)} transitions.")
    wrong = np.flatnonzero(~(np.isfinite(given) & (given >= 0)))
    if len(wrong):
        raise ValueError(f"{name} is {given[wrong[0]]} for transition {wrong[0]}: it must be finite and at least 0.")
    whole = given if part.weights is None else given * np.asarray(part.weights, dtype=np.float64)
    if not whole.any():
        raise ValueError(
            f"{name}: every weight is 0, so that their loss is 0: use other weights, or hold out other episodes "
            "(another seed or validation_fraction)."
        )
    return part.replace_unchecked(weights=(whole / whole.mean()).astype(np.float32))


# ---- the critic


class Features:
    """The inputs of a linear critic: 1, standardised features, and random tanh units of these.

    Args:
        policy: whose kind of features extractor is used, with new initial weights.
        observations: as demonstrations store them.
        fitted: the transitions by which features are standardised.
        seed: of the random units.
    """

    def __init__(self, policy: BasePolicy, observations: Any, fitted: Indices, seed: int) -> None:
        self.policy = policy
        with isolated_rng(seed):
            self.extractor = policy.make_features_extractor().to(policy.device).eval()
        features = self._extracted(observations, fitted)
        scale = features.std(0)
        self.shift, self.scale = features.mean(0), np.where(scale > 1e-8, scale, 1.0)
        rng, size = np.random.default_rng(seed), features.shape[1]
        self.directions = rng.normal(scale=WEIGHT_SCALE / np.sqrt(size), size=(size, TANH_FEATURES))
        self.biases = rng.uniform(-WEIGHT_SCALE, WEIGHT_SCALE, TANH_FEATURES)

    def __call__(self, observations: Any, chosen: Indices) -> Floats:
        """`[n, F]`, of some of the observations."""
        standard = (self._extracted(observations, chosen) - self.shift) / self.scale
        linear = standard[:, :MOST_LINEAR] if standard.shape[1] <= MOST_LINEAR else standard[:, :0]
        ones = np.ones((len(standard), 1))
        return np.concatenate([ones, linear, np.tanh(standard @ self.directions + self.biases)], axis=1)

    @torch.no_grad()
    def _extracted(self, observations: Any, chosen: Indices) -> Floats:
        policy, parts = self.policy, []
        for start in range(0, len(chosen), READ):
            tensor, _ = policy.obs_to_tensor(take(observations, chosen[start : start + READ]))
            inputs = preprocess_obs(tensor, policy.observation_space, normalize_images=policy.normalize_images)
            parts.append(self.extractor(inputs).cpu().numpy().astype(np.float64))
        return np.concatenate(parts)


class Returns:
    """The returns of demonstrations, where episodes that were cut off need a value of what would have followed.

    Args:
        data: with rewards.
        gamma: the discount.

    Attributes:
        cut: the numbers of the episodes that were cut off.
        episode: of each transition, the number of its episode.
        last: the indices of the last transitions of `cut`.
        final: the observations whose values at `last` are needed.
        low: no value is below.
        high: no value is above.
    """

    def __init__(self, data: Demonstrations, gamma: float) -> None:
        self.data, rewards = data, np.array(data.rewards, dtype=np.float64)
        self.cut = cut_off(data) if gamma > 0 else np.empty(0, dtype=np.int64)
        self.episode = np.repeat(np.arange(data.num_episodes), data.episode_lengths())
        self.last = data.episode_ends[self.cut] - 1
        horizon = 1.0 / (1.0 - gamma) if gamma < 1 else np.inf
        self.low, self.high = (float(bound) * horizon if bound else 0.0 for bound in _range_with_0(rewards))
        self.steady = np.full(len(self.cut), rewards.mean() * horizon if len(self.cut) else 0.0)
        has_next = data.next_observations is not None
        self.final = data.next_observations if has_next else data.observations
        if not has_next:  # the last observation, a step before the final one, takes its place
            rewards[self.last] = 0.0
        self.known, self.discount = returns_to_go(rewards, data.episode_ends, gamma)
        if not has_next and len(self.cut):
            self.discount /= gamma

    def complete(self, following: Floats, chosen: Any = slice(None)) -> Floats:
        """G of some transitions, given a value for each episode that was cut off."""
        of_episodes = np.zeros(self.data.num_episodes)
        of_episodes[self.cut] = following
        found: Floats = self.known[chosen] + self.discount[chosen] * of_episodes[self.episode[chosen]]
        return found

    def values(self, features: Features, critic: Floats, observations: Any, chosen: Indices) -> Floats:
        """What a critic says of some observations, within what the rewards allow."""
        parts = [chosen[start : start + READ] for start in range(0, len(chosen), READ)]
        found = [features(observations, part) @ critic for part in parts]
        values: Floats = np.clip(np.concatenate([np.empty(0), *found]), self.low, self.high)
        return values


def _range_with_0(rewards: Floats) -> tuple[float, float]:
    return min(float(rewards.min()), 0.0), max(float(rewards.max()), 0.0)


def fit_critic(returns: Returns, inputs: Floats, fitted: Indices, near: NDArray[np.bool_], ends: Floats) -> Floats:
    """The coefficients `[F]` of a critic, whose values of what follows its episodes are its own.

    Args:
        returns: of all transitions.
        inputs: `[n, F]` features of those to fit to.
        fitted: their indices.
        near: which of the episodes that were cut off contain some of them.
        ends: features of what follows those.
    """
    own = returns.data.weights
    weights = np.ones(len(fitted)) if own is None else np.asarray(own[fitted], dtype=np.float64)
    weighted = inputs * weights[:, None]
    ridge = np.full(inputs.shape[1], RIDGE)
    ridge[0] = TINY  # the constant is not shrunk
    solved = np.linalg.solve(weighted.T @ inputs + np.diag(ridge * (weights.sum() or 1.0)), weighted.T)
    following, least = returns.steady.copy(), CLOSE * (returns.high - returns.low)
    for _ in range(ROUNDS):
        critic: Floats = solved @ returns.complete(following, fitted)
        new = np.clip(ends @ critic, returns.low, returns.high)
        change = np.abs(new - following[near]).max(initial=0.0)
        following[near] = new
        if change <= least:
            break
    return critic


def critic_advantages(
    training: Demonstrations, validation: Demonstrations | None, gamma: float, policy: BasePolicy, seed: int
) -> tuple[list[Floats], float]:
    """The advantages of both parts, and the share of the training returns' variance that the values explain.

    Of a training episode they are by the critic that was fitted to the other folds, of a held-out one the mean over
    the critics. A single episode is fitted to itself.
    """
    rng, returns = np.random.default_rng(seed), Returns(training, gamma)
    order = rng.permutation(training.num_episodes)
    count = 1 + int(np.searchsorted(training.episode_lengths()[order].cumsum(), MOST_FITTED))
    place, folds = np.argsort(order), min(FOLDS, count, training.num_episodes)
    fitted = np.flatnonzero(place[returns.episode] < count)
    if len(fitted) > MOST_FITTED:
        fitted = np.sort(rng.choice(fitted, MOST_FITTED, replace=False))
    features = Features(policy, training.observations, fitted, seed)
    inputs, fold = features(training.observations, fitted), (place % folds)[returns.episode]
    near = place[returns.cut] < count
    ends = features(returns.final, returns.last[near]) if near.any() else inputs[:0]
    goals, values, others = np.empty(len(training)), np.empty(len(training)), []
    for number in range(folds):
        used = (fold[fitted] != number) | (folds == 1)
        critic = fit_critic(returns, inputs[used], fitted[used], near, ends)
        own = np.flatnonzero(fold == number)
        following = returns.values(features, critic, returns.final, returns.last)
        goals[own] = returns.complete(following, own)
        values[own] = returns.values(features, critic, training.observations, own)
        if validation is not None:
            others.append(_held_out(Returns(validation, gamma), features, critic))
    spread = float(goals.var())
    explained = 1.0 - float((goals - values).var()) / spread if spread > 0 else 1.0
    return [goals - values, *([np.mean(others, axis=0)] if others else [])], explained


def _held_out(returns: Returns, features: Features, critic: Floats) -> Floats:
    """The advantages of other demonstrations by a critic."""
    data = returns.data
    following = returns.values(features, critic, returns.final, returns.last)
    return returns.complete(following) - returns.values(features, critic, data.observations, np.arange(len(data)))
