"""Options that several commands share, and how their words are read. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from rlsmooth.checks import lock_folder
from rlsmooth.scripts.run_folder import (
    CHOICE,
    MOST_FRAMES,
    EnvironmentSettings,
    choosing_kwargs,
    choosing_wrappers,
    imports_module,
    kwargs_words,
    read_kwargs,
    read_pair,
    read_settings,
    refuse_links,
    stored_hyperparameters,
    stored_kwargs,
)
from rlsmooth.untrusted import decode, decode_fields, refused

if TYPE_CHECKING:
    from rlsmooth.data import Demonstrations, ObservationOnly
    from rlsmooth.targets import Smoothing


alias = tyro.conf.arg
Ordinal = Literal["adjacent", "triangular", "binomial", "poisson", "beta", "exponential"]
"""Schemes by which ordered actions or classes share a target's mass with their neighbours."""
Reference = Literal["uniform", Ordinal]
ClassReference = Literal["uniform", "prior", "tree", "kernel", Ordinal]
Algorithm = Literal["ppo", "a2c", "maskable-ppo", "trpo", "sac", "dqn"]
SavedAlgorithm = Literal[
    "a2c", "bc", "ddpg", "dqn", "maskable-ppo", "ppo", "qrdqn", "recurrent-ppo", "sac", "td3", "tqc", "trpo"
]
"""Of an agent in SB3's own zip, which does not say it."""
Engine = Literal["auto", "torch", "numpy"]
Vectorization = Literal["vector_entry_point", "sync", "async", "envpool"]
ArgsT = TypeVar("ArgsT", bound="RunArgs")

