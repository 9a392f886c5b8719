"""Study: from few demonstrations to reinforcement learning, the first 20,000 steps.

Fixed before running: CartPole-v1; 2 episodes of the shipped demonstrations in which 20 % of the actions are replaced,
drawn by the seed; BC with smoothing 0.1 for 10 epochs; then `SmoothedPPO.from_bc` with rl-zoo3's hyperparameters for
PPO on CartPole-v1 (constant learning rate 0.001 and clip range 0.2), 2 x 2: KL to the clone (`lin_0.5`) on or off,
value warm-up (4,096 steps, which count among the 20,000) on or off. Seeds 0 to 39: ten, of an earlier run, were too few
to decide on the KL term. Added later: both with a guarantee, `min_entropy_frac=0.3`, fixed beforehand. Evaluated before
the first step and every 2,000 steps, 10 episodes of sampled actions. Reported: the interquartile mean over seeds of the
mean over training (the area under the curve), of the lowest evaluation (does it collapse?) and of the last one, with
stratified bootstrap intervals.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from rlsmooth.agents import BC, SmoothedPPO
from rlsmooth.audits import interquartile_mean_difference, interquartile_mean_interval
from rlsmooth.data import load_demonstrations
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.studies.cartpole import HYPERPARAMETERS, N_ENVS
from rlsmooth.scripts.studies.charts import curves_chart
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.scripts.studies.study_callbacks import Watch, mean_return

ENV = "CartPole-v1"
ARMS: dict[str, dict[str, Any]] = {
    "neither": {"smoothing": 0.0, "value_warmup_steps": 0},
    "KL to the clone": {"smoothing": "lin_0.5", "value_warmup_steps": 0},
    "value warm-up": {"smoothing": 0.0, "value_warmup_steps": 4_096},
    "both": {"smoothing": "lin_0.5", "value_warmup_steps": 4_096},
    "both, guarantee": {"smoothing": "lin_0.5", "value_warmup_steps": 4_096, "min_entropy_frac": 0.3},
}
MEASURES = ("mean over training", "lowest", "last")


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed, budget = settings["seed"], settings["budget"]
    demonstrations = load_demonstrations("cartpole-v1").sample_episodes(2, seed=seed).with_action_noise(0.2, seed=seed)
    clone = BC("MlpPolicy", None, demonstrations, smoothing=0.1, seed=seed, device="cpu")
    clone.learn(total_epochs=10)
    model = SmoothedPPO.from_bc(
        clone,
        make_vec_env(ENV, n_envs=N_ENVS, seed=seed),
        **settings["arguments"],
        learning_rate=0.001,
        clip_range=0.2,
        seed=seed,
        **HYPERPARAMETERS,
    )

    def sampled(model: Any) -> float:
        return mean_return(model, ENV, seed=10_000 + seed, episodes=10, deterministic=False)

    watch = Watch(max(budget // 10, 1), sampled)
    model.learn(budget, callback=watch)
    return watch.curves()


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "bc_to_ppo")
    seeds, budget = (range(3), 1_024) if args.small else (range(40), 20_000)
    jobs = [
        Job(f"{arm.replace(' ', '_')}_{seed}", {"arm": arm, "seed": seed, "budget": budget, "arguments": ARMS[arm]})
        for seed in seeds
        for arm in ARMS
    ]
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    arms = by_arm(jobs, results)
    scores = {
        arm: {
            "mean over training": [float(np.mean(run["returns"][1:])) for run in found],
            "lowest": [float(np.min(run["returns"][1:])) for run in found],
            "last": [float(run["returns"][-1]) for run in found],
        }
        for arm, found in arms.items()
    }
    clones = interquartile_mean_interval([run["returns"][0] for run in arms["neither"]])
    lines = [
        "# From a cloned policy to PPO: the first 20,000 steps\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        f"The clones before the first step: {in_words(clones, '.0f')}. "
        "Interquartile means over seeds with 95 % intervals:\n",
        f"| arm | {' | '.join(MEASURES)} | mean over training less that of *neither* |",
        "|---|" + "---:|" * (len(MEASURES) + 1),
    ]
    for arm, score in scores.items():
        cells = []
        for measure in MEASURES:
            interval = interquartile_mean_interval(score[measure])
            cells.append(in_words(interval, ".0f"))
        if arm == "neither":
            cells.append("")
        else:
            gap = interquartile_mean_difference(score["mean over training"], scores["neither"]["mean over training"])
            cells.append(in_words(gap, "+.0f"))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines.append("\nReproduce: `make study-bc-to-ppo`. Curves: [bc_to_ppo.png](bc_to_ppo.png).\n")
    data = {"arms": ARMS, "budget": budget, "scores": scores, "runs": arms}
    write_study(summary, "bc_to_ppo", report="\n".join(lines), data=data)
    curves_chart(
        summary / "bc_to_ppo.png",
        arms,
        panels=(
            ("steps", "returns", "return of sampled actions"),
            ("entropy_steps", "entropy_fractions", "entropy / log n"),
        ),
        title="CartPole-v1: 2 noisy demonstrations, BC, then SmoothedPPO.from_bc",
    )
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study bc-to-ppo", Args, main))
