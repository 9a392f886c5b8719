"""Run the runs of a study in a few processes; each is written as it ends, so that a broken-off study can resume."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeAlias

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.audits.intervals import Interval
from rlsmooth.scripts.processes import end_with_parent
from rlsmooth.scripts.run_folder import versions

Result: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Args:
    """Run or resume a study: runs that are done are not done again."""

    folder: Path | None = None
    """Where each run's result goes. Default: logs/studies/<study>, with --small <study>-small."""
    results: Path | None = None
    """Where the summary goes. Default: scripts/studies/results, with --small the folder of the runs."""
    workers: int = max(1, os.cpu_count() or 1)
    """How many runs to do at once, each with one thread."""
    small: bool = False
    """Three seeds and a small budget: shows that the study runs, not what it would find."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        key: its name, and that of its file.
        settings: what the study's function is given, as JSON holds it.
    """

    key: str
    settings: dict[str, Any]


def run_jobs(
    jobs: Sequence[Job], work: Callable[[dict[str, Any]], Result], *, folder: Path, workers: int
) -> list[Result]:
    """Do what is not done yet and return the results in the order of `jobs`.

    Args:
        jobs: with keys that differ.
        work: a function of a module, so that another process can import it.
        folder: of the results, one JSON a run, with the settings that it was made by.
        workers: processes.

    Raises:
        ValueError: a result in the folder was made by other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not _is_done(job, folder)]
    if waiting:
        print(f"{folder.name}: {len(jobs) - len(waiting)} of {len(jobs)} runs are done", flush=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
            futures = {pool.submit(work, job.settings): job for job in waiting}
            try:
                for number, future in enumerate(as_completed(futures), start=1):
                    job = futures[future]
                    content = {"settings": job.settings, "result": future.result()}
                    write_bytes_atomically(_path(job, folder), (json.dumps(content) + "\n").encode())
                    print(f"{folder.name}: {number} of {len(waiting)}: {job.key}", flush=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # otherwise the rest would still be computed, and thrown away
                raise
    return [dict(json.loads(_path(job, folder).read_text(encoding="utf-8"))["result"]) for job in jobs]


def by_arm(jobs: Sequence[Job], results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each arm that the jobs' settings name, in the order of the jobs."""
    arms: dict[str, list[Result]] = {}
    for job, result in zip(jobs, results, strict=True):
        arms.setdefault(job.settings["arm"], []).append(result)
    return arms


def in_words(interval: Interval, form: str) -> str:
    """`estimate (low to high)`, each number in that form, such as `.2f`."""
    return f"{interval.estimate:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def results_folder(args: Args, name: str) -> tuple[Path, Path]:
    """Where a study's runs and its summary go."""
    runs = args.folder or Path("logs/studies") / (f"{name}-small" if args.small else name)
    summary = args.results or (runs if args.small else Path(__file__).parent / "results")
    return runs, summary


def write_study(folder: Path, name: str, *, report: str, data: dict[str, Any]) -> None:
    """Write `<name>.md` and `<name>.json`, which has each innermost list and mapping on one line."""
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(folder / f"{name}.md", report.encode())
    words = json.dumps({**data, "versions": versions()}, indent=1)
    short = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda part: re.sub(r"\n *", " ", part.group()), words)
    write_bytes_atomically(folder / f"{name}.json", f"{short}\n".encode())


def _path(job: Job, folder: Path) -> Path:
    return folder / f"{job.key}.json"


def _is_done(job: Job, folder: Path) -> bool:
    path = _path(job, folder)
    if not path.is_file():
        return False
    if json.loads(path.read_text(encoding="utf-8"))["settings"] != json.loads(json.dumps(job.settings)):
        raise ValueError(f"{str(path)!r} was made by other settings: remove it, or name another --folder.")
    return True


def _begin_worker() -> None:
    """Use one thread, and end when the study is killed."""
    import torch

    torch.set_num_threads(1)
    end_with_parent()
