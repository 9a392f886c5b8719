"""Early stopping on a validation loss: when to stop, and the parameters to go back to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Keeps the parameters of the lowest validation loss.

    Args:
        patience: how many validations in a row may bring nothing better before training stops.

    Attributes:
        best_loss: the lowest so far; infinity before the first.
        best_step: when it was.
        validations_without_gain: since then.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.reset()

    def reset(self) -> None:
        """Forget all losses and parameters."""
        self.best_loss = math.inf
        self.best_step = 0
        self.validations_without_gain = 0
        self.parameters: dict[str, Tensor] = {}

    @property
    def should_stop(self) -> bool:
        """Whether patience is used up."""
        return self.validations_without_gain >= self.patience

    def update(self, loss: float, step: int, module: nn.Module) -> None:
        """Take note of a validation loss; NaN is never better."""
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.validations_without_gain = loss, step, 0
            self.parameters = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        else:
            self.validations_without_gain += 1

    def restore(self, module: nn.Module, step: int) -> bool:
        """Put the best parameters back; return whether they are of an earlier step than `step`."""
        if not self.parameters or self.best_step == step:
            return False
        module.load_state_dict(self.parameters)
        return True

    def to_config(self) -> dict[str, Any]:
        """What JSON can hold; the parameters are tensors and go elsewhere."""
        return {
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "validations_without_gain": self.validations_without_gain,
        }

    def load(self, config: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Go on from what `to_config` and `parameters` were."""
        self.best_loss = float(config["best_loss"])
        self.best_step = int(config["best_step"])
        self.validations_without_gain = int(config["validations_without_gain"])
        self.parameters = dict(parameters)
