"""Study: a value function by regression and by classification, where the true values are known.

Fixed before running: four rooms (a grid of 11 x 11 with walls, 104 cells; four moves, each replaced by a random one
with probability 0.2; reward 1 for reaching the goal in a corner, where the episode ends, else 0; discount 0.95),
without noise and with N(0, 0.1) added to every reward. Fitted Q-iteration on 3,000 transitions of cells and actions
drawn uniformly, about seven of each: the network sees row and column, one-hot (two hidden layers of 64), 60 iterations
of 60 batches of 128 towards `r + 0.95 max_a Q(s', a)` of the network as the iteration began. Three heads on that
network: one output an action with the squared error; 61 logits an action over [-1.5, 1.5] with cross-entropy to
`two_hot`, and to `hl_gauss` at the ratio 0.75, read by `expected_value`. Seeds 0 to 9 draw the data, the weights and
the batches, the same data for the three. Environment, sizes, noise and Adam's learning rate (0.003, the same for all:
at 0.001 `two_hot` had not converged in 60 iterations) were chosen on seed 100.

Reported, each as the mean over the last 10 iterations: the root mean square error of Q over all cells and actions
against the exact optimum (value iteration); by how much the greatest Q of a cell is overestimated, on average over
cells; and the value of the greedy policy (exact, over all cells as starts) as a share of the optimal policy's. Added
after the runs, since the noise is fitted more and more: the lowest error of any iteration, which nobody could choose
without the truth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.audits import interquartile_mean_band, interquartile_mean_difference, interquartile_mean_interval
from rlsmooth.losses import cross_entropy, expected_value
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, ORANGE, STYLE, legend, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.targets import Target, hl_gauss, two_hot

ROOMS = (
    ".....#.....",
    ".....#.....",
    "...........",
    ".....#.....",
    ".....#.....",
    "#.####.....",
    ".....###.##",
    ".....#.....",
    ".....#.....",
    "...........",
    ".....#....G",
)
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
SLIP, DISCOUNT = 0.2, 0.95
SUPPORT = torch.linspace(-1.5, 1.5, 61)
HEADS = ("squared error", "two_hot", "hl_gauss")
BUILDERS: dict[str, Callable[[Tensor, Tensor], Target]] = {
    "two_hot": two_hot,
    "hl_gauss": hl_gauss,
}
NOISES = (0.0, 0.1)
MEASURES = {
    "errors": "root mean square error of Q",
    "gaps": "overestimate of the greatest Q",
    "shares": "value of the greedy policy / optimum",
}
LAST = 10
BATCH = 128
Array = NDArray[np.float64]


def four_rooms() -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """The chances `[S, 4, S]` of the next cell, the rows and columns `[S, 2]`, and the goal's index `[1]`.

    The goal, once reached, is never left.
    """
    cells = [(row, column) for row, line in enumerate(ROOMS) for column, mark in enumerate(line) if mark != "#"]
    index = {cell: place for place, cell in enumerate(cells)}
    goal = index[next((row, line.index("G")) for row, line in enumerate(ROOMS) if "G" in line)]
    moved = np.zeros((len(cells), len(MOVES), len(cells)))
    for (row, column), place in index.items():
        for action, (down, right) in enumerate(MOVES):
            moved[place, action, index.get((row + down, column + right), place)] = 1.0
    moved[goal] = np.eye(len(cells))[goal]
    chances = (1 - SLIP) * moved + SLIP * moved.mean(1, keepdims=True)  # [S, 4, S]
    return chances, np.array(cells), np.array([goal])


def optimum(chances: Array, goal: NDArray[np.int64]) -> Array:
    """Q* `[S, 4]` by value iteration; 0 at the goal."""
    rewards = chances[:, :, goal].sum(-1)
    rewards[goal] = 0.0
    q: Array = np.zeros_like(rewards)
    for _ in range(1_000):
        q = rewards + DISCOUNT * chances @ q.max(-1)
    return q


def policy_value(actions: NDArray[np.int64], chances: Array, goal: NDArray[np.int64]) -> float:
    """The mean over all cells but the goal of the value of acting so, solved exactly."""
    steps = chances[np.arange(len(actions)), actions]  # [S, S]
    rewards = steps[:, goal].sum(-1)
    rewards[goal] = 0.0
    values = np.linalg.solve(np.eye(len(steps)) - DISCOUNT * steps, rewards)
    return float(np.delete(values, goal).mean())


class Critic(nn.Module):
    """Q of all actions `[N, 4]`, with one output an action, or with one logit for each point of the support."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.head = head
        self.size = 1 if head == "squared error" else len(SUPPORT)
        self.net = nn.Sequential(
            nn.Linear(2 * len(ROOMS), 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, len(MOVES) * self.size),
        )

    def outputs(self, places: Tensor) -> Tensor:
        """`[N, 4, size]`"""
        outputs: Tensor = self.net(places).unflatten(-1, (len(MOVES), self.size))
        return outputs

    def forward(self, places: Tensor) -> Tensor:
        """Q, `[N, 4]`."""
        outputs = self.outputs(places)
        return outputs.squeeze(-1) if self.size == 1 else expected_value(outputs, SUPPORT)

    def goals(self, values: Tensor) -> Tensor | Target:
        """What the head is trained towards, for values `[N]`; a target is made and checked once for many batches."""
        return values if self.size == 1 else BUILDERS[self.head](values, SUPPORT).written_out()

    def loss(self, places: Tensor, actions: Tensor, goals: Tensor | Target) -> Tensor:
        """Of the actions taken `[N]`, towards their goals."""
        taken = self.outputs(places)[torch.arange(len(actions)), actions]  # [N, size]
        if isinstance(goals, Target):
            return cross_entropy(taken, goals)
        return (taken.squeeze(-1) - goals).square().mean() / 2


