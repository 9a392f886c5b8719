"""What GAIL and AIRL share: a discriminator between expert and generator, trained in turns with an SB3 algorithm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from rlsmooth.agents.adversarial_data import TransitionStore, absorbing_steps, expert_store
from rlsmooth.agents.adversarial_files import SavedImitation
from rlsmooth.agents.adversarial_rounds import Rounds
from rlsmooth.agents.adversarial_setup import (
    absorbing_row,
    build_optimizer,
    check_absorbing,
    check_generator,
    check_minibatch,
    discount,
    episode_horizon,
    masks_ends,
    needs_next,
    num_masks,
    round_timesteps,
)
from rlsmooth.agents.deferred_reward import can_defer, deferred_rewards
from rlsmooth.agents.learned_reward import RecordingRewardVecEnv, install, uninstall
from rlsmooth.agents.relabelling import check_relabelling
from rlsmooth.agents.reward_function import RewardFunction, as_tensors
from rlsmooth.agents.reward_net import Transitions
from rlsmooth.checks import check_choice, check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.training.discriminator import (
    DiscriminatorStatistics,
    accumulated_discriminator_step,
    check_targets,
    discriminator_step,
)

__all__ = ["AdversarialImitation", "TerminalStates"]

TerminalStates: TypeAlias = Literal["absorbing", "as_is"]
Callbacks: TypeAlias = BaseCallback | Sequence[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None

PROBE_ROWS = 8
TAGS = {
    "loss": "disc_loss",
    "accuracy": "disc_acc",
    "accuracy_real": "disc_acc_expert",
    "accuracy_fake": "disc_acc_gen",
    "entropy": "disc_entropy",
    "probability_real": "disc_probability_expert",
    "probability_fake": "disc_probability_gen",
    "share_real": "disc_proportion_expert_true",
    "share_predicted_real": "disc_proportion_expert_pred",
}
"""imitation's names, but for the two probabilities, which it lacks."""


