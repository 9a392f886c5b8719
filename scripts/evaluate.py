"""Evaluate a saved agent: returns, episode lengths and entropy, deterministic and sampled.

rlsmooth evaluate -i logs/bc/CartPole-v1_1/agent.zip
rlsmooth evaluate -i logs/ppo/CartPole-v1_1/best_agent.zip --eval-episodes 100
rlsmooth evaluate -i agent.zip --env CartPole-v1 --demonstrations cartpole-v1 --json evaluation.json
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.scripts.arguments import PlayArgs, environment_settings, number_of
from rlsmooth.scripts.card import shareable, write_card
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.run_folder import agent_file, env_of_run, kwargs_words, plain, versions, write_json

alias = tyro.conf.arg


@dataclasses.dataclass(frozen=True)
class Args(PlayArgs):
    """Play a saved agent of any kind; measure the calibration of a cloned one if demonstrations are given. The card
    in the folder of the agent's run is renewed."""

    trained_agent: Annotated[Path, alias(aliases=["-i"])]
    """The agent.zip or best_agent.zip, or the folder of the run that wrote it (then agent.zip, or of an interrupted run
    its last checkpoint)."""
    eval_episodes: int = 20
    """How many episodes to play deterministically, and how many sampled."""
    n_envs: Annotated[int, alias(aliases=["--n-eval-envs"])] = 20
    """How many environments to play in."""
    seed: int = 0
    """Seeds the environments and the sampled actions."""
    demonstrations: str | None = None
    """Measure a cloned agent's accuracy and calibration on these: a shipped set's name, an .npz or a folder."""
    json: Path | None = None
    """Write all numbers to this file."""
    device: str = "auto"
    """Where the agent runs: auto, cpu, cuda."""
    num_threads: int = 1
    """How many threads torch and numpy may use: small networks are fastest with one; -1: as many as they would."""
    progress: Annotated[bool, alias(aliases=["-P"])] = False
    """Show progress bars."""


def main(args: Args) -> dict[str, dict[str, float]]:
    """Play, measure, print, and return the numbers: by column of the table, by name.

    Raises:
        ValueError: an argument is wrong, or names something that is not there, does not fit, or can't be written to.
    """
    path = agent_file("trained_agent", args.trained_agent, or_checkpoints=True)
    settings = env_of_run(path, environment_settings(args, evaluation=True))
    env = settings.env
    check_positive_int("eval_episodes", args.eval_episodes)
    if args.json is not None:
        check_writable_folder("json", args.json.parent)
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.agents import BC
    from rlsmooth.agents.acting import quick_actor
    from rlsmooth.agents.sb3 import is_maskable
    from rlsmooth.data import load_demonstrations, record
    from rlsmooth.scripts.environment import check_device, limit_threads, make_envs
    from rlsmooth.scripts.loading import load_to_play, measure_on_states
    from rlsmooth.scripts.measure import measure
    from rlsmooth.scripts.reports import print_evaluation

    limit_threads(args.num_threads)
    n_envs = min(check_positive_int("n_envs", args.n_envs), args.eval_episodes)
    envs = make_envs(settings, n_envs, args.seed, vectorization=args.vectorization)
    agent, envs = load_to_play(path, envs, check_device(args.device), trust=args.algo if args.trust else None)
    if args.demonstrations is not None and not isinstance(agent, BC):
        raise ValueError(f"--demonstrations is for cloned agents, and {str(path)!r} is none: leave it out.")
    given = None if args.demonstrations is None else load_demonstrations(args.demonstrations)

    found: dict[str, dict[str, float]] = {}
    for name, deterministic in (("deterministic", True), ("sampled", False)):
        played = record(
            quick_actor(agent),
            envs,
            args.eval_episodes,
            args.seed,
            deterministic=deterministic,
            action_masks=is_maskable(agent.policy),
            progress=args.progress,
        )
        returns, lengths = played.episode_returns(), played.episode_lengths()
        found[name] = {
            "mean_reward": float(returns.mean()),
            "std_reward": float(returns.std()),
            "min_reward": float(returns.min()),
            "mean_ep_length": float(lengths.mean()),
            **measure_on_states(agent, played),
        }
    envs.close()
    counts: dict[str, int] = {}
    if given is not None:
        found["demonstrations"], bins = measure(agent, given)
        if bins is not None:
            counts = {"demonstrations": round(float(bins.counts.sum()))}
    print_evaluation(f"{path}, {number_of(args.eval_episodes, 'episode')} of {env}", found, counts)
    if path.is_file() and (path.parent / "config.json").is_file():
        facts = {"seed": args.seed, "episodes": args.eval_episodes, "on": shareable(args.demonstrations)}
        words = [*kwargs_words(settings.env_kwargs), *args.env_wrapper]  # another world gives another row
        name = " ".join([f"{path.name} in {shareable(env, 'env')}", *shareable(words, "env_kwargs")])
        write_card(path.parent, evaluations={name: {**facts, "columns": found}})
    if args.json is not None:
        write_json(args.json, {"arguments": plain(dataclasses.asdict(args)), "versions": versions(), **found})
        print(f"written to {args.json}")
    return found


if __name__ == "__main__":
    sys.exit(run_command("evaluate", Args, main))
