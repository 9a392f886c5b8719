"""Draws TensorBoard's panels of good and bad entropy, from the event files of three runs: `make tutorials`.

The task is the study's of rewards that move: eight contexts, 16 actions; from half time on another action pays.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.vec_env import VecMonitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlsmooth.agents import PolicyEntropyCallback, SmoothedPPO
from rlsmooth.scripts.studies.exploration_tasks import Moved

STEPS = 40_000
COMMON: dict[str, Any] = {"n_steps": 8, "batch_size": 128, "n_epochs": 4, "seed": 0, "device": "cpu"}
RUNS: dict[str, tuple[type[PPO], dict[str, Any], str]] = {
    "bad: PPO, collapsed": (PPO, {"learning_rate": 3e-4}, "#D55E00"),
    "good: target_entropy_frac=0.6": (SmoothedPPO, {"learning_rate": 1e-3, "target_entropy_frac": 0.6}, "#0072B2"),
    "good: with min_entropy_frac=0.4 too": (
        SmoothedPPO,
        {"learning_rate": 1e-3, "target_entropy_frac": 0.6, "min_entropy_frac": 0.4},
        "#009E73",
    ),
}
PANELS = {
    "rollout/ep_rew_mean": "The return. At half time the rewards\nmove: who is certain never finds them again.",
    "train/entropy_frac": "Mean entropy. Bad: near 0, so that nothing new\nis tried. Good: it settles at the target.",
    "train/entropy_frac_min": "The lowest state. Bad: 0 long before the mean.\nGood: never below the guarantee.",
    "train/entropy_collapse": "States below a tenth. Bad: rises towards 1.\nGood: 0.",
    "train/entropy_below": "States below the guarantee, or else the target.\nOf a target often half; of a guarantee 0.",
    "train/smoothing": "The coefficient that holds the target. Good: it moves\nand settles. Bad: at 100, out of reach.",
}


def draw() -> None:
    """Train the runs, read their event files, and draw a panel for each tag."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        for name, (algorithm, arguments, colour) in RUNS.items():
            env = VecMonitor(Moved(64, STEPS // 2))
            logs = Path(folder) / str(len(name))
            model = algorithm("MlpPolicy", env, tensorboard_log=str(logs), **COMMON, **arguments)
            model.learn(STEPS, callback=CallbackList([PolicyEntropyCallback()]))
            (events,) = logs.rglob("events*")
            tags = EventAccumulator(str(events)).Reload()
            for panel, tag in zip(axes.flat, PANELS, strict=True):
                if tag in tags.Tags()["scalars"]:
                    points = tags.Scalars(tag)
                    panel.plot([point.step for point in points], [point.value for point in points], colour, label=name)
    for panel, (tag, text) in zip(axes.flat, PANELS.items(), strict=True):
        panel.set_title(f"{tag}", loc="left", fontsize=10, family="monospace")
        panel.set_xlabel(text, fontsize=9)
        panel.axvline(STEPS // 2, color="grey", linestyle=":", linewidth=1)
        panel.grid(alpha=0.3)
    axes[1, 2].set_yscale("log")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig("entropy_panels.png", dpi=90)


if __name__ == "__main__":
    draw()
