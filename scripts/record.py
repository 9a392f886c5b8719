"""Record demonstrations: from a trained agent, or from a PPO expert that is trained first.

rlsmooth record --env CartPole-v1 --train-expert 100000 --n-episodes 24
rlsmooth record --env CartPole-v1 -i logs/ppo/CartPole-v1_1/best_agent.zip
rlsmooth record --algo dqn --env CartPole-v1 -i dqn_cartpole.zip --output demonstrations.npz
"""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.scripts.arguments import EnvironmentArgs, SavedAlgorithm, environment_settings
from rlsmooth.scripts.card import shareable, shareable_command, write_card
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.run_folder import (
    EnvironmentSettings,
    agent_file,
    command_line,
    env_of_run,
    new_run_folder,
    plain,
    versions,
)

alias = tyro.conf.arg


@dataclasses.dataclass(frozen=True)
class Args(EnvironmentArgs):
    """Record demonstrations of an agent as one .npz file."""

    env: str | None = None  # type: ignore[assignment]
    """The environment's id, or module:id. Default: that of the agent's run, with its arguments and wrappers; where no
    config.json beside the agent names one, CartPole-v1."""
    algo: SavedAlgorithm = "ppo"
    """The algorithm of a trained agent in SB3's own zip; our files say it themselves. Experts are trained with ppo."""
    trained_agent: Annotated[Path | None, alias(aliases=["-i"])] = None
    """The agent's file, or the folder of the run that wrote it. SB3's zips are pickles, which can run code: load only
    those that you trust. Ours are safe."""
    n_timesteps: Annotated[int, alias(aliases=["-n", "--train-expert"])] = 0
    """Train a PPO expert for this many steps first, in place of --trained-agent."""
    n_episodes: int = 24
    """How many episodes to record."""
    n_envs: int = 8
    """How many environments to record from."""
    stochastic: bool = False
    """Sample the actions; otherwise the agent's most probable ones are recorded."""
    min_return: float | None = None
    """Fail, and write nothing, if an episode returns less."""
    eval_episodes: int = 100
    """How many episodes to evaluate a new expert on."""
    seed: int = 0
    """Seeds the training, the evaluation and the recording."""
    device: str = "auto"
    """Where the agent runs: auto, cpu, cuda."""
    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """A new expert, and the recording unless --output says otherwise, go to <log folder>/record/<env>_<n>/."""
    output: Path | None = None
    """The .npz to write."""
    progress: Annotated[bool, alias(aliases=["-P"])] = False
    """Show progress bars."""


def main(args: Args) -> Path:
    """Train or load the agent, record it, and return the path of the file.

    Raises:
        ValueError: the arguments contradict each other, name something that is not there or can't be written to, or an
            episode returned less than `min_return`.
    """
    if (args.trained_agent is None) == (args.n_timesteps == 0):
        raise ValueError("give either --trained-agent, or --train-expert with a number of steps.")
    if args.trained_agent is not None and args.eval_env_kwargs:
        raise ValueError("--eval-env-kwargs is for the evaluation of --train-expert: give --env-kwargs.")
    # Imported here: the arguments can be listed without waiting for torch.
    from rlsmooth.scripts.environment import check_device, check_env, check_seed

    # Before anything is trained or made: a mistake must not cost an expert's training, nor leave a folder.
    for name in ("n_episodes", "n_envs", "eval_episodes"):
        check_positive_int(name, getattr(args, name))
    if args.trained_agent is None:
        check_positive_int("n_timesteps", args.n_timesteps)
    check_seed(args.seed)
    check_device(args.device)
    if args.output is not None and (args.output.suffix != ".npz" or args.output.is_dir()):
        raise ValueError(f"output={str(args.output)!r} must be a file whose name ends in .npz.")
    path = None
    if args.trained_agent is not None:
        path = agent_file("trained_agent", args.trained_agent, or_checkpoints=True)
    settings = _settings(args, path)
    if args.vectorization != "envpool":  # which has ids of its own
        check_env(settings.env, settings.packages)
    loaded = None if path is None else _load_agent(args, path, settings)
    folder = None
    if args.output is None or args.n_timesteps:
        folder = new_run_folder(args.log_folder, "record", settings.env)
    try:
        return _record(args, settings, folder, loaded)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and args.n_timesteps:
            own = shlex.join(["--env", settings.env, "-n", str(args.n_timesteps)])
            print(
                "\nNothing was recorded, and the expert is lost. One that can be resumed is trained by: rlsmooth ppo "
                f"{own}; then: rlsmooth record -i FOLDER, with its folder"
            )
        if folder is not None:
            with suppress(OSError):  # unless it holds an expert
                folder.rmdir()
        raise


