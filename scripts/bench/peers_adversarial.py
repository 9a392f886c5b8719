"""BC, DAgger, GAIL and AIRL beside `imitation`: what both reach with the same budget, and how long they take.

Fixed before the runs that count, on seed 100 and on imitation's side alone: the budgets, and of a few settings of PPO
and of the discriminator for each cell the one that served imitation best (AIRL on CartPole-v1 had seven tries, each of
the two on Pendulum-v1 three, the other cells one; GAIL on MountainCar-v0 was added later in the same way). More tuning
could help either side further. Both sides then have the same demonstrations (arrays that both read), networks, budget,
batch sizes, learning rates and number of updates; all on one thread.

- Demonstrations, drawn by the seed: CartPole-v1 2 episodes of the shipped set; Acrobot-v1 15, Pendulum-v1 20 and
  MountainCar-v0 15 (GAIL only) of scripted controllers (`peers_adversarial_worker.py`), which are DAgger's experts too,
  beside one for CartPole-v1.
- BC: 20 epochs (Pendulum-v1 40), batches of 32, Adam at 0.001, two layers of 64. imitation keeps its entropy bonus of
  0.001 times the entropy, a default. Ours with hard labels and with smoothing 0.1.
- DAgger: 6,000 steps (Pendulum-v1 8,000) of one environment, rounds of at least 3 episodes and 500 steps, 4 epochs
  each, beta down to 0 over 15 rounds. imitation's evaluations for its log are off.
- GAIL and AIRL: SB3's PPO, 8 environments, reward nets of imitation's default sizes with running normalisation,
  discriminator batches of 512 and 512. imitation with `allow_variable_horizon=True`. Ours in these arms: "as imitation"
  (`terminal_states="as_is"`, hard labels), "defaults", "real_target 0.9", which is the defaults but for that, and for
  GAIL "learned" (`absorbing_reward="learned"`), what both were before. Pendulum-v1 never ends early, so that
  there "as imitation" and "learned" are the others and are not run twice.
- Seeds 0 to 9. The final policy, 20 episodes of deterministic actions and 20 of sampled ones: interquartile means over
  seeds with 95 % bootstrap intervals.
- Times: of the training call alone, in a pass of its own after all else, one run at a time: 5 repeats, the arms of a
  cell one after another in a random order, each process warmed up. They are shorter: 10 epochs of BC, 2,000 steps of
  DAgger, 8,192 of GAIL and AIRL. imitation once with its default logs (terminal, text, CSV) and once with none; ours
  writes TensorBoard files.

Changed after first runs: how `terminal_states="absorbing"` works, whose faults these runs brought to light. At first an
end was paid at once all that the absorbing state would earn, and policies collapsed into ending (CartPole-v1: return
10). Then expert batches of Acrobot-v1 were 85 % absorbing rows, and nothing was learned (-500); now their number is the
discounted one. The absorbing state's logit followed too slowly: its indicator is 10 now and not 1. Then nothing bounded
it while only one side had ended: now both sides count one end more than they saw. The first three were found on seeds
0 to 4, the last two settled on seeds 100 to 107. A review then found, without looking at returns, that the untrained
score of an absorbing state that nobody had reached was taken off, and that the end which is added weighed differently
on sides with different numbers of rows. All runs of "defaults" and "real_target 0.9" are of the form that came of it.
DAgger's runs were made again too, since its coins had been the environment's own random numbers. The times are of the
form before that review, which is the same work.

GAIL's default is another one since then: `absorbing_reward="counted"`. What was slow in "learned" was looked for on
seeds 100 to 109 of CartPole-v1, on the numpy engine of `SmoothedPPO` (interquartile means of the deterministic return):
learned 452, `as_is` 500, one termination more on the generator's side alone 496, the absorbing state's logit counted
and no absorbing transitions in minibatches 500. Of the ten seeds, the four whose untrained score of the absorbing state
was above 0.2 reached 304 to 419 with "learned", the other six 484 to 500. Then 9 of the runs that count were made with
a form that counted the logit and kept the absorbing transitions in the minibatches: 355, 500, 432, 406, 500, 500, 423,
240 and 500 on CartPole-v1, no better than "learned" on the same seeds, so that it was dropped, and these seeds are not
unseen. The bound of the counted logit came of Acrobot-v1: -232 and -163 without it on seeds 102 and 103, -77 and -79
with it. On CartPole-v1, whose expert never terminates, "defaults" is "as imitation" to the bit: seeds 0 to 4 were run
and gave the same returns, seeds 5 to 9 are taken from it. Whether the 485 there are less than imitation's 500 is asked
of seeds from 10 on, added for this cell alone and run in their order, 20 of them planned. Read line by line, both sides
do the same in the same order: a rollout, PPO on raw rewards `-log(1 - D)` that the network of the last round gives,
with the value after a time limit added, then the discriminator's updates, on draws with replacement from that rollout,
with the same loss, optimiser and running normalisation. What differs: imitation draws expert batches without
replacement, one of 512 from each pass over the 1,000 transitions, we with replacement; our reward net has the absorbing
state's indicator as one more input, 0 there, so that its first weights begin 7 % smaller; and versions of SB3 and
Gymnasium, whose PPO and CartPole are the same but for the last bit. Not run for lack of time: "real_target 0.9" of GAIL
on the three environments that terminate, "as imitation" and "learned" on MountainCar-v0, and its times. The machine
below is theirs; all other runs, and all times, are of another (AMD EPYC, cpu family 26, 2 cores, 2026-11-28).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import queue
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.data import Demonstrations, cartpole_v1, record
from rlsmooth.scripts.bench import peers_adversarial_worker
from rlsmooth.scripts.bench.measure import command_line, load_average, machine, write_result
from rlsmooth.scripts.bench.peers_adversarial_report import PLANNED_SEEDS, report
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.run_folder import read_json

SCRIPT = "scripts/bench/peers_adversarial.py"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
Side = Literal["rlsmooth", "imitation"]
Job = dict[str, Any]
Pythons = dict[Side, tuple[Path, Path | None]]

Env = Literal["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0"]
ENVS: tuple[Env, ...] = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0")
NEVER_TERMINATES = ("Pendulum-v1",)
"""Environments where `terminal_states` changes nothing, so that two arms are one."""
EPISODES = {"CartPole-v1": 2, "Acrobot-v1": 15, "Pendulum-v1": 20, "MountainCar-v0": 15}
CLONING = {"learning_rate": 1e-3, "batch_size": 32}
CLONING_EPOCHS = {"CartPole-v1": 20, "Acrobot-v1": 20, "Pendulum-v1": 40}
DAGGER = {"epochs": 4, "beta_rounds": 15, "round_episodes": 3, "round_steps": 500, "n_envs": 1}
DAGGER_STEPS = {"CartPole-v1": 6_000, "Acrobot-v1": 6_000, "Pendulum-v1": 8_000}
SLOW = {"n_steps": 128, "batch_size": 64, "n_epochs": 5, "learning_rate": 4e-4, "gamma": 0.95, "ent_coef": 0.0}
FAST = {**SLOW, "n_epochs": 10, "learning_rate": 1e-3}
ADVERSARIAL: dict[tuple[str, str], tuple[int, int, dict[str, Any]]] = {
    ("GAIL", "CartPole-v1"): (40_960, 8, SLOW),
    ("AIRL", "CartPole-v1"): (61_440, 8, FAST),
    ("GAIL", "Acrobot-v1"): (20_480, 8, SLOW),
    ("AIRL", "Acrobot-v1"): (20_480, 8, SLOW),
    ("GAIL", "Pendulum-v1"): (102_400, 4, {**FAST, "n_steps": 256, "gamma": 0.9}),
    ("GAIL", "MountainCar-v0"): (40_960, 8, FAST),
    ("AIRL", "Pendulum-v1"): (102_400, 2, FAST),
}
"""Steps, discriminator updates a round and PPO's arguments: what served imitation best on seed 100, see above."""
DEMO_BATCH_SIZE = 512
TIMED_STEPS, TIMED_DAGGER_STEPS, TIMED_EPOCHS = 8_192, 2_000, 10