WORDS = ("env_kwargs", "eval_env_kwargs", "env_wrapper", "hyperparams")
"""Options of which those of a resumed run, or some of them, may be given again."""
SHIPPED = {"CartPole-v1": "cartpole-v1"}
MAY_DIFFER = ("resume", "progress", "verbose", "device", "devices")
"""Options of a resumed run that need not be as it began: how it is shown, and where it is computed."""
MOST = {
    **dict.fromkeys(("n_timesteps", "steps", "value_warmup_steps"), 10**9),
    **dict.fromkeys(("learning_starts", "transitions_per_round", "round_min_timesteps", "gen_train_timesteps"), 10**7),
    **dict.fromkeys(("batch_size", "demo_batch_size", "n_steps"), 2**16),
    **dict.fromkeys(("n_envs", "n_eval_envs", "num_threads", "width", "clients_per_round", "image_size"), 1_024),
    "clients": 10_000,
    "action_bins": 4_096,
    "frame_stack": MOST_FRAMES,
}
"""How much a run's `config.json` may ask for, which may be a stranger's: what takes more of memory or time must be
given again. Of whole numbers that are not listed: `MOST_OF_OTHERS`."""
MOST_OF_OTHERS = 10**6
MOST_LAYERS, MOST_SQUARES = 64, 2**25
"""How many layers a list of sizes may have, and to what the squares of the sizes may add up."""
FREE = ("seed", "eval_freq", "save_freq", "checkpoint_freq", "log_interval", "early_stopping_patience")
ADDED: dict[str, Any] = {
    "env_kwargs": (),
    "eval_env_kwargs": (),
    "gym_packages": (),
    "env_wrapper": (),
    "frame_stack": None,
    "track": None,
    "track_project": "rlsmooth",
    "engine": "torch",
    "shuffle": "full",
    "weights": None,
    "temperature": 1.0,
    "cap": 20.0,
    "share": 0.5,
    "values": "critic",
    "gamma": 0.99,
    "devices": 1,
    "vectorization": None,
    "absorbing_reward": "learned",
    "min_entropy_frac": None,
    "min_entropy_nats": None,
    "trained_agent": None,
}
"""Options that runs of earlier versions do not have, with what these did."""


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """Options of every command that trains."""

    device: str = "auto"
    """Where to train: auto, cpu, cuda."""
    num_threads: int = 1
    """How many threads torch and numpy may use: small networks are fastest with one; -1: as many as they would."""
    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The run goes to <log folder>/<command>/<env>_<n>/."""
    tensorboard_log: Annotated[Path | None, alias(aliases=["-tb"])] = None
    """Where TensorBoard's files go, as <tensorboard log>/<env>_<n>/. Default: to the run's folder."""
    resume: Path | None = None
    """Resume a run that was killed, given its folder; its arguments are those it began with."""
    progress: Annotated[bool, alias(aliases=["-P"])] = False
    """Show a progress bar; on a terminal there is one anyway."""
    verbose: int = 0
    """1 prints what is logged."""


@dataclasses.dataclass(frozen=True)
class ProcessArgs:
    """Options of commands that can train in several processes."""

    devices: int = 1
    """Train in so many processes of this machine, one a GPU where there are any: each computes its share of every
    minibatch. On several machines, leave it 1 and start the command by torchrun."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentArgs:
    """Options of every command that makes environments."""

    env: str = "CartPole-v1"
    """The environment's id; module:id for one that a module of yours registers, such as my_envs:Maze-v0."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, as key=value or key:value: map_name=8x8 is_slippery=false."""
    eval_env_kwargs: tuple[str, ...] = ()
    """Arguments of the environments to evaluate in, in place of --env-kwargs."""
    gym_packages: tuple[str, ...] = ()
    """Modules to import first, which register environments: gymnasium_robotics."""
    env_wrapper: tuple[str, ...] = ()
    """Wrap each environment in these classes, from the inside out: minigrid.wrappers.FlatObsWrapper; with arguments,
    "gymnasium.wrappers.ResizeObservation:{shape: [64, 64]}"."""
    frame_stack: int | None = None
    """Show the agent so many of the latest observations at once (SB3's VecFrameStack)."""
    vectorization: Vectorization | None = None
    """Step all environments in one call: by the environment's own vector form, by Gymnasium one after the other (sync)
    or each in a process of its own (async; evaluations are then sync), or by EnvPool, with its ids. Default: SB3's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayArgs(EnvironmentArgs):
    """Options of commands that play a saved agent, in the environment of its run unless another one is given."""

    env: str | None = None  # type: ignore[assignment]
    """The environment's id, or module:id. Default: the one that the config.json beside the agent names."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment, as key=value. Default: those of the agent's run, of its evaluations first."""
    eval_env_kwargs: tuple[str, ...] = ()
    """The same: to play a saved agent is to evaluate it."""
    gym_packages: tuple[str, ...] = ()
    """Modules to import first, which register environments."""
    env_wrapper: tuple[str, ...] = ()
    """Wrap each environment in these classes, from the inside out. Default: those of the agent's run."""
    frame_stack: int | None = None
    """Show the agent so many of the latest observations at once. Default: as in the agent's run."""
    algo: SavedAlgorithm = "ppo"
    """The algorithm of an agent in SB3's own zip; our files say it themselves."""
    trust: bool = False
    """Load SB3's own zips too. They are pickles, which can run any code: load only those whose maker you trust."""


@dataclasses.dataclass(frozen=True)
class DemonstrationArgs(EnvironmentArgs):
    """Options of commands that imitate."""

    demonstrations: str | None = None
    """An .npz, a folder, or a set of the package: cartpole-v1 (the default for CartPole-v1), cartpole-v1-noisy."""
    n_episodes: int | None = None
    """Use only so many of the demonstrations' episodes, drawn by the seed."""


@dataclasses.dataclass(frozen=True)
class TrackArgs:
    """Options of commands that log through SB3's logger."""

    track: Literal["wandb", "mlflow", "trackio"] | None = None
    """Send what is logged to Weights & Biases, MLflow or Trackio too (extras wandb and trackio; mlflow is apart)."""
    track_project: str = "rlsmooth"
    """The project there; MLflow calls it an experiment."""


