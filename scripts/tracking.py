"""Send what SB3's logger gets to Weights & Biases, MLflow or Trackio. Neither is imported unless it is asked for."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter

from rlsmooth.scripts.run_folder import read_json, write_json
from rlsmooth.untrusted import decode, refused

FILE = "tracking.json"
"""In the run's folder: under which id the tool knows the run, so that a resumed one continues there."""


class Tracker(KVWriter):
    """An output of SB3's logger that sends numbers on.

    Args:
        send: is called with the numbers by tag, and the step.
        finish: is called at the end.
    """

    def __init__(self, send: Callable[[dict[str, float], int], object], finish: Callable[[], object]) -> None:
        self._send, self._finish = send, finish

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send the numbers; what is not meant for TensorBoard, such as the step, is left out."""
        values = {
            key: float(value)
            for key, value in key_values.items()
            if isinstance(value, (int, float, np.integer, np.floating)) and "tensorboard" not in key_excluded[key]
        }
        if values:
            self._send(values, step)

    def close(self) -> None:
        """End the run in the tool."""
        self._finish()


def open_tracker(tool: str, project: str, folder: Path, config: Mapping[str, Any]) -> Tracker:
    """Begin a run in the tool, or continue the one that the folder's run is known by.

    Args:
        tool: `wandb`, `mlflow` or `trackio`.
        project: of the tool; MLflow calls it an experiment.
        folder: of the run; its name is in that of the tool's run.
        config: the run's arguments.

    Raises:
        ImportError: the tool is not installed.
    """
    try:
        module: Any = import_module(tool)
    except ImportError as error:
        # No extra: MLflow asks for older versions than those that the other extras are pinned to.
        install = "mlflow" if tool == "mlflow" else f'"rlsmooth[{tool}]"'
        raise ImportError(f"--track {tool} needs {tool} ({error}): pip install {install}.") from error
    path, name = folder / FILE, f"{folder.parent.name}/{folder.name}"
    known = None
    if path.is_file():
        with refused(path, ValueError):
            known = decode(str, read_json(path).get(tool), tool)
    if tool == "mlflow":
        module.set_experiment(project)
        run = module.start_run(run_id=known, run_name=name)
        if known is None:
            module.log_params({key: str(value)[:250] for key, value in config.items()})
        write_json(path, {tool: run.info.run_id})
        return Tracker(lambda values, step: module.log_metrics(values, step=step), module.end_run)
    identity = known or f"{name.replace('/', '-')}-{uuid.uuid4().hex[:8]}"
    write_json(path, {tool: identity})
    own: dict[str, Any] = {"name": identity}  # by which Trackio knows a run
    if tool == "wandb":
        own = {"id": identity, "name": name, "dir": str(folder)}
    module.init(project=project, config=dict(config), resume="allow", **own)
    return Tracker(lambda values, step: module.log(values, step=step), module.finish)
