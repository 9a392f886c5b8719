"""A Stable-Baselines3 `VecEnv` over any Gymnasium vector environment.

A vector environment steps all its members in one call, which is where its speed comes from. It restarts ended episodes
in one of three ways, which its `metadata["autoreset_mode"]` names:

- SAME_STEP: within the step that ends the episode, as SB3 does;
- DISABLED: when it is asked to, by `reset(options={"reset_mask": ended})`, which the bridge does within the step;
- NEXT_STEP (Gymnasium's default): in the next step, whose action is ignored. SB3 would learn from that step, which
  leads from a terminal state to a first one and pays nothing, so it is refused. There are forms of CartPole-v1
  (`SameStepCartPole`) and of EnvPool (`EnvPoolVectorEnv`) that restart within the step; the bridge chooses them itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from rlsmooth.checks import check_choice, check_positive_int
from rlsmooth.data.vec_env_adapter import autoreset_mode, final_observation
from rlsmooth.envs.snapshot import Resumable, object_state, set_object_state
from rlsmooth.envs.snapshot_values import CannotSnapshotError

Vectorization = Literal["vector_entry_point", "sync", "async", "envpool"]
SAME_STEP: Any = getattr(gym.vector, "AutoresetMode", lambda name: name)("SameStep")  # Gymnasium 1.0 has no such modes
DISABLED: Any = getattr(gym.vector, "AutoresetMode", lambda name: name)("Disabled")
TRUNCATED = "TimeLimit.truncated"
FINAL = {"final_obs", "_final_obs", "final_info", "_final_info"}
CARTPOLE_START = 0.05  # each number of a first state lies between minus this and this
DRAWN = 32
"""How many first states of a CartPole are drawn at once."""
EnvPoolMake = Callable[[int], Any]


class VectorEnvBridge(VecEnv):
    """A Gymnasium vector environment as SB3's algorithms, wrappers and evaluations take it.

    Steps, rewards, infos, seeds and restarts equal those of SB3's `DummyVecEnv` over the same environments, each in a
    `Monitor`: the info of a step that ends an episode has `terminal_observation` and Monitor's `episode`, and each has
    `TimeLimit.truncated`. `seed(s)` gives environment i the seed `s + i`.

    Attributes and methods (`get_attr`, `set_attr`, `env_method`, and so sb3-contrib's `action_masks`) are those of the
    single environments where there are such (sync, async). A vector environment that has none of its own is asked once:
    of an array with an entry for each environment, each gets its entry, and other values hold for all.

    Args:
        env: a vector environment, or an environment's id (or `module:id`).
        num_envs: how many environments to make of the id.
        vectorization: how to make them. `"vector_entry_point"`: the environment's own vector form; `"sync"`: one after
            the other in this process; `"async"`: each in a process of its own; `"envpool"`: the package EnvPool, by its
            ids. Default: the environment's own form if it has one that can be used, else sync.
        env_kwargs: arguments of the environments.
        wrappers: of each single environment; for sync and async.

    Raises:
        TypeError: `env` is neither a vector environment nor an id, or a number is not whole.
        ValueError: the environment restarts in the next step, can't be made, or has nested spaces; an argument is
            given that belongs to an id alone.

    Examples:
        >>> venv = VectorEnvBridge("CartPole-v1", num_envs=2); _ = venv.seed(0)
        >>> venv.reset().shape
        (2, 4)
        >>> observations, rewards, dones, infos = venv.step(np.array([0, 1]))
        >>> rewards.tolist(), dones.tolist()
        ([1.0, 1.0], [False, False])
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any] | str,
        num_envs: int | None = None,
        *,
        vectorization: Vectorization | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        wrappers: Sequence[Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = (),
    ) -> None:
        if isinstance(env, str):
            count = 1 if num_envs is None else check_positive_int("num_envs", num_envs)
            env = _make(env, count, vectorization, dict(env_kwargs or {}), wrappers)
        elif num_envs is not None or vectorization is not None or env_kwargs or wrappers:
            raise ValueError(
                f"num_envs, vectorization, env_kwargs and wrappers are for an id: {type(env).__name__} is made already."
            )
        self.vector = _restarting_form(env)
        check_for_nested_spaces(self.vector.single_observation_space)
        self._restarts_itself = autoreset_mode(self.vector) == "SameStep"
        self._must_copy = not _gives_new_arrays(self.vector)
        self.t_start = time.time()
        self._returns = np.zeros(self.vector.num_envs)
        self._lengths = np.zeros(self.vector.num_envs, dtype=np.int64)
        self._actions: Any = None
        super().__init__(self.vector.num_envs, self.vector.single_observation_space, self.vector.single_action_space)
        self.metadata = dict(self.vector.metadata)

    @property
    def spec(self) -> EnvSpec | None:
        """How the environments were made, with their id; None where nobody says."""
        base = self.vector.unwrapped
        return base.spec or (base.envs[0].spec if isinstance(base, SyncVectorEnv) else None)

    # ---- episodes

    def reset(self) -> VecEnvObs:
        """Start an episode in every environment."""
        options = self._options[0]
        if any(each != options for each in self._options):
            raise ValueError(f"options differ between environments, {self._options}: give all the same.")
        observations, infos = self.vector.reset(seed=self._seeds[0], options=dict(options) or None)
        self.reset_infos = self._spread(infos)
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0.0, 0
        first: VecEnvObs = self._own(observations)
        return first

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step, and restart the episodes that ended."""
        observations, rewards, terminated, truncated, infos = self.vector.step(self._actions)
        # All of it now: a restart on request may write into the environment's arrays.
        dones, is_cut, paid = terminated | truncated, truncated & ~terminated, np.array(rewards, dtype=np.float32)
        self._returns += rewards
        self._lengths += 1
        found = self._spread(infos) if infos.keys() - FINAL else None
        ended = dones.nonzero()[0]
        finals: Iterable[Any] = ()
        if len(ended):
            observations, finals, found = self._restart(ended, observations, infos, found)
        if found is None:
            rows: list[dict[str, Any]] = [{TRUNCATED: False} for _ in range(self.num_envs)]
        else:
            rows = [{**info, TRUNCATED: False} for info in found]
        if len(ended):
            self._end(rows, ended, finals)
            for place in is_cut.nonzero()[0].tolist():
                rows[place][TRUNCATED] = True
        return self._own(observations), paid, dones, rows

    def _restart(self, ended: NDArray[Any], observations: Any, infos: dict[str, Any], found: Any) -> Any:
        """Begin the next episodes: the observations to act on, the final ones, and the infos of the step."""
        if self._restarts_itself:
            final = infos.get("final_obs")
            if isinstance(final, np.ndarray) and final.dtype != object:
                finals: Any = final[ended]
            else:
                finals = [final_observation(self.vector, infos, place) for place in ended]
            if found is not None or "final_info" in infos:  # where an episode ended, `found` is of the restart
                found, last = found or self._spread({}), self._spread(infos.get("final_info", {}))
                for place in ended:
                    self.reset_infos[place], found[place] = found[place], last[place]
            return observations, finals, found
        finals = [_mapped(lambda values, place=place: np.array(values[place]), observations) for place in ended]
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[ended] = True
        observations, restarted = self.vector.reset(options={"reset_mask": mask})
        first = self._spread(restarted)
        for place in ended:
            self.reset_infos[place] = first[place]
        return observations, finals, found

    def _end(self, rows: list[dict[str, Any]], ended: NDArray[Any], finals: Iterable[Any]) -> None:
        """Complete the infos of the episodes that ended."""
        now = round(time.time() - self.t_start, 6)
        returns, lengths = self._returns[ended].tolist(), self._lengths[ended].tolist()
        for place, final, total, length in zip(ended.tolist(), finals, returns, lengths, strict=True):
            row = rows[place]
            row["terminal_observation"] = final
            if "episode" not in row:  # a Monitor within may have written more
                row["episode"] = {"r": round(total, 6), "l": length, "t": now}
        self._returns[ended], self._lengths[ended] = 0.0, 0

    def _own(self, observations: Any) -> Any:
        """The observations in arrays that the next step does not write to."""
        return _mapped(np.array, observations) if self._must_copy else observations

    def _spread(self, infos: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One info for each environment, of Gymnasium's info for all: arrays, and masks of who has an entry."""
        rows: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for key, value in infos.items():
            if key in FINAL or (key[:1] == "_" and key[1:] in infos):
                continue
            mask = infos.get(f"_{key}")
            places = range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist()
            entries = self._spread(value) if isinstance(value, dict) else self._entries(value)
            for place in places:
                entry = entries[place]
                rows[place][key] = entry.copy() if isinstance(entry, np.ndarray) else entry
        return rows

    def _entries(self, value: Any) -> Sequence[Any]:
        """Each environment's entry of an array that has one for each, else the value for all."""
        is_split = isinstance(value, np.ndarray) and value.shape[:1] == (self.num_envs,)
        entries: Sequence[Any] = value if is_split else [value] * self.num_envs
        return entries

    def close(self) -> None:
        """Close the environments."""
        self.vector.close()

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """An image of each environment; None without the render mode `rgb_array`."""
        images: Any = self.vector.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if images is None else list(images)

    # ---- what the environments have

    def has_attr(self, attr_name: str) -> bool:
        """Whether every environment has an attribute or method of that name."""
        base = self.vector.unwrapped
        if isinstance(base, AsyncVectorEnv):
            return all(base.call("has_wrapper_attr", attr_name))  # to ask for one that is not there ends the processes
        if isinstance(base, SyncVectorEnv):
            return all(env.has_wrapper_attr(attr_name) for env in base.envs)
        return any(hasattr(layer, attr_name) for layer in _layers(self.vector))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each environment; across processes a method is called.

        Raises:
            AttributeError: there is none.
        """
        base = self.vector.unwrapped
        self._check_attr(attr_name)
        if isinstance(base, AsyncVectorEnv):
            values: Sequence[Any] = base.get_attr(attr_name)
        elif isinstance(base, SyncVectorEnv):
            values = [env.get_wrapper_attr(attr_name) for env in base.envs]
        else:
            values = self._entries(getattr(self._holder(attr_name), attr_name))
        return [values[place] for place in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute, where the environment or a wrapper has it.

        Raises:
            AttributeError: there is none.
            ValueError: it is one value for all environments, and not all are to get it.
        """
        self._check_attr(attr_name)
        base, places = self.vector.unwrapped, list(self._get_indices(indices))
        if isinstance(base, SyncVectorEnv):
            for place in places:
                base.envs[place].set_wrapper_attr(attr_name, value)
        elif isinstance(base, AsyncVectorEnv):
            values = [value] * self.num_envs if len(places) == self.num_envs else list(base.get_attr(attr_name))
            for place in places:
                values[place] = value
            base.set_attr(attr_name, values)
        else:
            holder = self._holder(attr_name)
            now = getattr(holder, attr_name)
            if isinstance(now, np.ndarray) and now.shape[:1] == (self.num_envs,):
                now[places] = value
            else:
                self._check_all(attr_name, places)
                setattr(holder, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """What the method of each environment returns.

        Raises:
            AttributeError: there is none of that name.
            ValueError: not all environments are meant, and one call serves all (all kinds but sync); or a vector
                environment's method does not return an entry for each.
        """
        base, places = self.vector.unwrapped, list(self._get_indices(indices))
        self._check_attr(method_name)
        if isinstance(base, SyncVectorEnv):
            return [base.envs[place].get_wrapper_attr(method_name)(*args, **kwargs) for place in places]
        self._check_all(method_name, places)
        if isinstance(base, AsyncVectorEnv):
            return list(base.call(method_name, *args, **kwargs))
        found = getattr(self._holder(method_name), method_name)(*args, **kwargs)
        if found is not None and (not hasattr(found, "__len__") or len(found) != self.num_envs):
            raise ValueError(f"{method_name}() returned {found!r:.80}: it needs an entry for each of {self.num_envs}.")
        return [None] * self.num_envs if found is None else list(found)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Whether each environment is in such a wrapper; in a `Monitor` all are, since the bridge does its work.

        Raises:
            ValueError: the environments are in processes of their own, and not in `rlsmooth.envs.Resumable`.
        """
        base, places = self.vector.unwrapped, list(self._get_indices(indices))
        if issubclass(wrapper_class, Monitor):
            found = [True] * self.num_envs
        elif isinstance(base, SyncVectorEnv):
            found = [is_wrapped(env, wrapper_class) for env in base.envs]
        elif isinstance(base, AsyncVectorEnv):
            self._check_reachable("can't be asked for their wrappers")
            found = list(base.call("is_wrapped", wrapper_class))
        else:
            found = [any(isinstance(layer, wrapper_class) for layer in _layers(self.vector))] * self.num_envs
        return [found[place] for place in places]

    def _holder(self, name: str) -> Any:
        return next(layer for layer in _layers(self.vector) if hasattr(layer, name))

    def _check_attr(self, name: str) -> None:
        if not self.has_attr(name):
            raise AttributeError(f"{self.vector} has no {name!r}.")

    def _check_all(self, name: str, places: list[int]) -> None:
        if places != list(range(self.num_envs)):
            raise ValueError(
                f"indices={places}: {name!r} of {self.vector} is one for all environments: leave indices out, or use "
                "vectorization='sync'."
            )

    def _check_reachable(self, what: str) -> None:
        if not self.has_attr("get_snapshot"):
            raise CannotSnapshotError(
                f"the environments of {self.vector} are in processes of their own and {what}: give the bridge their id "
                "in place of the vector environment, or wrap each in rlsmooth.envs.Resumable."
            )

    # ---- exact checkpoints

    def get_snapshot(self) -> dict[str, Any]:
        """The state of all environments and of their running episodes, as plain data (see `rlsmooth.envs.snapshot`).

        Raises:
            CannotSnapshotError: there is something that can't be kept, such as all of EnvPool.
        """
        base, envs = self.vector.unwrapped, None
        if isinstance(base, AsyncVectorEnv):
            self._check_reachable("can't be kept")
            envs, problems = zip(*base.call("get_snapshot"), strict=True)
            _raise_any(problems)
        return {
            "num_envs": self.num_envs,
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "env": object_state(self.vector, "env", leave=("env_fns",)) if envs is None else list(envs),
        }

    def set_snapshot(self, state: Mapping[str, Any]) -> None:
        """Put back what `get_snapshot` gave.

        Raises:
            CannotSnapshotError: the environments are others, or were vectorised in another way: reset them then.
        """
        if state.get("num_envs") != self.num_envs:
            raise CannotSnapshotError(f"there were {state.get('num_envs')} environments, and are {self.num_envs}")
        base = self.vector.unwrapped
        if isinstance(base, AsyncVectorEnv) != isinstance(state["env"], list):
            raise CannotSnapshotError("the environments were vectorised in another way: use the same vectorization")
        if isinstance(base, AsyncVectorEnv):
            self._check_reachable("can't be put back")
            base.set_attr("kept", state["env"])
            _raise_any(base.call("set_kept"))
        else:
            set_object_state(self.vector, state["env"], "env")
        for name, numbers in (("returns", self._returns), ("lengths", self._lengths)):
            if np.shape(state[name]) != numbers.shape:
                raise CannotSnapshotError(f"the {name} of running episodes have the shape {np.shape(state[name])}.")
            numbers[:] = state[name]


class SameStepCartPole(CartPoleVectorEnv):
    """Gymnasium's vector form of CartPole, restarting within the step, each environment from its own generator.

    Environment i, seeded `seed + i`, equals the single CartPole with that seed, step by step and episode by episode.

    Args:
        env: of `gymnasium.make_vec("CartPole-v1", vectorization_mode="vector_entry_point")`, with what was set in it.

    Examples:
        >>> made = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
        >>> first, _ = SameStepCartPole(made).reset(seed=7)
        >>> bool((first[1] == gym.make("CartPole-v1").reset(seed=8)[0]).all())
        True
    """

    state: Any
    metadata = {**CartPoleVectorEnv.metadata, "autoreset_mode": SAME_STEP}  # noqa: RUF012  as Gymnasium declares it

    def __init__(self, env: CartPoleVectorEnv) -> None:
        super().__init__(env.num_envs)
        vars(self).update(vars(env))
        self.generators: list[np.random.Generator] = []
        self.starts = np.zeros((self.num_envs, DRAWN, 4))  # the next first states, as the generators would draw them
        self.starts_used = np.full(self.num_envs, DRAWN)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Environment i gets the seed `seed + i`, or that of a list; without a seed its generator continues."""
        super().reset(options=options)
        if seed is not None or not self.generators:
            seeds: Any = [seed + place for place in range(self.num_envs)] if isinstance(seed, int) else seed
            self.generators = [seeding.np_random(each)[0] for each in seeds or [None] * self.num_envs]
            self.starts_used[:] = DRAWN
        for place, generator in enumerate(self.generators):
            bits: Any = generator.bit_generator
            bits.advance(-4 * (DRAWN - int(self.starts_used[place])))  # back to before the states that were not used
            self.state[:, place] = generator.uniform(self.low, self.high, size=(4,))
            self._draw(place)
        return self.state.T.astype(np.float32), {}

    def step(self, action: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all, and restart those whose episode ended; `infos["final_obs"]` has what they ended with.

        Raises:
            ValueError: an action is neither 0 nor 1.
        """
        if action.shape != (self.num_envs,) or action.dtype.kind not in "iu" or (action >> 1).any():
            raise ValueError(f"action {action!r:.80} must be {self.num_envs} whole numbers, each 0 or 1.")
        state = self.state = self._moved(action)
        terminated = (np.abs(state[0]) > self.x_threshold) | (np.abs(state[2]) > self.theta_threshold_radians)
        self.steps += 1
        truncated = self.steps >= self.max_episode_steps
        rewards = -terminated.astype(np.float32) if self._sutton_barto_reward else np.ones(self.num_envs, np.float32)
        observations = state.T.astype(np.float32)
        done = terminated | truncated
        ended = done.nonzero()[0]
        if not len(ended):
            return observations, rewards, terminated, truncated, {}
        used = self.starts_used[ended]
        state[:, ended] = self.starts[ended, used].T
        self.starts_used[ended] = used + 1
        for place in ended[used + 1 == DRAWN]:
            self._draw(place)
        self.steps[ended] = 0
        infos = {"final_obs": observations, "_final_obs": done}
        return state.T.astype(np.float32), rewards, terminated, truncated, infos

    def _moved(self, action: NDArray[Any]) -> NDArray[np.float64]:
        """The states one step later: the single CartPole's formulas, operation by operation."""
        assert self.state is not None, "call reset() before step()"
        theta, theta_dot = self.state[2:]
        cosine, sine = np.cos(theta), np.sin(theta)
        force = np.where(action, self.force_mag, -self.force_mag)
        push = (force + self.polemass_length * np.square(theta_dot) * sine) / self.total_mass
        theta_acc = (self.gravity * sine - cosine * push) / (
            self.length * (4.0 / 3.0 - self.masspole * np.square(cosine) / self.total_mass)
        )
        x_acc = push - self.polemass_length * theta_acc * cosine / self.total_mass
        moved: NDArray[np.float64] = np.empty_like(self.state)
        speeds, rates = moved[1::2], np.stack((x_acc, theta_acc))
        np.add(self.state[1::2], self.tau * rates, out=speeds)
        used = self.state[1::2] if self.kinematics_integrator == "euler" else speeds
        np.add(self.state[::2], self.tau * used, out=moved[::2])
        return moved

    def _draw(self, place: int) -> None:
        bound = CARTPOLE_START
        self.starts[place] = self.generators[place].uniform(-bound, bound, size=(DRAWN, 4))
        self.starts_used[place] = 0


class EnvPoolVectorEnv(VectorEnv[Any, Any, Any]):
    """EnvPool's environments, restarted when they are asked to (DISABLED), as EnvPool can reset some of them.

    EnvPool is seeded when it is made, so a seed makes it anew; it takes seeds under 2**31, larger ones by their
    remainder. Environment i does not get the seed `seed + i`. Its state can't be kept in a checkpoint.

    Args:
        env: of `envpool.make_gymnasium(id, num_envs=...)`, or its id.
        num_envs: how many environments to make of the id.
        env_kwargs: arguments of `envpool.make_gymnasium`, for an id.

    Raises:
        ImportError: EnvPool is not installed.
        ValueError: the environments are asynchronous (a batch is smaller than their number), or the id is unknown.
    """

    metadata = {"autoreset_mode": DISABLED, "render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium declares it

    def __init__(self, env: Any, num_envs: int = 1, env_kwargs: Mapping[str, Any] | None = None) -> None:
        self._make: EnvPoolMake | None = None
        if isinstance(env, str):
            try:
                envpool = import_module("envpool")
            except ImportError as error:
                raise ImportError(
                    'vectorization="envpool" needs EnvPool: pip install "rlsmooth[envpool]", which has no wheels for '
                    "Linux on other processors than x86-64."
                ) from error
            name, kwargs = env, {"num_envs": num_envs, **(env_kwargs or {})}
            if name not in envpool.list_all_envs():
                raise ValueError(f"env={name!r} is no environment of EnvPool: envpool.list_all_envs() lists them.")
            self._make = lambda seed: envpool.make_gymnasium(name, seed=seed, **kwargs)
            env = self._make(0)
            self.spec = EnvSpec(name, max_episode_steps=env.config.get("max_episode_steps"))
        if env.is_async:
            raise ValueError("EnvPool returns a part of the environments at each step: give no batch_size.")
        self._pool = env
        self.num_envs = env.config["num_envs"]
        self.render_mode = getattr(env, "render_mode", None)
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Restart all environments, or those of `options["reset_mask"]`; the others' observations stay."""
        mask = (options or {}).get("reset_mask")
        if seed is not None:
            if self._make is None:
                raise ValueError("EnvPool is seeded when it is made: give the bridge its id, or seed=None.")
            self._pool.close()
            self._pool = self._make(seed % 2**31)
        places = np.flatnonzero(np.ones(self.num_envs, np.bool_) if mask is None else mask)
        observations, _ = self._pool.reset(places.astype(np.int32))
        self._last = (
            observations
            if mask is None
            else _mapped(lambda last, first: _with_rows(last, places, first), self._last, observations)
        )
        return self._last, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all; those whose episode has ended must be reset before the next step."""
        self._last, rewards, terminated, truncated, infos = self._pool.step(actions)
        infos = {key: value for key, value in infos.items() if key not in ("env_id", "players")}  # the rows' numbers
        return self._last, rewards, terminated, truncated, infos

    def render(self) -> Any:
        """An image of each environment."""
        return [self._pool.render(env_ids=place)[0] for place in range(self.num_envs)]

    def close_extras(self, **kwargs: Any) -> None:
        """Close the pool."""
        self._pool.close()

    def get_state(self) -> Any:
        """There is none: raise CannotSnapshotError."""
        raise CannotSnapshotError("EnvPool's environments can't be kept: a checkpoint needs another vectorization.")

    def set_state(self, state: Any) -> None:
        """There is none: raise CannotSnapshotError."""
        self.get_state()


# ---- making


def _make(
    name: str, num_envs: int, vectorization: Vectorization | None, env_kwargs: dict[str, Any], wrappers: Sequence[Any]
) -> VectorEnv[Any, Any, Any]:
    if vectorization is not None:
        check_choice("vectorization", vectorization, get_args(Vectorization))
    if wrappers and vectorization not in ("sync", "async"):
        raise ValueError(f"wrappers are for vectorization='sync' or 'async', got {vectorization!r}.")
    if vectorization == "envpool":
        return EnvPoolVectorEnv(name, num_envs, env_kwargs)
    if vectorization is None:
        if ":" in name:
            import_module(name.rpartition(":")[0])
        if gym.spec(name.rpartition(":")[2]).vector_entry_point is not None:
            made = gym.make_vec(name, num_envs, "vector_entry_point", **env_kwargs)
            if type(made) is CartPoleVectorEnv or autoreset_mode(made) != "NextStep":
                return made
            made.close()
        vectorization = "sync"
    if vectorization == "vector_entry_point":
        return gym.make_vec(name, num_envs, vectorization, **env_kwargs)
    if not hasattr(gym.vector, "AutoresetMode"):
        raise ValueError(f"vectorization={vectorization!r} needs gymnasium>=1.1, there is {gym.__version__}.")
    if vectorization == "async":
        wrappers = [*wrappers, Resumable]
    # Not SAME_STEP: Gymnasium then puts infos of steps and of restarts into one array, of the first one's type.
    mode = {"autoreset_mode": DISABLED}
    return gym.make_vec(name, num_envs, vectorization, vector_kwargs=mode, wrappers=wrappers, **env_kwargs)


def _restarting_form(env: Any) -> VectorEnv[Any, Any, Any]:
    """The environment, or its form that restarts within the step.

    Raises:
        TypeError: it is no vector environment.
        ValueError: it restarts in the next step, and there is no other form.
    """
    if any(base.__module__.startswith("envpool.") for base in type(env).__mro__):
        return EnvPoolVectorEnv(env)
    if not isinstance(env, VectorEnv):
        raise TypeError(f"env must be a gymnasium.vector.VectorEnv or an id, got {type(env).__name__}.")
    if type(env) is CartPoleVectorEnv:
        return SameStepCartPole(env)
    if autoreset_mode(env) == "NextStep":
        raise ValueError(
            f"{env} restarts an ended episode in the next step and ignores that step's action: Stable-Baselines3 would "
            "learn from it as if it led from the terminal state to the first one. Make it with "
            "autoreset_mode=AutoresetMode.SAME_STEP, or give the bridge its id and vectorization='sync' or 'async'."
        )
    return env


def _gives_new_arrays(env: VectorEnv[Any, Any, Any]) -> bool:
    """Whether observations are known to lie in arrays of their own at each step."""
    if isinstance(env, (SyncVectorEnv, AsyncVectorEnv)):
        return bool(env.copy)
    return isinstance(env, (SameStepCartPole, EnvPoolVectorEnv))


def _layers(env: Any) -> Iterable[Any]:
    """The wrappers from the outside in, then the vector environment."""
    while isinstance(env, VectorWrapper):
        yield env
        env = env.env
    yield env


def _raise_any(problems: Iterable[str]) -> None:
    for problem in filter(None, problems):
        raise CannotSnapshotError(problem)


# ---- observations of all environments: an array, or dicts or tuples of such


def _mapped(function: Callable[..., Any], batch: Any, *others: Any) -> Any:
    if isinstance(batch, dict):
        return {key: _mapped(function, value, *(other[key] for other in others)) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_mapped(function, *parts) for parts in zip(batch, *others, strict=True))
    return function(batch, *others)


def _with_rows(values: NDArray[Any], places: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    changed = np.array(values)
    changed[places] = rows
    return changed
