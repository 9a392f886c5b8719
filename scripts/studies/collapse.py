"""Study: does an entropy target hold the entropy where plain PPO's collapses, and what does the return say?

Fixed before running: `rlsmooth/DeepSea-v0` of size 8, whose small costs turn a policy away from its treasure: one run
of plain PPO on size 10 (seed 1000, not among those of the study) ended with an entropy of 0.0009 log n. 16
environments, 24,000 steps, PPO with n_steps 32, batch size 128, 4 epochs, gamma 0.99 and a learning rate of 0.001,
SB3's defaults for the rest. Arms: PPO; `SmoothedPPO(target_entropy_frac=0.3)`; the same with 0.5. Seeds 0 to 9.
Entropy / log n is measured at the end of each rollout. Reported, of the rollouts after the first 20 % of training:
the share whose entropy is within 10 % of the target, and the share below that (for PPO: of 0.3); the entropy at the
end; the return of the last policy (100 episodes of sampled actions, and of deterministic ones) and of how many seeds
its deterministic actions find the treasure (0.99). A target is no ceiling: the coefficient only ever adds entropy.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import rlsmooth.envs
from rlsmooth.agents import SmoothedPPO
from rlsmooth.audits import interquartile_mean_interval, proportion_interval
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.studies.charts import curves_chart
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.scripts.studies.study_callbacks import Watch, mean_return

assert rlsmooth.envs.ENVIRONMENTS

ENV = "rlsmooth/DeepSea-v0"
ENV_KWARGS = {"size": 8}
ARMS: dict[str, float | None] = {"PPO": None, "target 0.3": 0.3, "target 0.5": 0.5}
HYPERPARAMETERS: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 128,
    "n_epochs": 4,
    "gamma": 0.99,
    "learning_rate": 0.001,
}
N_ENVS = 16


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed, budget, episodes = settings["seed"], settings["budget"], settings["episodes"]
    target = ARMS[settings["arm"]]
    envs = make_vec_env(ENV, n_envs=N_ENVS, seed=seed, env_kwargs=ENV_KWARGS)
    common: dict[str, Any] = {"seed": seed, "device": "cpu", **HYPERPARAMETERS}
    model: PPO
    if target is None:
        model = PPO("MlpPolicy", envs, **common)
    else:
        model = SmoothedPPO("MlpPolicy", envs, target_entropy_frac=target, **common)

    def sampled(model: Any) -> float:
        return evaluated(model, seed=10_000 + seed, episodes=episodes, deterministic=False)

    watch = Watch(max(budget // 8, 1), sampled)
    model.learn(budget, callback=watch)
    final = {
        kind: evaluated(model, seed=20_000 + seed, episodes=episodes, deterministic=kind == "deterministic")
        for kind in ("deterministic", "sampled")
    }
    return {**watch.curves(), **final}


def evaluated(model: PPO, *, seed: int, episodes: int, deterministic: bool) -> float:
    """The mean return."""
    return mean_return(model, ENV, seed=seed, episodes=episodes, deterministic=deterministic, env_kwargs=ENV_KWARGS)


def late_fractions(run: Result, *, budget: int) -> NDArray[np.float64]:
    """The entropies / log n of the rollouts after the first 20 % of training."""
    pairs = zip(run["entropy_steps"], run["entropy_fractions"], strict=True)
    return np.array([fraction for step, fraction in pairs if step > 0.2 * budget], dtype=np.float64)


def shares(run: Result, target: float, *, budget: int) -> tuple[float, float]:
    """Of the rollouts after the first 20 % of training: the shares within 10 % of the target, and below that."""
    late = late_fractions(run, budget=budget)
    return float(np.mean(np.abs(late - target) <= 0.1 * target)), float(np.mean(late < 0.9 * target))


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "collapse")
    seeds, budget, episodes = (range(3), 1_024, 4) if args.small else (range(10), 24_000, 100)
    fixed = {"budget": budget, "episodes": episodes, "env": ENV_KWARGS, "hyperparameters": HYPERPARAMETERS}
    jobs = [
        Job(f"{arm.replace(' ', '_')}_{seed}", {"arm": arm, "seed": seed, **fixed}) for seed in seeds for arm in ARMS
    ]
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    arms = by_arm(jobs, results)
    lines = [
        "# Holding the entropy where PPO's collapses\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        "Interquartile means over seeds with 95 % stratified bootstrap intervals; for shares of seeds, Wilson's:\n",
        "| arm | within 10 % of the target | below | entropy / log n at the end | sampled return | treasure found |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm, found in arms.items():
        target = ARMS[arm] or 0.3
        columns = (
            [shares(run, target, budget=budget)[0] for run in found],
            [shares(run, target, budget=budget)[1] for run in found],
            [run["entropy_fractions"][-1] for run in found],
            [run["sampled"] for run in found],
        )
        cells = []
        for values, digits in zip(columns, (2, 2, 3, 3), strict=True):
            interval = interquartile_mean_interval(values)
            cells.append(in_words(interval, f".{digits}f"))
        solved = sum(run["deterministic"] > 0.5 for run in found)
        share = proportion_interval(solved, len(found))
        cells.append(f"{solved} of {len(found)} ({share.low:.2f} to {share.high:.2f})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    means = {
        arm: interquartile_mean_interval([float(late_fractions(run, budget=budget).mean()) for run in found])
        for arm, found in arms.items()
    }
    words = "; ".join(f"{arm} {in_words(mean, '.3f')}" for arm, mean in means.items())
    lines.append(f"\nNot planned, added after the runs: the mean entropy / log n of those rollouts: {words}.")
    lines.append("\nReproduce: `make study-collapse`. Curves: [collapse.png](collapse.png).\n")
    data = {"arms": ARMS, **fixed, "runs": arms}
    write_study(summary, "collapse", report="\n".join(lines), data=data)
    curves_chart(
        summary / "collapse.png",
        arms,
        panels=(
            ("entropy_steps", "entropy_fractions", "entropy / log n"),
            ("steps", "returns", "return of sampled actions"),
        ),
        title="Deep Sea of size 8",
    )
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study collapse", Args, main))