CLONING_ARMS: dict[str, tuple[Side, dict[str, Any]]] = {
    "imitation": ("imitation", {}),
    "hard labels": ("rlsmooth", {"smoothing": 0.0}),
    "smoothing 0.1": ("rlsmooth", {"smoothing": 0.1}),
}
ADVERSARIAL_ARMS: dict[str, tuple[Side, dict[str, Any]]] = {
    "imitation": ("imitation", {}),
    "as imitation": ("rlsmooth", {"terminal_states": "as_is"}),
    "defaults": ("rlsmooth", {}),
    "real_target 0.9": ("rlsmooth", {"real_target": 0.9}),
}
LEARNED: dict[str, tuple[Side, dict[str, Any]]] = {
    "learned": ("rlsmooth", {"absorbing_reward": "learned"}),
    "learned, real_target 0.9": ("rlsmooth", {"absorbing_reward": "learned", "real_target": 0.9}),
}
QUIET = {"imitation, quiet": ("imitation", {"quiet": True})}
NAMES = ("env", "algorithm", "arm", "side", "seed", "options")
ARMS = {"BC": CLONING_ARMS, "DAgger": CLONING_ARMS, "GAIL": ADVERSARIAL_ARMS | LEARNED, "AIRL": ADVERSARIAL_ARMS}
CELLS = [(name, env) for name in ARMS for env in ENVS if env != "MountainCar-v0" or name == "GAIL"]


