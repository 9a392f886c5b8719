"""Environments and spaces, wrapped and checked where they enter."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage
from torch import Tensor

from rlsmooth.agents.sb3 import wrap_in_vec_env
from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.data.arrays import action_dims, action_starts


def wrap_env(name: str, env: GymEnv | str, verbose: int = 0) -> VecEnv:
    """A vectorised environment, made and wrapped as SB3's algorithms do (Monitor, channel-first images).

    Raises:
        TypeError: it is neither an id nor an environment.
        ValueError: no environment of that id is registered, or it can't be made.
    """
    if isinstance(env, str):
        try:
            return wrap_env(name, gym.make(env), verbose)
        except gym.error.Error as error:
            raise ValueError(f"{name}={env!r} can't be made ({error}).") from error
    if not isinstance(env, (gym.Env, VecEnv)):
        raise TypeError(f"{name} must be an id, an environment or a VecEnv, got {type(env).__name__} {env!r}.")
    return wrap_in_vec_env(env, verbose)


def resolve_spaces(
    env_or_spaces: GymEnv | str | tuple[spaces.Space[Any], spaces.Space[Any]] | None,
    demonstrations: Demonstrations | None,
    verbose: int,
) -> tuple[VecEnv | None, spaces.Space[Any], spaces.Space[Any]]:
    """The environment, if any, and the two spaces that it, the pair or the demonstrations give.

    Raises:
        TypeError: `env_or_spaces` is neither an environment, an id, nor a pair of spaces.
        ValueError: there is nothing to take spaces from.
    """
    if demonstrations is not None:
        check_demonstrations("demonstrations", demonstrations)
    if env_or_spaces is None:
        if demonstrations is None:
            raise ValueError("env_or_spaces and demonstrations are both None: one must provide the spaces.")
        return None, demonstrations.observation_space, demonstrations.action_space
    if isinstance(env_or_spaces, tuple):
        if len(env_or_spaces) != 2 or not all(isinstance(space, spaces.Space) for space in env_or_spaces):
            raise TypeError(f"env_or_spaces={env_or_spaces!r} must be (observation_space, action_space).")
        return None, env_or_spaces[0], env_or_spaces[1]
    env = wrap_env("env_or_spaces", env_or_spaces, verbose)
    return env, env.observation_space, env.action_space


def check_demonstrations(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a `Demonstrations`."""
    if not isinstance(value, Demonstrations):
        raise TypeError(
            f"{name} must be rlsmooth.data.Demonstrations, got {type(value).__name__}: use Demonstrations.from_arrays, "
            "from_imitation, from_minari or load_demonstrations."
        )


def check_network_space(name: str, space: spaces.Space[Any]) -> None:
    """Refuse what Stable-Baselines3's networks fail on in the middle of the training, by a message without a name.

    Raises:
        ValueError: a Box without axes or without numbers, or a MultiDiscrete of two or more axes.
    """
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            check_network_space(f"{name}[{key!r}]", part)
    if isinstance(space, spaces.Box) and space.shape == ():
        raise ValueError(
            f"{name}={space!r} has no axes, which Stable-Baselines3's networks can't use: give it one, shape (1,), in "
            "a wrapper (gymnasium.wrappers.ReshapeObservation, or TransformAction), and in the demonstrations."
        )
    if isinstance(space, spaces.Box) and 0 in space.shape:
        raise ValueError(f"{name}={space!r} holds no number: give it at least one in a wrapper.")
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) != 1:
        raise ValueError(
            f"{name}={space!r} must have one axis, as Stable-Baselines3's networks need: flatten it in a wrapper "
            "(gymnasium.wrappers.FlattenObservation, or TransformAction), and the demonstrations with it."
        )


