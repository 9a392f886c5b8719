"""Study: the results table, each kind of agent in eleven environments.

Fixed before running: settings are those of `scripts/hyperparams` (RL Zoo's, where it has some; each file says so); one
number of steps an environment for every column that learns from rewards, below RL Zoo's where two cores would take too
long; SmoothedPPO and SmoothedA2C with smoothing 0.01, by the numpy engine where it serves the policy; the guarantee is
0.2 of log n, or 0 nats for a Box, and without gSDE, which it excludes. Seeds 0 to 9. A cell is the return of the policy
at the end, the mean of 20 episodes of deterministic actions, on the same episodes in all columns.

BC, DAgger and GAIL imitate the zoo's agent of the environment (`zoo.py`, seed 100). BC: 10 of its episodes, drawn by
the seed, 5,000 batches of 64. DAgger: its defaults, 10,000 steps. GAIL: the same 10 episodes and no rewards, the
generator of the column SmoothedPPO, expert's target 0.9, as many steps as the row has, at most 50,000, and an update of
the discriminator for each 64 of them, at least two a rollout. Smoothing of the cloned actions is 0.1, and 0 for a Box.

With smoothing off, SmoothedPPO's torch engine must be SB3's PPO to the bit: reported is the greatest difference of any
parameter after two rollouts and updates with the same seed. The numpy engine draws other numbers for the same
seed: five rows have it as a column. Changed after a first look: in MiniGrid no agent learned, since rollout buffers of
SB3 2.8 and 2.9 cut normalised observations to whole numbers where the environment's are such. Ours no longer do, and
SB3's PPO is given a buffer of floats; MiniGrid's numbers of steps were then chosen on seed 50. So was that of GAIL's
updates (on Acrobot and Empty-Random), after a first run with its default of then, two a rollout: RL Zoo's rollouts are
long, and on six rows GAIL had learned little or nothing (Acrobot-v1 -431, Pendulum-v1 -971, LunarLander-v3 -819,
Swimmer-v5 -10, MiniGrid 0.09 and 0.00). GAIL's second run, and all of MountainCarContinuous-v0, are of a slower
machine: their CPU seconds compare with each other. GAIL's experts were trained again there, from the same seed: their
returns are lower by 5 on MountainCar-v0, by 11 on Pendulum-v1, and the same within 1 elsewhere.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
import torch
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from rlsmooth.agents import BC, GAIL, DAgger, SmoothedA2C, SmoothedPPO
from rlsmooth.agents.acting import play_episodes
from rlsmooth.agents.sb3 import is_maskable
from rlsmooth.agents.smoothed.numpy_training import why_not_numpy
from rlsmooth.agents.spaces import normalised_space
from rlsmooth.audits import interquartile_mean_band, interquartile_mean_difference, interquartile_mean_interval
from rlsmooth.data import Demonstrations, record
from rlsmooth.scripts.arguments import OnPolicyArgs
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE, save_figure
from rlsmooth.scripts.hyperparameters import Hyperparameters, read_hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.loading import NormalisedAgent, load_to_play
from rlsmooth.scripts.on_policy import evaluation_envs, training_envs
from rlsmooth.scripts.studies import zoo
from rlsmooth.scripts.studies.runner import Args, Job, Result, in_words, results_folder, run_jobs, write_study

STEPS = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 150_000,
    "MountainCar-v0": 200_000,
    "Pendulum-v1": 50_000,
    "MountainCarContinuous-v0": 10_000,
    "LunarLander-v3": 100_000,
    "Swimmer-v5": 60_000,
    "minigrid:MiniGrid-Empty-Random-5x5-v0": 20_000,
    "minigrid:MiniGrid-DoorKey-5x5-v0": 30_000,
    "rlsmooth/IdentityMasked-v0": 10_000,
    "rlsmooth/IdentityMultiDiscrete-v0": 10_000,
}
SB3, OFF, PLAIN = "PPO (SB3)", "SmoothedPPO, off", "SmoothedPPO"
GUARANTEE, A2C = "SmoothedPPO, guarantee", "SmoothedA2C"
OFF_ROWS = ("CartPole-v1", "rlsmooth/IdentityMultiDiscrete-v0", "Acrobot-v1", "MountainCar-v0", "Swimmer-v5")
"""Where SmoothedPPO without smoothing is a column: the numpy engine serves the policy, and runs are short."""
REWARDED = (SB3, OFF, PLAIN, GUARANTEE, A2C)
IMITATING = ("BC", "DAgger", "GAIL")
COLOURS = dict(zip(REWARDED, (GREY, PURPLE, BLUE, GREEN, ORANGE), strict=True))
SMOOTHING = 0.01
GUARANTEED: dict[bool, dict[str, Any]] = {
    False: {"min_entropy_frac": 0.2},
    True: {"min_entropy_nats": 0.0, "use_sde": False, "sde_sample_freq": -1},
}
"""By whether the actions are a Box."""
GAIL_STEPS = 50_000
BC_BATCHES, DAGGER_STEPS, EPISODES = 5_000, 10_000, 10
EVALUATED = 20
POINTS = 25  # of a learning curve


class LearningCurve(BaseCallback):
    """Keeps the mean return of the last 100 episodes of training, at about `POINTS` rollouts.

    Args:
        steps: of the training.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.every = steps / POINTS
        self.steps: list[int] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= self.every * (len(self.steps) + 1) and self.model.ep_info_buffer:
            self.steps.append(self.num_timesteps)
            self.returns.append(round(float(np.mean([episode["r"] for episode in self.model.ep_info_buffer])), 4))


