"""The experts of the study `bco`: one for each environment, made here and kept as files.

CartPole-v1: the demonstrations that ship with the package. MountainCar-v0: the greedy policy of a value function that
is iterated to its fixed point on a grid, the dynamics being known. Acrobot-v1: full torque to one side or the other, by
the sign of a rule that a cross-entropy search over such rules had found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlsmooth.data import Demonstrations, cartpole_v1, record
from rlsmooth.scripts.run_folder import read_json, write_json

ENVS = ("CartPole-v1", "MountainCar-v0", "Acrobot-v1")
EPISODES = 50
RANDOM_EPISODES = 100
SEED = 100_000
TORQUE = np.array([1.12, -0.66, -1.49, 1.31, -0.84, -0.27, -1.15, -0.37, -0.12, -0.26])
"""Of the sines of both angles, both velocities, the sine of the angles' sum, 1, and velocities times cosines."""
POSITIONS, VELOCITIES = np.linspace(-1.2, 0.6, 181), np.linspace(-0.07, 0.07, 121)
GOAL = 0.5
TIE = 0.05

Floats = NDArray[np.float64]


def make_experts(folder: Path, *, small: bool) -> None:
    """Write what is missing: `<env>.npz` with the expert's episodes, `references.json` with mean returns.

    Args:
        folder: where to.
        small: few episodes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for env in ENVS:
        path = folder / f"{env}.npz"
        if not path.is_file():
            (cartpole_v1() if env == ENVS[0] else _recorded(env, 12 if small else EPISODES)).save(path)
    if (folder / "references.json").is_file():
        return
    found: dict[str, dict[str, float]] = {}
    for env in ENVS:
        space = gym.make(env).action_space
        space.seed(SEED)
        by_chance = record(functools.partial(_sampled, space), env, 4 if small else RANDOM_EPISODES, seed=SEED)
        expert = demonstrations(folder, env).episode_returns()
        found[env] = {"random": float(by_chance.episode_returns().mean()), "expert": float(expert.mean())}
    write_json(folder / "references.json", found)


def demonstrations(folder: Path, env: str) -> Demonstrations:
    """The expert's episodes."""
    return Demonstrations.load(folder / f"{env}.npz")


def references(folder: Path) -> dict[str, dict[str, float]]:
    """Of each environment the mean return of the expert and of uniformly random actions."""
    return read_json(folder / "references.json")


def _recorded(env: str, episodes: int) -> Demonstrations:
    expert: Callable[[Any], int] = MountainCarExpert() if env == "MountainCar-v0" else swing_up
    return record(expert, env, episodes, seed=SEED)


def _sampled(space: gym.Space[Any], _: Any) -> Any:
    return space.sample()


def swing_up(observation: Floats) -> int:
    """Acrobot's action for one observation."""
    cos_1, sin_1, cos_2, sin_2, velocity_1, velocity_2 = (float(part) for part in observation)
    sine_of_sum = sin_1 * cos_2 + cos_1 * sin_2
    products = [velocity * cosine for cosine in (cos_1, cos_2) for velocity in (velocity_1, velocity_2)]
    features = np.array([sin_1, sin_2, velocity_1, velocity_2, sine_of_sum, 1.0, *products])
    return 2 if float(TORQUE @ features) > 0 else 0


class MountainCarExpert:
    """Takes the action whose successor has the highest value: minus the number of steps to the goal.

    Of actions that are as good as each other, to a small part of a step, it takes the one furthest to the right. Close
    to the goal all are: an expert that pushes to the left there, as `argmax` would have it, teaches its clones to turn
    around before they arrive.

    Attributes:
        values: `[181, 121]`, of positions and velocities, linearly interpolated between them.
    """

    def __init__(self, *, tolerance: float = 1e-3) -> None:
        position, velocity = np.meshgrid(POSITIONS, VELOCITIES, indexing="ij")
        successors = [_moved(position, velocity, action) for action in range(3)]
        self.values = np.zeros_like(position)
        gap = np.inf
        while gap > tolerance:
            new = np.max([self._action_value(*successor) for successor in successors], axis=0)
            gap = float(np.abs(new - self.values).max())
            self.values = new

    def __call__(self, observation: Floats) -> int:
        """The action with the highest value; of several equal ones the last."""
        position, velocity = (np.array([float(part)]) for part in observation)
        values = np.array([self._action_value(*_moved(position, velocity, action))[0] for action in range(3)])
        return int(np.flatnonzero(values > values.max() - TIE)[-1])

    def _action_value(self, position: Floats, velocity: Floats) -> Floats:
        """-1 for the step, and the value of where it led, which is 0 at the goal."""
        row = (position - POSITIONS[0]) / (POSITIONS[1] - POSITIONS[0])
        column = (velocity - VELOCITIES[0]) / (VELOCITIES[1] - VELOCITIES[0])
        i = np.clip(row.astype(int), 0, len(POSITIONS) - 2)
        j = np.clip(column.astype(int), 0, len(VELOCITIES) - 2)
        down, right = row - i, column - j
        values = self.values
        upper = (1 - right) * values[i, j] + right * values[i, j + 1]
        lower = (1 - right) * values[i + 1, j] + right * values[i + 1, j + 1]
        return np.where(position >= GOAL, -1.0, -1.0 + (1 - down) * upper + down * lower)


def _moved(position: Floats, velocity: Floats, action: int) -> tuple[Floats, Floats]:
    """MountainCar-v0's dynamics: Gymnasium's `MountainCarEnv.step`."""
    faster = np.clip(velocity + (action - 1) * 0.001 - np.cos(3 * position) * 0.0025, -0.07, 0.07)
    further = np.clip(position + faster, -1.2, 0.6)
    return further, np.where((further <= -1.2) & (faster < 0), 0.0, faster)
