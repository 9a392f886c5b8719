"""The policy of a cloning agent and its action head, built from the arguments of `BC`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents.cloning.advantage import decode_weights, encode_weights
from rlsmooth.agents.cloning.training_data import Shuffle, one_or_list
from rlsmooth.agents.cloning.transition_features import TransitionFeatures
from rlsmooth.agents.files.policy_file import AgentFile, policy_class_by_name
from rlsmooth.agents.heads import ActionHead, ActionUnits, CategoricalHead, GaussianHead
from rlsmooth.agents.sb3 import MASKABLE, has_base, is_maskable, same_latent_distribution
from rlsmooth.agents.spaces import action_components, box_reference, check_same_spaces, count_from_start, plain_class
from rlsmooth.data import Demonstrations, ObservationOnly, space_from_json
from rlsmooth.training import SafeFileError
from rlsmooth.training.mlp_engine import Engine
from rlsmooth.training.safe_file import decode_smoothing, encode_smoothing
from rlsmooth.untrusted import Count, Positive, Within, decode, refused


class FirstBCArguments(TypedDict):
    """The constructor's arguments that every agent file holds; a callable is None there, or marked in the recipe."""

    smoothing: list[dict[str, Any]]
    reference: list[dict[str, Any]] | None
    learning_rate: Annotated[float, Within(0)] | str | None
    kl_coef: Annotated[float, Within(0)]
    reference_std: Annotated[float, Within(0, low_open=True)] | None
    action_bins: Positive | None
    batch_size: Positive
    gradient_accumulation: Positive
    max_grad_norm: Annotated[float, Within(0, low_open=True)] | None
    l2_coef: Annotated[float, Within(0)]
    amp: bool
    validation_fraction: Annotated[float, Within(0, 1, high_open=True)]
    early_stopping_patience: Positive | None
    seed: Count
    checkpoint_every: Positive
    eval_every: Positive | None
    n_eval_episodes: Positive


class BCArguments(FirstBCArguments, total=False):
    """All that it may hold; files of earlier versions lack these."""

    shuffle: Shuffle | None
    engine: Engine
    weights: dict[str, Any] | None


ARGUMENTS = tuple(get_type_hints(BCArguments))
"""Their names."""
REPLACEABLE = ("smoothing", "reference", "learning_rate", "weights")
"""Those for which `custom_objects` may hold others than the file."""


class Counters(TypedDict):
    """How far training has come, in minibatches and epochs."""

    num_timesteps: Count
    total_timesteps: Count
    num_timesteps_at_start: Count
    first_epoch: Count


class BCCheckpoint(TypedDict):
    """What a checkpoint holds besides tensors."""

    counters: dict[str, Any]
    optimizer: dict[str, Any]
    early_stopping: dict[str, Any] | None
    fingerprints: tuple[str, str | None]


def decode_counters(encoded: Any, step: int | None = None) -> dict[str, int]:
    """The counters of a file, whose `num_timesteps` must be `step` if that is given.

    Raises:
        ValueError: one is missing, no whole number from 0, or they are in no order of time.
    """
    found: dict[str, int] = decode(Counters, encoded, "counters")
    if step not in (None, found["num_timesteps"]):
        raise ValueError(f"counters.num_timesteps={found['num_timesteps']} is not the checkpoint's, {step}")
    if not found["num_timesteps_at_start"] <= found["num_timesteps"] <= found["total_timesteps"]:
        raise ValueError("counters: num_timesteps_at_start, num_timesteps and total_timesteps must ascend")
    return found


ALIASES = {
    "MlpPolicy": "ActorCriticPolicy",
    "CnnPolicy": "ActorCriticCnnPolicy",
    "MultiInputPolicy": "MultiInputActorCriticPolicy",
    "MaskableMlpPolicy": "MaskableActorCriticPolicy",
    "MaskableCnnPolicy": "MaskableActorCriticCnnPolicy",
    "MaskableMultiInputPolicy": "MaskableMultiInputActorCriticPolicy",
}
DISTRIBUTIONS: tuple[type[Distribution], ...] = (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)


def for_masks(
    policy: str | type[BasePolicy] | BasePolicy,
    action_space: spaces.Space[Any],
    *owners: Demonstrations | ObservationOnly | VecEnv | None,
    policy_kwargs: Mapping[str, Any] | None = None,
    stacklevel: int = 3,
) -> str | type[BasePolicy] | BasePolicy:
    """The policy as given, or the maskable form of an alias where data or environments have action masks.

    Args:
        policy: as `BC` takes it.
        action_space: a Box has no masks.
        owners: the data and the environments that the policy is for.
        policy_kwargs: a policy that reads transitions, as inverse dynamics do, does not act: it stays as it is.
        stacklevel: of the warning.

    Warns:
        UserWarning: a class or an instance that can't use masks.
    """
    extractor = (policy_kwargs or {}).get("features_extractor_class") or type(getattr(policy, "features_extractor", 0))
    masked = not isinstance(action_space, spaces.Box) and any(_has_masks(owner) for owner in owners)
    if not masked or extractor is TransitionFeatures:
        return policy
    if isinstance(policy, str):
        return f"Maskable{policy}" if f"Maskable{policy}" in ALIASES else policy
    own: Any = policy if isinstance(policy, type) else type(policy)
    form = next((form for base in getattr(own, "__mro__", ()) if (form := _maskable_form(base.__name__))), None)
    if form is not None and not has_base(own, MASKABLE[0]):
        warnings.warn(
            f"{MASKS_UNUSED} {own.__name__}, which will choose illegal actions: use {form} (or the alias 'MlpPolicy', "
            "which stands for it where there are masks).",
            UserWarning,
            stacklevel=stacklevel,
        )
    return policy


