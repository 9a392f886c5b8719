"""Study: cloning demonstrations of mixed quality, with weights by advantages and without, beside RLlib's MARWIL.

Fixed before running, on other seeds. Ours on seeds 100 to 102: a temperature of 0.25 (0.5 and 1 were lower on average
over the environments), and as filters the best half (A > 0 and the best quarter were lower). MARWIL's on seed 100: beta
1 of 1 and 0.3, with RLlib's default norm of the advantages and one that follows them, for each environment the better:
on Pendulum-v1 that which follows. More tuning could help either side further.

Demonstrations, drawn by the seed: whole episodes of an expert (CartPole-v1 4 of the shipped set, Acrobot-v1 20 and
Pendulum-v1 20 of scripted controllers), and uniformly random episodes until there are at least as many transitions. So
about half of all transitions are random. Both sides have the same files, networks (two layers of 64, tanh), hard
labels, Adam at 0.001, batches of 64 and passes over the data: 20, on Pendulum-v1 40. MARWIL is RLlib's learner with its
connectors, fed with the episodes directly; its value targets are made anew ten times. Its actions of Pendulum-v1 are
in [-1, 1], and clipped. Seeds 0 to 9. The final policy, 20 episodes of deterministic and 20 of sampled actions on seeds
of their own. Reported: interquartile means over seeds of the mean return, with bootstrap intervals.

Verdicts, by the rules of [claims](../../../docs/claims.md): the data sets are the three environments, each with
deterministic and with sampled actions; the least effect that counts is 2 % of the distance from the random return to
the expert's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rlsmooth.agents import BC, AdvantageWeights
from rlsmooth.audits import Interval, interquartile_mean_difference, interquartile_mean_interval
from rlsmooth.data import Demonstrations, cartpole_v1, concatenate, record
from rlsmooth.scripts.bench.peers_adversarial_worker import EXPERTS
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, INK, ORANGE, RED, STYLE
from rlsmooth.scripts.studies import marwil_worker, runner
from rlsmooth.scripts.studies.claims import Line, verdict
from rlsmooth.scripts.studies.runner import Job, Result, in_words, results_folder, run_jobs, write_study
from rlsmooth.scripts.studies.study_callbacks import mean_return

EPISODES = {"CartPole-v1": 4, "Acrobot-v1": 20, "Pendulum-v1": 20}
EPOCHS = {"CartPole-v1": 20, "Acrobot-v1": 20, "Pendulum-v1": 40}
FIELDS = ("observations", "actions", "next_observations", "rewards", "terminations", "truncations", "episode_ends")
WEIGHTS: dict[str, AdvantageWeights | None] = {
    "BC": None,
    "filtered, by critic": AdvantageWeights("top"),
    "filtered, by return": AdvantageWeights("top", values="returns"),
    "weighted, by critic": AdvantageWeights(temperature=0.25),
    "weighted, by return": AdvantageWeights(temperature=0.25, values="returns"),
}
PEER = "RLlib's MARWIL"
ARMS = (*WEIGHTS, PEER)
COLOURS = dict(zip(ARMS, (GREY, GREEN, INK, BLUE, RED, ORANGE), strict=True))
MARWIL: dict[str, Any] = {"beta": 1.0, "norm_start": 100.0, "vf_coeff": 1.0, "gamma": 0.99, "rounds": 10}
UPDATE_RATES = {"CartPole-v1": 1e-8, "Acrobot-v1": 1e-8, "Pendulum-v1": 1e-2}
"""Of the moving norm of MARWIL's advantages; RLlib's default is the smaller."""
TRAINING: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 64}
KINDS = ("deterministic", "sampled")
LEAST = 0.02
PEER_PYTHON = "RLSMOOTH_PEER_PYTHON"
"""Of the environment of the processes: which interpreter is no setting of a run."""


@dataclasses.dataclass(frozen=True)
class Args(runner.Args):
    """Run or resume the study: runs that are done are not done again."""

    peer_python: Path | None = None
    """The interpreter of an environment that has RLlib; without it the peer's runs that are not done are left out."""


def expert_episodes(env: str, *, small: bool) -> int:
    """How many of a file's episodes, its first ones, are the expert's."""
    return 2 if small else EPISODES[env]


