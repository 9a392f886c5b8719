"""Time of SmoothedPPO's training, of monitoring and of `predict`, over that of Stable-Baselines3's PPO.

In each round every contender is built anew with the round's seed and trains for the same number of steps, on one
thread; ratios are taken within a round. The order alternates and rotates from round to round, so that nobody always
follows the same one. Timed is `learn`, from its first rollout to its last update, with TensorBoard files on; and
`predict` of one observation, in turns of 200 calls.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.sb3 import count_updates
from rlsmooth.agents.smoothed.algorithms import SmoothedPPO
from rlsmooth.agents.smoothed.callback import PolicyEntropyCallback
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO
from rlsmooth.audits.intervals import interquartile_mean_interval
from rlsmooth.scripts.bench.measure import (
    command_line,
    load_average,
    machine,
    markdown_table,
    spread,
    versions,
    write_result,
)

SCRIPT = "scripts/bench/ppo_overhead.py"
BASELINE = "ppo"
LABELS = {
    BASELINE: "stable_baselines3.PPO",
    "smoothed": "SmoothedPPO(smoothing=0.1)",
    "numpy": 'SmoothedPPO(smoothing=0.1, engine="numpy")',
    "guarantee": "SmoothedPPO(min_entropy_frac=0.5), for a Box min_entropy_nats=1",
    "off": "SmoothedPPO(), everything off",
    "callback": "stable_baselines3.PPO with PolicyEntropyCallback",
}
REQUIRED = {
    "smoothed": ("cpu_seconds", 1 / 1.15),
    "numpy": ("cpu_seconds", 1 / 5),
    "guarantee": ("cpu_seconds", 1.05),
    "callback": ("seconds", 1.05),
}
"""The measure of a contender, and the most that the upper end of its ratio may be."""
PREDICTED: dict[str, tuple[spaces.Space[Any], dict[str, float]]] = {
    "Discrete(2)": (spaces.Discrete(2), {}),
    "Box(2)": (spaces.Box(-1.0, 1.0, (2,)), {}),
    "MultiDiscrete(3, 2)": (spaces.MultiDiscrete([3, 2]), {}),
    "MultiBinary(3)": (spaces.MultiBinary(3), {}),
    "Discrete(5), masked": (spaces.Discrete(5), {}),
    "Discrete(2), a floor": (spaces.Discrete(2), {"exploration_floor": 0.1}),
    "Discrete(2), a guarantee": (spaces.Discrete(2), {"min_entropy_frac": 0.3}),
    "Box(2), a floor": (spaces.Box(-1.0, 1.0, (2,)), {"exploration_floor": 0.1}),
    "Box(2), a guarantee": (spaces.Box(-1.0, 1.0, (2,)), {"min_entropy_nats": 1.0}),
    "MultiDiscrete(3, 2), a guarantee": (spaces.MultiDiscrete([3, 2]), {"min_entropy_frac": 0.3}),
    "MultiBinary(3), a guarantee": (spaces.MultiBinary(3), {"min_entropy_frac": 0.3}),
    "Discrete(5), masked, a guarantee": (spaces.Discrete(5), {"min_entropy_frac": 0.3}),
}
"""Action spaces, and a smoothed policy's knobs, under which `predict` is timed, of observations of four numbers."""
PREDICTIONS, PREDICT_MOST = 200, 40.0
PACKAGES = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "tensorboard")
QUICK_STEPS = 256


@dataclasses.dataclass(frozen=True)
class Setting:
    """Arguments of PPO, and for how many steps of the environments it trains."""

    label: str
    steps: int
    arguments: dict[str, Any]
    env: str = "CartPole-v1"
    n_envs: int = 8


