"""Adapt every kind of environment to one interface, `Stream`, which restarts episodes and hides no observation.

Vectorised environments restart an episode in three different ways and put its final observation in three different
places. Here each step returns the observation after the action (the true final observation at an episode's end), and
`observations` is what the next action is chosen from (the first observation of the next episode).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlsmooth.data.arrays import AnyArray

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


Observation = Any  # one environment's observation: an array, a number, or a dict of those


class Step(NamedTuple):
    """The outcome of one action in one environment."""

    next_observation: Observation
    reward: float
    terminated: bool
    truncated: bool


class Stream(Protocol):
    """Several environments that step together; `observations` is what the next actions are chosen from."""

    num_envs: int
    batched: bool  # whether the caller's environment is a vectorised one, so that a function gets batches
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    env_id: str | None
    observations: list[Observation]

    def reset(self, seed: int) -> None:
        """Seed everything and start every environment."""

    def step(self, actions: Sequence[Any], wanted: AnyArray) -> list[Step | None]:
        """Act; None where nothing was wanted, or where the environment used the step to restart."""

    def action_masks(self) -> list[AnyArray] | None:
        """Each environment's flat mask of legal actions, or None if it has none."""

    def close(self) -> None:
        """Close what `open_stream` itself opened."""


def open_stream(env: object, n_envs: int, env_kwargs: Mapping[str, Any] | None = None) -> Stream:
    """The stream of an environment id, a Gymnasium environment or vector environment, or an SB3 `VecEnv`.

    Raises:
        ValueError: the id is unknown, or `n_envs` or `env_kwargs` are given with an environment that is made already.
        TypeError: `env` is none of these.
    """
    if isinstance(env, str):
        kwargs = dict(env_kwargs or {})
        try:
            stream = GymStream([gym.make(env, **kwargs) for _ in range(n_envs)], ours=True)
        except (gym.error.Error, ImportError) as error:
            raise ValueError(f"env={env!r} can't be made: {error}") from error
        except TypeError as error:
            raise ValueError(f"env={env!r} can't be made with env_kwargs={kwargs}: {error}") from error
        module = env.rpartition(":")[0]
        if module and stream.env_id is not None:
            stream.env_id = f"{module}:{stream.env_id}"  # by which it can be made again elsewhere
        return stream
    if env_kwargs:
        raise ValueError(
            f"env_kwargs={dict(env_kwargs)} are for an environment id: {type(env).__name__} is made already."
        )
    if n_envs != 1:
        raise ValueError(f"n_envs={n_envs} is for an environment id: {type(env).__name__} is made already.")
    if isinstance(env, gym.Env):
        return GymStream([env], ours=False)
    if isinstance(env, gym.vector.VectorEnv):
        return VectorStream(env)
    from stable_baselines3.common.vec_env import VecEnv

    if isinstance(env, VecEnv):
        return VecEnvStream(env)
    raise TypeError(
        f"env must be an environment id, a gymnasium.Env or VectorEnv, or an SB3 VecEnv, got {type(env).__name__}."
    )


def action_seed(seed: int) -> int:
    """The seed of the action space of an environment with `seed`.

    Gymnasium's environments and spaces make the same stream of the same number: under one seed random actions would be
    functions of the environment's noise.
    """
    return int(np.random.SeedSequence([seed, 2]).generate_state(1)[0])


def own_copy(observation: Observation) -> Observation:
    """A copy, since environments may write their next observation into the same array."""
    if isinstance(observation, dict):
        return {key: np.array(value) for key, value in observation.items()}
    return np.array(observation)


def autoreset_mode(env: gym.vector.VectorEnv[Any, Any, Any]) -> str:
    """When the vector environment restarts an ended episode: `"NextStep"`, `"SameStep"` or `"Disabled"`."""
    # Gymnasium 1.0 has no other way than to restart in the next step, and no name for it.
    mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    return "NextStep" if mode is None else str(getattr(mode, "value", mode))


