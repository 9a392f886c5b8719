"""Checkpoints from which a killed run resumes as if nothing had happened, bit for bit.

Train with

    model.learn(total, callback=ExactCheckpointCallback(10_000, folder))

and after a kill, in a new process, with environments built as before:

    run = load_checkpoint(folder, env)
    run.model.learn(run.remaining_timesteps, callback=run.callback, reset_num_timesteps=False)

Other callbacks go beside it as they did before, in the same order: `callback=[run.callback, evaluation]`; their counts
and collections are restored too, text apart: a file must not say where a callback writes. A callback may also say
itself what is kept of it: see `HasExactState`. On the CPU, with environments whose state can be kept (see
`rlsmooth.envs.snapshot`), parameters, optimiser and episode statistics at the end equal those of a run that was never
interrupted. Environments in a SubprocVecEnv must be wrapped in `rlsmooth.envs.Resumable`. Where environments can't be
kept, a warning says so, and the resumed run starts new episodes.

Off-policy algorithms are kept with the content of their replay buffer (which makes the checkpoint large), the noise of
their actions and their exploration. A HerReplayBuffer, a buffer that saves memory by sharing observations, and one of a
class of your own can't be kept.

Not kept: the clock (`time/fps`, an episode's `t`), the count behind `log_interval`, and what loggers had written after
the checkpoint (TensorBoard continues in the same folder if the algorithm gets the same `tensorboard_log`).
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlsmooth.agents.files.algorithm_file import (
    ALGORITHM_BASES,
    Algorithm,
    extra_modules,
    load_agent,
    load_extra_modules,
    load_optimizers,
    missing_arguments,
    optimizers,
    plain_attributes,
    save_agent,
    set_plain_attributes,
)
from rlsmooth.agents.files.algorithm_state import buffer_state, check_buffer, cut_off_episodes, set_buffer_state
from rlsmooth.agents.files.policy_file import load_parameters, resample_noise
from rlsmooth.agents.files.run_state import (
    action_noise_state,
    arrays_from_tensors,
    interaction_state,
    logger_state,
    noise_state,
    set_action_noise_state,
    set_interaction_state,
    set_logger_state,
    set_noise_state,
    set_vec_env_state,
    state_from_tree,
    state_to_tree,
    tensors_from_arrays,
    vec_env_state,
)
from rlsmooth.agents.sb3 import total_timesteps
from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.envs.snapshot import set_object_state
from rlsmooth.envs.snapshot_values import (
    CannotSnapshotError,
    class_name,
    may_hold_data,
    plain_value,
    stable_name,
    value_from_plain,
)
from rlsmooth.training import Checkpoint, SafeFileError, latest_checkpoint, set_rng_state, tree_from_json, tree_to_json
from rlsmooth.training.divergence import check_finite_model, check_finite_step
from rlsmooth.training.run import (
    RESUME_FILE,
    RunFolder,
    check_no_missing,
    check_num_envs,
    safe_points,
    stop,
    stop_requested,
)
from rlsmooth.untrusted import Count, decode, refused

OTHER = "Use another checkpoint, or the environments and arguments of the run."

MODEL_FILE = "model.zip"
"""The agent file in a checkpoint folder, which says how to build the algorithm."""

# ---- the state of callbacks

CALLBACK_LEAVES = {"model", "logger", "training_env", "locals", "globals", "parent"}


@runtime_checkable
class HasExactState(Protocol):
    """A callback that gives its own state to checkpoints, such as that of a trainer it belongs to.

    Give a `BaseCallback` the two methods; it need not inherit from this class. The state is a dict with str keys of
    numbers, text, None, arrays, tensors, random generators of numpy and of Python, and containers of these. All come
    back as they were, tensors on the CPU.

    Examples:
        >>> class Count(BaseCallback):
        ...     steps = 0
        ...     def _on_step(self): self.steps += 1; return True
        ...     def exact_state(self): return {"steps": self.steps}
        ...     def set_exact_state(self, state, *, episodes_continue): self.steps = state["steps"]
        >>> isinstance(Count(), HasExactState)
        True
    """

    def exact_state(self) -> dict[str, Any]:
        """The state between two rollouts; a copy that later steps don't change."""

    def set_exact_state(self, state: dict[str, Any], *, episodes_continue: bool) -> None:
        """Put it back; called when the first rollout of the resumed `learn` starts, after earlier callbacks.

        Args:
            state: what `exact_state` gave.
            episodes_continue: False: the environments could not be restored and were reset, so that the state of
                running episodes must not be restored either.

        Raises:
            ValueError: it does not fit.
        """


