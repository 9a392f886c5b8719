"""Starts a command in several processes of this machine that train together, and joins them."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.processes import end_with_parent
from rlsmooth.training.distributed import process_group

LAUNCHER = "RLSMOOTH_LAUNCHER"
"""In the environment of the processes that `launch` starts: the process id of the one that does."""


def launch(name: str, words: Sequence[str], devices: int) -> int:
    """Run `rlsmooth <name> <words>` in so many processes, as torchrun does on one machine; return the exit code.

    If one fails, the others are ended, and its own message says why.
    """
    check_positive_int("devices", devices)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's launcher sets it too, with a warning
    os.environ[LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        run_id=uuid.uuid4().hex,
        nproc_per_node=devices,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "rlsmooth", name, *words)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values() if failure.exitcode > 0]
        return codes[0] if codes else 1
    except SignalException as error:
        return 128 + error.sigval
    finally:
        del os.environ[LAUNCHER]
    return 0


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the processes that a launcher has started; only the first of them prints."""
    if launcher := os.environ.get(LAUNCHER):  # torchrun and others see to their processes themselves
        end_with_parent(int(launcher))
    with process_group() as ranks:
        if ranks.is_main:
            yield
            return
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
