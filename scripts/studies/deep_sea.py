"""Study: who finds the treasure of Deep Sea?

Fixed before running: `rlsmooth/DeepSea-v0` of sizes 8 and 10; 16 environments; 60,000 steps; PPO with n_steps 32,
batch size 128, 4 epochs, gamma 0.99, a learning rate of 0.001 unless the table says otherwise, SB3's defaults for the
rest. Four arms with three settings each; the setting of an arm is chosen on size 10 by the tuning seeds 100, 101 and
102: most runs solved, then fewest steps, then the first of the list. Then seeds 0 to 9 on all sizes. A run is solved,
and ends, when the deterministic policy finds the treasure at two evaluations in a row, which come every 1,000 steps.
A policy that acts at random sees the treasure once in 2,048 and 10,240 steps on average. A first run of the study had
20,000 steps, in which no arm solved size 10 on more than 3 seeds, and had size 12 too, which 1 run of 40 solved.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import rlsmooth.envs
from rlsmooth.agents import SmoothedPPO
from rlsmooth.audits import proportion_interval
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import STYLE
from rlsmooth.scripts.studies.charts import COLOURS
from rlsmooth.scripts.studies.runner import Args, Job, Result, results_folder, run_jobs, write_study
from rlsmooth.scripts.studies.study_callbacks import Watch, mean_return

assert rlsmooth.envs.ENVIRONMENTS

ENV = "rlsmooth/DeepSea-v0"
SIZES = (8, 10)
HYPERPARAMETERS: dict[str, Any] = {"n_steps": 32, "batch_size": 128, "n_epochs": 4, "gamma": 0.99}
ARMS: dict[str, tuple[dict[str, Any], ...]] = {
    "PPO": ({"learning_rate": 0.001}, {"learning_rate": 0.0003}, {"learning_rate": 0.003}),
    "PPO + ent_coef": ({"ent_coef": 0.01}, {"ent_coef": 0.1}, {"ent_coef": 0.3}),
    "SmoothedPPO": ({"smoothing": 0.01}, {"smoothing": 0.1}, {"smoothing": 0.3}),
    "SmoothedPPO + floor": (
        {"smoothing": 0.1, "exploration_floor": 0.05},
        {"smoothing": 0.1, "exploration_floor": 0.2},
        {"smoothing": 0.3, "exploration_floor": 0.1},
    ),
}


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed, budget = settings["seed"], settings["budget"]
    env_kwargs = {"size": settings["size"]}
    algorithm: Any = SmoothedPPO if settings["arm"].startswith("Smoothed") else PPO
    envs = make_vec_env(ENV, n_envs=16, seed=seed, env_kwargs=env_kwargs)
    model: PPO = algorithm("MlpPolicy", envs, seed=seed, device="cpu", **settings["arguments"])

    def finds_treasure(model: Any) -> float:
        found = mean_return(model, ENV, seed=seed, episodes=1, deterministic=True, env_kwargs=env_kwargs)
        return float(found > 0.5)

    def is_solved(seen: list[float]) -> bool:
        return seen[-2:] == [1.0, 1.0]

    watch = Watch(1_000, finds_treasure, is_done=is_solved)
    model.learn(budget, callback=watch)
    return {"solved": is_solved(watch.seen), "steps": watch.steps[-1], "entropy_frac": watch.entropy_fractions[-1]}


def chosen_settings(tuning: dict[str, list[list[Result]]]) -> dict[str, int]:
    """For each arm, the place of the setting that the tuning seeds favour."""

    def quality(runs: list[Result]) -> tuple[int, float]:
        return sum(run["solved"] for run in runs), -float(np.mean([run["steps"] for run in runs]))

    return {arm: max(range(len(options)), key=lambda place: quality(options[place])) for arm, options in tuning.items()}


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "deep_sea")
    tuning_seeds, seeds, sizes, budget = (
        ((100,), (0, 1), (4,), 1_024) if args.small else ((100, 101, 102), tuple(range(10)), SIZES, 60_000)
    )
    tuning_size = 4 if args.small else 10

    def job(kind: str, arm: str, place: int, size: int, seed: int) -> Job:
        key = f"{kind}_{arm.replace(' ', '')}_{place}_size{size}_{seed}"
        arguments = {"learning_rate": 0.001, **HYPERPARAMETERS, **ARMS[arm][place]}
        settings = {"arm": arm, "arguments": arguments, "size": size, "seed": seed, "budget": budget}
        return Job(key, settings)

    places = [(arm, place) for arm, options in ARMS.items() for place in range(len(options))]
    jobs = [job("tuning", arm, place, tuning_size, seed) for arm, place in places for seed in tuning_seeds]
    found = dict(zip(jobs_keys(jobs), run_jobs(jobs, train, folder=runs, workers=args.workers), strict=True))
    tuning = {
        arm: [
            [found[job("tuning", arm, place, tuning_size, seed).key] for seed in tuning_seeds]
            for place in range(len(options))
        ]
        for arm, options in ARMS.items()
    }
    chosen = chosen_settings(tuning)
    jobs = [job("test", arm, chosen[arm], size, seed) for size in sizes for arm in ARMS for seed in seeds]
    found = dict(zip(jobs_keys(jobs), run_jobs(jobs, train, folder=runs, workers=args.workers), strict=True))
    tests = {
        arm: {size: [found[job("test", arm, chosen[arm], size, seed).key] for seed in seeds] for size in sizes}
        for arm in ARMS
    }
    lines = _report(tests, chosen, tuning, tuning_size)
    data = {"arms": ARMS, "chosen": chosen, "budget": budget, "tuning": tuning, "tests": tests}
    write_study(summary, "deep_sea", report="\n".join(lines), data=data)
    _draw(summary / "deep_sea.png", tests)
    print("\n".join(lines))


def _report(
    tests: dict[str, dict[int, list[Result]]],
    chosen: dict[str, int],
    tuning: dict[str, list[list[Result]]],
    tuning_size: int,
) -> list[str]:
    """The lines of the summary."""
    sizes = list(next(iter(tests.values())))
    num_seeds = len(next(iter(tests.values()))[sizes[0]])
    lines = [
        "# Deep Sea: the share of seeds that find the treasure\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        f"Solved of {num_seeds} seeds, with Wilson's 95 % interval of the share:\n",
        f"| arm | setting chosen | {' | '.join(f'size {size}' for size in sizes)} |",
        "|---|---|" + "---:|" * len(sizes),
    ]
    for arm, by_size in tests.items():
        cells = []
        for found_runs in by_size.values():
            solved = sum(run["solved"] for run in found_runs)
            share = proportion_interval(solved, len(found_runs))
            cells.append(f"{solved} ({share.low:.2f} to {share.high:.2f})")
        lines.append(f"| {arm} | {_words(ARMS[arm][chosen[arm]])} | {' | '.join(cells)} |")
    lines += [
        f"\nTuning on size {tuning_size}, solved of {len(next(iter(tuning.values()))[0])} seeds and mean steps:\n",
        "| arm | setting | solved | steps |",
        "|---|---|---:|---:|",
    ]
    for arm, options in ARMS.items():
        for words, found_runs in zip(map(_words, options), tuning[arm], strict=True):
            mean = float(np.mean([run["steps"] for run in found_runs]))
            lines.append(f"| {arm} | {words} | {sum(run['solved'] for run in found_runs)} | {mean:.0f} |")
    lines += [
        "\nNot planned, added after the runs. Runs of one seed start with the same network and the same draws, so that "
        "the arms\nare not independent. The seeds that were solved, and the mean entropy / log n at the end of the "
        "others:\n",
        f"| arm | {' | '.join(f'size {size}' for size in sizes)} |",
        "|---|" + "---|" * len(sizes),
    ]
    for arm, by_size in tests.items():
        lines.append(f"| {arm} | {' | '.join(_which(found_runs) for found_runs in by_size.values())} |")
    lines.append("\nReproduce: `make study-deep-sea`. Figure: [deep_sea.png](deep_sea.png).\n")
    return lines


def jobs_keys(jobs: list[Job]) -> list[str]:
    """Their names."""
    return [job.key for job in jobs]


def _words(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in arguments.items())


def _which(runs: list[Result]) -> str:
    """The seeds solved (they count from 0) and the last entropy of the others."""
    solved = [str(seed) for seed, run in enumerate(runs) if run["solved"]]
    others = [run["entropy_frac"] for run in runs if not run["solved"]]
    return f"{', '.join(solved) or 'none'}; {f'{np.mean(others):.3f}' if others else 'all solved'}"


def _draw(path: Path, tests: dict[str, dict[int, list[Result]]]) -> None:
    """Bars with Wilson's intervals."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), dpi=120, layout="constrained")
        axes = figure.subplots()
        for number, (colour, (arm, by_size)) in enumerate(zip(COLOURS, tests.items(), strict=False)):
            shares = [proportion_interval(sum(run["solved"] for run in runs), len(runs)) for runs in by_size.values()]
            heights = np.array([share.estimate for share in shares])
            errors = np.array([[share.estimate - share.low, share.high - share.estimate] for share in shares]).T
            places = np.arange(len(by_size)) + 0.2 * (number - 1.5)
            axes.bar(places, heights, 0.18, color=colour, label=arm)
            axes.errorbar(places, heights, yerr=np.clip(errors, 0, None), fmt="none", ecolor="#222222", capsize=2)
        axes.set_xticks(range(len(by_size)), [f"size {size}" for size in by_size])
        axes.set(ylabel="share of seeds solved", ylim=(0, 1.02), title="Deep Sea")
        figure.legend(frameon=False, loc="outside lower center", ncols=4)
        figure.savefig(path)


if __name__ == "__main__":
    sys.exit(run_command("study deep-sea", Args, main))
