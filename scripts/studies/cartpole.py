"""Study: SmoothedPPO with smoothing on, CartPole-v1, 100,000 steps, 10 seeds.

Fixed before running: rl-zoo3's hyperparameters for PPO on CartPole-v1; smoothing 0.01; seeds 0 to 9; the policy after
the last step, 100 episodes of sampled and 100 of deterministic actions on seeds of their own. Reported: the returns,
and how many of the ten have a deterministic mean return of 500, which rl-zoo3's table gives for one run of PPO.
"""

from __future__ import annotations

import sys
from typing import Any

from stable_baselines3.common.env_util import make_vec_env

from rlsmooth.agents import SmoothedPPO
from rlsmooth.audits import interquartile_mean_interval, proportion_interval
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.studies.charts import curves_chart
from rlsmooth.scripts.studies.runner import Args, Job, Result, results_folder, run_jobs, write_study
from rlsmooth.scripts.studies.study_callbacks import Watch, mean_return

ENV = "CartPole-v1"
SMOOTHING = 0.01
HYPERPARAMETERS: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    "ent_coef": 0.0,
}
N_ENVS = 8


def falling(start: float) -> Any:
    """A schedule from `start` to 0, as rl-zoo3's `lin_…`."""
    return lambda progress: progress * start


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed, budget, episodes = settings["seed"], settings["budget"], settings["episodes"]
    model = SmoothedPPO(
        "MlpPolicy",
        make_vec_env(ENV, n_envs=N_ENVS, seed=seed),
        smoothing=settings["smoothing"],
        learning_rate=falling(0.001),
        clip_range=falling(0.2),
        seed=seed,
        device="cpu",
        **HYPERPARAMETERS,
    )

    def sampled(model: Any) -> float:
        return mean_return(model, ENV, seed=10_000 + seed, episodes=10, deterministic=False)

    watch = Watch(max(budget // 10, 1), sampled)
    model.learn(budget, callback=watch)
    final = {
        kind: mean_return(model, ENV, seed=20_000 + seed, episodes=episodes, deterministic=kind == "deterministic")
        for kind in ("deterministic", "sampled")
    }
    return {**watch.curves(), **final}


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "cartpole")
    seeds, budget, episodes = (range(3), 1_024, 10) if args.small else (range(10), 100_000, 100)
    settings = {"smoothing": SMOOTHING, "budget": budget, "episodes": episodes}
    jobs = [Job(f"seed_{seed}", {**settings, "seed": seed}) for seed in seeds]
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    deterministic = [result["deterministic"] for result in results]
    sampled = [result["sampled"] for result in results]
    solved = sum(value == 500 for value in deterministic)
    share = proportion_interval(solved, len(results))
    lines = [
        "# CartPole-v1 with smoothing on\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        f"Mean deterministic return 500: **{solved} of {len(results)} seeds** "
        f"(Wilson 95 %: {share.low:.2f} to {share.high:.2f}).\n",
        "| policy after the last step | interquartile mean | 95 % bootstrap | lowest seed |",
        "|---|---:|---:|---:|",
    ]
    for name, values in (("deterministic", deterministic), ("sampled", sampled)):
        interval = interquartile_mean_interval(values)
        lines.append(
            f"| {name} | {interval.estimate:.1f} | {interval.low:.1f} to {interval.high:.1f} | {min(values):.1f} |"
        )
    lines.append("\nReproduce: `make study-cartpole`. Curves: [cartpole.png](cartpole.png).\n")
    write_study(summary, "cartpole", report="\n".join(lines), data={"settings": settings, "runs": results})
    curves_chart(
        summary / "cartpole.png",
        {f"smoothing {SMOOTHING}": results},
        panels=(
            ("steps", "returns", "return of sampled actions"),
            ("entropy_steps", "entropy_fractions", "entropy / log n"),
        ),
        title="SmoothedPPO on CartPole-v1",
    )
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study cartpole", Args, main))
