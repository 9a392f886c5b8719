"""Behavioural cloning with smoothed targets, on any actor-critic policy of Stable-Baselines3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, cast, final

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import configure_logger, get_device
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.acting import ActingModel, copy_actor, play
from rlsmooth.agents.bc_encoding import fingerprint, split_custom_objects
from rlsmooth.agents.cloning import policy_building as bc_setup
from rlsmooth.agents.cloning.measures import RowMetrics, concatenate, l2_norm, row_metrics, summarise
from rlsmooth.agents.cloning.rows import (
    ReferenceLike,
    TrainingRows,
    action_target,
    alpha_in_force,
    as_references,
    as_smoothings,
    refuse_row_alphas,
    target_matrices,
)
from rlsmooth.agents.files.policy_file import AgentFile, load_agent_file, save_agent_file
from rlsmooth.agents.heads import Batch, CategoricalHead
from rlsmooth.agents.sb3 import is_maskable
from rlsmooth.agents.spaces import ActionBins, check_same_spaces, wrap_env
from rlsmooth.audits import calibration_error
from rlsmooth.audits.figures import draw_reliability, draw_target_matrix, new_figure
from rlsmooth.checks import check_in_range, check_positive_int, check_writable_folder
from rlsmooth.data import Demonstrations, space_from_json, space_to_json
from rlsmooth.targets import Smoothing
from rlsmooth.training import (
    SafeFileError,
    checkpoint_steps,
    epoch_permutation,
    execution_state,
    isolated_rng,
    latest_checkpoint,
    load_optimizer,
    optimizer_to_tensors,
    rng_state,
    save_checkpoint,
    set_rng_state,
    warn_if_execution_differs,
)
from rlsmooth.training.run import EarlyStopping, divergence_error
from rlsmooth.training.safe_file import decode_smoothing, encode_smoothing

if TYPE_CHECKING:
    pass

__all__ = [
    "BC",
    "RESUME_FILE",
    "Callbacks",
    "Monitor",
    "ProgressBar",
    "SavedModel",
    "begin_checkpoints",
    "plan",
    "prepare_callback",
    "prepare_logger",
    "write_agent",
    "write_checkpoint",
]


Callbacks: TypeAlias = BaseCallback | list[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None


class ProgressBar(BaseCallback):
    """One tick a batch. SB3's own would tick once for each environment, and needs one."""

    def _on_training_start(self) -> None:
        start = self.model.num_timesteps
        self.bar = tqdm(total=self.locals["total_timesteps"], initial=start, unit="batch", mininterval=0.5)

    def _on_step(self) -> bool:
        self.bar.update(1)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


