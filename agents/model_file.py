"""Agent files for algorithms of Stable-Baselines3: save and load without pickle, beside SB3's own zip.

    save_agent(model, "agent.zip")
    model = load_agent("agent.zip", env=env)

for PPO, A2C, TRPO, MaskablePPO, RecurrentPPO and ours, and for DQN, DDPG, SAC, TD3, CrossQ, QRDQN and TQC; the file of
a BC gives a BC.

A file holds weights, optimisers, arguments, counters, VecNormalize's statistics, and what our algorithms keep besides
(adaptive coefficient, warm-up, reference policy); the replay buffer only if you ask for it. Loading runs no code that
the file could name. See `agent_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from rlsmooth.agents.agent_file import (
    AgentFile,
    agent_from_safe_file,
    load_parameters,
    read_agent_file,
    save_agent_file,
)
from rlsmooth.agents.bc import BC
from rlsmooth.agents.model_arguments import (
    decode_model_arguments,
    encode_model_arguments,
    model_arguments,
)
from rlsmooth.agents.model_classes import (
    ALGORITHM_BASES,
    KNOWN_ALGORITHMS,
    Algorithm,
    listed_algorithm,
    model_class_by_name,
)
from rlsmooth.agents.model_state import (
    extra_modules,
    load_extra_modules,
    load_optimizers,
    optimizers,
    plain_attributes,
    set_plain_attributes,
)
from rlsmooth.agents.normalization import apply_normalization, encode_normalization
from rlsmooth.agents.off_policy_buffer import buffer_state, check_buffer, cut_off_episodes, set_buffer_state
from rlsmooth.agents.policy_arguments import custom_name, decode_arguments, encode_arguments, mark_custom
from rlsmooth.agents.policy_classes import resample_noise
from rlsmooth.agents.spaces import check_same_spaces, wrap_env
from rlsmooth.training import SafeFileError, isolated_rng

__all__ = ["load_agent", "save_agent"]

PARTS = {"class", "arguments", "policy_kwargs", "n_envs", "attributes", "optimizer", "modules", "normalization"}
BUFFER = "replay_buffer"  # beside PARTS: files of on-policy algorithms lack it


def save_agent(model: BaseAlgorithm | BC, path: str | Path, *, include_replay_buffer: bool = False) -> Path:
    """Write an agent file, whole or not at all.

    Args:
        model: PPO, A2C, TRPO, MaskablePPO, RecurrentPPO, SmoothedPPO, SmoothedA2C, SmoothedMaskablePPO,
            SmoothedRecurrentPPO, DQN, DDPG, SAC, TD3, CrossQ, QRDQN, TQC, or a class of your own below one of these
            (loading then asks for it); or a BC. Callables among its arguments, and classes of your own, are kept by
            name only: loading asks for them too, and for a replay buffer's class that the algorithm would not choose.
            The environment, callbacks, the logger and its folder are not kept.
        path: the file. As in Stable-Baselines3, `.zip` is added to a name without a suffix, and a missing folder made.
        include_replay_buffer: of an off-policy algorithm: keep its transitions too, so that training can go on with
            them. Acting needs none.

    Returns:
        The path written, with its suffix.

    Raises:
        TypeError: it is no such algorithm, or one without a replay buffer that can be kept (HerReplayBuffer can't).
        ValueError: the folder can't be written to.

    Example:
        >>> import tempfile
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, gamma=0.9)
        >>> path = save_agent(model, f"{tempfile.mkdtemp()}/agent"); path.name
        'agent.zip'
        >>> loaded = load_agent(path); type(loaded).__name__, loaded.n_steps, loaded.gamma
        ('PPO', 64, 0.9)
    """
    if include_replay_buffer:
        check_buffer("replay_buffer of model", getattr(model, "replay_buffer", None))
    if isinstance(model, BC):
        return model.save(path)
    kind = listed_algorithm(model) if isinstance(model, ALGORITHM_BASES) else None
    if kind is None or not isinstance(model, ALGORITHM_BASES):
        raise TypeError(
            f"model is a {type(model).__name__}: pass one of {', '.join(KNOWN_ALGORITHMS)}, a subclass of one, or a BC."
        )
    arguments, tensors = encode_model_arguments(model_arguments(model))
    policy_kwargs, of_policy = encode_arguments(model.policy_kwargs)
    optimizer, of_optimizer = optimizers(model)
    normalization, of_normalization = encode_normalization(model.get_vec_normalize_env())
    modules, of_modules = extra_modules(model)
    config = {
        "class": None if type(model).__name__ == kind else mark_custom(type(model)),
        "arguments": arguments,
        "policy_kwargs": policy_kwargs,
        "n_envs": model.n_envs,
        "attributes": plain_attributes(model),
        "optimizer": optimizer,
        "modules": modules,
        "normalization": normalization,
    }
    if include_replay_buffer:
        assert isinstance(model, OffPolicyAlgorithm)
        assert model.replay_buffer is not None
        config[BUFFER], rows = buffer_state(model.replay_buffer)
        tensors |= {f"{BUFFER}/{name}": tensor for name, tensor in rows.items()}
    kwargs_tensors = {f"policy_kwargs/{name}": tensor for name, tensor in of_policy.items()}
    extra = {**tensors, **kwargs_tensors, **of_optimizer, **of_normalization, **of_modules}
    return save_agent_file(path, kind=kind, policy=model.policy, config=config, tensors=extra)


def load_agent(
    path: str | Path,
    *,
    env: GymEnv | str | None = None,
    device: torch.device | str = "auto",
    model_class: type[Algorithm] | None = None,
    policy_class: type[BasePolicy] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    tensorboard_log: str | Path | None = None,
    verbose: int = 0,
) -> Any:
    """Read an agent file and build its algorithm, ready to act and to train on. Runs no code that the file could name.

    The caller's random state does not move. With an environment, statistics of VecNormalize go into its VecNormalize,
    or it is wrapped in one: `model.get_env()` has it, and `model.get_vec_normalize_env().training = False` is right for
    evaluation.

    Args:
        path: the file; `.zip` is added to a name without a suffix if there is no such file.
        env: an environment with the same spaces, or its id; acting needs none. Its number may differ from the saved,
            unless the file holds a replay buffer.
        device: as in Stable-Baselines3.
        model_class: built in place of the class named in the file; needed if that is a class of your own.
        policy_class: likewise, of the policy.
        custom_objects: argument to value, of the algorithm or the policy, taken in place of the file's: for callables
            and classes of your own (`{"learning_rate": my_schedule}`), or to change an argument; not to one that needs
            other parts than the file has: an ent_coef of SAC's that is learnt ("auto") can't become a number here.
        tensorboard_log: where to log; a file does not say it.
        verbose: as in Stable-Baselines3.

    Returns:
        The algorithm, of the class that was saved; a `BC` for a file of BC.

    Raises:
        SafeFileError: as in `load_agent_file`; also if the algorithm is not known here, or can't be built.
        ValueError: the environment's spaces differ.
        TypeError: `model_class` is no algorithm with a policy and a `learn`.

    Example:
        See `save_agent`.
    """
    path, content = read_agent_file(path)
    custom = dict(custom_objects or {})
    kind, own = _kind_and_arguments(content.config)
    if kind == "bc":
        return BC.load(path, env, device=device, policy_class=policy_class, custom_objects=custom)
    of_policy = {name: value for name, value in custom.items() if name not in own}
    file = agent_from_safe_file(
        path, content, kind=None, device=device, policy_class=policy_class, custom_objects=of_policy
    )
    build = _model_class(path, file, model_class)
    try:
        with isolated_rng():
            return _build(path, file, build, env, device, custom, tensorboard_log, verbose)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise SafeFileError(f"{str(path)!r} has malformed training state ({error!r}). Use another copy.") from error


# ---- loading


def _kind_and_arguments(head: Mapping[str, Any]) -> tuple[str, set[str]]:
    """The kind of agent, and which arguments are the algorithm's and not the policy's."""
    config: Any = head.get("config")
    arguments = config.get("arguments") if isinstance(config, dict) else None
    own = set(arguments if isinstance(arguments, dict) else ())
    return str(head.get("kind")), own - {"use_sde"}  # the policy's too


def _model_class(path: Path, file: AgentFile, given: type[Algorithm] | None) -> type[Algorithm]:
    if not set(file.config) >= PARTS:
        raise SafeFileError(f"{str(path)!r} holds a {file.kind!r} agent of a form not known here. Use another copy.")
    if given is not None:
        if not (isinstance(given, type) and issubclass(given, ALGORITHM_BASES)):
            raise TypeError(f"model_class={given!r} is no algorithm: pass a subclass of PPO or SAC, say.")
        return given
    custom = custom_name(file.config["class"])
    if custom is not None:
        raise SafeFileError(
            f"{str(path)!r} was saved with an algorithm of its writer's own ({custom}). "
            f"Import that class and load with model_class={custom.rpartition('.')[2]}."
        )
    try:
        return model_class_by_name(file.kind)
    except ValueError as error:
        raise SafeFileError(f"{str(path)!r}: {error}") from error


def _build(
    path: Path,
    file: AgentFile,
    build: type[Algorithm],
    env: GymEnv | str | None,
    device: torch.device | str,
    custom: Mapping[str, Any],
    tensorboard_log: str | Path | None,
    verbose: int,
) -> Algorithm:
    config, tensors = file.config, file.tensors
    arguments = decode_model_arguments(path, config["arguments"], tensors=tensors, custom_objects=custom)
    encoded_kwargs: Mapping[str, Any] = config["policy_kwargs"]
    policy_kwargs = decode_arguments(
        path,
        encoded_kwargs,
        tensors={name.removeprefix("policy_kwargs/"): tensor.cpu() for name, tensor in tensors.items()},
        custom_objects={name: value for name, value in custom.items() if name in encoded_kwargs},
    )
    venv = None if env is None else _environment(path, file, env, verbose)
    constructor: Any = build
    # The arguments are the file's to fill, so any error of torch's or Stable-Baselines3's can come.
    try:
        model: Algorithm = constructor(
            type(file.policy),
            venv,
            device=device,
            tensorboard_log=None if tensorboard_log is None else str(tensorboard_log),
            verbose=verbose,
            policy_kwargs=dict(policy_kwargs),
            _init_setup_model=False,
            **arguments,
        )
        model.policy_kwargs = policy_kwargs  # the constructor may have added its default optimiser
        if venv is None:
            model.observation_space, model.action_space = file.policy.observation_space, file.policy.action_space
            model.n_envs = int(config["n_envs"])
        set_plain_attributes(model, config["attributes"])
        model._setup_model()
    except Exception as error:
        raise SafeFileError(
            f"{str(path)!r}: {build.__name__} can't be built from the file's arguments ({type(error).__name__}: "
            f"{error}). Check model_class and custom_objects, or use another copy."
        ) from error
    _restore(path, file, model)
    return model


def _restore(path: Path, file: AgentFile, model: Algorithm) -> None:
    load_parameters(path, model.policy, file.policy.state_dict())
    load_extra_modules(path, model, file.config["modules"], file.tensors)
    set_plain_attributes(model, file.config["attributes"])
    try:
        load_optimizers(model, file.config["optimizer"], file.tensors)
    except ValueError as error:
        raise SafeFileError(f"{str(path)!r} has malformed training state ({error}). Use another copy.") from error
    model.policy.set_training_mode(False)
    resample_noise(model.policy, model.n_envs)  # of the fresh weights until now
    if file.config.get(BUFFER) is not None:
        _restore_buffer(path, file, model)


def _restore_buffer(path: Path, file: AgentFile, model: Algorithm) -> None:
    prefix = f"{BUFFER}/"
    rows = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    try:
        buffer = getattr(model, "replay_buffer", None)
        set_buffer_state(buffer, file.config[BUFFER], rows)
    except (TypeError, ValueError) as error:
        raise SafeFileError(f"{str(path)!r} holds a replay buffer that does not fit: {error}") from error
    cut_off_episodes(check_buffer("replay_buffer", buffer))  # the environment begins new ones


def _environment(path: Path, file: AgentFile, env: GymEnv | str, verbose: int) -> VecEnv:
    venv = wrap_env("env", env, verbose)
    check_same_spaces(
        "env", (venv.observation_space, venv.action_space), (file.policy.observation_space, file.policy.action_space)
    )
    if file.config["normalization"] is None:
        return venv
    try:
        venv = apply_normalization(venv, file.config["normalization"], file.tensors)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise SafeFileError(f"{str(path)!r} has statistics that don't fit env ({error}).") from error
    assert unwrap_vec_normalize(venv) is not None
    return venv
