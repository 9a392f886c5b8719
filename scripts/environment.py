"""The environments and devices that a command line names, checked before anything is written."""

from __future__ import annotations

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

import rlsmooth.envs  # registers ours
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations

__all__ = ["check_device", "check_seed", "default_policy", "limit_threads", "make_envs"]

assert rlsmooth.envs.ENVIRONMENTS


def make_envs(env: str, n_envs: int, seed: int) -> VecEnv:
    """`n_envs` environments of the id `env`, with monitors, as SB3's `make_vec_env` makes them.

    Raises:
        ValueError: no environment of that id is known, or it can't be made; a seed that is negative or too large.
    """
    check_positive_int("n_envs", n_envs)
    check_seed(seed)
    try:
        return make_vec_env(env, n_envs=n_envs, seed=seed)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"env={env!r} can't be made: {error}") from error


def check_seed(seed: int) -> int:
    """Return `seed`.

    Raises:
        ValueError: it is negative, or larger than numpy takes.
    """
    if check_positive_int("seed", seed, minimum=0) >= 2**32:
        raise ValueError(f"seed={seed} must be under 2**32, since numpy takes no larger one.")
    return seed


def check_device(device: str) -> str:
    """Return `device`.

    Raises:
        ValueError: torch does not know it, or this machine does not have it (SB3 would use the CPU without a word).
    """
    if device == "auto":
        return device
    try:
        torch.zeros(1, device=device).item()  # the device `meta` has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={device!r} can't be used ({reason}): try auto or cpu.") from error
    return device


def limit_threads(num_threads: int) -> None:
    """Let torch use so many threads; -1 leaves it as it is.

    Raises:
        TypeError: no whole number.
        ValueError: neither -1 nor at least 1.
    """
    if num_threads != -1:
        torch.set_num_threads(check_positive_int("num_threads", num_threads))


def default_policy(demonstrations: Demonstrations) -> str:
    """The alias of the policy for such observations, sb3-contrib's maskable one where there are action masks."""
    space = demonstrations.observation_space
    if isinstance(space, spaces.Dict):
        name = "MultiInputPolicy"
    else:
        name = "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    return name if demonstrations.action_masks is None else f"Maskable{name}"
