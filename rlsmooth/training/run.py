"""The engine of every training run: services that a trainer's own loop calls.

    Progress        where a call begins, stands and ends; a resumed call keeps its total
    RunFolder       a folder of checkpoints: refuses those of another run, saves, finds the latest good one
    EventLog        logs values to TensorBoard and the caller's function, and moves the progress bar
    EarlyStopping   keeps the parameters with the lowest validation loss
    samples_at_once bounds what a forward pass of an evaluation allocates
    handled_signals lets SIGINT and SIGTERM end a run at the next safe point, after a checkpoint
    Stopwatch       measures the seconds of training alone
    check_…         refuse to resume a run with other data, other arguments, or a missing callable

Nothing here calls a trainer: each trainer contains its own training loop. The messages of runs that are refused or stop
are written here once, with the same words for all trainers.
"""

from __future__ import annotations

import hashlib
import math
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlsmooth.checks import check_writable_folder, locked_folder
from rlsmooth.training.checkpoint import Checkpoint, checkpoint_steps, latest_checkpoint, save_checkpoint
from rlsmooth.training.distributed import Ranks, own_folder
from rlsmooth.training.divergence import check_no_nan
from rlsmooth.training.seeding import check_rng_state, execution_state, rng_state, warn_if_execution_differs
from rlsmooth.untrusted import AnyNumber, Count, decode

RESUME_FILE = "resume.zip"
"""The file in a run's folder with everything that stays constant during the run, which checkpoints leave out."""
TEMPORARY = re.compile(r"\..+\.(\w{8}\.)?tmp")
"""The names of temporary files: those of `atomic_file`, and `.metrics.csv.tmp`."""
CHECKPOINT_FILE = r"checkpoint_\d+\.zip"
MEASURED_BYTES = 32 * 2**20
"""Bound of all that a forward pass of an evaluation allocates, unless a minibatch of training has more samples."""


# ---- where a run stands


@dataclass
class Progress:
    """Where a call of `learn`, `fit` or `train` begins, stands and ends, in updates, steps or rounds.

    Attributes:
        step: how many are done, over all calls.
        start: the value of `step` when the call began.
        end: the value of `step` at which the call ends.

    Examples:
        >>> progress = Progress()
        >>> progress.begin(4, "total_steps")
        >>> progress.step += 1
        >>> progress.remaining, progress.is_over
        (0.75, False)
    """

    step: int = 0
    start: int = 0
    end: int = 0

    @property
    def total(self) -> int:
        """The number of steps of this call."""
        return self.end - self.start

    @property
    def remaining(self) -> float:
        """The fraction of this call that remains before the next step: 1 at its start, 0 at its end."""
        return 1.0 - (self.step - self.start) / max(self.total, 1)

    @property
    def remaining_of_all(self) -> float:
        """The fraction of all steps that remains, as in SB3 with `reset_num_timesteps=False`."""
        return 1.0 - self.step / max(self.end, 1)

    @property
    def is_over(self) -> bool:
        """Whether the end is reached."""
        return self.step >= self.end

    def begin(self, total: int, name: str, *, is_resumed: bool = False) -> None:
        """Plan a call of `total` steps that starts at the current step; a resumed call keeps its plan.

        Args:
            total: the number of steps of this call.
            name: the name of the argument that set it, for example `"total_steps"`.
            is_resumed: whether this call continues an interrupted one.

        Raises:
            ValueError: the interrupted call had another total.
        """
        if not is_resumed:
            self.start, self.end = self.step, self.step + total
        elif total != self.total:
            raise ValueError(
                f"the run that is resumed was for {name}={self.total}, not {total}: schedules depend on it, so give "
                "the same, and ask for more in another call."
            )


class Stopwatch:
    """Measures the seconds of training, without those of evaluation, logging and saving.

    Examples:
        >>> watch = Stopwatch()
        >>> with watch.paused():
        ...     time.sleep(0.1)
        >>> watch.seconds < 0.1
        True
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from 0."""
        self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time that passes inside the `with` block."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """The seconds since the last restart; never 0."""
        return max(time.perf_counter() - self._since, 1e-9)


def learning_rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The current learning rate."""
    return float(optimizer.param_groups[0]["lr"])


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use another learning rate from now on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


