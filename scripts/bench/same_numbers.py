"""Digest of small seeded runs of every trainer: shows that a change of the code has changed no number.

Each run trains for a second or so on one thread and leaves the SHA-256 of its final parameters, bit for bit, and every
value that it logged. Only public names are used, so that the file runs unchanged before and after code was moved:

    python scripts/bench/same_numbers.py --output before.json        (at the old commit)
    python scripts/bench/same_numbers.py --output after.json         (at the new one, on the same machine)
    python scripts/bench/same_numbers.py --compare before.json after.json

Bits depend on torch's version and on the CPU's instructions: compare only files that one machine wrote.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from rlsmooth import agents, envs
from rlsmooth.data import Demonstrations, ObservationOnly, cartpole_v1, load_labelled, record
from rlsmooth.targets import Smoothing, Tree, ordinal_kernel
from rlsmooth.training import Classifier, GANTrainer, SelfTraining, gan_case

TOLERANCE = 1e-6
"""Two values are equal up to this difference, which is absolute below 1 and relative above."""
DIGITS = 9
"""Significant digits of a value in the file."""
TIMINGS = ("fps", "time_elapsed", "seconds", "samples_per_second", "steps_per_second")
"""Last parts of the tags that depend on the clock."""
SEED = 3
IDENTITY = "rlsmooth/Identity-v0"
MASKED = "rlsmooth/IdentityMasked-v0"
BOX = "rlsmooth/IdentityBox-v0"


@dataclasses.dataclass(frozen=True)
class Args:
    """Record the runs, or compare two recordings."""

    output: Path | None = None
    """File to write; without it only the digests are printed."""
    compare: tuple[Path, Path] | None = None
    """Recordings before and after: train nothing, print a table, and exit with 1 if they differ."""
    only: tuple[str, ...] = ()
    """Names of the runs; empty: all."""


class Log(TensorBoardOutputFormat):
    """Every value that a run logs, in memory.

    It passes for TensorBoard's writer, so that figures and histograms, which only that one gets, come here too. A
    histogram is kept as its mean and standard deviation, of a figure only that there was one.
    """

    def __init__(self) -> None:
        self.tags: dict[str, tuple[list[int], list[float]]] = {}

    @property
    def logger(self) -> Logger:
        """A logger that writes here."""
        return Logger(None, [self])

    def add(self, tag: str, value: Any, step: int) -> None:
        """Keep one value."""
        if tag.rpartition("/")[2] in TIMINGS:
            return
        if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 0:
            numbers = np.asarray(value, np.float64)
            self.add(f"{tag}/mean", numbers.mean(), step)
            self.add(f"{tag}/std", numbers.std(), step)
            return
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = 1.0  # a figure, an image or a text
        steps, values = self.tags.setdefault(tag, ([], []))
        steps.append(int(step))
        values.append(float(f"{number:.{DIGITS}g}"))

    def add_all(self, prefix: str, found: Mapping[str, Any], step: int) -> None:
        """Keep a report: numbers, None, and sequences and mappings of them."""
        for name, value in found.items():
            if isinstance(value, Mapping):
                self.add_all(f"{prefix}/{name}", value, step)
                continue
            for number in value if isinstance(value, (tuple, list)) else (value,):
                self.add(f"{prefix}/{name}", math.nan if number is None else number, step)

    def add_events(self, folder: Path) -> None:
        """Keep what TensorBoard's files in `folder` hold."""
        from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

        for path in sorted({file.parent for file in folder.rglob("events.*")}):
            events = event_accumulator.EventAccumulator(str(path), {"scalars": 0, "histograms": 0, "images": 0})
            events.Reload()
            tags = events.Tags()
            for tag in tags["scalars"]:
                for event in events.Scalars(tag):
                    self.add(tag, event.value, event.step)
            for tag in tags["histograms"]:
                for event in events.Histograms(tag):
                    found = event.histogram_value
                    self.add(f"{tag}/mean", found.sum / found.num, event.step)
                    self.add(f"{tag}/square", found.sum_squares / found.num, event.step)
            for tag in tags["images"]:
                for event in events.Images(tag):
                    self.add(tag, 1.0, event.step)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep one dump of a logger, what other formats leave out included."""
        for tag, value in key_values.items():
            self.add(tag, value, step)

    def close(self) -> None:
        """Nothing is open."""


Run: TypeAlias = Callable[[Log], Sequence[nn.Module]]
"""Trains, logs, and gives the networks whose parameters count."""


def digest(modules: Iterable[nn.Module]) -> str:
    """SHA-256 of all parameters and buffers: shape, type and bits, in their order, without their names."""
    found = hashlib.sha256()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            found.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


# Demonstrations


def expert_of(env: Any, *, episodes: int = 100, noise: float = 0.1) -> Demonstrations:
    """Episodes of an environment's own expert, some of its actions replaced."""
    return record(env.expert_action, env, episodes, seed=SEED).with_action_noise(noise, seed=SEED)


