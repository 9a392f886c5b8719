"""The callback that lets a discriminator learn between a generator's rollouts, and its state in exact checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import safe_mean

from rlsmooth.agents.adversarial_state import run_state, set_run_state
from rlsmooth.agents.learned_reward import RecordingRewardVecEnv
from rlsmooth.agents.relabelling import relabel

if TYPE_CHECKING:
    from rlsmooth.agents.adversarial import AdversarialImitation

__all__ = ["Rounds"]

GENERATOR_TAGS = ("train/", "rollout/")
STACKLEVEL = 2


class Rounds(BaseCallback):
    """Ends a round when a rollout starts, as soon as the generator has made enough steps since the last one.

    Args:
        trainer: whose rounds these are.
        wrapper: the environment in which the generator acts, for the time of one `learn`.
    """

    def __init__(self, trainer: AdversarialImitation, wrapper: RecordingRewardVecEnv) -> None:
        super().__init__()
        self.trainer = trainer
        self.wrapper = wrapper

    def exact_state(self) -> dict[str, Any]:
        """Everything of the trainer that is not the generator's; see `HasExactState`."""
        return {"run": run_state(self.trainer), "episodes": self.wrapper.episode_state()}

    def set_exact_state(self, state: dict[str, Any], *, episodes_go_on: bool) -> None:
        """Put back what `exact_state` gave.

        Raises:
            ValueError: it is another trainer's.
        """
        set_run_state(self.trainer, state["run"], Path("checkpoint"))
        if episodes_go_on:
            self.wrapper.set_episode_state(state["episodes"])

    def _on_training_start(self) -> None:
        generator = self.trainer.gen_algo
        buffer = generator.replay_buffer if isinstance(generator, OffPolicyAlgorithm) else None
        # Rows from before the trainer's first step: another reward's. Those of a resumed run are its own.
        if buffer is None or buffer.size() == 0 or self.trainer.generated.added:
            return
        assert isinstance(generator, OffPolicyAlgorithm)
        if self.trainer.relabel_replay_buffer:
            relabel(generator, self.trainer.predict_reward)
            return
        warnings.warn(
            f"gen_algo's replay buffer holds {buffer.size()} rows with rewards that are not the learned ones: say "
            "relabel_replay_buffer=True, or empty it by replay_buffer.reset().",
            UserWarning,
            stacklevel=STACKLEVEL,
        )

    def _on_rollout_start(self) -> None:
        self._end_round()
        self.wrapper.begin_rollout()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self._end_round():
            self.logger.dump(self.num_timesteps)  # no rollout follows, after which the algorithm would write them

    def _end_round(self) -> bool:
        trainer = self.trainer
        if not trainer.is_round_over:
            return False
        self._log_generator()
        for name, value in trainer.train_discriminator().items():
            self.logger.record_mean(f"mean/disc/{name}", value)
        if trainer.relabel_replay_buffer and isinstance(trainer.gen_algo, OffPolicyAlgorithm):
            relabel(trainer.gen_algo, trainer.predict_reward)
        return True

    def _log_generator(self) -> None:
        """The generator's own tags again, as means over rounds, by imitation's names."""
        found = {
            name: float(value)
            for name, value in self.logger.name_to_value.items()
            if name.startswith(GENERATOR_TAGS) and isinstance(value, (int, float, np.number))
        }
        episodes = [episode for episode in self.model.ep_info_buffer or () if episode]
        if episodes:
            found["rollout/ep_rew_mean"] = safe_mean([episode["r"] for episode in episodes])
            found["rollout/ep_len_mean"] = safe_mean([episode["l"] for episode in episodes])
        returns = self.wrapper.finished_returns
        if returns:
            found["rollout/ep_rew_wrapped_mean"] = float(np.mean(returns))
            self.logger.record("rollout/ep_rew_wrapped_mean", found["rollout/ep_rew_wrapped_mean"])
            returns.clear()
        for name, value in found.items():
            self.logger.record_mean(f"mean/gen/{name}", value)
