"""The environments and devices that a command line names, checked before anything is written."""

from __future__ import annotations

import difflib
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, Literal

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack

import rlsmooth.envs  # registers ours
from rlsmooth.checks import check_positive_int
from rlsmooth.envs import Resumable, VectorEnvBridge
from rlsmooth.scripts.arguments import Vectorization
from rlsmooth.scripts.hyperparameters import wrapper_words
from rlsmooth.scripts.run_folder import EnvironmentSettings, read_pair
from rlsmooth.training.distributed import Ranks
from rlsmooth.training.mlp_engine import Engine
from rlsmooth.training.seeding import set_threads

assert rlsmooth.envs.ENVIRONMENTS
Wrap = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]


def make_envs(
    env: str | EnvironmentSettings,
    n_envs: int,
    seed: int,
    *,
    vec_env: Literal["dummy", "subproc"] = "dummy",
    env_kwargs: Mapping[str, Any] | None = None,
    vectorization: Vectorization | None = None,
) -> VecEnv:
    """`n_envs` environments of the id `env`, with monitors, as SB3's `make_vec_env` makes them.

    Args:
        env: a Gymnasium id, or `module:id`; or with all that the options say, arguments included.
        n_envs: how many.
        seed: environment i gets `seed + i`.
        vec_env: all in this process, or each in a process of its own.
        env_kwargs: arguments of each environment.
        vectorization: how to step them in one call, in place of `vec_env`; see `VectorEnvBridge`.

    Raises:
        ValueError: no environment of that id is known, or it can't be made; it has observations that SB3 can't take; a
            seed that is negative or too large; or `vec_env` and `vectorization` are both given.
    """
    check_positive_int("n_envs", n_envs)
    check_seed(seed)
    settings = EnvironmentSettings(env=env, env_kwargs=env_kwargs or {}) if isinstance(env, str) else env
    stack = settings.frame_stack
    if stack is not None:
        check_positive_int("frame_stack", stack)
    wrap = partial(_wrapped, settings.wrappers)
    for word in settings.wrappers:
        _wrapper(word)  # found, or reported, in this process
    with warnings.catch_warnings():  # SB3 asks each environment for images, also one that draws none
        warnings.filterwarnings("ignore", ".*not in the possible render_modes")
        venv = _make(settings, n_envs, seed, vec_env, vectorization, wrap)
    space = venv.observation_space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if stack is not None and not all(isinstance(part, spaces.Box) for part in parts):
        venv.close()
        raise ValueError(
            f"frame_stack={stack} stacks arrays of numbers, env={settings.env!r} has {space}: leave it out, or wrap "
            "the environment (--env-wrapper)."
        )
    return venv if stack is None else VecFrameStack(venv, stack)


def _make(
    settings: EnvironmentSettings,
    n_envs: int,
    seed: int,
    vec_env: Literal["dummy", "subproc"],
    vectorization: Vectorization | None,
    wrap: Wrap,
) -> VecEnv:
    env, kwargs = settings.env, dict(settings.env_kwargs)
    if vectorization is not None and vec_env != "dummy":
        raise ValueError(
            f"--vec-env {vec_env} and --vectorization {vectorization} exclude each other: use one of them."
        )
    try:
        name = _importing_name(env, settings.packages)
        if vectorization is not None:
            return _bridge(name, n_envs, seed, kwargs, vectorization, [wrap] if settings.wrappers else [])
        given: dict[str, Any] = {"n_envs": n_envs, "seed": seed, "env_kwargs": kwargs}
        if vec_env == "dummy":
            made = make_vec_env(name, **given, wrapper_class=wrap if settings.wrappers else None)
            _check_taken(env, made.observation_space)
            return made
        _check_taken(env, make_vec_env(name, 1, env_kwargs=kwargs, wrapper_class=wrap).observation_space)
        # Across processes, a checkpoint reaches an environment's state only through this wrapper.
        made = make_vec_env(name, **given, vec_env_cls=SubprocVecEnv, wrapper_class=partial(_in_worker, wrap))
        return _with_named_workers(made)
    except ImportError as error:
        module = env.rpartition(":")[0]
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error  # Gymnasium's names no module
        is_own = bool(cause.name) and f"{module}.".startswith(f"{cause.name}.")
        words = import_help(module, cause) if is_own else f"it can't be made: {error}"
        raise ValueError(f"env={env!r}: {words}") from error
    except gym.error.Error as error:
        raise ValueError(f"env={env!r} can't be made: {error}{_known_form(env, error)}") from error
    except (TypeError, ValueError, AssertionError) as error:
        _refuse_spaces(settings, wrap)
        raise ValueError(f"env={env!r} can't be made with env_kwargs={kwargs}: {error}") from error