MASKS_UNUSED = "there are action masks, which can't be used by policy"


@contextmanager
def masks_known() -> Iterator[None]:
    """Within the block, `for_masks` does not warn again: the policy is an agent's own, or that of a file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", MASKS_UNUSED)
        yield


def _has_masks(owner: Demonstrations | ObservationOnly | VecEnv | None) -> bool:
    if isinstance(owner, VecEnv):
        return owner.has_attr("action_masks")
    return getattr(owner, "action_masks", None) is not None


def _maskable_form(name: str) -> str | None:
    """The name of the maskable form of a class of ours or of Stable-Baselines3; None: it has none."""
    plain = name.removeprefix("Smoothed")
    return f"{name[: -len(plain)]}Maskable{plain}" if f"Maskable{plain}" in MASKABLE else None


def build_policy(
    policy: str | type[BasePolicy] | BasePolicy,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    learning_rate: float,
    *,
    policy_kwargs: Mapping[str, Any] | None,
    device: torch.device,
) -> BasePolicy:
    """The policy, built as SB3 builds it, or the given one.

    Adam without `optimizer_kwargs` of the user's is SB3's (`eps=1e-5`) in its fused form: the same numbers to rounding,
    a fifth of the time.

    Raises:
        TypeError: it is no actor-critic policy, or a recurrent one.
        ValueError: an unknown name, or a policy whose outputs are squashed.
    """
    if isinstance(policy, BasePolicy):
        if policy_kwargs:
            raise ValueError("policy_kwargs can't be used with a policy that is built already: give its class.")
        _check_policy_class(type(policy))
        check_same_spaces("policy", (policy.observation_space, policy.action_space), (observation_space, action_space))
        built = policy
    else:
        chosen = _class_of_alias(policy) if isinstance(policy, str) else policy
        _check_policy_class(chosen)
        _check_observations(policy, observation_space, policy_kwargs)
        arguments = dict(policy_kwargs or {})
        adam = arguments.get("optimizer_class", torch.optim.Adam) is torch.optim.Adam
        if adam and "optimizer_kwargs" not in arguments and device.type in ("cpu", "cuda"):
            arguments["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
        build: Any = chosen
        built = build(observation_space, action_space, lambda _: learning_rate, **arguments)
    if built.squash_output:
        raise ValueError(
            "policy squashes its outputs (squash_output=True), so that it has no Gaussian to compare with."
        )
    count_from_start(built)
    for group in built.optimizer.param_groups:
        group["lr"] = learning_rate
    return built.to(device)


def make_head(
    policy: BasePolicy,
    action_space: spaces.Space[Any],
    reference_std: float | None,
    units: ActionUnits | None = None,
) -> ActionHead:
    """The head of the policy's action space.

    For a Box `reference_std` is the width of the broad Gaussian, see `box_reference`; where the Box has no bounds, that
    Gaussian is the one of `units`.

    Raises:
        TypeError: the policy's distribution is one of its own that can't be read.
        ValueError: `reference_std` for another space than a Box, or not above 0.
    """
    if not is_maskable(policy) and not isinstance(_unchecked(policy).action_dist, DISTRIBUTIONS):
        raise TypeError(
            f"policy has the distribution {type(_unchecked(policy).action_dist).__name__}, which can't be read: "
            "use one of Stable-Baselines3's."
        )
    direct = _is_standard(policy)
    if isinstance(action_space, spaces.Box):
        mean, std = box_reference(action_space, reference_std)
        mean, std = mean.to(policy.device), std.to(policy.device)
        if units is not None:
            mean, std = units.reference(mean, std, std_given=reference_std is not None)
        return GaussianHead(policy, direct, mean, std)
    if reference_std is not None:
        raise ValueError(f"reference_std={reference_std!r} is for a Box action space, this one is {action_space!r}.")
    components = action_components(action_space)
    assert components is not None
    return CategoricalHead(policy, *components, direct)


def _class_of_alias(name: str) -> type[BasePolicy]:
    if name not in ALIASES:
        raise ValueError(f"policy={name!r} is not known: choose one of {', '.join(ALIASES)}, or give a policy class.")
    return policy_class_by_name(ALIASES[name])


def _check_observations(policy: Any, space: spaces.Space[Any], policy_kwargs: Mapping[str, Any] | None) -> None:
    """Raise ValueError if an alias's own features extractor can't read the observations."""
    if not isinstance(policy, str) or "features_extractor_class" in (policy_kwargs or {}):
        return
    is_dict = isinstance(space, spaces.Dict)
    if is_dict != ("MultiInput" in policy):
        fix = policy.replace("Mlp", "MultiInput").replace("Cnn", "MultiInput") if is_dict else "MlpPolicy or CnnPolicy"
        raise ValueError(f"policy={policy!r} can't read observation_space={space!r}: use {fix}.")
    normalized = not (policy_kwargs or {}).get("normalize_images", True)
    if "Cnn" in policy and not is_image_space(space, check_channels=False, normalized_image=normalized):
        raise ValueError(f"policy={policy!r} reads images, not observation_space={space!r}: use MlpPolicy.")


def _check_policy_class(policy_class: Any) -> None:
    is_class = isinstance(policy_class, type)
    if is_class and has_base(policy_class, "RecurrentActorCriticPolicy"):
        raise TypeError(f"policy={policy_class.__name__} is recurrent, which BC does not support yet: use MlpPolicy.")
    if not is_class or not (
        issubclass(policy_class, ActorCriticPolicy) or has_base(policy_class, "MaskableActorCriticPolicy")
    ):
        raise TypeError(f"policy={policy_class!r} must be a policy's name or an actor-critic policy class.")


def _is_standard(policy: BasePolicy) -> bool:
    """Whether the actor's layers may be called directly: nothing between them and the distribution was changed."""
    exact = (BernoulliDistribution, CategoricalDistribution, DiagGaussianDistribution, MultiCategoricalDistribution)
    if not is_maskable(policy) and plain_class(_unchecked(policy).action_dist) not in exact:
        return False
    base: Any = next(
        base for base in type(policy).__mro__ if base.__name__ in ("ActorCriticPolicy", "MaskableActorCriticPolicy")
    )
    own: Any = type(policy)
    # What a smoothed policy changes comes after the network, which is what cloning trains.
    latent: Any = next((part for part in own.__mro__ if part.__name__ == "SmoothedPolicy"), base)
    return own.get_distribution is base.get_distribution and same_latent_distribution(own, latent)