# ---- the folder of a run


class RunFolder:
    """A folder for the checkpoints of one run.

    The object stores only a path and texts for messages. Nothing is read or written before a method is called.

    Args:
        folder: its path.
        name: the name of the argument that set it.
        unit: what a checkpoint's number counts: `"step"`, `"batch"`, `"epoch"`, `"round"`.
        resume: how a run in it is resumed, for messages: `"train(..., resume=True)"`.
        shared: whether several processes may train in it together; the first of them writes.

    Examples:
        >>> import tempfile
        >>> folder = RunFolder(tempfile.mkdtemp(), unit="step", resume="train(..., resume=True)")
        >>> folder.check_free()
        >>> _ = folder.save(3, {"loss": 0.5}, {"net": {"w": torch.zeros(1)}})
        >>> checkpoint = folder.latest()
        >>> checkpoint.step, sorted(checkpoint.tensors), sorted(checkpoint.config)
        (3, ['net', 'rng'], ['execution', 'loss'])
    """

    def __init__(
        self, folder: str | Path, *, name: str = "checkpoint_folder", unit: str, resume: str, shared: bool = False
    ) -> None:
        self.path = Path(folder).expanduser()
        self.name = name
        self.unit = unit
        self.resume = resume
        self.writes = not shared or Ranks.current().is_main

    def steps(self) -> list[int]:
        """The numbers of the checkpoints in the folder, ascending, from their names alone."""
        return checkpoint_steps(self.path)

    def check_free(self, own_up_to: int | None = None) -> None:
        """Refuse a folder with checkpoints of another run; make it if it is missing.

        Args:
            own_up_to: checkpoints up to this one are of the run that begins here; None: it has none.

        Raises:
            ValueError: there are others, or the folder can't be written to.
        """
        if not self.writes:
            return
        check_writable_folder(self.name, self.path)
        others = [step for step in self.steps() if own_up_to is None or step > own_up_to]
        if others:
            raise ValueError(
                f"{self.name}={str(self.path)!r} holds another run's checkpoints ({self.unit} {others[-1]}): resume "
                f"that run by {self.resume}, or name another folder."
            )

    def check_resumable(self, *files: str) -> None:
        """Raise ValueError unless there is a run (see `check_exists`), in which no other process trains."""
        self.check_exists(*files)
        with own_folder(self.path, shared=not self.writes):
            pass

    def check_exists(self, *files: str) -> None:
        """Raise ValueError unless all of `files`, by default the resume file, are there."""
        missing = [file for file in files or (RESUME_FILE,) if not (self.path / file).is_file()]
        if missing:
            raise ValueError(
                f"{self.name}={str(self.path)!r} holds no run to resume: {missing[0]} is missing. Start a new run."
            )

    def begin(self, *, resume: bool, own_up_to: int | None = None) -> Checkpoint | None:
        """The checkpoint to resume from; None: start at the beginning, in a folder that is free.

        Temporary files of saves that a kill broke off are deleted when a run is resumed.

        Args:
            resume: whether a run is to be resumed. One that has no checkpoint yet starts at the beginning.
            own_up_to: checkpoints up to this one are of the run that begins here; None: it has none.

        Raises:
            ValueError: there are checkpoints of another run, or the folder can't be written to.
            SafeFileError: no checkpoint can be read.
        """
        if not resume:
            self.check_free(own_up_to)
            return None
        check_writable_folder(self.name, self.path)
        with own_folder(self.path, shared=not self.writes):
            self.delete_leftovers()
            return self.latest()

    def save(
        self,
        step: int,
        config: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        *,
        keeps_rng: bool = True,
        keep: int = 2,
        may_hold_nan: Collection[str] = (),
    ) -> Path:
        """Write a checkpoint: what is given, the execution state (`execution`) and the random generators' (`rng`).

        Args:
            step: its number.
            config: JSON-able settings and counters.
            tensors: named groups of named tensors.
            keeps_rng: False if each part of the run is seeded separately, so that the generators do not matter.
            keep: how many checkpoints to keep.
            may_hold_nan: names of groups that may hold NaN. Where another does, the checkpoints that are there stay.

        Returns:
            The path of the new file.

        Raises:
            TrainingDivergedError: a tensor holds NaN.
        """
        if not self.writes:
            return self.path / f"checkpoint_{step}.zip"
        check_no_nan(step, {name: part for name, part in tensors.items() if name not in may_hold_nan}, self.path)
        return save_checkpoint(
            self.path,
            step,
            config={**config, "execution": execution_state()},
            tensors={**tensors, "rng": rng_state()} if keeps_rng else tensors,
            keep=keep,
        )

    def latest(self) -> Checkpoint | None:
        """The latest good checkpoint, or None where there is none.

        Raises:
            SafeFileError: there are checkpoints, and none can be read.

        Warns:
            RuntimeWarning: a damaged checkpoint was skipped, or the run will not repeat bit for bit.
        """
        checkpoint = latest_checkpoint(self.path)
        if checkpoint is not None:
            with checkpoint.refused():
                saved = decode(dict[str, Any], checkpoint.config.get("execution", {}), "execution")
                if "rng" in checkpoint.tensors:
                    check_rng_state(checkpoint.tensors["rng"])
            if saved:
                warn_if_execution_differs(saved)
        return checkpoint

    def delete_leftovers(self, *names: str) -> None:
        """Delete the temporary files that killed saves left in this folder.

        Args:
            names: regular expressions of further file names, besides the resume file and the checkpoints.
        """
        if not self.writes:
            return
        with locked_folder(self.path):
            delete_temporary_files(self.path, re.escape(RESUME_FILE), CHECKPOINT_FILE, *names)

    def delete(self) -> None:
        """Delete the run: resume file, checkpoints, leftovers, and the folder if nothing else is in it."""
        if not self.writes:
            return
        self.delete_leftovers()
        for name in (RESUME_FILE, *(f"checkpoint_{step}.zip" for step in self.steps())):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()