def policy_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The observation space that the policy sees: images channel-first, as SB3 transposes them.

    Raises:
        TypeError: a space of another kind, or a Dict in a Dict.
        ValueError: a space that SB3's policies can't take: Discrete or MultiDiscrete that does not start at 0, a Box
            without axes, MultiDiscrete of two axes.
    """
    check_network_space("observation_space", space)
    if isinstance(space, spaces.Dict):
        if any(isinstance(part, spaces.Dict) for part in space.values()):
            raise TypeError("observation_space is a Dict in a Dict: use gymnasium.wrappers.FlattenObservation.")
        return spaces.Dict({key: policy_space(part) for key, part in space.items()})
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise TypeError(f"observation_space={space!r} is not supported: use Box, Discrete, MultiDiscrete, MultiBinary.")
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(space.start):
        raise ValueError(f"observation_space={space!r} must start at 0: subtract its start in a wrapper.")
    if isinstance(space, spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        return VecTransposeImage.transpose_space(space)
    return space


def normalised_space(space: spaces.Space[Any], normalizer: VecNormalize | None) -> spaces.Space[Any]:
    """The space of what a `VecNormalize` makes of observations: SB3 leaves that of whole numbers as it was.

    Args:
        space: of the observations, a Box or a Dict.
        normalizer: the environments' own; None: they have none.
    """
    if normalizer is None or not normalizer.norm_obs:
        return space
    if isinstance(space, spaces.Dict):
        parts = {
            name: _in_floats(part, normalizer.clip_obs) if name in (normalizer.norm_obs_keys or ()) else part
            for name, part in space.spaces.items()
        }
        return spaces.Dict(parts)
    return _in_floats(space, normalizer.clip_obs)


def _in_floats(space: spaces.Space[Any], clip: float) -> spaces.Space[Any]:
    is_whole = isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind in "ui"
    return spaces.Box(-clip, clip, space.shape) if is_whole else space


def check_same_spaces(
    name: str, given: tuple[spaces.Space[Any], spaces.Space[Any]], own: tuple[spaces.Space[Any], spaces.Space[Any]]
) -> None:
    """Raise ValueError unless the spaces of `name` fit the agent's; the bounds of a Box observation may differ."""
    observations = (policy_space(given[0]), policy_space(own[0]))
    for kind, (theirs, ours) in (("observation_space", observations), ("action_space", (given[1], own[1]))):
        if not _fits(theirs, ours, bounds=kind == "action_space"):
            fix = f"they must be the same.{_stacking(*observations)}"
            raise ValueError(f"{name} has {kind}={theirs!r}, but the agent has {ours!r}: {fix}")


def check_all_spaces(
    own: tuple[spaces.Space[Any], spaces.Space[Any]],
    demonstrations: Demonstrations | None,
    validation: Demonstrations | None,
    eval_env: VecEnv | None,
) -> None:
    """Raise unless everything that has spaces has the agent's.

    Raises:
        TypeError: an unsupported space.
        ValueError: spaces that differ; the message names whose.
    """
    _check_action_space(own[1])
    policy_space(own[0])
    if validation is not None:
        check_demonstrations("validation", validation)
    for name, owner in (
        ("demonstrations", demonstrations),
        ("validation", validation),
        ("eval_env", eval_env),
    ):
        if owner is not None:
            recorded = owner.metadata.get("env_id") if isinstance(owner, Demonstrations) else None
            name = f"{name}, recorded in {recorded!r}," if recorded else name
            check_same_spaces(name, (owner.observation_space, owner.action_space), own)


def action_start(space: spaces.Space[Any]) -> NDArray[Any] | None:
    """The offset of a policy's actions, which count from 0, in the environment; None where it is 0."""
    start = action_starts(space)
    if not np.any(start):
        return None
    return np.asarray(start[0] if isinstance(space, spaces.Discrete) else start)


