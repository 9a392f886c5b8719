"""Study: does a guaranteed entropy hold in every state, and is the mean of an entropy target at the target?

Fixed before running.

**Guarantee**: half of log n, or 1 nat for the Box (2.84 is the entropy at the start), in 7 kinds of action spaces and
algorithms, 3 seeds of 40 rollouts each. All states of a rollout are measured at its end, and again after the update
(another policy in the same states). Reported: the number of states measured; of those below the bound by more than 1e-6
log n (Box: 1e-6 nats); the lowest, over the bound; the lowest that the network itself has (without the guarantee); and
the largest gap between a log-probability of the rollout and that which the first minibatch of its update computes.

**Controller**: the set-point of the entropy target fixed at the target ("before") and moved once a rollout ("after").
Identity with 4 actions (target 0.6, 12,000 steps) and CartPole-v1 (target 0.9, 20,000 steps; PPO's own entropy there
falls below 0.81, and a target below what a policy keeps by itself holds nothing), seeds 10 to 14; the rule was settled
on seeds 0 and 1, for Deep Sea on 100 to 109 and 200 to 204. Deep Sea of size 8 as in the study `collapse` (target 0.5,
24,000 steps), on seeds 110 to 119 that no other study has, each also with a guarantee of 0.3 below the target. The
entropy / log n of the behaviour policy is measured at the end of each rollout. Reported, of the second half of the
rollouts (Deep Sea: after the first 20 % of training): the interquartile mean over seeds of the mean, and of the share
of rollouts within 10 % of the target; by how much the mean over seeds is off the target; and the mean share of states
below 0.3 log n.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlsmooth.agents import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.agents.smoothed.measures import PolicyMeasures, keep_rollout, measure_rollout
from rlsmooth.audits import interquartile_mean_interval
from rlsmooth.envs import (
    IdentityBoxEnv,
    IdentityEnv,
    IdentityMaskedEnv,
    IdentityMultiBinaryEnv,
    IdentityMultiDiscreteEnv,
)
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.studies import collapse
from rlsmooth.scripts.studies.runner import Args, Job, Result, in_words, results_folder, run_jobs, write_study

HALF = {"min_entropy_frac": 0.5}
SHORT = {"n_steps": 64, "batch_size": 64, "n_epochs": 4, "learning_rate": 0.01, "gamma": 0.0}
LSTM = {**SHORT, "policy_kwargs": {"lstm_hidden_size": 8}, "n_steps": 32, "batch_size": 32, "learning_rate": 0.02}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "Discrete": (SmoothedPPO, lambda: IdentityEnv(4), {**SHORT, **HALF}),
    "Discrete, numpy": (SmoothedPPO, lambda: IdentityEnv(18), {**SHORT, **HALF, "engine": "numpy"}),
    "MultiDiscrete": (SmoothedPPO, lambda: IdentityMultiDiscreteEnv((3, 2)), {**SHORT, **HALF}),
    "MultiBinary, A2C": (
        SmoothedA2C,
        lambda: IdentityMultiBinaryEnv(3),
        {"n_steps": 32, "gamma": 0.0, "learning_rate": 0.02, **HALF},
    ),
    "masked": (SmoothedMaskablePPO, lambda: IdentityMaskedEnv(5), {**SHORT, **HALF}),
    "recurrent": (SmoothedRecurrentPPO, lambda: IdentityEnv(4), {**LSTM, **HALF}),
    "Box": (SmoothedPPO, lambda: IdentityBoxEnv(2), {**SHORT, "min_entropy_nats": 1.0}),
}
QUICK = {"n_steps": 32, "batch_size": 64, "n_epochs": 5, "gamma": 0.0, "learning_rate": 2e-3}
SLOW = {"n_steps": 32, "batch_size": 256, "n_epochs": 10, "gae_lambda": 0.8, "gamma": 0.98, "learning_rate": 3e-3}
TARGETS: dict[
    str, tuple[Any, int, float, int, dict[str, Any], float]
] = {  # env, n_envs, target, steps, arguments, start
    "Identity": (lambda: IdentityEnv(4), 8, 0.6, 12_000, QUICK, 0.5),
    "CartPole-v1": (lambda: gym.make("CartPole-v1"), 8, 0.9, 20_000, SLOW, 0.5),
    "Deep Sea": (
        lambda: gym.make(collapse.ENV, size=collapse.ENV_KWARGS["size"]),
        *(collapse.N_ENVS, 0.5, 24_000, collapse.HYPERPARAMETERS, 0.2),
    ),
}
ROUNDING = 1e-6


class FixedSetPoint(SmoothedPPO):
    """The entropy target's feedback as it was before the set-point was moved."""

    def _move_set_point(self, measures: PolicyMeasures) -> None:
        """Leave it at the target."""