def _unchecked(policy: BasePolicy) -> Any:
    return policy


def decode_spaces(path: Path, file: AgentFile) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """The agent's observation space and action space; where actions are bins, the policy has another action space.

    Raises:
        SafeFileError: the action space is malformed.
    """
    with refused(path, SafeFileError, problem="has a malformed action space"):
        return _unchecked(file.policy).observation_space, space_from_json(file.config["action_space"])


def encode_arguments(agent: Any) -> dict[str, Any]:
    """The constructor's arguments of a `BC` as a file stores them; a callable becomes None (see `decode_arguments`)."""
    special = {
        "smoothing": encode_smoothing(agent.smoothings),
        "reference": encode_smoothing(agent.references),
        "learning_rate": None if callable(agent.learning_rate) else agent.learning_rate,
        "weights": None if agent.weights is None else encode_weights(agent.weights),
        "action_bins": None if agent.bins is None else agent.bins.num_bins,
        "early_stopping_patience": None if agent.early_stopping is None else agent.early_stopping.patience,
    }
    return {name: special[name] if name in special else getattr(agent, name) for name in ARGUMENTS}


def decode_arguments(path: Path, file: AgentFile) -> tuple[dict[str, Any], list[str]]:
    """The arguments of `BC` that an agent file holds, and the names of those that were callables.

    Raises:
        SafeFileError: the file lacks some.
    """
    with refused(path, SafeFileError):
        saved: Any = decode(BCArguments, file.config.get("arguments"), "arguments")
    arguments: dict[str, Any] = {"shuffle": "full", "engine": "torch", **saved}
    missing = []
    recipes = decode_smoothing(saved["smoothing"], "smoothing", path)
    if recipes is None:
        raise SafeFileError(f"{str(path)!r} has no smoothing. Use another copy.")
    if any(entry.get("is_function") for entry in saved["smoothing"]):
        missing.append("smoothing")
    arguments["smoothing"] = one_or_list(recipes)
    references = decode_smoothing(saved["reference"], "reference", path)
    if references is not None:
        arguments["reference"] = one_or_list([recipe.reference for recipe in references])
    if saved["learning_rate"] is None:
        missing.append("learning_rate")
        arguments["learning_rate"] = 1e-3  # a placeholder: `learn` refuses to start
    if saved.get("weights") is not None:
        with refused(path, SafeFileError):
            arguments["weights"] = decode_weights(saved["weights"])
        if arguments["weights"] is None:
            missing.append("weights")
    return arguments, missing
