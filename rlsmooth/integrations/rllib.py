"""RLlib's PPO, BC and MARWIL with smoothed targets, on its new API stack: what changes is the loss of the learner.

    config = SmoothedPPOConfig().environment("CartPole-v1").smoothing(0.1)
    algorithm = config.build_algo()

Needs `pip install "rlsmooth[rllib]"`. (The extra does not ask for `ray[rllib]`, which pins another Gymnasium.) The
action space must be Discrete or MultiDiscrete. Illegal actions are left out where observations are a Dict with
`"action_mask"`, as RLlib's `ActionMaskingTorchRLModule` has it, and a `LOSS_MASK` leaves out transitions.
"""

from __future__ import annotations

import dataclasses
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
from ray.tune.search.sample import Domain
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.integrations.discrete import constant_alpha, kl_to_reference
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Smoothing

SETTINGS = "rlsmooth"
"""The name of our settings in `learner_config_dict`."""
OFF = {"alpha": 0.0, "recipe": Smoothing(0.0)}
PARQUET_SCHEMA = {
    Columns.EPS_ID: "episode",
    Columns.T: "step",
    Columns.OBS: "observation",
    Columns.NEXT_OBS: "next_observation",
    Columns.ACTIONS: "action",
    Columns.REWARDS: "reward",
    Columns.TERMINATEDS: "terminated",
    Columns.TRUNCATEDS: "truncated",
}
"""`offline_data(input_read_schema=)` for what `Demonstrations.to_parquet` writes."""


class SmoothedPPOTorchLearner(PPOTorchLearner):  # type: ignore[misc]
    """PPO's loss and `alpha · KL(reference‖pi)`, in nats; with alpha 0 RLlib's, bit for bit."""

    def build(self) -> None:
        """Build RLlib's learner, and the schedule of alpha."""
        super().build()
        settings = self.config.learner_config_dict.get(SETTINGS, OFF)
        alpha = settings["alpha"]
        self.recipe = settings["recipe"]
        if not isinstance(alpha, Sequence):
            alpha = check_in_range("smoothing", alpha, 0.0)
        self.schedule = Scheduler(fixed_value_or_schedule=alpha)
        self.alpha = self.schedule.update(0)

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: Any) -> Tensor:
        """RLlib's loss, and the mean KL over the transitions that count."""
        loss: Tensor = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        if self.alpha == 0:
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
        smoothed: Tensor = loss + self.alpha * kl
        return smoothed

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Set alpha to what the schedule has for the steps sampled so far: a restored run needs no more than those."""
        super().before_gradient_based_update(timesteps=timesteps)
        self.alpha = self.schedule.update(timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0))


class SmoothedMARWILTorchLearner(MARWILTorchLearner):  # type: ignore[misc]
    """MARWIL's loss, and BC's, with `-CE(smoothed target, pi)` in the place of the action's log-probability.

    Advantages, their weights, the value loss and burn-in are RLlib's; with alpha 0 all is, bit for bit.
    """

    def build(self) -> None:
        """Build RLlib's learner, and the recipe of its targets."""
        super().build()
        settings = self.config.learner_config_dict.get(SETTINGS, OFF)
        self.recipe = with_alpha(settings["recipe"], settings["alpha"])

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: Any) -> Tensor:
        """RLlib's loss with smoothed targets."""
        module, recipe = self.module[module_id].unwrapped(), self.recipe
        with nullcontext() if recipe.alpha == 0 else smoothed_distribution(module, recipe, legal_actions(batch)):
            loss: Tensor = super().compute_loss_for_module(
                module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
            )
        return loss


class _WithSmoothing:
    """The method that all configurations share."""

    learner_config_dict: dict[str, Any]
    learner_class: Any
    learners: Any
    ALLOWS_SCHEDULE = False

    def smoothing(
        self, smoothing: float | Smoothing | Sequence[Sequence[float]] | Any = 0.1, reference: Any = None
    ) -> Self:
        """Set alpha and the reference.

        Args:
            smoothing: alpha; a `Smoothing`; for PPO also RLlib's schedule `[[0, 0.1], [100_000, 0.0]]`, of environment
                steps; or what Ray Tune draws alpha from: `tune.grid_search([0.0, 0.1])`, `tune.uniform(0.0, 0.2)`.
            reference: what `Smoothing(reference=)` takes; None: uniform over the legal actions.

        Raises:
            TypeError: `smoothing` is none of these.
            ValueError: alpha is below 0; a schedule is wrong, or for cloning; a reference is given twice.
        """
        recipe = Smoothing(1.0, "uniform" if reference is None else reference)
        alpha: Any = smoothing
        if isinstance(smoothing, Smoothing):
            if reference is not None:
                raise ValueError("reference is given beside a Smoothing, which has its own: give one of them.")
            alpha, recipe = constant_alpha(smoothing), smoothing
        elif isinstance(smoothing, Sequence) and not isinstance(smoothing, str):
            if not self.ALLOWS_SCHEDULE:
                raise ValueError(f"smoothing={smoothing!r}: cloning counts no environment steps, so give a number.")
            alpha = [list(point) for point in smoothing]
            Scheduler.validate(fixed_value_or_schedule=alpha, setting_name="smoothing", description="alpha")
            for _, value in alpha:
                check_in_range("smoothing", value, 0.0)
        elif not (isinstance(smoothing, Domain) or (isinstance(smoothing, dict) and "grid_search" in smoothing)):
            alpha = check_in_range("smoothing", smoothing, 0.0)
            if not self.ALLOWS_SCHEDULE:
                with_alpha(recipe, alpha)
        self.learner_config_dict = {**self.learner_config_dict, SETTINGS: {"alpha": alpha, "recipe": recipe}}
        # Said explicitly, since Ray Tune makes a configuration of RLlib's own class, which has another default.
        self.learners(learner_class=self.learner_class)
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


def with_alpha(recipe: Smoothing, alpha: float) -> Smoothing:
    """The recipe with another alpha, unless it is the reference's whole distribution.

    Raises:
        ValueError: `Smoothing` can't have this alpha.
    """
    return recipe if recipe.alpha is None else dataclasses.replace(recipe, alpha=alpha)


def legal_actions(batch: dict[str, Any]) -> Tensor | None:
    """The masks of a batch, bool, True = legal: of its observations, or where RLlib's masking modules put them.

    None if it has none. In a transition that `LOSS_MASK` leaves out, all is legal: it may be of zeros alone.
    """
    observations, counts = batch[Columns.OBS], batch.get(Columns.LOSS_MASK)
    found = observations.get("action_mask") if isinstance(observations, dict) else None
    found = batch.get("action_mask") if found is None else found
    if found is None:
        return None
    legal: Tensor = found.bool()
    return legal if counts is None else legal | ~counts.bool().unsqueeze(-1)


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
