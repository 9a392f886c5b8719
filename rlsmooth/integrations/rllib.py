"""RLlib's PPO, BC and MARWIL with smoothed targets, on its new API stack: what changes is the loss of the learner.

    config = SmoothedPPOConfig().environment("CartPole-v1").smoothing(0.1)
    algorithm = config.build_algo()

Needs `pip install "rlsmooth[rllib]"`. (The extra does not ask for `ray[rllib]`, which pins another Gymnasium.) The
action space must be Discrete or MultiDiscrete. Illegal actions are left out where observations are a Dict with
`"action_mask"`, as RLlib's examples have it, and a `LOSS_MASK` in the batch leaves out transitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from gymnasium import spaces
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.marwil.torch.marwil_torch_learner import MARWILTorchLearner
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.integrations.discrete import constant_alpha, kl_to_reference
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Smoothing

SETTINGS = "rlsmooth"
"""The name of our settings in `learner_config_dict`."""


class SmoothedPPOTorchLearner(PPOTorchLearner):  # type: ignore[misc]
    """PPO's loss and `alpha · KL(reference‖pi)`, in nats; with alpha 0 RLlib's, bit for bit."""

    def build(self) -> None:
        """Build RLlib's learner, and the schedule of alpha."""
        super().build()
        alpha, self.recipe = self.config.learner_config_dict.get(SETTINGS, (0.0, Smoothing(0.0)))
        self.alpha = Scheduler(fixed_value_or_schedule=alpha, framework="torch", device=self._device)

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: Any) -> Tensor:
        """RLlib's loss, and the mean KL over the transitions that count."""
        loss: Tensor = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        alpha = float(self.alpha.get_current_value())
        if alpha == 0:
            return loss
        module = self.module[module_id].unwrapped()
        mask = legal_actions(batch)
        parts = components(fwd_out[Columns.ACTION_DIST_INPUTS], module.action_space)
        masks = masks_of(mask, parts, module.action_space)
        pairs = zip(parts, masks, strict=True)
        rows = torch.stack([kl_to_reference(part, self.recipe, legal) for part, legal in pairs]).sum(0)
        counts = batch.get(Columns.LOSS_MASK)
        kl = rows.mean() if counts is None else rows[counts].sum() / counts.sum()
        self.metrics.log_value((module_id, "kl_reference_to_policy"), kl.detach(), window=1)
        return loss + alpha * kl

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Move alpha along its schedule."""
        super().after_gradient_based_update(timesteps=timesteps)
        self.alpha.update(timestep=timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0))


class SmoothedMARWILTorchLearner(MARWILTorchLearner):  # type: ignore[misc]
    """MARWIL's loss, and BC's, with `-CE(smoothed target, pi)` in the place of the action's log-probability.

    Advantages, their weights, the value loss and burn-in are RLlib's; with alpha 0 all is, bit for bit.
    """

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: Any) -> Tensor:
        """RLlib's loss with smoothed targets."""
        alpha, recipe = self.config.learner_config_dict.get(SETTINGS, (0.0, Smoothing(0.0)))
        module = self.module[module_id].unwrapped()
        is_off = alpha == 0 and recipe.alpha is not None
        with smoothed_distribution(module, recipe, legal_actions(batch)) if not is_off else nullcontext():
            loss: Tensor = super().compute_loss_for_module(
                module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
            )
        return loss


class _WithSmoothing:
    """The method that all configurations share."""

    learner_config_dict: dict[str, Any]
    ALLOWS_SCHEDULE = False

    def smoothing(self, smoothing: float | Smoothing | Sequence[Sequence[float]] = 0.1, reference: Any = None) -> Self:
        """Set alpha and the reference.

        Args:
            smoothing: alpha; a `Smoothing`; for PPO also RLlib's schedule `[[0, 0.1], [100_000, 0.0]]`, of environment
                steps.
            reference: what `Smoothing(reference=)` takes; None: uniform over the legal actions.

        Raises:
            ValueError: alpha is below 0; a schedule where there is none of its kind; a reference given twice.
        """
        if isinstance(smoothing, Smoothing):
            if reference is not None:
                raise ValueError("reference is given beside a Smoothing, which has its own: give one of them.")
            alpha: Any = constant_alpha(smoothing)
            recipe = smoothing
        elif isinstance(smoothing, Sequence):
            if not self.ALLOWS_SCHEDULE:
                raise ValueError(f"smoothing={smoothing!r}: cloning counts no environment steps, so give a number.")
            alpha = [list(point) for point in smoothing]
            for _, value in alpha:
                check_in_range("smoothing", value, 0.0)
            recipe = Smoothing(1.0, "uniform" if reference is None else reference)
        else:
            alpha = check_in_range("smoothing", smoothing, 0.0)
            most = alpha if not self.ALLOWS_SCHEDULE else 1.0
            recipe = Smoothing(most, "uniform" if reference is None else reference)
        self.learner_config_dict = {**self.learner_config_dict, SETTINGS: (alpha, recipe)}
        return self


