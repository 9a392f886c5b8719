"""The generator of GAIL and AIRL, an algorithm of Stable-Baselines3: what it must be, and its state in files."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from rlsmooth.agents.files.algorithm_file import (
    ALGORITHM_BASES,
    Algorithm,
    extra_modules,
    load_extra_modules,
    load_optimizers,
    optimizers,
    plain_attributes,
    set_plain_attributes,
)
from rlsmooth.agents.files.algorithm_state import apply_normalization, encode_normalization
from rlsmooth.agents.files.policy_file import load_parameters
from rlsmooth.agents.sb3 import is_maskable
from rlsmooth.agents.spaces import check_counts_from_start, check_demonstrations, check_same_spaces
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.data.arrays import action_dims
from rlsmooth.training import SafeFileError

LEAST_UPDATES = 2
OFF_POLICY_ROUND = 1024
"""Default of `gen_train_timesteps` for algorithms without rollouts."""
ROOM = "rlsmooth.agents.adversarial."


def outer_stacklevel() -> int:
    """The `stacklevel` of a warning raised where this is called: the user's line, outside this package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(ROOM):
        frame, level = frame.f_back, level + 1
    return level


def check_algorithm(algorithm: object) -> Algorithm:
    """The algorithm, which must be one of Stable-Baselines3.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(algorithm, ALGORITHM_BASES):
        raise TypeError(f"gen_algo must be an algorithm of Stable-Baselines3, got {type(algorithm).__name__}.")
    return algorithm


def check_generator(algorithm: BaseAlgorithm, demonstrations: Demonstrations) -> None:
    """Check that the algorithm can be trained on the demonstrations.

    Raises:
        TypeError: these are no demonstrations.
        ValueError: there is no environment, the spaces differ, or the actions of a plain policy do not start at 0.

    Warns:
        UserWarning: the demonstrations have weights, which a discriminator does not use, or the environment action
            masks, which the policy does not use.
    """
    check_demonstrations("demonstrations", demonstrations)
    if algorithm.env is None:
        raise ValueError("gen_algo has no environment: give it one, as in PPO('MlpPolicy', env).")
    check_counts_from_start("gen_algo", algorithm.policy)
    check_same_spaces(
        "demonstrations",
        (demonstrations.observation_space, demonstrations.action_space),
        (algorithm.observation_space, algorithm.action_space),
    )
    discrete = not isinstance(algorithm.action_space, spaces.Box)
    if discrete and algorithm.env.has_attr("action_masks") and not is_maskable(algorithm.policy):
        _warn(
            f"gen_algo's environment has action_masks, which can't be used by its {type(algorithm.policy).__name__}: "
            "it will choose illegal actions. Use SmoothedMaskablePPO or sb3-contrib's MaskablePPO."
        )
    if demonstrations.weights is not None and np.ptp(np.asarray(demonstrations.weights)) > 0:
        _warn(
            "demonstrations have weights, and GAIL and AIRL draw all transitions alike: leave out those that must not "
            "count."
        )


def round_timesteps(algorithm: BaseAlgorithm, gen_train_timesteps: int | None) -> int:
    """Environment steps of a round.

    Warns:
        UserWarning: an on-policy algorithm's rollouts don't add up to it.
    """
    if not isinstance(algorithm, OnPolicyAlgorithm):
        steps = OFF_POLICY_ROUND if gen_train_timesteps is None else gen_train_timesteps
        return check_positive_int("gen_train_timesteps", steps)
    rollout = algorithm.n_steps * algorithm.n_envs
    steps = check_positive_int("gen_train_timesteps", rollout if gen_train_timesteps is None else gen_train_timesteps)
    if steps % rollout:
        _warn(
            f"gen_train_timesteps={steps} is no multiple of gen_algo's rollouts of n_steps · n_envs = {rollout} steps: "
            f"a round ends with a rollout, after {-(-steps // rollout) * rollout} steps."
        )
    return steps


def round_updates(
    algorithm: BaseAlgorithm,
    n_disc_updates_per_round: int | None,
    gen_train_timesteps: int,
    steps_an_update: int | None,
) -> int:
    """Updates of the discriminator after a round of so many steps: two, or one for each `steps_an_update`."""
    if n_disc_updates_per_round is not None:
        return check_positive_int("n_disc_updates_per_round", n_disc_updates_per_round)
    if steps_an_update is None or not isinstance(algorithm, OnPolicyAlgorithm):
        return LEAST_UPDATES
    return max(LEAST_UPDATES, gen_train_timesteps // steps_an_update)


def episode_horizon(algorithm: BaseAlgorithm, demonstrations: Demonstrations, given: int | None) -> int:
    """The length at which episodes are truncated: given, or the time limit, or the longest demonstration.

    Warns:
        UserWarning: the demonstrations are longer, or don't say whether shorter episodes have terminated; no limit is
            known, and the longest demonstrations were not truncated.
    """
    lengths = demonstrations.episode_lengths()
    horizon = check_positive_int("horizon", given) if given is not None else _time_limit(algorithm)
    if horizon is None:
        horizon = int(lengths.max())
        longest = demonstrations.episode_ends[lengths == horizon] - 1
        if demonstrations.terminations is not None and np.asarray(demonstrations.terminations)[longest].all():
            _warn(
                f"no time limit is known, and the longest demonstrations terminated by themselves after {horizon} "
                "steps, which are taken for the limit: say horizon=, the steps after which an episode is truncated."
            )
    if lengths.max() > horizon:
        _warn(
            f"demonstrations have episodes of up to {lengths.max()} steps, and horizon is {horizon}: the expert had "
            "another time limit than the generator. Give the environment the same limit, or say horizon=."
        )
    if demonstrations.terminations is None and lengths.min() < horizon:
        _warn(
            f"demonstrations have no terminations, and episodes of {lengths.min()} steps under a horizon of {horizon}: "
            "each is taken for truncated, none for terminated. Record terminations, or say terminal_states='as_is'."
        )
    return horizon


def num_masks(algorithm: BaseAlgorithm) -> int:
    """Choices of all dimensions together where policy and environment have action masks, else 0."""
    env = algorithm.env
    if env is None or not is_maskable(algorithm.policy) or not env.has_attr("action_masks"):
        return 0
    return int(action_dims(algorithm.action_space).sum())


def generator_state(algorithm: Algorithm) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The algorithm's parameters, optimisers, counters and observation statistics as JSON and groups of tensors."""
    optimizer, of_optimizer = optimizers(algorithm)
    modules, of_modules = extra_modules(algorithm)
    normalization, of_normalization = encode_normalization(algorithm.get_vec_normalize_env())
    config = {
        "class": type(algorithm).__name__,
        "attributes": plain_attributes(algorithm),
        "optimizer": optimizer,
        "modules": modules,
        "normalization": normalization,
    }
    tensors = {
        "policy": algorithm.policy.state_dict(),
        "optimizer": of_optimizer,
        "modules": of_modules,
        "normalization": of_normalization,
    }
    return config, tensors