class AdversarialImitation(SavedImitation, ABC):
    """The trainer behind `GAIL` and `AIRL`, which say what the discriminator's logit and the reward are.

    A round is: the generator makes `gen_train_timesteps` steps and learns from the learned reward, as in any call of
    its `learn`; then the discriminator makes `n_disc_updates_per_round` updates on batches of `demo_batch_size` expert
    rows and as many of the generator's latest. `learn` calls the algorithm's own `learn` once, so that its schedules,
    callbacks and progress bar run over the whole budget.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        gen_algo: BaseAlgorithm,
        reward_net: nn.Module,
        *,
        demo_batch_size: int,
        demo_minibatch_size: int | None,
        n_disc_updates_per_round: int,
        gen_train_timesteps: int | None,
        gen_replay_buffer_capacity: int | None,
        disc_learning_rate: float | None,
        disc_opt_cls: type[torch.optim.Optimizer],
        disc_opt_kwargs: Mapping[str, Any] | None,
        real_target: float,
        fake_target: float,
        correct_offset: bool,
        terminal_states: TerminalStates,
        horizon: int | None,
        relabel_replay_buffer: bool,
        seed: int,
    ) -> None:
        check_generator(gen_algo, demonstrations)
        self.demonstrations, self.gen_algo = demonstrations, gen_algo
        self.demo_batch_size = check_positive_int("demo_batch_size", demo_batch_size)
        self.demo_minibatch_size = check_minibatch(demo_minibatch_size, self.demo_batch_size)
        self.n_disc_updates_per_round = check_positive_int("n_disc_updates_per_round", n_disc_updates_per_round)
        self.gen_train_timesteps = round_timesteps(gen_algo, gen_train_timesteps)
        if gen_replay_buffer_capacity is None:
            gen_replay_buffer_capacity = self.gen_train_timesteps
        self.real_target, self.fake_target = check_targets(real_target, fake_target, stacklevel=4)
        self.correct_offset = correct_offset
        check_choice("terminal_states", terminal_states, ("absorbing", "as_is"))
        self.terminal_states: TerminalStates = terminal_states
        self.relabel_replay_buffer = relabel_replay_buffer
        if relabel_replay_buffer:
            check_relabelling(gen_algo)
        self.horizon = None if terminal_states == "as_is" else episode_horizon(gen_algo, demonstrations, horizon)
        self.seed = check_positive_int("seed", seed, minimum=0)
        self.device = gen_algo.device
        self.gamma = discount(gen_algo)
        self.reward_net = reward_net.to(self.device)
        self.optimizer = build_optimizer(self.reward_net, disc_learning_rate, disc_opt_cls, disc_opt_kwargs)

        masks = num_masks(gen_algo)
        self.expert = expert_store(
            demonstrations,
            gen_algo.observation_space,
            horizon=self.horizon,
            needs_next=needs_next(reward_net),
            masks_ends=masks_ends(reward_net),
            gamma=self.gamma,
            num_masks=masks,
        )
        self.generated = TransitionStore(
            gen_algo.observation_space, gen_algo.action_space, gen_replay_buffer_capacity, masks
        )
        probe, _ = self.expert.sample(PROBE_ROWS, np.random.default_rng(0), self.device)
        self._absorbing_row = absorbing_row(probe)
        if self.horizon is not None:
            check_absorbing(self.reward_net, probe)
        self.rounds = self.trained_at = 0
        self.knows_absorbing = False
        self.draws = np.random.default_rng(np.random.SeedSequence([self.seed, 1]))
        self.fingerprint: str | None = None
        self.arguments: dict[str, Any] = {
            "demo_batch_size": self.demo_batch_size,
            "demo_minibatch_size": demo_minibatch_size,
            "n_disc_updates_per_round": self.n_disc_updates_per_round,
            "gen_train_timesteps": self.gen_train_timesteps,
            "gen_replay_buffer_capacity": gen_replay_buffer_capacity,
            "disc_learning_rate": disc_learning_rate,
            "disc_opt_cls": disc_opt_cls,
            "disc_opt_kwargs": None if disc_opt_kwargs is None else dict(disc_opt_kwargs),
            "real_target": self.real_target,
            "fake_target": self.fake_target,
            "correct_offset": correct_offset,
            "terminal_states": terminal_states,
            "horizon": self.horizon,
            "relabel_replay_buffer": relabel_replay_buffer,
            "seed": self.seed,
        }

    @abstractmethod
    def logits(self, rows: Transitions, masks: Tensor | None) -> Tensor:
        """The discriminator's logit, `[B]`, high = expert, with its graph.

        Args:
            rows: see `Transitions`.
            masks: bool `[B, choices]`, or None.
        """

    @abstractmethod
    def reward(self, rows: Transitions) -> Tensor:
        """What the generator is given for each row, `[B]`, before that of the absorbing state is taken off."""

    def recovered_reward(self, rows: Transitions) -> Tensor:
        """What a new agent is to be trained on, `[B]`: `reward`, but for shaping."""
        return self.reward(rows)

    @property
    def offset(self) -> float:
        """The logit of a discriminator that can't tell the sides apart, `log((a + b) / (2 - a - b))`; hard: 0.

        With `correct_offset` it is taken off the logit before the reward is made, so that smoothing adds no constant to
        each step's reward, which would pay for longer or shorter episodes.
        """
        both = self.real_target + self.fake_target
        return math.log(both / (2 - both)) if self.correct_offset else 0.0

    @property
    def reward_function(self) -> RewardFunction:
        """The recovered reward of arrays, for `LearnedRewardVecEnv`; as `predict_reward`, without shaping.

        It is that of the network as it stands when it is called.
        """
        return self._recovered

    @property
    def is_round_over(self) -> bool:
        """Whether the generator has made `gen_train_timesteps` steps since the discriminator last learnt."""
        return self.generated.added - self.trained_at >= self.gen_train_timesteps

    @property
    def policy(self) -> BasePolicy:
        """The generator's."""
        return self.gen_algo.policy

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """The generator's action; as SB3's."""
        return self.gen_algo.predict(observation, state, episode_start, deterministic)

    def learn(
        self,
        total_timesteps: int,
        callback: Callbacks = None,
        *,
        log_interval: int | None = None,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train both in turns; the arguments are those of SB3's `learn`.

        Args:
            total_timesteps: the generator's environment steps.
            callback: SB3's, one or several; they see the generator. `rollout/ep_rew_mean` is the true return. An
                `EvalCallback` beside a `VecNormalize` needs one wrapper more below that of the evaluation environment,
                `VecNormalize(VecCheckNan(eval_env), training=False)`, for the trainer has one in the other. An
                `ExactCheckpointCallback` keeps the trainer too; see `resume`. In rollouts of on-policy algorithms
                `locals["rewards"]` is 0: the rewards are made in one pass before the returns are computed.
            log_interval: as SB3's; None: the algorithm's default.
            tb_log_name: None: the trainer's name.
            reset_num_timesteps: as SB3's.
            progress_bar: as SB3's.

        Returns:
            The trainer itself. The algorithm's environment is its own again.
        """
        is_deferred = can_defer(self.gen_algo, self.generated.capacity)
        wrapper = install(
            self.gen_algo,
            lambda venv: RecordingRewardVecEnv(
                venv,
                self.predict_reward,
                self.generated,
                horizon=self.horizon,
                gamma=self.gamma,
                is_deferred=is_deferred,
            ),
        )
        listeners: list[BaseCallback] = [Rounds(self, wrapper)]
        if callback is not None:
            given = callback if isinstance(callback, Sequence) else [callback]
            listeners += [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in given]
        interval: dict[str, Any] = {} if log_interval is None else {"log_interval": log_interval}
        try:
            with deferred_rewards(self.gen_algo, wrapper):
                self.gen_algo.learn(
                    total_timesteps,
                    callback=listeners,
                    tb_log_name=tb_log_name or type(self).__name__,
                    reset_num_timesteps=reset_num_timesteps,
                    progress_bar=progress_bar,
                    **interval,
                )
        finally:
            uninstall(self.gen_algo, wrapper)
        return self

    def train_discriminator(self) -> dict[str, float]:
        """The discriminator's part of a round; returns the means over its updates, by imitation's names.

        Raises:
            RuntimeError: the generator has made no step yet.
            FloatingPointError: the loss is not finite.
        """
        if len(self.generated) == 0:
            raise RuntimeError("the generator has made no transitions to tell from the expert's: call learn first.")
        self.reward_net.train()
        self.policy.set_training_mode(False)
        found = [self._update_discriminator() for _ in range(self.n_disc_updates_per_round)]
        self.reward_net.eval()
        self.rounds += 1
        self.trained_at = self.generated.added
        means = torch.stack([torch.stack(tuple(statistics)) for statistics in found]).mean(0).tolist()
        if not math.isfinite(means[0]):
            raise FloatingPointError(
                f"the discriminator's loss is {means[0]} in round {self.rounds}: lower disc_learning_rate."
            )
        named = dict(zip(DiscriminatorStatistics._fields, means, strict=True))
        return {tag: named[name] for name, tag in TAGS.items()} | {
            "n_expert": float(self.demo_batch_size),
            "n_generated": float(self.demo_batch_size),
        }

    def _update_discriminator(self) -> DiscriminatorStatistics:
        drawn = self.demo_batch_size, self.draws, self.device
        expert, expert_masks = self.expert.sample(*drawn, more_absorbing=self._unseen_end(self.expert))
        generated, generated_masks = self.generated.sample(*drawn, more_absorbing=self._unseen_end(self.generated))
        size = self.demo_minibatch_size

        def logits() -> Iterator[tuple[Tensor, Tensor]]:
            for first in range(0, self.demo_batch_size, size):
                rows = slice(first, first + size)
                # One pass over both: what the net standardises by is then the same for both.
                both = Transitions(*(_joined(*pair, rows) for pair in zip(expert, generated, strict=True)))
                masks = None if expert_masks is None else _joined(expert_masks, generated_masks, rows)
                found = self.logits(both, masks)
                yield found[:size], found[size:]

        real, fake = self.real_target, self.fake_target
        if size == self.demo_batch_size:
            whole = next(logits())
            return discriminator_step(self.optimizer, *whole, real_target=real, fake_target=fake)
        parts = self.demo_batch_size // size
        return accumulated_discriminator_step(self.optimizer, logits(), parts, real_target=real, fake_target=fake)

    def _sees_absorbing(self) -> bool:
        """Whether either side has ever ended; before, nothing is known of the absorbing state, and it plays no part."""
        if self.horizon is not None and not self.knows_absorbing:
            self.knows_absorbing = self.expert.has_absorbing or self.generated.has_absorbing
        return self.knows_absorbing

    def _unseen_end(self, store: TransitionStore) -> float:
        """Absorbing rows of an end that was not seen: each side is drawn from as if it had ended once more.

        That is Laplace's rule of succession. Where only one side ever ended, the best D of the absorbing state would
        else be 0 or 1 and its reward, which is taken off every step, without bound. The side with fewer rows has less
        of that end, so that two sides that do the same have the same share of it.
        """
        if not self._sees_absorbing():
            return 0.0
        assert self.horizon is not None
        whole = float(absorbing_steps(np.zeros(1, np.int64), self.horizon, self.gamma)[0])
        return whole * len(store) / max(len(self.expert), len(self.generated))

    def predict_reward(
        self, observations: Any, actions: NDArray[Any], next_observations: Any, terminated: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """What the generator is paid for transitions, float32 `[B]`, on arrays.

        With `terminal_states="absorbing"` it is less the reward of the absorbing state. An episode that ends would earn
        that one for ever after; taking it off every step instead moves all returns by the same amount, so that an end
        is worth 0, as algorithms take it, and no end pays at once what the critic has yet to learn of going on.

        Args:
            observations: `[B, ...]`, or a dict of such, as the algorithm's space has them.
            actions: `[B, ...]`.
            next_observations: as `observations`.
            terminated: bool `[B]`.
        """
        return self._paid(self.reward, observations, actions, next_observations, terminated)

    def _recovered(
        self, observations: Any, actions: NDArray[Any], next_observations: Any, terminated: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        return self._paid(self.recovered_reward, observations, actions, next_observations, terminated)

    @torch.no_grad()
    def _paid(
        self,
        reward: Callable[[Transitions], Tensor],
        observations: Any,
        actions: NDArray[Any],
        next_observations: Any,
        terminated: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        if self.reward_net.training:
            self.reward_net.eval()
        space, ended = self.gen_algo.observation_space, torch.as_tensor(terminated, device=self.device)
        rows = Transitions(
            as_tensors(observations, space, self.device),
            torch.as_tensor(actions, device=self.device),
            as_tensors(next_observations, space, self.device),
            ended,
            torch.zeros_like(ended),
        )
        rewards = reward(rows)
        if self._sees_absorbing():
            rewards = rewards - reward(self._absorbing_row)
        paid: NDArray[np.float32] = rewards.float().cpu().numpy()
        return paid


def _joined(one: Any, other: Any, rows: slice) -> Any:
    if isinstance(one, dict):
        return {key: torch.cat((one[key][rows], other[key][rows])) for key in one}
    return torch.cat((one[rows], other[rows]))
