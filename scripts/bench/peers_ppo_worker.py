"""One run of one competitor of `peers_ppo.py` in a process of its own: it trains PPO and answers what that took.

This file imports nothing of ours at the top, so that it runs under the peers' interpreters too. The answer is one JSON
object on standard output; what the libraries print goes to standard error, and their log files to the current folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import runpy
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

ENV, N_ENVS, N_STEPS = "CartPole-v1", 8, 32
ROLLOUT = N_ENVS * N_STEPS
SETTINGS: dict[str, Any] = {
    "n_steps": N_STEPS,
    "batch_size": 256,
    "n_epochs": 20,
    "learning_rate": 1e-3,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "clip_range": 0.2,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
}
"""RL Zoo's for CartPole-v1, but for its schedules: learning rate and clip range stay at what they begin with there."""
SOLVED, EPISODES = 475.0, 20
WARM = 0.2  # of all rollouts: everything is compiled by then, and the training is timed from there on
VERSIONED = [
    "torch",
    "numpy",
    "gymnasium",
    "stable-baselines3",
    "rlsmooth",
    "sbx-rl",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "tensordict",
    "tensorboard",
]
LEANRL_CHANGES = (
    ('if __name__ == "__main__":', 'Agent, make_env = discrete(Agent)\n\nif __name__ == "__main__":'),
    ("n_act = math.prod(envs.single_action_space.shape)", "n_act = int(envs.single_action_space.n)"),
    ("gym.spaces.Box)", "gym.spaces.Discrete)"),
    ('in infos["final_info"]:', 'in filter(None, infos["final_info"]):'),
)
"""What becomes what in LeanRL's PPO, which is for Box actions, and expects of one environment that all end at once."""

Job = dict[str, Any]
Act = Callable[[np.ndarray], int]  # the likeliest action at one observation [4]


