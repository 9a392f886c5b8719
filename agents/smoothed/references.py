"""Reference distributions of an action space, which a policy is kept near to.

A discrete reference is a recipe (`Smoothing`) a component, whose background around the greedy action is the reference
in a state. A Box has a broad Gaussian.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor

from rlsmooth.agents.heads import actor_output
from rlsmooth.agents.sb3 import has_base, is_maskable
from rlsmooth.agents.spaces import action_components, check_same_spaces
from rlsmooth.targets import Smoothing, Tree

PolicyReference: TypeAlias = (
    "str | Tensor | np.ndarray[Any, Any] | Tree | Smoothing | Sequence[str | Tensor | Tree | Smoothing] | None"
)
"""Values of `reference=`; a sequence has one entry for each dimension of a MultiDiscrete space."""
References: TypeAlias = tuple[Smoothing | None, ...]
"""One recipe a component of the action; None: uniform over the legal choices."""
_LARGEST_TABLE = 512  # classes for which the reference around each action is kept, 1 MiB in float32
_UNIFORM = Smoothing(alpha=1.0)


def reference_recipes(value: Any, space: spaces.Space[Any]) -> References | None:
    """The recipes that a `reference=` argument means for an action space; None where there is none, and for a Box.

    Args:
        value: None; `"uniform"`; a prior `[K]`; a kernel `[K, K]`; the name of an ordinal scheme; a `Tree`; a
            `Smoothing`, whose reference is meant and, with `alpha=None`, its whole distribution; or a tuple or list of
            such, one for each dimension of a MultiDiscrete space. One value serves all dimensions or bits.
        space: the action space.

    Raises:
        TypeError: it is none of these.
        ValueError: a reference for another number of choices, a sequence that does not fit, another one than
            `"uniform"` for a Box.

    Examples:
        >>> [recipe] = reference_recipes("adjacent", spaces.Discrete(4))
        >>> recipe(torch.tensor([0]), 4).dense()
        tensor([[0., 1., 0., 0.]])
    """
    if value is None:
        return None
    components = action_components(space)
    if components is None:
        if not (isinstance(value, str) and value == "uniform"):
            raise ValueError(
                f'reference={value!r} can\'t be used for a Box: give "uniform", which is a broad Gaussian there, and '
                "reference_std for its width."
            )
        return None
    kind, sizes = components
    if isinstance(value, (tuple, list)):
        if kind != "multi_discrete" or len(value) != len(sizes):
            raise ValueError(
                f"reference has {len(value)} entries: a sequence needs one for each dimension of a MultiDiscrete space "
                f"(a prior or kernel is a tensor), and the action space is {space!r}."
            )
        recipes = [_recipe(entry) for entry in value]
    else:
        recipes = [_recipe(value)] * len(sizes)
    for recipe, size in zip(recipes, sizes, strict=True):
        if recipe is not None:
            recipe(torch.zeros(1, dtype=torch.int64), size)  # makes the recipe's table, or says why it does not fit
    return tuple(recipes)


def canonical_reference(value: Any) -> Any:
    """A `reference=` argument as a policy keeps it: arrays as tensors, sequences as tuples, recipes without a schedule.

    Examples:
        >>> canonical_reference(Smoothing(alpha="lin_0.1", reference="adjacent")).alpha
        1.0
    """
    if isinstance(value, (tuple, list)):
        return tuple(canonical_reference(entry) for entry in value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Smoothing) and value.alpha is not None:
        return dataclasses.replace(value, alpha=1.0)
    return value


def check_reference_policy(policy: BasePolicy, own: BasePolicy) -> None:
    """Raise unless `policy` has a distribution for each observation of `own`.

    Raises:
        TypeError: it is no actor-critic policy, or a recurrent one.
        ValueError: its spaces or its action net's outputs are not those of `own`, or its outputs are squashed.
    """
    if has_base(type(policy), "RecurrentActorCriticPolicy"):
        raise TypeError(f"policy={type(policy).__name__} is recurrent, which a reference can't be: use a plain one.")
    if not (isinstance(policy, ActorCriticPolicy) or is_maskable(policy)):
        raise TypeError(f"policy must be an actor-critic policy, got {type(policy).__name__}.")
    check_same_spaces(
        "policy", (policy.observation_space, policy.action_space), (own.observation_space, own.action_space)
    )
    if policy.squash_output or (isinstance(policy, ActorCriticPolicy) and policy.use_sde):
        raise ValueError("policy uses gSDE or squashes its outputs: a reference needs a plain Gaussian.")
    theirs, ours = (_number_of_outputs(one) for one in (policy, own))
    if theirs != ours:
        raise ValueError(
            f"policy's action net has {theirs} outputs, this one's {ours}: a reference for sb3-contrib's maskable "
            "policies on MultiBinary actions must be a maskable one too."
        )


def reference_outputs(policy: BasePolicy, observations: Any) -> Tensor | tuple[Tensor, Tensor]:
    """The network's outputs of a reference policy, without a graph: logits, or for a Box `(mean, log_std)`.

    Args:
        policy: one that `check_reference_policy` allows.
        observations: tensors, as `evaluate_actions` takes them.
    """
    reader: Any = policy
    with torch.no_grad():
        outputs = actor_output(policy, observations)
        return (outputs, reader.log_std) if isinstance(policy.action_space, spaces.Box) else outputs


def has_default_reference(smoothing: Smoothing) -> bool:
    """Whether it names no reference of its own: the uniform one over all legal actions."""
    return isinstance(smoothing.reference, str) and smoothing.reference == "uniform" and smoothing.spread == "all"


def _recipe(value: Any) -> Smoothing | None:
    if isinstance(value, str) and value == "uniform":
        return None
    if isinstance(value, Smoothing):
        if has_default_reference(value):
            return None
        return value if value.alpha is None else dataclasses.replace(value, alpha=1.0)
    return Smoothing(alpha=1.0, reference=value)


def _number_of_outputs(policy: BasePolicy) -> int:
    network: Any = policy
    return int(network.action_net.out_features)


def reference_distributions(
    references: Sequence[Smoothing | None], dims: tuple[int, ...], log_probs: Tensor, mask: Tensor | None
) -> Tensor | None:
    """The reference distribution of each state and component, shaped like `log_probs`; None: uniform over the legal.

    It is the background of the recipe around the greedy action: the part of a target beside its label at alpha 1, or,
    for a recipe of `alpha=None`, the whole target.

    Args:
        references: one recipe a component, None for uniform.
        dims: number of choices of each component.
        log_probs: `[B, K]` or `[B, D, max(dims)]`, of the network over the legal choices, without a graph.
        mask: bool, broadcasts to `log_probs`, or None.
    """
    if all(recipe is None for recipe in references):
        return None
    greedy = log_probs.argmax(-1)
    if greedy.ndim == 1:
        assert references[0] is not None
        return _reference_of(references[0], dims[0], greedy, log_probs.dtype, mask)
    parts = []
    for d, (recipe, size) in enumerate(zip(references, dims, strict=True)):
        legal = None if mask is None else mask[..., d, :size]
        if recipe is None:
            recipe = _UNIFORM
        part = _reference_of(recipe, size, greedy[:, d], log_probs.dtype, legal)
        parts.append(torch.nn.functional.pad(part.expand(len(greedy), size), (0, log_probs.shape[-1] - size)))
    return torch.stack(parts, dim=1)


def _reference_of(recipe: Smoothing, size: int, greedy: Tensor, dtype: torch.dtype, mask: Tensor | None) -> Tensor:
    recipe = _at_full_alpha(recipe)
    # A mask of [K] that allows all is none: `component_masks` has it where only other components are smaller.
    if (mask is None or mask.ndim == 1) and size <= _LARGEST_TABLE:
        return _table(recipe, size, dtype, greedy.device).index_select(0, greedy)
    legal = None if mask is None or mask.ndim == 1 else mask
    return recipe(greedy, size, legal, validate=False).dense(dtype)


@functools.lru_cache(maxsize=64)
def _table(recipe: Smoothing, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The reference around each action, `[K, K]`, made once: a policy asks for it in every minibatch."""
    with torch.inference_mode(False), torch.no_grad():
        return recipe(torch.arange(size, device=device), size, validate=False).dense(dtype)


@functools.lru_cache(maxsize=4096)
def reference_row(recipe: Smoothing, size: int, greedy: int) -> tuple[float, ...] | None:
    """The reference around one action among `size` legal ones as Python's numbers; None: there are many.

    Args:
        recipe: the component's.
        size: number of choices.
        greedy: the action.
    """
    if size > _LARGEST_TABLE:
        return None
    return tuple(_table(_at_full_alpha(recipe), size, torch.float32, torch.device("cpu"))[greedy].tolist())


@functools.lru_cache(maxsize=64)
def _at_full_alpha(recipe: Smoothing) -> Smoothing:
    return recipe if recipe.alpha is None else dataclasses.replace(recipe, alpha=1.0)
