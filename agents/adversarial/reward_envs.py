"""Environments with a learned reward, and how they are put around a generator and record its transitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import Tensor, nn

from rlsmooth.agents.adversarial.reward_nets import RewardFunction, map_parts, reward_of
from rlsmooth.agents.adversarial.transitions import TransitionStore, absorbing_steps
from rlsmooth.agents.files.algorithm_state import KNOWN_BUFFERS
from rlsmooth.agents.files.run_state import TransientVecEnvWrapper
from rlsmooth.agents.sb3 import forget_last_observation
from rlsmooth.training.divergence import check_finite_step

Wrapper = TypeVar("Wrapper", bound=VecEnvWrapper)

CHUNK = 4096
CHUNK_BYTES = 8 * 2**20
"""Transitions that a network scores at once, and float32 observations of them: fewer where these are images."""


class LearnedRewardVecEnv(VecEnvWrapper):
    """Replaces the rewards of a vectorised environment, for instance to train a new agent on a recovered reward.

    The true rewards stay in `infos` as `original_env_rew`, as in imitation's `RewardVecEnvWrapper`, and so do the true
    episode returns of SB3's Monitor: `rollout/ep_rew_mean` stays the true one. The returns in the learned reward are in
    `finished_returns`.

    Args:
        venv: the environment, with raw observations: put a `VecNormalize` around the wrapper, not below it.
        reward: a network of `Transitions`, or a function of observations, actions, next observations (at the end of an
            episode its last one) and `terminated` (bool; False at a time limit), which gives float `[B]`.
            `trainer.reward_function` of GAIL or AIRL is one. A bare network pays its raw score: the logit that GAIL
            trained, or AIRL's f with its shaping (the part without is `net.reward`); no offset of smoothed targets is
            taken off, nor, but for `absorbing_is_zero`, the reward of the absorbing state, so that such a reward pays
            for episodes that last, or for terminating them.
        absorbing_is_zero: of a network: take the score of the absorbing state off, so that termination is worth 0. For
            nets that learned it on episodes that terminate: AIRL's, or GAIL's with `absorbing_reward="learned"`.

    Attributes:
        finished_returns: of the episodes that ended since the list was last cleared, in the learned reward.

    Raises:
        TypeError: `reward` can't be called.
        ValueError: `venv` holds a `VecNormalize` that changes observations; `absorbing_is_zero` of what is no network;
            by `step`, if the rewards are not floating-point numbers `[B]`.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> from rlsmooth.agents.adversarial.airl import AIRL
        >>> from rlsmooth.data import cartpole_v1
        >>> generator = PPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu")
        >>> trainer = AIRL(cartpole_v1(), generator, seed=0).learn(128)
        >>> env = LearnedRewardVecEnv(make_vec_env("CartPole-v1", n_envs=2), trainer.reward_function)
        >>> model = PPO("MlpPolicy", env, n_steps=64, seed=0, device="cpu").learn(128)
    """

    def __init__(self, venv: VecEnv, reward: RewardFunction | nn.Module, *, absorbing_is_zero: bool = False) -> None:
        super().__init__(venv)
        if not callable(reward):
            raise TypeError(f"reward is a {type(reward).__name__}: pass a network or a function.")
        if any(normalizer.norm_obs for normalizer in _normalizers(venv)):
            raise ValueError(
                "venv holds a VecNormalize that changes observations, and the reward must see raw ones: put the "
                "VecNormalize outside, as in VecNormalize(LearnedRewardVecEnv(venv, reward))."
            )
        if isinstance(reward, nn.Module):
            reward = reward_of(reward, absorbing_is_zero=absorbing_is_zero)
        elif absorbing_is_zero:
            raise ValueError("absorbing_is_zero=True needs a network; a function says itself what it pays.")
        self.reward: RewardFunction = reward
        self.finished_returns: list[float] = []
        self._observations: Any = None
        self._actions: NDArray[Any] = np.zeros(0)
        self._returns = np.zeros(venv.num_envs)

    def reset(self) -> Any:
        """Reset the wrapped environment, and count returns anew."""
        self._observations = self.venv.reset()
        self._returns[:] = 0
        return self._observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions and pass them on."""
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """The step of the wrapped environment, with the learned reward."""
        observations, true_rewards, dones, infos = self.venv.step_wait()
        terminated, after = dones, observations
        if dones.any():
            truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
            terminated, after = dones & ~truncated, _with_final(observations, dones, infos)
        rewards = self._rewards(after, terminated, dones)
        for info, true_reward in zip(infos, true_rewards, strict=True):
            info["original_env_rew"] = true_reward
        self._observations = observations
        return observations, rewards, dones, infos

    def _rewards(self, after: Any, terminated: NDArray[np.bool_], dones: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The rewards of the step from `_observations` to `after`."""
        rewards = np.asarray(self.reward(self._observations, self._actions, after, terminated))
        if rewards.shape != (self.num_envs,) or rewards.dtype.kind != "f":
            raise ValueError(
                f"reward gave {rewards.dtype} values of shape {rewards.shape}: it must give one floating-point number "
                f"for each environment, of shape {(self.num_envs,)}."
            )
        rewards = rewards.astype(np.float32)
        self._count(rewards, dones)
        return rewards

    def _count(self, rewards: NDArray[np.float32], dones: NDArray[np.bool_]) -> None:
        self._returns += rewards
        if dones.any():
            self.finished_returns += self._returns[dones].tolist()
            self._returns[dones] = 0

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a LearnedRewardVecEnv can't be pickled: save the trainer by its own `save`.")


class RecordingRewardVecEnv(LearnedRewardVecEnv, TransientVecEnvWrapper):
    """Keeps the transitions too, and can leave the rewards to the end of a rollout, where one pass makes them all.

    Args:
        venv: the environment.
        reward: a function of observations, actions, next observations and `terminated`.
        store: takes the transitions.
        horizon: steps up to which terminated episodes continue in the absorbing state; None: not at all.
        gamma: the discount factor of absorbing steps.
        is_deferred: `step` gives rewards of 0; `settle` gives the true ones later.
    """

    def __init__(
        self,
        venv: VecEnv,
        reward: RewardFunction,
        store: TransitionStore,
        *,
        horizon: int | None = None,
        gamma: float = 1.0,
        is_deferred: bool = False,
    ) -> None:
        super().__init__(venv, reward)
        self.store = store
        self.horizon, self.gamma = horizon, gamma
        self.is_deferred = is_deferred
        self._masks: NDArray[np.bool_] | None = None
        self._lengths = np.zeros(venv.num_envs, dtype=np.int64)
        self._no_padding = np.zeros(venv.num_envs)
        self._unsettled: list[NDArray[np.bool_]] = []

    def reset(self) -> Any:
        """Reset the wrapped environment, and count steps and returns anew."""
        self._lengths[:] = 0
        self._unsettled.clear()
        return super().reset()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions, and what was legal, and pass the actions on."""
        if self.store.masks is not None:
            self._masks = np.stack([np.asarray(mask, bool).reshape(-1) for mask in self.env_method("action_masks")])
        super().step_async(actions)

    def episode_state(self) -> dict[str, Any]:
        """The state of the running episodes, between two rollouts."""
        return {
            "observations": self._observations,
            "lengths": self._lengths.copy(),
            "returns": self._returns.copy(),
            "finished_returns": list(self.finished_returns),
        }

    def set_episode_state(self, state: dict[str, Any]) -> None:
        """Put back what `episode_state` gave.

        Raises:
            ValueError: it is of another number of environments.
        """
        if {state["lengths"].shape, state["returns"].shape} != {self._lengths.shape}:
            raise ValueError(f"the state is of {len(state['lengths'])} environments, these are {self.num_envs}.")
        self._observations = state["observations"]
        self._lengths[:], self._returns[:] = state["lengths"], state["returns"]
        self.finished_returns[:] = state["finished_returns"]

    def begin_rollout(self) -> None:
        """Forget steps that were never settled: a callback ended their rollout."""
        self._unsettled.clear()

    def settle(self) -> NDArray[np.float32]:
        """The rewards of all steps since the last call, `[steps, environments]`."""
        steps, count = self._unsettled, self.num_envs
        rewards = np.empty(len(steps) * count, dtype=np.float32)
        most = min(CHUNK, max(1, CHUNK_BYTES // (4 * spaces.flatdim(self.observation_space))))
        for first in range(0, len(rewards), most):
            last = min(first + most, len(rewards))
            rewards[first:last] = self.reward(*self.store.latest(len(rewards) - first, last - first))
        by_step = rewards.reshape(len(steps), count)
        for number, dones in enumerate(steps):
            self._count(by_step[number], dones)
        self._unsettled = []
        return by_step

    def _rewards(self, after: Any, terminated: NDArray[np.bool_], dones: NDArray[np.bool_]) -> NDArray[np.float32]:
        self._lengths += 1
        padding = self._no_padding
        if self.horizon is not None and terminated.any():
            padding = np.where(terminated, absorbing_steps(self._lengths, self.horizon, self.gamma), 0.0)
        self.store.add(self._observations, self._actions, after, terminated, padding, self._masks)
        self._lengths[dones] = 0
        if not self.is_deferred:
            return super()._rewards(after, terminated, dones)
        self._unsettled.append(dones)
        return np.zeros(self.num_envs, dtype=np.float32)


def install(algorithm: BaseAlgorithm, wrap: Callable[[VecEnv], Wrapper]) -> Wrapper:
    """Put the wrapper around the algorithm's environment: below a `VecNormalize`, which would change observations.

    Raises:
        ValueError: the algorithm has no environment, or one whose VecNormalize lies below another wrapper.
    """
    env = algorithm.env
    if env is None:
        raise ValueError("gen_algo has no environment: give it one, as in PPO('MlpPolicy', env).")
    if isinstance(env, VecNormalize):
        _refuse_normalize(env.venv)
        inner = wrap(env.venv)
        env.venv = inner
    else:
        _refuse_normalize(env)
        inner = wrap(env)
        algorithm.env = inner
    forget_last_observation(algorithm)  # the next `learn` resets the environments, through the wrapper
    return inner


def uninstall(algorithm: BaseAlgorithm, wrapper: VecEnvWrapper) -> None:
    """Take the wrapper away again; the next `learn` of the algorithm starts new episodes."""
    env = algorithm.env
    if env is wrapper:
        algorithm.env = wrapper.venv
    elif isinstance(env, VecNormalize) and env.venv is wrapper:
        env.venv = wrapper.venv
    forget_last_observation(algorithm)


def _refuse_normalize(env: VecEnv) -> None:
    if next(_normalizers(env), None) is not None:
        raise ValueError(
            "gen_algo's VecNormalize lies below another wrapper: the discriminator must see raw observations. Put "
            "VecNormalize outermost; for images that is VecNormalize(VecTransposeImage(env)), since "
            "Stable-Baselines3 else puts its VecTransposeImage around it."
        )


def _normalizers(env: VecEnv) -> Iterator[VecNormalize]:
    inner: Any = env
    while isinstance(inner, VecEnvWrapper):
        if isinstance(inner, VecNormalize):
            yield inner
        inner = inner.venv


def _with_final(observations: Any, dones: NDArray[np.bool_], infos: list[dict[str, Any]]) -> Any:
    """The observations after the actions: at the end of an episode its last one."""
    after = map_parts(observations, np.array)
    for place in np.flatnonzero(dones):
        final = infos[place]["terminal_observation"]
        if isinstance(after, dict):
            for key, part in after.items():
                part[place] = final[key]
        else:
            after[place] = final
    return after


KNOWN = ("stable_baselines3", "sb3_contrib", "rlsmooth")
"""Packages whose `collect_rollouts` uses rewards in no other way than by the rollout buffer, and whose buffers
keep them as they are."""


def can_defer(algorithm: BaseAlgorithm, capacity: int) -> bool:
    """Whether nothing in the algorithm's rollouts needs a reward before the returns are computed.

    Args:
        algorithm: with its environment.
        capacity: transitions that the store keeps; a rollout must fit.
    """
    if not isinstance(algorithm, OnPolicyAlgorithm) or capacity < algorithm.n_steps * algorithm.n_envs:
        return False
    normalises_rewards = isinstance(algorithm.env, VecNormalize) and algorithm.env.norm_reward
    used = type(algorithm).collect_rollouts, type(algorithm.rollout_buffer).add
    return not normalises_rewards and all(each.__module__.split(".")[0] in KNOWN for each in used)


@contextmanager
def deferred_rewards(
    algorithm: BaseAlgorithm, wrapper: RecordingRewardVecEnv, checkpoint_folder: Path | None = None
) -> Iterator[None]:
    """Meanwhile the rollout buffer adds the true rewards to its own before it computes the returns.

    By then it holds the values of the states at which time limits truncated episodes, else 0.

    Args:
        algorithm: that acts in the wrapper.
        wrapper: that gives the rewards.
        checkpoint_folder: where the last good checkpoint is, for the error about a reward that is not finite, or None.
    """
    if not wrapper.is_deferred:
        yield
        return
    assert isinstance(algorithm, OnPolicyAlgorithm)
    buffer = algorithm.rollout_buffer
    compute = buffer.compute_returns_and_advantage

    def settle_and_compute(last_values: Tensor, dones: NDArray[np.bool_]) -> None:
        rewards = wrapper.settle()
        for place in np.flatnonzero(~np.isfinite(rewards).all(axis=1)):
            step = algorithm.num_timesteps - (len(rewards) - 1 - int(place)) * algorithm.n_envs
            check_finite_step(step, rewards[place], (), checkpoint_folder=checkpoint_folder, is_learned=True)
        buffer.rewards += rewards
        compute(last_values=last_values, dones=dones)

    vars(buffer)["compute_returns_and_advantage"] = settle_and_compute
    try:
        yield
    finally:
        del vars(buffer)["compute_returns_and_advantage"]


RELABELLED_AT_ONCE = 16384


def check_relabelling(algorithm: BaseAlgorithm) -> None:
    """Check that the rewards in the algorithm's replay buffer, if it has one, can be made anew.

    Raises:
        TypeError: the buffer is of another kind, or keeps no next observations.
    """
    buffer: Any = algorithm.replay_buffer if isinstance(algorithm, OffPolicyAlgorithm) else None
    if buffer is not None and (type(buffer) not in KNOWN_BUFFERS or buffer.optimize_memory_usage):
        raise TypeError(
            f"the rewards of a {type(buffer).__name__} (or one with optimize_memory_usage) can't be made anew: use a "
            "ReplayBuffer, or relabel_replay_buffer=False."
        )


def relabel(algorithm: OffPolicyAlgorithm, reward: RewardFunction) -> None:
    """Write the reward of each transition in the algorithm's replay buffer again, as `reward` now has it.

    Args:
        algorithm: with a `ReplayBuffer`, `DictReplayBuffer` or `NStepReplayBuffer`.
        reward: of observations, actions, next observations and `terminated`.

    Raises:
        TypeError: the buffer is of another kind, or keeps no next observations.
    """
    check_relabelling(algorithm)
    buffer: Any = algorithm.replay_buffer
    size = buffer.size()
    count = buffer.n_envs
    steps = max(1, RELABELLED_AT_ONCE // count)
    space = algorithm.action_space
    for first in range(0, size, steps):
        part = slice(first, min(first + steps, size))
        length = part.stop - part.start
        terminated = buffer.dones[part].astype(bool) & ~buffer.timeouts[part].astype(bool)
        actions = buffer.actions[part].reshape(length * count, *(space.shape or ()))
        if isinstance(space, spaces.Box):
            actions = algorithm.policy.unscale_action(actions)
        flat = partial(_flat, part=part)
        here, after = map_parts(buffer.observations, flat), map_parts(buffer.next_observations, flat)
        buffer.rewards[part] = reward(here, actions, after, terminated.reshape(-1)).reshape(length, count)


def _flat(values: NDArray[Any], part: slice) -> NDArray[Any]:
    """The steps of all environments behind each other."""
    return np.asarray(values[part]).reshape(-1, *values.shape[2:])