def identity() -> Demonstrations:
    """Discrete actions."""
    return expert_of(envs.IdentityEnv())


def masked() -> Demonstrations:
    """Discrete actions, some of them illegal."""
    return expert_of(envs.IdentityMaskedEnv())


def box() -> Demonstrations:
    """Continuous actions."""
    return expert_of(envs.IdentityBoxEnv())


def balanced() -> Demonstrations:
    """A few episodes of CartPole-v1."""
    return cartpole_v1().sample_episodes(4, seed=SEED)


def balance(observation: Any) -> int:
    """Action of a simple controller of CartPole-v1, one observation at a time."""
    return int(observation[2] + 0.5 * observation[3] + 0.05 * observation[1] > 0)


def with_probabilities() -> Demonstrations:
    """Soft action targets in place of actions."""
    hard = expert_of(envs.IdentityEnv())
    return Demonstrations.from_arrays(
        hard.observations,
        hard.actions,
        observation_space=hard.observation_space,
        action_space=hard.action_space,
        episode_ends=hard.episode_ends,
        action_probs=np.eye(4)[hard.actions] * 0.6 + 0.1,
    )


def states_as_dict() -> Demonstrations:
    """CartPole-v1 with position and angle under names of their own."""
    flat = balanced()
    pair = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    values = np.asarray(flat.observations)
    observations = {"cart": values[:, :2], "pole": values[:, 2:]}
    return Demonstrations.from_arrays(
        observations,
        flat.actions,
        observation_space=spaces.Dict({"cart": pair, "pole": pair}),
        action_space=flat.action_space,
        episode_ends=flat.episode_ends,
        weights=np.linspace(0.5, 1.5, len(flat.actions)),
    )


# One function for each trainer


def bc(
    demonstrations: Callable[[], Demonstrations], policy: str = "MlpPolicy", env: Any = None, **arguments: Any
) -> Run:
    """Behavioural cloning for a few epochs."""

    def run(log: Log) -> Sequence[nn.Module]:
        data = demonstrations()
        agent = agents.BC(policy, env, data, seed=SEED, device="cpu", **arguments)
        agent.set_logger(log.logger)
        agent.learn(total_epochs=6, log_interval=20)
        return [agent.policy]

    return run


def on_policy(
    algorithm: str, policy: Any, env: Any, *, steps: int = 1024, callback: Any = None, **arguments: Any
) -> Run:
    """An on-policy algorithm of ours, or SB3's PPO with our policy or callback, for a few rollouts."""

    def run(log: Log) -> Sequence[nn.Module]:
        made = env if isinstance(env, str) else env()
        cls = PPO if algorithm == "PPO" else getattr(agents, algorithm)
        settings = {"n_steps": 64} if cls is agents.SmoothedA2C else {"n_steps": 128, "batch_size": 64, "n_epochs": 4}
        model = cls(policy, made, seed=SEED, device="cpu", **(settings | arguments))
        model.set_logger(log.logger)
        model.learn(steps, callback=None if callback is None else callback(), log_interval=1)
        return [model.policy]

    return run


