"""Processes that a command or a study has started: when it is gone, they save a checkpoint and end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

POLLED_SECONDS = 0.5


def end_with_parent(launcher: int | None = None) -> None:
    """Watch the parent from a thread; when it is gone, send this process the SIGTERM that the parent can't pass on.

    Otherwise the processes of a killed command would compute on, for nobody.

    Args:
        launcher: the parent's process id, where the parent has started this process by other means than
            `multiprocessing`.
    """
    threading.Thread(target=_end_with_parent, args=(launcher,), daemon=True).start()


def _end_with_parent(launcher: int | None) -> None:
    parent = multiprocessing.parent_process()
    if launcher is None and parent is not None:
        parent.join()
    while os.getppid() == launcher:
        time.sleep(POLLED_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
