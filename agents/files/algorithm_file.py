"""Agent files for algorithms of Stable-Baselines3: save and load without pickle, beside SB3's own zip.

    save_agent(model, "agent.zip")
    model = load_agent("agent.zip", env=env)

for PPO, A2C, TRPO, MaskablePPO, RecurrentPPO and ours, and for DQN, DDPG, SAC, TD3, CrossQ, QRDQN and TQC; the file of
a BC gives a BC.

A file holds weights, optimisers, arguments, counters, VecNormalize's statistics, and what our algorithms add (adaptive
coefficient, warm-up, reference policy); the replay buffer only if you ask for it. Loading runs no code that the file
could name.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import (
    ActionNoise,
)
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.files.algorithm_state import (
    KNOWN_BUFFERS,
    apply_normalization,
    buffer_state,
    check_buffer,
    cut_off_episodes,
    encode_normalization,
    has_automatic_buffer,
    noise_from_plain,
    noise_to_plain,
    normalization_settings,
    set_buffer_state,
)
from rlsmooth.agents.files.policy_file import (
    AgentFile,
    agent_from_safe_file,
    custom_name,
    decode_arguments,
    encode_arguments,
    load_parameters,
    mark_custom,
    read_agent_file,
    resample_noise,
    save_agent_file,
)
from rlsmooth.agents.sb3 import set_up_model, torch_parts
from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.entropy import target_in
from rlsmooth.agents.spaces import check_counts_from_start, check_same_spaces, wrap_env
from rlsmooth.targets import Smoothing
from rlsmooth.training import (
    SafeFileError,
    isolated_rng,
    load_optimizer,
    optimizer_to_tensors,
    tree_from_json,
    tree_to_json,
)
from rlsmooth.training.run import check_no_missing
from rlsmooth.untrusted import Within, decode, modules_within, refused

Algorithm: TypeAlias = OnPolicyAlgorithm | OffPolicyAlgorithm
ALGORITHM_BASES = (OnPolicyAlgorithm, OffPolicyAlgorithm)
"""The base classes of all algorithms here."""

# ---- names of algorithms

STANDARD: tuple[type[Algorithm], ...] = (A2C, PPO, DDPG, DQN, SAC, TD3, SmoothedA2C, SmoothedPPO)
ALGORITHMS: dict[str, type[Algorithm]] = {algorithm.__name__: algorithm for algorithm in STANDARD}
CONTRIB = ("MaskablePPO", "RecurrentPPO", "TRPO", "CrossQ", "QRDQN", "TQC")
SMOOTHED_CONTRIB = ("SmoothedMaskablePPO", "SmoothedRecurrentPPO")
LIBRARIES = ("rlsmooth", "sb3_contrib", "stable_baselines3")
KNOWN_ALGORITHMS = (*ALGORITHMS, *CONTRIB, *SMOOTHED_CONTRIB)
"""Their short names."""


def algorithm_class_by_name(name: Any) -> type[Algorithm]:
    """The algorithm of that short name, if `name`, which may be anything, is in the tables above.

    Raises:
        ValueError: the name is not known, or it needs sb3-contrib, which is not installed.

    Examples:
        >>> algorithm_class_by_name("PPO").__name__
        'PPO'
    """
    if not (isinstance(name, str) and name in KNOWN_ALGORITHMS):
        raise ValueError(f"the algorithm {name!r} is not known (known: {', '.join(KNOWN_ALGORITHMS)}).")
    try:
        return ALGORITHMS[name] if name in ALGORITHMS else _contrib_algorithm(name)
    except ImportError as error:
        raise ValueError(f"{name} needs sb3-contrib. Install it: pip install 'rlsmooth[contrib]'.") from error


def listed_algorithm(algorithm: Algorithm) -> str | None:
    """The short name of the nearest of the class and its ancestors that a file may name; None: there is none.

    Examples:
        >>> listed_algorithm(PPO("MlpPolicy", "CartPole-v1"))
        'PPO'
    """
    for ancestor in type(algorithm).__mro__:
        name, module = ancestor.__name__, ancestor.__module__
        # A namesake from elsewhere must not make us import anything.
        listed = name in KNOWN_ALGORITHMS and module.split(".")[0] in LIBRARIES
        if listed and algorithm_class_by_name(name) is ancestor:
            return name
    return None


def _contrib_algorithm(name: str) -> type[Algorithm]:
    # Imported by names that stand here, and only when asked for: sb3-contrib is an optional extra.
    if name in CONTRIB:
        import sb3_contrib

        found: type[Algorithm] = getattr(sb3_contrib, name)
        return found
    from rlsmooth.agents.smoothed import contrib_algorithms

    found = getattr(contrib_algorithms, name)
    return found


# ---- arguments

# Not saved: arguments that the loader gives, those saved with the policy, and output paths (a downloaded file must not
# choose where to write). rms_prop_eps and use_rms_prop only choose an optimiser, which the policy's arguments name.
NOT_KEPT = {
    "_init_setup_model",
    "device",
    "env",
    "policy",
    "policy_kwargs",
    "rms_prop_eps",
    "tensorboard_log",
    "use_rms_prop",
    "verbose",
}
MAX_ENVS = 2**16
ATTRIBUTES = {"stats_window_size": "_stats_window_size"}
SB3_LIBRARIES = ("stable_baselines3", "sb3_contrib")
LINEAR, SMOOTHING, NOISE, BUFFER_CLASS = "__linear__", "__smoothing__", "__noise__", "__buffer__"
ONLY_TO_TRAIN = (
    *("learning_rate", "clip_range", "clip_range_vf", "smoothing", "action_noise"),
    *("exploration_floor", "min_entropy_frac", "min_entropy_nats"),
)
REPLAY_BUFFER_CLASS = "replay_buffer_class"


def constructor_names(algorithm_class: type[BaseAlgorithm]) -> list[str]:
    """The names of the constructor's arguments, those that it passes on to its parents included.

    Examples:
        >>> from stable_baselines3 import A2C
        >>> constructor_names(A2C)[:4]
        ['policy', 'env', 'learning_rate', 'n_steps']
    """
    names: dict[str, None] = {}
    passed_on = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for ancestor in algorithm_class.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = list(inspect.signature(vars(ancestor)["__init__"]).parameters.values())[1:]
        names |= {parameter.name: None for parameter in parameters if parameter.kind not in passed_on}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return list(names)


def algorithm_arguments(algorithm: BaseAlgorithm) -> dict[str, Any]:
    """The arguments with which the constructor would build the same algorithm.

    Raises:
        TypeError: the constructor takes something that the algorithm keeps under no attribute of that name.
    """
    found = {}
    for name in constructor_names(type(algorithm)):
        if name in NOT_KEPT:
            continue
        attribute = ATTRIBUTES.get(name, name)
        if attribute not in vars(algorithm):
            raise TypeError(
                f"model is a {type(algorithm).__name__}, whose constructor takes {name!r} but keeps it under no "
                "attribute of that name: keep it, so that a file can hold it."
            )
        found[name] = vars(algorithm)[attribute]
    if isinstance(algorithm, OffPolicyAlgorithm) and has_automatic_buffer(algorithm):
        found[REPLAY_BUFFER_CLASS] = None  # as it was given, or as good as that
        # The algorithm itself adds n_steps and gamma; it will again, also if custom_objects change them.
        given = found["replay_buffer_kwargs"]
        found["replay_buffer_kwargs"] = {name: given[name] for name in given if name not in ("n_steps", "gamma")}
    return found


def encode_algorithm_argument(name: str, value: Any) -> tuple[Any, dict[str, Tensor]]:
    """One argument of an algorithm as JSON and tensors; what a file can't hold, such as a callable, marked.

    Examples:
        >>> encode_algorithm_argument("clip_range", FloatSchedule(0.2))[0]
        0.2
        >>> encode_algorithm_argument("learning_rate", abs)[0]
        {'__custom__': 'builtins.abs'}
    """
    while type(value) is FloatSchedule:  # the algorithms' own wrappers of numbers and schedules
        value = value.value_schedule
    if type(value) is ConstantSchedule:
        value = value.val
    if type(value) is LinearSchedule:
        return {LINEAR: [float(value.start), float(value.end), float(value.end_fraction)]}, {}
    if isinstance(value, Smoothing):
        if callable(value.alpha):
            return mark_custom(value.alpha), {}
        return {SMOOTHING: value.to_config()}, {}
    if name == REPLAY_BUFFER_CLASS and value in KNOWN_BUFFERS:
        return {BUFFER_CLASS: value.__name__}, {}
    if isinstance(value, type):
        # Rollout buffers of the libraries: the algorithm chooses the same one again.
        is_chosen_again = name != REPLAY_BUFFER_CLASS and value.__module__.split(".")[0] in SB3_LIBRARIES
        return (None if is_chosen_again else mark_custom(value)), {}
    if isinstance(value, TrainFreq):
        value = (value.frequency, value.unit.value)
    if isinstance(value, ActionNoise):
        plain = noise_to_plain(value)
        if plain is None:
            return mark_custom(value), {}
        encoded, tensors = tree_to_json(plain, f"argument.{name}")
        return {NOISE: encoded}, tensors
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return tree_to_json(value, f"argument.{name}")
    except TypeError:
        return mark_custom(value), {}


def decode_algorithm_argument(_: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The argument that `encode_algorithm_argument` was given.

    Raises:
        KeyError, TypeError, ValueError: the data is malformed.
    """
    if isinstance(value, dict) and set(value) == {LINEAR}:
        start, end, fraction = (float(number) for number in value[LINEAR])
        return LinearSchedule(start, end, fraction)
    if isinstance(value, dict) and set(value) == {SMOOTHING}:
        return Smoothing.from_config(value[SMOOTHING])
    if isinstance(value, dict) and set(value) == {NOISE}:
        return noise_from_plain(tree_from_json(value[NOISE], tensors))
    if isinstance(value, dict) and set(value) == {BUFFER_CLASS}:
        return {kind.__name__: kind for kind in KNOWN_BUFFERS}[value[BUFFER_CLASS]]
    return tree_from_json(value, tensors)


