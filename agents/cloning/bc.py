"""Behavioural cloning with smoothed targets, on any actor-critic policy of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self, TypeAlias, final

import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import configure_logger, get_device
from torch import Tensor

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.acting import ActingModel
from rlsmooth.agents.cloning import policy_building as building
from rlsmooth.agents.cloning.advantage import Weighed, WeightsLike, as_weights, weigh
from rlsmooth.agents.cloning.measures import (
    CloningMeasures,
    distribution_figures,
    has_tensorboard,
    l2_norm,
    target_figures,
    write_to_tensorboard,
)
from rlsmooth.agents.cloning.numpy_updates import NumpyUpdates, check_engine, numpy_updates_of
from rlsmooth.agents.cloning.training_data import (
    ReferenceLike,
    Shuffle,
    TrainingData,
    action_target,
    as_references,
    as_smoothings,
    check_shuffle,
    fingerprint,
    refuse_alphas_by_transition,
    split_validation,
)
from rlsmooth.agents.files.policy_file import load_agent_file, load_parameters, save_agent_file
from rlsmooth.agents.heads import backward_of_plain, make_units, step_optimizer
from rlsmooth.agents.sb3 import Callbacks, init_callback
from rlsmooth.agents.spaces import ActionBins, check_same_spaces, wrap_env
from rlsmooth.checks import check_in_range, check_optional_folder, check_positive_int
from rlsmooth.data import Demonstrations, space_to_json
from rlsmooth.schedules import LearningRate, as_schedule
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError, load_optimizer, optimizer_to_tensors
from rlsmooth.training.distributed import Ranks, join_ranks
from rlsmooth.training.divergence import FiniteWatch
from rlsmooth.training.flat import clear_gradients, run_backward
from rlsmooth.training.mlp_engine import Engine
from rlsmooth.training.run import (
    RESUME_FILE,
    EarlyStopping,
    Progress,
    RunFolder,
    Stopwatch,
    check_given,
    check_given_again,
    check_no_missing,
    learning_rate_of,
    open_progress_bar,
    safe_points,
    set_learning_rate,
    stop,
    stop_requested,
)
from rlsmooth.training.seeding import few_threads, isolated_rng, rng_state, set_rng_state
from rlsmooth.untrusted import refused

SmoothingLike: TypeAlias = float | str | Smoothing
KIND = "bc"
DATA = ("demonstrations", "validation")
HOW_TO_RESUME = "BC.resume or, in its own agent, learn(..., reset_num_timesteps=False)"


@final
class BC(ActingModel):
    """Behavioural cloning: supervised learning on demonstrations, with targets that keep the policy from certainty.

        loss = CE(smoothed target, pi) + kl_coef · KL(reference‖pi) + l2_coef / 2 · sum of squared parameters     (nats)

    Smoothing `a` towards the uniform is `(1 - a) · CE(hard target) + a · KL(uniform‖pi)` up to a constant, so that
    `smoothing=a` and `smoothing=0, kl_coef=a / (1 - a)` have the same optimum. Components of MultiDiscrete and
    MultiBinary actions are independent: each has its own target, and losses and entropies are sums over them. A Box is
    cloned by the Gaussian's negative log-likelihood, smoothed towards a broad Gaussian; the optimiser sees the action
    layer in normalised units, so that any width is learned as fast as [-1, 1]. The demonstrations may contain
    `action_masks` (illegal actions get probability 0 in targets and policy), `weights` (the loss of B transitions is
    `sum w_i · loss_i / (B · mean w)`, with the mean of all) and `action_probs` (soft targets that replace the labels
    and are smoothed like them).

    The agent is used like an algorithm of Stable-Baselines3 (`predict`, `learn`, callbacks, `evaluate_policy`); what
    SB3 counts as timesteps are updates here. A seeded run repeats bit for bit; training has its own random state.

    Args:
        policy: `"MlpPolicy"`, `"CnnPolicy"`, `"MultiInputPolicy"`, which stand for sb3-contrib's maskable forms where
            data or environments have `action_masks`; an actor-critic policy class, or an instance of one.
        env_or_spaces: an environment (id, Gymnasium or VecEnv; only callbacks need one), `(observation_space,
            action_space)`, or None for the demonstrations' spaces.
        demonstrations: what to clone; None for an agent that only predicts. Memory-mapped data are read in blocks.
        smoothing: alpha, a schedule `"lin_0.1"`, or a `Smoothing`; or a list, one for each MultiDiscrete dimension.
        kl_coef: coefficient of the KL term, 0 or more.
        reference: for the KL term and the tag `kl_reference`: None (uniform over the legal actions), or what
            `Smoothing(reference=)` takes; or a list, one for each MultiDiscrete dimension.
        reference_std: Box only: the standard deviation of the broad Gaussian; None: half the width of the action space.
            Its mean is the middle. Without bounds both are those of the demonstrated actions.
        action_bins: Box only: discretise each dimension into this many bins and clone them with a categorical policy,
            for which the ordinal schemes, such as `Smoothing(reference="exponential")`, are made; None: a Gaussian.
        learning_rate: a number, `"lin_1e-3"` (down to 0), or a callable of the progress remaining (1 to 0).
        batch_size: transitions in a forward pass; an epoch's last batch may have fewer, with BatchNorm at least two.
        gradient_accumulation: forward passes per update, which then equals one update on `batch_size ·
            gradient_accumulation` transitions. `total_batches`, `num_timesteps` and intervals count updates.
        max_grad_norm: the gradient's norm is clipped to it; None: no clipping.
        l2_coef: the coefficient of the L2 term over all parameters of the policy, as imitation's `l2_weight`.
        amp: forward passes in bfloat16 (losses stay in float32); meant for CUDA.
        validation: held-out demonstrations, for the tags `val_*` and early stopping.
        validation_fraction: hold out this fraction of the episodes instead.
        early_stopping_patience: stop after this many epochs without a lower validation loss (with smoothed targets),
            and restore the best parameters; None: neither.
        policy_kwargs: as SB3's.
        seed: for initial weights, order of the data, dropout and evaluations; None: drawn from torch's generator.
        device: as SB3's.
        tensorboard_log: folder for TensorBoard files; None: none.
        verbose: 0 nothing, 1 logs on the terminal.
        checkpoint_folder: the folder for the checkpoints that `resume` continues from; None: none are written.
        checkpoint_every: updates between two checkpoints.
        eval_env: environment of the evaluations; None: there are none.
        eval_every: updates between two evaluations; None: one at the end.
        n_eval_episodes: episodes with deterministic actions in each evaluation, and as many with sampled actions.
        shuffle: `"full"`; `"blocks"`, which shuffles a pool of 64 shards of 4 MiB at a time and reads the disk about
            once an epoch; None: in blocks where the data are memory-mapped and larger than half of the memory.
        engine: `"numpy"` updates plain MLP policies on the CPU in numpy, several times as fast as `"torch"`; results
            differ in the last bits.
        weights: for demonstrations with rewards: `"advantage"`, `"positive"` or `"top"` weigh a transition by how much
            better it turned out than its state promised; or an `AdvantageWeights`, which has the settings, or a
            function that returns the weights of the demonstrations it gets. None: as the demonstrations say.

    Raises:
        TypeError: an argument of a kind that is not listed, a recurrent policy, an unsupported space.
        ValueError: a value outside its range, spaces that differ, masks without sb3-contrib, both kinds of validation
            data, early stopping without any, a folder that can't be written to; see also `Smoothing`.

    Warns:
        UserWarning: a policy class that can't use the action masks.

    Examples:
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
        learning_rate: LearningRate = 1e-3,
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
        shuffle: Shuffle | None = None,
        engine: Engine = "torch",
        weights: WeightsLike | None = None,
    ) -> None:
        self.kl_coef = check_in_range("kl_coef", kl_coef, 0.0)
        self.l2_coef = check_in_range("l2_coef", l2_coef, 0.0)
        self.reference_std = reference_std
        self.learning_rate = learning_rate
        self.lr_schedule = as_schedule(learning_rate)
        self.batch_size = check_positive_int("batch_size", batch_size)
        self.gradient_accumulation = check_positive_int("gradient_accumulation", gradient_accumulation)
        clips = max_grad_norm is not None
        self.max_grad_norm = check_in_range("max_grad_norm", max_grad_norm, 0.0, low_open=True) if clips else None
        self.amp = amp
        self.validation_fraction = check_in_range("validation_fraction", validation_fraction, 0.0, 1.0, high_open=True)
        self.seed = int(torch.randint(2**31, ())) if seed is None else check_positive_int("seed", seed, minimum=0)
        self.device = get_device(device)
        log = check_optional_folder("tensorboard_log", tensorboard_log)
        self.tensorboard_log = None if log is None else str(log)
        self.verbose, self.engine = verbose, engine
        self.checkpoint_folder = check_optional_folder("checkpoint_folder", checkpoint_folder)
        self.checkpoint_every = check_positive_int("checkpoint_every", checkpoint_every)
        self.eval_every = None if eval_every is None else check_positive_int("eval_every", eval_every)
        self.n_eval_episodes = check_positive_int("n_eval_episodes", n_eval_episodes)
        self.shuffle, self.weights = check_shuffle(shuffle), None if weights is None else as_weights(weights)

        self.env, self.observation_space, self.action_space = agent_spaces.resolve_spaces(
            env_or_spaces, demonstrations, verbose
        )
        self.eval_env = None if eval_env is None else wrap_env("eval_env", eval_env, verbose)
        own = (self.observation_space, self.action_space)
        agent_spaces.check_all_spaces(own, demonstrations, validation, self.eval_env)
        self.observation_space = agent_spaces.policy_space(self.observation_space)
        self.bins = None if action_bins is None else ActionBins(self.action_space, action_bins)
        policy_actions = self.action_space if self.bins is None else self.bins.space
        rate = self.lr_schedule(1.0)
        masked = demonstrations, validation, self.env, self.eval_env
        policy = building.for_masks(policy, self.action_space, *masked, policy_kwargs=policy_kwargs)
        with isolated_rng(self.seed):
            self.policy = building.build_policy(
                policy, self.observation_space, policy_actions, rate, policy_kwargs=policy_kwargs, device=self.device
            )
        with isolated_rng((self.seed + 1) % 2**32):  # the same whether the policy is built here or read from a file
            self.rng = rng_state()
        self.units = make_units(self.policy, policy_actions, demonstrations, given=policy, policy_kwargs=policy_kwargs)
        self.normalises_actions = True
        self.head = building.make_head(self.policy, policy_actions, reference_std, self.units)
        if engine != "torch":
            check_engine(self)
        self.smoothings = as_smoothings(smoothing, self.head)
        self.references = as_references(reference, self.head)
        self._take_data(demonstrations, validation, early_stopping_patience)

        self.progress = Progress()
        self.n_envs = 1 if self.env is None else self.env.num_envs
        self._first_epoch = 0  # of this run; a later run shuffles in new orders
        self._rate_changes = callable(learning_rate) or isinstance(learning_rate, str)
        self._watch = FiniteWatch(self.policy, data="demonstrations", model="policy")
        self._clock = Stopwatch()
        self.is_resumed = False
        self.missing: tuple[str, ...] = ()
        self._logger = None
        self._has_custom_logger = False

    def _take_data(
        self, demonstrations: Demonstrations | None, validation: Demonstrations | None, patience: int | None
    ) -> None:
        """Split the demonstrations, and prepare both parts for training on the device."""
        given, weighs = (demonstrations, validation), self.weights is not None
        self.fingerprints = [None if data is None else fingerprint(data, rewards=weighs) for data in given]
        self.early_stopping: EarlyStopping | None = None
        if patience is not None:
            if validation is None and self.validation_fraction == 0.0:
                raise ValueError("early_stopping_patience needs validation data: validation or validation_fraction.")
            self.early_stopping = EarlyStopping(check_positive_int("early_stopping_patience", patience))
        self.demonstrations, self.validation = split_validation(
            demonstrations, validation, self.validation_fraction, self.seed
        )
        self.weighed: Weighed | None = None
        if self.weights is not None and self.demonstrations is not None:
            self.weighed = weigh(self.weights, self.demonstrations, self.validation, policy=self.policy, seed=self.seed)
            self.demonstrations, self.validation = self.weighed.training, self.weighed.validation
        if self.validation is not None:
            refuse_alphas_by_transition(self.smoothings, "validation data have none")
        common: dict[str, Any] = {"smoothings": self.smoothings, "references": self.references, "bins": self.bins}
        common |= {"device": self.device, "shuffle": self.shuffle}
        self._data, self._held_out = (
            None if part is None else TrainingData(part, self.head, self.observation_space, **common)
            for part in (self.demonstrations, self.validation)
        )
        self._ranks = Ranks()
        # Files hold the choice made: it must not change with the memory.
        self.shuffle = self.shuffle if self._data is None else self._data.shuffle
        if self._data is not None and not self._data.is_streamed:
            _ = self._data.sample  # cached here, before the first log line needs it

    @property
    def measures(self) -> CloningMeasures:
        """Measures of the policy on the demonstrations and the held-out ones, with the current coefficients."""
        own_reference = self.kl_coef == 0 and self.references is None
        return CloningMeasures(self._data, self._held_out, self.kl_coef, own_reference, self.batch_size)

    @property
    def num_timesteps(self) -> int:
        """The number of updates so far; Stable-Baselines3's callbacks treat them as environment steps."""
        return self.progress.step

    @num_timesteps.setter
    def num_timesteps(self, count: int) -> None:
        self.progress.step = count

    @property
    def _total_timesteps(self) -> int:  # this name and the next are those that SB3's callbacks read
        return self.progress.end

    @property
    def _current_progress_remaining(self) -> float:
        return self.progress.remaining_of_all

    @property
    def batches_per_epoch(self) -> int:
        """The number of updates in one pass over the demonstrations."""
        return 0 if self._data is None else len(self._data.cut(self.batch_size, self.gradient_accumulation))

    # ---- training

    def learn(
        self,
        total_epochs: int | None = None,
        total_batches: int | None = None,
        callback: Callbacks = None,
        log_interval: int = 500,
        tb_log_name: str = "BC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train, and return the agent itself. Give exactly one of `total_epochs` and `total_batches`.

        A second call continues training with the same optimiser state and new orders of the data. It counts from 0
        unless `reset_num_timesteps=False`. After `resume`, give the same total as in the interrupted call.

        Args:
            total_epochs: passes over the demonstrations.
            total_batches: updates.
            callback: SB3's callbacks, one or a list; `_on_step` is called after each update, `_on_rollout_*` never.
            log_interval: updates between two log lines; there is always one at the end.
            tb_log_name: the name of the run's folder in `tensorboard_log`.
            reset_num_timesteps: as SB3's.
            progress_bar: show a progress bar.

        Raises:
            TypeError: a total or an interval is no whole number.
            ValueError: not exactly one total, or one below 1; no demonstrations; an argument that the file could not
                keep; a total that differs from the resumed run's; a checkpoint folder with another run in it.
            TrainingDivergedError: the loss or a parameter became NaN or infinite; no checkpoint is written then.
        """
        check_positive_int("log_interval", log_interval)
        self._plan(total_epochs, total_batches, reset_num_timesteps)
        counts_anew = reset_num_timesteps and not self.is_resumed
        if not self._has_custom_logger and (self._logger is None or counts_anew):
            log = (self.verbose, self.tensorboard_log) if self._ranks.is_main else (0, None)
            self._logger = configure_logger(*log, tb_log_name, counts_anew)
        logger, shown = self._logger, progress_bar and self._ranks.is_main
        assert logger is not None
        listener = None if callback is None else init_callback(self, callback)
        with (
            isolated_rng(),
            few_threads(self.policy, batch_size=self.batch_size, engine=self.engine),
            safe_points(self.checkpoint_folder, shared=True),
            open_progress_bar(self.progress.end, self.num_timesteps, "batch", shown=shown) as bar,
        ):
            set_rng_state(self.rng)
            if not self.is_resumed:
                self._watch.restart()
            self._logged_at = self._evaluated_at = -1
            if self.shuffle == "blocks" and not self.is_resumed:
                logger.log("Transitions are shuffled in blocks; if they are sorted on the disk, give shuffle='full'.")
            if self.num_timesteps == 0 and has_tensorboard(logger):
                write_to_tensorboard(logger, target_figures(self.head, self.smoothings), 0)
            self._clock.restart()
            if self.checkpoint_folder is not None and not self.is_resumed:
                self._check_finite()  # a policy that an earlier run spoilt must not replace the last good checkpoint
                self._begin_checkpoints()
            self.is_resumed = False
            if listener is not None:
                listener.on_training_start({"self": self, "total_timesteps": self.progress.end}, globals())
            in_numpy = None if self.engine == "torch" else numpy_updates_of(self, self._data)
            with nullcontext() if in_numpy is None else in_numpy.flat_memory():
                self._train(listener, log_interval, bar, in_numpy)
            self._finish()
            if listener is not None:
                listener.on_training_end()
            self.rng = rng_state()
        return self

    def _plan(self, total_epochs: int | None, total_batches: int | None, reset_num_timesteps: bool) -> None:
        """Set where the call starts and ends; see `learn` for the errors."""
        if (total_epochs is None) == (total_batches is None):
            raise ValueError(
                f"total_epochs={total_epochs!r} and total_batches={total_batches!r}: give exactly one of the two."
            )
        check_given("demonstrations", self.demonstrations, "BC")
        check_no_missing(self.missing)
        assert self._data is not None
        self._data.check_trains(self.batch_size, self.gradient_accumulation)
        self._ranks = self._data.ranks = join_ranks(
            self.policy, engine=self.engine, seed=self.seed, demonstrations=self.fingerprints, step=self.num_timesteps
        )
        if total_epochs is not None:
            batches = check_positive_int("total_epochs", total_epochs) * self.batches_per_epoch
        else:
            batches = check_positive_int("total_batches", total_batches)
        if not self.is_resumed:
            if self.checkpoint_folder is not None:
                self._run_folder().check_free(None if reset_num_timesteps else self.num_timesteps or None)
            if reset_num_timesteps and self.num_timesteps:
                self._first_epoch += -(-self.num_timesteps // self.batches_per_epoch)  # other orders than so far
                self.num_timesteps = 0
            if self.early_stopping is not None:
                self.early_stopping.reset()
        self.progress.begin(batches, "total_batches", is_resumed=self.is_resumed)

    def _train(self, listener: BaseCallback | None, log_interval: int, bar: Any, in_numpy: NumpyUpdates | None) -> None:
        """The training loop: shuffle the data, update, and log, validate, evaluate and save at their intervals."""
        assert self._data is not None
        progress, stopping, per_epoch = self.progress, self.early_stopping, self.batches_per_epoch
        continues, shares = stopping is None or not stopping.should_stop, self._ranks.size > 1
        cut = self.batch_size, self.gradient_accumulation
        self.policy.set_training_mode(True)
        while continues and not progress.is_over:
            epoch, done = divmod(progress.step, per_epoch)
            order = self._data.order(self.seed, self._first_epoch + epoch)
            end, source = done + progress.end - progress.step, self._data if in_numpy is None else in_numpy
            for update in source.updates(order, *cut, skip=done, end=end):
                if self._rate_changes:
                    set_learning_rate(self.policy.optimizer, self.lr_schedule(progress.remaining_of_all))
                size = sum([one.size for one in update])
                if shares:
                    size = self._data.size_of(progress.step % per_epoch, *cut)
                    self._ranks.seed_draws(self.seed, self._first_epoch, progress.step)
                loss = self._update(*update, samples=size) if in_numpy is None else in_numpy.update(*update)
                self._watch.add(loss, samples=size)
                progress.step = step = progress.step + 1
                bar.update()
                if listener is not None:
                    listener.update_locals({"loss": loss})
                    continues = listener.on_step()
                    self.policy.set_training_mode(True)
                    if in_numpy is not None:
                        in_numpy.refresh()
                if step % log_interval == 0:
                    self._log()
                if stopping is not None and step % per_epoch == 0:
                    self._validate(stopping)
                    continues = continues and not stopping.should_stop
                if self.eval_every is not None and step % self.eval_every == 0:
                    self._evaluate()
                stops = self.checkpoint_folder is not None and stop_requested() and not progress.is_over
                if shares:
                    ends, stops = self._ranks.any(not continues, stops)
                    continues = not ends
                if self.checkpoint_folder is not None and (stops or step % self.checkpoint_every == 0):
                    self._write_checkpoint()
                if stops:
                    stop(f"A checkpoint of batch {step:,} was written.")
                if not continues or progress.is_over:
                    break

    def _update(self, *update: Any, samples: int) -> Tensor:
        """One optimiser step on the mean loss of `samples` transitions, of which `update` is this process's share."""
        assert self._data is not None
        optimizer, ranks = self.policy.optimizer, self._ranks
        clear_gradients(optimizer)
        mean_weight, total = self._data.mean_weight, None
        if mean_weight is not None or len(update) > 1 or ranks.size > 1:
            total = samples * (mean_weight or 1.0)
        losses: list[Tensor] = []
        is_simple = len(update) == 1 and not self.l2_coef and not self.amp
        for part in update:
            target = part.target
            if target is None:  # alpha follows a schedule
                target = action_target(self.head, self.smoothings, part, progress=self.progress.remaining_of_all)
            if is_simple and (done := backward_of_plain(self.head, part, target, self.kl_coef, total)) is not None:
                losses.append(done)
                continue
            with torch.autocast(self.device.type, torch.bfloat16) if self.amp else nullcontext():
                outputs = self.head.outputs(part.observations)
            if total is None:
                loss = self.head.loss(outputs, part, target, self.kl_coef, "mean")
            else:  # the parts add up to the mean over the minibatch
                loss = self.head.loss(outputs, part, target, self.kl_coef, "sum") / total
            if self.l2_coef and not losses:
                loss = loss + self.l2_coef / ranks.size * l2_norm(self.policy, self.units)
            run_backward(loss)
            losses.append(loss.detach())
        mean = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        mean = mean if ranks.size == 1 else ranks.sum_gradients(optimizer, mean)
        step_optimizer(optimizer, self.policy.parameters(), self.max_grad_norm, self.units)
        return mean

    def _finish(self) -> None:
        """Write the last checkpoint, restore the best parameters, and write the last log line and evaluation."""
        step, stopping = self.num_timesteps, self.early_stopping
        self._check_finite()
        if self.checkpoint_folder is not None:
            self._write_checkpoint()
        changed = stopping is not None and stopping.restore(self.policy, step)
        if self._watch.losses or changed or self._logged_at != step:
            self._log()
        if (self.eval_env is not None or self.eval_every is not None) and (changed or self._evaluated_at != step):
            self._evaluate()
        self.policy.set_training_mode(False)

    # ---- logs, validation, evaluation: none of these changes the state of training's random generators

    def _check_finite(self) -> None:
        """Raise TrainingDivergedError unless all losses and parameters so far are finite."""
        rate, folder = learning_rate_of(self.policy.optimizer), self.checkpoint_folder
        self._watch.check(self.num_timesteps, self._minibatch_of, rate=rate, checkpoint_folder=folder)

    def _minibatch_of(self, step: int) -> tuple[Tensor, list[Tensor]]:
        """The indices of the transitions in the minibatch of an update, and their tensors."""
        assert self._data is not None
        epoch, update = divmod(step - 1, self.batches_per_epoch)
        order = self._data.order(self.seed, self._first_epoch + epoch)
        return self._data.values_of(update, order, self.batch_size, self.gradient_accumulation)

    def _log(self) -> None:
        """Write one log line."""
        self._check_finite()
        assert self._data is not None
        step, remaining, watch = self.num_timesteps, self.progress.remaining_of_all, self._watch
        logger, found = self._logger or self.logger, {}
        if watch.losses:
            found["samples_per_second"] = sum(watch.samples[watch.restored :]) / self._clock.seconds
        found |= self.measures.log_line(remaining, self.l2_coef, self.units)
        if watch.losses:
            found["loss"] = float(watch.mean_loss())
        epoch, done = divmod(step, self.batches_per_epoch)
        samples = epoch * len(self._data) + done * self.batch_size * self.gradient_accumulation
        found |= {"batch": step, "epoch": epoch, "samples_so_far": samples}
        found["learning_rate"] = learning_rate_of(self.policy.optimizer)
        for name, value in found.items():
            logger.record(f"bc/{name}", value)
        logger.record("batch_size", self.batch_size)
        logger.dump(step)
        self.policy.set_training_mode(True)
        self._watch.clear()
        self._logged_at = step
        self._clock.restart()

    def _validate(self, stopping: EarlyStopping) -> None:
        """Report the validation loss (cross-entropy with the smoothed target, plus the KL term) to early stopping."""
        self._check_finite()
        with self._clock.paused():
            stopping.update(self._ranks.of_main(self.validate()["loss"]), self.num_timesteps, self.policy)
        self.policy.set_training_mode(True)

    def validate(self) -> dict[str, float]:
        """Mean measures on the held-out demonstrations at the present progress, such as `loss` and `nll_hard`.

        Raises:
            ValueError: no demonstrations are held out.
        """
        if self.validation is None:
            raise ValueError("validate() needs validation data: give validation or validation_fraction.")
        return self.measures.validation(self.progress.remaining_of_all)

    def _evaluate(self) -> None:
        """Evaluate in the evaluation environment, and log figures of the policy's action probabilities."""
        self._check_finite()
        if not self._ranks.is_main:
            return
        with self._clock.paused():
            if self.eval_env is not None:
                for name, value in self.evaluate().items():
                    self.logger.record(f"eval/{name}", value)
                self.logger.dump(self.num_timesteps)
            if has_tensorboard(self.logger):
                figures = distribution_figures(self.measures.transitions(self.progress.remaining_of_all))
                write_to_tensorboard(self.logger, figures, self.num_timesteps)
        self._evaluated_at = self.num_timesteps
        self.policy.set_training_mode(True)

    # ---- agent files

    def save(self, path: str | Path, more: Mapping[str, Any] | None = None) -> Path:
        """Write an agent file (see `rlsmooth.agents.files.policy_file`) with policy, optimiser, arguments and counters.

        Callables (`learning_rate`, `weights`, a `Smoothing`'s alpha) are not stored: pass them to train after `load`.

        Args:
            path: `.zip` is added to a name without a suffix; the path written is returned.
            more: JSON-able values of the caller, under names that the file does not use; `load` ignores them.

        Raises:
            ValueError: the folder can't be written to.
        """
        tensors, optimizer = optimizer_to_tensors(self.policy.optimizer)
        config = {
            **(more or {}),
            "action_space": space_to_json(self.action_space),  # the policy's differs where actions are bins
            "arguments": building.encode_arguments(self),
            "counters": self._counters(),
            "optimizer": optimizer,
            "normalises_actions": self.normalises_actions,
        }
        return save_agent_file(path, kind=KIND, policy=self.policy, config=config, tensors=tensors)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: GymEnv | str | None = None,
        demonstrations: Demonstrations | None = None,
        *,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read an agent file. Runs no code that the file could name.

        Args:
            path: the file.
            env: an environment with the same spaces; `predict` needs none.
            demonstrations: the data to train on; `predict` needs none.
            device: as SB3's.
            policy_class: the class of the policy, if it is your own.
            custom_objects: `learning_rate`, `smoothing`, `reference` and `weights` that replace the file's, and
                constructor arguments of your own policy class.

        Raises:
            SafeFileError: the file is damaged, is not a BC agent's, or names an unknown class.
            ValueError: spaces that differ.
        """
        return cls._read(
            Path(path), env, demonstrations, device, policy_class=policy_class, custom_objects=custom_objects
        )

    @classmethod
    def resume(
        cls,
        checkpoint_folder: str | Path,
        env: GymEnv | str | None = None,
        demonstrations: Demonstrations | None = None,
        *,
        validation: Demonstrations | None = None,
        eval_env: GymEnv | str | None = None,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """The agent of the last good checkpoint; `learn` with the same total then resumes the run.

        On the CPU, the final parameters equal those of an uninterrupted run, bit for bit. Callbacks start afresh: their
        state is not saved.

        Args:
            checkpoint_folder: the `checkpoint_folder` of the run.
            env: an environment like the run's.
            demonstrations: the same as those of the run.
            validation: the same as those of the run, if they were given separately.
            eval_env: an evaluation environment like the run's.
            tensorboard_log: the run's folder for TensorBoard files.
            verbose: 0 nothing, 1 logs on the terminal.
            device: as SB3's.
            policy_class: the class of the policy, if it is your own.
            custom_objects: replacements for what the file contains, as in `load`.

        Raises:
            SafeFileError: no checkpoint can be read.
            ValueError: there is no run, or the demonstrations differ from the run's.
        """
        run = RunFolder(checkpoint_folder, unit="batch", resume=HOW_TO_RESUME, shared=True)
        run.check_resumable()
        if demonstrations is None:
            raise ValueError("demonstrations is None: a run is resumed with those that it was started with.")
        agent = cls._read(
            run.path / RESUME_FILE,
            env,
            demonstrations,
            device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            validation=validation,
            eval_env=eval_env,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            checkpoint_folder=run.path,
        )
        cls.restore_checkpoint(agent)
        run.delete_leftovers()
        return agent

    @classmethod
    def _read(
        cls,
        path: Path,
        env: GymEnv | str | None,
        demonstrations: Demonstrations | None,
        device: torch.device | str,
        *,
        policy_class: type[BasePolicy] | None,
        custom_objects: Mapping[str, Any] | None,
        **others: Any,
    ) -> Self:
        given = dict(custom_objects or {})
        own = {name: given.pop(name) for name in building.REPLACEABLE if name in given}
        file = load_agent_file(path, kind=KIND, device=device, policy_class=policy_class, custom_objects=given)
        arguments, missing = building.decode_arguments(path, file)
        policy: Any = file.policy
        its_spaces = building.decode_spaces(path, file)
        if env is not None:
            env = wrap_env("env", env)
            check_same_spaces("env", (env.observation_space, env.action_space), its_spaces)
        if demonstrations is None or others.get("validation") is not None:
            arguments["validation_fraction"] = 0.0
        if demonstrations is None:
            arguments["early_stopping_patience"] = None
        where = its_spaces if env is None else env
        alone = arguments | {"validation_fraction": 0.0, "early_stopping_patience": None}
        with refused(path, SafeFileError):  # of the file alone, so that the caller's mistakes are not put down to it
            counters = building.decode_counters(file.config["counters"])
            with building.masks_known():
                cls(policy, its_spaces, None, device=device, **alone)
        with building.masks_known():
            agent = cls(policy, where, demonstrations, device=device, **(arguments | own), **others)
        cls._set_counters(agent, counters)
        with refused(path, SafeFileError, problem="has malformed training state"):
            load_optimizer(policy.optimizer, file.tensors, file.config["optimizer"])
        if "learning_rate" in own:  # the optimiser's state brought the file's back
            set_learning_rate(policy.optimizer, agent.lr_schedule(agent.progress.remaining_of_all))
        if not file.config.get("normalises_actions", False):  # of an earlier version, whose runs end as they began
            agent.units, agent.normalises_actions = None, False
        agent.missing = tuple(name for name in missing if name not in own)
        return agent

    def _counters(self) -> dict[str, int]:
        return {
            "num_timesteps": self.progress.step,
            "total_timesteps": self.progress.end,
            "num_timesteps_at_start": self.progress.start,
            "first_epoch": self._first_epoch,
        }

    def _set_counters(self, counters: Mapping[str, int]) -> None:
        names = ("num_timesteps", "num_timesteps_at_start", "total_timesteps")
        self.progress.step, self.progress.start, self.progress.end = (counters[name] for name in names)
        self._first_epoch = counters["first_epoch"]

    # ---- checkpoints of a run

    def _run_folder(self) -> RunFolder:
        assert self.checkpoint_folder is not None
        return RunFolder(self.checkpoint_folder, unit="batch", resume=HOW_TO_RESUME, shared=True)

    def _begin_checkpoints(self) -> None:
        """Write the resume file, with everything that stays constant during a run, and the run's first checkpoint.

        If an earlier run of this agent left checkpoints, the new checkpoint is written first, so that a kill between
        the two writes leaves a matching pair. If there are none, the resume file alone describes the run's start.
        """
        run = self._run_folder()
        if not run.writes:
            return
        if run.steps():
            self._write_checkpoint()
            self.save(run.path / RESUME_FILE)
        else:
            self.save(run.path / RESUME_FILE)
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        """Write all that changes during a run: parameters, optimiser, random state, counters, early stopping."""
        self._check_finite()
        with self._clock.paused():
            tensors, optimizer = optimizer_to_tensors(self.policy.optimizer)
            stopping = self.early_stopping
            config = {
                "counters": self._counters(),
                "optimizer": optimizer,
                "early_stopping": None if stopping is None else stopping.to_config(),
                "fingerprints": self.fingerprints,
            }
            parts: dict[str, Mapping[str, Tensor]] = {
                "policy": self.policy.state_dict(),
                "optimizer": tensors,
                "best": {} if stopping is None else stopping.parameters,
                "losses": self._watch.tensors(),
            }
            self._run_folder().save(self.num_timesteps, config, parts)
        self.policy.set_training_mode(True)

    def restore_checkpoint(self) -> None:
        """Restore the latest checkpoint. A run that was killed before its first one restarts from the resume file."""
        checkpoint = self._run_folder().latest()
        self.is_resumed = True
        if checkpoint is None:
            return
        config, tensors = checkpoint.decoded(building.BCCheckpoint), checkpoint.tensors
        saved, given = (dict(zip(DATA, each, strict=True)) for each in (config["fingerprints"], self.fingerprints))
        check_given_again(saved, given, self._run_folder().path)
        with checkpoint.refused():
            self._set_counters(building.decode_counters(config["counters"], checkpoint.step))
            load_parameters(checkpoint.path, self.policy, tensors["policy"])
            load_optimizer(self.policy.optimizer, tensors["optimizer"], config["optimizer"])
            if self.early_stopping is not None:
                best = tensors["best"]
                self.early_stopping.load(config["early_stopping"], best, self.policy, checkpoint.step)
            self._watch.restore(tensors.get("losses", {}))
            self.rng = tensors["rng"]
