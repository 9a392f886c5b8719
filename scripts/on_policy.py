"""Train an algorithm of SB3: `rlsmooth ppo` and its kind; its parts serve `gail`, `airl` and `dagger` too."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rlsmooth.agents import BC, ExactCheckpointCallback, load_agent, load_checkpoint, save_agent
from rlsmooth.agents.files.algorithm_file import missing_arguments, read_training
from rlsmooth.agents.smoothed.algorithms import FLOORS, SmoothedTraining, layer_arguments
from rlsmooth.agents.smoothed.entropy import TARGETS, target_in
from rlsmooth.agents.smoothed.numpy_training import why_not_numpy
from rlsmooth.agents.spaces import action_components
from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.arguments import (
    EngineArgs,
    OnPolicyArgs,
    environment_settings,
    number_of,
    number_or_word,
    too_large,
)
from rlsmooth.scripts.environment import (
    check_device,
    evaluation_vectorization,
    limit_threads,
    make_envs,
    policy_alias,
)
from rlsmooth.scripts.hyperparameters import (
    SET_ELSEWHERE,
    Hyperparameters,
    named_hyperparameters,
    read_hyperparameters,
    resolve_hyperparameters,
    wrapper_words,
)
from rlsmooth.scripts.metrics_file import Curve
from rlsmooth.scripts.on_policy_callbacks import Evaluations, Journal, ProgressBar
from rlsmooth.scripts.run_folder import (
    EnvironmentSettings,
    agent_file,
    env_of_run,
    plain,
    read_pair,
    read_settings,
)
from rlsmooth.scripts.training_run import TrainingRun, saved_checkpoints
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError

AlgorithmT = TypeVar("AlgorithmT", bound=BaseAlgorithm)
OnPolicyArgsT = TypeVar("OnPolicyArgsT", bound=OnPolicyArgs)

EVALUATION_SEED = 1_000_000  # other episodes than those to train on
MOST_ROWS = 500  # of metrics.csv: A2C would write one every 40 steps
KICKSTART = "lin_0.1"  # from the clone; `from_bc` has the same default
GIVEN = (
    "n_timesteps",
    "n_envs",
    "frame_stack",
    "smoothing",
    "ent_coef",
    "target_entropy_frac",
    "target_entropy_nats",
    "exploration_floor",
    "min_entropy_frac",
    "min_entropy_nats",
)
"""The options that are hyperparameters too: on the command line they come first."""
EXCLUSIVE = (TARGETS, tuple(FLOORS))
"""Of each, an agent has one at most."""
KEPT = {"policy", "policy_kwargs", "normalize", "use_rms_prop", "rms_prop_eps"}
"""Of an agent that is trained further: they are what its network, its optimiser and its observations are made of."""


def train(command: str, algorithm: type[OnPolicyAlgorithm], args: OnPolicyArgs) -> Path:
    """Train, or resume training, and return the run's folder.

    Args:
        command: what follows `rlsmooth`; names the file of hyperparameters and the folder of the logs.
        algorithm: `SmoothedPPO` or another of its kind.
        args: of the command line, or those that the resumed run began with.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    check_numbers(args)
    args = with_saved_agent(args)
    values = hyperparameter_values(command, args, algorithm, algorithm=command)
    with named_hyperparameters(values, args.resume):
        hyperparameters = resolve_hyperparameters(values, algorithm)
        eval_env = evaluation_envs(args, hyperparameters)  # first: it finds an unknown environment in this process
    use_masks = uses_masks(command, eval_env, args.env)
    env = training_envs(args, hyperparameters)
    saved = saved_checkpoints(args)
    checkpoint: ExactCheckpointCallback | None = None
    if saved is not None:
        loaded = load_checkpoint(saved, env, device=check_device(args.device))
        agent, checkpoint, left = loaded.model, loaded.callback, loaded.remaining_timesteps
    else:
        with named_hyperparameters(values, args.resume):
            agent, left = new_algorithm(algorithm, args, hyperparameters, env), hyperparameters.n_timesteps
    n_timesteps, steps_per_row = hyperparameters.n_timesteps, agent.n_envs * agent.n_steps
    with TrainingRun(command, args, args.env) as run:
        journal = make_journal(run, args, agent, eval_env, n_timesteps, steps_per_row, use_masks=use_masks)
        checkpoints = checkpoint_callback(run, args, checkpoint)
        start = agent.num_timesteps
        if args.from_bc is not None and hyperparameters.normalize is not None:
            print("Observations are not normalised, since the cloned policy has seen them as they are.")
        run.begin(
            f"Training {type(agent).__name__} for {steps_of(agent, n_timesteps):,} steps in "
            f"{number_of(agent.n_envs, 'environment')}, "
            f"on {agent.device.type}{f' by {agent.engine}' if isinstance(args, EngineArgs) else ''},",
            f"step {start:,}" if start else "",
            resume_from="checkpoint" if checkpoints else "",
            more={"hyperparameters": plain(values)},
        )
        callbacks: list[BaseCallback] = [journal, *checkpoints, ProgressBar(disabled=not run.shows_bar)]
        # The journal logs in place of the algorithm.
        agent.learn(left, callbacks, log_interval=None, reset_num_timesteps=start == 0)
        save_agent(agent, run.folder / "agent.zip")
        env.close()
        eval_env.close()
        curves = run.curves()
        return run.finish(
            "Agent, best agent, report and logs",
            hyperparameters=plain(values),
            curves=curves,
            summary=summarise_run(agent, journal, curves, values, has_masks=command == "maskable-ppo"),
        )