def final_observation(env: gym.vector.VectorEnv[Any, Any, Any], infos: dict[str, Any], number: int) -> Observation:
    """The last observation of the episode that ended in environment `number`, where it restarts within the step.

    Raises:
        ValueError: the infos lack it.
    """
    if "final_obs" not in infos:
        raise ValueError(
            f"{type(env.unwrapped).__name__} restarts within a step (autoreset_mode {autoreset_mode(env)}), but its "
            "infos lack final_obs, where Gymnasium puts the final observations. Add it, or use another mode."
        )
    final = infos["final_obs"]
    if isinstance(final, dict):  # as some libraries lay out Dict observations; Gymnasium has an array of dicts
        return {key: np.array(part[number]) for key, part in final.items()}
    return own_copy(final[number])


def _id_of(env: Any) -> str | None:
    """The environment's id, with the module that registers it; None where its library has none."""
    spec = getattr(env, "spec", None)
    name = getattr(spec, "id", None)
    return name if isinstance(name, str) else None


class GymStream:
    """Single Gymnasium environments, stepped one after the other."""

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], *, ours: bool) -> None:
        self.envs = list(envs)
        self.ours = ours
        self.num_envs = len(self.envs)
        self.batched = False
        self.observation_space: spaces.Space[Any] = self.envs[0].observation_space
        self.action_space: spaces.Space[Any] = self.envs[0].action_space
        self.env_id = _id_of(self.envs[0])
        self.observations: list[Observation] = []

    def reset(self, seed: int) -> None:
        """Environment i gets the seed `seed + i`."""
        self.observations = []
        for number, env in enumerate(self.envs):
            env.action_space.seed(action_seed(seed + number))
            self.observations.append(own_copy(env.reset(seed=seed + number)[0]))

    def step(self, actions: Sequence[Any], wanted: AnyArray) -> list[Step | None]:
        """Step those wanted."""
        return [self._step_one(number, action) if wanted[number] else None for number, action in enumerate(actions)]

    def _step_one(self, number: int, action: Any) -> Step:
        env = self.envs[number]
        # A Discrete action is handed over as a plain int: not every environment takes a 0-d array.
        raw = int(action) if isinstance(self.action_space, spaces.Discrete) else action
        observation, reward, terminated, truncated, _ = env.step(raw)
        observation = own_copy(observation)
        self.observations[number] = own_copy(env.reset()[0]) if terminated or truncated else observation
        return Step(observation, float(reward), bool(terminated), bool(truncated))

    def action_masks(self) -> list[AnyArray] | None:
        """Calls each environment's `action_masks()`."""
        if not all(env.has_wrapper_attr("action_masks") for env in self.envs):
            return None
        return [np.array(env.get_wrapper_attr("action_masks")(), dtype=bool) for env in self.envs]

    def close(self) -> None:
        """Close the environments made from an id."""
        if self.ours:
            for env in self.envs:
                env.close()