@dataclasses.dataclass(frozen=True)
class CloningArgs(DemonstrationArgs, TrackArgs):
    """Options of commands that clone a policy from labelled actions."""

    smoothing: str = "0.1"
    """How much of the target leaves the demonstrated action: a number, or lin_0.1 for one that falls to 0."""
    reference: Reference = "uniform"
    """Where it goes: to all actions alike, or to neighbours of the demonstrated one by an ordinal scheme."""
    spread: Literal["all", "others"] = "all"
    """Whether the uniform reference includes the demonstrated action."""
    action_bins: int | None = None
    """Continuous actions only: cut each dimension into so many bins and clone those, so that --reference applies."""
    kl_coef: float = 0.0
    """The coefficient of KL(uniform‖policy), added to the loss."""

    policy: str | None = None
    """SB3's alias. Default: MlpPolicy, CnnPolicy for images, MultiInputPolicy for Dicts; Maskable... with masks."""
    net_arch: tuple[int, ...] = (64, 64)
    """The sizes of the policy's hidden layers."""
    learning_rate: str = "1e-3"
    """The step size: a number, or lin_1e-3 for one that falls to 0."""
    batch_size: int = 64
    """How many transitions are in a batch."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm to this."""
    l2_coef: float = 0.0
    """The coefficient of half the sum of squared parameters, added to the loss."""
    engine: Engine = "auto"
    """What computes updates: auto is numpy for an MlpPolicy on the CPU, several times as fast, and torch else."""
    eval_episodes: int = 20
    """How many episodes to evaluate deterministically, and how many sampled."""


@dataclasses.dataclass(frozen=True)
class AlgorithmArgs(EnvironmentArgs, TrackArgs):
    """Options of the algorithm that an on-policy command trains."""

    n_timesteps: Annotated[int | None, alias(aliases=["-n"])] = None
    """Train on so many steps, in all environments together. Default: the hyperparameters' number."""
    n_envs: int | None = None
    """How many environments to train in. Default: the hyperparameters' number."""
    vec_env: Literal["dummy", "subproc"] = "dummy"
    """Step the environments one after the other in this process, or each in a process of its own."""
    conf_file: Annotated[Path | None, alias(aliases=["-conf"])] = None
    """A YAML file of hyperparameters by environment, in RL Zoo's form, in place of the package's own."""
    hyperparams: Annotated[tuple[str, ...], alias(aliases=["-params"])] = ()
    """Change hyperparameters, as key=value: n_steps=64 learning_rate=lin_1e-3."""

    smoothing: str | None = None
    """The coefficient of KL(reference‖policy) in the loss: a number, or lin_0.1 for one that falls to 0.
    Default: 0, or with --from-bc lin_0.1. With a target entropy: the coefficient to begin with."""
    reference: Reference = "uniform"
    """What KL is measured from: all actions alike, or the neighbours of the likeliest action by an ordinal scheme."""
    ent_coef: float | None = None
    """SB3's coefficient of the entropy in the loss. Default: the hyperparameters'."""
    target_entropy_frac: float | None = None
    """Find the coefficient so that the entropy does not fall below this share of the largest possible, log n."""
    target_entropy_nats: float | None = None
    """Find the coefficient so that the entropy does not fall below so many nats."""
    exploration_floor: str | None = None
    """Act with this probability by the reference instead of the policy: a number, or lin_0.1. Default: 0."""
    min_entropy_frac: str | None = None
    """Guarantee this share of the largest entropy, log n, in every state: a number, or lin_0.3 for one that falls to 0.
    In place of --exploration-floor. Default: no guarantee."""
    min_entropy_nats: str | None = None
    """The same for continuous actions, in nats: their standard deviations are scaled up to it."""

    from_bc: Path | None = None
    """Begin with the policy of this agent.zip of `rlsmooth bc`, which is then also the reference of KL."""
    trained_agent: Annotated[Path | None, alias(aliases=["-i"])] = None
    """Train this agent further, an agent.zip or the folder of the run that wrote it. It keeps its network, the state of
    its optimiser and its settings; what is given here takes their place. Default of --env: that of its run."""
    value_warmup_steps: int | None = None
    """With --from-bc: train only the value function for so many steps first.
    Default: 4,096, but no more than a tenth of the training."""

    seed: int = 0
    """Decides the initial weights, the environments, the sampled actions and the evaluations."""
    eval_freq: int = 25_000
    """Evaluate first, each time that so many steps have been trained on, and at the end; -1: only at the end."""
    eval_episodes: int = 20
    """How many episodes to evaluate deterministically, and how many sampled."""
    n_eval_envs: int = 20
    """How many environments to evaluate in."""
    save_freq: Annotated[int, alias(aliases=["--checkpoint-freq"])] = 50_000
    """Write a checkpoint to resume from each time that so many steps have been trained on; -1: none."""


