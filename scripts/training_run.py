"""The frame of every training command: the run's folder, its logs, and what it writes and prints at its end."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat

from rlsmooth.atomic import (
    DISK_ERRORS,
    EXPLAINED,
    explained_disk_errors,
)
from rlsmooth.checks import check_writable_folder, lock_folder, unlock_folder
from rlsmooth.scripts.arguments import RunArgs, evaluate_line, resume_line
from rlsmooth.scripts.card import describe_used_data, write_card
from rlsmooth.scripts.figures.kinds import new_report, publish_report
from rlsmooth.scripts.metrics_file import Curve, MetricsFile, read_metrics
from rlsmooth.scripts.run_folder import new_run_folder, plain, write_settings
from rlsmooth.scripts.tracking import open_tracker
from rlsmooth.training import checkpoint_steps
from rlsmooth.training.distributed import Ranks
from rlsmooth.training.run import delete_temporary_files, handled_signals


class TrainingRun:
    """A run of a training command, from its folder to its report.

    To be used as a context. A new run's folder is removed if an error ends the block before `begin`: nobody's work is
    in it.

    Args:
        command: what follows `rlsmooth`.
        args: of the command line, or those that the resumed run began with.
        name: of the environment or the data, for the folder of a new run.

    Attributes:
        folder: of the run.
        checkpoints: the folder of its checkpoints.
        shows_bar: whether to show a progress bar.

    Raises:
        ValueError: no folder can be made.
    """

    def __init__(self, command: str, args: RunArgs, name: str) -> None:
        self.command = command
        self.args = args
        self._closing = ExitStack()
        self._ranks = Ranks.current()
        if self._ranks.is_main:
            self.folder = args.resume or new_run_folder(args.log_folder, command, name)
        else:  # the first process writes; what the others would write is deleted with their folder
            self.folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory())) / "run"
            self.folder.mkdir()
        self.checkpoints = (args.resume or self.folder) / "checkpoints"
        self.shows_bar = args.progress or sys.stderr.isatty()
        self._is_begun = False
        self._resume_from = ""
        self._outputs: list[KVWriter] = []
        if not self._ranks.is_main:
            return
        for folder in (self.folder, self.checkpoints):  # the second alone is known to trainers
            lock_folder(folder)
            self._closing.callback(unlock_folder, folder)
        if args.resume is not None:
            delete_temporary_files(self.folder)

    def __enter__(self) -> Self:
        self._closing.enter_context(handled_signals())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for output in self._outputs:
            with suppress(OSError) if error is not None else nullcontext():  # the error that is under way comes first
                output.close()
        self._closing.close()
        if error is not None and not self._is_begun:
            self.discard()
        elif isinstance(error, (KeyboardInterrupt, OSError)) and self._resume_from:
            words = resume_line(self.command, self.folder, self.args)
            first = f"{str(error) or 'Interrupted.'} " if isinstance(error, KeyboardInterrupt) else ""
            has_any = any(self.checkpoints.rglob("checkpoint_*.zip"))
            start = f"To resume from the last {self._resume_from}" if has_any else "To begin again"
            print(f"\n{first}{start}: {words}")
            if hasattr(self.args, "env") and any(self.checkpoints.glob("checkpoint_*.zip")):
                newest = max(self.checkpoints.rglob("checkpoint_*.zip"), key=lambda path: path.stat().st_mtime_ns)
                when = "is now" if newest.parent == self.checkpoints else "was when the round began"
                print(f"To evaluate it as it {when}: {evaluate_line(self.folder, self.args)}")
        elif isinstance(error, KeyboardInterrupt):
            print("\nInterrupted. This run wrote no checkpoints, so it can't be resumed.")
        if isinstance(error, OSError) and error.errno in DISK_ERRORS and EXPLAINED not in str(error):
            with explained_disk_errors(self.folder / "metrics.csv"):  # or TensorBoard's file beside it
                raise error

    def discard(self) -> None:
        """Remove the folder of a new run in which nothing has been trained."""
        if self.args.resume is None and self._ranks.is_main:
            shutil.rmtree(self.folder)

    def events(self) -> Path:
        """The folder of TensorBoard's files.

        Raises:
            ValueError: it can't be written to.
        """
        if self.args.tensorboard_log is None or not self._ranks.is_main:
            return self.folder
        return check_writable_folder("tensorboard_log", self.args.tensorboard_log / self.folder.name)

    def metrics_file(self, last_step: int | None) -> MetricsFile:
        """Open `metrics.csv`, with the rows up to `last_step` of a resumed run; None: start an empty file."""
        file = MetricsFile(self.folder / "metrics.csv", last_step)
        self._outputs.append(file)
        return file

    def logger(self, last_step: int | None) -> Logger:
        """SB3's logger: to `metrics.csv`, TensorBoard, what `--track` names, and with `--verbose` the terminal.

        Raises:
            ImportError: what `--track` names is not installed.
        """
        events = self.events()
        self.metrics_file(last_step)
        self._outputs.append(TensorBoardOutputFormat(str(events)))
        tool = getattr(self.args, "track", None)
        if tool is not None and self._ranks.is_main:
            settings = plain(dataclasses.asdict(self.args))
            self._outputs.append(open_tracker(tool, settings["track_project"], self.folder, settings))
        return Logger(
            str(self.folder), [*self._outputs, *([HumanOutputFormat(sys.stdout)] if self.args.verbose else [])]
        )

    def begin(
        self,
        what: str = "",
        start: str = "",
        *,
        resume_from: str = "checkpoint",
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a new run's settings, and print a line. From here on the folder is kept, whatever happens.

        Args:
            what: to print, before the folder; empty: print nothing.
            start: where a resumed run continues; empty: at its beginning.
            resume_from: what an interrupted run can be resumed from; empty: it can't be resumed.
            more: what else `config.json` is to hold.
        """
        if self.args.resume is None or not self._ranks.is_main:
            write_settings(self.folder, self.command, self.args, more)
        self._is_begun = True
        self._resume_from = resume_from
        if what and self._ranks.size > 1:
            what += f", in {self._ranks.size} processes,"
        if what:
            print(f"{what} in {self.folder}{start and f', from {start}'}", flush=True)

    def curves(self) -> dict[str, Curve]:
        """What `metrics.csv` holds so far: by column, steps and values."""
        return read_metrics(self.folder / "metrics.csv")

    def finish(self, what: str, **entries: Any) -> Path:
        """Write report, figure and card, print the results, and return the folder.

        Args:
            what: names the files of the run, for the last line.
            entries: of the report, beside the run's name and arguments (see `new_report`).
        """
        settings = plain(dataclasses.asdict(self.args))
        publish_report(self.folder, new_report(self.command, name=self.folder.name, settings=settings, **entries))
        if self._ranks.is_main:
            write_card(self.folder, data=describe_used_data(self.command, self.args), evaluations=None)
        events = shlex.quote(str(self.args.tensorboard_log or self.folder))
        print(f"{what} are in {self.folder}. View them: tensorboard --logdir {events}")
        return self.folder


def saved_checkpoints(args: RunArgs) -> Path | None:
    """The folder of a resumed run's checkpoints; None if the run is new, or was killed before its first one."""
    folder = None if args.resume is None else args.resume / "checkpoints"
    return folder if folder is not None and checkpoint_steps(folder) else None
