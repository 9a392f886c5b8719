"""RLlib's MARWIL in a process of its own, under the interpreter that has it: the peer's side of `weighted_cloning`.

This file imports nothing of ours. Requests and answers are one JSON object a line on standard input and output; what
the libraries print goes to standard error. The episodes go to RLlib's learner as they are: Ray Data's actors, which
read and shuffle in other processes, are left out. Connectors, advantages, loss and optimiser are RLlib's.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch


def episodes_of(path: Path, env: gym.Env[Any, Any]) -> list[Any]:
    """The episodes of a file of arrays, as RLlib's objects; actions of a Box in [-1, 1], as RLlib trains on them."""
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    with np.load(path) as archive:
        data = dict(archive)
    actions = data["actions"]
    if isinstance(env.action_space, gym.spaces.Box):
        low, high = env.action_space.low, env.action_space.high
        actions = (2 * (actions - low) / (high - low) - 1).astype(np.float32)
    found, start = [], 0
    for end in data["episode_ends"].tolist():
        part = slice(start, end)
        terminated = bool(data["terminations"][end - 1])
        found.append(
            SingleAgentEpisode(
                observations=[*data["observations"][part], data["next_observations"][end - 1]],
                actions=list(actions[part]),
                rewards=data["rewards"][part].tolist(),
                terminated=terminated,
                truncated=not terminated,
                observation_space=env.observation_space,
                action_space=env.action_space,
                len_lookback_buffer=0,
            )
        )
        start = end
    return found


def train(job: dict[str, Any], env: gym.Env[Any, Any]) -> Any:
    """The trained module."""
    from ray.rllib.algorithms.marwil import MARWILConfig

    config = (
        MARWILConfig()
        .environment(observation_space=env.observation_space, action_space=env.action_space)
        .training(
            beta=job["beta"],
            lr=job["learning_rate"],
            gamma=job["gamma"],
            train_batch_size_per_learner=job["batch_size"],
            moving_average_sqd_adv_norm_update_rate=job["update_rate"],
            moving_average_sqd_adv_norm_start=job["norm_start"],
            vf_coeff=job["vf_coeff"],
        )
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh", "vf_share_layers": False})
        .debugging(seed=job["seed"])
    )
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])  # noqa: NPY002  # RLlib shuffles by it
    learner = config.build_learner(env=env)
    episodes = episodes_of(Path(job["demonstrations"]), env)
    rounds = job["rounds"]  # value targets are made anew in each
    for number in range(rounds):
        share = job["epochs"] * (number + 1) // rounds - job["epochs"] * number // rounds
        if share:
            learner.update(
                episodes=copy.deepcopy(episodes),
                timesteps={"num_env_steps_sampled_lifetime": number},
                num_epochs=share,
                minibatch_size=job["batch_size"],
                shuffle_batch_per_epoch=True,
            )
    return learner.module["default_policy"].unwrapped()


def returns(module: Any, job: dict[str, Any], *, deterministic: bool) -> list[float]:
    """The return of each of some episodes."""
    found, env = [], gym.make(job["env"])
    kind = module.get_inference_action_dist_cls()
    torch.manual_seed(30_000 + job["seed"])
    for number in range(job["episodes"]):
        observation, _ = env.reset(seed=20_000 + 1_000 * job["seed"] + number)
        total, is_over = 0.0, False
        while not is_over:
            with torch.no_grad():
                batch = {"obs": torch.as_tensor(np.asarray(observation, np.float32))[None]}
                actions = kind.from_logits(module.forward_inference(batch)["action_dist_inputs"])
                action = (actions.to_deterministic() if deterministic else actions).sample()[0].numpy()
            if isinstance(env.action_space, gym.spaces.Box):
                low, high = env.action_space.low, env.action_space.high
                action = np.clip((action + 1) / 2 * (high - low) + low, low, high)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, is_over = total + float(reward), terminated or truncated
        found.append(total)
    env.close()
    return found


def main() -> None:
    """Answer requests until standard input ends."""
    # The answers keep the real standard output; prints of the libraries go to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            module = train(job, gym.make(job["env"]))
            kinds = {"deterministic": True, "sampled": False}
            reply: dict[str, Any] = {
                name: float(np.mean(returns(module, job, deterministic=value))) for name, value in kinds.items()
            }
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
