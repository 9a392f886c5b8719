"""When a loss is no longer a number: which update it was, which rows it saw, and what likely made it so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.agents.heads import Batch

__all__ = ["TrainingDivergedError", "divergence_error"]

SHOWN = 8


class TrainingDivergedError(ArithmeticError):
    """The loss became NaN or infinite, so that the policy in memory is spoilt.

    Attributes:
        step: the first update (counted from 1) whose loss or parameters are not finite.
        rows: int64, the demonstrations' rows that it saw; those that hold such a number themselves if there are any.
    """

    def __init__(self, message: str, step: int, rows: NDArray[np.int64]) -> None:
        super().__init__(message)
        self.step = step
        self.rows = rows


def divergence_error(
    step: int, loss: float, rows: Tensor, batch: Batch, *, learning_rate: float, checkpoint_folder: Path | None
) -> TrainingDivergedError:
    """Build the error of update `step`.

    Args:
        step: counted from 1.
        loss: of that update.
        rows: int64 `[B]`, what it saw, as rows of the demonstrations.
        batch: those rows.
        learning_rate: in force.
        checkpoint_folder: where the last good checkpoint is, or None.
    """
    observations = batch.observations
    values = [*observations.values()] if isinstance(observations, dict) else [observations]
    values += [tensor for tensor in (batch.labels, batch.weights, batch.probs) if tensor is not None]
    bad = torch.zeros(len(rows), dtype=torch.bool, device=batch.labels.device)
    for value in values:
        if value.is_floating_point():
            bad |= ~value.isfinite().flatten(1 if value.ndim > 1 else 0).reshape(len(rows), -1).all(-1)
    spoilt = rows[bad.cpu()]
    if len(spoilt):
        seen, cause = spoilt, "These rows of the demonstrations hold NaN or infinity (they were changed since checked)."
    else:
        seen = rows
        cause = (
            f"The rows themselves are finite, so the policy diverged: lower learning_rate (it was {learning_rate:g}), "
            "or set max_grad_norm."
        )
    listed = ", ".join(map(str, seen[:SHOWN].tolist())) + (f", ... ({len(seen)} rows)" if len(seen) > SHOWN else "")
    stays = (
        "The policy in memory is spoilt."
        if checkpoint_folder is None
        else f"The policy in memory is spoilt; the last good checkpoint stays in {str(checkpoint_folder)!r}."
    )
    what = f"the loss is {loss}" if not np.isfinite(loss) else "the parameters are not finite after it"
    return TrainingDivergedError(
        f"Training stopped at batch {step}: {what}. Rows {listed}. {cause} {stays}",
        step,
        seen.numpy().astype(np.int64),
    )