def from_bc(log: Log) -> Sequence[nn.Module]:
    """Kickstarting: PPO that starts from a clone and keeps near it."""
    clone = agents.BC("MlpPolicy", None, balanced(), seed=SEED, device="cpu")
    clone.set_logger(log.logger)
    clone.learn(total_batches=50, log_interval=25)
    model = agents.SmoothedPPO.from_bc(
        clone, "CartPole-v1", smoothing="lin_0.5", value_warmup_steps=256, n_steps=128, seed=SEED, device="cpu"
    )
    model.set_logger(log.logger)
    model.learn(1024)
    return [model.policy]


def adversarial(
    kind: str,
    generator: Callable[[], BaseAlgorithm],
    demonstrations: Callable[[], Demonstrations] = balanced,
    **arguments: Any,
) -> Run:
    """GAIL or AIRL on an algorithm of SB3."""

    def run(log: Log) -> Sequence[nn.Module]:
        algorithm = generator()
        algorithm.set_logger(log.logger)
        trainer = getattr(agents, kind)(demonstrations(), algorithm, seed=SEED, demo_batch_size=64, **arguments)
        trainer.learn(512, log_interval=1)
        return [algorithm.policy, trainer.reward_net]

    return run


def ppo() -> BaseAlgorithm:
    """An on-policy generator."""
    return PPO("MlpPolicy", "CartPole-v1", n_steps=128, n_epochs=4, seed=SEED, device="cpu")


def smoothed_ppo() -> BaseAlgorithm:
    """An on-policy generator of ours, in normalised environments."""
    env = VecNormalize(make_vec_env("CartPole-v1", 4, seed=SEED))
    return agents.SmoothedPPO("MlpPolicy", env, n_steps=32, n_epochs=4, smoothing=0.05, seed=SEED, device="cpu")


def masked_ppo() -> BaseAlgorithm:
    """A generator that knows action masks."""
    return agents.SmoothedMaskablePPO("MlpPolicy", MASKED, n_steps=128, n_epochs=4, seed=SEED, device="cpu")


def dqn() -> BaseAlgorithm:
    """A generator with a replay buffer, whose rewards are computed again after each round."""
    return DQN("MlpPolicy", "CartPole-v1", learning_starts=64, buffer_size=2000, seed=SEED, device="cpu")


def sac() -> BaseAlgorithm:
    """The same with continuous actions, and with probabilities of actions, which AIRL needs."""
    arguments: dict[str, Any] = {"learning_starts": 64, "buffer_size": 2000, "train_freq": 4}
    return SAC("MlpPolicy", BOX, policy_kwargs={"net_arch": [32]}, **arguments, seed=SEED, device="cpu")


def dagger(env: Callable[[], Any], expert: Callable[[Any], Any] | None = None, **arguments: Any) -> Run:
    """DAgger for three rounds or so."""

    def run(log: Log) -> Sequence[nn.Module]:
        made = env()
        agent = agents.DAgger(
            "MlpPolicy",
            made,
            made.expert_action if expert is None else expert,
            rollout_round_min_episodes=1,
            rollout_round_min_timesteps=150,
            seed=SEED,
            device="cpu",
            **({"beta_schedule": 2} | arguments),
        )
        agent.set_logger(log.logger)
        agent.learn(600)
        return [agent.policy]

    return run


def bco(env: Any, demonstrations: Callable[[], Demonstrations | ObservationOnly], **arguments: Any) -> Run:
    """Cloning from observation for two rounds."""

    def run(log: Log) -> Sequence[nn.Module]:
        agent = agents.BCO(
            "MlpPolicy",
            env if isinstance(env, str) else env(),
            demonstrations(),
            n_rounds=2,
            transitions_per_round=300,
            n_epochs=2,
            inverse_epochs=5,
            seed=SEED,
            device="cpu",
            **arguments,
        )
        agent.set_logger(log.logger)
        agent.learn()
        assert agent.inverse_dynamics is not None
        return [agent.policy, agent.inverse_dynamics.bc.policy]

    return run


def inverse_dynamics(demonstrations: Callable[[], Demonstrations], **arguments: Any) -> Run:
    """The model of the action between two observations."""

    def run(log: Log) -> Sequence[nn.Module]:
        data = demonstrations()
        model = agents.InverseDynamics(
            data.observation_space, data.action_space, max_epochs=4, seed=SEED, device="cpu", **arguments
        )
        model.fit(data)
        log.add_all("inverse_dynamics", model.metrics, 0)
        return [model.bc.policy]

    return run