def has_masks(env: str) -> bool:
    """Whether actions are masked there."""
    return "Masked" in env


def settings_of(env: str, algorithm: str, steps: int) -> tuple[type[Any], Hyperparameters, OnPolicyArgs]:
    """The class, the hyperparameters and the options that make environments, by the name of the file of settings."""
    classes: dict[str, Any] = {"ppo": SmoothedPPO, "a2c": SmoothedA2C}
    if algorithm == "maskable-ppo":
        from rlsmooth.agents import SmoothedMaskablePPO

        classes[algorithm] = SmoothedMaskablePPO
    values = read_hyperparameters(algorithm, env) | {"n_timesteps": steps}
    return classes[algorithm], resolve_hyperparameters(values, classes[algorithm]), OnPolicyArgs(env=env)


def stock(algorithm: type[Any]) -> type[Any]:
    """The algorithm of SB3 or sb3-contrib that one of ours is made from."""
    if algorithm is SmoothedPPO:
        return PPO
    from sb3_contrib import MaskablePPO

    return MaskablePPO


def make(column: str, env: str, steps: int, seed: int, **more: Any) -> Any:
    """An algorithm of a column in environments of its own, untrained."""
    kind = "a2c" if column == A2C else "maskable-ppo" if has_masks(env) else "ppo"
    algorithm, hyperparameters, options = settings_of(env, kind, steps)
    envs = training_envs(dataclasses.replace(options, seed=seed), hyperparameters)
    arguments = {"seed": seed, "device": "cpu", **hyperparameters.arguments}
    if column == SB3:
        algorithm = stock(algorithm)
    else:
        arguments["smoothing"] = 0.0 if column == OFF else SMOOTHING
    if column == GUARANTEE:
        arguments |= GUARANTEED[isinstance(envs.action_space, spaces.Box)]
    agent = algorithm(hyperparameters.policy or "MlpPolicy", envs, **arguments | more)
    normalizer = agent.get_vec_normalize_env()
    if column == SB3 and normalizer is not None:
        agent.rollout_buffer.observation_space = normalised_space(envs.observation_space, normalizer)
    if column != SB3 and hasattr(agent, "engine") and why_not_numpy(agent) is None:
        agent.engine = "numpy"
    return agent


