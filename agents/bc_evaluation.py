"""How an agent does in its environment, played deterministically and sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.training import isolated_rng

__all__ = ["play", "play_episodes"]


def play(agent: Any, env: VecEnv, *, n_episodes: int, seed: int, use_masks: bool) -> dict[str, float]:
    """Mean return and length of `n_episodes` episodes, once deterministic and once sampled.

    Both see the same seeds, and every call sees them again, so that two evaluations differ by the policy alone. The
    global random generators are left as they were.

    Args:
        agent: with SB3's `predict`.
        env: vectorised.
        n_episodes: for each of the two.
        seed: of the environments and of the sampled actions.
        use_masks: ask the environment for `action_masks` and pass them to `predict`.

    Returns:
        `mean_reward`, `std_reward` and `mean_ep_length`, and the same with `_sampled`.
    """
    found: dict[str, float] = {}
    for suffix, deterministic in (("", True), ("_sampled", False)):
        returns, lengths = play_episodes(
            agent, env, n_episodes=n_episodes, seed=seed, use_masks=use_masks, deterministic=deterministic
        )
        found[f"mean_reward{suffix}"] = float(np.mean(returns))
        found[f"std_reward{suffix}"] = float(np.std(returns))
        found[f"mean_ep_length{suffix}"] = float(np.mean(lengths))
    return found


def play_episodes(
    agent: Any, env: VecEnv, *, n_episodes: int, seed: int, use_masks: bool, deterministic: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return and length of each of `n_episodes` episodes; seeds and generators as in `play`.

    Args:
        agent: with SB3's `predict`.
        env: vectorised.
        n_episodes: how many.
        seed: of the environments and of the sampled actions.
        use_masks: ask the environment for `action_masks` and pass them to `predict`.
        deterministic: the most probable actions, else sampled ones.
    """
    with isolated_rng(seed):
        env.seed(seed)
        if use_masks:
            from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked

            returns, lengths = evaluate_masked(
                agent, env, n_episodes, deterministic, return_episode_rewards=True, warn=False
            )
        else:
            returns, lengths = evaluate_policy(
                agent, env, n_episodes, deterministic, return_episode_rewards=True, warn=False
            )
    return np.asarray(returns, np.float64), np.asarray(lengths, np.int64)
