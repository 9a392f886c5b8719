"""What GAIL and AIRL share: a discriminator between expert and generator, trained in turns with an SB3 algorithm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.adversarial_data import TransitionStore, expert_store
from rlsmooth.agents.bc_setup import is_maskable
from rlsmooth.agents.learned_reward import LearnedRewardVecEnv, install, uninstall
from rlsmooth.agents.relabelling import relabel
from rlsmooth.agents.reward_net import RewardNet, Transitions
from rlsmooth.checks import check_choice, check_in_range, check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.training import isolated_rng
from rlsmooth.training.discriminator import DiscriminatorStatistics, check_targets, discriminator_step

__all__ = ["AdversarialImitation", "TerminalStates"]

TerminalStates: TypeAlias = Literal["absorbing", "as_is"]
Callbacks: TypeAlias = BaseCallback | Sequence[BaseCallback] | None

OFF_POLICY_ROUND = 1024
"""Default of `gen_train_timesteps` for algorithms without rollouts."""
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


class AdversarialImitation(ABC):
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
        n_disc_updates_per_round: int,
        gen_train_timesteps: int | None,
        gen_replay_buffer_capacity: int | None,
        disc_learning_rate: float,
        real_target: float,
        fake_target: float,
        correct_offset: bool,
        terminal_states: TerminalStates,
        horizon: int | None,
        relabel_replay_buffer: bool,
        seed: int,
    ) -> None:
        if not isinstance(gen_algo, (OnPolicyAlgorithm, OffPolicyAlgorithm)):
            raise TypeError(f"gen_algo must be an algorithm of Stable-Baselines3, got {type(gen_algo).__name__}.")
        agent_spaces.check_demonstrations("demonstrations", demonstrations)
        if gen_algo.env is None:
            raise ValueError("gen_algo has no environment: give it one, as in PPO('MlpPolicy', env).")
        agent_spaces.check_same_spaces(
            "demonstrations",
            (demonstrations.observation_space, demonstrations.action_space),
            (gen_algo.observation_space, gen_algo.action_space),
        )
        self.demonstrations, self.gen_algo = demonstrations, gen_algo
        self.demo_batch_size = check_positive_int("demo_batch_size", demo_batch_size)
        self.n_disc_updates_per_round = check_positive_int("n_disc_updates_per_round", n_disc_updates_per_round)
        if gen_train_timesteps is None:
            is_on_policy = isinstance(gen_algo, OnPolicyAlgorithm)
            gen_train_timesteps = gen_algo.n_steps * gen_algo.n_envs if is_on_policy else OFF_POLICY_ROUND
        self.gen_train_timesteps = check_positive_int("gen_train_timesteps", gen_train_timesteps)
        if gen_replay_buffer_capacity is None:
            gen_replay_buffer_capacity = self.gen_train_timesteps
        self.real_target, self.fake_target = check_targets(real_target, fake_target)
        self.correct_offset = correct_offset
        check_choice("terminal_states", terminal_states, ("absorbing", "as_is"))
        self.terminal_states: TerminalStates = terminal_states
        self.relabel_replay_buffer = relabel_replay_buffer
        self.horizon = None if terminal_states == "as_is" else _horizon(gen_algo, demonstrations, horizon)
        self.seed = check_positive_int("seed", seed, minimum=0)
        self.device = gen_algo.device
        self.reward_net = reward_net.to(self.device)
        learning_rate = check_in_range("disc_learning_rate", disc_learning_rate, 0.0, low_open=True)
        self.optimizer = torch.optim.Adam(self.reward_net.parameters(), lr=learning_rate)

        num_masks = self._num_masks()
        self.expert = expert_store(
            demonstrations,
            gen_algo.observation_space,
            horizon=self.horizon,
            needs_next=_needs_next(reward_net),
            num_masks=num_masks,
        )
        self.generated = TransitionStore(
            gen_algo.observation_space, gen_algo.action_space, gen_replay_buffer_capacity, num_masks
        )
        self.rounds = 0
        self._trained_at = 0
        self._draws = np.random.default_rng(np.random.SeedSequence([self.seed, 1]))

    @abstractmethod
    def logits(self, rows: Transitions, masks: Tensor | None) -> Tensor:
        """The discriminator's logit, `[B]`, high = expert, with its graph.

        Args:
            rows: see `Transitions`.
            masks: bool `[B, choices]`, or None.
        """

    @abstractmethod
    def reward(self, rows: Transitions) -> Tensor:
        """What the generator is given for each row, `[B]`, before what follows a terminal state is added."""

    @property
    def offset(self) -> float:
        """The logit of a discriminator that can't tell the sides apart, `log((a + b) / (2 - a - b))`; hard: 0.

        With `correct_offset` it is taken off the logit before the reward is made, so that smoothing adds no constant to
        each step's reward, which would pay for longer or shorter episodes.
        """
        both = self.real_target + self.fake_target
        return math.log(both / (2 - both)) if self.correct_offset else 0.0

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
            callback: SB3's, one or several; they see the generator. `rollout/ep_rew_mean` is the true return.
            log_interval: as SB3's; None: the algorithm's default.
            tb_log_name: None: the trainer's name.
            reset_num_timesteps: as SB3's.
            progress_bar: as SB3's.

        Returns:
            The trainer itself. The algorithm's environment is its own again.
        """
        listeners: list[BaseCallback] = [_Rounds(self)]
        if callback is not None:
            listeners += [callback] if isinstance(callback, BaseCallback) else list(callback)
        interval: dict[str, Any] = {} if log_interval is None else {"log_interval": log_interval}
        wrapper = install(
            self.gen_algo,
            lambda venv: LearnedRewardVecEnv(venv, self.predict_reward, self.generated, horizon=self.horizon),
        )
        self._wrapper = wrapper
        try:
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
        """The discriminator's part of a round; returns the means over its updates, by imitation's names."""
        self.reward_net.train()
        self.policy.set_training_mode(False)
        found: list[DiscriminatorStatistics] = []
        for _ in range(self.n_disc_updates_per_round):
            expert, expert_masks = self.expert.sample(self.demo_batch_size, self._draws, self.device)
            generated, generated_masks = self.generated.sample(self.demo_batch_size, self._draws, self.device)
            # One pass over both: what the net standardises by is then the same for both.
            masks = None if expert_masks is None else torch.cat((expert_masks, _given(generated_masks)))
            logits = self.logits(_joined(expert, generated), masks)
            found.append(
                discriminator_step(
                    self.optimizer,
                    logits[: self.demo_batch_size],
                    logits[self.demo_batch_size :],
                    real_target=self.real_target,
                    fake_target=self.fake_target,
                )
            )
        self.reward_net.eval()
        self.rounds += 1
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

    @torch.no_grad()
    def predict_reward(
        self, observations: Any, actions: NDArray[Any], next_observations: Any, terminated: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """The learned reward of transitions, float32 `[B]`, on arrays.

        With `terminal_states="absorbing"` a terminated transition is also given all that the absorbing state behind it
        would earn, `gamma / (1 - gamma)` times its reward; an episode that ends then earns as one that goes on.

        Args:
            observations: `[B, ...]`, or a dict of such, as the algorithm's space has them.
            actions: `[B, ...]`.
            next_observations: as `observations`.
            terminated: bool `[B]`.
        """
        self.reward_net.eval()
        rows = Transitions(
            _tensors(observations, self.device),
            torch.as_tensor(actions, device=self.device),
            _tensors(next_observations, self.device),
            torch.as_tensor(terminated, device=self.device),
            torch.zeros(len(terminated), dtype=torch.bool, device=self.device),
        )
        rewards = self.reward(rows)
        if self.horizon is not None and terminated.any():
            absorbing = rows._replace(
                terminated=torch.zeros_like(rows.terminated), absorbing=torch.ones_like(rows.terminated)
            )
            gamma = float(self.gen_algo.gamma)
            # gamma = 1 has no infinite sum: the horizon's remainder stands for it.
            worth = gamma / (1 - gamma) if gamma < 1 else float(self.horizon)
            rewards = rewards + torch.where(rows.terminated, worth * self.reward(absorbing), 0.0)
        return rewards.float().cpu().numpy()

    def _end_round(self) -> None:
        """Train the discriminator if the generator has made enough steps since the last time."""
        if self.generated.added - self._trained_at < self.gen_train_timesteps:
            return
        self._trained_at = self.generated.added
        logger = self.gen_algo.logger
        for name, value in self.train_discriminator().items():
            logger.record_mean(f"mean/disc/{name}", value)
        returns = self._wrapper.finished_returns
        if returns:
            logger.record("rollout/ep_rew_wrapped_mean", float(np.mean(returns)))
            returns.clear()
        if self.relabel_replay_buffer and isinstance(self.gen_algo, OffPolicyAlgorithm):
            relabel(self.gen_algo, self.predict_reward)

    def _num_masks(self) -> int:
        if not is_maskable(self.gen_algo.policy):
            return 0
        env = self.gen_algo.env
        assert env is not None
        if not env.has_attr("action_masks"):
            return 0
        return int(np.asarray(env.env_method("action_masks", indices=[0])[0]).size)


class _Rounds(BaseCallback):
    """Lets the discriminator learn between the generator's rollouts."""

    def __init__(self, trainer: AdversarialImitation) -> None:
        super().__init__()
        self.trainer = trainer

    def _on_rollout_start(self) -> None:
        self.trainer._end_round()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.trainer._end_round()


def build_net(build: Any, seed: int) -> nn.Module:
    """A network with weights drawn from `seed`, the global generators left alone."""
    with isolated_rng(seed):
        net: nn.Module = build()
    return net


def _needs_next(net: nn.Module) -> bool:
    return net.use_next_state if isinstance(net, RewardNet) else True


def _horizon(algorithm: BaseAlgorithm, demonstrations: Demonstrations, given: int | None) -> int:
    if given is not None:
        return check_positive_int("horizon", given)
    env = algorithm.env
    assert env is not None
    limits = [getattr(spec, "max_episode_steps", None) for spec in env.get_attr("spec")]
    known = [limit for limit in limits if limit is not None]
    return int(max(known)) if known else int(demonstrations.episode_lengths().max())


def _joined(one: Transitions, other: Transitions) -> Transitions:
    return Transitions(*(_cat(first, second) for first, second in zip(one, other, strict=True)))


def _cat(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {key: torch.cat((one[key], other[key])) for key in one}
    return torch.cat((one, other))


def _given(masks: Tensor | None) -> Tensor:
    assert masks is not None
    return masks


def _tensors(observations: Any, device: torch.device) -> Any:
    if isinstance(observations, dict):
        return {key: torch.as_tensor(np.asarray(part), device=device) for key, part in observations.items()}
    return torch.as_tensor(np.asarray(observations), device=device)
