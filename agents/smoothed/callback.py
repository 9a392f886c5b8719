"""A callback that records the entropy of any policy while it trains, and early signs of its collapse."""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from rlsmooth.agents.smoothed.algorithms import SmoothedTraining
from rlsmooth.agents.smoothed.measures import (
    PolicyMeasures,
    check_measurable,
    entropy_bound,
    measure_rollout,
    record_measures,
)
from rlsmooth.agents.spaces import box_reference
from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.losses import gaussian_entropy

NOT_FOR_TEXT = ("stdout", "log", "json", "csv")
COLLAPSED_STD = 0.05  # of the broad Gaussian's


class PolicyEntropyCallback(BaseCallback):
    """Record a policy's entropy, its KL divergences, and the fraction of states where it has all but stopped exploring.

    For unmodified PPO, A2C and DQN of Stable-Baselines3, for MaskablePPO, RecurrentPPO, TRPO and QR-DQN of sb3-contrib,
    and for ours. It measures when a rollout ends, at most 2048 of its states, and leaves the training as it is, bit
    for bit.

    Tags, under `prefix`:

    - `policy_entropy` (nats; a Box's is differential), `entropy_frac` (H / log n_legal over states with a choice; not
      for a Box), `entropy_frac_min` (of the lowest state), `entropy_below` (the fraction of states below the policy's
      guarantee, where it has one), `kl_uniform` (not for a Box), `kl_reference`, `entropy_dim<i>` for MultiDiscrete.
      Our own algorithms record these themselves, once an update; there the callback leaves them.
    - `entropy_collapse`: the fraction of states with an entropy below the threshold.
    - `policy_entropy_hist`: each state's entropy, as a histogram, for TensorBoard alone.

    DQN and QR-DQN don't draw their actions from a distribution: there the softmax of the action values is measured.

    Args:
        collapse_threshold: of H / log n_legal, in [0, 1]; states with one legal action don't count.
        collapse_nats: the threshold of a Box, in nats; None: the entropy of a Gaussian with a twentieth of the standard
            deviation of the broad Gaussian, which spans half the distance between the bounds.
        histogram: record the histogram.
        prefix: before the `/` of each tag.
        measure_freq: least number of environment steps between two measurements; a longer rollout has one all the same.
        verbose: as in Stable-Baselines3's callbacks.

    Raises:
        TypeError: a threshold that is no number, a frequency that is no whole number; another kind of algorithm.
        ValueError: one of them is out of range.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu")
        >>> _ = model.learn(64, callback=PolicyEntropyCallback(), log_interval=None)
        >>> model.logger.name_to_value["train/entropy_collapse"]
        0.0
    """

    def __init__(
        self,
        *,
        collapse_threshold: float = 0.1,
        collapse_nats: float | None = None,
        histogram: bool = True,
        prefix: str = "train",
        measure_freq: int = 500,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.collapse_threshold = check_in_range("collapse_threshold", collapse_threshold, 0.0, 1.0)
        self.collapse_nats = None if collapse_nats is None else check_in_range("collapse_nats", collapse_nats)
        self.histogram = histogram
        self.prefix = prefix
        self.measure_freq = check_positive_int("measure_freq", measure_freq)
        self._measured_at: int | None = None
        self._threshold = 0.0
        self._draws = False

    def _init_callback(self) -> None:
        # Here rather than at the first step: `learn` calls it each time, with the logger of that run.
        check_measurable(self.model.policy)
        self._measured_at = None
        outputs = self.logger.output_formats
        self._draws = self.histogram and any(isinstance(output, TensorBoardOutputFormat) for output in outputs)
        self._threshold = self._collapse_threshold()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        steps = self.model.num_timesteps
        if self._measured_at is not None and steps - self._measured_at < self.measure_freq:
            return
        self._measured_at = steps
        measures = measure_rollout(self.model)
        if not isinstance(self.model, SmoothedTraining):
            record_measures(self.logger, measures, prefix=self.prefix, bound=entropy_bound(self.model))
        self._record_states(measures)

    def _record_states(self, measures: PolicyMeasures) -> None:
        self.logger.record(f"{self.prefix}/entropy_collapse", float(measures.entropy_collapse(self._threshold)))
        if self._draws:
            entropies = measures.entropies.cpu()
            self.logger.record(f"{self.prefix}/policy_entropy_hist", entropies, exclude=NOT_FOR_TEXT)

    def _collapse_threshold(self) -> float:
        """In the unit of `PolicyMeasures.entropy_collapse`."""
        space = self.model.action_space
        if not isinstance(space, spaces.Box):
            return self.collapse_threshold
        if self.collapse_nats is not None:
            return self.collapse_nats
        _, std = box_reference(space)
        return float(gaussian_entropy(torch.log(std) + math.log(COLLAPSED_STD)))
