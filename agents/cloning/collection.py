"""Collection of transitions by a behaviour policy: with its own actions (`BCO`), or an expert's labels (`DAgger`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.cloning.expert import Expert, legal_actions
from rlsmooth.data import Demonstrations, concatenate
from rlsmooth.data.arrays import action_dims, stack_observations, stored_dtype
from rlsmooth.data.vec_env_adapter import Step, action_seed, open_stream
from rlsmooth.training import isolated_rng

MOST_PIECES = 50
LONGEST_PIECE = 50


def collect(
    agent: BC | None,
    env: VecEnv,
    n_transitions: int,
    *,
    seed: int,
    after_step: Callable[[int], bool],
    check: Callable[[int, Any], object] = lambda *_: None,
) -> Demonstrations | None:
    """Collect transitions by sampled actions of the agent's policy, or by random actions.

    The environment is reset first. Everything is drawn from `seed`, and the global random generators are left as they
    were. Illegal actions are never chosen, whether or not the policy knows of masks.

    What one environment did is cut into pieces, of at most 50 steps, which count as episodes: pieces are what is held
    out of an inverse dynamics model's training, and an environment need not end an episode for there to be several.

    Args:
        agent: its policy is the behaviour policy; None: every legal action is as probable as the others (a Box's are
            what its `sample` draws).
        env: vectorised.
        n_transitions: at least so many; each environment makes as many as the others.
        seed: of environments and actions.
        after_step: called after each step of all environments with their number; False ends the collection.
        check: called with the number of steps just made (0 after the reset) and the environments' observations.

    Returns:
        The transitions, environment by environment; None if `after_step` ended it.

    Raises:
        ValueError: a `VecNormalize` whose statistics would move.
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
        check(0, stack_observations(stream.observations))
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
            check(count, stack_observations([step.next_observation for step in steps[-1]]))
            if not after_step(count):
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
    counts = np.arange(1, len(ended) + 1)
    cuts = (counts % n_steps == 0) | ((counts - 1) % n_steps % length == length - 1)
    return np.flatnonzero(ended | cuts) + 1


MOST_AT_ONCE = 256
"""Observations of one forward pass, which may be images."""


class Collected(NamedTuple):
    """The episodes of a round.

    Attributes:
        demonstrations: whole episodes, in the order in which they ended. Actions are the expert's, whichever
            were taken, so that there are neither rewards nor next observations, which belong to those taken.
        returns: float64 `[E]`, of the mixture policy.
        learner_share: share of the steps whose action was the learner's.
    """

    demonstrations: Demonstrations
    returns: NDArray[np.float64]
    learner_share: float


class _Track:
    """The present episode of one environment, so far."""

    def __init__(self) -> None:
        self.observations: list[Any] = []
        self.actions: list[NDArray[Any]] = []
        self.probabilities: list[NDArray[Any]] = []
        self.masks: list[NDArray[np.bool_]] = []
        self.reward = 0.0