def evaluation(env: str, normalizer: VecNormalize | None, seed: int) -> VecEnv:
    """Environments to evaluate in; normalised by what training has gathered, where there is such."""
    _, hyperparameters, options = settings_of(env, "maskable-ppo" if has_masks(env) else "ppo", 1)
    if normalizer is None:
        hyperparameters = dataclasses.replace(hyperparameters, normalize=None)
    envs = evaluation_envs(dataclasses.replace(options, seed=seed, n_eval_envs=10), hyperparameters)
    if isinstance(envs, VecNormalize):
        assert normalizer is not None
        envs.obs_rms, envs.norm_obs = normalizer.obs_rms, normalizer.norm_obs
    return envs


def final_return(agent: Any, env: str, seed: int, episodes: int) -> float:
    """The mean return of deterministic episodes."""
    given = None if isinstance(agent, NormalisedAgent) else agent.get_env()
    envs = evaluation(env, None if given is None else unwrap_vec_normalize(given), seed)
    returns, _ = play_episodes(
        agent,
        envs,
        n_episodes=episodes,
        seed=1_000_000 + 1_000 * seed,
        use_masks=has_masks(env) and is_maskable(agent.policy),
        deterministic=True,
    )
    envs.close()
    return round(float(returns.mean()), 4)


def expert_of(env: str, folder: Path) -> Any:
    """The zoo's agent, which takes observations as the environment gives them."""
    _, hyperparameters, options = settings_of(env, "maskable-ppo" if has_masks(env) else "ppo", 1)
    plain = dataclasses.replace(hyperparameters, normalize=None, n_envs=1)
    agent, _ = load_to_play(folder / zoo.short(env) / "best_agent.zip", training_envs(options, plain), "cpu")
    normalizer = agent.get_vec_normalize_env()
    return agent if normalizer is None else NormalisedAgent(agent, normalizer)


def demonstrate(env: str, folder: Path, seed: int, episodes: int) -> Demonstrations:
    """Episodes of the expert."""
    envs = evaluation(env, None, seed)
    shown = record(expert_of(env, folder), envs, episodes, 1_000 * (seed + 1), action_masks=has_masks(env))
    envs.close()
    return shown


def imitate(column: str, settings: Mapping[str, Any]) -> Any:
    """An agent that has learned from the expert."""
    env, seed, folder = settings["env"], settings["seed"], Path(settings["zoo"])
    plain = evaluation(env, None, seed)
    smoothing = 0.0 if isinstance(plain.action_space, spaces.Box) else 0.1
    common = {"smoothing": smoothing, "engine": "numpy", "seed": seed, "device": "cpu"}
    if column == "DAgger":
        agent: Any = DAgger("MlpPolicy", plain, folder / zoo.short(env) / "best_agent.zip", **common)
        agent.learn(settings["dagger_steps"])
        return agent
    demonstrations = demonstrate(env, folder, seed, settings["demonstrations"])
    if column == "BC":
        agent = BC("MlpPolicy", None, demonstrations, **common)
        return agent.learn(total_batches=settings["batches"])
    generator = make(PLAIN, env, settings["steps"], seed)
    trainer = GAIL(demonstrations, generator, real_target=0.9, seed=seed)
    trainer.learn(settings["steps"])
    return generator


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    column, env, seed = settings["column"], settings["env"], settings["seed"]
    if column == "difference":
        return {"difference": difference(env, seed)}
    start, curves = time.process_time(), {}
    if column == "expert":
        agent = expert_of(env, Path(settings["zoo"]))
    elif column in IMITATING:
        agent = imitate(column, settings)
    else:
        curve = LearningCurve(settings["steps"])
        agent = make(column, env, settings["steps"], seed)
        agent.learn(settings["steps"], callback=curve)
        curves = {"steps": curve.steps, "returns": curve.returns}
    seconds = round(time.process_time() - start, 1)
    return {**curves, "seconds": seconds, "final": final_return(agent, env, seed, settings["episodes"])}