# ---- counters, optimisers and further modules

POLICY, POLICY_OPTIMIZER = "policy", "policy.optimizer"
# Numbers that are no counters, and objects that may be None.
NOT_COUNTERS = {
    "_custom_logger",
    "_last_episode_starts",
    "_last_lstm_states",
    "_last_obs",
    "_last_original_obs",
    "_stats_window_size",
    "_vec_normalize_env",
    "action_noise",
    "clip_range_vf",
    "ent_coef_optimizer",
    "entropy_target",
    "env",
    "ep_info_buffer",
    "ep_success_buffer",
    "log_ent_coef",
    "n_envs",
    "n_quantiles",
    "reference_policy",
    "replay_buffer",
    "rollout_buffer_class",
    "start_time",
    "verbose",
}


def plain_attributes(algorithm: Algorithm) -> dict[str, int | float | bool]:
    """The counters and switches that an algorithm keeps besides its arguments: its attributes that are plain numbers.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> plain_attributes(PPO("MlpPolicy", "CartPole-v1"))["num_timesteps"]
        0
    """
    names = _counter_names(algorithm)
    return {name: value for name, value in vars(algorithm).items() if name in names and value is not None}


def set_plain_attributes(algorithm: Algorithm, values: Mapping[str, Any]) -> None:
    """Restore `plain_attributes`: only what the algorithm has under that name, and numbers only.

    Raises:
        ValueError: there is another name, or something that is no number.
    """
    allowed = _counter_names(algorithm)
    for name, value in values.items():
        if name not in allowed or type(value) not in (bool, int, float):
            raise ValueError(f"{name}={value!r} is no counter of {type(algorithm).__name__}: use another copy.")
        setattr(algorithm, name, value)


