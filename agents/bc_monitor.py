"""What happens beside training: log lines, validation, evaluation, pictures, and the watch for NaN and infinity.

Tags of a log line, under `bc/`: `loss` (mean of the updates since the last line, l2 term included), and as means over
up to 2048 training rows under the policy as it is `cross_entropy` (smoothed), `nll_hard`, `accuracy`, `ece` (over rows
and components), `policy_entropy`, `entropy_frac`, `entropy_dim<i>`, `kl_uniform`, `kl_reference` (the KL term's
reference if there is such a term or argument, else the smoothing's own); `smoothing`, `exploration_floor` (0 here),
`learning_rate`, `samples_per_second` (of training alone); imitation's `batch`, `epoch`, `samples_so_far`, `neglogp`,
`entropy`, `ent_loss` (the KL term), `prob_true_act`, `l2_norm`, `l2_loss`; `val_*` over all validation rows. Nats.
Under `eval/`: returns and lengths, a histogram of each state's entropy, a reliability diagram.

Nothing here touches the random generators that training draws from, and nothing waits for the device between log lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat
from torch import Tensor

from rlsmooth.agents.bc_data import TrainingRows
from rlsmooth.agents.bc_evaluation import play
from rlsmooth.agents.bc_files import write_checkpoint
from rlsmooth.agents.bc_metrics import RowMetrics, concatenate, l2_norm, row_metrics, summarise
from rlsmooth.agents.bc_setup import is_maskable
from rlsmooth.agents.bc_targets import action_target, alpha_in_force, target_matrices
from rlsmooth.agents.heads import Batch, CategoricalHead
from rlsmooth.audits import calibration_error
from rlsmooth.audits.figures import draw_reliability, draw_target_matrix, new_figure
from rlsmooth.training import epoch_permutation
from rlsmooth.training.run import EarlyStopping, divergence_error

if TYPE_CHECKING:
    from rlsmooth.agents.bc import BC

__all__ = ["Monitor"]

MONITOR_ROWS = 2048
MONITOR_BYTES = 64 * 2**20
NOT_FOR_TEXT = ("stdout", "log", "json", "csv")
VALIDATED = (
    "loss",
    "cross_entropy",
    "nll_hard",
    "prob_true_act",
    "policy_entropy",
    "entropy_frac",
    "kl_uniform",
    "kl_reference",
    "accuracy",
    "ece",
)


class Monitor:
    """Watches one agent.

    Args:
        agent: whose policy, logger and arguments are used.
        data: its training rows, of which up to 2048, evenly spread, stand for all in log lines.
        validation: its validation rows, read in full.

    Attributes:
        losses: of each update since the last log line, on the device.
    """

    def __init__(self, agent: BC, data: TrainingRows | None, validation: TrainingRows | None) -> None:
        self.agent = agent
        self.data = data
        self.validation = validation
        self.losses: list[Tensor] = []
        self._checked = 0
        self._rows: Batch | None = None
        self._logged_step = self._evaluated_step = -1
        self._seconds = 0.0
        self._since = 0.0

    def start(self) -> None:
        """A run begins."""
        agent = self.agent
        self.losses.clear()
        self._checked = 0
        self._logged_step = self._evaluated_step = -1
        self._seconds = 0.0
        if agent.num_timesteps == 0 and self._draws:
            self._draw_target_matrices()
        self._since = time.perf_counter()

    def finish(self) -> None:
        """A run ends: the last checkpoint, the best parameters, the last log line and evaluation."""
        agent = self.agent
        self.check()
        if agent.checkpoint_folder is not None:
            self.checkpoint()
        changed = agent.early_stopping is not None and agent.early_stopping.restore(agent.policy, agent.num_timesteps)
        if self.losses or changed or self._logged_step != agent.num_timesteps:
            self.log()
        evaluates = agent.eval_env is not None or agent.eval_every is not None
        if evaluates and (changed or self._evaluated_step != agent.num_timesteps):
            self.evaluate()
        agent.policy.set_training_mode(False)

    def check(self) -> None:
        """Wait for the device and raise unless all losses and parameters so far are finite.

        Raises:
            TrainingDivergedError: they are not; it names the first update whose loss is not.
        """
        agent = self.agent
        fresh = self.losses[self._checked :]
        finite = [parameter.isfinite().all() for parameter in agent.policy.parameters()]
        last = torch.stack(finite).all().unsqueeze(0)
        flags = (torch.cat((torch.stack(fresh).isfinite(), last)) if fresh else last).tolist()
        if all(flags):
            self._checked = len(self.losses)
            return
        place = min(flags.index(False), max(len(fresh) - 1, 0))
        step = agent.num_timesteps - len(fresh) + place + 1
        assert self.data is not None
        epoch, update = divmod(step - 1, agent.batches_per_epoch)
        size = agent.batch_size * agent.gradient_accumulation
        order = epoch_permutation(agent.seed, agent._first_epoch + epoch, len(self.data))
        rows = order[update * size : (update + 1) * size]
        raise divergence_error(
            step,
            float(fresh[place]) if fresh else 0.0,
            rows,
            _values(self.data.take(rows)),
            learning_rate=float(agent.policy.optimizer.param_groups[0]["lr"]),
            checkpoint_folder=agent.checkpoint_folder,
        )

    def checkpoint(self) -> None:
        """Write a checkpoint, if all is finite."""
        self.check()
        self._pause()
        write_checkpoint(self.agent)
        self._resume()

    def log(self) -> None:
        """Write one log line."""
        self.check()
        self._pause()
        agent, logger = self.agent, self.agent.logger
        assert self.data is not None
        step, progress = agent.num_timesteps, agent._current_progress_remaining
        found = self._summary([self._monitored()])
        norm = float(l2_norm(agent.policy).detach())
        if self.losses:
            found["loss"] = float(torch.stack(self.losses).mean())
            seconds = max(self._seconds, 1e-9)
            size = min(agent.batch_size * agent.gradient_accumulation, len(self.data))
            logger.record("bc/samples_per_second", len(self.losses) * size / seconds)
        epoch, done = divmod(step, agent.batches_per_epoch)
        found |= {
            "batch": step,
            "epoch": epoch,
            "samples_so_far": epoch * len(self.data) + done * agent.batch_size * agent.gradient_accumulation,
            "neglogp": found["nll_hard"],
            "entropy": found["policy_entropy"],
            "l2_norm": norm,
            "l2_loss": agent.l2_coef * norm,
            "smoothing": alpha_in_force(agent.smoothings, progress),
            "exploration_floor": 0.0,
            "learning_rate": float(agent.policy.optimizer.param_groups[0]["lr"]),
        }
        if self.validation is not None:
            held_out = self._summary(self._validated())
            found |= {f"val_{name}": held_out[name] for name in VALIDATED if name in held_out}
        for name, value in found.items():
            logger.record(f"bc/{name}", value)
        logger.record("batch_size", agent.batch_size)
        logger.dump(step)
        self.losses.clear()
        self._checked = 0
        self._logged_step = step
        self._seconds = 0.0
        self._resume()

    def validate(self, stopping: EarlyStopping) -> None:
        """Tell early stopping the validation loss: cross-entropy with the smoothed target, plus the KL term."""
        self.check()
        self._pause()
        loss = self._summary(self._validated())["loss"]
        stopping.update(loss, self.agent.num_timesteps, self.agent.policy)
        self._resume()

    def evaluate(self) -> None:
        """Play in the evaluation environment and draw the pictures of how the policy's probabilities are spread."""
        self.check()
        self._pause()
        agent, logger = self.agent, self.agent.logger
        if agent.eval_env is not None:
            for name, value in self.play().items():
                logger.record(f"eval/{name}", value)
            logger.dump(agent.num_timesteps)
        if self._draws:
            self._write_pictures()
        self._evaluated_step = agent.num_timesteps
        self._resume()

    def play(self) -> dict[str, float]:
        """Returns and lengths of episodes; see `BC.evaluate`."""
        agent = self.agent
        env = agent.env if agent.eval_env is None else agent.eval_env
        if env is None:
            raise ValueError("there is no environment to evaluate in: give eval_env.")
        use_masks = is_maskable(agent.policy) and env.has_attr("action_masks")
        return play(agent, env, n_episodes=agent.n_eval_episodes, seed=agent.seed, use_masks=use_masks)

    @property
    def _draws(self) -> bool:
        """Whether anybody sees pictures: drawing takes longer than many a run."""
        return any(isinstance(output, TensorBoardOutputFormat) for output in self.agent.logger.output_formats)

    def _monitored(self) -> Batch:
        """The rows that log lines are about, with their targets as of now."""
        assert self.data is not None
        if self._rows is None:
            count = min(len(self.data), MONITOR_ROWS, max(1, MONITOR_BYTES // self.data.row_bytes))
            spread = torch.linspace(0, len(self.data) - 1, count, dtype=torch.float64)
            self._rows = self.data.compact(spread.round().long())
        return self._rows

    def _validated(self) -> Iterable[Batch]:
        assert self.validation is not None
        return (chunk._replace(target=None) for chunk in self.validation.chunks())  # made again, to tell its reference

    def _summary(self, batches: Iterable[Batch]) -> dict[str, float]:
        rows = self._metrics(batches)
        head = self.agent.head
        several = isinstance(head, CategoricalHead) and head.kind == "multi_discrete"
        return summarise(rows, kl_coef=self.agent.kl_coef, by_component=several)

    def _metrics(self, batches: Iterable[Batch]) -> RowMetrics:
        agent = self.agent
        agent.policy.set_training_mode(False)
        own_reference = agent.kl_coef == 0 and agent.references is None
        progress = agent._current_progress_remaining
        parts = []
        for batch in batches:
            target = batch.target
            if target is None:
                target = action_target(agent.head, agent.smoothings, batch, progress=progress)
            parts.append(row_metrics(agent.head, batch, target, own_reference=own_reference))
        agent.policy.set_training_mode(True)
        return concatenate(parts)

    def _draw_target_matrices(self) -> None:
        for name, matrix in target_matrices(self.agent.head, self.agent.smoothings).items():
            figure, axes = new_figure()
            draw_target_matrix(axes, matrix)
            self._to_tensorboard(f"bc/{name}", Figure(figure, close=False))

    def _write_pictures(self) -> None:
        rows = self._metrics([self._monitored()])
        self._to_tensorboard("eval/entropy_per_state", rows.entropy.sum(-1).cpu())
        if rows.confidence is not None and rows.hit is not None:
            figure, axes = new_figure()
            weights = rows.weights.unsqueeze(-1).expand(rows.confidence.shape)
            ece = float(calibration_error(rows.confidence, rows.hit, weights=weights))
            draw_reliability(axes, rows.reliability(), ece=ece)
            self._to_tensorboard("eval/reliability", Figure(figure, close=False))

    def _to_tensorboard(self, name: str, value: Any) -> None:
        """Not by the logger's `dump`: a line without numbers would be an empty table, and a warning, elsewhere."""
        for output in self.agent.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.write({name: value}, {name: NOT_FOR_TEXT}, step=self.agent.num_timesteps)

    def _pause(self) -> None:
        self._seconds += time.perf_counter() - self._since

    def _resume(self) -> None:
        self.agent.policy.set_training_mode(True)
        self._since = time.perf_counter()


def _values(batch: Batch) -> list[Tensor]:
    """What the rows of a batch hold."""
    observations = batch.observations
    values = [*observations.values()] if isinstance(observations, dict) else [observations]
    return values + [tensor for tensor in (batch.labels, batch.weights, batch.probs) if tensor is not None]
