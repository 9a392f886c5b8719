"""PPO and A2C whose policies keep exploring."""

from __future__ import annotations

from typing import ClassVar

from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import BasePolicy

from rlsmooth.agents.smoothed_policies import (
    SmoothedActorCriticCnnPolicy,
    SmoothedActorCriticPolicy,
    SmoothedMultiInputActorCriticPolicy,
)
from rlsmooth.agents.smoothed_training import SmoothedTraining

__all__ = ["SmoothedA2C", "SmoothedPPO"]

ALIASES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": SmoothedActorCriticPolicy,
    "CnnPolicy": SmoothedActorCriticCnnPolicy,
    "MultiInputPolicy": SmoothedMultiInputActorCriticPolicy,
}


class SmoothedPPO(SmoothedTraining, PPO):
    """PPO with KL to a reference in its loss, an entropy target and an exploration floor, each of them optional.

        loss = PPO's policy loss - ent_coef · H(pi) + alpha · KL(reference‖pi) + vf_coef · value loss     (nats)

    With all three off it equals `stable_baselines3.PPO` bit for bit. It is used as PPO is: callbacks, `predict`,
    `set_env`, `save` and `load` (which keep the entropy target's state and the reference policy) are the parent's.

    Tags under `train/`, before each update and on at most 2048 of the rollout's rows: `policy_entropy`,
    `entropy_frac`, `kl_uniform`, `kl_reference`, `entropy_dim<i>`, and `smoothing` and `exploration_floor`, which are
    in force then. `entropy_loss` is -H(pi), as the parent's, whatever else is on.

    Args:
        policy: as PPO's; the names stand for the smoothed policies. With everything off any actor-critic policy will
            do, else it must be a `SmoothedPolicy`.
        env: as PPO's.
        args: PPO's further arguments.
        smoothing: alpha, the coefficient of KL(reference‖pi): a number in [0, 1], `"lin_0.1"` (from 0.1 down to 0), a
            callable of the progress remaining, or a `Smoothing` with another reference than the uniform one over the
            legal actions (a Box: a broad Gaussian). `policy_kwargs=dict(reference=...)` can give
            the reference as well.
        target_entropy_frac: find alpha in [1e-6, 1e2] by feedback so that H / log n_legal of the acting policy, as a
            mean over rows with at least two legal actions, stays at or above this; in (0, 1], not for a Box.
            A number as `smoothing` is then the alpha to start from.
        target_entropy_nats: the same with H in nats; a Box's is differential and may be negative.
        exploration_floor: act from `(1 - floor) · pi + floor · reference`; a number in [0, 1], `"lin_0.1"`, or a
            callable of the progress remaining. It is fixed for a rollout and its updates.
        kwargs: PPO's further arguments by name.

    Raises:
        TypeError: an argument of another kind; a policy that is no `SmoothedPolicy` while something is on.
        ValueError: a number out of range, both targets, a target above the reference's entropy or together with a
            schedule, a fraction for a Box, a reference or floor in `policy_kwargs` that differs.

    Example:
        >>> model = SmoothedPPO("MlpPolicy", "CartPole-v1", smoothing=0.1, n_steps=64, seed=0, device="cpu")
        >>> model.learn(128).num_timesteps
        128
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = ALIASES


class SmoothedA2C(SmoothedTraining, A2C):
    """A2C with KL to a reference in its loss, an entropy target and an exploration floor, each of them optional.

        loss = A2C's policy loss - ent_coef · H(pi) + alpha · KL(reference‖pi) + vf_coef · value loss     (nats)

    As `SmoothedPPO`, with A2C's arguments. The policy is measured each 500 steps of the environment.

    Args:
        policy: see `SmoothedPPO`.
        env: as A2C's.
        args: A2C's further arguments.
        smoothing: see `SmoothedPPO`.
        target_entropy_frac: see `SmoothedPPO`.
        target_entropy_nats: see `SmoothedPPO`.
        exploration_floor: see `SmoothedPPO`.
        kwargs: A2C's further arguments by name.

    Raises:
        TypeError: see `SmoothedPPO`.
        ValueError: see `SmoothedPPO`.

    Example:
        >>> model = SmoothedA2C("MlpPolicy", "CartPole-v1", exploration_floor="lin_0.1", seed=0, device="cpu")
        >>> model.learn(100).policy.exploration_floor < 0.1
        True
    """

    MEASURE_EVERY = 500
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = ALIASES

    def _passes(self) -> tuple[int, int | None]:
        return 1, None