@dataclasses.dataclass(frozen=True)
class Args:
    """What to run."""

    peer_python: Path | None = None
    """Interpreter of the environment that has `imitation`; without it its rows are missing, which the page says."""
    peer_packages: Path | None = None
    """A folder of packages that it shall find before its own."""
    folder: Path | None = None
    """Where each run's result goes. Default: logs/bench/peers_adversarial."""
    output: Path | None = None
    """Folder of the summary. Default: results/ beside this file, with --small that of the runs."""
    workers: int = max(1, os.cpu_count() or 1)
    """How many runs of the first pass to do at once, each on one thread. The second pass is never parallel."""
    seeds: int = PLANNED_SEEDS
    """Runs of each cell in the first pass."""
    first_seed: int = 0
    """The seed of the first of them. The page keeps those from 10 on apart: they were added afterwards."""
    repeats: int = 5
    """Runs of each cell in the second pass."""
    sides: tuple[Side, ...] = ("imitation", "rlsmooth")
    """Whose runs are made now."""
    algorithms: tuple[Literal["BC", "DAgger", "GAIL", "AIRL"], ...] = ("BC", "DAgger", "GAIL", "AIRL")
    """Which are run now."""
    envs: tuple[Env, ...] = ENVS
    """Where runs are made now."""
    arms: tuple[str, ...] = ()
    """Which arms are run now; none named: all."""
    passes: tuple[Literal["returns", "times", "report"], ...] = ("returns", "times", "report")
    """What is done now."""
    small: bool = False
    """One seed, one repeat, tiny budgets: shows that it runs, measures nothing worth keeping."""


class Process:
    """The worker of one side, which can be asked."""

    def __init__(self, side: Side, python: Path, packages: Path | None, log_file: Path) -> None:
        # absolute(), not resolve(): the link in a virtual environment is what makes it one
        command = [str(python.absolute()), str(Path(peers_adversarial_worker.__file__).absolute()), "--side", side]
        path = {} if packages is None else {"PYTHONPATH": str(packages.absolute())}
        try:
            with log_file.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, **ONE_THREAD, **path, "CUDA_VISIBLE_DEVICES": ""},
                )
        except OSError as error:
            raise ValueError(f"--peer-python {python} can't be run: {error.strerror}.") from error
        self.environment = self.ask({"do": "environment"})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request, return the answer.

        Raises:
            ValueError: the worker failed; its log says why.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "the process ended", "details": "see its log"}
        if "error" in reply:
            raise ValueError(f"{request.get('job', {}).get('key', 'start')}: {reply['error']}: {reply['details']}")
        return reply

    def close(self) -> None:
        """End the process, which stops by itself when its input ends."""
        with suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def make_demonstrations(env: str, seed: int, folder: Path) -> Path:
    """Write the expert's episodes of a seed as plain arrays, which both sides read, unless they are there."""
    path = folder / "demonstrations" / f"{env}_{seed}.npz"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    episodes = EPISODES[env]
    if env == "CartPole-v1":
        data = cartpole_v1().sample_episodes(episodes, seed=seed)
    else:
        expert = peers_adversarial_worker.EXPERTS[env]
        data = record(
            lambda observation: expert(np.asarray(observation)[None])[0], env, episodes, seed=1_000 * (seed + 1)
        )
    _write_arrays(path, data)
    return path


