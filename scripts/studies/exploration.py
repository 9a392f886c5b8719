"""Study: where does a guaranteed entropy help, beside what else keeps a policy from collapsing?

Fixed before the test seeds. Tasks in which exploration matters; each is solved, and its run ends, when the
deterministic policy is right everywhere at two looks in a row. A budget has 50 looks: steps are known to one of
them, so that runs may tie.

DETAILS

All arms are PPO with the task's hyperparameters, SB3's defaults for the rest, and one number of their own out of three,
chosen by the tuning seeds 1000, 1001 and 1002: most runs solved, then fewest steps, then the first of the list. Budgets
and hyperparameters are from pilot runs with the tuning seeds: some arm was to solve the task there. The choices were
committed before the test seeds 0 to 9 ran, once. A guarantee is a floor `f(frac, n_legal)` of the uniform policy: where
all states have as many legal actions it is `exploration_floor=f` under another name, so that a floor has an arm of its
own on the masked task only. "Guarantee to 0" falls linearly over the budget. Runs of the entropy target, with tuning
seeds and with test seeds, were made again when its set-point began to move; two of the others, made again, have the
same bits.

Compared are the steps until solved, or all, as a share of the budget; a difference below 0.05 counts for nothing.
Differences are between runs of one seed; their mean has Student's t interval. The interquartile mean's bootstrap, which
other studies use, covers less where runs end at the budget (last table). An interval of 95 % leaves 0 out by chance
once in twenty, and the tables have dozens.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback

from rlsmooth.agents import SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO
from rlsmooth.agents.smoothed.measures import measure_rollout
from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.audits import Interval, interquartile_mean_interval, proportion_interval
from rlsmooth.audits.intervals import interquartile_mean, mean_interval
from rlsmooth.losses import guaranteed_floor
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import INK, SKY, STYLE, save_figure
from rlsmooth.scripts.studies.charts import COLOURS
from rlsmooth.scripts.studies.claims import LINES, verdict
from rlsmooth.scripts.studies.deep_sea import chosen_settings, jobs_keys
from rlsmooth.scripts.studies.exploration_tasks import DeepSea, Ladder, MountainCar, Moved, Task
from rlsmooth.scripts.studies.runner import Args, Job, Result, in_words, results_folder, run_jobs, write_study

LOOKS = 50
UNTUNED, LIKE = "Deep Sea 14", "Deep Sea 10"
TUNING_SEEDS, SEEDS = (1000, 1001, 1002), tuple(range(10))
LEAST, SOLVED = 0.05, 0.9


@dataclasses.dataclass(frozen=True)
class Setup:
    """A task, its budget and PPO's hyperparameters for it.

    Attributes:
        make: the copies.
        words: what the page says of it.
        budget: environment steps.
        hyperparameters: of PPO.
        num_actions: None: it varies by state, by masks.
        counted_from: the step from which steps until solved count.
    """

    make: Callable[[], Task]
    words: str
    budget: int
    hyperparameters: dict[str, Any]
    num_actions: int | None
    counted_from: int = 0


def _of(n_steps: int, batch_size: int, n_epochs: int, learning_rate: float, **more: Any) -> dict[str, Any]:
    given = {"n_steps": n_steps, "batch_size": batch_size, "n_epochs": n_epochs, "learning_rate": learning_rate}
    return {**given, **more}


SETUPS = {
    "Ladders, masked": Setup(
        functools.partial(Ladder, 256, (0.1, 0.3)),
        "64 actions, 10 to 54 of them legal by state, 256 copies: on each of two rungs of two ladders one action leads "
        "up, in the end to a reward of 1, and another one ends the episode with 0.1 or 0.3; all others end it with 0",
        25_000, _of(4, 256, 4, 0.001), None,
    ),
    "Moved rewards": Setup(
        functools.partial(Moved, 64, 20_000),
        "eight contexts, 16 actions, episodes of one step, 64 copies: in each context one action pays 1, from half "
        "time on another one; steps count from half time",
        40_000, _of(8, 128, 4, 0.001), 16, 20_000,
    ),
    "Deep Sea 10": Setup(
        functools.partial(DeepSea, 64, 10),
        "`rlsmooth/DeepSea-v0` of size 10, 64 copies; a uniform policy finds the treasure once in 10,240 steps",
        100_000, _of(10, 320, 2, 0.003, policy_kwargs={"net_arch": [32]}), 2,
    ),
    "Deep Sea 14": Setup(
        functools.partial(DeepSea, 512, 14),
        "size 14, 512 copies, settings as chosen for size 10; a uniform policy finds the treasure once in 229,376",
        1_000_000, _of(14, 1_792, 2, 0.003, policy_kwargs={"net_arch": [32]}), 2,
    ),
    "MountainCar": Setup(
        functools.partial(MountainCar, 128),
        "`MountainCar-v0` with observations scaled to [-1, 1], 128 copies: -1 a step until the flag, 200 steps at "
        "most; right: the flag is reached from 18 of 20 places",
        200_000, _of(8, 256, 4, 0.001), 3,
    ),
}  # fmt: skip
ARMS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "PPO": ("learning_rate", (0.0003, 0.001, 0.003)),
    "ent_coef": ("ent_coef", (0.1, 0.5, 3.0)),
    "KL to uniform": ("smoothing", (0.03, 0.3, 1.0)),
    "floor": ("exploration_floor", (0.1, 0.3, 0.6)),
    "guarantee": ("min_entropy_frac", (0.3, 0.6, 0.98)),
    "target": ("target_entropy_frac", (0.3, 0.6, 0.98)),
    "guarantee to 0": ("min_entropy_frac", ("lin_0.3", "lin_0.6", "lin_0.98")),
}
COLOUR_OF = dict(zip(ARMS, (*COLOURS, SKY), strict=True))
ADDED = {"min_entropy_frac": 0.3, "smoothing": 0.3}
"""A guarantee and KL to uniform, each in the middle of what was tried: added after the runs."""
CONTRASTS = (
    *((arm, "PPO") for arm in ARMS if arm != "PPO"),
    *(("guarantee", arm) for arm in ("ent_coef", "KL to uniform", "target")),
    ("guarantee to 0", "guarantee"),
)


# ---- runs


class Progress(BaseCallback):
    """Look at the deterministic policy, and end the run when it was right everywhere twice in a row.

    Attributes:
        scores: of all looks that count.
        lowest: the lowest H / log n_legal of a state in any look.
    """

    def __init__(self, task: Task, every: int, counted_from: int) -> None:
        super().__init__()
        self.task, self.every, self.counted_from = task, every, counted_from
        self.scores: list[float] = []
        self.entropy_frac, self.lowest, self.score_before = 0.0, 1.0, 0.0
        self._looked_at = 0

    @property
    def is_solved(self) -> bool:
        """Whether it is."""
        return len(self.scores) > 1 and min(self.scores[-2:]) >= SOLVED

    def _on_step(self) -> bool:
        return not self.is_solved

    def _on_rollout_end(self) -> None:
        if self.num_timesteps - self._looked_at < self.every:
            return
        self._looked_at = self.num_timesteps
        score = self.task.greedy_score(self.model)
        if self.num_timesteps > self.counted_from:
            self.scores.append(score)
        else:
            self.score_before = score
        measures = measure_rollout(self.model)
        assert measures.entropy_frac is not None
        assert measures.entropy_frac_min is not None
        self.entropy_frac = float(measures.entropy_frac)
        self.lowest = min(self.lowest, float(measures.entropy_frac_min))


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    setup, budget = SETUPS[settings["task"]], settings["budget"]
    task = setup.make()
    counted_from = setup.counted_from * budget // setup.budget
    if isinstance(task, Moved):
        task.half_time = counted_from
    progress = Progress(task, budget // LOOKS, counted_from)
    algorithm: Any = SmoothedMaskablePPO if setup.num_actions is None else SmoothedPPO
    engine = "torch" if setup.num_actions is None else "numpy"
    arguments = {**settings["arguments"], "seed": settings["seed"], "device": "cpu", "engine": engine}
    model = algorithm("MlpPolicy", task, **arguments).learn(budget, callback=progress)
    steps = min(model.num_timesteps, budget) if progress.is_solved else budget
    return {
        "solved": progress.is_solved,
        "steps": steps - counted_from,
        "share": (steps - counted_from) / (budget - counted_from),
        "score before": progress.score_before,
        "score": progress.scores[-1],
        "sampled": round(float(np.mean(task.returns[-100:])), 4) if task.returns else None,
        "entropy_frac": round(progress.entropy_frac, 5),
        "lowest": round(progress.lowest, 6),
    }


def arms_of(task: str) -> list[str]:
    """The arms that differ there: a floor is a guarantee where all states have as many legal actions."""
    return [arm for arm in ARMS if arm != "floor" or SETUPS[task].num_actions is None]


def job(kind: str, task: str, arm: str, place: int, seed: int, *, small: bool) -> Job:
    """One run's name and settings."""
    setup = SETUPS[task]
    budget = setup.budget // 50 if small else setup.budget
    own = {ARMS[arm][0]: ARMS[arm][1][place]} if arm in ARMS else ADDED
    settings = {"task": task, "arm": arm, "arguments": {**setup.hyperparameters, **own}, "seed": seed, "budget": budget}
    return Job(f"{kind}_{task}_{arm}_{place}_{seed}".replace(" ", "").replace(",", "_"), settings)