def _settings(args: Args, path: Path | None) -> EnvironmentSettings:
    """What the options say of the environment, and what they don't, of the agent's run."""
    given = environment_settings(args)
    if path is not None and (path.parent / "config.json").is_file():
        given = env_of_run(path, given, evaluation=False)
    return dataclasses.replace(given, env=given.env or "CartPole-v1")


def _record(args: Args, settings: EnvironmentSettings, folder: Path | None, loaded: tuple[Any, str] | None) -> Path:
    from rlsmooth.agents import BC
    from rlsmooth.agents.acting import quick_actor
    from rlsmooth.agents.sb3 import is_maskable
    from rlsmooth.data import record
    from rlsmooth.scripts.reports import return_words

    output = args.output or (folder or args.log_folder) / "demonstrations.npz"
    check_writable_folder("output", output.parent)
    provenance: dict[str, Any] = {"command": _command(args), "versions": _versions()}
    if folder is not None and args.n_timesteps:
        agent, scores = _train_expert(args, settings)
        agent.save(folder / "expert.zip")
        provenance["expert"] = {"algo": "ppo", "n_timesteps": args.n_timesteps, "evaluation": scores}
        for name, score in scores.items():
            print(f"expert, {name}: return {return_words(score['mean_return'], score['std_return'])}")
        print(f"expert saved in {folder / 'expert.zip'}")
        _write_card(args, folder, scores)
    else:
        assert loaded is not None
        agent, algorithm = loaded
        provenance["expert"] = {"algo": algorithm}
    demonstrations = record(
        quick_actor(agent),
        **_environments(args, settings, provenance),
        n_episodes=args.n_episodes,
        seed=args.seed,
        deterministic=not args.stochastic,
        action_masks=not isinstance(agent, BC) or is_maskable(agent.policy),
        progress=args.progress,
    )
    lowest = float(demonstrations.episode_returns().min())
    if args.min_return is not None and lowest < args.min_return:
        raise ValueError(
            f"an episode returned {lowest:g}, less than min_return={args.min_return:g}: nothing was written."
        )
    metadata = {**demonstrations.metadata, **provenance, "policy": type(agent).__name__}
    metadata |= {name: shareable(metadata[name], name) for name in {"env_kwargs", "env_wrapper"} & metadata.keys()}
    dataclasses.replace(demonstrations, metadata=metadata).save(output)
    print(f"{demonstrations}\nwritten to {output} ({output.stat().st_size / 1024:.0f} KiB)")
    return output