def _write_arrays(path: Path, data: Demonstrations) -> None:
    partial = path.with_suffix(".part.npz")
    np.savez(
        partial,
        observations=np.asarray(data.observations),
        actions=np.asarray(data.actions),
        next_observations=np.asarray(data.next_observations),
        terminations=np.asarray(data.terminations),
        episode_ends=data.episode_ends,
    )
    partial.replace(path)


def budget(algorithm: str, env: str, *, small: bool, timed: bool) -> dict[str, Any]:
    """What both sides are given in a cell, but for the demonstrations and the seed."""
    if algorithm == "BC":
        epochs = 1 if small else TIMED_EPOCHS if timed else CLONING_EPOCHS[env]
        return {**CLONING, "epochs": epochs, "n_envs": 1}
    if algorithm == "DAgger":
        steps = 500 if small else TIMED_DAGGER_STEPS if timed else DAGGER_STEPS[env]
        return {**CLONING, **DAGGER, "steps": steps}
    steps, updates, ppo = ADVERSARIAL[algorithm, env]
    discriminator = {"demo_batch_size": DEMO_BATCH_SIZE, "n_disc_updates_per_round": updates}
    steps = 2_048 if small else TIMED_STEPS if timed else steps
    return {"n_envs": 8, "steps": steps, "ppo": ppo, "discriminator": discriminator}


def arms_of(algorithm: str, env: str) -> dict[str, tuple[Side, dict[str, Any]]]:
    """The arms of a cell; where episodes never end early "as imitation" and "learned" are "defaults"."""
    left_out = {"as imitation", *LEARNED} if env in NEVER_TERMINATES else set()
    return {arm: given for arm, given in ARMS[algorithm].items() if arm not in left_out}


def jobs_of(args: Args, folder: Path, *, timed: bool) -> list[Job]:
    """All runs of a pass, in the order in which they are made."""
    count = 1 if args.small else args.repeats if timed else args.seeds
    jobs: list[Job] = []
    order = random.Random(0)
    first = 0 if args.small or timed else args.first_seed
    for seed in range(first, first + count):
        for env in args.envs:
            file = make_demonstrations(env, seed, folder)
            for algorithm in (name for name in args.algorithms if (name, env) in CELLS):
                arms = list(arms_of(algorithm, env).items()) + (list(QUIET.items()) if timed else [])
                if timed:
                    order.shuffle(arms)
                jobs += [
                    {
                        "key": f"{'time' if timed else 'run'}_{env}_{algorithm}_{arm}_{seed}".replace(" ", "-"),
                        "side": side,
                        "algorithm": algorithm,
                        "env": env,
                        "arm": arm,
                        "seed": seed,
                        "options": options,
                        "demonstrations": file.name,
                        "episodes": 0 if timed else 2 if args.small else 20,
                        **budget(algorithm, env, small=args.small, timed=timed),
                    }
                    for arm, (side, options) in arms
                    if side in args.sides and (not args.arms or arm in args.arms)
                ]
    return jobs


def run_jobs(jobs: Sequence[Job], pythons: Pythons, folder: Path, *, workers: int) -> dict[str, Any]:
    """Make the runs that are not there yet; returns each side's versions."""
    waiting: queue.Queue[Job] = queue.Queue()
    for job in jobs:
        if job["side"] in pythons and not is_done(job, folder):
            waiting.put(job)
    print(f"{waiting.qsize()} runs to make", flush=True)
    environments: dict[str, Any] = {}
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(_work, waiting, pythons, folder, environments) for _ in range(workers)]:
            future.result()
    return environments