Runs = dict[str, dict[str, Any]]
"""By task and arm."""


def run_all(jobs: Sequence[Job], folder: Path, workers: int) -> dict[str, Result]:
    """The results by name."""
    return dict(zip(jobs_keys(list(jobs)), run_jobs(jobs, train, folder=folder, workers=workers), strict=True))


def tune(folder: Path, workers: int, *, small: bool) -> tuple[Runs, dict[str, dict[str, int]]]:
    """The runs of the tuning seeds, by task, arm and setting, and the settings chosen."""
    seeds, places = (TUNING_SEEDS[:1], (0,)) if small else (TUNING_SEEDS, (0, 1, 2))

    def one(task: str, arm: str, place: int, seed: int) -> Job:
        return job("tuning", task, arm, place, seed, small=small)

    tasks = [task for task in SETUPS if task != UNTUNED]
    jobs = [one(task, arm, place, s) for task in tasks for arm in arms_of(task) for place in places for s in seeds]
    found = run_all(jobs, folder, workers)
    runs = {
        task: {
            arm: [[found[one(task, arm, place, seed).key] for seed in seeds] for place in places]
            for arm in arms_of(task)
        }
        for task in tasks
    }
    return runs, {task: chosen_settings(runs[LIKE if task == UNTUNED else task]) for task in SETUPS}


