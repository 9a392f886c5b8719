"""The driver's end of a competitor's process: start it, ask it, end it, and know why it can't be measured."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

REPLY_LIMIT_S = 300.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Worker:
    """A competitor in its own process, `bc_worker.py` under `python`, which is one thread on the CPU.

    `problem` is empty while it can be asked, and afterwards says why it can't: "not installed" for an interpreter or a
    library that isn't there, "failed (the error's type)" for all else; the details go to standard error.
    """

    def __init__(self, competitor: str, python: Path | None, data_file: Path, folder: Path) -> None:
        self.competitor = competitor
        self.problem = ""
        self.environment: dict[str, Any] = {}
        self.process: subprocess.Popen[str] | None = None
        self.log_file = folder / f"{competitor}.log"
        if python is None:
            self.problem = "not installed"
            return
        # absolute(), not resolve(): the link in a virtual environment is what makes it one
        command = [str(python.absolute()), str(Path(__file__).with_name("bc_worker.py").absolute())]
        command += ["--competitor", competitor, "--data", str(data_file), "--folder", str(folder)]
        try:
            with self.log_file.open("wb") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=folder,
                    env={**os.environ, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""},
                )
        except OSError as error:
            self.problem = "not installed"
            print(f"{competitor}: {python} can't be run: {error.strerror}", file=sys.stderr)

    def ask(self, do: str, batch_size: int = 0, num_batches: int = 0) -> dict[str, Any]:
        """Send one request and return the answer; on an error set `problem` and return an answer with "error"."""
        if self.process is None or self.process.stdin is None or self.process.stdout is None:
            return {"error": self.problem}
        watchdog = threading.Timer(REPLY_LIMIT_S, self.process.kill)
        watchdog.start()
        line = ""
        request = {"do": do, "batch_size": batch_size, "num_batches": num_batches}
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        watchdog.cancel()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "process ended", "details": ""}
        if "error" in reply:
            self.problem = "not installed" if reply["error"] == "ModuleNotFoundError" else f"failed ({reply['error']})"
            print(f"{self.competitor}: {self.problem}: {reply['details']}", file=sys.stderr)
            if self.problem != "not installed":
                print(self.log_file.read_text(encoding="utf-8", errors="replace")[-3000:], file=sys.stderr)
        return reply

    def close(self) -> None:
        """End the process, which stops by itself when its input ends."""
        if self.process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