def delete_temporary_files(folder: str | Path, *names: str) -> None:
    """Delete the temporary files that killed saves by `atomic_file` left.

    Nothing else may be writing them: lock the folder first, or name the files of one's own run.

    Args:
        folder: the folder to search.
        names: regular expressions of the names of the files that were saved; none: all, in subfolders too.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".agent.zip.k3x_9ab2.tmp").touch(); (folder / "agent.zip").touch()
        >>> delete_temporary_files(folder); [path.name for path in folder.iterdir()]
        ['agent.zip']
    """
    temporary = re.compile(rf"\.({'|'.join(names)})\.\w{{8}}\.tmp") if names else TEMPORARY
    top = Path(folder).expanduser()
    for path in top.glob(".*.tmp") if names else top.rglob(".*.tmp"):
        if temporary.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


# ---- checks of a run's arguments, and of those that a resumed run must have again


def check_folder_given(folder: object, *, resume: bool) -> None:
    """Raise ValueError if a run is to be resumed and no folder is named.

    Args:
        folder: the trainer's `checkpoint_folder`.
        resume: whether a run is to be resumed.

    Examples:
        >>> check_folder_given(None, resume=False)
    """
    if resume and folder is None:
        raise ValueError("resume=True needs the run's checkpoint_folder: name the one that it was started with.")


def check_given(name: str, value: object, owner: str) -> None:
    """Raise ValueError if an argument that training needs is None.

    Args:
        name: the argument's name.
        value: its value.
        owner: the name of the class that has the argument.

    Examples:
        >>> check_given("data", [1], "GANTrainer")
    """
    if value is None:
        raise ValueError(
            f"{name} is None, so there is nothing to learn from: give it to {owner}(...) or to {owner}.load."
        )


