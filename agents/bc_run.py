"""The frame of a run of `BC.learn`: how many batches, which logger, which callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.utils import configure_logger
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from rlsmooth.agents.bc_files import RESUME_FILE
from rlsmooth.checks import check_positive_int
from rlsmooth.training import checkpoint_steps

if TYPE_CHECKING:
    from rlsmooth.agents.bc import BC

__all__ = ["Callbacks", "ProgressBar", "plan", "prepare_callback", "prepare_logger"]

Callbacks: TypeAlias = BaseCallback | list[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None


class ProgressBar(BaseCallback):
    """One tick a batch. SB3's own would tick once for each environment, and needs one."""

    def _on_training_start(self) -> None:
        start = self.model.num_timesteps
        self.bar = tqdm(total=self.locals["total_timesteps"], initial=start, unit="batch", mininterval=0.5)

    def _on_step(self) -> bool:
        self.bar.update(1)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


def plan(agent: BC, total_epochs: int | None, total_batches: int | None, reset_num_timesteps: bool) -> None:
    """Set where the run starts and ends.

    Raises:
        TypeError: a total is no whole number.
        ValueError: not exactly one total, or one below 1; no demonstrations; an argument that the file could not keep;
            another total than that of the run that is resumed; a checkpoint folder with another run in it.
    """
    if (total_epochs is None) == (total_batches is None):
        raise ValueError(
            f"total_epochs={total_epochs!r} and total_batches={total_batches!r}: give exactly one of the two."
        )
    if agent.demonstrations is None:
        raise ValueError("demonstrations is None, so there is nothing to learn from: give them to BC(...) or BC.load.")
    if agent.missing:
        raise ValueError(
            f"{', '.join(agent.missing)} was a callable, which no file can hold: pass it again, for example "
            f"custom_objects={{{agent.missing[0]!r}: ...}}."
        )
    if total_epochs is not None:
        batches = check_positive_int("total_epochs", total_epochs) * agent.batches_per_epoch
    else:
        batches = check_positive_int("total_batches", total_batches)
    if agent.is_resumed:
        planned = agent._total_timesteps - agent._num_timesteps_at_start
        if batches != planned:
            raise ValueError(
                f"the run that is resumed was for {planned} batches, not {batches}: schedules depend on it, so ask for "
                f"total_batches={planned}, and for more in another call."
            )
        return
    _check_checkpoint_folder(agent, 0 if reset_num_timesteps else agent.num_timesteps)
    if reset_num_timesteps and agent.num_timesteps:
        agent._first_epoch += -(-agent.num_timesteps // agent.batches_per_epoch)  # other orders than so far
        agent.num_timesteps = 0
    if agent.early_stopping is not None:
        agent.early_stopping.reset()
    agent._num_timesteps_at_start = agent.num_timesteps
    agent._total_timesteps = agent.num_timesteps + batches
    agent._current_progress_remaining = 1.0 - agent.num_timesteps / agent._total_timesteps


def prepare_logger(agent: BC, tb_log_name: str, reset_num_timesteps: bool) -> None:
    """A logger of its own for each run, as in SB3; a run that goes on keeps the one it has."""
    if agent._has_custom_logger or (agent._logger is not None and not reset_num_timesteps):
        return
    agent._logger = configure_logger(agent.verbose, agent.tensorboard_log, tb_log_name, reset_num_timesteps)


def prepare_callback(agent: BC, callback: Callbacks, progress_bar: bool) -> BaseCallback | None:
    """One callback that is bound to the agent, or None where there is none to call."""
    if not progress_bar and (callback is None or callback == []):
        return None
    given = [] if callback is None else callback if isinstance(callback, list) else [callback]
    listed = [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given]
    model = cast("BaseAlgorithm", agent)  # what callbacks need of one, it has
    return BaseAlgorithm._init_callback(model, [*listed, *([ProgressBar()] if progress_bar else [])])


def _check_checkpoint_folder(agent: BC, start: int) -> None:
    if agent.checkpoint_folder is None:
        return
    steps = checkpoint_steps(agent.checkpoint_folder)
    others = [step for step in steps if start == 0 or step > start]
    if others:
        raise ValueError(
            f"checkpoint_folder={str(agent.checkpoint_folder)!r} holds another run's checkpoints (batch {others[-1]}): "
            f"go on from them by BC.resume (it reads {RESUME_FILE}) or, in the agent that wrote them, by "
            "learn(..., reset_num_timesteps=False); or set agent.checkpoint_folder to another folder."
        )