def steps_of(algorithm: BaseAlgorithm, steps: int) -> int:
    """How many steps a training for at least `steps` makes: an algorithm collects whole rollouts."""
    length = 1
    if isinstance(algorithm, OnPolicyAlgorithm):
        length = algorithm.n_steps
    elif isinstance(algorithm, OffPolicyAlgorithm):
        collected: Any = algorithm.train_freq
        length = collected.frequency if collected.unit == TrainFrequencyUnit.STEP else 1
    rollout = length * algorithm.n_envs
    return -(-steps // rollout) * rollout


# ---- arguments and hyperparameters


def check_numbers(args: OnPolicyArgs) -> None:
    """Check those that no library does, and limit the threads.

    Raises:
        TypeError: one is no whole number.
        ValueError: one is outside its range.
    """
    limit_threads(args.num_threads)
    check_positive_int("eval_episodes", args.eval_episodes)
    check_positive_int("n_eval_envs", args.n_eval_envs)
    for name in ("eval_freq", "save_freq"):
        if getattr(args, name) != -1:
            check_positive_int(name, getattr(args, name))


def hyperparameter_values(command: str, args: OnPolicyArgs, build: type, *, algorithm: str) -> dict[str, Any]:
    """What the file of `algorithm` says, with the command line on top; of a resumed run, what it began with.

    Args:
        command: what follows `rlsmooth`.
        args: of the command line, or those that the resumed run began with.
        build: the class of the algorithm, which that of a saved agent must be.
        algorithm: names the file of hyperparameters.

    Raises:
        ValueError: a file or an option can't be used.
    """
    if args.resume is not None:
        return read_settings(args.resume, command, "hyperparameters")
    values = read_hyperparameters(algorithm, args.env, args.conf_file, args.hyperparams)
    settings = environment_settings(args)
    if args.from_bc is not None:
        values.setdefault("smoothing", KICKSTART)
    if args.trained_agent is not None:
        values = values_to_go_on_with(args, args.trained_agent, build, values)
    if settings.env_kwargs:
        values["env_kwargs"] = {**values.get("env_kwargs", {}), **settings.env_kwargs}
    if settings.wrappers:
        values["env_wrapper"] = wrapper_words(settings.wrappers)
    return values | {name: getattr(args, name) for name in GIVEN if getattr(args, name) is not None}


def with_saved_agent(args: OnPolicyArgsT) -> OnPolicyArgsT:
    """With the whole path of the agent to begin with, and the environment of its run where none is given.

    Raises:
        ValueError: there is no such agent, or its run's environment is none that a file may choose.
    """
    if args.resume is not None:
        return args
    if args.from_bc is not None:
        agent_file("from_bc", args.from_bc)
        args = dataclasses.replace(args, from_bc=args.from_bc.absolute())
    if args.trained_agent is None:
        return args
    file = agent_file("trained_agent", args.trained_agent)
    args = dataclasses.replace(args, trained_agent=args.trained_agent.absolute())
    if args.env == type(args).env and (file.parent / "config.json").is_file():
        given = dataclasses.replace(environment_settings(args), env="")
        args = dataclasses.replace(args, env=env_of_run(file, given, evaluation=False).env)
    return args


def values_to_go_on_with(args: OnPolicyArgs, path: Path, build: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a saved agent that is trained further, with `--hyperparams` on top.

    Args:
        args: of the command line.
        path: of the agent's file, or of its run.
        build: the class of the algorithm.
        values: of the file of hyperparameters. How long to train is taken from it, and what environments are made of,
            where the agent's run does not say it.

    Raises:
        ValueError: there is no such agent, it is of another class, has sizes that no file may choose, or another option
            contradicts it.
    """
    file = agent_file("trained_agent", path)
    saved = read_training(file)
    own = {name: value for name, value in saved.arguments.items() if name not in (*SET_ELSEWHERE, "engine")}
    changed = {name: values[name] for name in dict(read_pair("hyperparams", word) for word in args.hyperparams)}
    given = {*changed, *(name for name in GIVEN if getattr(args, name) is not None)}
    _check_goes_on(args, path, saved.kind, build, {**own, "n_envs": saved.n_envs}, given)
    for names in EXCLUSIVE:  # what is given turns off the others of its kind
        if not given.isdisjoint(names):
            own |= {name: 0.0 if name == "exploration_floor" else None for name in names}
    normalize = saved.normalize
    if normalize is not None:
        follows = normalize["gamma"] == own.get("gamma") and "gamma" in changed
        normalize |= {"training": True} | ({"gamma": changed["gamma"]} if follows else {})
    settings = env_of_run(file, environment_settings(args), evaluation=False)
    of_env = {
        "env_kwargs": settings.env_kwargs,
        "env_wrapper": wrapper_words(settings.wrappers),
        "frame_stack": settings.frame_stack,
    }
    return {
        **own,
        "n_envs": saved.n_envs,
        **({} if normalize is None else {"normalize": normalize}),
        **{name: values[name] for name in ("n_timesteps", *of_env) if name in values},
        **{name: value for name, value in of_env.items() if value},
        **changed,
    }


def _check_goes_on(
    args: OnPolicyArgs, path: Path, kind: str, build: type, own: Mapping[str, Any], given: set[str]
) -> None:
    """Raise ValueError if another option contradicts a saved agent, or it has sizes that no file may choose."""
    for name in ("from_bc", "conf_file"):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} can't be used with --trained-agent, which has a network and settings of "
                "its own: leave one of them out."
            )
    if fixed := sorted(KEPT & given):
        raise ValueError(f"--hyperparams can't change {', '.join(fixed)} of --trained-agent: leave that out.")
    if kind != build.__name__:
        raise ValueError(
            f"trained_agent={str(path)!r} is a {kind}, and {build.__name__} is trained here: use the command (of gail "
            f"and airl, the --algo) that trains a {kind}."
        )
    for name, value in own.items():
        if name not in given and (danger := too_large(name, value)):
            raise ValueError(
                f"trained_agent={str(path)!r} has {name}={value}, which {danger}: if you trust it, give --hyperparams "
                f"{name}={value}."
            )


# ---- environments and algorithm


def training_envs(args: OnPolicyArgs, hyperparameters: Hyperparameters) -> VecEnv:
    """The environments to train in, normalised if the hyperparameters say so."""
    env = make_envs(
        _environment(args, hyperparameters),
        hyperparameters.n_envs,
        args.seed,
        vec_env=args.vec_env,
        vectorization=args.vectorization,
    )
    settings = _normalization(args, hyperparameters)
    return env if settings is None else VecNormalize(env, **settings)


def evaluation_envs(args: OnPolicyArgs, hyperparameters: Hyperparameters) -> VecEnv:
    """The environments to evaluate in; normalised by what training gathers, with rewards as they are."""
    env = make_envs(
        _environment(args, hyperparameters, evaluation=True),
        min(args.n_eval_envs, args.eval_episodes),
        evaluation_seed(args.seed),
        vectorization=evaluation_vectorization(args.vectorization),
    )
    settings = _normalization(args, hyperparameters)
    if settings is None:
        return env
    return VecNormalize(env, **{**settings, "training": False, "norm_reward": False})


def _environment(
    args: OnPolicyArgs, hyperparameters: Hyperparameters, *, evaluation: bool = False
) -> EnvironmentSettings:
    """What the options and the hyperparameters say of environments to train in, or to evaluate in."""
    given = environment_settings(args, evaluation=evaluation)
    return dataclasses.replace(
        given,
        env_kwargs=given.env_kwargs if evaluation and args.eval_env_kwargs else hyperparameters.env_kwargs,
        wrappers=hyperparameters.env_wrapper,
        frame_stack=hyperparameters.frame_stack,
    )


def evaluation_seed(seed: int) -> int:
    """The seed of each evaluation of a run, so that two differ by the policy alone."""
    return (seed + EVALUATION_SEED) % 2**32


def uses_masks(algorithm: str, env: VecEnv, name: str) -> bool:
    """Whether the algorithm, by its command's name, trains with action masks.

    Raises:
        ValueError: it does, and the environment has none.
    """
    if algorithm != "maskable-ppo":
        return False
    from sb3_contrib.common.maskable.utils import is_masking_supported

    if not is_masking_supported(env):
        raise ValueError(f"env={name!r} has no action_masks(): use ppo, or an environment that has them.")
    return True


def new_algorithm(
    algorithm: type[AlgorithmT], args: OnPolicyArgs, hyperparameters: Hyperparameters, env: VecEnv
) -> AlgorithmT:
    """A new algorithm, from scratch or from a cloned policy, or a saved one that is trained further.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is wrong, two contradict each other, or the clone does not fit.
    """
    build: Any = algorithm
    arguments = {"seed": args.seed, "device": check_device(args.device), **hyperparameters.arguments}
    if args.from_bc is not None and args.reference != "uniform":
        raise ValueError("--reference can't be used with --from-bc: there KL is measured from the cloned policy.")
    if args.trained_agent is None:
        _set_smoothing(args, arguments)
    if args.from_bc is None:
        if args.value_warmup_steps is not None:
            raise ValueError("--value-warmup-steps is for --from-bc: leave it out.")
        if args.trained_agent is not None:
            saved: AlgorithmT = _trained_further(algorithm, args, args.trained_agent, env, arguments)
            return _with_engine(args, saved)
        recurrent = "Recurrent" in algorithm.__name__
        policy = hyperparameters.policy or policy_alias(env.observation_space, recurrent=recurrent)
        try:
            new: AlgorithmT = build(policy, env, **arguments)
        except RuntimeError as error:
            if "Kernel size" not in str(error):
                raise
            raise ValueError(
                f"env={args.env!r} has images that are too small for the convolutions of {policy}: flatten them, "
                "such as by --env-wrapper minigrid.wrappers.FlatObsWrapper or gymnasium.wrappers.FlattenObservation."
            ) from error
        return _with_engine(args, new)
    path = agent_file("from_bc", args.from_bc)
    steps = args.value_warmup_steps
    if steps is None:
        steps = min(4_096, hyperparameters.n_timesteps // 10)
    elif steps >= hyperparameters.n_timesteps:
        raise ValueError(
            f"value_warmup_steps={steps} leaves nothing of n_timesteps={hyperparameters.n_timesteps}: give fewer."
        )
    clone = BC.load(path, device="cpu")
    its_own = layer_arguments(clone)
    given = arguments.get("policy_kwargs") or {}
    if names := [name for name in given if name in its_own and "policy_kwargs" not in "".join(args.hyperparams)]:
        print(f"The layers are the cloned policy's, not the hyperparameters' ({', '.join(names)}).")
        arguments["policy_kwargs"] = {name: value for name, value in given.items() if name not in names}
    started: AlgorithmT = build.from_bc(clone, env, value_warmup_steps=steps, **arguments)
    return _with_engine(args, started)


def _trained_further(algorithm: type, args: OnPolicyArgs, path: Path, env: VecEnv, arguments: dict[str, Any]) -> Any:
    """A saved agent that counts its steps from 0, with these arguments in place of its own."""
    file, device, seed = agent_file("trained_agent", path), arguments.pop("device"), arguments.pop("seed")
    saved = read_training(file)
    _set_smoothing(args, arguments, saved.smoothing)
    own = {**saved.arguments, **({} if saved.smoothing is None else {"smoothing": saved.smoothing})}
    changed = {name: value for name, value in arguments.items() if name not in own or own[name] != value}
    target = target_in(own)
    holds = target is not None and arguments.get(target, own[target]) is not None
    if holds and saved.smoothing is not None and arguments["smoothing"].alpha != saved.smoothing.alpha:
        raise ValueError(
            f"--smoothing does nothing here: the target entropy of trained_agent={str(path)!r} finds the coefficient. "
            "Leave it out, or turn the target off by --hyperparams target_entropy_frac=null target_entropy_nats=null."
        )
    if issubclass(algorithm, SmoothedTraining):
        changed["engine"] = "torch"  # for now: the one that it was trained by need not serve it here
    try:
        agent = load_agent(file, env=env, device=device, custom_objects=changed)
    except SafeFileError as error:
        words = str(error).replace("Check model_class and custom_objects", "Change these by --hyperparams NAME=VALUE")
        raise ValueError(words) from error
    if missing := missing_arguments(agent):
        raise ValueError(
            f"trained_agent={str(path)!r} could not hold {', '.join(missing)}, functions of its writer's own: give "
            f"others, such as --hyperparams {missing[0]}=..."
        )
    if args.reference != "uniform" and getattr(agent, "reference_policy", None) is not None:
        raise ValueError(
            "--reference can't be used with an agent that began with --from-bc: its reference is the clone."
        )
    agent.num_timesteps = 0
    agent.seed = seed
    agent.set_random_seed(seed)
    return agent


def _with_engine(args: OnPolicyArgs, algorithm: AlgorithmT) -> AlgorithmT:
    """Set the engine of a new algorithm: the one asked for, or the fastest that serves its policy."""
    if isinstance(args, EngineArgs):
        assert isinstance(algorithm, SmoothedTraining)
        reason = why_not_numpy(algorithm) if args.engine == "auto" else None
        algorithm.engine = ("torch" if reason else "numpy") if args.engine == "auto" else args.engine
        algorithm.check_engine()
    return algorithm


def _set_smoothing(args: OnPolicyArgs, arguments: dict[str, Any], own: Smoothing | None = None) -> None:
    """Numbers in place of words, and beside the coefficient the reference, or what a saved agent's `own` has there."""
    for name in ("smoothing", "exploration_floor", "min_entropy_frac", "min_entropy_nats"):
        if isinstance(arguments.get(name), str):
            arguments[name] = number_or_word(arguments[name])
    if args.reference == "uniform" and own is None:
        return
    smoothing = arguments.get("smoothing", 0.0 if own is None else own.alpha)
    if smoothing == 0 and target_in(arguments) is None and args.reference != "uniform":
        raise ValueError(f"--reference {args.reference} does nothing without --smoothing: give it a coefficient.")
    if own is None or args.reference != "uniform":
        own = Smoothing(smoothing, args.reference)
    arguments["smoothing"] = dataclasses.replace(own, alpha=smoothing)


def _normalization(args: OnPolicyArgs, hyperparameters: Hyperparameters) -> dict[str, Any] | None:
    settings = hyperparameters.normalize
    if settings is None:
        return None
    # The cloned policy has seen observations as they are.
    return dict(settings) if args.from_bc is None else {**settings, "norm_obs": False}


# ---- callbacks and summary


def make_journal(
    run: TrainingRun,
    args: OnPolicyArgs,
    algorithm: BaseAlgorithm,
    eval_env: VecEnv,
    n_timesteps: int,
    steps_per_row: int,
    *,
    use_masks: bool,
) -> Journal:
    """Set the algorithm's logger, and return the callback that logs and evaluates.

    Args:
        run: begun before; a resumed one keeps its logs and evaluations up to the algorithm's step.
        args: of the run.
        algorithm: to be trained.
        eval_env: to evaluate in.
        n_timesteps: of the whole run.
        steps_per_row: of `metrics.csv`, at least.
        use_masks: evaluate with action masks.
    """
    start = None if args.resume is None else algorithm.num_timesteps
    journal = Journal(
        Evaluations(run.folder / "evaluations.npz", start),
        eval_env,
        eval_freq=args.eval_freq,
        eval_episodes=args.eval_episodes,
        log_freq=max(steps_per_row, n_timesteps // MOST_ROWS),
        seed=evaluation_seed(args.seed),
        use_masks=use_masks,
        best_agent=run.folder / "best_agent.zip",
    )
    algorithm.set_logger(run.logger(start))
    return journal


def checkpoint_callback(
    run: TrainingRun, args: OnPolicyArgs, loaded: ExactCheckpointCallback | None
) -> list[ExactCheckpointCallback]:
    """The callback that writes checkpoints: that of a loaded checkpoint, a new one, or none."""
    if loaded is None and args.save_freq > 0:
        return [ExactCheckpointCallback(args.save_freq, run.checkpoints)]
    return [] if loaded is None else [loaded]


def summarise_run(
    algorithm: BaseAlgorithm, journal: Journal, curves: dict[str, Curve], values: dict[str, Any], *, has_masks: bool
) -> dict[str, float]:
    """What the run ended with: the last value of each curve by its tag without the first part, and what it reached.

    Args:
        algorithm: trained.
        journal: of the run.
        curves: of `metrics.csv`.
        values: the hyperparameters.
        has_masks: the largest entropy is then not known, since it depends on what is legal.
    """
    evaluations = journal.evaluations
    summary = {name.partition("/")[2]: column[-1] for name, (_, column) in curves.items() if name[:5] != "time/"}
    best = evaluations.best()
    summary |= {
        "best_mean_reward": float(evaluations.results[best].mean()),
        "best_step": evaluations.steps[best],
        "steps": algorithm.num_timesteps,
    }
    if journal.seconds_training > 0 and journal.steps_trained:
        summary["steps_per_second"] = journal.steps_trained / journal.seconds_training
    largest = None if has_masks else _largest_entropy(algorithm.action_space)
    if largest is not None:
        summary["largest_entropy"] = largest
    if values.get("target_entropy_nats") is not None:
        summary["target_entropy"] = float(values["target_entropy_nats"])
    elif values.get("target_entropy_frac") is not None and largest is not None:
        summary["target_entropy"] = float(values["target_entropy_frac"]) * largest
    return {name: float(value) for name, value in summary.items() if math.isfinite(value)}


def _largest_entropy(space: spaces.Space[Any]) -> float | None:
    """log n of the joint actions; None for a Box."""
    components = action_components(space)
    return None if components is None else sum(map(math.log, components[1]))