def _check_action_space(space: spaces.Space[Any]) -> None:
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise TypeError(f"action_space={space!r} is not supported: use Discrete, MultiDiscrete, MultiBinary or Box.")
    check_network_space("action_space", space)
    if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind != "f":
        raise TypeError(f"action_space={space!r} has whole numbers: use MultiDiscrete, or a Box of floats.")
    if not isinstance(space, spaces.Box) and len(space.shape or ()) > 1:
        raise ValueError(f"action_space={space!r} must have one axis: flatten it in a wrapper.")


def _fits(theirs: spaces.Space[Any], ours: spaces.Space[Any], *, bounds: bool) -> bool:
    if isinstance(theirs, spaces.Dict) and isinstance(ours, spaces.Dict):
        return set(theirs) == set(ours) and all(_fits(theirs[key], ours[key], bounds=bounds) for key in ours)
    if isinstance(theirs, spaces.Box) and isinstance(ours, spaces.Box):
        same_kind = np.dtype(theirs.dtype).kind == np.dtype(ours.dtype).kind
        same_bounds = np.allclose(theirs.low, ours.low) and np.allclose(theirs.high, ours.high) if bounds else True
        return theirs.shape == ours.shape and same_kind and same_bounds
    return bool(theirs == ours)


def _stacking(theirs: spaces.Space[Any], ours: spaces.Space[Any]) -> str:
    """What to do where observations differ by a frame stack; nothing where they don't."""
    if frames := _frames(theirs, ours):
        return (
            f" These look like single observations, and the agent's like {frames} at once, in a frame stack: record or "
            f"make these with one too (`rlsmooth record --frame-stack {frames}`, SB3's VecFrameStack), or leave it out."
        )
    if frames := _frames(ours, theirs):
        return (
            f" These look like {frames} observations at once, in a frame stack, and the agent's like single ones: give "
            f"its environment one too (--frame-stack {frames}, SB3's VecFrameStack), or record or make these without."
        )
    return ""


def _frames(single: spaces.Space[Any], stacked: spaces.Space[Any]) -> int:
    """How many observations of one space `VecFrameStack` stacks to one of the other; 0: they are others."""
    if isinstance(single, spaces.Dict) and isinstance(stacked, spaces.Dict) and set(single) == set(stacked):
        found = {_frames(single[key], stacked[key]) for key in single}
        return found.pop() if len(found) == 1 else 0
    if not isinstance(single, spaces.Box) or not isinstance(stacked, spaces.Box):
        return 0
    frames, axis = stacked.low.size // max(1, single.low.size), 0 if is_image_space(single) else -1
    low, high = (np.repeat(bounds, frames, axis) for bounds in (single.low, single.high))
    return frames if frames > 1 and np.array_equal(low, stacked.low) and np.array_equal(high, stacked.high) else 0


