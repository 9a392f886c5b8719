"""One side of `peers_adversarial.py` in a process of its own: it trains on request and answers how good the result is.

This file imports nothing of ours at the top, so that it runs under the peer's interpreter too. Requests and answers are
one JSON object a line on standard input and output; what the libraries print goes to standard error, and their log
files to a folder that the driver names.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy

VERSIONED = ("torch", "numpy", "rlsmooth", "stable-baselines3", "gymnasium", "imitation", "tensorboard", "pyarrow")
NET_ARCH = [64, 64]
# Of Acrobot's expert: the sines of both angles, both velocities, the sine of the angles' sum, 1, velocities · cosines.
TORQUE = np.array([1.12, -0.66, -1.49, 1.31, -0.84, -0.27, -1.15, -0.37, -0.12, -0.26])

Job = dict[str, Any]
Train = Callable[[], object]


def cartpole_expert(observations: np.ndarray) -> np.ndarray:
    """Push towards where the pole falls: a linear rule that balances for 500 steps. `[B, 4]` to `[B]`."""
    return np.asarray(observations @ np.array([0.1, 0.3, 1.0, 0.5]) > 0, dtype=np.int64)


def acrobot_expert(observations: np.ndarray) -> np.ndarray:
    """As `swing_up` of `scripts/studies/bco_experts.py`. `[B, 6]` to `[B]`."""
    cos_1, sin_1, cos_2, sin_2, velocity_1, velocity_2 = observations.astype(np.float64).T
    products = [velocity * cosine for cosine in (cos_1, cos_2) for velocity in (velocity_1, velocity_2)]
    sine_of_sum = sin_1 * cos_2 + cos_1 * sin_2
    features = np.stack([sin_1, sin_2, velocity_1, velocity_2, sine_of_sum, np.ones_like(sin_1), *products], axis=1)
    return np.where(features @ TORQUE > 0, 2, 0).astype(np.int64)


def pendulum_expert(observations: np.ndarray) -> np.ndarray:
    """As `controller` of `scripts/studies/ordinal_bins.py`. `[B, 3]` to `[B, 1]`."""
    cosine, sine, speed = observations.astype(np.float64).T
    angle = np.arctan2(sine, cosine)
    energy = speed**2 / 6 + 5 * (cosine - 1)
    swinging = -4.0 * energy * np.where(speed >= 0, 1.0, -1.0)
    torque = np.where((np.abs(angle) < 0.4) & (np.abs(speed) < 4), -8.0 * angle - 1.5 * speed, swinging)
    return np.asarray(np.clip(torque, -2, 2)[:, None], dtype=np.float32)


def mountain_car_expert(observations: np.ndarray) -> np.ndarray:
    """Push to where the car moves. `[B, 2]` to `[B]`."""
    return np.where(observations[:, 1] > 0, 2, 0).astype(np.int64)


EXPERTS = {
    "CartPole-v1": cartpole_expert,
    "Acrobot-v1": acrobot_expert,
    "Pendulum-v1": pendulum_expert,
    "MountainCar-v0": mountain_car_expert,
}


def our_demonstrations(job: Job) -> Any:
    """The arrays of the job's file as `Demonstrations`."""
    from rlsmooth.data import Demonstrations

    spaces = _spaces(job)
    with np.load(job["demonstrations"]) as archive:
        return Demonstrations(observation_space=spaces[0], action_space=spaces[1], **archive)


