"""Steps a second of Gymnasium's vector environments through `VectorEnvBridge`, beside SB3's `DummyVecEnv`.

python scripts/bench/vector_bridge.py

Three measures on CartPole-v1, on one thread: steps of the environments alone, under random actions; the time of
SmoothedPPO's training; and what it has learnt after the same number of steps, with ten seeds. What is compared takes
turns, and ratios are taken within a turn. EnvPool is measured where it is installed.
"""

from __future__ import annotations

import dataclasses
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents.smoothed.algorithms import SmoothedPPO
from rlsmooth.audits.intervals import student_quantile
from rlsmooth.envs import VectorEnvBridge
from rlsmooth.scripts.bench.measure import (
    command_line,
    load_average,
    machine,
    markdown_table,
    paired_ratio,
    spread,
    versions,
    write_result,
)

SCRIPT = "scripts/bench/vector_bridge.py"
ENV = "CartPole-v1"
DUMMY, BRIDGE = "DummyVecEnv", "bridge, vector_entry_point"
SIZES = {8: 1.5, 64: 8.0, 256: 25.0}
"""Numbers of environments, and how many times DummyVecEnv's steps a second the bridge must make."""
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy", "envpool")
ROLLOUT = 2_048
AT = (10_000, 20_000, 40_000)


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    rounds: int = 15
    """Turns of each number of environments."""
    seconds: float = 0.2
    """About how long a turn steps the environments alone."""
    seeds: int = 10
    """Of the learning curves."""
    output: Path | None = None
    """Folder of `vector_bridge.json` and `.md`; default: results/ beside this file, or nowhere with --quick."""
    quick: bool = False
    """Shows that the benchmark works, measures nothing worth keeping."""


def make(kind: str, count: int, seed: int) -> VecEnv:
    """The environments, seeded."""
    if kind == DUMMY:
        return make_vec_env(ENV, count, seed=seed)
    names: dict[str, Any] = {BRIDGE: "vector_entry_point", "bridge, sync": "sync", "bridge, envpool": "envpool"}
    more = {"num_threads": 1} if kind == "bridge, envpool" else {}
    env = VectorEnvBridge(ENV, count, vectorization=names[kind], env_kwargs=more)
    env.seed(seed)
    return env


def kinds() -> list[str]:
    """What is compared."""
    return [DUMMY, BRIDGE, "bridge, sync", *(["bridge, envpool"] if find_spec("envpool") else [])]


def raw(args: Args, count: int) -> list[dict[str, Any]]:
    """Steps a second under random actions, by the clock of the processor."""
    envs = {kind: make(kind, count, 0) for kind in kinds()}
    actions = np.random.default_rng(0).integers(2, size=(256, count))
    steps, found = {}, {kind: [] for kind in envs}  # type: ignore[var-annotated]
    for kind, env in envs.items():
        env.reset()
        start = time.perf_counter()
        for chosen in actions[:64]:
            env.step(chosen)
        steps[kind] = max(2, round(args.seconds / ((time.perf_counter() - start) / 64)))
    for _ in range(args.rounds):
        for kind, env in envs.items():
            start = time.process_time()
            for step in range(steps[kind]):
                env.step(actions[step % 256])
            found[kind].append(count * steps[kind] / (time.process_time() - start))
    return _rows(count, found, faster=True)