@dataclass(frozen=True, eq=False)
class ActionBins:
    """Each dimension of a Box cut into bins of equal width; a bin's action is its middle.

    A categorical policy over bins can have several modes where a Gaussian would give their mean; its actions are up to
    half a bin off.

    Attributes:
        box: the action space.
        num_bins: of each dimension.

    Raises:
        TypeError: another space than a Box, or a number of bins that is not whole.
        ValueError: fewer than two bins, or a dimension without finite bounds or without width.

    Examples:
        >>> bins = ActionBins(spaces.Box(-1.0, 1.0, (1,)), 4)
        >>> bins.encode(np.array([[-1.0], [0.1], [1.0]])).ravel().tolist()
        [0, 2, 3]
        >>> bins.decode(np.array([[0], [3]])).ravel().tolist()
        [-0.75, 0.75]
    """

    box: spaces.Space[Any]
    num_bins: int

    def __post_init__(self) -> None:
        check_positive_int("action_bins", self.num_bins, minimum=2)
        if not isinstance(self.box, spaces.Box):
            raise TypeError(f"action_bins={self.num_bins} is for a Box action space, this one is {self.box!r}.")
        low, width = self._low_and_width()
        if not (np.isfinite(low).all() and np.isfinite(width).all() and (width > 0).all()):
            raise ValueError(f"action_bins={self.num_bins} needs finite bounds in every dimension, got {self.box!r}.")

    @property
    def space(self) -> spaces.MultiDiscrete:
        """The policy's action space: one dimension of `num_bins` values for each of the Box."""
        return spaces.MultiDiscrete([self.num_bins] * self._low_and_width()[0].size)

    def encode(self, actions: NDArray[Any]) -> NDArray[np.int64]:
        """Bins of actions `[N, D]`, int64; the upper bound belongs to the last bin."""
        low, width = self._low_and_width()
        places = np.floor((actions.astype(np.float64) - low) / width * self.num_bins).astype(np.int64)
        return np.clip(places, 0, self.num_bins - 1)

    def decode(self, places: NDArray[Any]) -> NDArray[Any]:
        """The middles of bins `[..., D]`, in the Box's shape and dtype."""
        low, width = self._low_and_width()
        actions = low + (places.astype(np.float64) + 0.5) / self.num_bins * width
        return actions.astype(self.box.dtype).reshape((*places.shape[:-1], *(self.box.shape or ())))

    def _low_and_width(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert isinstance(self.box, spaces.Box)
        low, high = (bound.astype(np.float64).ravel() for bound in (self.box.low, self.box.high))
        return low, high - low


ActionKind: TypeAlias = Literal["discrete", "multi_discrete", "multi_binary"]


def action_components(space: spaces.Space[Any]) -> tuple[ActionKind, tuple[int, ...]] | None:
    """`(kind, number of choices of each component)` of a discrete action space; None for a Box.

    Raises:
        TypeError: a space of another kind.

    Examples:
        >>> action_components(spaces.MultiBinary(3))
        ('multi_binary', (2, 2, 2))
    """
    if isinstance(space, spaces.Box):
        return None
    if isinstance(space, spaces.Discrete):
        return "discrete", (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return "multi_discrete", tuple(int(size) for size in space.nvec)
    if isinstance(space, spaces.MultiBinary):
        return "multi_binary", (2,) * int(space.shape[0])
    raise TypeError(f"action_space={space!r} is not supported: use Discrete, MultiDiscrete, MultiBinary or Box.")


def box_reference(space: spaces.Space[Any], std: float | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, float32 `[D]` each, of the broad Gaussian of a Box.

    It lies at the middle of the bounds with half their distance as its standard deviation; a dimension without finite
    bounds has mean 0 and standard deviation 1, and one whose bounds are equal that standard deviation too.

    Args:
        space: a Box.
        std: replaces the standard deviation of every dimension; above 0.

    Raises:
        TypeError: another space, or `std` is no number.
        ValueError: `std` is not above 0.

    Examples:
        >>> box_reference(spaces.Box(-2.0, 4.0, (1,)))
        (tensor([1.]), tensor([3.]))
    """
    if not isinstance(space, spaces.Box):
        raise TypeError(f"a Gaussian reference is for a Box action space, this one is {space!r}.")
    low = torch.as_tensor(space.low, dtype=torch.float32).flatten()
    high = torch.as_tensor(space.high, dtype=torch.float32).flatten()
    half = high / 2 - low / 2
    bounded = half.square().isfinite()  # float32's largest number is nobody's bound either
    mean = torch.where(bounded, low / 2 + high / 2, 0.0)
    if std is None:
        return mean, torch.where(bounded & (half > 0), half, 1.0)
    return mean, torch.full_like(half, check_in_range("reference_std", std, 0.0, low_open=True))


# ---- actions that do not start at 0


LARGEST_FLOAT32_INTEGER = 2**24


class FromStart:
    """A mixin before a categorical distribution of Stable-Baselines3, whose actions then count from `start`.

    `sample`, `mode` and `log_prob` speak of the environment's actions; logits and probabilities are what they were.

    Attributes:
        start: the first action, of each dimension for MultiDiscrete.
    """

    start: tuple[int, ...]

    def sample(self) -> Tensor:
        """Draw actions."""
        parent: Any = super()
        return shifted(parent.sample(), self.start)

    def mode(self) -> Tensor:
        """The most probable action."""
        parent: Any = super()
        return shifted(parent.mode(), self.start)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability of the environment's actions, `[B]`."""
        parent: Any = super()
        found: Tensor = parent.log_prob(shifted(actions, self.start, sign=-1))
        return found

    def __reduce__(self) -> tuple[Any, ...]:  # a class made at run time has no name by which pickle could find it
        return _restored, (type(self).__mro__[2],), dict(vars(self))


def shifted(actions: Tensor, start: tuple[int, ...], sign: int = 1) -> Tensor:
    """`actions + sign · start`, of one number for Discrete actions, else of one a dimension."""
    return actions + sign * (start[0] if len(start) == 1 else _on_device(start, actions.device))


def fill_padding(actions: Tensor, start: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    """The actions, with an action of the space where sb3-contrib's sequences are padded by 0, which counts nowhere."""
    counted = shifted(actions, start, sign=-1).clamp(min=0)
    largest = tuple(size - 1 for size in dims)
    counted = counted.clamp(max=largest[0]) if len(dims) == 1 else counted.minimum(_on_device(largest, actions.device))
    return shifted(counted, start)


def start_of(space: spaces.Space[Any]) -> tuple[int, ...] | None:
    """The first action of each dimension; None where all are 0."""
    start = action_start(space)
    return None if start is None else tuple(int(one) for one in start.reshape(-1))


def count_from_start(policy: BasePolicy) -> None:
    """Let an actor-critic policy act in its own action space, whatever that starts at, in `forward` too.

    The policy's class and its parameters stay as they are.
    """
    start = start_of(policy.action_space)
    distribution = getattr(policy, "action_dist", None)
    if start is None or distribution is None or isinstance(distribution, FromStart):
        return
    counting = _restored(type(distribution))
    vars(counting).update(vars(distribution), start=start)
    owner: Any = policy
    owner.action_dist = counting


def plain_class(distribution: Distribution) -> type[Distribution]:
    """The distribution's class, that of Stable-Baselines3 if `count_from_start` changed it."""
    found = type(distribution)
    return found.__mro__[2] if isinstance(distribution, FromStart) else found


def check_counts_from_start(name: str, policy: BasePolicy) -> None:
    """Raise ValueError if the policy's actions count from 0 and its action space does not.

    Args:
        name: of the argument that has the policy.
        policy: of any algorithm.
    """
    if start_of(policy.action_space) is None or isinstance(getattr(policy, "action_dist", None), FromStart):
        return
    raise ValueError(
        f"{name} has action_space={policy.action_space!r}, but the actions of its {type(policy).__name__} count from "
        "0, as those of Stable-Baselines3 do: use a smoothed policy (SmoothedActorCriticPolicy, or SmoothedPPO), which "
        "counts from the start, or subtract the start in a wrapper of the environment."
    )


def check_float32_actions(space: spaces.Space[Any]) -> None:
    """Raise ValueError for actions that the buffers of Stable-Baselines3, which are float32, can't keep."""
    starts = action_starts(space)
    largest = max(np.abs(starts).max(), np.abs(starts + action_dims(space) - 1).max())
    if largest > LARGEST_FLOAT32_INTEGER:
        raise ValueError(
            f"action_space={space!r} has actions beyond {LARGEST_FLOAT32_INTEGER}, which Stable-Baselines3's float32 "
            "buffers round: subtract the start in a wrapper of the environment."
        )


@functools.cache
def _class_from_start(plain: type) -> Any:
    return type(f"{plain.__name__}FromStart", (FromStart, plain), {})


def _restored(plain: type) -> Any:
    made = _class_from_start(plain)
    return made.__new__(made)


@functools.lru_cache(maxsize=64)
def _on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)