def our_trainer(job: Job, folder: Path) -> tuple[Any, Train]:
    """The policy to evaluate after training, and the function that trains it: our side."""
    options: dict[str, Any] = dict(job["options"])
    seed = job["seed"]
    if job["algorithm"] == "BC":
        from rlsmooth.agents import BC

        agent = BC(
            "MlpPolicy",
            None,
            our_demonstrations(job),
            seed=seed,
            device="cpu",
            policy_kwargs={"net_arch": NET_ARCH},
            tensorboard_log=folder,
            learning_rate=job["learning_rate"],
            batch_size=job["batch_size"],
            **options,
        )
        return agent, lambda: agent.learn(total_epochs=job["epochs"])
    if job["algorithm"] == "DAgger":
        from rlsmooth.agents import DAgger

        dagger = DAgger(
            "MlpPolicy",
            make_vec_env(job["env"], n_envs=job["n_envs"], seed=seed),
            EXPERTS[job["env"]],
            beta_schedule=job["beta_rounds"],
            rollout_round_min_episodes=job["round_episodes"],
            rollout_round_min_timesteps=job["round_steps"],
            bc_train_n_epochs=job["epochs"],
            learning_rate=job["learning_rate"],
            batch_size=job["batch_size"],
            policy_kwargs={"net_arch": NET_ARCH},
            seed=seed,
            device="cpu",
            scratch_dir=folder / "rounds",
            tensorboard_log=folder,
            **options,
        )
        return dagger, lambda: dagger.learn(job["steps"])
    from rlsmooth.agents import AIRL, GAIL, RewardNet, ShapedRewardNet

    generator = _generator(job, folder)
    spaces = generator.observation_space, generator.action_space
    torch.manual_seed(seed)
    if job["algorithm"] == "GAIL":
        net: Any = RewardNet(*spaces, net_arch=(32, 32))
    else:
        net = ShapedRewardNet(RewardNet(*spaces, net_arch=(32,)), gamma=job["ppo"]["gamma"])
    trainer = {"GAIL": GAIL, "AIRL": AIRL}[job["algorithm"]](
        our_demonstrations(job), generator, net, seed=seed, **job["discriminator"], **options
    )
    return trainer, lambda: trainer.learn(job["steps"])


def peer_trainer(job: Job, folder: Path) -> tuple[Any, Train]:
    """The policy to evaluate after training, and the function that trains it: imitation's side."""
    from imitation.algorithms import bc  # type: ignore[import-not-found]
    from imitation.util import logger, networks  # type: ignore[import-not-found]

    seed = job["seed"]
    # imitation's defaults write all three; "quiet" writes none.
    formats = [] if job["options"].get("quiet") else ["stdout", "log", "csv"]
    log = logger.configure(folder, formats)
    if job["algorithm"] in ("BC", "DAgger"):
        spaces = _spaces(job)
        torch.manual_seed(seed)
        policy = ActorCriticPolicy(*spaces, lambda _: job["learning_rate"], net_arch=NET_ARCH)
        clone = bc.BC(
            observation_space=spaces[0],
            action_space=spaces[1],
            rng=np.random.default_rng(seed),
            policy=policy,
            demonstrations=_peer_transitions(job) if job["algorithm"] == "BC" else None,
            batch_size=job["batch_size"],
            optimizer_kwargs={"lr": job["learning_rate"]},
            device="cpu",
            custom_logger=log,
        )
        if job["algorithm"] == "BC":
            return policy, lambda: clone.train(n_epochs=job["epochs"], progress_bar=False)
        return policy, _peer_dagger(job, folder, clone, log)
    from imitation.algorithms.adversarial.airl import AIRL  # type: ignore[import-not-found]
    from imitation.algorithms.adversarial.gail import GAIL  # type: ignore[import-not-found]
    from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet  # type: ignore[import-not-found]

    generator = _generator(job, None)
    common = {"normalize_input_layer": networks.RunningNorm}
    torch.manual_seed(seed)
    if job["algorithm"] == "GAIL":
        net = BasicRewardNet(generator.observation_space, generator.action_space, **common)
    else:
        net = BasicShapedRewardNet(
            generator.observation_space,
            generator.action_space,
            discount_factor=job["ppo"]["gamma"],
            **common,
        )
    trainer = {"GAIL": GAIL, "AIRL": AIRL}[job["algorithm"]](
        demonstrations=_peer_transitions(job),
        venv=generator.get_env(),
        gen_algo=generator,
        reward_net=net,
        allow_variable_horizon=True,
        custom_logger=log,
        log_dir=folder,
        **job["discriminator"],
    )
    return generator, lambda: trainer.train(job["steps"])