def difference(env: str, seed: int) -> float:
    """The greatest difference of a parameter from SB3's after two rollouts with smoothing off, by the torch engine."""
    made = []
    for column in (OFF, SB3):  # one after the other: SB3 seeds the global generators when an algorithm is made
        agent = make(column, env, 1, seed)
        if column == OFF:
            agent.engine = "torch"
        agent.learn(2 * agent.n_steps * agent.n_envs)
        made.append(agent.policy)
    with torch.no_grad():
        pairs = zip(*(policy.parameters() for policy in made), strict=True)
        return max(float((one - other).abs().max()) for one, other in pairs)


@dataclasses.dataclass(frozen=True)
class BenchmarkArgs(Args):
    """Train the results table, and the experts that it needs: about four hours of one core."""

    envs: tuple[str, ...] = tuple(STEPS)
    """The rows to train."""


def jobs_of(env: str, runs: Path, *, small: bool) -> list[Job]:
    """The runs of one row; no A2C where actions are masked, since it takes no masks."""
    steps = 2_048 if small else STEPS[env]
    common: dict[str, Any] = {"env": env, "episodes": 2 if small else EVALUATED}
    imitation = {
        "zoo": str(runs / "zoo"),
        "demonstrations": 2 if small else EPISODES,
        "batches": 100 if small else BC_BATCHES,
        "dagger_steps": 1_000 if small else DAGGER_STEPS,
    }
    left_out = {A2C: has_masks(env), OFF: env not in OFF_ROWS}
    jobs = [Job(f"{zoo.short(env)}_difference", {**common, "column": "difference", "seed": 0})]
    jobs += [Job(f"{zoo.short(env)}_expert", {**common, **imitation, "column": "expert", "seed": 0})]
    for column in (*(one for one in REWARDED if not left_out.get(one)), *IMITATING):
        own: dict[str, Any] = {"column": column, "steps": steps}
        if column == "GAIL":
            own["steps"] = min(steps, GAIL_STEPS)
        own |= imitation if column in IMITATING else {}
        for seed in range(3 if small else 10):
            name = f"{zoo.short(env)}_{column}_{seed}".replace(" ", "_").replace(",", "")
            jobs.append(Job(name, {**common, **own, "seed": seed}))
    return jobs


def main(args: BenchmarkArgs) -> None:
    """Train what is not there yet, and write the table."""
    unknown = [env for env in args.envs if env not in STEPS]
    if unknown:
        raise ValueError(f"envs={unknown} are no rows of the table: choose among {', '.join(STEPS)}.")
    runs, summary = results_folder(args, "benchmark")
    zoo.train_zoo(args.envs, folder=runs / "zoo", steps=2_048 if args.small else None, workers=args.workers)
    jobs = [job for env in args.envs for job in jobs_of(env, runs, small=args.small)]
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    found: Found = {env: {} for env in args.envs}
    for job, result in zip(jobs, results, strict=True):
        found[job.settings["env"]].setdefault(job.settings["column"], []).append(result)
    lines = report(found)
    data = {"steps": STEPS, "smoothing": SMOOTHING, "gail_steps": GAIL_STEPS, "runs": found}
    write_study(summary, "benchmark", report="\n".join(lines), data=data)
    draw(summary / "benchmark.png", found)
    print("\n".join(lines))


Found: TypeAlias = "dict[str, dict[str, list[Result]]]"
"""Environment, column, runs."""


def scores(found: Found, env: str, column: str) -> list[float]:
    """The returns at the end."""
    return [run["final"] for run in found[env].get(column, [])]


def report(found: Found) -> list[str]:
    """The page."""
    paragraphs = (__doc__ or "").partition("\n\n")[2].strip()
    lines = [
        f"# The results table: {len(found)} environments, eight kinds of agent, ten seeds\n",
        f"{paragraphs}\n",
        "Returns, interquartile means over seeds with 95 % intervals:\n",
        f"| environment | steps | expert | {' | '.join((*IMITATING, *REWARDED))} |",
        "|---|" + "---:|" * (2 + len(IMITATING) + len(REWARDED)),
    ]
    for env in found:
        form = form_of(scores(found, env, "expert"))
        cells = [
            in_words(interquartile_mean_interval(values), form) if values else "not run" if column == OFF else "none"
            for column in (*IMITATING, *REWARDED)
            for values in [scores(found, env, column)]
        ]
        expert = format(scores(found, env, "expert")[0], form)
        lines.append(f"| {zoo.short(env)} | {STEPS[env]:,} | {expert} | {' | '.join(cells)} |")
    return lines + comparison(found) + seconds(found)


