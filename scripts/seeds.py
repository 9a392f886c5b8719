"""Train a command once a seed, each in a process of its own, and report the means and their intervals."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlsmooth.audits.intervals import mean_interval
from rlsmooth.scripts.arguments import number_of
from rlsmooth.scripts.environment import check_seed
from rlsmooth.scripts.figures.kinds import draw_reports, load_reports
from rlsmooth.scripts.figures.page import save_figure
from rlsmooth.scripts.processes import end_with_parent
from rlsmooth.scripts.reports import print_table
from rlsmooth.scripts.run_folder import new_run_folder, versions, write_json
from rlsmooth.training.run import handled_signals
from rlsmooth.untrusted import read_regular

TrainAlone = Callable[[str, Any, Callable[[str], object]], int]


def train_seeds(name: str, args: Any, seeds: Sequence[int], train_alone: TrainAlone) -> Path:
    """Train, and return the folder of the common report: `seeds.json`, `seeds.png`, and what each run printed.

    Each run has its own folder, as if it had been started alone, so one that was interrupted can be resumed alone.

    Args:
        name: of the command.
        args: of the command; their seed is replaced.
        seeds: at least one, all different.
        train_alone: trains with one seed in the process that calls it; see `command.train_alone`.

    Raises:
        ValueError: the seeds can't be used, or a run failed; what the others found has been reported by then.
        KeyboardInterrupt: interrupted.
    """
    if args.resume is not None:
        raise ValueError("--seeds starts new runs: leave out --resume, or --seeds.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {' '.join(map(str, seeds))} names a seed twice.")
    for seed in seeds:
        check_seed(seed)
    named = (getattr(args, name, None) for name in ("env", "data", "case"))
    subject = Path(str(next(filter(None, named), "all"))).stem
    folder = new_run_folder(args.log_folder, name, f"{subject}-seeds")
    print(f"Training {number_of(len(seeds), 'seed')}; what each prints is in {folder}", flush=True)
    runs = _Runs(name, args, folder, train_alone)
    with handled_signals():  # SIGTERM must not leave the processes behind
        try:
            runs.train(list(seeds))
        except KeyboardInterrupt:
            runs.interrupt()
            raise
        finally:
            report(name, runs.folders, folder)
    if runs.failed:
        said = "; ".join(f"seed {seed}: {why}" for seed, why in runs.failed.items())
        raise ValueError(f"{len(runs.failed)} of {len(seeds)} seeds failed, the others are kept. {said}")
    return folder


class _Runs:
    """Processes that train, as many at once as there are cores for.

    Attributes:
        folders: of the runs that ended well, by seed.
        failed: what the others said last, by seed.
    """

    def __init__(self, name: str, args: Any, folder: Path, train_alone: TrainAlone) -> None:
        self.name, self.args, self.folder, self.train_alone = name, args, folder, train_alone
        self.folders: dict[int, Path] = {}
        self.failed: dict[int, str] = {}
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[int, tuple[Any, Any]] = {}

    def train(self, waiting: list[int]) -> None:
        """Train with all these seeds."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        most = max(1, cores // max(1, self.args.num_threads))
        while waiting or self._running:
            while waiting and len(self._running) < most:
                self._start(waiting.pop(0))
            time.sleep(0.05)
            self._collect()

    def interrupt(self) -> None:
        """Pass the interruption on, once, and wait until each run has saved what it has."""
        for process, _ in self._running.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        while self._running:
            time.sleep(0.05)
            self._collect()

    def _log(self, seed: int) -> Path:
        return self.folder / f"seed_{seed}.log"

    def _start(self, seed: int) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        args = dataclasses.replace(self.args, seed=seed)
        process = self._context.Process(
            target=_train, args=(self.train_alone, self.name, args, self._log(seed), sender)
        )
        process.start()
        sender.close()
        self._running[seed] = process, receiver

    def _collect(self) -> None:
        for seed, (process, receiver) in [*self._running.items()]:
            if process.is_alive():
                continue
            del self._running[seed]
            if process.exitcode == 0 and receiver.poll():
                self.folders[seed] = Path(receiver.recv())
                print(f"seed {seed}: {self.folders[seed]}", flush=True)
                continue
            log = self._log(seed)
            lines = read_regular(log).decode("utf-8", "replace").splitlines() if log.is_file() else []
            resume = [line for line in lines if "--resume " in line]
            said = (resume or [line for line in lines if line.strip()] or [f"ended with code {process.exitcode}"])[-1]
            self.failed[seed] = said.strip()
            print(f"seed {seed}: {self.failed[seed]}", file=sys.stderr, flush=True)


def _train(train_alone: TrainAlone, name: str, args: Any, log: Path, sender: Any) -> None:
    """Called in a process of its own, apart from the terminal's group: an interruption is passed on to it once."""
    end_with_parent()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.exit(train_alone(name, args, sender.send))


def report(name: str, folders: dict[int, Path], folder: Path) -> None:
    """Print and write the mean of each number over the runs that ended, with its 95 % interval, and draw them."""
    if not folders:
        return
    ordered = [folders[seed] for seed in sorted(folders)]
    reports = load_reports(ordered)
    numbers: dict[str, dict[str, float]] = {}
    for key in reports[0].summary:
        values = np.array([each.summary[key] for each in reports if key in each.summary])
        if len(values) == len(reports):
            numbers[key] = {"mean": float(values.mean())}
            if len(values) > 1:
                found = mean_interval(values)
                numbers[key] |= {"low": found.low, "high": found.high}
    rows = [
        (key, f"{row['mean']:.4g}", f"{row['low']:.4g} to {row['high']:.4g}" if "low" in row else "")
        for key, row in numbers.items()
    ]
    seeds = sorted(folders)
    print_table(
        f"{name}, seeds {', '.join(map(str, seeds))}",
        rows,
        "Means over the seeds, with 95 % intervals (Student's t).",
        header=["", "mean", "95 % interval"],
    )
    runs = {str(seed): str(folders[seed]) for seed in seeds}
    write_json(folder / "seeds.json", {"command": name, "runs": runs, "summary": numbers, "versions": versions()})
    try:
        save_figure(folder / "seeds.png", draw_reports(reports))
    except ValueError:  # runs of this kind can't be compared in a figure
        return
    print(f"Report and figure are in {folder}.")