def callback_states(root: Any, own: BaseCallback) -> list[dict[str, Any]]:
    """The counts and collections of each callback of a run, and the state of its own environments.

    Args:
        root: the one callback into which `learn` has put all.
        own: the one to leave out.

    Returns:
        One entry a callback, in order, those with a state of their own apart: `"class"`, `"values"` (attributes that
        are plain data without text, which may say where to write), `"envs"`.
    """
    return [
        {
            "class": class_name(callback),
            "values": dict(_plain_values(callback)),
            "envs": {
                name: vec_env_state(env)
                for name, env in vars(callback).items()
                if isinstance(env, VecEnv) and name not in CALLBACK_LEAVES
            },
        }
        for callback in _callbacks(root, own)
        if not isinstance(callback, HasExactState)
    ]


def set_callback_states(root: Any, own: BaseCallback, states: list[dict[str, Any]]) -> str:
    """Restore `callback_states`, in order within each class.

    A callback of a class that the run did not have starts anew, and the states of a class without callbacks are left
    out. Text and methods are never replaced: a file from elsewhere must not say where a callback writes.

    Returns:
        "", or what could not be restored.
    """
    pairs, problems = _paired(root, own, states, all_needed=False)
    problems += [_set_callback(callback, state) for callback, state in pairs]
    return "; ".join(filter(None, problems))


def own_states(root: Any, own: BaseCallback) -> list[dict[str, Any]]:
    """The states of the callbacks that keep their own (`HasExactState`), `own` left out.

    Returns:
        One entry a callback, in order: `"class"`, `"state"`.

    Raises:
        CannotSnapshotError: a state holds something that `HasExactState` does not allow; the message says where.
    """
    return [
        {"class": class_name(callback), "state": state_to_tree(callback.exact_state(), class_name(callback))}
        for callback in _callbacks(root, own)
        if isinstance(callback, HasExactState)
    ]


def set_own_states(root: Any, own: BaseCallback, states: list[dict[str, Any]], *, episodes_continue: bool) -> str:
    """Restore `own_states`; a callback of another class starts anew.

    Returns:
        "", or which callbacks are not there: a run without them is another run.

    Raises:
        CannotSnapshotError: the data is malformed.
        ValueError: by a callback, if its state does not fit it.
    """
    pairs, problems = _paired(root, own, states, all_needed=True)
    for callback, state in pairs:
        assert isinstance(callback, HasExactState)
        callback.set_exact_state(state_from_tree(state["state"]), episodes_continue=episodes_continue)
    return "; ".join(problems)


