"""Study: with early termination, the sign of a learned reward teaches by itself, with nothing learned from an expert.

Fixed before running. GAIL on PPO (16 environments, rollouts of 32 steps, 10 epochs in batches of 256, learning rate
0.001, gamma 0.99), 8 updates of the discriminator a round, 10 episodes of an expert: CartPole-v1, 32,768 steps, whose
expert lives for 500 steps and whose episodes end by falling, and Acrobot-v1, 24,576 steps, whose expert ends after
about 80 steps and whose episodes are else cut off after 500. Arms: D trained as usual, or D = 1/2 (a constant that
can't learn); the reward -log(1 - D), never negative, or log D, never positive; terminal states `"as_is"` (termination
is worth 0 in whatever reward there is: imitation's `allow_variable_horizon=True`) or `"absorbing"` (the discriminator
is trained on an absorbing state too, whose reward is taken off every step). Beside them PPO on the true reward, and
random actions. Steps, rollouts and updates were chosen on seed 100, on the arms with absorbing states and PPO alone;
seeds 0 to 9 count, 20 episodes each of deterministic and of sampled actions on seeds of their own.

Run again after results were seen: the arms with absorbing states, since the first 8 seeds of them led to a change of
the library. With -log(1 - D) 6 of 8 had stayed at -500 on Acrobot-v1: while no episode of the generator ended, nothing
bounded the reward of the absorbing state. Now each side's batches have the samples of one termination more than it has
seen, which was chosen on seeds 100 to 107 of other settings. And once more after a review that had not looked at
returns: sides with different numbers of samples had different shares of that termination. The predictions are those of
before.

Predicted, before the counted runs, of the deterministic return (interquartile mean over seeds):

- CartPole-v1, D = 1/2, `as_is`: -log(1 - D) is log 2 a step, CartPole's own reward in another unit: above 450. log D is
  -log 2 a step: below 15. `absorbing`: both forms are exactly 0, so that there is nothing to learn: below 100.
- CartPole-v1, D trained: -log(1 - D) above 450 both ways; log D below 100 `as_is`, above 400 `absorbing`.
- Acrobot-v1, D = 1/2, `as_is`, log D: Acrobot's own reward in another unit: above -120. `absorbing`: below -450.
- Acrobot-v1, D trained: -log(1 - D) `as_is` pays for living on: below -300, `absorbing` above -200; log D above -120
  `as_is` (as it does without an expert), above -200 `absorbing`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from gymnasium import make
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from rlsmooth.agents import GAIL
from rlsmooth.agents.adversarial.reward_nets import Transitions
from rlsmooth.audits import interquartile_mean_interval
from rlsmooth.data import record
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, INK, ORANGE, STYLE, save_figure
from rlsmooth.scripts.studies.imitation_runs import (
    KINDS,
    TrainingReturns,
    demonstrations,
    final_returns,
    make_generator,
)
from rlsmooth.scripts.studies.runner import Args, Job, Result, in_words, results_folder, run_jobs, write_study

DEMONSTRATIONS = 10
STEPS = {"CartPole-v1": 32_768, "Acrobot-v1": 24_576}
DISC_UPDATES = 8
LOOK_EVERY = 4
FORMS = {"-log(1-D)": "minus_log_one_minus_d", "log D": "log_d"}
RANDOM, TRUE = "random actions", "PPO, true reward"
ARMS: dict[str, tuple[str, ...]] = {
    "CartPole-v1": (
        "D = 1/2, -log(1-D), as_is",
        "D = 1/2, log D, as_is",
        "D = 1/2, reward 0, absorbing",
        "D trained, -log(1-D), as_is",
        "D trained, -log(1-D), absorbing",
        "D trained, log D, as_is",
        "D trained, log D, absorbing",
        TRUE,
        RANDOM,
    ),
    "Acrobot-v1": (
        "D = 1/2, log D, as_is",
        "D = 1/2, reward 0, absorbing",
        "D trained, -log(1-D), as_is",
        "D trained, -log(1-D), absorbing",
        "D trained, log D, as_is",
        "D trained, log D, absorbing",
        TRUE,
        RANDOM,
    ),
}
"""With D = 1/2 and absorbing states the two forms are one run: `-log(1-D)` stands for both."""
PREDICTED: dict[str, dict[str, tuple[float, float]]] = {
    "CartPole-v1": {
        "D = 1/2, -log(1-D), as_is": (450, 500),
        "D = 1/2, log D, as_is": (0, 15),
        "D = 1/2, reward 0, absorbing": (0, 100),
        "D trained, -log(1-D), as_is": (450, 500),
        "D trained, -log(1-D), absorbing": (450, 500),
        "D trained, log D, as_is": (0, 100),
        "D trained, log D, absorbing": (400, 500),
    },
    "Acrobot-v1": {
        "D = 1/2, log D, as_is": (-120, 0),
        "D = 1/2, reward 0, absorbing": (-500, -450),
        "D trained, -log(1-D), as_is": (-500, -300),
        "D trained, -log(1-D), absorbing": (-200, 0),
        "D trained, log D, as_is": (-120, 0),
        "D trained, log D, absorbing": (-200, 0),
    },
}
"""Of the deterministic return's interquartile mean: see above."""


