"""Adversarial inverse reinforcement learning, on any stochastic algorithm of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from rlsmooth.agents.adversarial.reward_nets import RewardNet, ShapedRewardNet, TensorObservations, Transitions
from rlsmooth.agents.adversarial.trainer import (
    AdversarialImitation,
    TerminalStates,
    build_net,
    check_algorithm,
    discount,
)
from rlsmooth.agents.sb3 import is_maskable
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations

__all__ = ["AIRL"]


@final
class AIRL(AdversarialImitation):
    """Imitate and recover a reward: the discriminator's logit is `f(s, a, s') - log pi(a|s)` (Fu et al. 2018).

    At the optimum f is the expert's advantage, and its unshaped part g, `reward_net.reward`, the reward up to a
    constant. The generator is paid f; entropy is the algorithm's own matter (`ent_coef`, or the smoothing of
    `SmoothedPPO`), as in imitation. One-sided smoothing moves the logit at the equilibrium from 0 to
    `log((a + b) / (2 - a - b))`, `log(a / (2 - a))` for b = 0, and f with it; `correct_offset` takes that off f, which
    is else a constant for each step that an episode lasts.

    Args:
        demonstrations: the expert's, with `next_observations`; where these are missing the next row stands for them,
            and the last row of each episode is left out.
        gen_algo: as of `GAIL`; its policy must tell log-probabilities: an actor-critic policy, or SAC's.
        reward_net: f of `Transitions`, `[B]`; None: a `ShapedRewardNet` with the algorithm's gamma.
        demo_batch_size: as of `GAIL`.
        demo_minibatch_size: as of `GAIL`.
        n_disc_updates_per_round: as of `GAIL`.
        gen_train_timesteps: as of `GAIL`.
        gen_replay_buffer_capacity: as of `GAIL`.
        disc_learning_rate: as of `GAIL`.
        disc_opt_cls: as of `GAIL`.
        disc_opt_kwargs: as of `GAIL`.
        real_target: as of `GAIL`.
        fake_target: as of `GAIL`.
        correct_offset: see above.
        terminal_states: as of `GAIL`; log pi of the absorbing state is 0, since there is nothing to choose in it.
        horizon: as of `GAIL`.
        relabel_replay_buffer: as of `GAIL`.
        seed: as of `GAIL`.

    Raises:
        TypeError: `gen_algo` is no SB3 algorithm, or its policy has no log-probabilities.
        ValueError: as `GAIL`.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from rlsmooth.data import cartpole_v1
        >>> generator = PPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu")
        >>> trainer = AIRL(cartpole_v1(), generator, seed=0).learn(256)
        >>> trainer.rounds
        2
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        gen_algo: BaseAlgorithm,
        reward_net: nn.Module | None = None,
        *,
        demo_batch_size: int = 256,
        demo_minibatch_size: int | None = None,
        n_disc_updates_per_round: int = 2,
        gen_train_timesteps: int | None = None,
        gen_replay_buffer_capacity: int | None = None,
        disc_learning_rate: float | None = None,
        disc_opt_cls: type[torch.optim.Optimizer] = torch.optim.Adam,
        disc_opt_kwargs: Mapping[str, Any] | None = None,
        real_target: float = 1.0,
        fake_target: float = 0.0,
        correct_offset: bool = True,
        terminal_states: TerminalStates = "absorbing",
        horizon: int | None = None,
        relabel_replay_buffer: bool = True,
        seed: int | None = None,
    ) -> None:
        check_algorithm(gen_algo)
        policy = gen_algo.policy
        is_known = isinstance(policy, (ActorCriticPolicy, SACPolicy)) or is_maskable(policy)
        if not is_known or "lstm_actor" in dict(policy.named_children()):
            raise TypeError(
                f"gen_algo's {type(policy).__name__} can't tell the log-probability of an action: use an actor-critic "
                "policy without memory (PPO, A2C, TRPO, MaskablePPO and their smoothed forms) or SAC."
            )
        seed = int(torch.randint(2**31, ())) if seed is None else check_positive_int("seed", seed, minimum=0)
        if reward_net is None:
            of = gen_algo.observation_space, gen_algo.action_space
            gamma = discount(gen_algo)
            reward_net = build_net(lambda: ShapedRewardNet(RewardNet(*of), gamma=gamma), seed)
        super().__init__(
            demonstrations,
            gen_algo,
            reward_net,
            demo_batch_size=demo_batch_size,
            demo_minibatch_size=demo_minibatch_size,
            n_disc_updates_per_round=n_disc_updates_per_round,
            gen_train_timesteps=gen_train_timesteps,
            gen_replay_buffer_capacity=gen_replay_buffer_capacity,
            disc_learning_rate=disc_learning_rate,
            disc_opt_cls=disc_opt_cls,
            disc_opt_kwargs=disc_opt_kwargs,
            real_target=real_target,
            fake_target=fake_target,
            correct_offset=correct_offset,
            terminal_states=terminal_states,
            horizon=horizon,
            relabel_replay_buffer=relabel_replay_buffer,
            seed=seed,
        )

    def logits(self, rows: Transitions, masks: Tensor | None) -> Tensor:
        """`f(s, a, s') - log pi(a|s)`, `[B]`."""
        scores: Tensor = self.reward_net(rows)
        probability = log_probability(self.gen_algo, rows.observations, rows.actions, masks)
        if rows.absorbing is not None:
            probability = probability.masked_fill(rows.absorbing, 0.0)
        return scores - probability

    def reward(self, rows: Transitions) -> Tensor:
        """`f(s, a, s')` less the offset, `[B]`."""
        scores: Tensor = self.reward_net(rows)
        return scores - self.offset

    def recovered_reward(self, rows: Transitions) -> Tensor:
        """The unshaped part g, `[B]`, less the offset; f where `reward_net` is no `ShapedRewardNet`."""
        net = self.reward_net
        scores: Tensor = net.reward(rows) if isinstance(net, ShapedRewardNet) else net(rows)
        return scores - self.offset


@torch.no_grad()
def log_probability(
    algorithm: BaseAlgorithm, observations: TensorObservations, actions: Tensor, masks: Tensor | None = None
) -> Tensor:
    """`log pi(a|s)` of the algorithm's policy as it stands, `[B]`, in nats (of a Box: of the density).

    Args:
        algorithm: with an actor-critic policy, or SAC's.
        observations: raw: an outermost `VecNormalize` is applied here.
        actions: `[B, ...]`.
        masks: bool `[B, choices]`, for maskable policies.
    """
    policy: Any = algorithm.policy
    policy.set_training_mode(False)
    seen = _normalised(algorithm, observations)
    if isinstance(policy, SACPolicy):
        scaled = _scaled(algorithm, actions)
        mean, log_std, others = policy.actor.get_action_dist_params(seen)
        found: Tensor = policy.actor.action_dist.proba_distribution(mean, log_std, **others).log_prob(scaled)
        return found
    if policy.squash_output and isinstance(algorithm.action_space, spaces.Box):
        actions = _scaled(algorithm, actions)  # the policy draws from [-1, 1]
    if isinstance(algorithm.action_space, spaces.MultiBinary):
        actions = actions.float()  # SB3's Bernoulli takes what its rollout buffer holds
    if is_maskable(policy):
        _, found, _ = policy.evaluate_actions(seen, actions, masks)
    else:
        _, found, _ = policy.evaluate_actions(seen, actions)
    return found


def _normalised(algorithm: BaseAlgorithm, observations: TensorObservations) -> TensorObservations:
    env = algorithm.get_env()
    if not isinstance(env, VecNormalize) or not env.norm_obs:
        return observations
    if isinstance(observations, dict):
        arrays: Any = env.normalize_obs({key: part.cpu().numpy() for key, part in observations.items()})
        return {key: torch.as_tensor(np.asarray(part), device=algorithm.device) for key, part in arrays.items()}
    return torch.as_tensor(env.normalize_obs(observations.cpu().numpy()), device=algorithm.device)


def _scaled(algorithm: BaseAlgorithm, actions: Tensor) -> Tensor:
    space: Any = algorithm.action_space
    low, high = (torch.as_tensor(bound, device=actions.device) for bound in (space.low, space.high))
    return 2 * (actions - low) / (high - low) - 1