def _importing_name(env: str, packages: Sequence[str]) -> str:
    """The id with the module that registers it, which Gymnasium then imports in each new process too."""
    if env.startswith("rlsmooth/"):
        return f"rlsmooth.envs:{env}"
    chosen = ""
    for package in packages:
        is_known = env in gym.registry
        try:
            import_module(package)
        except ImportError as error:
            raise ValueError(f"gym_packages: {import_help(package, error)}") from error
        chosen = package if not chosen or (not is_known and env in gym.registry) else chosen
    return env if not chosen or ":" in env else f"{chosen}:{env}"


def _known_form(env: str, error: Exception) -> str:
    """How to write the id of an environment that a package or a module registers only when it is imported."""
    name = env.rpartition(":")[2]
    packages = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
    package = next((package for start, package in packages.items() if name.startswith(start)), None)
    if env != name:
        return ""
    if package is None:
        is_name = isinstance(error, (gym.error.NameNotFound, gym.error.NamespaceNotFound)) and "mean" not in str(error)
        return f" Where a module registers it, write --env module:{env}." if is_name else ""
    return f' Write --env {package}:{env}; the package comes with pip install "rlsmooth[envs]".'


# ---- what SB3 can take

SMALLEST_IMAGE = 36
"""Pixels a side that SB3's `NatureCNN` takes."""
TAKEN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def _check_taken(env: str, space: spaces.Space[Any]) -> None:
    """Raise ValueError if observations of the space can't be taken by SB3; the message names a wrapper that helps."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    for key, part in parts.items():
        if not isinstance(part, TAKEN):
            words = type(part).__name__
            wrapper = "gymnasium.wrappers.FlattenObservation"
            if words == "MissionSpace":
                wrapper = "minigrid.wrappers.FlatObsWrapper (or minigrid.wrappers.ImgObsWrapper for the image alone)"
            elif not isinstance(part, (spaces.Dict, spaces.Tuple)):
                wrapper = "a class of yours, module.Class"
            raise ValueError(
                f"env={env!r} has observations {f'whose {key!r} is ' if key else 'that are '}a {words}, which "
                f"Stable-Baselines3 can't take: wrap it, --env-wrapper {wrapper}."
            )


def _refuse_spaces(settings: EnvironmentSettings, wrap: Wrap) -> None:
    """Raise ValueError if it is their observations for which the environments could not be vectorised."""
    try:
        env = wrap(gym.make(_importing_name(settings.env, settings.packages), **settings.env_kwargs))
    except Exception:  # the environment's own, of whatever kind
        return
    env.close()
    _check_taken(settings.env, env.observation_space)


# ---- wrappers


def _wrapped(words: Sequence[str], env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Called in a worker's process too."""
    for word in words:
        wrapper, kwargs = _wrapper(word)
        try:
            env = wrapper(env, **kwargs)
        except Exception as error:  # the wrapper's own, of whatever kind
            raise ValueError(f"env_wrapper={word!r} does not fit the environment: {error}") from error
    return env


def _wrapper(word: str) -> tuple[Callable[..., gym.Env[Any, Any]], dict[str, Any]]:
    """The class and the arguments that a word of `wrapper_words` names."""
    (word,) = wrapper_words(word)
    path, _, text = word.partition(":")
    module, _, name = path.rpartition(".")
    try:
        wrapper = getattr(import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"env_wrapper={word!r}: {import_help(module, error)}") from error
    if not callable(wrapper):
        near = difflib.get_close_matches(name, dir(import_module(module)), n=1)
        raise ValueError(
            f"env_wrapper={word!r}: {module} has no class {name!r}{f' (did you mean {near[0]}?)' if near else ''}."
        )
    kwargs = read_pair("env_wrapper", f"{name}={text}")[1] if text else {}
    return wrapper, {key: tuple(part) if isinstance(part, list) else part for key, part in kwargs.items()}


def _bridge(
    name: str, n_envs: int, seed: int, env_kwargs: dict[str, Any], vectorization: Vectorization, wrappers: list[Any]
) -> VecEnv:
    wrappers = [*wrappers, *([_without_interrupts] if vectorization == "async" else [])]
    made = VectorEnvBridge(name, n_envs, vectorization=vectorization, env_kwargs=env_kwargs, wrappers=wrappers)
    base: Any = made.vector.unwrapped
    if vectorization == "async":
        base.parent_pipes = _named_remotes(base.parent_pipes, base.processes)
    made.seed(seed)
    made.action_space.seed(seed)  # as make_vec_env does
    return made


def evaluation_vectorization(vectorization: Vectorization | None) -> Vectorization | None:
    """How evaluations are vectorised: as training, but without processes of their own, which give the same numbers."""
    return "sync" if vectorization == "async" else vectorization


class WorkerDiedError(OSError):
    """The process of an environment ended, so that nothing more can be asked of it."""


