"""Callbacks for an algorithm of SB3: log, evaluate, keep the best agent, show progress.

Checkpoints name these classes by this module: moving them would lose the state of runs that are under way.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

from rlsmooth.agents import save_agent
from rlsmooth.agents.acting import play_episodes
from rlsmooth.agents.smoothed.measures import PolicyMeasures, keep_rollout, record_measures
from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.data.arrays import read_plain_npz
from rlsmooth.untrusted import refused


class Evaluations:
    """The returns of all evaluations, kept in `evaluations.npz` as SB3's `EvalCallback` keeps it.

    Args:
        path: the file.
        last_step: evaluations after this step are left out (see `MetricsFile`); None: start anew.

    Attributes:
        steps: of the evaluations.
        results: the returns of each one's deterministic episodes.
        lengths: of these episodes.
        sampled: the returns of each one's sampled episodes.
    """

    NAMES = ("timesteps", "results", "ep_lengths", "results_sampled")

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        self.path = path
        self.steps: list[int] = []
        self.results: list[NDArray[np.float64]] = []
        self.lengths: list[NDArray[np.int64]] = []
        self.sampled: list[NDArray[np.float64]] = []
        if last_step is not None and path.exists():
            with refused(path, ValueError):
                file = read_plain_npz(path)
                for step, result, lengths, sampled in zip(*(file[name] for name in self.NAMES), strict=True):
                    if step <= last_step:
                        self._append(int(step), result, lengths, sampled)

    def add(
        self, step: int, results: NDArray[np.float64], lengths: NDArray[np.int64], sampled: NDArray[np.float64]
    ) -> bool:
        """Keep one evaluation; return whether its mean return is the best so far."""
        self._append(step, results, lengths, sampled)
        best = self.best() == len(self.steps) - 1 and not math.isnan(float(results.mean()))
        content = io.BytesIO()
        columns = (self.steps, self.results, self.lengths, self.sampled)
        np.savez(content, **dict(zip(self.NAMES, map(np.asarray, columns), strict=True)))  # type: ignore[arg-type]
        write_bytes_atomically(self.path, content.getvalue())
        return best

    def best(self) -> int:
        """The place of the best evaluation, the first of equals; one with NaN never is."""
        means = [float(result.mean()) for result in self.results]
        return int(np.argmax([-math.inf if math.isnan(mean) else mean for mean in means]))

    def _append(self, step: int, results: NDArray[Any], lengths: NDArray[Any], sampled: NDArray[Any]) -> None:
        self.steps.append(step)
        self.results.append(results)
        self.lengths.append(lengths)
        self.sampled.append(sampled)


class Journal(BaseCallback):
    """Logs and evaluates where a rollout starts and at the end, in place of SB3's own logging in the middle.

    So a row of `metrics.csv` holds what belongs together: the policy after so many steps, the update that made it, and
    its evaluation; the last update has a row too, and a run that was killed and resumed has the rows of one that was
    not. Neither global random state nor training is touched.

    Args:
        evaluations: where they are kept.
        eval_env: vectorised, apart from the one to train in; its `VecNormalize` gets the statistics of training's.
        eval_freq: steps from one evaluation to the next, the first before training; -1: only at the end.
        eval_episodes: deterministic ones, and as many sampled.
        log_freq: steps from one row to the next.
        seed: of each evaluation.
        use_masks: the environment has action masks, and the policy takes them.
        best_agent: where the agent with the best evaluation is saved.

    Attributes:
        steps_trained: of this process, in all environments together.
        seconds_training: what they took, without evaluations.
    """

    def __init__(
        self,
        evaluations: Evaluations,
        eval_env: VecEnv,
        *,
        eval_freq: int,
        eval_episodes: int,
        log_freq: int,
        seed: int,
        use_masks: bool,
        best_agent: Path,
    ) -> None:
        super().__init__()
        self.evaluations = evaluations
        self.eval_env = eval_env
        self.eval_freq = eval_freq
        self.eval_episodes = eval_episodes
        self.log_freq = log_freq
        self.seed = seed
        self.use_masks = use_masks
        self.best_agent = best_agent
        self.last_row = 0
        self.steps_trained = 0
        self.seconds_training = 0.0

    def _on_training_start(self) -> None:
        self.last_row = self._first_step = self.model.num_timesteps
        self._started_at, self._seconds_evaluating = time.perf_counter(), 0.0
        self._measure: Callable[[], PolicyMeasures] | None = None

    def _on_rollout_start(self) -> None:
        evaluates, is_due = self._due()
        if is_due:
            self._write_row(evaluates=evaluates)
        self._measure = None

    def _on_rollout_end(self) -> None:
        # For the row that the policy after the coming update gets: the next rollout overwrites the states.
        model = self.model
        is_last = model.num_timesteps >= self.locals["total_timesteps"]
        if isinstance(model, OnPolicyAlgorithm) and (is_last or self._due()[1]):
            self._measure = keep_rollout(model)

    def _due(self) -> tuple[bool, bool]:
        """Whether an evaluation is due at this step, and whether a row is."""
        step, steps = self.model.num_timesteps, self.evaluations.steps
        evaluates = self.eval_freq > 0 and (not steps or step - steps[-1] >= self.eval_freq)
        return evaluates, evaluates or step - self.last_row >= self.log_freq

    def _on_training_end(self) -> None:
        self.steps_trained = self.model.num_timesteps - self._first_step
        self.seconds_training = time.perf_counter() - self._started_at - self._seconds_evaluating
        done = self.evaluations.steps[-1:] == [self.model.num_timesteps]
        if not done or self.last_row != self.model.num_timesteps:
            self._write_row(evaluates=not done)

    def _on_step(self) -> bool:
        return True

    def _write_row(self, *, evaluates: bool) -> None:
        model = self.model
        assert isinstance(model, (OnPolicyAlgorithm, OffPolicyAlgorithm))
        if evaluates:
            began = time.perf_counter()
            self._evaluate()
            self._seconds_evaluating += time.perf_counter() - began
        if self._measure is not None:
            record_measures(self.logger, self._measure())  # what the algorithm recorded is of before the update
        self.last_row = model.num_timesteps
        model.dump_logs()

    def _evaluate(self) -> None:
        trained, evaluated = self.model.get_vec_normalize_env(), unwrap_vec_normalize(self.eval_env)
        if trained is not None and evaluated is not None and trained.norm_obs:  # else it has no such statistics
            evaluated.obs_rms = trained.obs_rms  # read only: it does not train
        found = []
        for suffix, deterministic in (("", True), ("_sampled", False)):
            returns, lengths = play_episodes(
                self.model,
                self.eval_env,
                n_episodes=self.eval_episodes,
                seed=self.seed,
                use_masks=self.use_masks,
                deterministic=deterministic,
            )
            self.logger.record(f"eval/mean_reward{suffix}", float(returns.mean()))
            self.logger.record(f"eval/std_reward{suffix}", float(returns.std()))
            self.logger.record(f"eval/mean_ep_length{suffix}", float(lengths.mean()))
            found.append((returns, lengths))
        (returns, lengths), (sampled, _) = found
        if self.evaluations.add(self.model.num_timesteps, returns, lengths, sampled):
            assert isinstance(self.model, (OnPolicyAlgorithm, OffPolicyAlgorithm))
            save_agent(self.model, self.best_agent)


class ProgressBar(BaseCallback):
    """A bar of steps with the latest return, which SB3's own lacks.

    Args:
        disabled: show nothing. A resumed run must have the same callbacks, whether it is shown or not.
    """

    def __init__(self, *, disabled: bool) -> None:
        super().__init__()
        self.disabled = disabled

    def _on_training_start(self) -> None:
        total, start = self.locals["total_timesteps"], self.model.num_timesteps
        self.bar = tqdm(
            total=total, initial=start, unit="step", unit_scale=True, mininterval=0.5, disable=self.disabled
        )

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        episodes = self.model.ep_info_buffer
        if episodes:
            mean = sum(episode["r"] for episode in episodes) / len(episodes)
            self.bar.set_postfix_str(f"return {mean:.1f}", refresh=False)

    def _on_training_end(self) -> None:
        self.bar.close()