def _environments(args: Args, settings: EnvironmentSettings, provenance: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `record` that say where to play; what it can't know by itself is added to `provenance`."""
    n_envs, given = min(args.n_envs, args.n_episodes), dataclasses.asdict(settings)
    env, kwargs, *more = given.values()
    if args.vectorization is None and not any(more):
        return {"env": env, "n_envs": n_envs, "env_kwargs": kwargs}
    from rlsmooth.scripts.environment import make_envs

    names = {"env": "env_id", "wrappers": "env_wrapper", "packages": "gym_packages"}
    provenance |= {names.get(name, name): plain(value) for name, value in given.items() if value}
    return {"env": make_envs(settings, n_envs, args.seed, vectorization=args.vectorization)}


def _train_expert(args: Args, settings: EnvironmentSettings) -> tuple[Any, dict[str, dict[str, float]]]:
    """PPO with RL Zoo's settings for CartPole: both rates fall to 0, so that it ends as a steady expert."""
    import numpy as np
    from gymnasium import spaces
    from stable_baselines3 import PPO

    from rlsmooth.agents import SmoothedPPO
    from rlsmooth.agents.acting import play_episodes
    from rlsmooth.agents.spaces import start_of
    from rlsmooth.scripts.environment import make_envs

    steps = check_positive_int("n_timesteps", args.n_timesteps)
    env = make_envs(settings, 8, args.seed, vectorization=args.vectorization)
    algorithm = PPO if start_of(env.action_space) is None else SmoothedPPO  # PPO's actions count from 0
    agent = algorithm(
        "MlpPolicy" if not isinstance(env.observation_space, spaces.Dict) else "MultiInputPolicy",
        env,
        learning_rate=lambda left: 1e-3 * left,
        clip_range=lambda left: 0.2 * left,
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        seed=args.seed,
        device=args.device,
    )
    agent.learn(steps, progress_bar=args.progress)
    eval_env = env
    if args.eval_env_kwargs:
        other = environment_settings(args, evaluation=True).env_kwargs
        world = dataclasses.replace(settings, env_kwargs=other)
        eval_env = make_envs(world, 8, args.seed, vectorization=args.vectorization)
    scores = {}
    for name, deterministic in (("deterministic", True), ("sampled", False)):
        returns, _ = play_episodes(
            agent,
            eval_env,
            n_episodes=args.eval_episodes,
            seed=args.seed + 1000,  # other episodes than those trained on
            use_masks=False,
            deterministic=deterministic,
        )
        scores[name] = {
            "n_episodes": args.eval_episodes,
            "mean_return": float(np.mean(returns)),
            "std_return": float(np.std(returns)),
            "min_return": float(np.min(returns)),
        }
    env.close()
    if eval_env is not env:
        eval_env.close()
    return agent, scores


def _write_card(args: Args, folder: Path, scores: dict[str, dict[str, float]]) -> None:
    """The expert's card."""
    columns = {
        how: {"mean_reward": score["mean_return"], "std_reward": score["std_return"]} for how, score in scores.items()
    }
    measured = {"seed": args.seed + 1000, "episodes": args.eval_episodes, "columns": columns}
    config = {"command": "record", "arguments": plain(dataclasses.asdict(args)), "versions": versions()}
    facts = {"command_line": shareable_command(command_line("record", args)), "evaluations": {"expert.zip": measured}}
    write_card(folder, config, **facts)


def _load_agent(args: Args, path: Path, settings: EnvironmentSettings) -> tuple[Any, str]:
    """The agent, and the name of its algorithm."""
    from rlsmooth.agents import BC
    from rlsmooth.scripts.loading import NormalisedAgent, is_agent_file, load_sb3, load_to_play

    if args.algo == "bc" or path.is_dir() or is_agent_file(path):
        from rlsmooth.scripts.environment import make_envs

        env = make_envs(settings, 1, args.seed, vectorization=args.vectorization)
        agent, env = load_to_play(path, env, args.device)
        normalizer = agent.get_vec_normalize_env()
        env.close()
        name = "bc" if isinstance(agent, BC) else type(agent).__name__
        return (agent if normalizer is None else NormalisedAgent(agent, normalizer)), name
    return load_sb3(path, args.algo, device=args.device), args.algo


def _command(args: Args) -> str:
    """The options that differ from the defaults, without the paths, which mean nothing elsewhere."""
    words = ["rlsmooth record"]
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name not in ("output", "log_folder", "trained_agent", "progress") and value != field.default:
            parts = value if isinstance(value, tuple) else () if value is True else (value,)
            said = shareable([str(part) for part in parts], field.name)
            words.append(" ".join([f"--{field.name.replace('_', '-')}", *said]))
    return " ".join(words)


def _versions() -> dict[str, str]:
    names = ("rlsmooth", "stable-baselines3", "gymnasium", "numpy", "torch")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


if __name__ == "__main__":
    sys.exit(run_command("record", Args, main))