# ---- intervals and verdicts


def differences(tests: Mapping[str, Mapping[str, Sequence[Result]]], ours: str, theirs: str) -> dict[str, list[float]]:
    """By task that has both arms, the shares of the budget of one less the other's, seed by seed."""
    return {
        task: [a["share"] - b["share"] for a, b in zip(arms[ours], arms[theirs], strict=True)]
        for task, arms in tests.items()
        if ours in arms
    }


def verdict_of(found: Mapping[str, Interval]) -> str:
    """By the rules of the claims: sooner on each task, on some, on none."""
    return verdict(dataclasses.replace(LINES[0], side=-1, least=LEAST), found).replace("data are", "task is")


def coverage(num_sets: int) -> list[str]:
    """A table: how often two intervals of ten differences hold the truth, by the share of runs without success."""
    random = np.random.default_rng(0)
    lines = [
        "| unsolved, of both arms | t interval of the mean | bootstrap of the interquartile mean |",
        "|---|---:|---:|",
    ]
    for ours, theirs in ((0.0, 0.0), (0.0, 0.5), (0.2, 0.2), (0.2, 0.8), (0.5, 0.5), (0.5, 1.0), (0.8, 0.8)):

        def draw(
            shape: tuple[int, ...], ours: float = ours, theirs: float = theirs
        ) -> np.ndarray[Any, np.dtype[np.float64]]:
            one, other = (
                np.where(random.random(shape) < unsolved, 1.0, random.beta(2, 3, shape)) for unsolved in (ours, theirs)
            )
            return one - other

        mean, middle = float(draw((10**6,)).mean()), float(np.mean([interquartile_mean(x) for x in draw((10**4, 10))]))
        hits = np.zeros(2)
        for sample in draw((num_sets, 10)):
            found = (mean_interval(sample), interquartile_mean_interval(sample, num_resamples=300))
            hits += [it.low <= truth <= it.high for it, truth in zip(found, (mean, middle), strict=True)]
        t, bootstrap = hits / num_sets
        lines.append(f"| {ours:.0%}, {theirs:.0%} | {t:.3f} | {bootstrap:.3f} |")
    return [*lines, ""]