def classifier(name: str = "wine", **arguments: Any) -> Run:
    """A classifier on a small data set, with TensorBoard's files."""

    def run(log: Log) -> Sequence[nn.Module]:
        data = load_labelled(name)
        features = np.asarray((data.features - data.features.mean(0)) / data.features.std(0), np.float32)
        with tempfile.TemporaryDirectory() as folder:
            model = Classifier(
                **({"max_epochs": 8, "learning_rate": 0.01} | arguments),
                seed=SEED,
                device="cpu",
                tensorboard_log=folder,
            )
            model.fit(features, data.labels)
            log.add_events(Path(folder))
        return [model.module_]

    return run


def self_training(**arguments: Any) -> Run:
    """Self-training from 20 labels of 178, with the report of each round."""

    def run(log: Log) -> Sequence[nn.Module]:
        data = load_labelled("wine")
        features = np.asarray((data.features - data.features.mean(0)) / data.features.std(0), np.float32)
        labels = np.full(len(data.labels), -1)
        given = np.random.default_rng(SEED).permutation(len(labels))[:20]
        labels[given] = data.labels[given]
        warm = arguments.get("ema_decay") is not None
        student = Classifier(max_epochs=6, learning_rate=0.01, seed=SEED, device="cpu", warm_start=warm)
        model = SelfTraining(student, **({"max_iter": 3} | arguments)).fit(features, labels, true_labels=data.labels)
        for report in model.rounds_:
            log.add_all("rounds", dataclasses.asdict(report), report.round)
        for name, values in model.classifier_.history_.items():
            for epoch, value in enumerate(values):
                log.add(f"student/{name}", value, epoch)
        return [model.classifier_.module_, model.teacher_.module_]

    return run


def gan(name: str, **arguments: Any) -> Run:
    """A GAN on a ready case, with TensorBoard's files."""

    def run(log: Log) -> Sequence[nn.Module]:
        case = gan_case(name, seed=SEED, hidden=(32, 32), width=8)
        with tempfile.TemporaryDirectory() as folder:
            trainer = GANTrainer(
                case.make_generator,
                case.make_discriminator,
                case.data,
                latent_size=case.latent_size,
                evaluate=case.evaluate,
                evaluate_every=50,
                evaluation_samples=500,
                seed=SEED,
                device="cpu",
                tensorboard_log=folder,
                **arguments,
            )
            trainer.train(100, log_every=25, on_log=lambda step, found: log.add_all("on_log", found, step))
            log.add_events(Path(folder))
        averaged = [] if trainer.average is None else [trainer.average]
        return [trainer.generator, trainer.discriminator, *averaged]

    return run


KERNEL = ordinal_kernel(4, "exponential")
FAMILIES = Tree.from_nested({"near": ["0", "1"], "far": ["2", "3"]})