def _work(waiting: queue.Queue[Job], pythons: Pythons, folder: Path, environments: dict[str, Any]) -> None:
    processes: dict[Side, Process] = {}
    warm: set[tuple[Side, str]] = set()
    try:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            side = job["side"]
            if side not in processes:
                processes[side] = Process(side, *pythons[side], folder / f"{side}.log")
                environments[side] = processes[side].environment
            if job["key"].startswith("time_") and (side, job["algorithm"]) not in warm:
                warm.add((side, job["algorithm"]))
                shorter = budget(job["algorithm"], job["env"], small=True, timed=True)
                processes[side].ask(_request({**job, **shorter}, folder / "logs" / f"{job['key']}-warm-up", folder))
            before = load_average()
            result = processes[side].ask(_request(job, folder / "logs" / job["key"], folder))
            content = {"job": job, "result": {**result, "load": before}, "environment": environments[side]}
            write_bytes_atomically(folder / f"{job['key']}.json", (json.dumps(content) + "\n").encode())
            print(f"{waiting.qsize()} left; {job['key']}: {result}", flush=True)
    finally:
        for process in processes.values():
            process.close()


def _request(job: Job, logs: Path, folder: Path) -> dict[str, Any]:
    data = folder / "demonstrations" / job["demonstrations"]
    return {"do": "run", "job": job, "folder": str(logs.absolute()), "demonstrations": str(data.absolute())}


def is_done(job: Job, folder: Path) -> bool:
    """Whether the run's result is in the folder.

    Raises:
        ValueError: it was made by other settings.
    """
    path = folder / f"{job['key']}.json"
    if not path.is_file():
        return False
    if read_json(path)["job"] != json.loads(json.dumps(job)):
        raise ValueError(f"{str(path)!r} was made by other settings: remove it, or name another --folder.")
    return True


def _short(run: dict[str, Any]) -> dict[str, Any]:
    """A run without what the budgets already contain."""
    return {"job": {name: run["job"][name] for name in NAMES}, "result": run["result"]}


def _in_one_go(args: Args) -> Args:
    """What makes the same summary at once, without the places of this machine."""
    return Args(
        peer_python=None if args.peer_python is None else Path("../peer-imitation/bin/python"),
        peer_packages=None if args.peer_packages is None else Path("../peer-packages"),
        seeds=args.seeds,
        repeats=args.repeats,
        small=args.small,
    )


def results(folder: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """The runs of a pass that are in the folder."""
    for path in sorted(folder.glob(f"{prefix}_*.json")):
        yield read_json(path)


def main(args: Args) -> None:
    """Make both passes and write the summary."""
    folder = args.folder or Path("logs/bench") / f"peers_adversarial{'-small' if args.small else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    pythons: Pythons = {"rlsmooth": (Path(sys.executable), None)}
    if args.peer_python is None:
        print("imitation: no --peer-python, so its runs are left out", flush=True)
    else:
        pythons["imitation"] = (args.peer_python, args.peer_packages)
    for name, workers in (("returns", args.workers), ("times", 1)):
        if name in args.passes:
            run_jobs(jobs_of(args, folder, timed=name == "times"), pythons, folder, workers=workers)
    if "report" not in args.passes:
        return
    output = args.output or (folder if args.small else Path(__file__).parent / "results")
    command = command_line(SCRIPT, _in_one_go(args))
    runs, times = list(results(folder, "run")), list(results(folder, "time"))
    page = report(__doc__ or "", runs, times, command=command, machine=machine())
    environments = {run["job"]["side"]: run["environment"] for run in (*runs, *times)}
    data = {
        "command": command,
        "machine": machine(),
        "environments": environments,
        "budgets": {
            kind: {f"{name}, {env}": budget(name, env, small=args.small, timed=kind == "times") for name, env in CELLS}
            for kind in ("returns", "times")
        },
        "runs": [_short(run) for run in runs],
        "times": [_short(run) for run in times],
    }
    write_result(output, "peers_adversarial", data, page)
    print(page)


if __name__ == "__main__":
    sys.exit(run_command("bench peers-adversarial", Args, main))
