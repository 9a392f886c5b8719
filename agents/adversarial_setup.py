"""What GAIL and AIRL check and build once, when they are made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.bc_setup import is_maskable
from rlsmooth.agents.reward_net import RewardNet, ShapedRewardNet, Transitions
from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.training import isolated_rng

__all__ = [
    "absorbing_row",
    "build_net",
    "build_optimizer",
    "check_absorbing",
    "check_algorithm",
    "check_generator",
    "check_minibatch",
    "discount",
    "episode_horizon",
    "masks_ends",
    "needs_next",
    "num_masks",
    "round_timesteps",
]

OFF_POLICY_ROUND = 1024
"""Default of `gen_train_timesteps` for algorithms without rollouts."""
DISC_LEARNING_RATE = 1e-3
STACKLEVEL = 4
"""Of warnings: the line that makes the trainer."""


def check_algorithm(algorithm: object) -> None:
    """Check that it is one of Stable-Baselines3.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(algorithm, (OnPolicyAlgorithm, OffPolicyAlgorithm)):
        raise TypeError(f"gen_algo must be an algorithm of Stable-Baselines3, got {type(algorithm).__name__}.")


def check_generator(algorithm: BaseAlgorithm, demonstrations: Demonstrations) -> None:
    """Check that one can be trained on the other.

    Raises:
        TypeError: one is of another type.
        ValueError: there is no environment, or the spaces differ.

    Warns:
        UserWarning: the demonstrations have weights, which a discriminator does not use.
    """
    check_algorithm(algorithm)
    agent_spaces.check_demonstrations("demonstrations", demonstrations)
    if algorithm.env is None:
        raise ValueError("gen_algo has no environment: give it one, as in PPO('MlpPolicy', env).")
    agent_spaces.check_same_spaces(
        "demonstrations",
        (demonstrations.observation_space, demonstrations.action_space),
        (algorithm.observation_space, algorithm.action_space),
    )
    if demonstrations.weights is not None and np.ptp(np.asarray(demonstrations.weights)) > 0:
        warnings.warn(
            "demonstrations have weights, and GAIL and AIRL draw all rows alike: leave out those that must not count.",
            UserWarning,
            stacklevel=STACKLEVEL,
        )


def check_minibatch(demo_minibatch_size: int | None, demo_batch_size: int) -> int:
    """The rows of each side that one backward pass takes.

    Raises:
        ValueError: it does not divide the batch.
    """
    if demo_minibatch_size is None:
        return demo_batch_size
    size = check_positive_int("demo_minibatch_size", demo_minibatch_size)
    if demo_batch_size % size:
        raise ValueError(
            f"demo_minibatch_size={size} must divide demo_batch_size={demo_batch_size}: "
            f"try {max(part for part in range(1, size + 1) if demo_batch_size % part == 0)}."
        )
    return size


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
        warnings.warn(
            f"gen_train_timesteps={steps} is no multiple of gen_algo's rollouts of n_steps · n_envs = {rollout} steps: "
            f"a round ends with a rollout, after {-(-steps // rollout) * rollout} steps.",
            UserWarning,
            stacklevel=STACKLEVEL,
        )
    return steps


def discount(algorithm: BaseAlgorithm) -> float:
    """The algorithm's discount factor."""
    found: Any = algorithm
    return float(found.gamma)


def episode_horizon(algorithm: BaseAlgorithm, demonstrations: Demonstrations, given: int | None) -> int:
    """Steps after which an episode would have ended anyway: given, or the time limit, or the longest demonstration.

    Warns:
        UserWarning: the demonstrations are longer, or don't say whether episodes that are shorter have ended; no limit
            is known, and the longest demonstrations were not cut off.
    """
    lengths = demonstrations.episode_lengths()
    horizon = check_positive_int("horizon", given) if given is not None else _time_limit(algorithm)
    if horizon is None:
        horizon = int(lengths.max())
        longest = demonstrations.episode_ends[lengths == horizon] - 1
        if demonstrations.terminations is not None and np.asarray(demonstrations.terminations)[longest].all():
            warnings.warn(
                f"no time limit is known, and the longest demonstrations ended by themselves after {horizon} steps, "
                "which are taken for the limit: say horizon=, the steps after which an episode is cut off.",
                UserWarning,
                stacklevel=STACKLEVEL,
            )
    if lengths.max() > horizon:
        warnings.warn(
            f"demonstrations have episodes of up to {lengths.max()} steps, and horizon is {horizon}: the expert acted "
            "under another time limit than the generator. Give the environment the same limit, or say horizon=.",
            UserWarning,
            stacklevel=STACKLEVEL,
        )
    if demonstrations.terminations is None and lengths.min() < horizon:
        warnings.warn(
            f"demonstrations have no terminations, and episodes of {lengths.min()} steps under a horizon of {horizon}: "
            "each is taken for cut off, none for ended. Record terminations, or say terminal_states='as_is'.",
            UserWarning,
            stacklevel=STACKLEVEL,
        )
    return horizon