class SmoothedPPOConfig(_WithSmoothing, PPOConfig):  # type: ignore[misc]
    """RLlib's `PPOConfig` with `smoothing`."""

    ALLOWS_SCHEDULE = True

    def get_default_learner_class(self) -> type[SmoothedPPOTorchLearner]:
        """Our learner."""
        return SmoothedPPOTorchLearner


class SmoothedMARWILConfig(_WithSmoothing, MARWILConfig):  # type: ignore[misc]
    """RLlib's `MARWILConfig` with `smoothing`."""

    def get_default_learner_class(self) -> type[SmoothedMARWILTorchLearner]:
        """Our learner."""
        return SmoothedMARWILTorchLearner


class SmoothedBCConfig(_WithSmoothing, BCConfig):  # type: ignore[misc]
    """RLlib's `BCConfig` with `smoothing`."""

    def get_default_learner_class(self) -> type[SmoothedMARWILTorchLearner]:
        """Our learner."""
        return SmoothedMARWILTorchLearner


def legal_actions(batch: dict[str, Any]) -> Tensor | None:
    """The masks of a batch whose observations are a Dict with `"action_mask"`: bool, True = legal; or None."""
    observations = batch[Columns.OBS]
    if isinstance(observations, dict) and "action_mask" in observations:
        return observations["action_mask"].bool()  # type: ignore[no-any-return]
    return None


def components(logits: Tensor, space: spaces.Space[Any]) -> list[Tensor]:
    """The logits of each component of an action, or the masks.

    Raises:
        TypeError: the space is neither Discrete nor MultiDiscrete.
    """
    if isinstance(space, spaces.Discrete):
        return [logits]
    if isinstance(space, spaces.MultiDiscrete):
        return list(torch.split(logits, [int(size) for size in space.nvec.ravel()], -1))
    raise TypeError(f"the action space {space} is neither Discrete nor MultiDiscrete, which smoothing needs here.")


def masks_of(mask: Tensor | None, parts: Sequence[Tensor], space: spaces.Space[Any]) -> Sequence[Tensor | None]:
    """The mask of each component, or None for each."""
    return [None] * len(parts) if mask is None else components(mask, space)


@contextmanager
def smoothed_distribution(module: Any, recipe: Smoothing, mask: Tensor | None) -> Iterator[None]:
    """Inside the `with` block, the log-probability of an action in training is `-CE(smoothed action, pi)`."""
    parent, space = module.get_train_action_dist_cls(), module.action_space

    class Smoothed(parent):  # type: ignore[misc, valid-type]
        """RLlib's distribution, which keeps the logits that it is made of."""

        @classmethod
        def from_logits(cls, logits: Tensor, **arguments: Any) -> Any:
            """RLlib's distribution of these logits."""
            made = parent.from_logits(logits, **arguments)
            parts = components(logits, space)
            masks = masks_of(mask, parts, space)
            made.logp = lambda actions: -_rows(parts, actions, recipe, masks)
            return made

    module.get_train_action_dist_cls = lambda: Smoothed
    try:
        yield
    finally:
        del module.get_train_action_dist_cls


def _rows(parts: list[Tensor], actions: Tensor, recipe: Smoothing, masks: Sequence[Tensor | None]) -> Tensor:
    """The smoothed cross-entropy of each transition, summed over components."""
    columns = [actions.reshape(parts[0].shape[:-1])] if len(parts) == 1 else list(actions.unbind(-1))
    found = []
    for part, labels, mask in zip(parts, columns, masks, strict=True):
        target = recipe(labels.long(), part.shape[-1], mask)
        found.append(cross_entropy(part, target, mask=mask, reduction="none"))
    return torch.stack(found).sum(0)