SETTINGS = {
    "defaults": Setting("PPO's defaults, 8 environments of 512 steps", 4_096, {"n_steps": 512}),
    "single": Setting("PPO's defaults, one environment", 4_096, {}, n_envs=1),
    "pendulum": Setting("PPO's defaults, 8 environments of 512 steps", 4_096, {"n_steps": 512}, "Pendulum-v1"),
    "pendulum-single": Setting("PPO's defaults, one environment", 4_096, {}, "Pendulum-v1", 1),
    "zoo": Setting(
        "rl-zoo3's hyperparameters for CartPole-v1, 8 environments",
        4_096,
        {
            "n_steps": 32,
            "batch_size": 256,
            "n_epochs": 20,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "learning_rate": LinearSchedule(0.001, 0.0, 1.0),
            "clip_range": LinearSchedule(0.2, 0.0, 1.0),
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    rounds: int = 24
    """Rounds of each setting; a multiple of twelve lets each contender come first as often as last."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """Of `defaults`, `single`, `pendulum`, `pendulum-single` and `zoo`."""
    seed: int = 0
    """Seed of the first round; each further round has the next."""
    predict_only: bool = False
    """Time `predict` anew, and take the trainings from the last result."""
    tensorboard: bool = True
    """Write TensorBoard files, the callback's histograms among them."""
    output: Path | None = None
    """Folder of `ppo_overhead.json` and `.md`; default: results/ beside this file, or nowhere with --quick."""
    quick: bool = False
    """Three rounds of a few updates: shows that the benchmark works, measures nothing worth keeping."""


def order_of(round_number: int) -> list[str]:
    """The contenders in the order of a round: rotated by one each second round, and backwards in each odd one."""
    names = list(LABELS)
    start = round_number // 2 % len(names)
    rotated = names[start:] + names[:start]
    return rotated[::-1] if round_number % 2 else rotated


def build(contender: str, setting: Setting, seed: int, folder: str | None) -> tuple[PPO, BaseCallback | None]:
    """A contender's fresh model, and its callback."""
    more: dict[str, Any] = {"smoothing": 0.1} if contender in ("smoothed", "numpy") else {}
    if contender == "numpy":
        more["engine"] = "numpy"
    if contender == "guarantee":
        more = {"min_entropy_nats": 1.0} if setting.env == "Pendulum-v1" else {"min_entropy_frac": 0.5}
    algorithm: type[PPO] = PPO if contender in (BASELINE, "callback") else SmoothedPPO
    env = make_vec_env(setting.env, setting.n_envs, seed=seed)
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", tensorboard_log=folder, **setting.arguments, **more)
    return model, PolicyEntropyCallback() if contender == "callback" else None


def timed(contender: str, setting: Setting, seed: int, *, steps: int, tensorboard: bool) -> dict[str, Any]:
    """Train once: seconds on the clock and of the processor."""
    with tempfile.TemporaryDirectory(prefix="ppo_overhead_") as folder:
        model, callback = build(contender, setting, seed, folder if tensorboard else None)
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        model.learn(steps, callback=callback)
        found = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        model.logger.close()
        model.get_env().close()  # type: ignore[union-attr]
        return {**found, "steps": model.num_timesteps, "updates": count_updates(model, 0)}


def measure(args: Args) -> list[dict[str, Any]]:
    """Run all rounds; one record a training."""
    records = []
    for name in args.settings:
        setting = SETTINGS[name]
        steps, rounds = (QUICK_STEPS, 3) if args.quick else (setting.steps, args.rounds)
        if args.quick:
            small = {"n_steps": 16, "batch_size": 64, "n_epochs": 2}
            setting = dataclasses.replace(setting, arguments={**setting.arguments, **small})
        for contender in LABELS:  # what happens once in a process, happens here
            timed(contender, setting, args.seed, steps=QUICK_STEPS, tensorboard=args.tensorboard)
        for number in range(rounds):
            print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)
            for contender in order_of(number):
                found = timed(contender, setting, args.seed + number, steps=steps, tensorboard=args.tensorboard)
                records.append({"setting": name, "round": number, "contender": contender, **found})
    return records


class Standing(gym.Env[Any, Any]):
    """Nothing happens in it: for `predict`, which needs spaces alone."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = spaces.Box(-1.0, 1.0, (4,)), action_space


def predict_times(rounds: int, seed: int) -> list[dict[str, Any]]:
    """Microseconds of the processor for one call of `predict`, in turns: medians over the rounds."""
    rows = []
    for label, (space, knobs) in PREDICTED.items():
        env = Standing(space)
        more: dict[str, Any] = {"seed": seed, "device": "cpu"}
        is_masked = "masked" in label
        stock, smoothed = (MaskablePPO, SmoothedMaskablePPO) if is_masked else (PPO, SmoothedPPO)
        models: dict[str, Any] = {
            f"stable_baselines3.{stock.__name__}": stock("MlpPolicy", env, **more),
            smoothed.__name__: smoothed("MlpPolicy", env, policy_kwargs=knobs, **more),
        }
        if not knobs:
            models["BC"] = BC("MaskableMlpPolicy" if is_masked else "MlpPolicy", env, None, **more)
        masks = {"action_masks": np.arange(5) > 1} if is_masked else {}
        for deterministic in (True, False):
            found: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(rounds + 1):  # the first warms up
                for name, model in models.items():
                    observation = model.observation_space.sample()
                    start = time.process_time()
                    for _ in range(PREDICTIONS):
                        model.predict(observation, deterministic=deterministic, **masks)
                    found[name].append((time.process_time() - start) / PREDICTIONS * 1e6)
            for name, values in found.items():
                chosen = {"actions": label, "deterministic": deterministic, "contender": name}
                rows.append({**chosen, "microseconds": dataclasses.asdict(spread(values[1:]))})
    return rows


def summarise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting and contender: seconds, and the ratio to the baseline's, round by round, with its interval."""
    rows = []
    for setting in dict.fromkeys(record["setting"] for record in records):
        for contender in LABELS:
            row: dict[str, Any] = {"setting": setting, "contender": contender, "label": LABELS[contender]}
            for unit in ("seconds", "cpu_seconds"):
                own, base = (
                    [record[unit] for record in records if (record["setting"], record["contender"]) == (setting, name)]
                    for name in (contender, BASELINE)
                )
                row[unit] = dataclasses.asdict(spread(own))
                ratios = [value / other for value, other in zip(own, base, strict=True)]
                row[f"{unit}_ratios"] = ratios
                row[f"{unit}_ratio"] = interquartile_mean_interval(ratios)._asdict()
            rows.append(row)
    return rows


def verdict(rows: list[dict[str, Any]]) -> str:
    """The requirements and whether these rows meet them."""
    found = []
    for row in rows:
        if row["contender"] in REQUIRED:
            unit, most = REQUIRED[row["contender"]]
            ratio = row[f"{unit}_ratio"]
            met = "met" if ratio["high"] <= most else "NOT met"
            found.append(
                f"{row['label']} ({row['setting']}): {ratio['estimate']:.3f} "
                f"[{ratio['low']:.3f}, {ratio['high']:.3f}], {met}"
            )
    limits = f"SmoothedPPO's CPU time at most {1 / 1.15:.2f} of PPO's (1.15 times the steps a second)"
    return (
        f"Required: upper ends of the 95 % intervals, {limits}, CPU time with "
        "the guarantee and time with the callback at most 1.05. "
        f"Measured: {'; '.join(found)}."
    )


def to_markdown(result: dict[str, Any]) -> str:
    """The page a person reads."""
    settings, where = result["settings"], result["machine"]
    lines = ["# PPO: what smoothing, monitoring and predictions cost", ""]
    lines += ["MLP 64x64, one thread. Below 1: faster than PPO.", ""]
    header = ["contender", "seconds", "quartiles", "x PPO", "95 % interval", "x PPO, CPU time", "95 % interval"]
    for name in settings["settings"]:
        table = [_cells(row) for row in result["rows"] if row["setting"] == name]
        lines += [f"## {SETTINGS[name].env}: {SETTINGS[name].label}", "", markdown_table(header, table), ""]
    lines += ["## One call of `predict`, microseconds of the processor", ""]
    cells = [
        [row["actions"], "deterministic" if row["deterministic"] else "sampled", row["contender"],
         f"{row['microseconds']['median']:.1f}"]
        for row in result["predictions"]
    ]  # fmt: skip
    lines += [markdown_table(["actions", "chosen", "agent", "median"], cells), ""]
    lines += [f"Required: at most {PREDICT_MOST:g} with SmoothedPPO and BC. Measured: {_predicted(result)}.", ""]
    lines += [f"**{result['verdict']}**", "", "## How", ""]
    lines += [
        f"- `{result['command']}`",
        f"- {where['date']}, {where['cpu']}, {where['cores']} cores, {where['system']}; load average before"
        f" {result['load_before']}, after {result['load_after']} (the run itself makes 1; more is somebody else).",
        f"- {settings['rounds']} rounds, in each a fresh model of each contender with the round's seed (from"
        f" {settings['seed']}), in an order that alternates and rotates; {settings['steps']} steps of the environments;"
        f" TensorBoard files {'on' if settings['tensorboard'] else 'off'}.",
        "- Ratios are taken round by round: interquartile mean, percentile bootstrap over the rounds (10,000 samples)."
        " 'CPU time' counts the process's own CPU seconds, which time lost to other programs does not enter.",
        f"- {', '.join(f'{package} {version}' for package, version in result['versions'].items())}",
    ]
    if own_run := result.get("predict"):
        lines.append(
            f"- `predict`: `{own_run['command']}`, {own_run['machine']['date']}; load average before"
            f" {own_run['load_before']}, after {own_run['load_after']}."
        )
    return "\n".join(lines)


def _predicted(result: dict[str, Any]) -> str:
    """The longest predictions of ours, without and with a floor or a guarantee."""
    found = []
    for words, with_knobs in (("at most", False), ("with a floor or a guarantee at most", True)):
        own = [
            row["microseconds"]["median"]
            for row in result["predictions"]
            if "stable" not in row["contender"] and bool(PREDICTED[row["actions"]][1]) == with_knobs
        ]
        most = max(own, default=0.0)
        found.append(f"{words} {most:.1f}, {'met' if most <= PREDICT_MOST else 'NOT met'}")
    return "; ".join(found)


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]
    cells = [row["label"], f"{seconds['median']:.2f}"]
    cells.append(f"{seconds['lower_quartile']:.2f}-{seconds['upper_quartile']:.2f}")
    for unit in ("seconds", "cpu_seconds"):
        ratio = row[f"{unit}_ratio"]
        cells += [f"{ratio['estimate']:.3f}", f"{ratio['low']:.3f}-{ratio['high']:.3f}"]
    return cells


def predict_anew(args: Args) -> None:
    """Time `predict`, and write it into the last result."""
    folder = args.output or Path(__file__).with_name("results")
    result = json.loads((folder / "ppo_overhead.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    own = {"command": command_line(SCRIPT, args), "machine": machine(), "load_before": load_average()}
    result["predictions"] = predict_times(args.rounds, args.seed)
    result["predict"] = {**own, "load_after": load_average()}
    write_result(folder, "ppo_overhead", result, to_markdown(result))


def main(args: Args) -> None:
    """Measure, print and write."""
    if args.predict_only:
        predict_anew(args)
        return
    unknown = [name for name in args.settings if name not in SETTINGS]
    if unknown or not args.settings:
        raise ValueError(f"settings has {unknown}: use some of {list(SETTINGS)}.")
    if args.rounds < 3:
        raise ValueError(f"rounds={args.rounds} must be at least 3, for an interval.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    load_before = load_average()
    try:
        records = measure(args)
        predictions = predict_times(3 if args.quick else args.rounds, args.seed)
    finally:
        torch.set_num_threads(threads)
    rows = summarise(records)
    steps = {record["setting"]: record["steps"] for record in records}
    result = {
        "command": command_line(SCRIPT, args),
        "machine": machine(),
        "load_before": load_before,
        "load_after": load_average(),
        "settings": {
            "settings": list(args.settings),
            "rounds": 2 if args.quick else args.rounds,
            "seed": args.seed,
            "tensorboard": args.tensorboard,
            "steps": " and ".join(f"{count:,} ({name})" for name, count in steps.items()),
        },
        "versions": versions(PACKAGES),
        "verdict": verdict(rows),
        "rows": rows,
        "predictions": predictions,
        "trainings": records,
    }
    markdown = to_markdown(result)
    print(markdown)
    if args.output is not None or not args.quick:
        write_result(args.output or Path(__file__).with_name("results"), "ppo_overhead", result, markdown)


if __name__ == "__main__":
    main(tyro.cli(Args))
