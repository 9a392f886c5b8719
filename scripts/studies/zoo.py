"""The zoo: an agent for each of eleven environments, trained by `rlsmooth ppo` with the settings that ship.

Every agent is trained with smoothing 0.01, for as long as RL Zoo trains its own, and evaluated ten times on the way:
the one with the best evaluation is kept, with its card. The experts of the results table are these agents.

    python -m rlsmooth.scripts.studies.zoo      # build/zoo, and build/rlsmooth-zoo.tar.gz of it

Play one: `rlsmooth enjoy build/zoo/CartPole-v1/best_agent.zip`.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsmooth.scripts import maskable_ppo, ppo
from rlsmooth.scripts.arguments import OnPolicyArgs
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.run_folder import read_json
from rlsmooth.scripts.studies.runner import Args as StudyArgs
from rlsmooth.scripts.studies.runner import Job, Result, run_jobs

STEPS = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 1_000_000,
    "MountainCar-v0": 1_000_000,
    "Pendulum-v1": 100_000,
    "LunarLander-v3": 1_000_000,
    "MountainCarContinuous-v0": 20_000,
    "minigrid:MiniGrid-Empty-Random-5x5-v0": 100_000,
    "minigrid:MiniGrid-DoorKey-5x5-v0": 100_000,
    "Swimmer-v5": 1_000_000,
    "rlsmooth/IdentityMasked-v0": 10_000,
    "rlsmooth/IdentityMultiDiscrete-v0": 10_000,
}
SEED = 100
SMOOTHING = "0.01"
FILES = ("README.md", "card.json", "config.json", "report.json", "best_agent.zip")


def short(env: str) -> str:
    """The environment's name, as folders and tables have it."""
    return env.rpartition(":")[2].rpartition("/")[2]


def train(settings: dict[str, Any]) -> Result:
    """One agent; its folder is put in place once it is whole."""
    env, steps, kept = settings["env"], settings["steps"], Path(settings["folder"])
    options: dict[str, Any] = {
        "env": env,
        "n_timesteps": steps,
        "smoothing": SMOOTHING,
        "seed": SEED,
        "device": "cpu",
        "eval_freq": max(steps // 10, 1),
        "save_freq": -1,
        "log_folder": kept.parent / "runs",
    }
    command: Any = maskable_ppo if "Masked" in env else ppo
    made: OnPolicyArgs = command.Args(**options)
    run = command.main(made)
    kept.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(run / name, kept / name)
    summary = read_json(run / "report.json")["summary"]
    return {"best": summary["best_mean_reward"], "step": summary["best_step"]}


def train_zoo(envs: Sequence[str], *, folder: Path, steps: int | None, workers: int) -> dict[str, Result]:
    """Train what is not there yet.

    Args:
        envs: of `STEPS`.
        folder: each agent goes to a folder in it, by the environment's short name.
        steps: of each, in place of its own number.
        workers: processes.
    """
    jobs = [
        Job(short(env), {"env": env, "steps": steps or STEPS[env], "folder": str(folder / short(env))}) for env in envs
    ]
    results = run_jobs(jobs, train, folder=folder / "done", workers=workers)
    return dict(zip(envs, results, strict=True))


@dataclasses.dataclass(frozen=True)
class Args(StudyArgs):
    """Train the agents of the zoo, and pack them."""


def main(args: Args) -> None:
    """Train, and write the archive beside the folder."""
    folder = args.folder or Path("build/zoo")
    found = train_zoo(list(STEPS), folder=folder, steps=2_048 if args.small else None, workers=args.workers)
    archive = folder.parent / "rlsmooth-zoo.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        for env in STEPS:
            packed.add(folder / short(env), arcname=f"rlsmooth-zoo/{short(env)}")
    for env, result in found.items():
        print(f"{short(env):32} {result['best']:8.2f} at step {result['step']:,.0f}")
    print(f"packed into {archive}")


if __name__ == "__main__":
    sys.exit(run_command("study zoo", Args, main))