def check_no_missing(missing: Sequence[str], fix: str | None = None) -> None:
    """Raise ValueError if a callable that a file could not hold has not been given again.

    Args:
        missing: names of such arguments.
        fix: the advice in the message; None: to pass it in `custom_objects`.

    Examples:
        >>> check_no_missing(())
    """
    if missing:
        how = fix or f"pass it again, for example custom_objects={{{missing[0]!r}: ...}}"
        raise ValueError(f"{', '.join(missing)} was a callable, which no file can hold: {how}.")


def check_given_again(saved: Mapping[str, object], given: Mapping[str, object], run: str | Path) -> None:
    """Raise ValueError unless a resumed run is given the data that it was started with.

    Args:
        saved: the fingerprints in the checkpoint, by the name of the data.
        given: the fingerprints of the data that are given now.
        run: the folder of the run.

    Examples:
        >>> check_given_again({"data": "1f", "validation": None}, {"data": "1f", "validation": None}, "runs/a")
    """
    for name, known in saved.items():
        if given.get(name) != known:
            raise ValueError(f"{name}: these are not those that the run in {str(run)!r} was started with.")


def check_same_arguments(saved: Mapping[str, object], given: Mapping[str, object], run: str | Path) -> None:
    """Raise ValueError unless a resumed run has the arguments that it was started with.

    Args:
        saved: the values in the checkpoint, by argument.
        given: the trainer's current values, in the form that JSON has: lists, not tuples.
        run: the folder of the run.

    Examples:
        >>> check_same_arguments({"batch_size": 8}, {"batch_size": 8}, "runs/a")
    """
    differing = [name for name in {**given, **saved} if name not in saved or saved[name] != given.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{name}={given.get(name)!r} was {saved.get(name)!r} in the run in {str(run)!r}: a run is resumed with the "
            f"arguments that it was started with (differing: {', '.join(differing)})."
        )


def check_num_envs(saved: int, given: int) -> None:
    """Raise ValueError unless a resumed run has as many environments as before."""
    if saved != given:
        raise ValueError(f"env has {given} environments, the run had {saved}: build as many.")


def fingerprint(*parts: str | Tensor | NDArray[Any]) -> str:
    """A sha256 that tells one data set from another.

    Args:
        parts: text, or numbers whose bytes are taken in C order. Write a tensor's dtype and shape before it.

    Examples:
        >>> fingerprint("float32 (2,)", torch.zeros(2)) == fingerprint("float32 (2,)", np.zeros(2, np.float32))
        True
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        elif isinstance(part, Tensor):
            kept = part.detach().cpu().contiguous()
            digest.update(kept.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def spread_evenly(count: int, most: int) -> Tensor:
    """Up to `most` of the indices 0 to `count - 1`, evenly spaced: int64, on the CPU.

    Examples:
        >>> spread_evenly(10, 4).tolist()
        [0, 3, 6, 9]
    """
    # In float64: float32 can't tell places above 2^24 apart.
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()


# ---- forward passes of evaluations


class _AllocatedBytes(TorchFunctionMode):
    """Counts the bytes of the tensors that torch's functions return."""

    def __init__(self) -> None:
        super().__init__()
        self.total: int = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(part, Tensor):
                self.total += part.numel() * part.element_size()
        return found


