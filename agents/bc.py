"""Behavioural cloning with smoothed targets, on any actor-critic policy of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self, TypeAlias, final

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_device
from torch import Tensor

from rlsmooth.agents import bc_run, bc_setup
from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.action_bins import ActionBins
from rlsmooth.agents.bc_data import TrainingRows
from rlsmooth.agents.bc_encoding import fingerprint
from rlsmooth.agents.bc_files import SavedModel, begin_checkpoints
from rlsmooth.agents.bc_metrics import l2_norm
from rlsmooth.agents.bc_monitor import Monitor
from rlsmooth.agents.bc_targets import ReferenceLike, action_target, as_references, as_smoothings, refuse_row_alphas
from rlsmooth.agents.heads import Batch
from rlsmooth.agents.warm_start import copy_actor
from rlsmooth.checks import check_in_range, check_positive_int, check_writable_folder
from rlsmooth.data import Demonstrations
from rlsmooth.targets import Smoothing
from rlsmooth.training import epoch_permutation, isolated_rng, rng_state, set_rng_state

__all__ = ["BC"]

SmoothingLike: TypeAlias = float | str | Smoothing


@final
class BC(SavedModel):
    """Clone demonstrations by supervised learning, with a target that keeps the policy from certainty.

        loss = CE(smoothed target, pi) + kl_coef · KL(reference‖pi) + l2_coef / 2 · sum of squared parameters     (nats)

    Smoothing `a` towards the uniform is `(1 - a) · CE(hard target) + a · KL(uniform‖pi)` up to a constant, so that
    `smoothing=a` and `smoothing=0, kl_coef=a / (1 - a)` have the same optimum. Components of MultiDiscrete and
    MultiBinary actions are independent: each has its own target, and losses and entropies are sums over them. A Box is
    cloned by the Gaussian's negative log-likelihood, smoothed towards a broad Gaussian. Of the demonstrations,
    `action_masks` keep smoothing mass and policy off illegal actions, `weights` weigh the rows (the mean is divided by
    their sum), and `action_probs` replace the labels as soft targets, smoothed as labels are.

    The agent is used as a model of Stable-Baselines3 (`predict`, `learn`, callbacks, `evaluate_policy`), whose
    timesteps are batches here. A seeded run repeats bit for bit; training draws from random generators of its own.

    Args:
        policy: `"MlpPolicy"`, `"CnnPolicy"`, `"MultiInputPolicy"`, sb3-contrib's as `"MaskableMlpPolicy"` and so on
            (for acting under masks), an actor-critic policy class, or a policy that is built already.
        env_or_spaces: an environment (id, Gymnasium or VecEnv; only callbacks need one), `(observation_space,
            action_space)`, or None for the demonstrations' spaces.
        demonstrations: what to clone; None for an agent that only acts. Memory-mapped ones are read block by block.
        smoothing: alpha, or a schedule `"lin_0.1"`, or a `Smoothing`; or a list of such, one a MultiDiscrete dimension.
        kl_coef: coefficient of the KL term, 0 or more.
        reference: of the KL term and of the tag `kl_reference`: None (uniform over the legal actions), or what
            `Smoothing(reference=)` takes; or a list of such, one a MultiDiscrete dimension.
        reference_std: Box only. The broad Gaussian's mean is the middle of the action space and its standard deviation
            half the width (0 and 1 where there are no bounds), or this number.
        action_bins: Box only. Cut each dimension into so many bins and clone them with a categorical policy, for which
            `Smoothing(reference="exponential")` and the other ordinal schemes are made; None: a Gaussian policy.
        learning_rate: a number, `"lin_1e-3"` (down to 0), or a callable of the progress remaining (1 to 0).
        batch_size: rows of one forward pass; an epoch's last batch may have fewer.
        gradient_accumulation: forward passes of one update, which then equals one of `batch_size ·
            gradient_accumulation` rows. Batches (`total_batches`, `num_timesteps`, intervals) are counted in updates.
        max_grad_norm: to which the gradient's norm is clipped; None: not.
        l2_coef: as imitation's `l2_weight`, over all parameters of the policy.
        amp: forward passes in bfloat16 (losses stay in float32); meant for CUDA.
        validation: held-out demonstrations, for the tags `val_*` and early stopping.
        validation_fraction: hold out this share of the episodes instead.
        early_stopping_patience: stop after so many epochs without a lower validation loss (the smoothed one), and go
            back to the best parameters; None: neither.
        policy_kwargs: as SB3's.
        seed: of the initial weights, the order of the data, dropout, evaluations; None: drawn from torch's generator.
        device: as SB3's.
        tensorboard_log: folder for TensorBoard files; None: none.
        verbose: 0 nothing, 1 logs on the terminal.
        checkpoint_folder: where checkpoints go that `resume` goes on from; None: none are written.
        checkpoint_every: batches from one checkpoint to the next.
        eval_env: environment of the evaluations; None: there are none.
        eval_every: batches from one evaluation to the next; None: one at the end.
        n_eval_episodes: episodes of an evaluation, so many deterministic and so many sampled.

    Raises:
        TypeError: an argument of a kind that is not listed, a recurrent policy, an unsupported space.
        ValueError: a value outside its range, spaces that differ, both kinds of validation data, early stopping without
            any, a folder that can't be written to; see also `Smoothing` and `Demonstrations.split`.

    Example:
        >>> from rlsmooth.data import cartpole_v1
        >>> agent = BC("MlpPolicy", None, cartpole_v1(), smoothing=0.1, seed=0, device="cpu").learn(total_batches=50)
        >>> action, _ = agent.predict(cartpole_v1().observations[0], deterministic=True)
        >>> agent.num_timesteps, action.shape
        (50, ())
    """

    def __init__(
        self,
        policy: str | type[BasePolicy] | BasePolicy,
        env_or_spaces: GymEnv | str | tuple[spaces.Space[Any], spaces.Space[Any]] | None,
        demonstrations: Demonstrations | None,
        *,
        smoothing: SmoothingLike | Sequence[SmoothingLike] = 0.1,
        kl_coef: float = 0.0,
        reference: ReferenceLike | Sequence[ReferenceLike] | None = None,
        reference_std: float | None = None,
        action_bins: int | None = None,
        learning_rate: bc_setup.LearningRate = 1e-3,
        batch_size: int = 64,
        gradient_accumulation: int = 1,
        max_grad_norm: float | None = None,
        l2_coef: float = 0.0,
        amp: bool = False,
        validation: Demonstrations | None = None,
        validation_fraction: float = 0.0,
        early_stopping_patience: int | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        checkpoint_folder: str | Path | None = None,
        checkpoint_every: int = 1000,
        eval_env: GymEnv | str | None = None,
        eval_every: int | None = None,
        n_eval_episodes: int = 10,
    ) -> None:
        self.kl_coef = check_in_range("kl_coef", kl_coef, 0.0)
        self.l2_coef = check_in_range("l2_coef", l2_coef, 0.0)
        self.reference_std = reference_std
        self.learning_rate = learning_rate
        self.lr_schedule = bc_setup.as_schedule(learning_rate)
        self.batch_size = check_positive_int("batch_size", batch_size)
        self.gradient_accumulation = check_positive_int("gradient_accumulation", gradient_accumulation)
        self.max_grad_norm = None
        if max_grad_norm is not None:
            self.max_grad_norm = check_in_range("max_grad_norm", max_grad_norm, 0.0, low_open=True)
        self.amp = amp
        self.validation_fraction = check_in_range("validation_fraction", validation_fraction, 0.0, 1.0, high_open=True)
        self.seed = int(torch.randint(2**31, ())) if seed is None else check_positive_int("seed", seed, minimum=0)
        self.device = get_device(device)
        self.tensorboard_log = None
        if tensorboard_log is not None:
            self.tensorboard_log = str(check_writable_folder("tensorboard_log", tensorboard_log))
        self.verbose = verbose
        self.checkpoint_folder = None
        if checkpoint_folder is not None:
            self.checkpoint_folder = check_writable_folder("checkpoint_folder", checkpoint_folder)
        self.checkpoint_every = check_positive_int("checkpoint_every", checkpoint_every)
        self.eval_every = None if eval_every is None else check_positive_int("eval_every", eval_every)
        self.n_eval_episodes = check_positive_int("n_eval_episodes", n_eval_episodes)

        self.env, self.observation_space, self.action_space = agent_spaces.resolve_spaces(
            env_or_spaces, demonstrations, verbose
        )
        self.eval_env = None if eval_env is None else agent_spaces.wrap_env("eval_env", eval_env, verbose)
        own = (self.observation_space, self.action_space)
        agent_spaces.check_all_spaces(own, demonstrations, validation, self.eval_env)
        self.observation_space = agent_spaces.policy_space(self.observation_space)
        self.bins = None if action_bins is None else ActionBins(self.action_space, action_bins)
        policy_actions = self.action_space if self.bins is None else self.bins.space
        self._action_start = agent_spaces.action_start(self.action_space)
        with isolated_rng(self.seed):
            self.policy = bc_setup.build_policy(
                policy,
                self.observation_space,
                policy_actions,
                learning_rate=self.lr_schedule(1.0),
                policy_kwargs=policy_kwargs,
                device=self.device,
            )
        with isolated_rng((self.seed + 1) % 2**32):  # whether the policy was built here or read from a file
            self._rng = rng_state()
        self.head = bc_setup.make_head(self.policy, policy_actions, reference_std)
        self.smoothings = as_smoothings(smoothing, self.head)
        self.references = as_references(reference, self.head)

        self.fingerprints = [None if data is None else fingerprint(data) for data in (demonstrations, validation)]
        self.demonstrations, self.validation = bc_setup.split(
            demonstrations, validation, self.validation_fraction, self.seed
        )
        self.early_stopping = bc_setup.early_stopping(early_stopping_patience, self.validation_fraction, validation)
        self._data = None if self.demonstrations is None else self._rows(self.demonstrations)
        if self.validation is not None:
            refuse_row_alphas(self.smoothings, "validation data have none")
        validation_rows = None if self.validation is None else self._rows(self.validation)
        self.monitor = Monitor(self, self._data, validation_rows)

        self.num_timesteps = 0
        self.n_envs = 1 if self.env is None else self.env.num_envs
        self._total_timesteps = 0
        self._num_timesteps_at_start = 0
        self._current_progress_remaining = 1.0
        self._first_epoch = 0  # of this run: a second run takes other orders than the first
        self._lr_changes = callable(learning_rate) or isinstance(learning_rate, str)
        self.is_resumed = False
        self.missing: tuple[str, ...] = ()
        self._logger = None
        self._has_custom_logger = False

    def _rows(self, demonstrations: Demonstrations) -> TrainingRows:
        return TrainingRows(
            demonstrations,
            self.head,
            self.observation_space,
            smoothings=self.smoothings,
            references=self.references,
            bins=self.bins,
            device=self.device,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Updates of one pass over the demonstrations."""
        rows = 0 if self._data is None else len(self._data)
        return -(-rows // (self.batch_size * self.gradient_accumulation))

    def learn(
        self,
        total_epochs: int | None = None,
        total_batches: int | None = None,
        callback: bc_run.Callbacks = None,
        log_interval: int = 500,
        tb_log_name: str = "BC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train. Give exactly one of `total_epochs` and `total_batches`.

        A second call trains on: with the same optimiser state, from new orders of the data, and counting anew unless
        `reset_num_timesteps=False`. After `resume` it must have the same total as the call that was cut off.

        Args:
            total_epochs: passes over the demonstrations.
            total_batches: updates.
            callback: SB3's callbacks, one or a list; `_on_step` is called after each update, `_on_rollout_*` never.
            log_interval: batches from one log line to the next; there is always one at the end.
            tb_log_name: of the run's folder in `tensorboard_log`.
            reset_num_timesteps: as SB3's.
            progress_bar: show one.

        Returns:
            The agent itself.

        Raises:
            TypeError: a number is not whole.
            ValueError: see `rlsmooth.agents.bc_run.plan`.
            TrainingDivergedError: the loss or a parameter became NaN or infinite; no checkpoint is written then.
        """
        check_positive_int("log_interval", log_interval)
        bc_run.plan(self, total_epochs, total_batches, reset_num_timesteps)
        bc_run.prepare_logger(self, tb_log_name, reset_num_timesteps and not self.is_resumed)
        listener = bc_run.prepare_callback(self, callback, progress_bar)
        with isolated_rng():
            set_rng_state(self._rng)
            self.monitor.start()
            if self.checkpoint_folder is not None and not self.is_resumed:
                self.monitor.check()  # a policy that an earlier run spoilt must not replace the last good checkpoint
                begin_checkpoints(self)
            self.is_resumed = False
            if listener is not None:
                listener.on_training_start({"self": self, "total_timesteps": self._total_timesteps}, globals())
            self._train(listener, log_interval)
            self.monitor.finish()
            if listener is not None:
                listener.on_training_end()
            self._rng = rng_state()
        return self

    def _train(self, listener: BaseCallback | None, log_interval: int) -> None:
        """The loop: orders of the data, updates, and what is due after each."""
        assert self._data is not None
        monitor, stopping = self.monitor, self.early_stopping
        total, per_epoch = self._total_timesteps, self.batches_per_epoch
        goes_on = stopping is None or not stopping.should_stop
        self.policy.set_training_mode(True)
        while goes_on and self.num_timesteps < total:
            epoch, done = divmod(self.num_timesteps, per_epoch)
            order = epoch_permutation(self.seed, self._first_epoch + epoch, len(self._data))
            for update in self._data.updates(order, self.batch_size, self.gradient_accumulation, skip=done):
                loss = self._update(update)
                monitor.losses.append(loss)
                self.num_timesteps = step = self.num_timesteps + 1
                self._current_progress_remaining = 1.0 - step / total
                if listener is not None:
                    listener.update_locals({"loss": loss})
                    goes_on = listener.on_step()
                    self.policy.set_training_mode(True)
                if step % log_interval == 0:
                    monitor.log()
                if stopping is not None and step % per_epoch == 0:
                    monitor.validate(stopping)
                    goes_on = goes_on and not stopping.should_stop
                if self.eval_every is not None and step % self.eval_every == 0:
                    monitor.evaluate()
                if self.checkpoint_folder is not None and step % self.checkpoint_every == 0:
                    monitor.checkpoint()
                if not goes_on or step == total:
                    break

    def _update(self, update: tuple[Batch, ...]) -> Tensor:
        """One step of the optimiser on the mean loss of an update's rows; returns that loss, without a wait for it."""
        optimizer, progress = self.policy.optimizer, self._current_progress_remaining
        if self._lr_changes:
            for group in optimizer.param_groups:
                group["lr"] = self.lr_schedule(progress)
        optimizer.zero_grad()
        total = None if len(update) == 1 else _weight(update)
        losses: list[Tensor] = []
        for part in update:
            target = part.target
            if target is None:  # alpha follows a schedule
                target = action_target(self.head, self.smoothings, part, progress=progress)
            with torch.autocast(self.device.type, torch.bfloat16) if self.amp else nullcontext():
                outputs = self.head.outputs(part.observations)
            if total is None:
                loss = self.head.loss(outputs, part, target, self.kl_coef, "mean")
            else:  # the parts add up to the mean over all rows
                loss = self.head.loss(outputs, part, target, self.kl_coef, "sum") / total
            if self.l2_coef and not losses:
                loss = loss + self.l2_coef * l2_norm(self.policy)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        optimizer.step()
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def evaluate(self) -> dict[str, float]:
        """Play `n_eval_episodes` deterministically and as many sampled, in `eval_env` or else the environment.

        Returns:
            `mean_reward`, `std_reward`, `mean_ep_length`, and the same with `_sampled`.

        Raises:
            ValueError: there is no environment.
        """
        return self.monitor.play()

    def warm_start(self, model: BaseAlgorithm) -> None:
        """Copy the actor into an SB3 model (PPO, A2C, MaskablePPO), which then starts where cloning ended.

        The model's critic stays untrained: keep `learning_rate` or `clip_range` small until it is not.

        Raises:
            TypeError: `model` is no SB3 algorithm.
            ValueError: spaces or architectures differ.
        """
        copy_actor(self.policy, model)


def _weight(update: tuple[Batch, ...]) -> int | Tensor:
    """What the mean over an update's rows is divided by: their number, or the sum of their weights."""
    weights = [part.weights.sum() for part in update if part.weights is not None]
    if not weights:
        return sum(len(part.labels) for part in update)
    total = torch.stack(weights).sum()
    return torch.where(total > 0, total, 1.0)