def make_demonstrations(env: str, seed: int, folder: Path, *, small: bool) -> None:
    """Write the arrays of a seed, which both sides read, unless they are there."""
    path = folder / f"{env}_{seed}.npz"
    if path.is_file():
        return
    count, expert = expert_episodes(env, small=small), EXPERTS[env]
    if env == "CartPole-v1":
        good = cartpole_v1().sample_episodes(count, seed=seed)
    else:
        good = record(lambda seen: expert(np.asarray(seen)[None])[0], env, count, seed=1_000 * (seed + 1))
    space, parts = gym.make(env).action_space, [good]
    space.seed(seed)
    while sum(map(len, parts)) < 2 * len(good):
        parts.append(record(lambda _: space.sample(), env, 1, seed=500_000 + 1_000 * seed + len(parts)))
    folder.mkdir(parents=True, exist_ok=True)
    whole, partial = concatenate(parts), path.with_suffix(".part.npz")
    arrays: dict[str, Any] = {name: np.asarray(getattr(whole, name)) for name in FIELDS}
    np.savez(partial, **arrays)
    partial.replace(path)


def read_demonstrations(env: str, path: Path) -> Demonstrations:
    """The demonstrations of such a file."""
    made = gym.make(env)
    with np.load(path) as archive:
        return Demonstrations(observation_space=made.observation_space, action_space=made.action_space, **archive)


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    env, seed, path = settings["env"], settings["seed"], Path(settings["demonstrations"])
    if settings["arm"] == PEER:
        job = json.dumps({**settings, **MARWIL, **TRAINING, "update_rate": UPDATE_RATES[env]})
        command = [os.environ[PEER_PYTHON], str(Path(marwil_worker.__file__).absolute())]
        answer = subprocess.run(command, input=job, stdout=subprocess.PIPE, text=True, check=True).stdout
        found: Result = json.loads(answer)
        if "error" in found:
            raise ValueError(f"{settings['arm']}, {env}, seed {seed}: {found['error']}")
        return found
    agent = BC(
        "MlpPolicy",
        None,
        read_demonstrations(env, path),
        smoothing=0.0,
        weights=WEIGHTS[settings["arm"]],
        seed=seed,
        device="cpu",
        engine="numpy",
        **TRAINING,
    ).learn(total_epochs=settings["epochs"])
    found = {
        kind: mean_return(agent, env, seed=20_000 + seed, episodes=settings["episodes"], deterministic=kind == KINDS[0])
        for kind in KINDS
    }
    data = agent.demonstrations
    assert data is not None
    weights = np.ones(len(data)) if data.weights is None else np.asarray(data.weights, np.float64)
    count = int(data.episode_ends[expert_episodes(env, small=settings["small"]) - 1])
    return {**found, "expert_share": float(weights[:count].sum() / weights.sum())}


def levels(folder: Path, *, small: bool) -> dict[str, dict[str, float]]:
    """Of each environment the mean return of the expert's and of the random episodes."""
    found: dict[str, dict[str, float]] = {}
    for env in EPISODES:
        parts: dict[str, list[float]] = {"expert": [], "random": []}
        for path in sorted(folder.glob(f"{env}_*.npz")):
            returns, count = read_demonstrations(env, path).episode_returns(), expert_episodes(env, small=small)
            parts["expert"] += returns[:count].tolist()
            parts["random"] += returns[count:].tolist()
        found[env] = {name: float(np.mean(values)) for name, values in parts.items()}
    return found


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "weighted_cloning")
    if args.peer_python is not None:
        os.environ[PEER_PYTHON] = str(args.peer_python.absolute())
    data, jobs = runs / "demonstrations", []
    for seed in range(3 if args.small else 10):
        for env in EPISODES:
            make_demonstrations(env, seed, data, small=args.small)
            for place, arm in enumerate(ARMS):
                budget = {"epochs": 1 if args.small else EPOCHS[env], "episodes": 2 if args.small else 20}
                settings = {"env": env, "arm": arm, "seed": seed, "small": args.small, **budget}
                job = Job(f"{env}_{place}_{seed}", {**settings, "demonstrations": str(data / f"{env}_{seed}.npz")})
                if arm != PEER or args.peer_python is not None or (runs / f"{job.key}.json").is_file():
                    jobs.append(job)
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    found: dict[str, dict[str, list[Result]]] = {env: {} for env in EPISODES}
    for job, result in zip(jobs, results, strict=True):
        found[job.settings["env"]].setdefault(job.settings["arm"], []).append(result)
    reference = levels(data, small=args.small)
    page = report(found, reference)
    content = {"references": reference, "marwil": {**MARWIL, "update_rates": UPDATE_RATES}, "runs": found}
    write_study(summary, "weighted_cloning", report=page, data=content)
    draw(summary / "weighted_cloning.png", found, reference)
    print(page)