RUNS: dict[str, Run] = {
    # Cloning
    "bc-discrete": bc(balanced, env="CartPole-v1", n_eval_episodes=2, eval_env="CartPole-v1", eval_every=20),
    "bc-hard": bc(balanced, smoothing=0.0, max_grad_norm=0.5, l2_coef=1e-3, gradient_accumulation=2),
    "bc-schedule": bc(balanced, smoothing="lin_0.2", learning_rate="lin_1e-2"),
    "bc-kl": bc(balanced, smoothing=0.0, kl_coef=0.1),
    "bc-validation": bc(balanced, validation_fraction=0.25, early_stopping_patience=2),
    "bc-dict": bc(states_as_dict, "MultiInputPolicy", smoothing=0.1),
    "bc-probabilities": bc(with_probabilities),
    "bc-images": bc(
        lambda: expert_of(envs.IdentityEnv(observation="image"), episodes=5),
        "CnnPolicy",
        policy_kwargs={"net_arch": [8]},
    ),
    "bc-kernel": bc(identity, smoothing=Smoothing(0.2, reference=KERNEL)),
    "bc-tree": bc(identity, smoothing=Smoothing(0.2, reference=FAMILIES)),
    "bc-multidiscrete": bc(lambda: expert_of(envs.IdentityMultiDiscreteEnv()), kl_coef=0.05),
    "bc-multibinary": bc(lambda: expert_of(envs.IdentityMultiBinaryEnv())),
    "bc-masks": bc(masked, kl_coef=0.05),
    "bc-masks-multidiscrete": bc(lambda: expert_of(envs.IdentityMaskedMultiDiscreteEnv())),
    "bc-box": bc(box, kl_coef=0.05, validation_fraction=0.2),
    "bc-box-bins": bc(box, action_bins=7, smoothing=Smoothing(0.2, reference="exponential")),
    # On-policy algorithms
    "ppo-off": on_policy("SmoothedPPO", "MlpPolicy", "CartPole-v1"),
    "ppo-vectorised": on_policy(
        "SmoothedPPO", "MlpPolicy", lambda: make_vec_env("CartPole-v1", 4, seed=SEED), smoothing=0.1, n_steps=32
    ),
    "ppo-number": on_policy("SmoothedPPO", "MlpPolicy", "CartPole-v1", smoothing=0.1, ent_coef=0.01),
    "ppo-schedule": on_policy("SmoothedPPO", "MlpPolicy", "CartPole-v1", smoothing="lin_0.1"),
    "ppo-entropy-target": on_policy("SmoothedPPO", "MlpPolicy", IDENTITY, target_entropy_frac=0.7),
    "ppo-floor": on_policy("SmoothedPPO", "MlpPolicy", "CartPole-v1", smoothing=0.05, exploration_floor="lin_0.2"),
    "ppo-kernel": on_policy("SmoothedPPO", "MlpPolicy", IDENTITY, smoothing=Smoothing(0.1, reference=KERNEL)),
    "ppo-tree": on_policy("SmoothedPPO", "MlpPolicy", IDENTITY, smoothing=Smoothing(0.1, reference=FAMILIES)),
    "ppo-dict": on_policy(
        "SmoothedPPO", "MultiInputPolicy", lambda: envs.IdentityEnv(observation="dict"), smoothing=0.1, steps=512
    ),
    "ppo-multidiscrete": on_policy(
        "SmoothedPPO", "MlpPolicy", "rlsmooth/IdentityMultiDiscrete-v0", smoothing=0.1, exploration_floor=0.1
    ),
    "ppo-multibinary": on_policy(
        "SmoothedPPO", "MlpPolicy", "rlsmooth/IdentityMultiBinary-v0", smoothing=0.1, exploration_floor=0.1
    ),
    "ppo-box": on_policy("SmoothedPPO", "MlpPolicy", BOX, smoothing=0.1),
    "ppo-box-floor": on_policy("SmoothedPPO", "MlpPolicy", BOX, exploration_floor=0.1, smoothing=0.01),
    "ppo-box-target": on_policy("SmoothedPPO", "MlpPolicy", BOX, target_entropy_nats=2.5),
    "ppo-gsde": on_policy("SmoothedPPO", "MlpPolicy", BOX, smoothing=0.1, use_sde=True),
    "ppo-sb3-policy": on_policy(
        "PPO",
        agents.SmoothedActorCriticPolicy,
        "CartPole-v1",
        ent_coef=0.01,
        policy_kwargs={"reference": "uniform", "exploration_floor": 0.05},
    ),
    "ppo-sb3-callback": on_policy(
        "PPO", "MlpPolicy", "CartPole-v1", callback=lambda: agents.PolicyEntropyCallback(measure_freq=128)
    ),
    "ppo-from-bc": from_bc,
    "a2c": on_policy("SmoothedA2C", "MlpPolicy", "CartPole-v1", smoothing=0.1, exploration_floor=0.05),
    "a2c-entropy-target": on_policy("SmoothedA2C", "MlpPolicy", "CartPole-v1", target_entropy_frac=0.9),
    "maskable-ppo": on_policy("SmoothedMaskablePPO", "MlpPolicy", MASKED, smoothing=0.1, exploration_floor=0.05),
    "maskable-ppo-target": on_policy("SmoothedMaskablePPO", "MlpPolicy", MASKED, target_entropy_frac=0.6),
    "maskable-ppo-multidiscrete": on_policy(
        "SmoothedMaskablePPO", "MlpPolicy", "rlsmooth/IdentityMaskedMultiDiscrete-v0", smoothing=0.1
    ),
    "recurrent-ppo-target": on_policy(
        "SmoothedRecurrentPPO",
        "MlpLstmPolicy",
        IDENTITY,
        target_entropy_frac=0.9,
        steps=512,
        policy_kwargs={"lstm_hidden_size": 16},
    ),
    "recurrent-ppo": on_policy(
        "SmoothedRecurrentPPO",
        "MlpLstmPolicy",
        "CartPole-v1",
        smoothing=0.1,
        exploration_floor=0.05,
        steps=512,
        policy_kwargs={"lstm_hidden_size": 16},
    ),
    # Adversarial imitation
    "gail": adversarial("GAIL", ppo, real_target=0.9),
    "gail-as-is": adversarial("GAIL", ppo, terminal_states="as_is", reward_form="log_d"),
    "gail-normalised": adversarial("GAIL", smoothed_ppo, gen_replay_buffer_capacity=512, demo_minibatch_size=32),
    "gail-dqn": adversarial("GAIL", dqn, gen_train_timesteps=256),
    "gail-sac": adversarial("GAIL", sac, box, gen_train_timesteps=256, terminal_states="as_is"),
    "airl": adversarial("AIRL", ppo, real_target=0.9),
    "airl-as-is": adversarial("AIRL", ppo, terminal_states="as_is"),
    "airl-masks": adversarial("AIRL", masked_ppo, masked),
    "airl-sac": adversarial("AIRL", sac, box, gen_train_timesteps=256),
    # Cloning with an environment
    "dagger": dagger(lambda: gym.make("CartPole-v1"), balance, demonstrations=cartpole_v1().sample_episodes(1)),
    "dagger-probabilities": dagger(
        envs.IdentityEnv, lambda state: np.eye(4)[state] * 0.8 + 0.05, expert_targets="probabilities"
    ),
    "dagger-masks": dagger(envs.IdentityMaskedEnv),
    "dagger-box": dagger(envs.IdentityBoxEnv, beta_schedule=0.5),
    "bco": bco("CartPole-v1", balanced, n_eval_episodes=2, eval_env="CartPole-v1"),
    "bco-soft": bco("CartPole-v1", lambda: ObservationOnly.from_demonstrations(balanced()), pseudo_labels="soft"),
    "bco-box": bco(envs.IdentityBoxEnv, box),
    "inverse-dynamics": inverse_dynamics(lambda: cartpole_v1().sample_episodes(10)),
    "inverse-dynamics-box": inverse_dynamics(box, inputs="pair", action_bins=5),
    # Classifiers and pseudo-labels
    "classifier-hard": classifier(smoothing=0.0),
    "classifier": classifier(weight_decay=0.01, max_grad_norm=1.0),
    "classifier-schedule": classifier(smoothing="lin_0.2", learning_rate="lin_1e-2"),
    "classifier-tree": classifier(
        smoothing=Smoothing(0.2, reference=Tree.from_nested({"a": ["class_0", "class_1"], "b": ["class_2"]}))
    ),
    "classifier-validation": classifier(validation_fraction=0.2, early_stopping_patience=2),
    "classifier-mixup": classifier(mixup=0.4),
    "classifier-class-weight": classifier(class_weight="balanced"),
    "self-training-hard": self_training(),
    "self-training-smoothed": self_training(smoothing=0.1, class_balance=True),
    "self-training-soft": self_training(labels="soft", temperature=0.5, criterion="k_best", k_best=40),
    "self-training-adaptive": self_training(smoothing="confidence_adaptive", ema_decay=0.5),
    # GANs
    "gan-ring": gan("ring", real_target=0.9, ema_decay=0.9),
    "gan-grid": gan("grid", real_target="lin_0.9", generator_loss="saturating", discriminator_updates=2),
    "gan-digits": gan("digits", real_target=0.9, max_grad_norm=1.0),
}


