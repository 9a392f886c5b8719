"""`record`: run a policy in an environment and keep the transitions as `Demonstrations`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

from rlsmooth.checks import check_finite_observations, check_positive_int
from rlsmooth.data.actors import Actor, PolicyLike, Predictor, checked_action
from rlsmooth.data.arrays import AnyArray, stack_observations
from rlsmooth.data.demonstrations import Demonstrations
from rlsmooth.data.vec_env_adapter import Observation, Step, Stream, open_stream


def record(
    policy: PolicyLike,
    env: object,
    n_episodes: int,
    seed: int = 0,
    *,
    deterministic: bool = True,
    n_envs: int = 1,
    action_masks: bool = True,
    progress: bool = False,
    env_kwargs: Mapping[str, Any] | None = None,
) -> Demonstrations:
    """Run `policy` in `env` for exactly `n_episodes` episodes and return them.

    Each of several environments contributes a fixed share of the episodes (as in SB3's `evaluate_policy`), so that
    short episodes, which end first, are not over-represented. The episodes lie environment by environment. Next
    observations, rewards, terminations and truncations are stored, at an episode's end with its true final observation,
    and action masks where the environment has `action_masks()`, as sb3-contrib expects (those of a Gymnasium vector
    environment only if it is a `SyncVectorEnv`).

    The seed determines the environments (environment i gets `seed + i`), their action spaces, and Python's, numpy's and
    torch's generators, whose states are put back at the end. The same seed and number of environments give the same
    data.

    Args:
        policy: an SB3 algorithm or policy (or an agent of ours), or a function from observation to action. With an id
            or a single environment the function gets one observation and returns one action, with a vectorised one
            it gets and returns batches. A function that needs three arguments is called as the imitation library calls
            it: `(observations, state, episode_start) -> (actions, state)`, with batches. Maskable policies get the
            masks, recurrent ones their state.
        env: an environment id (or `module:id`, whose module is imported), a Gymnasium environment or vector
            environment, or an SB3 `VecEnv`. The observations that the outermost wrapper shows are stored; a
            `VecNormalize` must not be training or scale rewards.
        n_episodes: how many episodes.
        seed: of environments, action spaces and random generators, 0 or more.
        deterministic: the policy's most probable action in place of a sampled one; ignored by a function.
        n_envs: how many environments to make, where `env` is an id.
        action_masks: whether to ask the environment for masks.
        progress: show a progress bar.
        env_kwargs: arguments of the environments, where `env` is an id.

    Raises:
        TypeError: `policy` or `env` is of none of these kinds, or `n_episodes` or `n_envs` is no whole number.
        ValueError: a number is under 1; the id is unknown; the policy chose an action outside the action space or
            illegal under its mask; the environment showed NaN or infinity.

    Examples:
        >>> demonstrations = record(lambda observation: int(observation[2] > 0), "CartPole-v1", 3, seed=0)
        >>> demonstrations.num_episodes, bool(demonstrations.terminations[demonstrations.episode_ends - 1].all())
        (3, True)
    """
    episodes = check_positive_int("n_episodes", n_episodes)
    start = check_positive_int("seed", seed, minimum=0)
    stream = open_stream(env, check_positive_int("n_envs", n_envs), env_kwargs or {})
    try:
        with _seeded(start):
            actor = Actor(policy, batched=stream.batched, deterministic=deterministic)
            tracks = _run(stream, actor, episodes, start, ask_masks=action_masks, progress=progress)
    finally:
        stream.close()
    metadata = {
        "env_id": stream.env_id,
        "policy": type(policy).__name__,
        "n_episodes": episodes,
        "seed": start,
        "n_envs": stream.num_envs,
        "deterministic": deterministic if isinstance(policy, Predictor) else None,
        **({"env_kwargs": dict(env_kwargs)} if env_kwargs else {}),
    }
    return _join(tracks, stream, metadata)


class _Track:
    """The transitions of one environment so far."""

    def __init__(self) -> None:
        self.observations: list[Observation] = []
        self.actions: list[AnyArray] = []
        self.steps: list[Step] = []
        self.masks: list[AnyArray] = []


def _run(stream: Stream, actor: Actor, n_episodes: int, seed: int, *, ask_masks: bool, progress: bool) -> list[_Track]:
    count = stream.num_envs
    quotas = np.array([(n_episodes + number) // count for number in range(count)])
    done = np.zeros(count, dtype=np.int64)
    starts = np.ones(count, dtype=bool)
    tracks = [_Track() for _ in range(count)]
    steps = 0
    stream.reset(seed)
    with tqdm(total=n_episodes, disable=not progress, unit="episode") as bar:
        while (wanted := done < quotas).any():
            observations = list(stream.observations)
            check_finite_observations(steps, stack_observations(observations))
            steps += 1
            masks = stream.action_masks() if ask_masks else None
            actions = [checked_action(one, stream.action_space) for one in actor(observations, masks, starts)]
            for number, step in enumerate(stream.step(actions, wanted)):
                # After a step that only restarted an environment, its episode is still to begin.
                starts[number] = step is None or step.terminated or step.truncated
                if step is None:
                    continue
                track = tracks[number]
                track.observations.append(observations[number])
                track.actions.append(actions[number])
                track.steps.append(step)
                if masks is not None:
                    track.masks.append(masks[number].reshape(-1))
                if step.terminated or step.truncated:
                    done[number] += 1
                    bar.update()
    return tracks


def _join(tracks: Sequence[_Track], stream: Stream, metadata: dict[str, Any]) -> Demonstrations:
    steps = [step for track in tracks for step in track.steps]
    masks = [mask for track in tracks for mask in track.masks]
    terminations = np.array([step.terminated for step in steps])
    truncations = np.array([step.truncated for step in steps])
    return Demonstrations(
        observations=stack_observations([observation for track in tracks for observation in track.observations]),
        actions=np.stack([action for track in tracks for action in track.actions]),
        observation_space=stream.observation_space,
        action_space=stream.action_space,
        episode_ends=np.flatnonzero(terminations | truncations) + 1,
        next_observations=stack_observations([step.next_observation for step in steps]),
        rewards=np.array([step.reward for step in steps]),
        terminations=terminations,
        truncations=truncations,
        action_masks=np.stack(masks) if masks else None,
        metadata=metadata,
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators and put their states back at the end."""
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