def _peer_dagger(job: Job, folder: Path, clone: Any, log: Any) -> Train:
    from imitation.algorithms.dagger import LinearBetaSchedule, SimpleDAggerTrainer  # type: ignore[import-not-found]

    class Expert(ActorCriticPolicy):
        """The scripted expert behind the interface that imitation asks for."""

        def _predict(self, observation: Any, deterministic: bool = False) -> torch.Tensor:
            return torch.as_tensor(EXPERTS[job["env"]](observation.numpy()))

    venv = make_vec_env(job["env"], n_envs=job["n_envs"], seed=job["seed"])
    trainer = SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=folder / "rounds",
        expert_policy=Expert(venv.observation_space, venv.action_space, lambda _: 0.0),
        rng=np.random.default_rng(job["seed"]),
        beta_schedule=LinearBetaSchedule(job["beta_rounds"]),
        bc_trainer=clone,
        custom_logger=log,
    )
    # Without these imitation plays five more episodes in each round, for its log alone.
    quiet = {"n_epochs": job["epochs"], "log_rollouts_n_episodes": 0, "progress_bar": False}
    return lambda: trainer.train(
        job["steps"],
        rollout_round_min_episodes=job["round_episodes"],
        rollout_round_min_timesteps=job["round_steps"],
        bc_train_kwargs=quiet,
    )


def _peer_transitions(job: Job) -> Any:
    from imitation.data.types import Transitions  # type: ignore[import-not-found]

    with np.load(job["demonstrations"]) as archive:
        data = dict(archive)
    dones = data["terminations"].copy()
    dones[data["episode_ends"] - 1] = True
    return Transitions(
        obs=data["observations"],
        acts=data["actions"],
        infos=np.array([{} for _ in dones]),
        next_obs=data["next_observations"],
        dones=dones,
    )


def _generator(job: Job, folder: Path | None) -> PPO:
    venv = make_vec_env(job["env"], n_envs=job["n_envs"], seed=job["seed"])
    logs = None if folder is None else str(folder)
    return PPO(
        "MlpPolicy",
        venv,
        seed=job["seed"],
        device="cpu",
        policy_kwargs={"net_arch": NET_ARCH},
        tensorboard_log=logs,
        **job["ppo"],
    )


def _spaces(job: Job) -> tuple[Any, Any]:
    venv = make_vec_env(job["env"], n_envs=1)
    venv.close()
    return venv.observation_space, venv.action_space


def run(job: Job, folder: Path) -> dict[str, Any]:
    """Train once, which is timed, and evaluate."""
    warnings.simplefilter("ignore")
    build = our_trainer if job["side"] == "rlsmooth" else peer_trainer
    agent, train = build(job, folder)
    start, start_cpu = time.perf_counter(), time.process_time()
    train()
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    if job["episodes"]:
        for number, kind in enumerate(("deterministic", "sampled")):
            venv = make_vec_env(job["env"], n_envs=10, seed=20_000 + 100 * job["seed"])
            torch.manual_seed(30_000 + job["seed"])
            found[kind], _ = evaluate_policy(agent, venv, job["episodes"], deterministic=number == 0)
            venv.close()
    return found


def environment() -> dict[str, Any]:
    """Versions and threads of this process."""
    found: dict[str, Any] = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Answer requests until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", required=True, choices=("rlsmooth", "imitation"))
    args = parser.parse_args()
    # The answers keep the real standard output; prints of the libraries go to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "environment":
                __import__(args.side)
                reply = environment()
            else:
                reply = run({**request["job"], "demonstrations": request["demonstrations"]}, Path(request["folder"]))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": type(error).__name__, "details": str(error)}
        print(json.dumps(reply, default=float), file=answers, flush=True)


if __name__ == "__main__":
    main()