@dataclasses.dataclass(frozen=True)
class OnPolicyArgs(RunArgs, AlgorithmArgs):
    """Options of every on-policy command."""


@dataclasses.dataclass(frozen=True)
class EngineArgs(OnPolicyArgs):
    """Options of the on-policy commands that have engines."""

    engine: Engine = "auto"
    """What computes rollouts and updates. auto is numpy where the policy is a plain MLP on the CPU, several times as
    fast, and torch else."""


@dataclasses.dataclass(frozen=True)
class AdversarialArgs(OnPolicyArgs, DemonstrationArgs):
    """Options of both adversarial commands: the generator's, as for `rlsmooth ppo`, and the discriminator's."""

    algo: Algorithm = "ppo"
    """The generator. ppo, a2c and maskable-ppo can be smoothed, which is off unless asked for. AIRL can't use dqn.
    Where the environment has action masks, ppo stands for maskable-ppo."""
    real_target: float = 1.0
    """What the discriminator says of the expert's transitions is trained towards this: 0.9 is one-sided smoothing."""
    fake_target: float = 0.0
    """What it says of the generator's is trained towards this. Above 0 it takes the generator's gradient away where the
    expert rarely is."""
    correct_offset: bool = True
    """Take off what smoothed targets add to each step's reward."""
    terminal_states: Literal["absorbing", "as_is"] = "absorbing"
    """Whether a terminal state leads to an absorbing state, which is scored too, or is worth nothing more."""
    horizon: int | None = None
    """How many steps an episode would have had, for absorbing. Default: the environment's limit."""
    demo_batch_size: int = 256
    """How many transitions of the expert are in a batch of the discriminator, and how many of the generator."""
    n_disc_updates_per_round: int | None = None
    """How often the discriminator is trained after each round of the generator. Default: twice; gail with a
    rollout of an on-policy algorithm once for each 64 steps, at least twice."""
    gen_train_timesteps: int | None = None
    """How many steps the generator makes in a round. Default: a rollout, or 1,024 for sac and dqn."""
    gen_replay_buffer_capacity: int | None = None
    """How many of the generator's latest transitions are drawn from. Default: those of a round."""
    disc_learning_rate: float = 1e-3
    """The discriminator's step size."""
    reward_net_arch: tuple[int, ...] = (32, 32)
    """The sizes of the discriminator's hidden layers."""