def cpu_seconds() -> float:
    """Seconds of the processor since this process began, in user and system mode, ended child processes included."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Watch:
    """What happens in the training environments, seen from inside them: all competitors pay the same for it.

    `rollouts` has the CPU seconds at the end of each rollout, `solved` steps and CPU seconds when the mean return of
    the last 20 finished episodes came to 475. After `total` steps nothing counts any more: what follows is evaluation.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.steps = 0
        self.began = 0.0
        self.rollouts: list[float] = []
        self.returns: list[int] = []
        self.solved: tuple[int, float] | None = None

    def install(self) -> None:
        """Count in every CartPole of this process from now on."""
        cartpole: Any = CartPoleEnv
        step, reset = cartpole.step, cartpole.reset
        lengths: dict[CartPoleEnv, int] = {}

        def counted_step(env: Any, action: Any) -> Any:
            if not self.steps:
                self.began = cpu_seconds()
            answer = step(env, action)
            lengths[env] = lengths.get(env, 0) + 1
            self.steps += 1
            if self.steps % ROLLOUT == 0 and self.steps <= self.total:
                self.rollouts.append(cpu_seconds())
            return answer

        def counted_reset(env: Any, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            length = lengths.pop(env, 0)
            if length and self.steps <= self.total:
                self.finished(length)
            return reset(env, seed=seed, options=options)

        cartpole.step, cartpole.reset = counted_step, counted_reset

    def finished(self, length: int) -> None:
        """Note a finished episode; its return is its length, as each step is paid with 1."""
        self.returns.append(length)
        last = self.returns[-EPISODES:]
        if self.solved is None and len(last) == EPISODES and sum(last) >= SOLVED * EPISODES:
            self.solved = self.steps, cpu_seconds()


def sb3_kind(job: Job, algorithm: Any, **more: Any) -> Act:
    """Train what has Stable-Baselines3's interface: its own PPO, SBX's, ours."""
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(ENV, N_ENVS, seed=job["seed"])
    model = algorithm("MlpPolicy", env, seed=job["seed"], device="cpu", tensorboard_log="logs", **SETTINGS, **more)
    model.learn(job["steps"])
    return lambda observation: int(model.predict(observation, deterministic=True)[0])


def stock(job: Job) -> Act:
    """Stable-Baselines3."""
    from stable_baselines3 import PPO

    return sb3_kind(job, PPO)


def sbx(job: Job) -> Act:
    """SBX: Stable-Baselines3's interface and rollouts, networks and updates in JAX."""
    from sbx import PPO  # type: ignore[import-not-found]

    return sb3_kind(job, PPO)


def ours(job: Job) -> Act:
    """`SmoothedPPO` in Python."""
    from rlsmooth.agents import SmoothedPPO

    return sb3_kind(job, SmoothedPPO, **job["options"])


def our_command(job: Job) -> Act:
    """`rlsmooth ppo` as on the command line, with its report and the evaluation at its end."""
    from rlsmooth.agents import load_agent
    from rlsmooth.scripts import main

    settings = [f"{name}={value}" for name, value in SETTINGS.items() if name != "ent_coef"]
    words = ["ppo", "--env", ENV, "-n", str(job["steps"]), "--n-envs", str(N_ENVS), "--ent-coef", "0.0"]
    words += ["--seed", str(job["seed"]), "--eval-freq", "-1", "-f", "logs", "--engine", job["options"]["engine"]]
    code = main.main([*words, "-params", *settings])
    if code:
        raise RuntimeError(f"rlsmooth ppo ended with {code}.")
    model = load_agent(next(Path("logs/ppo").glob("*/agent.zip")), device="cpu")
    return lambda observation: int(model.predict(observation, deterministic=True)[0])


def script_options(job: Job) -> list[str]:
    """The settings as the scripts of CleanRL and LeanRL name them.

    Their value loss is half of Stable-Baselines3's, so its coefficient is doubled.
    """
    values = {
        "seed": job["seed"],
        "env-id": ENV,
        "total-timesteps": job["steps"],
        "learning-rate": SETTINGS["learning_rate"],
        "num-envs": N_ENVS,
        "num-steps": N_STEPS,
        "gamma": SETTINGS["gamma"],
        "gae-lambda": SETTINGS["gae_lambda"],
        "num-minibatches": ROLLOUT // SETTINGS["batch_size"],
        "update-epochs": SETTINGS["n_epochs"],
        "clip-coef": SETTINGS["clip_range"],
        "ent-coef": SETTINGS["ent_coef"],
        "vf-coef": 2 * SETTINGS["vf_coef"],
        "max-grad-norm": SETTINGS["max_grad_norm"],
    }
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [*words, "--no-cuda", "--no-anneal-lr", "--no-clip-vloss"]


def act_of(actor: Any) -> Act:
    """The likeliest action of a torch network that gives logits."""
    import torch

    def act(observation: np.ndarray) -> int:
        with torch.no_grad():
            return int(actor(torch.as_tensor(observation)).argmax())

    return act


def cleanrl(job: Job) -> Act:
    """CleanRL's `ppo.py`, as it is."""
    script = Path(job["checkout"]) / "cleanrl" / "ppo.py"
    sys.argv = [str(script), *script_options(job)]
    return act_of(runpy.run_path(str(script), run_name="__main__")["agent"].actor)


def leanrl(job: Job) -> Act:
    """LeanRL's `ppo_continuous_action_torchcompile.py`, changed for Discrete actions; without Weights & Biases."""
    script = Path(job["checkout"]) / "leanrl" / "ppo_continuous_action_torchcompile.py"
    source = script.read_text(encoding="utf-8")
    for old, new in LEANRL_CHANGES:
        if source.count(old) != 1:
            raise ValueError(f"{script.name} has {old!r} {source.count(old)} times: use the commit of the results.")
        source = source.replace(old, new)
    silent = types.ModuleType("wandb")
    silent.init = silent.log = lambda *args, **kwargs: None  # type: ignore[attr-defined]
    sys.modules["wandb"] = silent
    sys.argv = [str(script), *script_options(job), *job["options"]]
    names = {"__name__": "__main__", "__file__": str(script), "discrete": discrete(job["seed"])}
    exec(compile(source, str(script), "exec"), names)  # a script, not a module: it can't be imported
    return act_of(names["agent"].actor_mean)  # type: ignore[attr-defined]


def discrete(seed: int) -> Callable[[Any], tuple[Any, Any]]:
    """What gives LeanRL's agent a categorical distribution, as its PPO for Atari has, and CartPole without wrappers."""
    from torch import distributions

    untyped: Any = distributions
    categorical = untyped.Categorical
    untyped.Distribution.set_default_validate_args(False)

    def changed(agent: Any) -> tuple[Any, Any]:
        class Discrete(agent):  # type: ignore[misc]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                del self.actor_logstd

            def get_action_and_value(self, obs: Any, action: Any = None) -> Any:
                distribution = categorical(logits=self.actor_mean(obs))
                if action is None:
                    action = distribution.sample()
                return action, distribution.log_prob(action), distribution.entropy(), self.critic(obs)

        def make_env(env_id: str, index: int, *_: Any) -> Callable[[], gym.Env]:
            def make() -> gym.Env:
                env = gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))
                env.reset(seed=seed + index)  # the script gives its environments no seed
                return env

            return make

        return Discrete, make_env

    return changed