def changed_states(states: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The states without the values that are as they were: arguments, which a resumed run may give anew."""
    return [
        {
            **state,
            "values": {
                name: value
                for name, value in state["values"].items()
                if name not in before["values"] or not _equal(value, before["values"][name])
            },
        }
        for state, before in zip(states, baseline, strict=True)
    ]


def _paired(
    root: Any, own: BaseCallback, states: list[dict[str, Any]], *, all_needed: bool
) -> tuple[list[tuple[BaseCallback, dict[str, Any]]], list[str]]:
    """Callbacks with their saved states, and the classes of which there are fewer or more now (or none, if needed)."""
    found = list(_callbacks(root, own))
    pairs: list[tuple[BaseCallback, dict[str, Any]]] = []
    problems = []
    for name in dict.fromkeys(stable_name(state["class"]) for state in states):
        callbacks = [callback for callback in found if stable_name(class_name(callback)) == name]
        saved = [state for state in states if stable_name(state["class"]) == name]
        if len(callbacks) == len(saved):
            pairs += zip(callbacks, saved, strict=True)
        elif callbacks or all_needed:
            problems.append(f"there were {len(saved)} callbacks of class {name}, and are {len(callbacks)}")
    return pairs, problems


def _set_callback(callback: BaseCallback, state: Mapping[str, Any]) -> str:
    problems = []
    for name, encoded in state["values"].items():
        value = value_from_plain(encoded)
        if name in CALLBACK_LEAVES or not may_hold_data(type(callback), name) or _has_text(value):
            problems.append(f"{name} of {class_name(callback)} is not the file's to set")
        else:
            vars(callback)[name] = value
    for name, kept in state["envs"].items():
        env = vars(callback).get(name)
        try:
            problems.append(set_vec_env_state(env, kept) if isinstance(env, VecEnv) else f"{name} is no VecEnv")
        except CannotSnapshotError as error:
            problems.append(str(error))
    return "; ".join(filter(None, problems))


def _callbacks(root: Any, own: BaseCallback) -> Iterator[BaseCallback]:
    """The callback and those in it, outside in, each once."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        callback = stack.pop()
        if not isinstance(callback, BaseCallback) or id(callback) in seen:
            continue
        seen.add(id(callback))
        if callback is not own and not isinstance(callback, (CallbackList, ProgressBarCallback)):
            yield callback
        inner = [value for name, value in vars(callback).items() if name not in CALLBACK_LEAVES]
        lists = [item for value in inner if isinstance(value, (list, tuple)) for item in value]
        stack += reversed([value for value in [*inner, *lists] if isinstance(value, BaseCallback)])


def _plain_values(callback: BaseCallback) -> Iterator[tuple[str, Any]]:
    for name, value in vars(callback).items():
        if name in CALLBACK_LEAVES or not may_hold_data(type(callback), name) or _has_text(value):
            continue
        try:
            yield name, plain_value(value, name)
        except CannotSnapshotError:
            continue  # loggers, files, networks: the resumed run makes its own


def _has_text(value: object) -> bool:
    """Whether it is text or a container with text in it, names of entries apart."""
    if isinstance(value, (str, bytes)):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "SU"
    items = list(value.values()) if isinstance(value, dict) else value
    try:
        return isinstance(items, (list, tuple, set, frozenset, deque)) and any(map(_has_text, items))
    except RecursionError:  # it holds itself, and nobody knows what else
        return True


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other)


# ---- checkpoints


def _run_folder(path: str | Path, name: str) -> RunFolder:
    return RunFolder(path, name=name, unit="step", resume="load_checkpoint")


@dataclass(frozen=True, kw_only=True)
class ResumedRun:
    """A run restored from its last checkpoint.

    Attributes:
        model: the algorithm, with its environments.
        callback: for `learn`: it restores the random state when the first rollout starts, and writes the next
            checkpoints.
        total_timesteps: environment steps that the run was to reach.
        remaining_timesteps: those that are left; 0 for a finished run.
        is_exact: whether the environments are where they were; False: `learn` starts new episodes.
        callback_states: of callbacks that keep a state of their own (`HasExactState`): the full name of their class to
            the state of the first of that class. A trainer around the algorithm is built again from it.
    """

    model: Any
    callback: ExactCheckpointCallback
    total_timesteps: int
    remaining_timesteps: int
    is_exact: bool
    callback_states: dict[str, dict[str, Any]] = field(default_factory=dict)


