"""What agents share that act and clone in turns: `BCO` and `DAgger`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import configure_logger

from rlsmooth.agents.acting import ActingModel
from rlsmooth.agents.bc import BC
from rlsmooth.agents.bc_evaluation import play
from rlsmooth.agents.bc_run import Callbacks, prepare_callback
from rlsmooth.agents.bc_setup import is_maskable
from rlsmooth.agents.warm_start import copy_actor
from rlsmooth.data import Demonstrations

__all__ = ["ACTING", "CLONE_SHOWN", "LEARNING", "RoundsModel"]

ACTING, LEARNING = 0, 1
"""What a round's seeds are for."""
CLONE_SHOWN = (
    "cross_entropy",
    "nll_hard",
    "accuracy",
    "ece",
    "policy_entropy",
    "entropy_frac",
    "kl_uniform",
    "kl_reference",
    "smoothing",
)
"""What a round's log line shows of the clone's own."""


class RoundsModel(ActingModel):
    """An agent whose policy acts in each round and is then trained by a `BC` of its own. Subclasses set the fields.

    Attributes:
        bc: the clone, which has the policy.
        round: how many rounds are done.
        history: the numbers of each round's log line, without the tag's prefix.
        seed: all randomness follows from it and the number of the round.
        n_eval_episodes: episodes of an evaluation, so many deterministic and so many sampled.
        missing: arguments that a file could not keep and that must be given again.
    """

    PREFIX: ClassVar[str]
    bc: BC
    round: int
    history: list[dict[str, float]]
    seed: int
    n_eval_episodes: int
    tensorboard_log: str | None
    missing: tuple[str, ...]
    _clone_arguments: dict[str, Any]
    _has_logger: bool
    _kept_in: Path | None = None  # the folder whose checkpoints are this run's

    def evaluate(self) -> dict[str, float]:
        """Play `n_eval_episodes` deterministically and as many sampled, in `eval_env` or else the environment.

        Returns:
            `mean_reward`, `std_reward`, `mean_ep_length`, and the same with `_sampled`.

        Raises:
            ValueError: there is no environment.
        """
        env = self.env if self.eval_env is None else self.eval_env
        if env is None:
            raise ValueError("there is no environment to evaluate in: give eval_env.")
        use_masks = is_maskable(self.policy) and env.has_attr("action_masks")
        return play(self, env, n_episodes=self.n_eval_episodes, seed=self.seed, use_masks=use_masks)

    def warm_start(self, model: BaseAlgorithm) -> None:
        """Copy the actor into an SB3 model; see `BC.warm_start`.

        Raises:
            TypeError: `model` is no SB3 algorithm.
            ValueError: spaces or architectures differ.
        """
        copy_actor(self.policy, model)

    def _check_can_learn(self) -> None:
        """Raise ValueError where an environment or a callable is missing."""
        if self.env is None:
            name = type(self).__name__
            raise ValueError(
                f"there is no environment to act in: give env to {name}(...) or {name}.load, or call set_env."
            )
        if self.missing:
            raise ValueError(
                f"{', '.join(self.missing)} was a callable, which no file can hold: pass it again, for example "
                f"custom_objects={{{self.missing[0]!r}: ...}}."
            )

    def _prepare_logger(self, tb_log_name: str, *, goes_on: bool) -> None:
        """One for all calls of `learn`, unless there is one of the caller's."""
        if not self._has_logger and not self._has_custom_logger:
            self._has_logger = True
            self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, not goes_on)

    def _prepare_callback(self, callback: Callbacks) -> BaseCallback | None:
        # What callbacks need of a model, this one has.
        return prepare_callback(cast("BC", self), callback, progress_bar=False)

    def _new_clone(self, demonstrations: Demonstrations) -> BC:
        """A clone of this round with the policy as it is, its optimiser included."""
        return BC(
            self.policy,
            (demonstrations.observation_space, self.action_space),
            demonstrations,
            seed=self._seed_of(LEARNING),
            device=self.device,
            **self._clone_arguments,
        )

    def _seed_of(self, purpose: int) -> int:
        """The same for a round of the same number, whether or not the run was cut off before it."""
        return int(np.random.SeedSequence([self.seed, self.round, purpose]).generate_state(1)[0] >> 1)

    def _log(self, line: Mapping[str, float]) -> None:
        self.history.append(dict(line))
        for name, value in line.items():
            self.logger.record(f"{self.PREFIX}/{name}", value)
        self.logger.dump(self.num_timesteps)
