"""Adversarial inverse reinforcement learning, on any stochastic algorithm of Stable-Baselines3."""

from __future__ import annotations

from typing import Any, final

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from rlsmooth.agents.adversarial.reward_nets import (
    RewardNet,
    ShapedRewardNet,
    TensorObservations,
    Transitions,
    map_parts,
)
from rlsmooth.agents.adversarial.trainer import AdversarialImitation
from rlsmooth.agents.sb3 import is_maskable
from rlsmooth.data.arrays import forward


@final
class AIRL(AdversarialImitation):
    """Imitate and recover a reward: the discriminator's logit is `f(s, a, s') - log pi(a|s)` (Fu et al. 2018).

    At the optimum f is the expert's advantage, and its unshaped part g, `reward_net.reward`, the reward up to a
    constant. The generator is paid f; entropy is the algorithm's own matter (`ent_coef`, or the smoothing of
    `SmoothedPPO`), as in imitation. One-sided smoothing moves the logit at the equilibrium from 0 to
    `log((a + b) / (2 - a - b))`, `log(a / (2 - a))` for b = 0, and f with it; `correct_offset` takes that off f, which
    is else a constant for each step that an episode lasts.

    Args:
        demonstrations: the expert's, with `next_observations`; where these are missing, the next observation of the
            episode is taken, and its last transition left out.
        gen_algo: an algorithm whose policy gives log-probabilities: an actor-critic policy, or SAC's.
        reward_net: f of `Transitions`, `[B]`; None: a `ShapedRewardNet` with the algorithm's gamma.
        demo_batch_size: the expert's transitions in a discriminator update, and as many of the generator's.
        demo_minibatch_size: transitions of each side that one backward pass takes; None: all at once.
        n_disc_updates_per_round: discriminator updates of a round; None: 2. GAIL's default makes AIRL fail.
        gen_train_timesteps: environment steps of a round; None: a rollout of an on-policy algorithm, 1024 of another.
        gen_replay_buffer_capacity: how many of the generator's latest transitions are drawn from; None: a round's.
        disc_learning_rate: None: 1e-3, or the `lr` of `disc_opt_kwargs`.
        disc_opt_cls: the discriminator's optimiser.
        disc_opt_kwargs: its other arguments.
        real_target: the value of D that the expert's transitions are trained towards.
        fake_target: the value of D that the generator's transitions are trained towards; leave it at 0.
        correct_offset: take the logit of the equilibrium off f.
        terminal_states: `"absorbing"`: a terminal state leads to an absorbing one (see `GAIL`), whose log pi is 0:
            there is nothing to choose in it; `"as_is"`: termination is not seen.
        horizon: steps after which episodes are truncated; None: the environment's time limit, else the longest
            demonstration.
        relabel_replay_buffer: off-policy algorithms: make the rewards in the replay buffer anew after each round.
        seed: of the reward net's weights and of the draws; None: drawn from torch's generator.

    Raises:
        TypeError: `gen_algo` is no SB3 algorithm, or its policy has no log-probabilities.
        ValueError: spaces that differ, no environment, a value outside its range, two learning rates, a `reward_net`
            that does not know the absorbing state.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> from rlsmooth.data import cartpole_v1
        >>> generator = PPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu")
        >>> trainer = AIRL(cartpole_v1(), generator, seed=0).learn(256)
        >>> trainer.rounds
        2
    """

    def _check_policy(self) -> None:
        policy = self.gen_algo.policy
        is_known = isinstance(policy, (ActorCriticPolicy, SACPolicy)) or is_maskable(policy)
        if not is_known or "lstm_actor" in dict(policy.named_children()):
            raise TypeError(
                f"gen_algo's {type(policy).__name__} has no log-probability of an action: use an actor-critic policy "
                "without memory (PPO, A2C, TRPO, MaskablePPO and their smoothed forms) or SAC."
            )

    def _default_net(self) -> nn.Module:
        net = RewardNet(self.gen_algo.observation_space, self.gen_algo.action_space)
        return ShapedRewardNet(net, gamma=float(self.gen_algo.gamma))

    def logits(self, transitions: Transitions, masks: Tensor | None) -> Tensor:
        """`f(s, a, s') - log pi(a|s)`, `[B]`."""
        scores: Tensor = self.reward_net(transitions)
        probability = log_probability(self.gen_algo, transitions.observations, transitions.actions, masks)
        if transitions.absorbing is not None:
            probability = probability.masked_fill(transitions.absorbing, 0.0)
        return scores - probability

    def reward(self, transitions: Transitions) -> Tensor:
        """`f(s, a, s')` less the offset, `[B]`."""
        scores: Tensor = self.reward_net(transitions)
        return scores - self.offset

    def recovered_reward(self, transitions: Transitions) -> Tensor:
        """The unshaped part g, `[B]`, less the offset; f where `reward_net` is no `ShapedRewardNet`."""
        net = self.reward_net
        scores: Tensor = net.reward(transitions) if isinstance(net, ShapedRewardNet) else net(transitions)
        return scores - self.offset


@torch.no_grad()
def log_probability(
    algorithm: BaseAlgorithm, observations: TensorObservations, actions: Tensor, masks: Tensor | None = None
) -> Tensor:
    """`log pi(a|s)` of the algorithm's present policy, `[B]`, in nats (of a Box: of the density).

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
        scaled = _scaled(algorithm, actions).flatten(1)
        mean, log_std, others = policy.actor.get_action_dist_params(seen)
        found: Tensor = policy.actor.action_dist.proba_distribution(mean, log_std, **others).log_prob(scaled)
        return found
    if policy.squash_output and isinstance(algorithm.action_space, spaces.Box):
        actions = _scaled(algorithm, actions)  # the policy draws from [-1, 1]
    if isinstance(algorithm.action_space, spaces.Box):
        actions = actions.flatten(1)  # SB3's distributions are over `[B, D]`
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
    arrays: Any = env.normalize_obs(map_parts(observations, lambda part: part.cpu().numpy()))
    found: TensorObservations = map_parts(arrays, lambda part: torch.as_tensor(forward(part), device=algorithm.device))
    return found


def _scaled(algorithm: BaseAlgorithm, actions: Tensor) -> Tensor:
    space: Any = algorithm.action_space
    low, high = (torch.as_tensor(bound, device=actions.device) for bound in (space.low, space.high))
    return 2 * (actions - low) / (high - low) - 1