class VecEnvStream:
    """An SB3 `VecEnv`: it restarts within the step and puts the final observation into the info."""

    def __init__(self, env: VecEnv) -> None:
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, unwrap_vec_normalize

        normalise: VecNormalize | None = unwrap_vec_normalize(env)
        if normalise is not None and (normalise.training or normalise.norm_reward):
            raise ValueError(
                "env is a VecNormalize whose statistics would move while recording, or whose rewards are scaled: "
                "set env.training=False and env.norm_reward=False."
            )
        self.env = env
        self.num_envs = env.num_envs
        self.batched = True
        self.observation_space: spaces.Space[Any] = env.observation_space
        self.action_space: spaces.Space[Any] = env.action_space
        base: Any = env.unwrapped
        self.env_id = _id_of(base.envs[0] if isinstance(base, DummyVecEnv) else base)
        self.observations: list[Observation] = []

    def reset(self, seed: int) -> None:
        """SB3 gives environment i the seed `seed + i`."""
        self.env.seed(seed)
        self.env.action_space.seed(action_seed(seed))
        self.observations = _per_environment(self.env.reset(), self.num_envs)

    def step(self, actions: Sequence[Any], wanted: AnyArray) -> list[Step | None]:
        """Step all."""
        observations, rewards, dones, infos = self.env.step(np.stack(actions))
        self.observations = _per_environment(observations, self.num_envs)
        steps: list[Step | None] = []
        for number, (done, info) in enumerate(zip(dones, infos, strict=True)):
            truncated = bool(done) and bool(info.get("TimeLimit.truncated", False))
            if done and "terminal_observation" not in info:
                raise ValueError(
                    f"{type(self.env.unwrapped).__name__}: the info of an ended episode lacks terminal_observation, "
                    "which SB3's VecEnvs put there: without it the final observation is lost. Add it to the infos."
                )
            following = own_copy(info["terminal_observation"]) if done else self.observations[number]
            step = Step(following, float(rewards[number]), bool(done) and not truncated, truncated)
            steps.append(step if wanted[number] else None)
        return steps

    def action_masks(self) -> list[AnyArray] | None:
        """Calls each environment's `action_masks()`."""
        try:
            if not self.env.has_attr("action_masks"):
                return None
        except NotImplementedError:  # of a VecEnv that can't be asked
            return None
        return [np.array(mask, dtype=bool) for mask in self.env.env_method("action_masks")]

    def close(self) -> None:
        """The environment is the caller's."""


class VectorStream:
    """A Gymnasium vector environment, in any of its three ways to restart."""

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.batched = True
        self.observation_space: spaces.Space[Any] = env.single_observation_space
        self.action_space: spaces.Space[Any] = env.single_action_space
        self.env_id = _id_of(env)
        self.mode = autoreset_mode(env)
        self.observations: list[Observation] = []
        self._restarts = np.zeros(self.num_envs, dtype=bool)

    def reset(self, seed: int) -> None:
        """Gymnasium gives environment i the seed `seed + i`."""
        self.env.action_space.seed(action_seed(seed))
        self.observations = _per_environment(self.env.reset(seed=seed)[0], self.num_envs)
        self._restarts[:] = False

    def step(self, actions: Sequence[Any], wanted: AnyArray) -> list[Step | None]:
        """Step all; an environment that ended in the step before may restart in this one, which is no transition."""
        observations, rewards, terminated, truncated, infos = self.env.step(np.stack(actions))
        ended = np.logical_or(terminated, truncated)
        current = _per_environment(observations, self.num_envs)
        following = list(current)
        if self.mode == "SameStep":
            for number in np.flatnonzero(ended):
                following[number] = final_observation(self.env, infos, int(number))
        elif self.mode == "Disabled" and ended.any():
            restarted = self.env.reset(options={"reset_mask": ended})[0]
            current = _per_environment(restarted, self.num_envs)
        steps: list[Step | None] = [
            Step(following[i], float(rewards[i]), bool(terminated[i]), bool(truncated[i]))
            if wanted[i] and not self._restarts[i]
            else None
            for i in range(self.num_envs)
        ]
        self.observations = current
        self._restarts = ended if self.mode == "NextStep" else self._restarts
        return steps

    def action_masks(self) -> list[AnyArray] | None:
        """Calls each environment's `action_masks()` in a `SyncVectorEnv`; other kinds can't be asked safely."""
        env = self.env.unwrapped
        if not isinstance(env, gym.vector.SyncVectorEnv):
            return None
        if not all(part.has_wrapper_attr("action_masks") for part in env.envs):
            return None
        return [np.array(mask, dtype=bool) for mask in env.call("action_masks")]

    def close(self) -> None:
        """The environment is the caller's."""


def _per_environment(batch: Any, count: int) -> list[Observation]:
    if isinstance(batch, dict):
        return [{key: np.array(value[number]) for key, value in batch.items()} for number in range(count)]
    return [np.array(batch[number]) for number in range(count)]
