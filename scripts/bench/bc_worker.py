"""One competitor of `bc_speed.py` in a process of its own: it trains on request and answers how long that took.

This file imports nothing of ours at the top, so that it runs under any interpreter: each peer pins releases that the
others can't live with. Requests and answers are one JSON object a line on standard input and output; whatever the
libraries print goes to standard error instead, and their log files to a folder that the driver throws away.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

HIDDEN = 64
LEARNING_RATE = 1e-3
ALPHA = 0.1
VERSIONED = ("torch", "numpy", "rlsmooth", "stable-baselines3", "gymnasium", "imitation", "d3rlpy", "tensorboard")

Train = Callable[[int], None]  # trains for so many batches


def torch_loop(data: dict[str, np.ndarray], batch_size: int, fused: bool) -> Train:
    """The limit: what a good engineer would write for this one job, and nothing else.

    The tensors are shuffled once an epoch, so that a batch is a view. There is an actor and no critic; the loss is
    torch's own; nothing is measured, logged, checked or counted. `fused=False` is `torch.optim.Adam` as it comes,
    `True` its fused kernel. Tried at a batch of 256, and slower: indexing batch by batch (by 2 %), `foreach=True`.
    """
    observations, actions = torch.as_tensor(data["observations"]), torch.as_tensor(data["actions"])
    network = torch.nn.Sequential(
        torch.nn.Linear(observations.shape[1], HIDDEN),
        torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, HIDDEN),
        torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, int(data["num_actions"])),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=fused or None)

    def train(num_batches: int) -> None:
        done = 0
        while True:
            order = torch.randperm(len(observations))
            of_epoch = (observations[order], actions[order])
            for observation, action in zip(*(torch.split(rows, batch_size) for rows in of_epoch), strict=True):
                loss = torch.nn.functional.cross_entropy(network(observation), action, label_smoothing=ALPHA)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += 1
                if done == num_batches:
                    return

    return train


def ours(data: dict[str, np.ndarray], batch_size: int, folder: Path, engine: Any = "torch") -> Train:
    """`rlsmooth.agents.BC` as a user has it: an SB3 policy with a critic, its logger, TensorBoard files, all checks."""
    from rlsmooth.agents import BC
    from rlsmooth.data import Demonstrations

    observation_space, action_space = _spaces(data)
    demonstrations = Demonstrations(
        observations=data["observations"],
        actions=data["actions"],
        observation_space=observation_space,
        action_space=action_space,
        episode_ends=data["episode_ends"],
    )
    agent = BC(
        "MlpPolicy",
        (observation_space, action_space),
        demonstrations,
        smoothing=ALPHA,
        learning_rate=LEARNING_RATE,
        batch_size=batch_size,
        policy_kwargs={"net_arch": [HIDDEN, HIDDEN]},
        seed=0,
        device="cpu",
        tensorboard_log=str(folder),
        engine=engine,
    )

    def train(num_batches: int) -> None:
        agent.learn(total_batches=num_batches, tb_log_name=f"BC_{batch_size}", reset_num_timesteps=False)

    return train


def imitation_bc(data: dict[str, np.ndarray], batch_size: int, folder: Path) -> Train:
    """`imitation`'s BC as its documentation has it: `Transitions`, an SB3 policy, its default logger and log interval.

    The policy is SB3's `ActorCriticPolicy` (64x64, tanh), whose critic imitation evaluates in every batch.
    """
    from imitation.algorithms import bc  # type: ignore[import-not-found]
    from imitation.data.types import Transitions  # type: ignore[import-not-found]
    from imitation.util import logger  # type: ignore[import-not-found]
    from stable_baselines3.common.policies import ActorCriticPolicy

    observation_space, action_space = _spaces(data)
    observations = data["observations"]
    transitions = Transitions(
        obs=observations,
        acts=data["actions"],
        infos=np.array([{} for _ in observations]),
        next_obs=observations,
        dones=_last_of_episode(data),
    )
    policy = ActorCriticPolicy(observation_space, action_space, lambda _: LEARNING_RATE, net_arch=[HIDDEN, HIDDEN])
    agent = bc.BC(
        observation_space=observation_space,
        action_space=action_space,
        rng=np.random.default_rng(0),
        policy=policy,
        demonstrations=transitions,
        batch_size=batch_size,
        optimizer_kwargs={"lr": LEARNING_RATE},
        device="cpu",
        custom_logger=logger.configure(folder / f"imitation_{batch_size}"),
    )

    def train(num_batches: int) -> None:
        agent.train(n_batches=num_batches, progress_bar=False)

    return train


def d3rlpy_bc(data: dict[str, np.ndarray], batch_size: int, folder: Path) -> Train:
    """`d3rlpy`'s DiscreteBC as its documentation has it: an `MDPDataset` and `fit`, its default logger to files.

    One `fit` is one of its epochs; it saves no model (`save_interval`), which the others don't do either.
    """
    import d3rlpy  # type: ignore[import-not-found]

    observations = data["observations"]
    dataset = d3rlpy.dataset.MDPDataset(
        observations=observations,
        actions=data["actions"],
        rewards=np.ones(len(observations), dtype=np.float32),
        terminals=_last_of_episode(data).astype(np.float32),
        action_space=d3rlpy.constants.ActionSpace.DISCRETE,
    )
    agent = d3rlpy.algos.DiscreteBCConfig(
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        encoder_factory=d3rlpy.models.encoders.VectorEncoderFactory([HIDDEN, HIDDEN], activation="tanh"),
    ).create(device="cpu:0")

    def train(num_batches: int) -> None:
        agent.fit(
            dataset,
            n_steps=num_batches,
            n_steps_per_epoch=num_batches,
            save_interval=2,
            show_progress=False,
            logger_adapter=d3rlpy.logging.FileAdapterFactory(root_dir=str(folder)),
        )

    return train


def _spaces(data: dict[str, np.ndarray]) -> tuple[Any, Any]:
    from gymnasium import spaces

    shape = data["observations"].shape[1:]
    return spaces.Box(-np.inf, np.inf, shape, np.float32), spaces.Discrete(int(data["num_actions"]))


def _last_of_episode(data: dict[str, np.ndarray]) -> np.ndarray:
    last = np.zeros(len(data["observations"]), dtype=bool)
    last[data["episode_ends"] - 1] = True
    return last


def make_train(competitor: str, data: dict[str, np.ndarray], batch_size: int, folder: Path) -> Train:
    """Build the training function of `competitor` at `batch_size`."""
    if competitor == "torch":
        return torch_loop(data, batch_size, fused=False)
    if competitor == "torch_fused":
        return torch_loop(data, batch_size, fused=True)
    if competitor == "rlsmooth":
        return ours(data, batch_size, folder)
    if competitor == "rlsmooth_numpy":
        return ours(data, batch_size, folder, "numpy")
    if competitor == "imitation":
        return imitation_bc(data, batch_size, folder)
    if competitor == "d3rlpy":
        return d3rlpy_bc(data, batch_size, folder)
    raise ValueError(f"competitor={competitor!r} is not known.")


def environment() -> dict[str, Any]:
    """Versions and threads of this process."""
    found: dict[str, Any] = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def answer(request: dict[str, Any], trains: dict[int, Train], args: argparse.Namespace, data: Any) -> dict[str, Any]:
    """Carry out one request: `environment`, `prepare` (build and warm up) or `run` (one timed segment)."""
    if request["do"] == "environment":
        return environment()
    batch_size, num_batches = request["batch_size"], request["num_batches"]
    if request["do"] == "prepare":
        torch.manual_seed(0)
        trains[batch_size] = make_train(args.competitor, data, batch_size, Path(args.folder))
    start, start_cpu = time.perf_counter(), time.process_time()
    trains[batch_size](num_batches)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}


def main() -> None:
    """Answer requests until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--competitor", required=True)
    parser.add_argument("--data", required=True, help=".npz: observations, actions, episode_ends, num_actions")
    parser.add_argument("--folder", required=True, help="where log files go")
    args = parser.parse_args()
    # The answers keep the real standard output; prints of the libraries, C code included, go to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    with np.load(args.data) as archive:
        data = dict(archive)
    trains: dict[int, Train] = {}
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), trains, args, data)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": type(error).__name__, "details": str(error)}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