def collect_round(
    learner: BC,
    expert: Expert,
    env: VecEnv,
    *,
    beta: float,
    min_episodes: int,
    min_timesteps: int,
    seed: int,
    learner_deterministic: bool,
    after_step: Callable[[int], bool],
    check: Callable[[int, Any], object] = lambda *_: None,
) -> Collected | None:
    """Collect whole episodes by the mixture policy `beta · expert + (1 - beta) · learner`, labelled by the expert.

    A coin is tossed for each environment in each step. When the episodes that have ended reach both minima, each
    environment completes the one that it is in, as in the imitation library: otherwise short episodes, which end first,
    would be over-represented. Environments that are done are stepped on, and nothing of them is kept.

    The environments are reset first. Everything is drawn from `seed`, and the global random generators are left as they
    were.

    Args:
        learner: its policy takes part in the mixture; never by an illegal action, whether or not it knows of masks.
        expert: takes part in the mixture, and labels every observation.
        env: vectorised, whose episodes end.
        beta: probability that an action is the expert's, in [0, 1].
        min_episodes: at least so many episodes, ...
        min_timesteps: ... of so many steps together.
        seed: of environments, coins and actions.
        learner_deterministic: the learner's most probable actions, else sampled ones.
        after_step: called after each step of all environments with the number of those whose step is kept; False ends
            the collection.
        check: called with the number of steps just made (0 after the reset) and the environments' observations.

    Returns:
        The episodes; None if `after_step` ended it.

    Raises:
        ValueError: an illegal action of the expert; a `VecNormalize` whose statistics would move.
    """
    stream = open_stream(env, 1)
    count, space = env.num_envs, env.action_space
    tracks = [_Track() for _ in range(count)]
    episodes: list[Demonstrations] = []
    returns: list[float] = []
    active = np.ones(count, dtype=bool)
    num_steps = num_ended = num_by_learner = 0
    with isolated_rng(seed):
        if isinstance(learner.policy, ActorCriticPolicy) and learner.policy.use_sde:
            learner.policy.reset_noise(count)
        # Not `seed` itself: environment 0 draws its noise from that very stream.
        generator = np.random.default_rng([seed, 1])
        stream.reset(seed)
        check(0, stack_observations(stream.observations))
        expert.restart(count)
        while active.any():
            seen = list(stream.observations)
            legal = stream.action_masks()
            masks = None if legal is None else np.stack([mask.reshape(-1) for mask in legal])
            by_learner = generator.random(count) >= beta
            labels = expert.label(seen, masks, generator)
            chosen = list(labels.actions)
            if by_learner.any():
                # Of all environments: a recurrent or noisy policy's states are theirs, by place.
                own = legal_actions(learner, stack_observations(seen), masks, deterministic=learner_deterministic)
                own = own.reshape((count, *(space.shape or ()))).astype(stored_dtype(space))
                chosen = [own[i] if by_learner[i] else chosen[i] for i in range(count)]
            steps = stream.step(chosen, active)
            num_active = int(active.sum())
            after = [seen[i] if step is None else step.next_observation for i, step in enumerate(steps)]
            check(num_active, stack_observations(after))
            num_steps += num_active
            num_by_learner += int((by_learner & active).sum())
            ended = np.zeros(count, dtype=bool)
            for number, step in enumerate(steps):
                if step is None:
                    continue
                track = tracks[number]
                track.observations.append(seen[number])
                track.actions.append(labels.actions[number])
                if labels.probabilities is not None:
                    track.probabilities.append(labels.probabilities[number])
                if masks is not None:
                    track.masks.append(masks[number])
                track.reward += step.reward
                if step.terminated or step.truncated:
                    ended[number] = True
                    episodes.append(_episode(track, step, stream.observation_space, space))
                    returns.append(track.reward)
                    num_ended += len(track.actions)
                    tracks[number] = _Track()
            expert.starts = ended
            if len(episodes) >= min_episodes and num_ended >= min_timesteps:
                active &= ~ended
            if not after_step(num_active):
                return None
    return Collected(concatenate(episodes), np.array(returns), num_by_learner / num_steps)


def agreement(learner: BC, demonstrations: Demonstrations) -> dict[str, float]:
    """How far the learner does what the expert does, at the same observations, by its most probable legal actions.

    Returns:
        `expert_agreement`, the share of equal actions (all components equal); for a Box `expert_error`, the root of the
        mean square of the components' differences.
    """
    wanted = np.asarray(demonstrations.actions)
    found = []
    for start in range(0, len(demonstrations), MOST_AT_ONCE):
        batch = demonstrations[start : start + MOST_AT_ONCE]
        found.append(legal_actions(learner, batch.observations, batch.action_masks, deterministic=True))
    actions = np.concatenate(found).reshape(wanted.shape)
    if isinstance(demonstrations.action_space, spaces.Box):
        return {"expert_error": float(np.sqrt(np.mean((actions.astype(np.float64) - wanted) ** 2)))}
    return {"expert_agreement": float((actions == wanted).reshape(len(wanted), -1).all(axis=1).mean())}


def _episode(
    track: _Track, last: Step, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Demonstrations:
    length = len(track.actions)
    return Demonstrations(
        observations=stack_observations(track.observations),
        actions=np.stack(track.actions),
        observation_space=observation_space,
        action_space=action_space,
        episode_ends=np.array([length]),
        terminations=_last(length, last.terminated),
        truncations=_last(length, last.truncated),
        action_masks=np.stack(track.masks) if track.masks else None,
        action_probs=np.stack(track.probabilities) if track.probabilities else None,
    )


def _last(length: int, value: bool) -> NDArray[np.bool_]:
    flags = np.zeros(length, dtype=bool)
    flags[-1] = value
    return flags