def train(settings: dict[str, Any]) -> Result:
    """One run of fitted Q-iteration."""
    chances, cells, goal = four_rooms()
    best = optimum(chances, goal)
    best_value = policy_value(best.argmax(-1), chances, goal)
    numbers = np.random.default_rng(settings["seed"])
    others = np.delete(np.arange(len(cells)), goal)
    rows, moves = (
        numbers.choice(others, settings["transitions"]),
        numbers.integers(len(MOVES), size=settings["transitions"]),
    )
    following = (numbers.random((len(rows), 1)) > chances[rows, moves].cumsum(-1)).sum(-1).clip(max=len(cells) - 1)
    reached = following == goal
    rewards = reached + settings["noise"] * numbers.normal(size=len(rows))

    torch.manual_seed(settings["seed"])
    places = torch.from_numpy(np.eye(len(ROOMS))[cells].reshape(len(cells), -1)).float()
    state, action = places[rows], torch.from_numpy(moves)
    reward, goes_on = torch.from_numpy(rewards).float(), torch.from_numpy(~reached).float()
    critic = Critic(settings["head"])
    optimiser = torch.optim.Adam(critic.parameters(), lr=settings["learning_rate"])
    errors, gaps, shares = [], [], []
    for _ in range(settings["iterations"]):
        with torch.no_grad():
            goals = critic.goals(reward + DISCOUNT * goes_on * critic(places)[following].amax(-1))
        for _ in range(settings["batches"]):
            chosen = torch.randint(len(rows), (BATCH,))
            optimiser.zero_grad()
            critic.loss(state[chosen], action[chosen], goals[chosen]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            found = critic(places).double().numpy()
        gaps.append(float((found.max(-1) - best.max(-1))[others].mean()))
        errors.append(float(np.sqrt(np.square(found - best)[others].mean())))
        shares.append(policy_value(found.argmax(-1), chances, goal) / best_value)
    return {"iterations": list(range(1, len(errors) + 1)), "errors": errors, "gaps": gaps, "shares": shares}


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "value_targets")
    seeds, sizes = range(10), {"transitions": 3_000, "iterations": 60, "batches": 60, "learning_rate": 0.003}
    if args.small:
        seeds, sizes = range(3), {**sizes, "transitions": 300, "iterations": 12, "batches": 2}
    jobs = [
        Job(
            f"{head.replace(' ', '_')}_{noise}_{seed}",
            {"arm": arm_name(head, noise), "head": head, "noise": noise, "seed": seed, **sizes},
        )
        for seed in seeds
        for noise in NOISES
        for head in HEADS
    ]
    arms = by_arm(jobs, run_jobs(jobs, train, folder=runs, workers=args.workers))
    scores = {
        arm: {key: [float(np.mean(run[key][-LAST:])) for run in found] for key in MEASURES}
        | {"lowest": [min(run["errors"]) for run in found]}
        for arm, found in arms.items()
    }
    report = report_of(scores)
    write_study(summary, "value_targets", report=report, data={"settings": sizes, "scores": scores, "runs": arms})
    draw(summary / "value_targets.png", arms)
    print(report)