@dataclasses.dataclass(frozen=True)
class DataArgs:
    """Options of the data, the network and its optimiser."""

    data: str = "digits"
    """A set by name (digits, iris, wine, breast-cancer, olive, rodents, hmda, arrests, credit, marriages, poverty,
    diamonds: extra `datasets`), or an .npz with features and labels."""
    test_fraction: float = 0.25
    """The share of the samples that the results are measured on, class by class; nothing is trained on them."""
    label_noise: float = 0.0
    """Replace each label that is trained on by another one with this probability, for studies; held-out and test labels
    stay."""
    standardise: bool = True
    """Bring features to mean 0 and standard deviation 1 over the training samples; the network does it itself."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """The sizes of the network's hidden layers."""
    learning_rate: str = "1e-3"
    """The step size: a number, or lin_1e-3 for one that falls to 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    batch_size: int = 64
    """How many samples are in a batch."""
    class_weight: Literal["none", "balanced"] = "none"
    """Whether rare classes count as much as frequent ones."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm to this."""

    seed: int = 0
    """Decides the split, the label noise, the initial weights and the order of the data."""


@dataclasses.dataclass(frozen=True)
class ClassificationArgs(RunArgs, ProcessArgs, DataArgs):
    """Options of every command that trains a classifier."""

    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The run goes to <log folder>/<command>/<data>_<n>/."""
    tensorboard_log: Annotated[Path | None, alias(aliases=["-tb"])] = None
    """Where TensorBoard's files go, as <tensorboard log>/<data>_<n>/. Default: to the run's folder."""
    verbose: int = 0
    """1 prints a line an epoch or a round."""


def resumed(args: ArgsT, command: str) -> ArgsT:
    """The arguments that the run in `args.resume` began with, or `args` where that is None.

    A folder may come from a stranger: what `to_give_again` finds in it must be given again on the command line.

    Args:
        args: of the command line.
        command: that must have made the run.

    Raises:
        ValueError: there is no such run of this command, an argument was given that the run already has, or one must be
            given again.
    """
    if args.resume is None:
        return args
    refuse_links(args.resume)
    stored = read_settings(args.resume, command)
    stored = {name: value for name, value in ADDED.items() if hasattr(args, name)} | stored
    path = args.resume / "config.json"
    hints = get_type_hints(type(args))
    with refused(path, ValueError, "Its arguments are not of this version."):
        began = type(args)(**decode_fields(hints, stored, "arguments"))
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(args)
        if field.name not in MAY_DIFFER and getattr(args, field.name) != field.default
    }
    for name, (value, danger) in to_give_again(began, args.resume).items():
        again = given.get(name)
        if again != value and not (isinstance(value, tuple) and _bare(value).keys() <= _bare(again or ()).keys()):
            raise ValueError(
                f"the config.json of {str(args.resume)!r} has {name}={_words(value)}, which {danger}: if you trust it, "
                f"give {_option(name)} {_words(value)} again."
            )
    stored = {**stored_hyperparameters(args.resume), **stored_kwargs(args.resume)}
    given_words = [word for name in WORDS for word in getattr(began, name, ())]
    known = _bare([*given_words, *kwargs_words(stored), *_stored_wrappers(args.resume)])
    changed = [
        _option(name)
        for name, value in given.items()
        if value != getattr(began, name) and not (name in WORDS and _bare(value).keys() <= known.keys())
    ]
    if changed:
        raise ValueError(f"--resume takes the arguments that the run began with: leave out {', '.join(changed)}.")
    if os.environ.get("RANK", "0") == "0":  # of processes that train together, this one writes to it
        lock_folder(args.resume)  # before anything else in it is read
    device = began.device if args.device == "auto" else args.device
    return dataclasses.replace(began, resume=args.resume, progress=args.progress, verbose=args.verbose, device=device)


def check_chosen(args: Any, typed: Any, path: str) -> None:
    """Raise ValueError if the `config.json` of a run, given as `--conf`, chooses what no file may.

    Args:
        args: of the command line and the file.
        typed: of the command line alone.
        path: of the file.
    """
    found = to_give_again(args) if isinstance(args, RunArgs) else {}
    for name in ("conf_file", "log_folder", "resume"):
        found[name] = None, "names a place"
    pairs = dict(read_pair("hyperparams", word) for word in getattr(args, "hyperparams", ()))
    if any(name in ("env_kwargs", "env_wrapper") or too_large(name, value) for name, value in pairs.items()):
        found["hyperparams"] = None, "may name code, or exceed what a file may ask for"
    for name, (_, danger) in found.items():
        value = getattr(args, name, None)
        if value != getattr(typed, name, None):
            raise ValueError(
                f"conf={path!r} is of a run and has {name}={_words(value)}, which {danger}: if you trust it, give "
                f"{_option(name)} {_words(value)} too."
            )


def to_give_again(args: Any, folder: Path | None = None) -> dict[str, tuple[Any, str]]:
    """The arguments of a run that no file may choose, and why.

    They are code to import, places to write to or to connect to, and sizes that would exhaust memory or time.

    Args:
        args: that the run began with.
        folder: of the run, whose `config.json` may have arguments of the environment from a file of hyperparameters.
    """
    found: dict[str, tuple[Any, str]] = {}
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if isinstance(value, (str, Path)) and str(value).startswith(("//", "\\\\")):
            found[field.name] = value, "may be a place on another machine"
        if danger := too_large(field.name, value):
            found[field.name] = value, danger
    env = getattr(args, "env", None)
    if env is not None and imports_module(env):
        found["env"] = env, "imports a module"
    if packages := getattr(args, "gym_packages", ()):
        found["gym_packages"] = packages, "imports modules"
    if tool := getattr(args, "track", None):
        found["track"] = tool, "sends what is logged elsewhere"
    wrappers = [*([] if folder is None else _stored_wrappers(folder)), *getattr(args, "env_wrapper", ())]
    if chosen := tuple(_bare(choosing_wrappers(wrappers)).values()):
        found["env_wrapper"] = chosen, CHOICE.removeprefix("that ")
    if args.tensorboard_log is not None:
        found["tensorboard_log"] = args.tensorboard_log, "is a folder to write to"
    sizes = {} if folder is None else stored_hyperparameters(folder)
    large = {
        name: (value, danger)
        for name, value in sizes.items()
        if getattr(args, name, None) != value and (danger := too_large(name, value))
    }
    if large:
        words = kwargs_words({name: value for name, (value, _) in large.items()})
        found["hyperparams"] = tuple(words), "; ".join(f"{danger} ({name})" for name, (_, danger) in large.items())
    words = [*kwargs_words({} if folder is None else stored_kwargs(folder)), *getattr(args, "env_kwargs", ())]
    for name, given in (("env_kwargs", words), ("eval_env_kwargs", getattr(args, "eval_env_kwargs", ()))):
        if choosing := tuple(_bare(choosing_kwargs(given)).values()):
            found[name] = choosing, CHOICE.removeprefix("that ")
    return found


def _stored_wrappers(folder: Path) -> list[str]:
    path = folder / "config.json"
    with refused(path, ValueError):
        return list(decode(list[str], stored_hyperparameters(folder).get("env_wrapper") or [], "env_wrapper"))


def too_large(name: str, value: Any) -> str:
    """How a size exceeds what a file may ask for; empty: it does not."""
    if isinstance(value, dict):  # policy_kwargs, and a net_arch of several networks
        return next(filter(None, (too_large(key, part) for key, part in value.items())), "")
    if isinstance(value, str) and name == "policy_kwargs":  # as RL Zoo writes them: the sizes of all lists together
        value = [int(word) for word in re.findall(r"\d{1,18}", value)]
    if isinstance(value, (list, tuple)) and all(isinstance(one, (int, float)) for one in value):
        squares = sum(size * size for size in value)
        if len(value) > MOST_LAYERS:
            return f"has {len(value):,} layers, over {MOST_LAYERS}"
        return f"has layers whose squares add up to over {MOST_SQUARES:,}" if squares > MOST_SQUARES else ""
    if isinstance(value, (list, tuple)):
        return next(filter(None, (too_large(name, part) for part in value)), "")
    is_size = name in MOST if isinstance(value, float) else isinstance(value, int) and name not in FREE
    most = MOST.get(name, MOST_OF_OTHERS)
    return f"is over {most:,}, the most that a file may ask for" if is_size and value > most else ""


def resume_line(command: str, folder: Path, args: Any) -> str:
    """What to type to resume a run."""
    again = "".join(f" {_option(name)} {_words(value)}" for name, (value, _) in to_give_again(args, folder).items())
    return f"{shlex.join(['rlsmooth', command, '--resume', str(folder)])}{again}"


def evaluate_line(folder: Path, args: Any) -> str:
    """What to type to evaluate a run."""
    names = ("env", "env_kwargs", "eval_env_kwargs", "gym_packages", "env_wrapper", "frame_stack")
    again = to_give_again(args, folder)
    words = "".join(f" {_option(name)} {_words(again[name][0])}" for name in names if name in again)
    return f"{shlex.join(['rlsmooth', 'evaluate', '-i', str(folder)])}{words}"


def _bare(words: Sequence[str]) -> dict[str, str]:
    """The words by what they say without spaces and quotes: JSON and YAML write the same value in two ways."""
    return {re.sub(r"[\s'\"]", "", word): word for word in words}


def _words(value: Any) -> str:
    return shlex.join(str(part) for part in (value if isinstance(value, tuple) else (value,)))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def environment_settings(args: EnvironmentArgs, *, evaluation: bool = False) -> EnvironmentSettings:
    """What the options say of environments to train in, or to evaluate in."""
    kwargs, other = read_kwargs(args.env_kwargs), read_kwargs(args.eval_env_kwargs, "eval_env_kwargs")
    return EnvironmentSettings(
        env=args.env or "",
        env_kwargs=other if other and evaluation else kwargs,
        packages=args.gym_packages,
        wrappers=args.env_wrapper,
        frame_stack=args.frame_stack,
    )


def number_or_word(value: str) -> float | str:
    """A number if it is one, else the word, such as `lin_0.1`, for the library to check."""
    try:
        return float(value)
    except ValueError:
        return value


def make_smoothing(name: str, value: str, reference: str = "uniform", spread: Any = "all") -> Smoothing:
    """The smoothing that an option describes.

    Raises:
        ValueError: it can't be used; the message names the option.
    """
    from rlsmooth.targets import Smoothing

    try:
        return Smoothing(number_or_word(value), reference, spread)
    except ValueError as error:
        raise ValueError(f"{name}={value!r} can't be used: {error}") from error


def demonstrations_name(args: DemonstrationArgs) -> str:
    """The demonstrations that are given, or the set of the package for the environment.

    Raises:
        ValueError: there are neither.
    """
    name = SHIPPED.get(args.env) if args.demonstrations is None else args.demonstrations
    if name is None:
        raise ValueError(
            f"no demonstrations of env={args.env!r} ship with the package: name some by --demonstrations "
            "(an .npz or a folder; `rlsmooth record` makes one)."
        )
    return name


def read_demonstrations(args: DemonstrationArgs, seed: int) -> Demonstrations:
    """Load the demonstrations, and draw `--n-episodes` of them by the seed.

    Raises:
        ValueError: there are none, or not as many as asked for.
    """
    from rlsmooth.data import load_demonstrations

    demonstrations = load_demonstrations(demonstrations_name(args))
    return demonstrations if args.n_episodes is None else demonstrations.sample_episodes(args.n_episodes, seed)


def number_of(count: float, noun: str) -> str:
    """`1 round`, `2,000 rounds`."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def size_words(demonstrations: Demonstrations | ObservationOnly) -> str:
    """How many demonstrations there are: `1,000 in 2 episodes`."""
    return f"{len(demonstrations):,} in {number_of(demonstrations.num_episodes, 'episode')}"