def optimizers(algorithm: Algorithm) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state of all optimisers that the algorithm says it has, as JSON and tensors.

    Examples:
        >>> from stable_baselines3 import SAC
        >>> sorted(optimizers(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10))[0])
        ['actor.optimizer', 'critic.optimizer', 'ent_coef_optimizer']
    """
    names = _optimizer_names(algorithm)
    if names == [POLICY_OPTIMIZER]:  # the form of on-policy algorithms' files
        tensors, config = optimizer_to_tensors(algorithm.policy.optimizer)
        return config, tensors
    configs: dict[str, Any] = {}
    all_tensors: dict[str, Tensor] = {}
    for name in names:
        tensors, configs[name] = optimizer_to_tensors(recursive_getattr(algorithm, name))
        all_tensors |= {f"{name}/{key}": tensor for key, tensor in tensors.items()}
    return configs, all_tensors


def load_optimizers(algorithm: Algorithm, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Restore `optimizers`.

    Args:
        algorithm: which names the optimisers; the file does not.
        saved: the JSON.
        tensors: by name.

    Raises:
        ValueError: the algorithm has others, or a state does not fit.
    """
    names = _optimizer_names(algorithm)
    if names == [POLICY_OPTIMIZER]:
        load_optimizer(algorithm.policy.optimizer, tensors, saved)
        return
    if sorted(saved) != sorted(names):
        raise ValueError(f"the state is of the optimisers {sorted(saved)}, the algorithm has {sorted(names)}")
    for name in names:
        own = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        load_optimizer(recursive_getattr(algorithm, name), own, saved[name])