# ---- page and figure


def setting_words(task: str, arm: str, place: int) -> str:
    """A setting, and the floor that a guarantee is."""
    name, values = ARMS[arm]
    words = f"{name} {values[place]}"
    count = SETUPS[task].num_actions
    if arm != "guarantee" or count is None:
        return words
    return f"{words} (a floor of {float(guaranteed_floor(values[place], count)):.3f})"


def task_table(task: str, arms: Mapping[str, Sequence[Result]], chosen: Mapping[str, int]) -> list[str]:
    """The table of one task."""
    lines = [
        f"## {task}\n",
        f"{SETUPS[task].words[0].upper()}{SETUPS[task].words[1:]}.\n",
        "| arm | chosen | solved | steps, of the budget | less PPO's | sampled return at the end | entropy / log n at "
        "the end: mean | lowest state of the run |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, runs in arms.items():
        solved = sum(run["solved"] for run in runs)
        share = proportion_interval(solved, len(runs))
        paired = [a["share"] - b["share"] for a, b in zip(runs, arms["PPO"], strict=True)]
        sampled = [run["sampled"] for run in runs if run["sampled"] is not None]  # None: no episode has ended
        cells = [
            setting_words(task, arm, chosen[arm]),
            f"{solved} of {len(runs)} ({share.low:.2f} to {share.high:.2f})",
            in_words(mean_interval([run["share"] for run in runs]), ".2f"),
            "" if arm == "PPO" else in_words(mean_interval(paired), "+.2f"),
            in_words(mean_interval(sampled), ".2f") if sampled else "",
            f"{np.mean([run['entropy_frac'] for run in runs]):.3f}",
            f"{min(run['lowest'] for run in runs):.3f}",
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return [*lines, ""]


def verdict_table(tests: Mapping[str, Mapping[str, Sequence[Result]]]) -> list[str]:
    """The comparisons and their verdicts."""
    lines = [f"| sooner? | {' | '.join(tests)} | verdict |", "|---|" + "---:|" * len(tests) + "---|"]
    for ours, theirs in CONTRASTS:
        found = {task: mean_interval(column) for task, column in differences(tests, ours, theirs).items()}
        cells = [in_words(found[task], "+.2f") if task in found else "as the guarantee" for task in tests]
        lines.append(f"| {ours}, less {theirs} | {' | '.join(cells)} | **{verdict_of(found)}** |")
    return [*lines, ""]


def added_table(tests: Runs, added: Mapping[str, Sequence[Result]]) -> list[str]:
    """A guarantee with KL to uniform beside it."""
    lines = ["| task | solved | steps, of the budget | less PPO's | less the guarantee's | lowest state of the runs |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for task, runs in added.items():
        shares = [run["share"] for run in runs]
        less = [
            in_words(mean_interval([a - b["share"] for a, b in zip(shares, tests[task][arm], strict=True)]), "+.2f")
            for arm in ("PPO", "guarantee")
        ]
        solved = f"{sum(run['solved'] for run in runs)} of {len(runs)}"
        lowest = f"{min(run['lowest'] for run in runs):.3f}"
        lines.append(f"| {' | '.join([task, solved, in_words(mean_interval(shares), '.2f'), *less, lowest])} |")
    return [*lines, ""]


def tuning_table(tuning: Runs, chosen: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What the tuning seeds said."""
    lines = [f"| arm | setting | {' | '.join(tuning)} |", "|---|---|" + "---:|" * len(tuning)]
    for arm, (name, values) in ARMS.items():
        for place, value in enumerate(values):
            cells = []
            for task, arms in tuning.items():
                if arm not in arms or place >= len(arms[arm]):
                    cells.append("")
                    continue
                runs = arms[arm][place]
                words = f"{sum(run['solved'] for run in runs)}; {np.mean([run['share'] for run in runs]):.2f}"
                cells.append(f"**{words}**" if chosen[task][arm] == place else words)
            lines.append(f"| {arm} | {name} {value} | {' | '.join(cells)} |")
    return [*lines, ""]


def page(
    tests: Runs,
    added: Mapping[str, Sequence[Result]],
    tuning: Runs,
    chosen: Mapping[str, Mapping[str, int]],
    *,
    small: bool,
) -> str:
    """The report."""
    details = "\n".join(f"- {task}: {setup.words}; {setup.budget:,} steps." for task, setup in SETUPS.items())
    words = (__doc__ or "").partition("\n\n")[2].strip().replace("DETAILS", details)
    lines = ["# Where keeping entropy helps\n", f"{words}\n", "## Verdicts\n"]
    lines.append(
        "Steps until solved, as a share of the budget, of one arm less another's: below 0 is sooner. Mean over seeds "
        "with Student's t interval of 95 %; verdicts by the rules of [the claims](../../../docs/claims.md).\n"
    )
    lines += verdict_table(tests)
    for task, arms in tests.items():
        lines += task_table(task, arms, chosen[task])
    words = ", ".join(f"{name} {value}" for name, value in ADDED.items())
    lines.append("## Not planned, added after the runs\n")
    lines.append(f"A guarantee and KL to uniform together, not tuned ({words}), on the test seeds:\n")
    lines += added_table(tests, added)
    hyperparameters = "; ".join(f"{task}: {setup.hyperparameters}" for task, setup in SETUPS.items())
    lines += ["## Tuning\n", f"Solved of {len(TUNING_SEEDS)} seeds; mean share of the budget. Chosen in bold.\n"]
    lines += tuning_table(tuning, chosen)
    lines += [f"Hyperparameters: {hyperparameters.replace(chr(39), '')}.\n", "## Coverage\n"]
    lines.append(
        "Of simulated sets of ten differences, the share whose interval holds the truth. A run ends at the budget with "
        "the chances given, otherwise at a share of it drawn from a beta distribution (2, 3).\n"
    )
    lines += coverage(20 if small else 2_000)
    lines.append("Reproduce: `make study-exploration`. Figure: [exploration.png](exploration.png).\n")
    return "\n".join(lines)


def draw(path: Path, tests: Runs) -> None:
    """A column a task: the share of seeds solved by steps, and the differences to PPO."""
    with mpl.rc_context({**STYLE, "axes.titlepad": 8}):
        figure = Figure(figsize=(4 * len(tests), 8), dpi=100, layout="constrained")
        figure.suptitle("Who solves a task that must be explored, and when", x=0.01, ha="left", fontsize=18)
        rows = figure.subplots(2, len(tests), height_ratios=(1.2, 1))
        for (task, arms), above, below in zip(tests.items(), *rows, strict=True):
            setup = SETUPS[task]
            unit = (setup.budget - setup.counted_from) / 1000
            for place, (arm, runs) in enumerate(arms.items()):
                shares = sorted(run["share"] for run in runs if run["solved"])
                steps = np.array([0.0, *shares, 1.0]) * unit
                solved = np.array([*range(len(shares) + 1), len(shares)]) / len(runs)
                lift = 0.006 * (place - 3)  # so that lines of equal arms are all seen
                above.plot(steps, solved + lift, drawstyle="steps-post", color=COLOUR_OF[arm], label=arm)
                if arm == "PPO":
                    continue
                it = mean_interval([a["share"] - b["share"] for a, b in zip(runs, arms["PPO"], strict=True)])
                height = list(ARMS).index(arm)
                below.plot([it.low, it.high], [height, height], color=COLOUR_OF[arm])
                below.plot(it.estimate, height, "o", color=COLOUR_OF[arm])
            since = " since half time" if setup.counted_from else ""
            above.set(title=task, ylim=(-0.04, 1.05), xlabel=f"thousand steps{since}")
            below.axvline(0, color=INK, linewidth=1)
            below.axvspan(-LEAST, LEAST, color="#F2F2F2", zorder=0)
            below.set(xlim=(-1.05, 1.05), xlabel="steps less PPO's (left: sooner)")
            below.set_yticks(
                range(1, len(ARMS)), list(ARMS)[1:] if task == next(iter(tests)) else [""] * (len(ARMS) - 1)
            )
            below.set_ylim(len(ARMS) - 0.5, 0.5)
            if "floor" not in arms:
                below.text(0, list(ARMS).index("floor"), "as the guarantee", ha="center", va="center", fontsize=9)
        rows[0][0].set_ylabel("share of seeds solved")
        handles, labels = next(
            above for above in rows[0] if "floor" in above.get_legend_handles_labels()[1]
        ).get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(ARMS))
        save_figure(path, figure)


@dataclasses.dataclass(frozen=True)
class ExplorationArgs(Args):
    """Run or resume a study: runs that are done are not done again."""

    tuning_only: bool = False
    """End after the tuning seeds, with the settings chosen in exploration_settings.json."""


def main(args: ExplorationArgs) -> None:
    """Run it and write the summary."""
    folder, summary = results_folder(args, "exploration")
    tuning, chosen = tune(folder, args.workers, small=args.small)
    values = {task: {arm: ARMS[arm][1][place] for arm, place in of_task.items()} for task, of_task in chosen.items()}
    summary.mkdir(parents=True, exist_ok=True)
    settings = {"chosen": values, "hyperparameters": {task: setup.hyperparameters for task, setup in SETUPS.items()}}
    write_bytes_atomically(summary / "exploration_settings.json", (json.dumps(settings, indent=1) + "\n").encode())
    if args.tuning_only:
        return
    seeds = SEEDS[:3] if args.small else SEEDS

    def one(task: str, arm: str, seed: int) -> Job:
        return job("test", task, arm, chosen[task][arm], seed, small=args.small)

    found = run_all(
        [one(task, arm, seed) for task in SETUPS for seed in seeds for arm in arms_of(task)], folder, args.workers
    )
    tests = {
        task: {arm: [found[one(task, arm, seed).key] for seed in seeds] for arm in arms_of(task)} for task in SETUPS
    }
    both = {(task, seed): job("added", task, "both", 0, seed, small=args.small) for task in tuning for seed in seeds}
    found = run_all(list(both.values()), folder, args.workers)
    added = {task: [found[both[task, seed].key] for seed in seeds] for task in tuning}
    report = page(tests, added, tuning, chosen, small=args.small)
    data = {"chosen": values, "budgets": {task: setup.budget for task, setup in SETUPS.items()}}
    write_study(summary, "exploration", report=report, data={**data, "tests": tests, "added": added, "tuning": tuning})
    draw(summary / "exploration.png", tests)
    print(report)


if __name__ == "__main__":
    sys.exit(run_command("study exploration", ExplorationArgs, main))