def training(args: Args, count: int) -> list[dict[str, Any]]:
    """Seconds of SmoothedPPO's `learn`, of the processor and of the clock."""
    steps = ROLLOUT if args.quick else 8 * ROLLOUT
    found: dict[str, list[float]] = {kind: [] for kind in kinds()}
    wall: dict[str, list[float]] = {kind: [] for kind in found}
    for number in range(args.rounds // 3 + 1):
        for kind in found:
            agent = ppo(make(kind, count, number), number)
            start, clock = time.process_time(), time.perf_counter()
            agent.learn(steps)
            if number:  # the first warms up
                found[kind].append(time.process_time() - start)
                wall[kind].append(time.perf_counter() - clock)
            agent.get_env().close()  # type: ignore[union-attr]
    rows = _rows(count, found, faster=False)
    for row, seconds in zip(rows, wall.values(), strict=True):
        row |= {"steps": steps, "clock": dataclasses.asdict(spread(seconds))}
    return rows


def _rows(count: int, found: dict[str, list[float]], *, faster: bool) -> list[dict[str, Any]]:
    rows = []
    for kind, values in found.items():
        ratio = paired_ratio(values, found[DUMMY]) if faster else paired_ratio(found[DUMMY], values)
        rows.append(
            {"n_envs": count, "kind": kind, "values": values, "median": spread(values).median}
            | {"ratio": dataclasses.asdict(ratio)}
        )
    return rows


def ppo(env: VecEnv, seed: int) -> SmoothedPPO:
    """The agent of both measures."""
    return SmoothedPPO(
        "MlpPolicy", env, n_steps=ROLLOUT // env.num_envs, batch_size=256, n_epochs=4, learning_rate=1e-3, gamma=0.98,
        gae_lambda=0.8, smoothing=0.01, engine="numpy", seed=seed, device="cpu",
    )  # fmt: skip


class Returns(BaseCallback):
    """The mean return of the last hundred episodes, at the ends of rollouts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, float] = {}

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.found[self.num_timesteps] = float(np.mean([row["r"] for row in self.model.ep_info_buffer or ()]))


def curves(args: Args) -> list[dict[str, Any]]:
    """Mean returns at equal steps, a list of seeds at each."""
    at, seeds = ((ROLLOUT,), 3) if args.quick else (AT, args.seeds)
    rows = []
    for kind in kinds():
        if kind == "bridge, sync":
            continue
        runs = []
        for seed in range(seeds):
            returns = Returns()
            ppo(make(kind, 8, seed), seed).learn(at[-1], returns)
            runs.append([returns.found[min(step for step in returns.found if step >= goal)] for goal in at])
        rows.append({"kind": kind, "at": list(at), "returns": np.transpose(runs).tolist()})
    return rows


def mean_with_interval(values: list[float]) -> str:
    """The mean and Student's 95 % interval around it."""
    mean, half = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half *= student_quantile(0.95, len(values) - 1)
    return f"{mean:.1f} [{mean - half:.1f}, {mean + half:.1f}]"


def verdict(rows: list[dict[str, Any]]) -> str:
    """Whether the bridge is as fast as it must be."""
    ratios = {row["n_envs"]: row["ratio"]["median"] for row in rows if row["kind"] == BRIDGE}
    parts = [
        f"{ratio:.1f} times at {count} ({'met' if ratio >= SIZES[count] else 'NOT met'}: {SIZES[count]:g})"
        for count, ratio in ratios.items()
    ]
    return f"Steps a second of the bridge over DummyVecEnv's: {', '.join(parts)}."


def to_markdown(result: dict[str, Any]) -> str:
    """The page a person reads."""
    where = result["machine"]
    lines = ["# Vector environments in Stable-Baselines3", "", f"{ENV}, one thread.", "", "## Steps a second", ""]
    cells = [
        [row["kind"], str(row["n_envs"]), f"{row['median']:,.0f}", f"{row['ratio']['median']:.2f}",
         f"{row['ratio']['lower_quartile']:.2f}-{row['ratio']['upper_quartile']:.2f}"]
        for row in result["raw"]
    ]  # fmt: skip
    lines += [markdown_table(["environments", "number", "steps a second", "x DummyVecEnv", "quartiles"], cells), ""]
    steps = result["training"][0]["steps"]
    lines += [f'## SmoothedPPO, engine="numpy", {steps:,} steps in rollouts of {ROLLOUT:,}, 4 epochs', ""]
    cells = [
        [row["kind"], str(row["n_envs"]), f"{row['clock']['median']:.2f}", f"{row['median']:.2f}",
         f"{steps / row['median']:,.0f}", f"{row['ratio']['median']:.2f}"]
        for row in result["training"]
    ]  # fmt: skip
    header = ["environments", "number", "seconds", "CPU seconds", "steps a CPU second", "x DummyVecEnv"]
    lines += [markdown_table(header, cells), "", "## What is learnt", ""]
    at = result["curves"][0]["at"]
    cells = []
    for row in result["curves"]:
        cells.append([row["kind"], *map(mean_with_interval, row["returns"])])
    lines += [markdown_table(["8 environments", *(f"{step:,} steps" for step in at)], cells), ""]
    same = result["curves"][0]["returns"] == result["curves"][1]["returns"]
    lines += [
        f"Mean return of the last 100 episodes, {len(result['curves'][0]['returns'][0])} seeds, 95 % intervals. "
        f"{DUMMY} and {BRIDGE} are {'the same numbers, seed by seed' if same else 'NOT the same numbers'}; EnvPool "
        "draws other first states.",
        "",
        f"**{result['verdict']}**",
        "",
        "## How",
        "",
        f"- `{result['command']}`",
        f"- {where['date']}, {where['cpu']}, {where['cores']} cores, {where['system']}; load average before"
        f" {result['load_before']}, after {result['load_after']} (the run itself makes 1; more is somebody else).",
        "- Steps a second and ratios are of the processor's clock, which other programs hardly disturb.",
        f"- {', '.join(f'{package} {version}' for package, version in result['versions'].items())}",
    ]
    return "\n".join(lines)


def main(args: Args) -> None:
    """Measure, print and write."""
    if args.quick:
        args = dataclasses.replace(args, rounds=3, seconds=0.01)
    threads, load_before = torch.get_num_threads(), load_average()
    torch.set_num_threads(1)
    try:
        rows = [row for count in SIZES for row in raw(args, count)]
        trained = [row for count in SIZES for row in training(args, count)]
        learnt = curves(args)
    finally:
        torch.set_num_threads(threads)
    result = {
        "command": command_line(SCRIPT, args),
        "machine": machine(),
        "load_before": load_before,
        "load_after": load_average(),
        "versions": versions(PACKAGES),
        "verdict": verdict(rows),
        "raw": rows,
        "training": trained,
        "curves": learnt,
    }
    markdown = to_markdown(result)
    print(markdown)
    if args.output is not None or not args.quick:
        write_result(args.output or Path(__file__).with_name("results"), "vector_bridge", result, markdown)


if __name__ == "__main__":
    main(tyro.cli(Args))