def samples_at_once(measure_one: Callable[[], object], batch_size: int, most: int) -> int:
    """How many samples an evaluation may send through a network at once.

    As many as allocate 32 MiB, or as many as a minibatch of training, which fits into memory with gradients too.

    Args:
        measure_one: does with one sample what will be done with all of them.
        batch_size: samples of a minibatch of training.
        most: upper bound, for example the number of samples.
    """
    if most <= batch_size:
        return max(most, 1)
    allocated = _AllocatedBytes()
    with torch.no_grad(), allocated:
        measure_one()
    return min(most, max(batch_size, MEASURED_BYTES // max(allocated.total, 1)))


# ---- the log of a run


OnLog: TypeAlias = Callable[[int, Mapping[str, float]], object]
"""The caller's function; it is called with the step and the values of a log line, by tag."""


class EventLog:
    """Log values to TensorBoard and to the caller's function, and move the progress bar. A context manager.

    Agents log to Stable-Baselines3's `Logger` instead, and get their progress bar from `open_progress_bar`.

    Args:
        tensorboard: the folder for TensorBoard's files; None: none are written.
        resumed_at: the step from which a run is resumed; TensorBoard drops what the killed run logged after it.
        on_log: called with the step and the values of each `write`.
        bar: `(total, done, unit)` of a progress bar; None: none is shown.

    Attributes:
        writer: TensorBoard's, or None. Figures, images and histograms are added to it by the trainer.

    Examples:
        >>> seen = []
        >>> with EventLog(on_log=lambda step, values: seen.append((step, values))) as log:
        ...     log.write("gan", {"loss": 0.5}, 10)
        >>> seen
        [(10, {'gan/loss': 0.5})]
    """

    def __init__(
        self,
        tensorboard: str | Path | None = None,
        *,
        resumed_at: int | None = None,
        on_log: OnLog | None = None,
        bar: tuple[int, int, str] | None = None,
    ) -> None:
        self.writer: Any = None
        self._on_log = on_log
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if resumed_at is None else resumed_at + 1
            self.writer = SummaryWriter(str(tensorboard), purge_step=purge)
        total, done, unit = bar or (0, 0, "step")
        self._bar = open_progress_bar(total, done, unit, shown=bar is not None)

    def advance(self, steps: int = 1) -> None:
        """Move the progress bar."""
        self._bar.update(steps)

    def write(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Log `values` under `<prefix>/<name>`."""
        named = {f"{prefix}/{name}": value for name, value in values.items()}
        if self.writer is not None:
            for name, value in named.items():
                self.writer.add_scalar(name, value, step)
        if self._on_log is not None:
            self._on_log(step, named)

    def close(self) -> None:
        """Close what is open, also after an error."""
        self._bar.close()
        if self.writer is not None:
            self.writer.close()
        self.writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_progress_bar(total: int, done: int, unit: str, *, shown: bool = True) -> Any:
    """A progress bar of tqdm's: `update(n)`, `set_postfix_str(text)`, `close()`; a context manager.

    Args:
        total: the bar's end.
        done: the bar's start.
        unit: what it counts.
        shown: False: nothing is printed.
    """
    if shown:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]
    else:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    return tqdm(total=total, initial=done, unit=unit, mininterval=0.5, disable=not shown)


def append_values(history: dict[str, list[float]], values: Mapping[str, float]) -> None:
    """Append the values of a log line to a history, which has one list for each name."""
    for name, value in values.items():
        history.setdefault(name, []).append(value)


def log_line(head: str, values: Mapping[str, float], names: Sequence[str]) -> str:
    """A log line as text, with those of `names` that are in `values`.

    Examples:
        >>> log_line("epoch 1/2", {"loss": 0.25, "accuracy": 1.0}, ("loss", "val_loss"))
        'epoch 1/2: loss 0.2500'
    """
    return f"{head}: " + ", ".join(f"{name} {values[name]:.4f}" for name in names if name in values)


# ---- early stopping


class _Stopping(TypedDict):
    best_loss: AnyNumber
    best_step: Count
    validations_without_gain: Count


class EarlyStopping:
    """Keeps the parameters of the lowest validation loss.

    Args:
        patience: stop after this many validations in succession without a lower loss.

    Attributes:
        best_loss: the lowest loss so far; infinity before the first validation.
        best_step: the step of that loss.
        validations_without_gain: the number of validations since then.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.reset()

    def reset(self) -> None:
        """Forget all losses and parameters."""
        self.best_loss = math.inf
        self.best_step = 0
        self.validations_without_gain = 0
        self.parameters: dict[str, Tensor] = {}

    @property
    def should_stop(self) -> bool:
        """Whether patience is used up."""
        return self.validations_without_gain >= self.patience

    def update(self, loss: float, step: int, module: nn.Module) -> None:
        """Take note of a validation loss; NaN is never better."""
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.validations_without_gain = loss, step, 0
            self.parameters = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        else:
            self.validations_without_gain += 1

    def restore(self, module: nn.Module, step: int) -> bool:
        """Restore the best parameters. Returns False, and does nothing, if `step` is the best or none are stored."""
        if not self.parameters or self.best_step == step:
            return False
        module.load_state_dict(self.parameters)
        return True

    def to_config(self) -> dict[str, Any]:
        """The part that JSON can hold; the parameters are tensors and go elsewhere."""
        return {
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "validations_without_gain": self.validations_without_gain,
        }

    def load(self, config: Any, parameters: Mapping[str, Tensor], module: nn.Module, step: int) -> None:
        """Restore the state from `to_config` and `parameters`, of a file whose run stands at `step`.

        Raises:
            ValueError: the state is malformed, or does not fit the module.
        """
        found = decode(_Stopping, config, "early_stopping")
        own = module.state_dict()
        shapes = {name: tensor.shape for name, tensor in (own if found["best_loss"] < math.inf else {}).items()}
        if found["best_step"] > step or {name: tensor.shape for name, tensor in parameters.items()} != shapes:
            raise ValueError("early_stopping does not fit the run's step, or its parameters not the network")
        self.best_loss, self.best_step = found["best_loss"], found["best_step"]
        self.validations_without_gain = found["validations_without_gain"]
        self.parameters = {name: tensor.to(own[name].device) for name, tensor in parameters.items()}


# ---- SIGINT and SIGTERM
# A command handles the signals (`handled_signals`). A trainer that keeps checkpoints says while it trains that it looks
# for them (`safe_points`), and at each safe point it asks `stop_requested`, saves, and calls `stop`. Without a command
# nothing changes: the trainers leave the handlers of the calling program alone.


SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEATED_SECONDS = 0.3
"""A launcher hands its processes the signal that the terminal has sent them too: that is one request, not two."""


class TrainingInterrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended the run.

    Attributes:
        exit_code: the exit code of a command that ends so: 130 or 143.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class _Requests:
    """How many trainers look for a request at their safe points, and the signal that requested the end."""

    depth: int = 0
    number: int | None = None
    since: float = 0.0

    def handle(self, number: int, _: FrameType | None) -> None:
        if self.depth and self.number is not None and time.monotonic() - self.since < REPEATED_SECONDS:
            return
        if self.depth == 0 or self.number is not None:
            raise TrainingInterrupted(number)
        self.number, self.since = number, time.monotonic()
        print("\nInterrupted: a checkpoint follows at the next safe point; again: stop at once.", file=sys.stderr)


_REQUESTS = _Requests()


@contextmanager
def handled_signals() -> Iterator[None]:
    """Handle both signals inside the `with` block, and restore the previous handlers after it.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _REQUESTS.depth, _REQUESTS.number = 0, None  # a `learn` that an error ended may have left them
    before = {number: signal.signal(number, _REQUESTS.handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _REQUESTS.depth, _REQUESTS.number = 0, None


@contextmanager
def safe_points(folder: str | Path | None, *, shared: bool = False) -> Iterator[None]:
    """Inside the `with` block the trainer looks for requests at its safe points, and a signal waits for the next one.

    The folder is this process's for so long: another process that trains in it, or resumes its run, is refused.

    Args:
        folder: where the trainer keeps its checkpoints; None: it keeps none, and a signal ends the run at once.
        shared: whether several processes train together.

    Raises:
        ValueError: another process trains in the folder.

    Examples:
        >>> with safe_points("no/such/folder"):
        ...     stop_requested()
        False
    """
    if folder is None:
        yield
        return
    with own_folder(folder, shared=shared):
        _REQUESTS.depth += 1
        try:
            yield
        finally:
            _REQUESTS.depth = max(0, _REQUESTS.depth - 1)
    if _REQUESTS.number is not None and _REQUESTS.depth == 0:  # it came after the last safe point
        stop("The training is over.")


def stop_requested() -> bool:
    """Whether a signal has requested the end of the run."""
    return _REQUESTS.number is not None


def stop(message: str) -> NoReturn:
    """End the run at a safe point by TrainingInterrupted; `message` says what was saved."""
    number = signal.SIGINT if _REQUESTS.number is None else _REQUESTS.number
    _REQUESTS.number = None
    raise TrainingInterrupted(number, message)