class ConstantLogit(nn.Module):
    """A discriminator that says 1/2 of everything: its one parameter has no effect, and its gradient is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, rows: Transitions) -> Tensor:
        """Logits of 0, `[B]`."""
        return (0 * self.unused).expand(len(rows.terminated))


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    env, arm, seed, steps = settings["env"], settings["arm"], settings["seed"], settings["steps"]
    if arm == RANDOM:
        space = make(env).action_space
        space.seed(seed)
        returns = record(lambda _: space.sample(), env, settings["episodes"], seed=20_000 + seed).episode_returns()
        return dict.fromkeys(KINDS, float(np.mean(returns)))
    generator = make_generator(env, seed)
    watch = TrainingReturns(every=LOOK_EVERY)
    if arm == TRUE:
        generator.learn(steps, callback=watch)
        return {"steps": watch.steps, "returns": watch.returns, **_final(generator, settings)}
    who, form, terminal_states = arm.split(", ")
    trainer = GAIL(
        demonstrations(env, DEMONSTRATIONS, seed),
        generator,
        ConstantLogit() if who == "D = 1/2" else None,
        reward_form=FORMS.get(form, "minus_log_one_minus_d"),  # type: ignore[arg-type]
        terminal_states=terminal_states,
        absorbing_reward="learned",  # the only one when these runs were made
        n_disc_updates_per_round=DISC_UPDATES,
        seed=seed,
    )
    trainer.learn(steps, callback=watch)
    return {"steps": watch.steps, "returns": watch.returns, **_final(trainer, settings)}


def _final(agent: Any, settings: dict[str, Any]) -> dict[str, float]:
    return final_returns(agent, settings["env"], seed=settings["seed"], episodes=settings["episodes"])


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "variable_horizon")
    steps, episodes = (dict.fromkeys(ARMS, 8_192), 2) if args.small else (STEPS, 20)
    jobs = [
        Job(
            f"{env}_{place}_{seed}",
            {"env": env, "arm": arm, "seed": seed, "steps": steps[env], "episodes": episodes},
        )
        for seed in range(3 if args.small else 10)
        for env, arms in ARMS.items()
        for place, arm in enumerate(arms)
    ]
    found: dict[str, dict[str, list[Result]]] = {env: {arm: [] for arm in arms} for env, arms in ARMS.items()}
    for job, result in zip(jobs, run_jobs(jobs, train, folder=runs, workers=args.workers), strict=True):
        found[job.settings["env"]][job.settings["arm"]].append(result)
    page = report_of(found)
    write_study(summary, "variable_horizon", report=page, data={"steps": steps, "episodes": episodes, "runs": found})
    draw(summary / "variable_horizon.png", found)
    print(page)


def report_of(found: Mapping[str, Mapping[str, Sequence[Result]]]) -> str:
    """The page: a row an arm, and whether it came out as predicted."""
    lines = [
        "# What the sign of a learned reward teaches by itself\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        "True returns, interquartile means over seeds with 95 % bootstrap intervals:\n",
        "| environment | arm | deterministic | sampled | predicted | as predicted |",
        "|---|---|---:|---:|---:|---|",
    ]
    for env, arms in found.items():
        for arm, runs in arms.items():
            intervals = [interquartile_mean_interval([run[kind] for run in runs]) for kind in KINDS]
            cells = [in_words(interval, ".0f") for interval in intervals]
            if arm in PREDICTED[env]:
                low, high = PREDICTED[env][arm]
                cells += [f"{low:.0f} to {high:.0f}", "yes" if low <= intervals[0].estimate <= high else "**no**"]
            else:
                cells += ["", ""]
            lines.append(f"| {env} | {arm} | {' | '.join(cells)} |")
    lines.append("\nReproduce: `make study-variable-horizon`. Figure: [variable_horizon.png](variable_horizon.png).\n")
    return "\n".join(lines)


def draw(path: Path, found: Mapping[str, Mapping[str, Sequence[Result]]]) -> None:
    """A panel an environment, a line an arm: each seed's return, and the interquartile mean with its interval."""
    with mpl.rc_context({**STYLE, "axes.titlepad": 10}):
        figure = Figure(figsize=(15, 5.8), dpi=100, layout="constrained")
        figure.suptitle("GAIL where episodes end early", fontsize=16, fontweight="bold")
        for axes, (env, arms) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
            axes.use_sticky_edges = False  # the bars begin where some points lie
            _draw_arms(axes, arms)
            axes.set(title=env, xlabel="true return of deterministic actions (grey bar: predicted)")
            for place, arm in enumerate(arms):
                if arm in PREDICTED[env]:
                    low, high = PREDICTED[env][arm]
                    axes.barh(place, high - low, left=low, height=0.5, color="#DDDDDD", zorder=0.5)
        save_figure(path, figure)


def _draw_arms(axes: Axes, arms: Mapping[str, Sequence[Result]]) -> None:
    for place, (arm, runs) in enumerate(arms.items()):
        colour = INK if arm in (TRUE, RANDOM) else BLUE if arm.endswith("absorbing") else ORANGE
        values = [run[KINDS[0]] for run in runs]
        interval = interquartile_mean_interval(values)
        axes.plot(values, np.full(len(values), place + 0.2), "o", color=colour, alpha=0.4, markersize=5)
        axes.plot([interval.low, interval.high], [place - 0.12] * 2, color=colour, linewidth=3)
        axes.plot(interval.estimate, place - 0.12, "D", color=colour, markersize=8)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()


if __name__ == "__main__":
    sys.exit(run_command("study variable-horizon", Args, main))