def report(found: dict[str, dict[str, list[Result]]], reference: dict[str, dict[str, float]]) -> str:
    """The page: returns, differences, and a verdict for each pair of arms."""
    lines = [
        "# Cloning demonstrations of mixed quality\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        "| environment | who | seeds | deterministic actions | sampled actions | the expert's share of all weight |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for env, arms in found.items():
        lines.append(f"| {env} | random | | {reference[env]['random']:.1f} | | |")
        for arm in ARMS:
            if arm not in arms:
                lines.append(f"| {env} | {arm} | | not installed | | |")
                continue
            cells = [in_words(interquartile_mean_interval([run[kind] for run in arms[arm]]), ".1f") for kind in KINDS]
            shares = [run["expert_share"] for run in arms[arm] if "expert_share" in run]
            cells.append(f"{np.mean(shares):.2f}" if shares else "")
            lines.append(f"| {env} | {arm} | {len(arms[arm])} | {' | '.join(cells)} |")
        lines.append(f"| {env} | expert | | {reference[env]['expert']:.1f} | | |")
    lines += [
        "\nDifferences with 95 % intervals, in hundredths of the distance from the random return to the expert's:\n",
        "| claim | measured | verdict |",
        "|---|---|---|",
    ]
    for one, other in PAIRS:
        gaps = differences(found, reference, one, other)
        if gaps:
            words = "; ".join(f"{name} {in_words(gap, '+.1f')}" for name, gap in gaps.items())
            judged = verdict(Line(0, "outcome", "", "", side=1, least=100 * LEAST), gaps)
            lines.append(f"| {one}: more than {other} | {words} | **{judged}** |")
    lines.append("\nReproduce: `make study-weighted-cloning ARGS='--peer-python PATH'`, with an interpreter that has")
    lines.append(
        "`ray[tune]==2.60.*`, `dm_tree`, `lz4`, `ormsgpack`, `scipy` and torch; without one, MARWIL is left out."
    )
    lines.append("Figure: [weighted_cloning.png](weighted_cloning.png).\n")
    return "\n".join(lines)


PAIRS = (
    *((arm, "BC") for arm in (*WEIGHTS, PEER) if arm != "BC"),
    ("weighted, by critic", "filtered, by return"),
    ("weighted, by critic", PEER),
    ("weighted, by return", PEER),
)


def differences(
    found: dict[str, dict[str, list[Result]]], reference: dict[str, dict[str, float]], one: str, other: str
) -> dict[str, Interval]:
    """By environment and kind of actions; empty where an arm is missing."""
    gaps = {}
    for env, arms in found.items():
        if one in arms and other in arms:
            unit = (reference[env]["expert"] - reference[env]["random"]) / 100
            for kind in KINDS:
                scores, baseline = ([run[kind] / unit for run in arms[arm]] for arm in (one, other))
                gaps[f"{env}, {kind}"] = interquartile_mean_difference(scores, baseline)
    return gaps


def draw(path: Path, found: dict[str, dict[str, list[Result]]], reference: dict[str, dict[str, float]]) -> None:
    """The returns of each arm, run by run: deterministic actions above, sampled ones below."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(15, 8), dpi=110, layout="constrained")
        rows = figure.subplots(2, len(found))
        for kind, row in zip(KINDS, rows, strict=True):
            for (env, arms), axes in zip(found.items(), row, strict=True):
                for place, (arm, runs) in enumerate(arms.items()):
                    returns = [run[kind] for run in runs]
                    spread = np.linspace(-0.16, 0.16, len(returns))
                    axes.scatter(place + spread, returns, color=COLOURS[arm], s=16, alpha=0.5, linewidths=0)
                    interval = interquartile_mean_interval(returns)
                    axes.plot([place] * 2, [interval.low, interval.high], color=COLOURS[arm], linewidth=3)
                    axes.plot(place, interval.estimate, "D", color=COLOURS[arm], markersize=8)
                axes.axhline(reference[env]["expert"], color="#888888", linewidth=1.2, linestyle="--")
                axes.set_xticks(range(len(arms)), [arm.replace(" ", "\n") for arm in arms], fontsize=10)
                axes.set_title(env, pad=8)
            row[0].set_ylabel(f"mean return, {kind} actions")
        figure.savefig(path)


if __name__ == "__main__":
    sys.exit(run_command("study weighted-cloning", Args, main))