def set_generator_state(
    path: Path, algorithm: Algorithm, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Put back what `generator_state` gave; errors call the file `path`.

    Raises:
        SafeFileError: it does not fit.
    """
    normalizer = algorithm.get_vec_normalize_env()
    if (config["normalization"] is None) != (normalizer is None):
        wrapped = "no VecNormalize" if normalizer is None else "a VecNormalize"
        raise SafeFileError(f"{str(path)!r} does not fit: gen_algo's environment has {wrapped}: wrap it as before.")
    load_parameters(path, algorithm.policy, tensors["policy"])
    load_extra_modules(path, algorithm, config["modules"], tensors["modules"])
    load_optimizers(algorithm, config["optimizer"], tensors["optimizer"])
    set_plain_attributes(algorithm, config["attributes"])
    if normalizer is not None:
        apply_normalization(normalizer, config["normalization"], tensors["normalization"])


def _time_limit(algorithm: BaseAlgorithm) -> int | None:
    env = algorithm.env
    assert env is not None
    specs = env.get_attr("spec") if env.has_attr("spec") else []  # some libraries' VecEnvs have none
    limits = [getattr(spec, "max_episode_steps", None) for spec in specs]
    if all(limit is None for limit in limits) and env.has_attr("_max_episode_steps"):
        limits = env.get_attr("_max_episode_steps")  # gymnasium's TimeLimit around an environment that has no spec
    return max((int(limit) for limit in limits if limit is not None), default=None)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=outer_stacklevel())