def needs_next(net: nn.Module) -> bool:
    """Whether the network reads next observations; of an unknown one: yes."""
    return net.use_next_state if isinstance(net, RewardNet) else True


def masks_ends(net: nn.Module) -> bool:
    """Whether the network is known not to look at the next observation of terminated rows."""
    return isinstance(net, (RewardNet, ShapedRewardNet))


def num_masks(algorithm: BaseAlgorithm) -> int:
    """Choices of all dimensions together where policy and environment have action masks, else 0."""
    env = algorithm.env
    if env is None or not is_maskable(algorithm.policy) or not env.has_attr("action_masks"):
        return 0
    space = algorithm.action_space
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    assert isinstance(space, spaces.MultiBinary)  # maskable policies know no other
    return 2 * int(np.prod(space.shape))


def build_net(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with weights drawn from `seed`, the global generators left alone."""
    with isolated_rng(seed):
        return build()


def build_optimizer(
    net: nn.Module,
    disc_learning_rate: float | None,
    disc_opt_cls: type[torch.optim.Optimizer],
    disc_opt_kwargs: Mapping[str, Any] | None,
) -> torch.optim.Optimizer:
    """The discriminator's optimiser.

    Raises:
        TypeError: `disc_opt_cls` is no optimiser, or it does not take `disc_opt_kwargs`.
        ValueError: there are two learning rates, or one outside its range.
    """
    if not (isinstance(disc_opt_cls, type) and issubclass(disc_opt_cls, torch.optim.Optimizer)):
        raise TypeError(f"disc_opt_cls={disc_opt_cls!r} must be a class of torch.optim, such as torch.optim.Adam.")
    arguments = dict(disc_opt_kwargs or {})
    if "lr" not in arguments:
        rate = DISC_LEARNING_RATE if disc_learning_rate is None else disc_learning_rate
        arguments["lr"] = check_in_range("disc_learning_rate", rate, 0.0, low_open=True)
    elif disc_learning_rate is not None:
        raise ValueError(
            f"disc_learning_rate={disc_learning_rate} and disc_opt_kwargs['lr']={arguments['lr']}: give one of them."
        )
    build: Any = disc_opt_cls
    try:
        optimizer: torch.optim.Optimizer = build(net.parameters(), **arguments)
    except TypeError as error:
        raise TypeError(f"disc_opt_kwargs={arguments} do not fit {disc_opt_cls.__name__}: {error}") from error
    return optimizer


def absorbing_row(rows: Transitions) -> Transitions:
    """The self-loop of the absorbing state, one row; what else it holds is the first row's, and does not count."""
    first = Transitions(*(_part(part, slice(1)) for part in rows))
    return first._replace(
        terminated=torch.zeros_like(first.terminated), absorbing=torch.ones_like(first.terminated, dtype=torch.bool)
    )


@torch.no_grad()
def check_absorbing(net: nn.Module, rows: Transitions) -> None:
    """Check that a network of the user's own knows the absorbing state.

    Args:
        net: in any mode.
        rows: some that differ.

    Raises:
        ValueError: its score of the absorbing state depends on what else the row holds.
    """
    was_training = net.training
    net.eval()
    nothing = torch.zeros_like(rows.terminated)
    scores = net(rows._replace(terminated=nothing, absorbing=~nothing))
    net.train(was_training)
    if not torch.allclose(scores, scores[:1].expand_as(scores), rtol=1e-4, atol=1e-5):
        raise ValueError(
            "reward_net gives absorbing rows different scores: mask what it reads where rows.absorbing is True (see "
            "RewardNet), or take terminal_states='as_is', which has no such rows."
        )


def _time_limit(algorithm: BaseAlgorithm) -> int | None:
    env = algorithm.env
    assert env is not None
    limits = [getattr(spec, "max_episode_steps", None) for spec in env.get_attr("spec")]
    if all(limit is None for limit in limits) and env.has_attr("_max_episode_steps"):
        limits = env.get_attr("_max_episode_steps")  # gymnasium's TimeLimit around an environment that has no spec
    return max((int(limit) for limit in limits if limit is not None), default=None)


def _part(part: Any, kept: slice) -> Any:
    if isinstance(part, dict):
        return {key: values[kept] for key, values in part.items()}
    return part[kept]