def extra_modules(algorithm: Algorithm) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """Modules and variables that Stable-Baselines3's own zip would hold, besides policy and optimisers.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> extra_modules(PPO("MlpPolicy", "CartPole-v1"))
        ({'modules': [], 'variables': []}, {})
    """
    names = _extra_names(algorithm)
    tensors = {f"variable/{name}": recursive_getattr(algorithm, name).data for name in names["variables"]}
    for name in names["modules"]:
        state = recursive_getattr(algorithm, name).state_dict()
        tensors |= {f"module/{name}/{key}": tensor for key, tensor in state.items()}
    return names, tensors


def load_extra_modules(
    path: Path, algorithm: Algorithm, saved: Any, tensors: Mapping[str, Tensor], anew: Collection[str] = ()
) -> None:
    """Restore `extra_modules`.

    Args:
        path: what errors call the file.
        algorithm: which names the attributes; the file does not.
        saved: the names in the file.
        tensors: by name.
        anew: variables that are not restored, in the file or not.

    Raises:
        SafeFileError: the file holds others, or of other shapes.
    """
    names, saved = (
        {**found, "variables": [name for name in found["variables"] if name not in anew]}
        for found in (_extra_names(algorithm), saved)
    )
    if saved != names:
        raise SafeFileError(f"{str(path)!r} holds {saved}, and the algorithm has {names}. Use another copy.")
    for name in names["modules"]:
        prefix = f"module/{name}/"
        state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        load_parameters(path, recursive_getattr(algorithm, name), state)
    for name in names["variables"]:
        value, own = tensors.get(f"variable/{name}"), recursive_getattr(algorithm, name)
        if value is None or value.shape != own.shape:
            raise SafeFileError(f"{str(path)!r} lacks {name} of shape {tuple(own.shape)}. Use another copy.")
        own.data.copy_(value)


class Placeholder:
    """In place of a function that no file can hold: called like it, and marked like it if the agent is saved again."""

    def __init__(self, full_name: str) -> None:
        self.__module__, _, self.__qualname__ = full_name.rpartition(".")

    def __call__(self, _: float) -> float:
        """No learning rate: there is no training."""
        return 0.0


class _RefusedLearn:
    """In place of the `learn` of an algorithm that lacks what only training needs."""

    def __init__(self, missing: tuple[str, ...]) -> None:
        self.missing = missing

    def __call__(self, *_: Any, **__: Any) -> None:
        check_no_missing(self.missing, f"load with custom_objects={{{self.missing[0]!r}: ...}} to train it further")


def missing_arguments(algorithm: BaseAlgorithm) -> tuple[str, ...]:
    """The arguments that only training needs and the file of a loaded algorithm could not hold."""
    found: Any = vars(algorithm).get("learn")
    return found.missing if isinstance(found, _RefusedLearn) else ()


def _placeholders(encoded: Any, custom: Mapping[str, Any]) -> dict[str, Any]:
    """What takes the place of marked arguments that acting does not need."""
    found: dict[str, Any] = {}
    for name, value in decode(dict[str, Any], encoded, "arguments").items():
        full_name = custom_name(value)
        if full_name is None or name not in ONLY_TO_TRAIN or name in custom:
            continue
        placeholder = Placeholder(full_name)
        found[name] = {"smoothing": Smoothing(alpha=placeholder), "action_noise": None}.get(name, placeholder)
    return found