def form_of(values: Sequence[float]) -> str:
    """Two decimals for returns of a few units, none for larger ones."""
    return ".2f" if max(abs(value) for value in values) < 20 else ".0f"


def comparison(found: Found) -> list[str]:
    """How far ours are from SB3's PPO."""
    columns = (OFF, PLAIN, GUARANTEE)
    lines = [
        "\nLess PPO (SB3), with the interval of the difference; bold where 0 is outside. Last: the greatest difference "
        "of a parameter from PPO (SB3) after two rollouts with smoothing off, by the torch engine:\n",
        f"| environment | {' | '.join(columns)} | difference |",
        "|---|" + "---:|" * (1 + len(columns)),
    ]
    for env, runs in found.items():
        cells = []
        for column in columns:
            if column not in runs:
                cells.append("not run")
                continue
            gap = interquartile_mean_difference(scores(found, env, column), scores(found, env, SB3))
            words = in_words(gap, form_of(scores(found, env, "expert")).replace(".", "+."))
            cells.append(f"**{words}**" if gap.low > 0 or gap.high < 0 else words)
        lines.append(f"| {zoo.short(env)} | {' | '.join(cells)} | {runs['difference'][0]['difference']:g} |")
    return lines


def seconds(found: Found) -> list[str]:
    """What a run took, by column."""
    columns = (*IMITATING, *REWARDED)
    lines = [
        "\nCPU seconds of a run without its evaluation, medians over seeds, with one thread, beside other work:\n",
        f"| environment | {' | '.join(columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    for env, runs in found.items():
        cells = [
            f"{np.median([run['seconds'] for run in runs[column]]):.1f}" if column in runs else "none"
            for column in columns
        ]
        lines.append(f"| {zoo.short(env)} | {' | '.join(cells)} |")
    return [
        *lines,
        "\nReproduce: `make study-benchmark`; the experts alone: `make zoo`. Learning curves (returns of the sampled "
        "actions of training): [benchmark.png](benchmark.png).\n",
    ]


def draw(path: Path, found: Found) -> None:
    """Learning curves, a panel an environment."""
    with mpl.rc_context(STYLE):
        rows = -(-len(found) // 4)
        figure = Figure(figsize=(17.0, 3.6 * rows), dpi=100, layout="constrained")
        figure.suptitle("Return while training, interquartile mean of ten seeds with 95 % bands; dashed: the expert")
        places = np.atleast_1d(figure.subplots(rows, 4)).ravel()
        for axes, (env, runs) in zip(places, found.items(), strict=False):
            for column in (one for one in REWARDED if one in runs):
                length = min(len(run["returns"]) for run in runs[column])
                if not length:
                    continue
                values = np.asarray([run["returns"][:length] for run in runs[column]], dtype=np.float64)
                band = interquartile_mean_band(values, num_resamples=1_000)
                steps = runs[column][0]["steps"][:length]
                axes.plot(steps, band.estimate, color=COLOURS[column], label=column)
                axes.fill_between(steps, band.low, band.high, color=COLOURS[column], alpha=0.15, linewidth=0)
            axes.axhline(runs["expert"][0]["final"], color="#888888", linestyle="--", linewidth=1)
            axes.set(title=zoo.short(env), xlabel="environment steps")
            axes.locator_params(axis="x", nbins=4)
        for axes in places[len(found) :]:
            axes.axis("off")
        figure.legend(*places[0].get_legend_handles_labels(), loc="lower right", frameon=False)
        save_figure(path, figure)


if __name__ == "__main__":
    sys.exit(run_command("study benchmark", BenchmarkArgs, main))