COMPETITORS: dict[str, Callable[[Job], Act]] = {
    "stock": stock,
    "sbx": sbx,
    "cleanrl": cleanrl,
    "leanrl": leanrl,
    "ours": ours,
    "command": our_command,
}


def evaluate(act: Act, seed: int) -> float:
    """Mean return of 20 episodes of the likeliest actions."""
    env, returns = gym.make(ENV), []
    for episode in range(EPISODES):
        observation, _ = env.reset(seed=1_000_000 + 1_000 * seed + episode)
        total, is_over = 0.0, False
        while not is_over:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, is_over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def environment(job: Job) -> dict[str, Any]:
    """Versions of what was used, and the commit of a checkout."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if job.get("checkout"):
        told = subprocess.run(["git", "-C", job["checkout"], "rev-parse", "HEAD"], capture_output=True, check=False)
        found["commit"] = told.stdout.decode().strip()[:12] or "unknown"
    return found


def run(job: Job) -> dict[str, Any]:
    """Train and evaluate; CPU seconds count from the beginning of this process."""
    watch = Watch(job["steps"])
    watch.install()
    act = COMPETITORS[job["kind"]](job)
    trained = cpu_seconds()
    first = round(WARM * job["steps"] / ROLLOUT) - 1
    warm = watch.rollouts[first:]
    if len(watch.rollouts) != job["steps"] // ROLLOUT or len(warm) < 2:
        raise RuntimeError(f"{len(watch.rollouts)} rollouts were seen; {job['steps']} steps were asked for.")
    return {
        "before_training": watch.began,
        "first_fifth": warm[0] - watch.began,
        "steps_per_cpu_second": ROLLOUT * (len(warm) - 1) / (warm[-1] - warm[0]),
        "steps_to_475": watch.solved and watch.solved[0],
        "cpu_seconds_to_475": watch.solved and watch.solved[1],
        "cpu_seconds": trained,
        "last_training_returns": float(np.mean(watch.returns[-EPISODES:])),
        "final_return": evaluate(act, job["seed"]),
        "environment": environment(job),
    }


def main() -> None:
    """Answer the job on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=json.loads)
    job = parser.parse_args().job
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    # The answer keeps the real standard output; prints of the libraries go to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        reply = run(job)
    except Exception as error:
        traceback.print_exc()
        reply = {"error": type(error).__name__, "details": str(error)}
    print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
