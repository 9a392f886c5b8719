"""Give the actor that one agent has learnt to another one, such as an SB3 algorithm that goes on from there."""

from __future__ import annotations

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from rlsmooth.agents.spaces import check_same_spaces

__all__ = ["copy_actor"]

CRITIC = ("value_net.", "mlp_extractor.value_net.", "vf_features_extractor.")


def copy_actor(policy: BasePolicy, model: BaseAlgorithm) -> None:
    """Copy all of `policy` but its critic, which cloning does not train, into `model.policy`.

    Args:
        policy: the source.
        model: PPO, A2C, sb3-contrib's MaskablePPO, ...; its critic and its optimiser stay as they are.

    Raises:
        TypeError: `model` has no policy.
        ValueError: spaces or architectures differ; the message names what does.
    """
    if not isinstance(model, BaseAlgorithm):
        raise TypeError(f"model is a {type(model).__name__}: give an algorithm of Stable-Baselines3, such as PPO.")
    check_same_spaces(
        "model", (model.observation_space, model.action_space), (policy.observation_space, policy.action_space)
    )
    ours, theirs = _actor(policy), _actor(model.policy)
    problems = [f"it lacks {name}" for name in ours if name not in theirs]
    problems += [f"it has {name}, which the agent lacks" for name in theirs if name not in ours]
    problems += [
        f"its {name} has shape {tuple(theirs[name].shape)}, the agent's {tuple(ours[name].shape)}"
        for name in ours
        if name in theirs and theirs[name].shape != ours[name].shape
    ]
    if problems:
        raise ValueError(
            f"model's policy has another architecture: {'; '.join(problems[:4])}. "
            "Build it with the policy class and policy_kwargs of the agent."
        )
    # The one difference that no parameter shows, and the easiest to make.
    mine, its = (getattr(one, "activation_fn", None) for one in (policy, model.policy))
    if mine is not its:
        raise ValueError(f"model's policy has activation_fn={its}, the agent's {mine}: build it with the agent's.")
    model.policy.load_state_dict({**model.policy.state_dict(), **ours})


def _actor(policy: BasePolicy) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith(CRITIC)}