ARMS: dict[str, tuple[type[SmoothedPPO], dict[str, Any]]] = {
    "before": (FixedSetPoint, {}),
    "after": (SmoothedPPO, {}),
    "before, min 0.3": (FixedSetPoint, {"min_entropy_frac": 0.3}),
    "after, min 0.3": (SmoothedPPO, {"min_entropy_frac": 0.3}),
}


def values_of(measures: PolicyMeasures) -> np.ndarray[Any, Any]:
    """Of each state with a choice: H / log n_legal, for a Box H in nats."""
    if measures.fractions is None or measures.has_choice is None:
        return measures.entropies.numpy()
    return measures.fractions[measures.has_choice].numpy()


class EachState(BaseCallback):
    """Counts states below the guarantee, before and after each update, and compares log-probabilities before it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] = {"rollouts": 0, "states": 0, "below": 0, "lowest": 9.0, "network": 9.0, "gap": 0.0}
        self._measure: Callable[[], PolicyMeasures] | None = None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._measure is not None:
            self.count(self._measure)

    def _on_rollout_end(self) -> None:
        self._measure = keep_rollout(self.model, max_states=10**9)
        self.count(self._measure)
        self.found["rollouts"] += 1
        self.found["gap"] = max(self.found["gap"], log_prob_gap(self.model))

    def count(self, measure: Callable[[], PolicyMeasures]) -> None:
        """Count the states of the last rollout, by the policy of now."""
        policy: Any = self.model.policy
        found = self.found
        frac, nats = policy.min_entropy_frac, policy.min_entropy_nats
        over = values_of(measure()) - (frac if nats is None else nats)
        policy.min_entropy_frac = policy.min_entropy_nats = None
        network = values_of(measure())
        policy.min_entropy_frac, policy.min_entropy_nats = frac, nats
        found["states"] += len(over)
        found["below"] += int((over < -ROUNDING).sum())
        found["lowest"] = min(found["lowest"], float(over.min()))
        found["network"] = min(found["network"], float(network.min()))


def log_prob_gap(model: Any) -> float:
    """The largest |log ratio| of a rollout's actions before its first update."""
    policy = model.policy
    policy.set_training_mode(False)
    (data,) = copy.deepcopy(model.rollout_buffer).get(None)
    actions = data.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else data.actions
    more: tuple[Any, ...] = ()
    counts = torch.ones_like(data.old_log_prob, dtype=torch.bool)
    if isinstance(model, SmoothedRecurrentPPO):
        more, counts = (data.lstm_states, data.episode_starts), data.mask > 0.5
    elif isinstance(model, SmoothedMaskablePPO):
        more = (data.action_masks,)
    with torch.no_grad():
        log_prob = policy.evaluate_actions(data.observations, actions, *more)[1]
    return float((log_prob - data.old_log_prob)[counts].abs().max())


