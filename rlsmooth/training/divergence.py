"""Stop a run whose numbers are no longer finite, before anything that was saved is replaced.

FiniteWatch             stops a run whose loss or parameters are not finite
check_finite_model      refuses to save a model whose parameters are not finite
check_no_nan            refuses to save a checkpoint that holds NaN
check_finite_step       stops a run whose environment gives a reward or an observation that is not finite
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.checks import first_not_finite

SHOWN_SAMPLES = 8


class TrainingDivergedError(FloatingPointError):
    """The loss became NaN or infinite, so that the model in memory is spoilt.

    Attributes:
        step: the first step (counted from 1) whose loss or parameters are not finite.
        rows: int64, the indices of that step's samples in the data; only the non-finite samples, if there are any.
    """

    def __init__(self, message: str, step: int, rows: NDArray[np.int64]) -> None:
        super().__init__(message)
        self.step = step
        self.rows = rows


T = TypeVar("T")
MinibatchOf: TypeAlias = Callable[[int], tuple[Tensor, Sequence[Tensor]]]
"""The minibatch of a step (counted from 1): int64 `[B]`, the indices of its samples, and their tensors `[B, ...]`."""


def last_interval(earlier: list[T], fresh: list[T]) -> list[T]:
    """Add to the entries since the last log line those before it, until there are as many as that line was about.

    Args:
        earlier: the entries that the last line was about.
        fresh: those since then.

    Examples:
        >>> last_interval([1, 2, 3], [4]), last_interval([1], [2, 3])
        ([2, 3, 4], [2, 3])
    """
    missing = len(earlier) - len(fresh)
    return earlier[-missing:] + fresh if missing > 0 else fresh


class FiniteWatch:
    """Stops a run whose loss or parameters are not finite. Does not wait for the device at each step.

    Args:
        modules: the modules whose parameters must be finite.
        losses_per_step: how many losses each step has.
        data: the word for the data in messages.
        model: the word for the modules in messages.
        learning_rate: the name of the argument to lower.
        can_clip: whether there is a `max_grad_norm` to set.

    Attributes:
        losses: of each step since `clear`, on the device.
        samples: how many samples each of the losses is about.
        restored: how many of them an earlier process computed.

    Examples:
        >>> net = nn.Linear(1, 1)
        >>> watch = FiniteWatch(net, model="network")
        >>> watch.add(torch.tensor(0.5))
        >>> watch.check(1, None, rate=0.1)
        >>> watch.add(torch.tensor(torch.nan))
        >>> try:
        ...     watch.check(2, lambda step: (torch.tensor([4, 7]), [torch.zeros(2, 3)]), rate=0.1)
        ... except TrainingDivergedError as error:
        ...     print(error)
        Training stopped at step 2: the loss is nan. Its minibatch (samples 4, 7 of the data) is finite, so the
        network diverged: lower learning_rate (it was 0.1), or set max_grad_norm. The network in memory is spoilt.
    """

    def __init__(
        self,
        *modules: nn.Module,
        losses_per_step: int = 1,
        data: str = "data",
        model: str = "model",
        learning_rate: str = "learning_rate",
        can_clip: bool = True,
    ) -> None:
        self.modules = modules
        self.losses_per_step = losses_per_step
        self.data = data
        self.model = model
        self.learning_rate = learning_rate
        self.can_clip = can_clip
        self.losses: list[Tensor] = []
        self.samples: list[int] = []
        self.restored = 0
        self._earlier: tuple[list[Tensor], list[int]] = [], []
        self._checked = 0

    def add(self, *losses: Tensor, samples: int = 1) -> None:
        """Store a step's losses (detached, 0-dim), each the mean over `samples`, without waiting for the device."""
        self.losses += losses
        self.samples += [samples] * len(losses)

    def mean_loss(self) -> Tensor:
        """The mean loss since `clear`, 0-dim, on the device: over samples, since the last minibatch may be short.

        Of a run's last interval, which may be short, it is the mean over as many steps as the interval before had:
        that of a few steps would jump.
        """
        losses = torch.stack(last_interval(self._earlier[0], self.losses))
        counts = last_interval(self._earlier[1], self.samples)
        if len(set(counts)) == 1:
            return losses.mean()
        return losses @ (torch.tensor(counts, dtype=torch.float64) / sum(counts)).to(losses)

    def clear(self) -> None:
        """Begin a new interval."""
        self._earlier, self.losses, self.samples = (self.losses, self.samples), [], []
        self.restored = self._checked = 0

    def restart(self) -> None:
        """Forget all losses."""
        self.clear()
        self.clear()

    def tensors(self) -> dict[str, Tensor]:
        """The losses of this interval and the one before, and of how many samples, for a checkpoint.

        Empty where there are none.
        """
        parts = {"losses": self.losses, "earlier": self._earlier[0]}
        counts = {"losses_samples": self.samples, "earlier_samples": self._earlier[1]}
        found = {name: torch.stack(losses) for name, losses in parts.items() if losses}
        return found | {name: torch.tensor(each, dtype=torch.float64) for name, each in counts.items() if each}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue with the losses of `tensors`, which had been checked; without numbers of samples they weigh alike.

        Raises:
            ValueError: these are no losses.
        """
        if any(part.ndim != 1 or not part.is_floating_point() for part in tensors.values()):
            raise ValueError("the losses of the last steps are no vectors of numbers")
        device = next((part.device for module in self.modules for part in module.parameters()), None)
        pairs = []
        for name in ("earlier", "losses"):
            losses = tensors.get(name, torch.zeros(0))
            counts = tensors.get(f"{name}_samples", torch.ones(len(losses)))
            if len(counts) != len(losses) or not bool(((counts >= 1) & counts.isfinite()).all()):
                raise ValueError("the numbers of samples of the last steps' losses are none")
            pairs.append((list(losses.to(device).unbind()), [int(count) for count in counts.tolist()]))
        self._earlier, (self.losses, self.samples) = pairs
        self.restored = self._checked = len(self.losses)

    def check(
        self, step: int, minibatch_of: MinibatchOf | None, *, rate: float, checkpoint_folder: Path | None = None
    ) -> None:
        """Wait for the device and raise unless all losses since the last check and all parameters are finite.

        Args:
            step: how many steps are done.
            minibatch_of: called only if something is not finite; None if minibatches cannot be reproduced.
            rate: the current learning rate.
            checkpoint_folder: where the last good checkpoint is, or None.

        Raises:
            TrainingDivergedError: one of them is not finite; the error names the first such step.
        """
        fresh = self.losses[self._checked :]
        parameters = [parameter.isfinite().all() for module in self.modules for parameter in module.parameters()]
        last = torch.stack(parameters).all().unsqueeze(0)
        flags = (torch.cat((torch.stack(fresh).isfinite(), last)) if fresh else last).tolist()
        if all(flags):
            self._checked = len(self.losses)
            return
        steps = len(fresh) // self.losses_per_step
        place = min(flags.index(False) // self.losses_per_step, max(steps - 1, 0))
        bad = min(flags.index(False), max(len(fresh) - 1, 0))
        spoilt = step - steps + place + 1
        samples, values = (None, ()) if minibatch_of is None else minibatch_of(spoilt)
        raise _divergence_error(
            spoilt,
            float(fresh[bad]) if fresh else 0.0,
            samples,
            values,
            learning_rate=rate,
            checkpoint_folder=checkpoint_folder,
            data=self.data,
            model=self.model,
            argument=self.learning_rate,
            can_clip=self.can_clip,
        )


def _divergence_error(
    step: int,
    loss: float,
    samples: Tensor | None,
    values: Sequence[Tensor],
    *,
    learning_rate: float,
    checkpoint_folder: Path | None,
    data: str,
    model: str,
    argument: str,
    can_clip: bool,
) -> TrainingDivergedError:
    """The error of a step with the minibatch `samples` (None: cannot be reproduced) and its `values`, `[B, ...]`."""
    lower = f"lower {argument} (it was {learning_rate:g}){', or set max_grad_norm' if can_clip else ''}."
    seen = torch.zeros(0, dtype=torch.int64) if samples is None else samples.cpu()
    if samples is None:
        cause = f"Its minibatch was drawn: either that was not finite, or the {model} diverged: {lower}"
    else:
        bad = torch.zeros(len(seen), dtype=torch.bool)
        for value in values:
            if value.is_floating_point():
                bad |= ~value.isfinite().reshape(len(seen), -1).all(-1).cpu()
        seen = seen[bad] if bad.any() else seen
        listed = ", ".join(map(str, seen[:SHOWN_SAMPLES].tolist()))
        listed += f", ... ({len(seen)} samples)" if len(seen) > SHOWN_SAMPLES else ""
        cause = (
            f"Samples {listed} of the {data} hold NaN or infinity: they were changed after they were checked."
            if bad.any()
            else f"Its minibatch (samples {listed} of the {data}) is finite, so the {model} diverged: {lower}"
        )
    stays = f"The {model} in memory is spoilt"
    if checkpoint_folder is not None:
        stays += f"; the last good checkpoint stays in {str(checkpoint_folder)!r}"
    what = f"the loss is {loss}" if not math.isfinite(loss) else "the parameters are not finite after it"
    return TrainingDivergedError(
        f"Training stopped at step {step}: {what}. {cause} {stays}.", step, seen.numpy().astype(np.int64)
    )


# ---- what is saved, and what environments give


def check_finite_model(
    step: int, *modules: nn.Module, model: str = "policy", checkpoint_folder: Path | None = None
) -> None:
    """Raise TrainingDivergedError if a parameter is not finite: such a model must not replace a good one on the disk.

    Args:
        step: how many steps are done.
        modules: the modules to be saved.
        model: the word for them in messages.
        checkpoint_folder: where the last good checkpoint is, or None.

    Examples:
        >>> check_finite_model(1, nn.Linear(1, 1))
    """
    name = _bad_parameter(*modules)
    if name is not None:
        raise _spoilt_error(step, f"the {model}'s {name} is not finite", model, checkpoint_folder)


def refuse_spoilt(model: str, module: nn.Module, path: Path) -> None:
    """Raise TrainingDivergedError if a parameter of a module is not finite, before it is written to a file.

    Args:
        model: the word for the module in the message.
        module: to be written.
        path: the file.

    Examples:
        >>> refuse_spoilt("policy", nn.Linear(1, 1), Path("agent.zip"))
    """
    name = _bad_parameter(module)
    if name is not None:
        raise TrainingDivergedError(
            f"the {model}'s {name} is not finite, so nothing was written to {str(path)!r}: the {model} has diverged. "
            "Go back to the last good file or checkpoint.",
            0,
            np.zeros(0, np.int64),
        )


def _bad_parameter(*modules: nn.Module) -> str | None:
    named = [(name, value) for module in modules for name, value in module.named_parameters()]
    flags = torch.stack([value.detach().isfinite().all().cpu() for _, value in named]).tolist() if named else []
    return None if all(flags) else named[flags.index(False)][0]


def check_no_nan(step: int, tensors: Mapping[str, Mapping[str, Tensor]], checkpoint_folder: Path) -> None:
    """Raise TrainingDivergedError if a tensor of a checkpoint holds NaN. (Buffers may hold infinity: masks do.)

    Args:
        step: of the checkpoint.
        tensors: group name to tensor name to tensor.
        checkpoint_folder: where the last good checkpoint is.

    Examples:
        >>> check_no_nan(1, {"net": {"w": torch.zeros(1)}}, Path("checkpoints"))
    """
    floating = [
        (f"{group}/{name}", value)
        for group, values in tensors.items()
        for name, value in values.items()
        if value.is_floating_point()
    ]
    flags = torch.stack([value.detach().isnan().any().cpu() for _, value in floating]).tolist() if floating else []
    if any(flags):
        raise _spoilt_error(step, f"{floating[flags.index(True)][0]} holds NaN", "model", checkpoint_folder)


def check_finite_step(
    step: int, rewards: Any, observations: Any, *, checkpoint_folder: Path | None = None, is_learned: bool = False
) -> None:
    """Raise TrainingDivergedError if an environment gave a reward or an observation that is not finite.

    Args:
        step: how many environment steps are done, this one included.
        rewards: of each environment, on the CPU; None: unknown.
        observations: an array with a row for each environment, or a dict or tuple of such.
        checkpoint_folder: where the last good checkpoint is, or None.
        is_learned: whether a reward network gave the rewards.

    Examples:
        >>> check_finite_step(1, np.zeros(2), np.zeros((2, 4)))
        >>> try:
        ...     check_finite_step(7, np.array([0.0, np.nan]), np.zeros((2, 4)))
        ... except TrainingDivergedError as error:
        ...     print(error)
        Training stopped at step 7: environment 1 gave the reward nan. Nothing has been learnt from it, so the model in
        memory is as before. Fix the environment's reward.
    """
    found = None if rewards is None else first_not_finite("reward", rewards)
    found = found or first_not_finite("observation", observations)
    if found is not None:
        name, env, bad = found
        what, cause = f"environment {env} gave an {name} that holds {bad}", f"environment's {name}"
        if name == "reward" and is_learned:
            what, cause = f"the reward network gave the reward {bad} in environment {env}", "reward network"
        elif name == "reward":
            what = f"environment {env} gave the reward {bad}"
        stays = "" if checkpoint_folder is None else f" The last good checkpoint stays in {str(checkpoint_folder)!r}."
        raise TrainingDivergedError(
            f"Training stopped at step {step}: {what}. Nothing has been learnt from it, so the model in memory is as "
            f"before. Fix the {cause}.{stays}",
            step,
            np.zeros(0, np.int64),
        )


def _spoilt_error(step: int, what: str, model: str, folder: Path | None) -> TrainingDivergedError:
    stays = "" if folder is None else f" The last good checkpoint stays in {str(folder)!r}."
    return TrainingDivergedError(
        f"Training stopped at step {step}: {what}, so nothing was saved. Either a reward or sample was not finite, or "
        f"the {model} diverged: lower learning_rate, or set max_grad_norm. The {model} in memory is spoilt.{stays}",
        step,
        np.zeros(0, np.int64),
    )
