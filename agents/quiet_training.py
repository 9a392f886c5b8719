"""Training a `BC` inside of something else: no lines on the terminal, and the last log line as the result."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger

from rlsmooth.agents.bc import BC

__all__ = ["train_quietly"]


class LastLine(KVWriter):
    """Keeps the numbers of the last log line that had any under `bc/`."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep this line in place of the one before."""
        values = {name: value for name, value in key_values.items() if name.startswith("bc/")}
        self.values = {name.removeprefix("bc/"): float(value) for name, value in values.items()} or self.values

    def close(self) -> None:
        """Nothing is open."""


def train_quietly(agent: BC, epochs: int) -> dict[str, float]:
    """Train for so many epochs and return the last line's numbers, `bc/` left out of their names.

    Raises:
        TrainingDivergedError: see `BC.learn`.
    """
    last = LastLine()
    agent.set_logger(Logger(None, [last]))
    agent.learn(total_epochs=epochs)
    return last.values