class Entropies(BaseCallback):
    """Keeps each rollout's mean entropy / log n and the share of its states below 0.3."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []
        self.below: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        measures = measure_rollout(self.model)
        assert measures.entropy_frac is not None
        self.means.append(round(float(measures.entropy_frac), 5))
        self.below.append(round(float(measures.entropy_below(0.3, is_fraction=True)), 5))


def guarantee_run(settings: dict[str, Any]) -> Result:
    """One run of a kind."""
    algorithm, env, arguments = KINDS[settings["kind"]]
    seed, counted = settings["seed"], EachState()
    policy = "MlpLstmPolicy" if algorithm is SmoothedRecurrentPPO else "MlpPolicy"
    model: OnPolicyAlgorithm = algorithm(policy, make_vec_env(env, 2, seed=seed), seed=seed, device="cpu", **arguments)
    model.learn(settings["rollouts"] * 2 * model.n_steps, callback=counted)
    return counted.found


def target_run(settings: dict[str, Any]) -> Result:
    """One run of an arm."""
    env, n_envs, target, steps, arguments, _ = TARGETS[settings["task"]]
    algorithm, more = ARMS[settings["arm"]]
    seed, seen = settings["seed"], Entropies()
    envs = make_vec_env(env, n_envs, seed=seed)
    model = algorithm("MlpPolicy", envs, target_entropy_frac=target, seed=seed, device="cpu", **arguments, **more)
    model.learn(min(steps, settings["most"]), callback=seen)
    return {"means": seen.means, "below": seen.below}


def work(settings: dict[str, Any]) -> Result:
    """One run of either part."""
    return guarantee_run(settings) if "kind" in settings else target_run(settings)


def late(task: str, values: list[float]) -> np.ndarray[Any, Any]:
    """Those of the rollouts that count."""
    return np.array(values[int(TARGETS[task][5] * len(values)) :])


def guarantee_lines(jobs: list[Job], results: list[Result]) -> list[str]:
    """The first table."""
    lines = [
        "| space or algorithm | rollouts | states measured | below | lowest - bound | lowest of the network | gap |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in KINDS:
        found = [result for job, result in zip(jobs, results, strict=True) if job.settings.get("kind") == kind]
        rollouts, states, below = (sum(run[name] for run in found) for name in ("rollouts", "states", "below"))
        lowest, network = (min(run[name] for run in found) for name in ("lowest", "network"))
        gap = max(run["gap"] for run in found)
        lines.append(f"| {kind} | {rollouts} | {states:,} | {below} | {lowest:.1e} | {network:.4f} | {gap:.1e} |")
    return lines


def target_lines(jobs: list[Job], results: list[Result]) -> list[str]:
    """The second table."""
    lines = [
        "| task | arm | target | mean entropy / log n | off by | rollouts within 10 % | states below 0.3 |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for task, (_, _, target, *_) in TARGETS.items():
        for arm in ARMS:
            wanted = {"task": task, "arm": arm}
            runs = [run for job, run in zip(jobs, results, strict=True) if wanted.items() <= job.settings.items()]
            if not runs:
                continue
            curves = [late(task, run["means"]) for run in runs]
            mean = interquartile_mean_interval([float(curve.mean()) for curve in curves])
            near = interquartile_mean_interval(
                [float(np.mean(np.abs(curve - target) <= 0.1 * target)) for curve in curves]
            )
            below = np.mean([late(task, run["below"]).mean() for run in runs])
            off = f"{100 * (np.mean([curve.mean() for curve in curves]) / target - 1):+.1f} %"
            cells = (task, arm, f"{target}", in_words(mean, ".3f"), off, in_words(near, ".2f"), f"{below:.3f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def jobs_of(*, small: bool) -> list[Job]:
    """The runs of both parts."""
    rollouts, most = (4, 1_024) if small else (40, 10**9)
    jobs = [
        Job(f"{kind.replace(', ', '_')}_{seed}", {"kind": kind, "seed": seed, "rollouts": rollouts})
        for kind in KINDS
        for seed in range(3)
    ]
    for task in TARGETS:
        is_lead = task == "Deep Sea"
        seeds = range(3) if small else range(110, 120) if is_lead else range(10, 15)
        for arm in ARMS if is_lead else ("before", "after"):
            for seed in seeds:
                key = f"{task}_{arm}_{seed}".replace(", ", "_").replace(" ", "_")
                jobs.append(Job(key, {"task": task, "arm": arm, "seed": seed, "most": most}))
    return jobs


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "entropy_guarantee")
    jobs = jobs_of(small=args.small)
    results = run_jobs(jobs, work, folder=runs, workers=args.workers)
    lines = [
        "# A guaranteed entropy, and an entropy target's mean\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        "## No state is below\n",
        *guarantee_lines(jobs, results),
        "\n## The mean is at the target\n",
        "Interquartile means over seeds with 95 % intervals:\n",
        *target_lines(jobs, results),
        "\nReproduce: `make study-entropy-guarantee`.\n",
    ]
    data = {"runs": [{**job.settings, **result} for job, result in zip(jobs, results, strict=True)]}
    write_study(summary, "entropy_guarantee", report="\n".join(lines), data=data)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study entropy-guarantee", Args, main))