def plan(agent: BC, total_epochs: int | None, total_batches: int | None, reset_num_timesteps: bool) -> None:
    """Set where the run starts and ends.

    Raises:
        TypeError: a total is no whole number.
        ValueError: not exactly one total, or one below 1; no demonstrations; an argument that the file could not keep;
            another total than that of the run that is resumed; a checkpoint folder with another run in it.
    """
    if (total_epochs is None) == (total_batches is None):
        raise ValueError(
            f"total_epochs={total_epochs!r} and total_batches={total_batches!r}: give exactly one of the two."
        )
    if agent.demonstrations is None:
        raise ValueError("demonstrations is None, so there is nothing to learn from: give them to BC(...) or BC.load.")
    if agent.missing:
        raise ValueError(
            f"{', '.join(agent.missing)} was a callable, which no file can hold: pass it again, for example "
            f"custom_objects={{{agent.missing[0]!r}: ...}}."
        )
    if total_epochs is not None:
        batches = check_positive_int("total_epochs", total_epochs) * agent.batches_per_epoch
    else:
        batches = check_positive_int("total_batches", total_batches)
    if agent.is_resumed:
        planned = agent._total_timesteps - agent._num_timesteps_at_start
        if batches != planned:
            raise ValueError(
                f"the run that is resumed was for {planned} batches, not {batches}: schedules depend on it, so ask for "
                f"total_batches={planned}, and for more in another call."
            )
        return
    _check_checkpoint_folder(agent, 0 if reset_num_timesteps else agent.num_timesteps)
    if reset_num_timesteps and agent.num_timesteps:
        agent._first_epoch += -(-agent.num_timesteps // agent.batches_per_epoch)  # other orders than so far
        agent.num_timesteps = 0
    if agent.early_stopping is not None:
        agent.early_stopping.reset()
    agent._num_timesteps_at_start = agent.num_timesteps
    agent._total_timesteps = agent.num_timesteps + batches
    agent._current_progress_remaining = 1.0 - agent.num_timesteps / agent._total_timesteps


def prepare_logger(agent: BC, tb_log_name: str, reset_num_timesteps: bool) -> None:
    """A logger of its own for each run, as in SB3; a run that goes on keeps the one it has."""
    if agent._has_custom_logger or (agent._logger is not None and not reset_num_timesteps):
        return
    agent._logger = configure_logger(agent.verbose, agent.tensorboard_log, tb_log_name, reset_num_timesteps)


def prepare_callback(agent: BC, callback: Callbacks, progress_bar: bool) -> BaseCallback | None:
    """One callback that is bound to the agent, or None where there is none to call."""
    if not progress_bar and (callback is None or callback == []):
        return None
    given = [] if callback is None else callback if isinstance(callback, list) else [callback]
    listed = [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given]
    model = cast("BaseAlgorithm", agent)  # what callbacks need of one, it has
    return BaseAlgorithm._init_callback(model, [*listed, *([ProgressBar()] if progress_bar else [])])


def _check_checkpoint_folder(agent: BC, start: int) -> None:
    if agent.checkpoint_folder is None:
        return
    steps = checkpoint_steps(agent.checkpoint_folder)
    others = [step for step in steps if start == 0 or step > start]
    if others:
        raise ValueError(
            f"checkpoint_folder={str(agent.checkpoint_folder)!r} holds another run's checkpoints (batch {others[-1]}): "
            f"go on from them by BC.resume (it reads {RESUME_FILE}) or, in the agent that wrote them, by "
            "learn(..., reset_num_timesteps=False); or set agent.checkpoint_folder to another folder."
        )


MONITOR_ROWS = 2048
MONITOR_BYTES = 64 * 2**20
NOT_FOR_TEXT = ("stdout", "log", "json", "csv")
VALIDATED = (
    "loss",
    "cross_entropy",
    "nll_hard",
    "prob_true_act",
    "policy_entropy",
    "entropy_frac",
    "kl_uniform",
    "kl_reference",
    "accuracy",
    "ece",
)


class Monitor:
    """Watches one agent.

    Args:
        agent: whose policy, logger and arguments are used.
        data: its training rows, of which up to 2048, evenly spread, stand for all in log lines.
        validation: its validation rows, read in full.

    Attributes:
        losses: of each update since the last log line, on the device.
    """

    def __init__(self, agent: BC, data: TrainingRows | None, validation: TrainingRows | None) -> None:
        self.agent = agent
        self.data = data
        self.validation = validation
        self.losses: list[Tensor] = []
        self._checked = 0
        self._rows: Batch | None = None
        self._logged_step = self._evaluated_step = -1
        self._seconds = 0.0
        self._since = 0.0

    def start(self) -> None:
        """A run begins."""
        agent = self.agent
        self.losses.clear()
        self._checked = 0
        self._logged_step = self._evaluated_step = -1
        self._seconds = 0.0
        if agent.num_timesteps == 0 and self._draws:
            self._draw_target_matrices()
        self._since = time.perf_counter()

    def finish(self) -> None:
        """A run ends: the last checkpoint, the best parameters, the last log line and evaluation."""
        agent = self.agent
        self.check()
        if agent.checkpoint_folder is not None:
            self.checkpoint()
        changed = agent.early_stopping is not None and agent.early_stopping.restore(agent.policy, agent.num_timesteps)
        if self.losses or changed or self._logged_step != agent.num_timesteps:
            self.log()
        evaluates = agent.eval_env is not None or agent.eval_every is not None
        if evaluates and (changed or self._evaluated_step != agent.num_timesteps):
            self.evaluate()
        agent.policy.set_training_mode(False)

    def check(self) -> None:
        """Wait for the device and raise unless all losses and parameters so far are finite.

        Raises:
            TrainingDivergedError: they are not; it names the first update whose loss is not.
        """
        agent = self.agent
        fresh = self.losses[self._checked :]
        finite = [parameter.isfinite().all() for parameter in agent.policy.parameters()]
        last = torch.stack(finite).all().unsqueeze(0)
        flags = (torch.cat((torch.stack(fresh).isfinite(), last)) if fresh else last).tolist()
        if all(flags):
            self._checked = len(self.losses)
            return
        place = min(flags.index(False), max(len(fresh) - 1, 0))
        step = agent.num_timesteps - len(fresh) + place + 1
        assert self.data is not None
        epoch, update = divmod(step - 1, agent.batches_per_epoch)
        size = agent.batch_size * agent.gradient_accumulation
        order = epoch_permutation(agent.seed, agent._first_epoch + epoch, len(self.data))
        rows = order[update * size : (update + 1) * size]
        raise divergence_error(
            step,
            float(fresh[place]) if fresh else 0.0,
            rows,
            _values(self.data.take(rows)),
            learning_rate=float(agent.policy.optimizer.param_groups[0]["lr"]),
            checkpoint_folder=agent.checkpoint_folder,
        )

    def checkpoint(self) -> None:
        """Write a checkpoint, if all is finite."""
        self.check()
        self._pause()
        write_checkpoint(self.agent)
        self._resume()

    def log(self) -> None:
        """Write one log line."""
        self.check()
        self._pause()
        agent, logger = self.agent, self.agent.logger
        assert self.data is not None
        step, progress = agent.num_timesteps, agent._current_progress_remaining
        found = self._summary([self._monitored()])
        norm = float(l2_norm(agent.policy).detach())
        if self.losses:
            found["loss"] = float(torch.stack(self.losses).mean())
            seconds = max(self._seconds, 1e-9)
            size = min(agent.batch_size * agent.gradient_accumulation, len(self.data))
            logger.record("bc/samples_per_second", len(self.losses) * size / seconds)
        epoch, done = divmod(step, agent.batches_per_epoch)
        found |= {
            "batch": step,
            "epoch": epoch,
            "samples_so_far": epoch * len(self.data) + done * agent.batch_size * agent.gradient_accumulation,
            "neglogp": found["nll_hard"],
            "entropy": found["policy_entropy"],
            "l2_norm": norm,
            "l2_loss": agent.l2_coef * norm,
            "smoothing": alpha_in_force(agent.smoothings, progress),
            "exploration_floor": 0.0,
            "learning_rate": float(agent.policy.optimizer.param_groups[0]["lr"]),
        }
        if self.validation is not None:
            held_out = self._summary(self._validated())
            found |= {f"val_{name}": held_out[name] for name in VALIDATED if name in held_out}
        for name, value in found.items():
            logger.record(f"bc/{name}", value)
        logger.record("batch_size", agent.batch_size)
        logger.dump(step)
        self.losses.clear()
        self._checked = 0
        self._logged_step = step
        self._seconds = 0.0
        self._resume()

    def validate(self, stopping: EarlyStopping) -> None:
        """Tell early stopping the validation loss: cross-entropy with the smoothed target, plus the KL term."""
        self.check()
        self._pause()
        loss = self._summary(self._validated())["loss"]
        stopping.update(loss, self.agent.num_timesteps, self.agent.policy)
        self._resume()

    def evaluate(self) -> None:
        """Play in the evaluation environment and draw the pictures of how the policy's probabilities are spread."""
        self.check()
        self._pause()
        agent, logger = self.agent, self.agent.logger
        if agent.eval_env is not None:
            for name, value in self.play().items():
                logger.record(f"eval/{name}", value)
            logger.dump(agent.num_timesteps)
        if self._draws:
            self._write_pictures()
        self._evaluated_step = agent.num_timesteps
        self._resume()

    def play(self) -> dict[str, float]:
        """Returns and lengths of episodes; see `BC.evaluate`."""
        agent = self.agent
        env = agent.env if agent.eval_env is None else agent.eval_env
        if env is None:
            raise ValueError("there is no environment to evaluate in: give eval_env.")
        use_masks = is_maskable(agent.policy) and env.has_attr("action_masks")
        return play(agent, env, n_episodes=agent.n_eval_episodes, seed=agent.seed, use_masks=use_masks)

    @property
    def _draws(self) -> bool:
        """Whether anybody sees pictures: drawing takes longer than many a run."""
        return any(isinstance(output, TensorBoardOutputFormat) for output in self.agent.logger.output_formats)

    def _monitored(self) -> Batch:
        """The rows that log lines are about, with their targets as of now."""
        assert self.data is not None
        if self._rows is None:
            count = min(len(self.data), MONITOR_ROWS, max(1, MONITOR_BYTES // self.data.row_bytes))
            spread = torch.linspace(0, len(self.data) - 1, count, dtype=torch.float64)
            self._rows = self.data.compact(spread.round().long())
        return self._rows

    def _validated(self) -> Iterable[Batch]:
        assert self.validation is not None
        return (chunk._replace(target=None) for chunk in self.validation.chunks())  # made again, to tell its reference

    def _summary(self, batches: Iterable[Batch]) -> dict[str, float]:
        rows = self._metrics(batches)
        head = self.agent.head
        several = isinstance(head, CategoricalHead) and head.kind == "multi_discrete"
        return summarise(rows, kl_coef=self.agent.kl_coef, by_component=several)

    def _metrics(self, batches: Iterable[Batch]) -> RowMetrics:
        agent = self.agent
        agent.policy.set_training_mode(False)
        own_reference = agent.kl_coef == 0 and agent.references is None
        progress = agent._current_progress_remaining
        parts = []
        for batch in batches:
            target = batch.target
            if target is None:
                target = action_target(agent.head, agent.smoothings, batch, progress=progress)
            parts.append(row_metrics(agent.head, batch, target, own_reference=own_reference))
        agent.policy.set_training_mode(True)
        return concatenate(parts)

    def _draw_target_matrices(self) -> None:
        for name, matrix in target_matrices(self.agent.head, self.agent.smoothings).items():
            figure, axes = new_figure()
            draw_target_matrix(axes, matrix)
            self._to_tensorboard(f"bc/{name}", Figure(figure, close=False))

    def _write_pictures(self) -> None:
        rows = self._metrics([self._monitored()])
        self._to_tensorboard("eval/entropy_per_state", rows.entropy.sum(-1).cpu())
        if rows.confidence is not None and rows.hit is not None:
            figure, axes = new_figure()
            weights = rows.weights.unsqueeze(-1).expand(rows.confidence.shape)
            ece = float(calibration_error(rows.confidence, rows.hit, weights=weights))
            draw_reliability(axes, rows.reliability(), ece=ece)
            self._to_tensorboard("eval/reliability", Figure(figure, close=False))

    def _to_tensorboard(self, name: str, value: Any) -> None:
        """Not by the logger's `dump`: a line without numbers would be an empty table, and a warning, elsewhere."""
        for output in self.agent.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.write({name: value}, {name: NOT_FOR_TEXT}, step=self.agent.num_timesteps)

    def _pause(self) -> None:
        self._seconds += time.perf_counter() - self._since

    def _resume(self) -> None:
        self.agent.policy.set_training_mode(True)
        self._since = time.perf_counter()


def _values(batch: Batch) -> list[Tensor]:
    """What the rows of a batch hold."""
    observations = batch.observations
    values = [*observations.values()] if isinstance(observations, dict) else [observations]
    return values + [tensor for tensor in (batch.labels, batch.weights, batch.probs) if tensor is not None]


Model = TypeVar("Model", bound="SavedModel")

KIND = "bc"
ARGUMENTS = (
    "smoothing",
    "reference",
    "learning_rate",
    "kl_coef",
    "reference_std",
    "action_bins",
    "batch_size",
    "gradient_accumulation",
    "max_grad_norm",
    "l2_coef",
    "amp",
    "validation_fraction",
    "early_stopping_patience",
    "seed",
    "checkpoint_every",
    "eval_every",
    "n_eval_episodes",
)
RESUME_FILE = "resume.zip"
"""The agent file in a checkpoint folder: what the checkpoints leave out because it never changes."""


class SavedModel(ActingModel):
    """The part of `BC` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write an agent file (see `rlsmooth.agents.files.policy_file`) with policy, optimiser, arguments and counters.

        Callables (`learning_rate`, a `Smoothing`'s alpha) can't be kept: to train on after `load`, pass them again.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        return write_agent(cast("BC", self), path)

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
            env: an environment with the same spaces; acting needs none.
            demonstrations: to train on; acting needs none.
            device: as SB3's.
            policy_class: of a policy of your own.
            custom_objects: `learning_rate`, `smoothing` and `reference` in place of the file's, and constructor
                arguments of a policy of your own.

        Raises:
            SafeFileError: the file is damaged, no agent of this kind, or names a class that is not known.
            ValueError: spaces that differ.
        """
        return _load(
            cls, Path(path), env, demonstrations, device, policy_class=policy_class, custom_objects=custom_objects
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
        """The agent of the last good checkpoint; `learn` with the same total then goes on from there.

        On the CPU the parameters at the end equal those of a run that was never cut off, bit for bit. Callbacks start
        anew: their own state is not kept.

        Args:
            checkpoint_folder: of the run.
            env: as of the run.
            demonstrations: the same as those of the run.
            validation: likewise, if they were given separately.
            eval_env: as of the run.
            tensorboard_log: as of the run.
            verbose: as SB3's.
            device: as SB3's.
            policy_class: see `load`.
            custom_objects: see `load`.

        Raises:
            SafeFileError: no checkpoint can be read.
            ValueError: there is no run, or the demonstrations are others.
        """
        folder = Path(checkpoint_folder).expanduser()
        if not (folder / RESUME_FILE).is_file():
            raise ValueError(f"checkpoint_folder={str(folder)!r} holds no run to go on with: {RESUME_FILE} is missing.")
        if demonstrations is None:
            raise ValueError("demonstrations is None: a run can't go on without those that it was started with.")
        model = _load(
            cls,
            folder / RESUME_FILE,
            env,
            demonstrations,
            device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            validation=validation,
            eval_env=eval_env,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            checkpoint_folder=folder,
        )
        _read_checkpoint(cast("BC", model), folder)
        for leftover in folder.glob(".*.zip.*.tmp"):  # of a save that was killed
            leftover.unlink(missing_ok=True)
        return model


def write_agent(agent: BC, path: str | Path, more: Mapping[str, Any] | None = None) -> Path:
    """What `BC.save` does, with more plain data beside it, which `BC.load` passes over.

    Args:
        agent: whose file it is.
        path: as of `BC.save`.
        more: JSON-able, by names of its writer.

    Returns:
        The path written.

    Raises:
        ValueError: the folder can't be written to.
    """
    tensors, optimizer = optimizer_to_tensors(agent.policy.optimizer)
    config = {
        **(more or {}),
        "action_space": space_to_json(agent.action_space),  # the policy's differs where actions are bins
        "arguments": _arguments(agent),
        "counters": _counters(agent),
        "optimizer": optimizer,
    }
    return save_agent_file(path, kind=KIND, policy=agent.policy, config=config, tensors=tensors)


def begin_checkpoints(agent: BC) -> None:
    """Put into the checkpoint folder what does not change during a run, and the run's first checkpoint.

    Where an earlier run of the agent left checkpoints, the new one comes first: a kill in between then leaves a pair
    that fits. Where there are none, the resume file alone says how the run began.
    """
    folder = agent.checkpoint_folder
    assert folder is not None
    if checkpoint_steps(folder):
        write_checkpoint(agent)
        agent.save(folder / RESUME_FILE)
    else:
        agent.save(folder / RESUME_FILE)
        write_checkpoint(agent)


def write_checkpoint(agent: BC) -> None:
    """Write all that changes during a run: parameters, optimiser, random state, counters, early stopping."""
    assert agent.checkpoint_folder is not None
    tensors, optimizer = optimizer_to_tensors(agent.policy.optimizer)
    stopping = agent.early_stopping
    save_checkpoint(
        agent.checkpoint_folder,
        agent.num_timesteps,
        config={
            "counters": _counters(agent),
            "optimizer": optimizer,
            "early_stopping": None if stopping is None else stopping.to_config(),
            "fingerprints": agent.fingerprints,
            "execution": execution_state(),
        },
        tensors={
            "policy": agent.policy.state_dict(),
            "optimizer": tensors,
            "best": {} if stopping is None else stopping.parameters,
            "rng": rng_state(),
        },
    )


def _read_checkpoint(agent: BC, folder: Path) -> None:
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:  # killed before the first: the resume file is the beginning itself
        agent.is_resumed = True
        return
    config, tensors = checkpoint.config, checkpoint.tensors
    for name, saved, given in zip(
        ("demonstrations", "validation"), config["fingerprints"], agent.fingerprints, strict=True
    ):
        if saved != given:
            raise ValueError(f"{name}: these are not those that the run in {str(folder)!r} was started with.")
    warn_if_execution_differs(config["execution"])
    agent.policy.load_state_dict(tensors["policy"])
    load_optimizer(agent.policy.optimizer, tensors["optimizer"], config["optimizer"])
    if agent.early_stopping is not None:
        best = {name: tensor.to(agent.device) for name, tensor in tensors["best"].items()}
        agent.early_stopping.load(config["early_stopping"], best)
    _set_counters(agent, config["counters"])
    agent._rng = tensors["rng"]
    agent.is_resumed = True


def _load(
    model_class: type[Model],
    path: Path,
    env: GymEnv | str | None,
    demonstrations: Demonstrations | None,
    device: torch.device | str,
    *,
    policy_class: type[BasePolicy] | None,
    custom_objects: Mapping[str, Any] | None,
    **others: Any,
) -> Model:
    own, of_policy = split_custom_objects(custom_objects)
    file = load_agent_file(path, kind=KIND, device=device, policy_class=policy_class, custom_objects=of_policy)
    arguments, missing = _decoded_arguments(path, file)
    policy: Any = file.policy
    try:
        spaces = (policy.observation_space, space_from_json(file.config["action_space"]))
    except (KeyError, TypeError, ValueError) as error:
        raise SafeFileError(f"{str(path)!r} has a malformed action space ({error}). Use another copy.") from error
    if env is not None:
        env = wrap_env("env", env)
        check_same_spaces("env", (env.observation_space, env.action_space), spaces)
    if demonstrations is None or others.get("validation") is not None:
        arguments["validation_fraction"] = 0.0
    if demonstrations is None:
        arguments["early_stopping_patience"] = None
    build: Any = model_class
    model: Any = build(
        policy, spaces if env is None else env, demonstrations, device=device, **{**arguments, **own}, **others
    )
    try:
        load_optimizer(policy.optimizer, file.tensors, file.config["optimizer"])
        _set_counters(model, file.config["counters"])
        if "learning_rate" in own:  # the optimiser's state brought the file's back
            for group in policy.optimizer.param_groups:
                group["lr"] = model.lr_schedule(model._current_progress_remaining)
    except (KeyError, TypeError, ValueError) as error:
        raise SafeFileError(f"{str(path)!r} has malformed training state ({error}). Use another copy.") from error
    model.missing = tuple(name for name in missing if name not in own)
    loaded: Model = model
    return loaded


def _arguments(agent: BC) -> dict[str, Any]:
    """The constructor's arguments that a file can hold; a callable becomes None, which `_decoded_arguments` reports."""
    special = {
        "smoothing": encode_smoothing(agent.smoothings),
        "reference": encode_smoothing(agent.references),
        "learning_rate": None if callable(agent.learning_rate) else agent.learning_rate,
        "action_bins": None if agent.bins is None else agent.bins.num_bins,
        "early_stopping_patience": None if agent.early_stopping is None else agent.early_stopping.patience,
    }
    return {name: special[name] if name in special else getattr(agent, name) for name in ARGUMENTS}


def _decoded_arguments(path: Path, file: AgentFile) -> tuple[dict[str, Any], list[str]]:
    """The arguments, and the names of those that were callables."""
    saved = file.config.get("arguments")
    if not isinstance(saved, dict) or set(saved) != set(ARGUMENTS):
        raise SafeFileError(f"{str(path)!r} lacks the agent's arguments. Use another copy.")
    arguments: dict[str, Any] = dict(saved)
    missing = []
    recipes = decode_smoothing(saved["smoothing"], "smoothing", path)
    if recipes is None:
        raise SafeFileError(f"{str(path)!r} has no smoothing. Use another copy.")
    if any(entry.get("is_function") for entry in saved["smoothing"]):
        missing.append("smoothing")
    arguments["smoothing"] = recipes[0] if len(recipes) == 1 else recipes
    references = decode_smoothing(saved["reference"], "reference", path)
    if references is not None:
        kept = [recipe.reference for recipe in references]
        arguments["reference"] = kept[0] if len(kept) == 1 else kept
    if saved["learning_rate"] is None:
        missing.append("learning_rate")
        arguments["learning_rate"] = 1e-3  # a stand-in: `learn` refuses to start
    return arguments, missing


def _counters(agent: BC) -> dict[str, int]:
    return {
        "num_timesteps": agent.num_timesteps,
        "total_timesteps": agent._total_timesteps,
        "num_timesteps_at_start": agent._num_timesteps_at_start,
        "first_epoch": agent._first_epoch,
    }


def _set_counters(agent: BC, counters: Mapping[str, Any]) -> None:
    agent.num_timesteps = int(counters["num_timesteps"])
    agent._total_timesteps = int(counters["total_timesteps"])
    agent._num_timesteps_at_start = int(counters["num_timesteps_at_start"])
    agent._first_epoch = int(counters["first_epoch"])
    if agent._total_timesteps:
        agent._current_progress_remaining = 1.0 - agent.num_timesteps / agent._total_timesteps


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
        self.action_start = agent_spaces.action_start(self.action_space)
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
        callback: Callbacks = None,
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
            ValueError: see `rlsmooth.agents.cloning.bc.plan`.
            TrainingDivergedError: the loss or a parameter became NaN or infinite; no checkpoint is written then.
        """
        check_positive_int("log_interval", log_interval)
        plan(self, total_epochs, total_batches, reset_num_timesteps)
        prepare_logger(self, tb_log_name, reset_num_timesteps and not self.is_resumed)
        listener = prepare_callback(self, callback, progress_bar)
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
