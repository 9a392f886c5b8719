"""When a loss is no longer a number: which update it was, which rows it saw, and what likely made it so."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TrainingDivergedError", "divergence_error"]

SHOWN = 8


class TrainingDivergedError(ArithmeticError):
    """The loss became NaN or infinite, so that the model in memory is spoilt.

    Attributes:
        step: the first update (counted from 1) whose loss or parameters are not finite.
        rows: int64, the training data's rows that it saw; those that hold such a number themselves if there are any.
    """

    def __init__(self, message: str, step: int, rows: NDArray[np.int64]) -> None:
        super().__init__(message)
        self.step = step
        self.rows = rows


def divergence_error(
    step: int,
    loss: float,
    rows: Tensor,
    values: Iterable[Tensor],
    *,
    learning_rate: float,
    checkpoint_folder: Path | None,
    data: str = "demonstrations",
    model: str = "policy",
) -> TrainingDivergedError:
    """Build the error of update `step`.

    Args:
        step: counted from 1.
        loss: of that update.
        rows: int64 `[B]`, what it saw, as rows of the data.
        values: tensors `[B, ...]`, what those rows hold.
        learning_rate: in force.
        checkpoint_folder: where the last good checkpoint is, or None.
        data: what the message calls the data.
        model: what it calls the model.
    """
    bad = torch.zeros(len(rows), dtype=torch.bool)
    for value in values:
        if value.is_floating_point():
            bad |= ~value.isfinite().reshape(len(rows), -1).all(-1).cpu()
    spoilt = rows[bad]
    if len(spoilt):
        seen, cause = spoilt, f"These rows of the {data} hold NaN or infinity (they were changed since checked)."
    else:
        seen = rows
        cause = (
            f"The rows themselves are finite, so the {model} diverged: lower learning_rate (it was {learning_rate:g}), "
            "or set max_grad_norm."
        )
    listed = ", ".join(map(str, seen[:SHOWN].tolist())) + (f", ... ({len(seen)} rows)" if len(seen) > SHOWN else "")
    stays = f"The {model} in memory is spoilt"
    if checkpoint_folder is not None:
        stays += f"; the last good checkpoint stays in {str(checkpoint_folder)!r}"
    what = f"the loss is {loss}" if not np.isfinite(loss) else "the parameters are not finite after it"
    return TrainingDivergedError(
        f"Training stopped at batch {step}: {what}. Rows {listed}. {cause} {stays}.",
        step,
        seen.numpy().astype(np.int64),
    )