def train(name: str) -> dict[str, Any]:
    """Digest and log of one run."""
    set_random_seed(SEED)
    log = Log()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        networks = RUNS[name](log)
    tags = {
        tag: [steps, [value if math.isfinite(value) else str(value) for value in values]]
        for tag, (steps, values) in sorted(log.tags.items())
    }
    return {"parameters": digest(networks), "tags": tags}


# Comparison


def largest_difference(before: Sequence[Any], after: Sequence[Any]) -> float:
    """The largest difference of one tag's values; infinite where they were logged at other steps.

    Args:
        before: `[steps, values]`, with "nan" and "inf" as text.
        after: the same.

    Examples:
        >>> largest_difference([[1, 2], [0.5, 200.0]], [[1, 2], [0.5, 201.0]])
        0.004975124378109453
    """
    if before[0] != after[0]:
        return math.inf
    found = [0.0]
    for old, new in zip(before[1], after[1], strict=True):
        if old == new:
            continue
        if isinstance(old, str) or isinstance(new, str):
            return math.inf
        found.append(abs(old - new) / max(1.0, abs(old), abs(new)))
    return max(found)


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The table of two recordings, and a line for everything that differs."""
    rows, faults = [], []
    for name, old in before["runs"].items():
        new = after["runs"].get(name)
        if new is None:
            rows.append((name, old["parameters"][:12], "missing", "", "", ""))
            faults.append(f"{name}: the run is missing")
            continue
        is_equal = old["parameters"] == new["parameters"]
        if not is_equal:
            faults.append(f"{name}: the parameters differ")
        missing = sorted(old["tags"].keys() - new["tags"].keys())
        faults += [f"{name}: {tag} is missing" for tag in missing]
        shared = [tag for tag in old["tags"] if tag in new["tags"]]
        differences = {tag: largest_difference(old["tags"][tag], new["tags"][tag]) for tag in shared}
        faults += [f"{name}: {tag} differs by {value:.3g}" for tag, value in differences.items() if value > TOLERANCE]
        extra = len(new["tags"].keys() - old["tags"].keys())
        count = f"{len(shared)}" + f", {len(missing)} missing" * bool(missing) + f", {extra} new" * bool(extra)
        largest = max(differences.values(), default=0.0)
        digests = (old["parameters"][:12], new["parameters"][:12])
        rows.append((name, *digests, "yes" if is_equal else "NO", count, f"{largest:.2g}"))
    head = ("run", "digest before", "digest after", "equal bit for bit", "tags", "largest difference of a tag")
    lines = ["| " + " | ".join(head) + " |", "| --- | --- | --- | ---: | ---: | ---: |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines), faults


def report(files: tuple[Path, Path]) -> int:
    """Print how two files differ; 1 if they do."""
    before, after = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    table, faults = compare(before, after)
    print(table)
    if before["environment"] != after["environment"]:
        print(f"\nNot from the same machine: {before['environment']} and {after['environment']}")
    print(f"\n{len(faults)} differences" if faults else "\nno difference", *faults, sep="\n")
    return int(bool(faults))


def main(args: Args) -> int:
    """Record or compare; the exit status."""
    if args.compare is not None:
        return report(args.compare)
    unknown = sorted(set(args.only) - RUNS.keys())
    if unknown:
        raise ValueError(f"no such run: {', '.join(unknown)}. There are {', '.join(RUNS)}.")
    torch.set_num_threads(1)
    print(f"rlsmooth of {Path(agents.__file__).parents[1]}")  # another checkout's, if it is the installed one
    runs = {}
    for name in args.only or RUNS:
        start = time.perf_counter()
        runs[name] = train(name)
        seconds = time.perf_counter() - start
        print(
            f"{name:26} {runs[name]['parameters'][:16]} {len(runs[name]['tags']):4} tags {seconds:6.1f} s", flush=True
        )
    if args.output is not None:
        environment = {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }
        # A line for each run, so that a diff shows which have changed.
        lines = [
            f"{json.dumps(name)}: {json.dumps(run, separators=(',', ':'), allow_nan=False)}"
            for name, run in runs.items()
        ]
        text = f'{{"environment": {json.dumps(environment)},\n"runs": {{\n' + ",\n".join(lines) + "\n}}\n"
        args.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
