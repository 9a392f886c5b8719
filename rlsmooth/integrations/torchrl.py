"""Loss modules for TorchRL: PPO with a KL to a reference, and behaviour cloning with smoothed targets.

Needs `pip install "rlsmooth[torchrl]"`. Both are used like TorchRL's own losses: with a TensorDict, in its trainers and
collectors. The policy's distribution must be one of logits: `Categorical`, `OneHotCategorical` or a masked form.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams, dispatch
from torch import Tensor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.common import LossModule

from rlsmooth.agents.smoothed.algorithms import training_smoothing
from rlsmooth.integrations.discrete import constant_alpha, kl_to_reference
from rlsmooth.losses import cross_entropy, entropy
from rlsmooth.losses.arguments import reduce
from rlsmooth.targets import Smoothing, as_smoothing


class SmoothedClipPPOLoss(ClipPPOLoss):  # type: ignore[misc, unused-ignore]
    """TorchRL's clipped PPO loss and `alpha · KL(reference‖pi)`, in nats, as `loss_kl_reference_to_policy`.

    With alpha 0 it is TorchRL's, bit for bit. Its entropy bonus stays as it is: set `entropy_bonus=False` to have the
    KL alone.

    Args:
        actor_network: as TorchRL's, with a distribution of logits.
        critic_network: as TorchRL's.
        smoothing: alpha, or a `Smoothing` with a reference; `loss.alpha = 0.05` sets another one between two updates.
        arguments: those of `ClipPPOLoss`.

    Raises:
        TypeError: `smoothing` is no number and no `Smoothing`; in the forward pass, a distribution without logits.
        ValueError: alpha is below 0, or a schedule, of which a loss knows no progress.
    """

    def __init__(
        self,
        actor_network: Any,
        critic_network: Any = None,
        *,
        smoothing: float | Smoothing = 0.1,
        **arguments: Any,
    ) -> None:
        self.recipe = training_smoothing(smoothing)
        self.alpha = constant_alpha(self.recipe)  # before the parent's, which asks for `out_keys`
        super().__init__(actor_network, critic_network, **arguments)

    @dispatch  # type: ignore[untyped-decorator, unused-ignore]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """TorchRL's losses, and `loss_kl_reference_to_policy` and `kl_reference_to_policy` unless alpha is 0."""
        losses = super().forward(tensordict)
        if self.alpha == 0:
            return losses
        with self.actor_network_params.to_module(self.actor_network):
            logits, mask = logits_and_mask(self.actor_network.get_dist(tensordict.copy()))
        kl = reduce(kl_to_reference(logits, self.recipe, mask), None, self.reduction)
        kl = kl.reshape(losses["loss_objective"].shape)  # a transition's, where nothing is reduced
        losses.set("loss_kl_reference_to_policy", self.alpha * kl)
        losses.set("kl_reference_to_policy", kl.detach())
        return losses

    @property
    def out_keys(self) -> list[Any]:
        """TorchRL's, and the two of the KL unless alpha is 0."""
        return [*super().out_keys, *(["loss_kl_reference_to_policy", "kl_reference_to_policy"] if self.alpha else [])]

    @out_keys.setter
    def out_keys(self, values: list[Any]) -> None:
        ClipPPOLoss.out_keys.fset(self, values)


class SmoothedBCLoss(LossModule):  # type: ignore[misc, unused-ignore]
    """Behaviour cloning: `CE(smoothed target, pi)`, in nats, as `loss_bc`; the policy's entropy as `entropy`.

    Args:
        actor_network: a `ProbabilisticTensorDictSequential` or actor, whose distribution has logits.
        smoothing: alpha, or a `Smoothing`, of a constant alpha.
        action_key: of the demonstrated actions: labels `[...]`, or one-hot `[..., K]`.
        weight_key: of weights of the transitions, or None.

    Raises:
        TypeError: in the forward pass, a distribution without logits.
        ValueError: alpha is a schedule.
    """

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: Any,
        *,
        smoothing: float | Smoothing = 0.1,
        action_key: str = "action",
        weight_key: str | None = None,
    ) -> None:
        super().__init__()
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        self.recipe = as_smoothing(smoothing)
        constant_alpha(self.recipe)
        self.action_key, self.weight_key = action_key, weight_key
        self.in_keys = [*actor_network.in_keys, action_key, *([] if weight_key is None else [weight_key])]
        self.out_keys = ["loss_bc", "entropy"]

    @dispatch  # type: ignore[untyped-decorator, unused-ignore]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss and the entropy, as means over the TensorDict's transitions."""
        with self.actor_network_params.to_module(self.actor_network):
            logits, mask = logits_and_mask(self.actor_network.get_dist(tensordict.copy()))
        labels = tensordict[self.action_key]
        if labels.ndim == logits.ndim and labels.shape[-1] == logits.shape[-1]:  # one-hot
            labels = labels.argmax(-1)
        weight = None if self.weight_key is None else tensordict[self.weight_key].reshape(labels.shape)
        target = self.recipe(labels.long().reshape(logits.shape[:-1]), logits.shape[-1], mask)
        loss = cross_entropy(logits, target, mask=mask, weight=weight)
        return TensorDict({"loss_bc": loss, "entropy": entropy(logits.detach(), mask, "mean")}, [])


def logits_and_mask(distribution: torch.distributions.Distribution) -> tuple[Tensor, Tensor | None]:
    """The logits of a distribution of classes, and its mask if it has one.

    Raises:
        TypeError: it is another distribution.
    """
    logits = getattr(distribution, "logits", None)
    if logits is None:
        raise TypeError(
            f"the policy's distribution is {type(distribution).__name__}, which has no logits: use Categorical, "
            "OneHotCategorical, or their masked forms."
        )
    return logits, getattr(distribution, "mask", None)
