"""Generative adversarial imitation learning, on any algorithm of Stable-Baselines3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, final

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from rlsmooth.agents.adversarial.reward_nets import RewardNet, Transitions
from rlsmooth.agents.adversarial.trainer import AdversarialImitation, TerminalStates
from rlsmooth.checks import check_choice
from rlsmooth.data import Demonstrations
from rlsmooth.losses import binary_cross_entropy
from rlsmooth.untrusted import decode

RewardForm: TypeAlias = Literal["minus_log_one_minus_d", "log_d", "logit"]
AbsorbingReward: TypeAlias = Literal["counted", "learned"]

NEVER, SELDOM = 1e-30, 1e-12
"""What stands for 0 absorbing steps, of the expert and of the generator, so that the logit is finite. Where neither
side has any, the expert is the one that never terminates."""


@final
class GAIL(AdversarialImitation):
    """GAIL (Ho & Ermon 2016): the generator is rewarded for transitions that the discriminator takes for the expert's.

    With D the discriminator's probability that a transition is the expert's, the discriminator minimises

        CE(real_target, D(expert)) / 2 + CE(fake_target, D(generator)) / 2     (nats)

    and the generator maximises the return of the reward `-log(1 - D)`, or of another `reward_form`. For densities `p_E`
    and `p_G` and targets a and b, the optimal D is `(a p_E + b p_G) / (p_E + p_G)`: one-sided smoothing
    (`real_target=0.9`) caps the logit at `log(a / (1 - a))`, and the reward with it. At the equilibrium, `p_E = p_G`,
    the logit is `log((a + b) / (2 - a - b))` instead of 0; `correct_offset` subtracts this offset, so that the cap of
    the reward becomes `-log(1 - sigmoid(log(a / (1 - a)) - offset))`.

    If episodes can terminate early, the sign of the reward alone makes the generator survive long or terminate soon,
    whatever the expert does. With `terminal_states="absorbing"` (Kostrikov et al. 2019, Discriminator-Actor-Critic), a
    terminal state leads to an absorbing state, which the discriminator scores too and which earns its reward for ever.
    The implementation subtracts that reward from every step instead, which shifts all returns by the same constant:
    termination is worth 0, and a step is worth as much as it is better than having terminated.

    The absorbing state is a single point, whose best logit needs no learning. With e and g absorbing steps per
    transition of the expert and of the generator it is `log((a e + b g) / ((1 - a) e + (1 - b) g))`.
    `absorbing_reward="counted"` takes that, and the network sees real transitions only. The logit is taken to be at
    most that of the equilibrium for `-log(1 - D)`, and at least that for `log D`: where only one side terminates it has
    no bound. What is subtracted from every step distinguishes no two actions, but is a constant `1 / (1 - gamma)` times
    as large in the values that a critic has to learn. Where the expert never terminates, a step thus earns its whole
    reward; where it terminates more often than the generator, a step is paid by how much it looks more like the
    expert's than the generator's.

    A `reward_net` of your own must give all absorbing transitions the same score. It is learned, as by
    `absorbing_reward="learned"`, from minibatches which contain such transitions, drawn as if each side had terminated
    once more than observed (Laplace's rule of succession), which bounds the score. `reward_form="logit"` is bounded in
    the same way. A learned score starts at random, and pays for terminating until it has fallen below those of real
    states. `terminal_states="as_is"` does nothing of this, like imitation with `allow_variable_horizon=True`.

    Args:
        demonstrations: the expert's. `next_observations` are needed only if the reward net uses them.
        gen_algo: an algorithm of SB3 or sb3-contrib with its environment, smoothed ones included. An outermost
            `VecNormalize` is allowed: the discriminator sees raw observations.
        reward_net: maps `Transitions` to the discriminator's logits `[B]`; None: `RewardNet` of observation and action.
        reward_form: `"minus_log_one_minus_d"` (`>= 0`, the usual one), `"log_d"` (`<= 0`) or `"logit"` (their sum,
            which has both signs).
        demo_batch_size: the number of expert transitions in a discriminator update, which has as many of the generator;
            drawn with replacement, so that it may exceed the number of demonstrated transitions.
        demo_minibatch_size: transitions of each side per backward pass, a divisor of `demo_batch_size`; gradients are
            accumulated. The result equals that of one pass, except for rounding and the network's running
            statistics. None: all at once.
        n_disc_updates_per_round: discriminator updates per round; None: one for each 64 steps of an on-policy
            algorithm's round, and at least 2; 2 for an off-policy one.
        gen_train_timesteps: environment steps per round; None: one rollout for an on-policy algorithm, 1024 steps for
            an off-policy one (for which imitation's default is one per environment). A round ends with a rollout.
        gen_replay_buffer_capacity: how many of the generator's latest transitions the discriminator samples from; None:
            those of one round.
        disc_learning_rate: None: 1e-3, or the `lr` of `disc_opt_kwargs`.
        disc_opt_cls: the discriminator's optimiser.
        disc_opt_kwargs: its other arguments.
        real_target: the value of D that the expert's transitions are trained towards.
        fake_target: the value of D that the generator's transitions are trained towards; leave it at 0.
        correct_offset: subtract the logit at the equilibrium before the reward is computed.
        terminal_states: `"absorbing"`: a terminal state leads to an absorbing one; `"as_is"`: termination is ignored.
        absorbing_reward: how the absorbing state's logit is found, for `"absorbing"`: `"counted"`, if `reward_net` is a
            `RewardNet`, whose own score of the absorbing state then means nothing; or `"learned"` by the network.
        horizon: steps after which episodes are truncated, for `"absorbing"`; None: the environment's time limit, or
            else the length of the longest demonstration.
        relabel_replay_buffer: for off-policy algorithms: recompute the rewards in the replay buffer after each round.
        seed: for the reward net's weights and the minibatches; None: drawn from torch's generator.

    Raises:
        TypeError: `gen_algo` is not an SB3 algorithm, or `disc_opt_cls` not an optimiser; see also `RewardNet`.
        ValueError: spaces that differ, no environment, a value outside its range, two learning rates, a `reward_net`
            that does not support absorbing states.

    Warns:
        UserWarning: `fake_target` is above 0 (see `rlsmooth.training.discriminator.check_targets`);
            `gen_train_timesteps` is not a multiple of a rollout; the demonstrations are longer than the horizon, don't
            say whether they terminated, or have weights, which are not used; no time limit is known.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> from rlsmooth.data import cartpole_v1
        >>> generator = PPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu")
        >>> trainer = GAIL(cartpole_v1(), generator, real_target=0.9, seed=0).learn(256)
        >>> trainer.rounds, generator.num_timesteps
        (2, 256)
    """

    # Rollouts differ by three orders of magnitude, and two updates of a long one teach GAIL next to nothing
    # (a pilot of `scripts/studies/benchmark.py`). AIRL fails with so many where GAIL does not: see docs/adversarial.md.
    STEPS_AN_UPDATE: ClassVar[int | None] = 64
    ADDED_ARGUMENTS: ClassVar[dict[str, Any]] = {"absorbing_reward": "learned"}

    def __init__(
        self,
        demonstrations: Demonstrations,
        gen_algo: BaseAlgorithm,
        reward_net: nn.Module | None = None,
        *,
        demo_batch_size: int = 256,
        demo_minibatch_size: int | None = None,
        n_disc_updates_per_round: int | None = None,
        gen_train_timesteps: int | None = None,
        gen_replay_buffer_capacity: int | None = None,
        reward_form: RewardForm = "minus_log_one_minus_d",
        disc_learning_rate: float | None = None,
        disc_opt_cls: type[torch.optim.Optimizer] = torch.optim.Adam,
        disc_opt_kwargs: Mapping[str, Any] | None = None,
        real_target: float = 1.0,
        fake_target: float = 0.0,
        correct_offset: bool = True,
        terminal_states: TerminalStates = "absorbing",
        absorbing_reward: AbsorbingReward = "counted",
        horizon: int | None = None,
        relabel_replay_buffer: bool = True,
        seed: int | None = None,
    ) -> None:
        check_choice("reward_form", reward_form, ("minus_log_one_minus_d", "log_d", "logit"))
        self.reward_form: RewardForm = reward_form
        check_choice("absorbing_reward", absorbing_reward, ("counted", "learned"))
        self.absorbing_reward: AbsorbingReward = absorbing_reward
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

        self.absorbing_logit = self._counted_logit()

    def _check_policy(self) -> None:
        """Any policy will do."""

    def _default_net(self) -> nn.Module:
        return RewardNet(self.gen_algo.observation_space, self.gen_algo.action_space)

    @property
    def _learns_absorbing(self) -> bool:  # type: ignore[override]
        return self.absorbing_reward == "learned" or not isinstance(self.reward_net, RewardNet)

    def _counted_logit(self) -> float:
        """The best discriminator's logit of the absorbing state, bounded as the class says."""
        is_logit, sides = self.reward_form == "logit", (self.expert, self.generated)
        if is_logit and not len(self.generated):
            return self.offset  # D knows nothing yet
        expert, made = (side.absorbing_ratio(self._unseen_absorbing(side) if is_logit else 0.0) for side in sides)
        real = self.real_target * expert + self.fake_target * made
        logit = math.log(max(real, NEVER) / max(expert + made - real, SELDOM))
        return logit if is_logit else (max if self.reward_form == "log_d" else min)(logit, self.offset)

    def train_discriminator(self) -> dict[str, float]:
        """The discriminator's part of a round; see `AdversarialImitation.train_discriminator`."""
        found = super().train_discriminator()
        self.absorbing_logit = self._counted_logit()
        return found

    def logits(self, transitions: Transitions, masks: Tensor | None) -> Tensor:
        """The reward net's output, `[B]`."""
        logits: Tensor = self.reward_net(transitions)
        return logits

    def reward(self, transitions: Transitions) -> Tensor:
        """The reward, `-log(1 - D)` or another `reward_form`, of the logit minus the offset, `[B]`."""
        logits: Tensor = self.reward_net(transitions)
        if not self._learns_absorbing and transitions.absorbing is not None:
            logits = logits.masked_fill(transitions.absorbing, self.absorbing_logit)
        logits = logits - self.offset
        if self.reward_form == "logit":
            return logits
        if self.reward_form == "log_d":
            return -binary_cross_entropy(logits, torch.ones_like(logits), reduction="none")
        return binary_cross_entropy(logits, torch.zeros_like(logits), reduction="none")

    def state(self) -> dict[str, Any]:
        """As `AdversarialImitation.state`, and the absorbing state's logit."""
        return {**super().state(), "absorbing_logit": self.absorbing_logit}

    def set_state(self, state: Mapping[str, Any], path: Path) -> None:
        """Put back what `state` gave, arguments apart; see `AdversarialImitation.set_state`."""
        super().set_state(state, path)
        if "absorbing_logit" in state:  # not in files of before it was counted
            self.absorbing_logit = decode(float, state["absorbing_logit"], "absorbing_logit")
