"""Transitions for an inverse dynamics model: random legal actions, then those of a policy that learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.bc import BC
from rlsmooth.agents.legal_acting import legal_actions
from rlsmooth.data import Demonstrations, concatenate
from rlsmooth.data.arrays import stack_observations
from rlsmooth.data.validation import action_dims, stored_dtype
from rlsmooth.data.vec_env_adapter import Step, action_seed, open_stream
from rlsmooth.training import isolated_rng

__all__ = ["collect", "join"]

MOST_PIECES = 50
LONGEST_PIECE = 50


def collect(
    agent: BC | None, env: VecEnv, n_transitions: int, *, seed: int, after_step: Callable[[], bool]
) -> Demonstrations | None:
    """Let `agent` act by sampled actions, or at random, and keep what happened.

    The environment is reset first. Everything is drawn from `seed`, and the global random generators are left as they
    were. Illegal actions are never chosen, whether or not the policy knows of masks.

    What one environment did is cut into pieces, of at most 50 steps, which count as episodes: pieces are what is held
    out of an inverse dynamics model's training, and an environment need not end an episode for there to be several.

    Args:
        agent: whose policy acts; None: every legal action is as probable as the others (a Box's are what its `sample`
            draws).
        env: vectorised.
        n_transitions: at least so many; each environment makes as many as the others.
        seed: of environments and actions.
        after_step: called after each step of all environments; False ends it all.

    Returns:
        The transitions, environment by environment; None if `after_step` ended it.

    Raises:
        ValueError: a `VecNormalize` whose statistics would move; an environment that shows NaN or infinity.
    """
    stream = open_stream(env, 1)
    count, n_steps = env.num_envs, -(-n_transitions // env.num_envs)
    everyone = np.ones(count, dtype=bool)
    observations: list[list[Any]] = []
    actions: list[NDArray[Any]] = []
    steps: list[list[Step]] = []
    masks: list[NDArray[np.bool_]] = []
    with isolated_rng(seed):
        if agent is not None and isinstance(agent.policy, ActorCriticPolicy) and agent.policy.use_sde:
            agent.policy.reset_noise(count)
        # Not `seed` itself: environment 0 draws its noise from that very stream. `reset` seeds the action space.
        choices = np.random.default_rng([seed, 1])
        space = stream.action_space
        stream.reset(seed)
        space.seed(action_seed(seed))
        for _ in range(n_steps):
            legal = stream.action_masks()
            flat = None if legal is None else np.stack([mask.reshape(-1) for mask in legal])
            if agent is None:
                chosen = _random_actions(space, flat, count, choices)
            else:
                chosen = legal_actions(agent, stack_observations(stream.observations), flat)
            chosen = chosen.reshape((count, *(space.shape or ()))).astype(stored_dtype(space))
            observations.append(list(stream.observations))
            actions.append(chosen)
            if flat is not None:
                masks.append(flat)
            steps.append([step for step in stream.step(list(chosen), everyone) if step is not None])
            if not after_step():
                return None
    order = [(moment, number) for number in range(count) for moment in range(n_steps)]
    ended = np.array([steps[moment][number].terminated or steps[moment][number].truncated for moment, number in order])
    return Demonstrations(
        observations=stack_observations([observations[moment][number] for moment, number in order]),
        actions=np.stack([actions[moment][number] for moment, number in order]),
        observation_space=stream.observation_space,
        action_space=space,
        episode_ends=_piece_ends(ended, n_steps),
        next_observations=stack_observations([steps[moment][number].next_observation for moment, number in order]),
        action_masks=np.stack([masks[moment][number] for moment, number in order]) if masks else None,
    )


join = concatenate


def _random_actions(
    space: spaces.Space[Any], masks: NDArray[np.bool_] | None, count: int, choices: np.random.Generator
) -> NDArray[Any]:
    """Uniform over the legal choices of each dimension, `[count, D]`."""
    dims = action_dims(space)
    if len(dims) == 0:
        return np.stack([space.sample() for _ in range(count)])
    scores = choices.random((count, int(dims.sum())))
    if masks is not None:
        scores[~masks] = -1.0  # of equally distributed numbers each is as often the largest
    picked = np.stack([part.argmax(axis=1) for part in np.split(scores, np.cumsum(dims)[:-1], axis=1)], axis=1)
    start = agent_spaces.action_start(space)
    return picked if start is None else picked + start


def _piece_ends(ended: NDArray[np.bool_], n_steps: int) -> NDArray[np.int64]:
    length = max(1, min(LONGEST_PIECE, len(ended) // MOST_PIECES))
    rows = np.arange(1, len(ended) + 1)
    cuts = (rows % n_steps == 0) | ((rows - 1) % n_steps % length == length - 1)
    return np.flatnonzero(ended | cuts) + 1