class _Remote:
    """A worker's connection that says which worker has died, where the connection itself only says that it is broken.

    Args:
        remote: the connection.
        process: the worker.
        place: which environment it has.
    """

    def __init__(self, remote: Any, process: Any, place: int) -> None:
        self._remote, self._process, self._place = remote, process, place

    def send(self, message: Any) -> None:
        """Send to the worker."""
        with self._explained():
            self._remote.send(message)

    def recv(self) -> Any:
        """Receive from the worker."""
        with self._explained():
            return self._remote.recv()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._remote, name)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError) as error:
            self._process.join(timeout=5)
            code = self._process.exitcode
            how = f"by signal {-code} ({_signal_name(-code)})" if code is not None and code < 0 else f"with code {code}"
            raise WorkerDiedError(
                f"the process of environment {self._place} (pid {self._process.pid}) has ended {how}. Its error, if it "
                "had one, is above. Without one it was killed, perhaps for memory: use fewer --n-envs, or neither "
                "--vec-env subproc nor --vectorization async."
            ) from error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _with_named_workers(venv: VecEnv) -> VecEnv:
    base: Any = venv.unwrapped
    base.remotes = _named_remotes(base.remotes, base.processes)
    return venv


def _named_remotes(remotes: Sequence[Any], processes: Sequence[Any]) -> tuple[_Remote, ...]:
    return tuple(_Remote(*each, place) for place, each in enumerate(zip(remotes, processes, strict=True)))


def _in_worker(wrap: Wrap, env: gym.Env[Any, Any]) -> Resumable:
    return Resumable(_without_interrupts(wrap(env)))


def _without_interrupts(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Called in a worker's process: an interrupted run needs it until its last checkpoint is written."""
    if multiprocessing.parent_process() is not None:  # Gymnasium makes one more, for the spaces, in this process
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes of the command
    return env


def check_env(env: str, packages: Sequence[str] = ()) -> str:
    """Return `env`, an id or `module:id`; the module and the packages are imported, which registers environments.

    Raises:
        ValueError: there is no such module or environment.
    """
    module, _, name = env.rpartition(":")
    try:
        if module:
            import_module(module)
        _importing_name(env, packages)
        gym.spec(name)
    except ImportError as error:
        raise ValueError(f"env={env!r}: {import_help(module, error)}") from error
    except (gym.error.Error, ValueError) as error:
        raise ValueError(f"env={env!r} is not known: {error}{_known_form(env, error)}") from error
    return env


def import_help(module: str, error: ImportError) -> str:
    """Why the module of an environment's id could not be imported, and what to do."""
    return (
        f"the module {module!r} can't be imported ({error}): install it, or, if it is a file in this folder, put "
        "PYTHONPATH=. before the command."
    )


def check_seed(seed: int) -> int:
    """Return `seed`.

    Raises:
        ValueError: it is negative, or larger than numpy takes.
    """
    if check_positive_int("seed", seed, minimum=0) >= 2**32:
        raise ValueError(f"seed={seed} must be under 2**32, since numpy takes no larger one.")
    return seed


def check_device(device: str) -> str:
    """Return `device`.

    Raises:
        ValueError: torch does not know it, or this machine does not have it (SB3 would use the CPU without a word).
    """
    if device == "auto":
        return device
    try:
        torch.zeros(1, device=device).item()  # the device `meta` has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={device!r} can't be used ({reason}): try auto or cpu.") from error
    return device


def limit_threads(num_threads: int) -> None:
    """Let torch and numpy's matrix products use so many threads; -1 leaves them as they are.

    Raises:
        TypeError: no whole number.
        ValueError: neither -1 nor at least 1.
    """
    if num_threads != -1:
        set_threads(check_positive_int("num_threads", num_threads))


def cloning_engine(args: Any, policy: str, device: str) -> Engine:
    """The engine of a cloning command: the one asked for, or the fastest that serves the policy.

    Args:
        args: the command's.
        policy: Stable-Baselines3's alias.
        device: of `check_device`.
    """
    if args.engine != "auto":
        chosen: Engine = args.engine
        return chosen
    plain = policy.removeprefix("Maskable") == "MlpPolicy" and getattr(args, "gradient_accumulation", 1) == 1
    plain = plain and Ranks.current().size == 1
    return "numpy" if plain and get_device(device).type == "cpu" else "torch"


def policy_alias(space: spaces.Space[Any], *, recurrent: bool = False) -> str:
    """SB3's alias of the policy that fits such observations: `MlpPolicy`, `CnnPolicy`, `MultiInputLstmPolicy`, ...

    Images of less than 36 by 36, such as MiniGrid's, are too small for the convolutions of a `CnnPolicy`.
    """
    if isinstance(space, spaces.Dict):
        name = "MultiInput"
    else:
        name = "Cnn" if is_image_space(space) and sorted(space.shape or ())[-2] >= SMALLEST_IMAGE else "Mlp"
    return f"{name}{'Lstm' if recurrent else ''}Policy"