def _counter_names(algorithm: Algorithm) -> set[str]:
    excluded = {*constructor_names(type(algorithm)), *NOT_COUNTERS}
    return {
        name
        for name, value in vars(algorithm).items()
        if name not in excluded and (value is None or type(value) in (bool, int, float))
    }


def _extra_names(algorithm: Algorithm) -> dict[str, list[str]]:
    modules, variables = torch_parts(algorithm)
    others = [name for name in modules if name != POLICY and not _is_optimizer(algorithm, name)]
    return {"modules": others, "variables": list(variables)}


def _optimizer_names(algorithm: Algorithm) -> list[str]:
    return [name for name in torch_parts(algorithm)[0] if _is_optimizer(algorithm, name)]


def _is_optimizer(algorithm: Algorithm, name: str) -> bool:
    return isinstance(recursive_getattr(algorithm, name), torch.optim.Optimizer)


# ---- files

PARTS = {"class", "arguments", "policy_kwargs", "n_envs", "attributes", "optimizer", "modules", "normalization"}
ENTROPY_STATE = {"_entropy_state", "_set_point"}
"""Of the feedback that holds an entropy target."""
REPLAY_BUFFER = "replay_buffer"  # beside PARTS: files of on-policy algorithms lack it


def save_agent(model: BaseAlgorithm | BC, path: str | Path, *, include_replay_buffer: bool = False) -> Path:
    """Write an agent file, whole or not at all.

    Args:
        model: PPO, A2C, TRPO, MaskablePPO, RecurrentPPO, SmoothedPPO, SmoothedA2C, SmoothedMaskablePPO,
            SmoothedRecurrentPPO, DQN, DDPG, SAC, TD3, CrossQ, QRDQN, TQC, or a class of your own below one of these
            (loading then asks for it); or a BC. Callables among its arguments, and classes of your own, are kept by
            name only: loading asks for them too, and for a replay buffer's class that the algorithm would not choose.
            The environment, callbacks, the logger and its folder are not kept.
        path: the file. As in Stable-Baselines3, `.zip` is added to a name without a suffix, and a missing folder made.
        include_replay_buffer: of an off-policy algorithm: keep its transitions too, so that training can continue with
            them. `predict` needs none.

    Returns:
        The path written, with its suffix.

    Raises:
        TypeError: it is no such algorithm, or one without a replay buffer that can be kept (HerReplayBuffer can't).
        ValueError: the folder can't be written to; a plain policy whose actions do not start at 0.

    Examples:
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
    check_counts_from_start("model", model.policy)
    arguments, tensors = encode_arguments(algorithm_arguments(model), encode_algorithm_argument)
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
        config[REPLAY_BUFFER], transitions = buffer_state(model.replay_buffer)
        tensors |= {f"{REPLAY_BUFFER}/{name}": tensor for name, tensor in transitions.items()}
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
    """Read an agent file and build its algorithm, ready to predict and to train. Runs no code that the file could name.

    The caller's random state does not move. With an environment, statistics of VecNormalize go into its VecNormalize,
    or it is wrapped in one: `model.get_env()` has it, and `model.get_vec_normalize_env().training = False` is right for
    evaluation.

    Args:
        path: the file; `.zip` is added to a name without a suffix if there is no such file.
        env: an environment with the same spaces, or its id; `predict` needs none. Its number may differ from the saved,
            unless the file holds a replay buffer.
        device: as in Stable-Baselines3.
        model_class: built in place of the class named in the file; needed if that is a class of your own.
        policy_class: built in place of the policy's class named in the file.
        custom_objects: argument to value, of the algorithm or the policy, taken in place of the file's: for classes of
            your own, for callables (`{"learning_rate": my_schedule}`, which only training needs), or to change an
            argument. A target entropy can be turned on and off; what else needs other parts than the file has can't be
            changed: SAC's learnt ent_coef ("auto") can't become a number here.
        tensorboard_log: where to log; a file does not say it.
        verbose: as in Stable-Baselines3.

    Returns:
        The algorithm, of the class that was saved; a `BC` for a file of BC.

    Raises:
        SafeFileError: as in `load_agent_file`; also if the algorithm is not known here, or can't be built.
        ValueError: the environment's spaces differ; a plain policy whose actions do not start at 0.
        TypeError: `model_class` is no algorithm with a policy and a `learn`.
    """
    path, content = read_agent_file(path)
    custom = dict(custom_objects or {})
    kind, own = _kind_and_arguments(content.config, model_class)
    if kind == "bc":
        return BC.load(path, env, device=device, policy_class=policy_class, custom_objects=custom)
    of_policy = {name: value for name, value in custom.items() if name not in own}
    file = agent_from_safe_file(
        path, content, kind=None, device=device, policy_class=policy_class, custom_objects=of_policy
    )
    build = _algorithm_class(path, file, model_class)
    with isolated_rng():
        venv = None
        if env is not None:  # checked here, since the caller's mistakes are not the file's
            venv = wrap_env("env", env, verbose)
            its_spaces = (file.policy.observation_space, file.policy.action_space)
            check_same_spaces("env", (venv.observation_space, venv.action_space), its_spaces)
        with refused(path, SafeFileError, problem="has malformed training state"):
            return _build(path, file, build, venv, device, custom, tensorboard_log, verbose)


@dataclass(frozen=True)
class SavedTraining:
    """How the algorithm in an agent file was trained, as far as words and numbers say it.

    Attributes:
        kind: the algorithm's short name.
        n_envs: in how many environments.
        normalize: the arguments of its `VecNormalize`, or None.
        arguments: those of its constructor that are numbers, words and switches; a schedule that falls to 0 is such as
            `"lin_0.1"`, and of a smoothing this is the coefficient.
        smoothing: the whole of it, or None.
    """

    kind: str
    n_envs: int
    normalize: dict[str, Any] | None
    arguments: dict[str, Any]
    smoothing: Smoothing | None


def read_training(path: str | Path) -> SavedTraining:
    """How the algorithm in an agent file was trained; nothing is built.

    Args:
        path: of the file.

    Raises:
        SafeFileError: it is no whole agent file.
        ValueError: it holds a clone, which no algorithm has trained.

    Examples:
        >>> import tempfile
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64)
        >>> saved = read_training(save_agent(model, f"{tempfile.mkdtemp()}/agent.zip"))
        >>> saved.kind, saved.n_envs, saved.normalize, saved.arguments["n_steps"]
        ('PPO', 1, None, 64)
    """
    path, content = read_agent_file(path)
    if content.config.get("kind") == "bc":
        raise ValueError(f"{str(path)!r} is a clone, without an algorithm: let one begin with it by from_bc.")
    with refused(path, SafeFileError, problem="has malformed training state"):
        config = decode(dict, content.config["config"], "config")
        arguments, smoothing = {}, None
        for name, value in decode(dict[str, Any], config["arguments"], "arguments").items():
            if isinstance(value, dict) and set(value) in ({LINEAR}, {SMOOTHING}):
                value = decode_algorithm_argument(name, value, {})
            if isinstance(value, Smoothing):
                smoothing, value = value, value.alpha
            if isinstance(value, LinearSchedule) and (value.end, value.end_fraction) == (0.0, 1.0):
                value = f"lin_{value.start}"
            if isinstance(value, (bool, int, float, str)):
                arguments[name] = value
        return SavedTraining(
            kind=str(content.config["kind"]),
            n_envs=decode(Annotated[int, Within(1, MAX_ENVS)], config["n_envs"], "n_envs"),
            normalize=None if config["normalization"] is None else normalization_settings(config["normalization"]),
            arguments=arguments,
            smoothing=smoothing,
        )


def _kind_and_arguments(head: Mapping[str, Any], given: type[Algorithm] | None) -> tuple[str, set[str]]:
    """The kind of agent, and which arguments are the algorithm's and not the policy's."""
    kind, config = str(head.get("kind")), head.get("config")
    arguments = config.get("arguments") if isinstance(config, dict) else None
    own = set(arguments if isinstance(arguments, dict) else ())
    with suppress(ValueError):  # another check says what is wrong
        own |= _constructor_arguments(given or algorithm_class_by_name(kind))
    return kind, own - {"use_sde"}  # the policy's too


def _constructor_arguments(algorithm: type[BaseAlgorithm]) -> set[str]:
    """Also those that a file of an earlier version lacks."""
    return {*constructor_names(algorithm)} - NOT_KEPT if isinstance(algorithm, type) else set()


def _algorithm_class(path: Path, file: AgentFile, given: type[Algorithm] | None) -> type[Algorithm]:
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
        return algorithm_class_by_name(file.kind)
    except ValueError as error:
        raise SafeFileError(f"{str(path)!r}: {error}") from error


def _build(
    path: Path,
    file: AgentFile,
    build: type[Algorithm],
    venv: VecEnv | None,
    device: torch.device | str,
    custom: Mapping[str, Any],
    tensorboard_log: str | Path | None,
    verbose: int,
) -> Algorithm:
    config, tensors = file.config, file.tensors
    absent = _placeholders(config["arguments"], custom)
    names = {*config["arguments"], *_constructor_arguments(build)}
    given = {name: value for name, value in custom.items() if name in names}
    n_envs = decode(Annotated[int, Within(1, MAX_ENVS)], config["n_envs"], "n_envs")
    arguments = decode_arguments(
        path,
        config["arguments"],
        tensors=tensors,
        custom_objects=absent | given,
        decode=decode_algorithm_argument,
    )
    encoded_kwargs: Mapping[str, Any] = config["policy_kwargs"]
    policy_kwargs = decode_arguments(
        path,
        encoded_kwargs,
        tensors={name.removeprefix("policy_kwargs/"): tensor.cpu() for name, tensor in tensors.items()},
        custom_objects={name: value for name, value in custom.items() if name in encoded_kwargs},
    )
    if venv is not None and config["normalization"] is not None:
        with refused(path, SafeFileError, problem="has statistics that don't fit env"):
            venv = apply_normalization(venv, config["normalization"], tensors)
        assert unwrap_vec_normalize(venv) is not None
    # Feedback that has held an entropy of one kind knows nothing of another kind's.
    anew = set() if target_in(config["arguments"]) == target_in(arguments) else ENTROPY_STATE
    attributes = {name: value for name, value in config["attributes"].items() if name not in anew}
    constructor: Any = build
    # The arguments are the file's to fill, so any error of torch's or Stable-Baselines3's can come.
    fix = "Check model_class and custom_objects, or use another copy."
    problem = f"gives arguments from which {build.__name__} can't be built"
    with refused(path, SafeFileError, fix, problem), modules_within(file.policy.state_dict() | tensors):
        algorithm: Algorithm = constructor(
            type(file.policy),
            venv,
            device=device,
            tensorboard_log=None if tensorboard_log is None else str(tensorboard_log),
            verbose=verbose,
            policy_kwargs=dict(policy_kwargs),
            _init_setup_model=False,
            **arguments,
        )
        algorithm.policy_kwargs = policy_kwargs  # the constructor may have added its default optimiser
        if venv is None:
            algorithm.observation_space = file.policy.observation_space
            algorithm.action_space = file.policy.action_space
            algorithm.n_envs = n_envs
        set_plain_attributes(algorithm, attributes)
        set_up_model(algorithm)
    check_counts_from_start(f"the agent in {str(path)!r}", algorithm.policy)
    _restore(path, file, algorithm, attributes, anew)
    if absent:
        vars(algorithm)["learn"] = _RefusedLearn(tuple(absent))
    return algorithm


def _restore(
    path: Path, file: AgentFile, algorithm: Algorithm, attributes: Mapping[str, Any], anew: Collection[str]
) -> None:
    load_parameters(path, algorithm.policy, file.policy.state_dict())
    load_extra_modules(path, algorithm, file.config["modules"], file.tensors, anew)
    set_plain_attributes(algorithm, attributes)
    with refused(path, SafeFileError, problem="has malformed training state"):
        load_optimizers(algorithm, file.config["optimizer"], file.tensors)
    algorithm.policy.set_training_mode(False)
    resample_noise(algorithm.policy, algorithm.n_envs)  # of the fresh weights until now
    if file.config.get(REPLAY_BUFFER) is not None:
        _restore_buffer(path, file, algorithm)


def _restore_buffer(path: Path, file: AgentFile, algorithm: Algorithm) -> None:
    prefix = f"{REPLAY_BUFFER}/"
    kept = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    with refused(path, SafeFileError, problem="holds a replay buffer that does not fit"):
        buffer = getattr(algorithm, "replay_buffer", None)
        set_buffer_state(buffer, file.config[REPLAY_BUFFER], kept)
    cut_off_episodes(check_buffer("replay_buffer", buffer))  # the environment begins new ones
