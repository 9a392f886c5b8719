"""Tasks of the exploration study, whose copies are stepped together in numpy: a run takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.envs import DeepSeaEnv

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Task(VecEnv):
    """Copies of an environment; a subclass says how they start, move and look.

    Attributes:
        returns: of all episodes that ended, in their order.
        steps: environment steps so far, of all copies together.
    """

    def __init__(self, copies: int, num_observed: int, num_actions: int) -> None:
        observed = spaces.Box(-1.0, 1.0, (num_observed,), np.float32)
        self.render_mode = None
        super().__init__(copies, observed, spaces.Discrete(num_actions))
        self.returns: list[float] = []
        self.steps = 0
        self._actions = np.zeros(copies, dtype=np.int64)
        self._earned = np.zeros(copies)
        self._random = np.random.default_rng()

    def start(self, which: Flags) -> None:
        """Begin an episode in some copies."""
        raise NotImplementedError

    def move(self, actions: Integers) -> tuple[Floats, Flags, Flags]:
        """Step all copies: rewards, terminated, truncated, `[copies]` each."""
        raise NotImplementedError

    def observe(self) -> NDArray[np.float32]:
        """What all copies show, `[copies, num_observed]`."""
        raise NotImplementedError

    def greedy_score(self, model: Any) -> float:
        """How much of the task the deterministic policy solves, from 0 to 1; the copies stay as they are."""
        raise NotImplementedError

    # ---- as VecEnv wants it

    def reset(self) -> NDArray[np.float32]:
        """Begin an episode in all copies."""
        self._random = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._earned[:] = 0.0
        self.start(np.ones(self.num_envs, dtype=np.bool_))
        return self.observe()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions."""
        self._actions = np.asarray(actions, dtype=np.int64).reshape(-1)

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], Flags, list[dict[str, Any]]]:
        """Step, and begin another episode where one ended."""
        rewards, terminated, truncated = self.move(self._actions)
        self.steps += self.num_envs
        self._earned += rewards
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            last = self.observe()
            for place in np.flatnonzero(dones):
                infos[place] = {
                    "terminal_observation": last[place],
                    "TimeLimit.truncated": bool(truncated[place] and not terminated[place]),
                }
            self.returns += self._earned[dones].tolist()
            self._earned[dones] = 0.0
            self.start(dones)
        return self.observe(), rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same in all copies."""
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not needed here."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """The result of all copies at once, one after the other."""
        return list(getattr(self, method_name)(*args, **kwargs))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """No copy is."""
        return [False] * self.num_envs


class DeepSea(Task):
    """`rlsmooth/DeepSea-v0`. Solved: the deterministic policy finds the treasure."""

    def __init__(self, copies: int, size: int) -> None:
        super().__init__(copies, size * size, 2)
        self.size = size
        self.cost = DeepSeaEnv(size).unscaled_move_cost / size
        self.mapping = DeepSeaEnv(size).action_mapping
        self._row, self._column = np.zeros((2, copies), dtype=np.int64)

    def start(self, which: Flags) -> None:
        """At the top left."""
        self._row[which] = self._column[which] = 0

    def move(self, actions: Integers) -> tuple[Floats, Flags, Flags]:
        """Sink by one row."""
        last = self.size - 1
        goes_right = actions == self.mapping[self._row, self._column]
        rewards = np.where(goes_right & (self._column == last), 1.0, 0.0) - self.cost * goes_right
        self._column = np.clip(self._column + np.where(goes_right, 1, -1), 0, last)
        self._row = self._row + 1
        is_over = self._row > last
        return rewards, is_over, np.zeros_like(is_over)

    def observe(self) -> NDArray[np.float32]:
        """One-hot codes of the cells, zeros after the last row."""
        shown = np.zeros((self.num_envs, self.size * self.size), dtype=np.float32)
        inside = np.flatnonzero(self._row < self.size)
        shown[inside, self._row[inside] * self.size + self._column[inside]] = 1.0
        return shown

    def greedy_score(self, model: Any) -> float:
        """Whether the deterministic policy goes right on all of the diagonal."""
        diagonal = np.arange(self.size) * (self.size + 1)
        actions, _ = model.predict(np.eye(self.size**2, dtype=np.float32)[diagonal], deterministic=True)
        return float((actions == np.diagonal(self.mapping)).all())


class MountainCar(Task):
    """`MountainCar-v0` with observations scaled to [-1, 1].

    Solved: the deterministic policy reaches the flag from 18 of 20 places within the 200 steps.
    """

    LOW, HIGH, FASTEST, LIMIT = -1.2, 0.6, 0.07, 200

    def __init__(self, copies: int) -> None:
        super().__init__(copies, 2, 3)
        self.position, self.velocity = np.zeros((2, copies))
        self._time = np.zeros(copies, dtype=np.int64)

    def start(self, which: Flags) -> None:
        """At rest, in the valley."""
        self.position[which] = self._random.uniform(-0.6, -0.4, int(which.sum()))
        self.velocity[which] = 0.0
        self._time[which] = 0

    def move(self, actions: Integers) -> tuple[Floats, Flags, Flags]:
        """Accelerate to the left, not at all or to the right."""
        velocity = self.velocity + (actions - 1) * 0.001 - np.cos(3 * self.position) * 0.0025
        velocity = np.clip(velocity, -self.FASTEST, self.FASTEST)
        self.position = np.clip(self.position + velocity, self.LOW, self.HIGH)
        self.velocity = np.where((self.position == self.LOW) & (velocity < 0), 0.0, velocity)
        self._time = self._time + 1
        arrived = (self.position >= 0.5) & (self.velocity >= 0)
        return np.full(self.num_envs, -1.0), arrived, self._time >= self.LIMIT

    def observe(self) -> NDArray[np.float32]:
        """Position and velocity, scaled."""
        middle, half = (self.HIGH + self.LOW) / 2, (self.HIGH - self.LOW) / 2
        return np.stack([(self.position - middle) / half, self.velocity / self.FASTEST], 1).astype(np.float32)

    def greedy_score(self, model: Any) -> float:
        """The share of 20 starting places from which the flag is reached."""
        cars = MountainCar(20)
        cars.position = np.linspace(-0.6, -0.4, 20)
        arrived = np.zeros(20, dtype=np.bool_)
        for _ in range(self.LIMIT):
            actions, _ = model.predict(cars.observe(), deterministic=True)
            arrived |= cars.move(actions)[1]
        return float(arrived.mean())


class Ladder(Task):
    """A ladder of rungs with 64 actions, of which other ones are legal on each rung of each of two ladders.

    One legal action leads up, from the last rung to a reward of 1. Another one ends the episode and pays a little,
    more the higher the rung is; any other legal action ends it and pays nothing.

    Solved: the deterministic policy climbs both ladders.
    """

    ACTIONS, LADDERS = 64, 2

    def __init__(self, copies: int, consolation: Sequence[float], fewest: int = 8) -> None:
        self.rungs = len(consolation)
        super().__init__(copies, self.LADDERS * self.rungs, self.ACTIONS)
        self.consolation = np.array(consolation)
        random = np.random.default_rng(0)  # the same ladders in all runs
        shape = (self.LADDERS, self.rungs)
        ranks = random.permuted(np.broadcast_to(np.arange(self.ACTIONS), (*shape, self.ACTIONS)), axis=-1)
        self.legal = ranks < random.integers(fewest, self.ACTIONS + 1, (*shape, 1))
        self.up, self.out = (ranks == 0).argmax(-1), (ranks == 1).argmax(-1)
        self._ladder, self._rung = np.zeros((2, copies), dtype=np.int64)

    def start(self, which: Flags) -> None:
        """On the lowest rung of a ladder that is drawn."""
        self._ladder[which] = self._random.integers(self.LADDERS, size=int(which.sum()))
        self._rung[which] = 0

    def action_masks(self) -> Flags:
        """The legal actions, `[copies, 64]`."""
        return self.legal[self._ladder, np.minimum(self._rung, self.rungs - 1)]

    def move(self, actions: Integers) -> tuple[Floats, Flags, Flags]:
        """Climb, or fall."""
        here = self._ladder, self._rung
        assert self.legal[(*here, actions)].all()
        climbs, leaves = actions == self.up[here], actions == self.out[here]
        rewards = np.where(leaves, self.consolation[self._rung], 0.0)
        self._rung = self._rung + climbs
        is_top = self._rung == self.rungs
        return rewards + is_top, is_top | ~climbs, np.zeros_like(is_top)

    def observe(self) -> NDArray[np.float32]:
        """One-hot codes of ladder and rung, zeros at the top."""
        shown = np.zeros((self.num_envs, self.LADDERS * self.rungs), dtype=np.float32)
        inside = np.flatnonzero(self._rung < self.rungs)
        shown[inside, self._ladder[inside] * self.rungs + self._rung[inside]] = 1.0
        return shown

    def greedy_score(self, model: Any) -> float:
        """The share of ladders that the deterministic policy climbs."""
        codes = np.eye(self.LADDERS * self.rungs, dtype=np.float32)
        actions, _ = model.predict(codes, action_masks=self.legal.reshape(-1, self.ACTIONS), deterministic=True)
        return float((actions.reshape(self.up.shape) == self.up).all(-1).mean())


class Moved(Task):
    """Eight contexts and sixteen actions; one action pays 1 in each context, another one from half time on.

    An episode is a step.

    Solved: since half time, the deterministic policy takes the right action in all contexts.
    """

    CONTEXTS, ACTIONS = 8, 16

    def __init__(self, copies: int, half_time: int) -> None:
        super().__init__(copies, self.CONTEXTS, self.ACTIONS)
        self.half_time = half_time
        random = np.random.default_rng(0)
        self.before = random.permutation(self.ACTIONS)[: self.CONTEXTS]
        self.after = (self.before + random.integers(1, self.ACTIONS, self.CONTEXTS)) % self.ACTIONS
        self._context = np.zeros(copies, dtype=np.int64)

    def start(self, which: Flags) -> None:
        """In a context that is drawn."""
        self._context[which] = self._random.integers(self.CONTEXTS, size=int(which.sum()))

    @property
    def right(self) -> Integers:
        """The actions that pay now, `[8]`."""
        return self.before if self.steps < self.half_time else self.after

    def move(self, actions: Integers) -> tuple[Floats, Flags, Flags]:
        """Pay."""
        is_over = np.ones(self.num_envs, dtype=np.bool_)
        return np.where(actions == self.right[self._context], 1.0, 0.0), is_over, ~is_over

    def observe(self) -> NDArray[np.float32]:
        """One-hot codes of the contexts."""
        return np.eye(self.CONTEXTS, dtype=np.float32)[self._context]

    def greedy_score(self, model: Any) -> float:
        """The share of contexts in which the deterministic policy is right."""
        actions, _ = model.predict(np.eye(self.CONTEXTS, dtype=np.float32), deterministic=True)
        return float((actions == self.right).mean())
