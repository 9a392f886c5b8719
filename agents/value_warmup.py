"""Updates that fit the critic alone, so that the actor does not follow the advice of an untrained one."""

from __future__ import annotations

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import explained_variance
from torch import nn

from rlsmooth.agents.warm_start import CRITIC

__all__ = ["fit_critic"]


def fit_critic(model: OnPolicyAlgorithm, *, n_epochs: int, batch_size: int | None) -> None:
    """Fit the critic to the returns of the rollout in `model.rollout_buffer`; nothing else changes.

        loss = vf_coef · mean((returns - V)²)

    A features extractor that actor and critic share stays as it is, and so do statistics of normalisation layers.

    Args:
        model: PPO, A2C, MaskablePPO, with a full rollout.
        n_epochs: passes over the rollout.
        batch_size: rows of one gradient step; None: all.
    """
    policy = model.policy
    policy.set_training_mode(False)
    model._update_learning_rate(policy.optimizer)
    critic = [parameter for name, parameter in policy.named_parameters() if name.startswith(CRITIC)]
    losses = []
    for _ in range(n_epochs):
        for batch in model.rollout_buffer.get(batch_size):
            values = policy.predict_values(batch.observations).flatten()
            loss = nn.functional.mse_loss(values, batch.returns)
            policy.optimizer.zero_grad()
            (model.vf_coef * loss).backward(inputs=critic)  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(critic, model.max_grad_norm)
            policy.optimizer.step()  # parameters without a gradient, the actor's, are left alone
            losses.append(loss.detach())
    model._n_updates += n_epochs
    buffer = model.rollout_buffer
    model.logger.record("train/value_loss", float(torch.stack(losses).mean()))
    model.logger.record(
        "train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten())
    )
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