def report_of(scores: dict[str, dict[str, list[float]]]) -> str:
    """The page: a table of interquartile means over seeds."""
    lines = [
        "# Values by regression and by classification\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        "Interquartile means over seeds with 95 % bootstrap intervals:\n",
        "| rewards | head | error of Q | less squared error | overestimate | policy / optimum | lowest error |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for noise in NOISES:
        base = scores[arm_name(HEADS[0], noise)]["errors"]
        for head in HEADS:
            score = scores[arm_name(head, noise)]
            cells = [in_words(interquartile_mean_interval(score["errors"]), ".3f")]
            against = interquartile_mean_difference(score["errors"], base)
            cells.append("" if head == HEADS[0] else in_words(against, "+.3f"))
            cells.append(in_words(interquartile_mean_interval(score["gaps"]), "+.3f"))
            cells += [in_words(interquartile_mean_interval(score[key]), ".3f") for key in ("shares", "lowest")]
            lines.append(f"| {'exact' if noise == 0 else f'N(0, {noise}) added'} | {head} | {' | '.join(cells)} |")
    lines.append("\nReproduce: `make study-value-targets`. Curves: [value_targets.png](value_targets.png).\n")
    return "\n".join(lines)


def draw(path: Path, arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """A row for each measure, a column for each noise: the interquartile mean over seeds with its band."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 8), dpi=100, layout="constrained")
        figure.suptitle("Fitted Q-iteration in four rooms: one network, three heads", fontsize=16, fontweight="bold")
        grid = figure.subplots(2, len(NOISES), sharex=True, sharey="row")
        for (key, label), row in zip(list(MEASURES.items())[::2], grid, strict=True):
            for noise, axes in zip(NOISES, row, strict=True):
                for head, colour in zip(HEADS, (ORANGE, BLUE, GREEN), strict=True):
                    values = np.array([run[key] for run in arms[arm_name(head, noise)]])
                    band = interquartile_mean_band(values, num_resamples=2_000)
                    places = np.arange(1, values.shape[1] + 1)
                    axes.plot(places, band.estimate, color=colour, label=head)
                    axes.fill_between(places, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
                axes.set_ylabel(label if noise == NOISES[0] else "")
                if key == "errors":
                    axes.set_title("exact rewards" if noise == 0 else f"N(0, {noise}) added to each reward")
                    legend(axes)
                else:
                    axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
                    axes.set_xlabel("iteration")
            row[0].set_ylim(bottom=0.0)  # once all is drawn: it ends the scaling of the shared axis
        save_figure(path, figure)


def arm_name(head: str, noise: float) -> str:
    """What a head with so much noise is called."""
    return head if noise == 0 else f"{head}, noise {noise}"


if __name__ == "__main__":
    sys.exit(run_command("study value-targets", Args, main))