class ExactCheckpointCallback(BaseCallback):
    """Write a checkpoint before the first rollout, then whenever `save_freq` steps have passed, and at the end.

    Args:
        save_freq: environment steps between two checkpoints. They are written when a rollout starts, which off-policy
            algorithms do every `train_freq` steps or episodes.
        save_path: the folder, for this run alone.
        keep: how many checkpoints to keep.
        verbose: 1 prints each path.

    Raises:
        TypeError: `save_freq` or `keep` is no whole number; by `learn`, if the replay buffer can't be kept.
        ValueError: one is under 1, or the folder can't be written to; by `learn`, if the folder holds another run.

    Examples:
        >>> import tempfile
        >>> from stable_baselines3 import PPO
        >>> folder = tempfile.mkdtemp()
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu")
        >>> _ = model.learn(256, callback=ExactCheckpointCallback(128, folder))
        >>> run = load_checkpoint(folder, "CartPole-v1", device="cpu")
        >>> run.model.num_timesteps, run.remaining_timesteps, run.is_exact
        (256, 0, True)
    """

    def __init__(self, save_freq: int, save_path: str | Path, *, keep: int = 2, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.save_freq = check_positive_int("save_freq", save_freq)
        self.keep = check_positive_int("keep", keep)
        self.save_path = check_writable_folder("save_path", save_path)
        self._folder = _run_folder(self.save_path, "save_path")
        self._pending: Checkpoint | None = None
        self._is_exact = True
        self._root: Any = None
        self._baseline: list[dict[str, Any]] | None = None
        self._saved_at: int | None = None
        self._is_between_rollouts = False
        self._has_warned = False
        self._training = ExitStack()

    def resume_from(self, checkpoint: Checkpoint, *, is_exact: bool) -> None:
        """Restore the rest of `checkpoint` at the next rollout; `load_checkpoint` calls this.

        Args:
            checkpoint: the one that the algorithm was loaded from.
            is_exact: whether the environments are where they were, so that episodes continue.
        """
        self._pending, self._is_exact, self._has_warned = checkpoint, is_exact, not is_exact

    def _on_training_start(self) -> None:
        self._root = self.locals["callback"]
        self._baseline = None
        self._training = ExitStack()  # where an error ends the training, it lasts as long as this object
        self._training.enter_context(safe_points(self.save_path))
        if isinstance(self.model, OffPolicyAlgorithm):
            check_buffer("replay_buffer of the algorithm", self.model.replay_buffer)
        if self._pending is not None:
            if self.num_timesteps != self._pending.step:
                raise ValueError(
                    f"num_timesteps is {self.num_timesteps}, the checkpoint's {self._pending.step}: resume with "
                    "learn(run.remaining_timesteps, ..., reset_num_timesteps=False)."
                )
            return
        self._folder.check_free(None if self._saved_at is None else self.num_timesteps)

    def _on_rollout_start(self) -> None:
        self._is_between_rollouts = False
        if self._baseline is not None:
            assert self._saved_at is not None
            stops = stop_requested()
            if stops or self.num_timesteps - self._saved_at >= self.save_freq:
                self._save(noise_state(self._model))
            if stops:
                with self._training:
                    stop(f"A checkpoint of step {self.num_timesteps:,} was written.")
            return
        self._baseline = callback_states(self._root, self)
        if self._pending is not None:
            self._restore(self._pending)
            self._pending = None
            self._save_model()
        elif self._folder.steps():
            # The checkpoint first: a kill in between then leaves a pair that fits.
            self._save(noise_state(self._model))
            self._save_model()
        else:
            self._save_model()
            self._save(noise_state(self._model))

    def _on_step(self) -> bool:
        # Where it shows first: a step later the policy may have learnt from it, and the cause would not be known.
        check_finite_step(
            self.num_timesteps,
            self.locals.get("rewards"),
            self.locals.get("new_obs", ()),
            checkpoint_folder=self.save_path,
        )
        return True

    def _on_rollout_end(self) -> None:
        self._is_between_rollouts = True

    def _on_training_end(self) -> None:
        # A run that a callback stopped in the middle of a rollout has no state to resume from.
        if self._is_between_rollouts and self.num_timesteps != self._saved_at:
            self._save(None)  # gSDE draws its noise when the next rollout starts
        self._training.close()

    @property
    def _model(self) -> Algorithm:
        assert isinstance(self.model, ALGORITHM_BASES)
        return self.model

    def _check_finite(self) -> None:
        model = self._model
        parts = [model.policy, *(recursive_getattr(model, name) for name in extra_modules(model)[0]["modules"])]
        check_finite_model(self.num_timesteps, *parts, checkpoint_folder=self.save_path)

    def _save_model(self) -> None:
        self._check_finite()
        save_agent(self._model, self.save_path / MODEL_FILE)

    def _save(self, noise: Mapping[str, Tensor] | None) -> None:
        model = self._model
        assert self._baseline is not None
        self._check_finite()
        interaction = interaction_state(model)
        problem = interaction["env"]["problem"]
        if problem and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"A run resumed from here starts new episodes: {problem}", RuntimeWarning, stacklevel=2)
        kept = {
            "interaction": interaction,
            "action_noise": action_noise_state(model),
            "logger": logger_state(model.logger),
            "callbacks": changed_states(callback_states(self._root, self), self._baseline),
            "own_states": own_states(self._root, self),
        }
        run, run_tensors = tree_to_json(tensors_from_arrays(kept), "run")
        optimizer, optimizer_tensors = optimizers(model)
        modules, module_tensors = extra_modules(model)
        replay_buffer = model.replay_buffer if isinstance(model, OffPolicyAlgorithm) else None
        buffer, transitions = (None, {}) if replay_buffer is None else buffer_state(replay_buffer)
        path = self._folder.save(
            model.num_timesteps,
            config={
                "total_timesteps": total_timesteps(model),
                "n_envs": model.n_envs,
                "save_freq": self.save_freq,
                "keep": self.keep,
                "attributes": plain_attributes(model),
                "optimizer": optimizer,
                "modules": modules,
                "replay_buffer": buffer,
                "has_noise": noise is not None,
                "run": run,
            },
            tensors={
                "policy": model.policy.state_dict(),
                "optimizer": optimizer_tensors,
                "modules": module_tensors,
                "replay_buffer": transitions,
                "noise": noise or {},
                "run": run_tensors,
            },
            keep=self.keep,
            # Environments and infos may mark what they lack by NaN; rewards and observations are checked at each step.
            may_hold_nan=("run", "replay_buffer"),
        )
        self._saved_at = model.num_timesteps
        if self.verbose >= 1:
            print(f"Saved a checkpoint to {path}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state that `learn` itself has changed since the checkpoint was loaded."""
        model, config, tensors = self._model, checkpoint.config, checkpoint.tensors
        with checkpoint.refused():
            run = _run_of(checkpoint)
            set_logger_state(model.logger, run["logger"])
            problem = set_callback_states(self._root, self, run["callbacks"])
        problems = [
            problem,
            set_own_states(self._root, self, run.get("own_states", []), episodes_continue=self._is_exact),
        ]
        for problem in filter(None, problems):
            warnings.warn(f"The state of the callbacks was not restored: {problem}.", RuntimeWarning, stacklevel=2)
        if self._is_exact:
            # Again: the environments may have been stepped since, or been reset by learn(reset_num_timesteps=True).
            set_interaction_state(model, run["interaction"])
            set_action_noise_state(model, run.get("action_noise"))
        self._saved_at = checkpoint.step
        with checkpoint.refused():
            set_rng_state(tensors["rng"])
            set_noise_state(model, tensors["noise"] if config["has_noise"] else None)


def load_checkpoint(
    folder: str | Path,
    env: GymEnv | str,
    *,
    device: torch.device | str = "auto",
    model_class: type[Algorithm] | None = None,
    policy_class: type[BasePolicy] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    tensorboard_log: str | Path | None = None,
    verbose: int = 0,
) -> ResumedRun:
    """The run in a folder of `ExactCheckpointCallback`, as it stood when its last good checkpoint was written.

    A checkpoint that a kill or a disk left damaged is passed over with a warning.

    Args:
        folder: `save_path` of the run.
        env: built and wrapped as that of the run, with as many environments.
        device: as in Stable-Baselines3.
        model_class: built in place of the class named in the file; needed if that is a class of your own.
        policy_class: built in place of the policy's class named in the file.
        custom_objects: argument to value, taken in place of the file's, as in `load_agent`.
        tensorboard_log: that of the run.
        verbose: as in Stable-Baselines3.

    Raises:
        ValueError: there is no run in the folder, or one that was killed before its first checkpoint; or the
            environments are others, or the replay buffer is of another size.
        SafeFileError: no checkpoint can be read, or it does not fit.
    """
    saved = _run_folder(folder, "folder")
    # A run that was killed before its first checkpoint has the agent file already.
    saved.check_resumable(MODEL_FILE, *(() if saved.steps() else ("checkpoint_0.zip",)))
    checkpoint = saved.latest()
    assert checkpoint is not None
    model: Algorithm = load_agent(
        saved.path / MODEL_FILE,
        env=env,
        device=device,
        model_class=model_class,
        policy_class=policy_class,
        custom_objects=custom_objects,
        tensorboard_log=tensorboard_log,
        verbose=verbose,
    )
    check_no_missing(missing_arguments(model))
    check_num_envs(decode(int, checkpoint.config.get("n_envs"), "n_envs"), model.n_envs)
    with refused(checkpoint.path, SafeFileError, OTHER):
        problem = _apply(checkpoint, model)
        callback = ExactCheckpointCallback(
            checkpoint.config["save_freq"], saved.path, keep=checkpoint.config["keep"], verbose=verbose
        )
        total = decode(Count, checkpoint.config["total_timesteps"], "total_timesteps")
        decode(bool, checkpoint.config["has_noise"], "has_noise")
        states = {
            stable_name(kept["class"]): state_from_tree(kept["state"])
            for kept in reversed(_run_of(checkpoint).get("own_states", ()))
        }
    if problem:
        warnings.warn(f"The resumed run starts new episodes: {problem}", RuntimeWarning, stacklevel=2)
    saved.delete_leftovers(re.escape(MODEL_FILE))
    callback.resume_from(checkpoint, is_exact=not problem)
    return ResumedRun(
        model=model,
        callback=callback,
        total_timesteps=total,
        remaining_timesteps=max(0, total - model.num_timesteps),
        is_exact=not problem,
        callback_states=states,
    )


def load_checkpointed_agent(folder: str | Path, env: VecEnv, *, device: torch.device | str = "auto") -> tuple[Any, int]:
    """The agent as it was at the last good checkpoint of an unfinished run, to play with, and the checkpoint's number.

    Args:
        folder: of the checkpoints of an algorithm (`ExactCheckpointCallback`), a BC, a BCO or a DAgger.
        env: with the agent's spaces; there may be more or fewer than the run has.
        device: as in Stable-Baselines3.

    Returns:
        An algorithm or a BC, as from `load_agent`, and the number.

    Raises:
        ValueError: there is no run in the folder, or none with a checkpoint.
        SafeFileError: no checkpoint can be read, or it does not fit.
    """
    saved = _run_folder(folder, "folder")
    file = MODEL_FILE if (saved.path / MODEL_FILE).is_file() else RESUME_FILE
    saved.check_exists(file, *(() if saved.steps() else ("checkpoint_0.zip",)))
    checkpoint = latest_checkpoint(saved.path)
    assert checkpoint is not None
    agent = load_agent(saved.path / file, env=env, device=device)
    with refused(checkpoint.path, SafeFileError, OTHER):
        load_parameters(checkpoint.path, agent.policy, checkpoint.tensors["policy"])
        if file == MODEL_FILE:
            set_plain_attributes(agent, checkpoint.config["attributes"])
            resample_noise(agent.policy, agent.n_envs)  # of other weights until now
            wrappers = _run_of(checkpoint)["interaction"]["env"]["wrappers"]
            normalizer = agent.get_vec_normalize_env()
            for kept in wrappers if normalizer is not None else ():
                if kept is not None and stable_name(kept["class"]).endswith("VecNormalize"):
                    # Into a copy: all but the statistics belongs to the run's number of environments.
                    filled = copy.copy(normalizer)
                    set_object_state(filled, kept, "VecNormalize")
                    normalizer.obs_rms, normalizer.ret_rms = filled.obs_rms, filled.ret_rms
    return agent, checkpoint.step


def _apply(checkpoint: Checkpoint, model: Algorithm) -> str:
    """Restore all that `learn` leaves alone; returns why the environments could not be restored, or ""."""
    config, tensors = checkpoint.config, checkpoint.tensors
    load_parameters(checkpoint.path, model.policy, tensors["policy"])
    load_extra_modules(checkpoint.path, model, config["modules"], tensors["modules"])
    load_optimizers(model, config["optimizer"], tensors["optimizer"])
    set_plain_attributes(model, config["attributes"])
    if isinstance(model, OffPolicyAlgorithm):
        set_buffer_state(model.replay_buffer, config["replay_buffer"], tensors.pop("replay_buffer"))
    problem = set_interaction_state(model, _run_of(checkpoint)["interaction"])
    if problem and isinstance(model, OffPolicyAlgorithm):
        assert model.replay_buffer is not None
        cut_off_episodes(model.replay_buffer)
    if problem and model.seed is not None:
        assert model.env is not None
        model.env.seed(model.seed + model.num_timesteps)  # not the episodes that the run began with
    return problem


def _run_of(checkpoint: Checkpoint) -> dict[str, Any]:
    run: dict[str, Any] = arrays_from_tensors(tree_from_json(checkpoint.config["run"], checkpoint.tensors["run"]))
    return run
