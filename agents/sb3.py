"""Stable-Baselines3 and sb3-contrib: the class names and private names of theirs that this package relies on."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_
from typing import Any, TypeAlias

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import nn
from torch.nn.modules import module as torch_modules


def is_maskable(policy: BasePolicy) -> bool:
    """Whether it is one of sb3-contrib's maskable policies, which take `action_masks` in `predict`."""
    return has_base(type(policy), "MaskableActorCriticPolicy")


def has_base(policy_class: type, name: str) -> bool:
    """Whether a class of that name is among the ancestors."""
    # By name: sb3-contrib is an optional extra, which nothing here should import.
    return any(base.__name__ == name for base in policy_class.__mro__)


MASKABLE = ("MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy", "MaskableMultiInputActorCriticPolicy")


RECURRENT = ("RecurrentActorCriticPolicy", "RecurrentActorCriticCnnPolicy", "RecurrentMultiInputActorCriticPolicy")


def recurrent_arguments(policy: BasePolicy) -> dict[str, Any]:
    """The constructor arguments of sb3-contrib's recurrent policies, which their own list leaves out; else `{}`."""
    if not contrib_is_loaded():
        return {}
    base = contrib_policies(RECURRENT[0])[RECURRENT[0]]
    if not isinstance(policy, base):
        return {}
    policy_of_base: Any = policy
    return {
        "lstm_hidden_size": policy_of_base.lstm_hidden_state_shape[2],
        "n_lstm_layers": policy_of_base.lstm_hidden_state_shape[0],
        "shared_lstm": policy_of_base.shared_lstm,
        "enable_critic_lstm": policy_of_base.enable_critic_lstm,
        "lstm_kwargs": policy_of_base.lstm_kwargs,
    }


def contrib_is_loaded() -> bool:
    """Whether the program has imported sb3-contrib."""
    return sys.modules.get("sb3_contrib") is not None


def contrib_policies(name: str) -> dict[str, type[BasePolicy]]:
    """The policies of the module that has the one of that name."""
    # Imported by names that stand here, and only when asked for: sb3-contrib is an optional extra.
    if name in MASKABLE:
        from sb3_contrib.common.maskable import policies as maskable_policies

        return {known: getattr(maskable_policies, known) for known in MASKABLE}
    from sb3_contrib.common.recurrent import policies as recurrent_policies

    return {known: getattr(recurrent_policies, known) for known in RECURRENT}


# ---- private names of Stable-Baselines3, read and written here alone


Callbacks: TypeAlias = BaseCallback | list[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None
"""The `callback=` of SB3's `learn`: one, a list, or a function of the caller's local and global variables."""


def init_callback(agent: Any, callback: Callbacks) -> BaseCallback | None:
    """One callback that is bound to the agent, or None where there is none to call.

    Args:
        agent: an algorithm, or another agent with the attributes that callbacks read.
        callback: as SB3's `learn` takes it.
    """
    if callback is None or callback == []:
        return None
    given = callback if isinstance(callback, list) else [callback]
    return BaseAlgorithm._init_callback(
        agent, [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given]
    )


def wrap_in_vec_env(env: GymEnv, verbose: int) -> VecEnv:
    """The environment in Monitor, DummyVecEnv and VecTransposeImage, as SB3's algorithms wrap theirs."""
    return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper=True)


@contextmanager
def quick_steps(env: VecEnv) -> Iterator[None]:
    """Within it, a DummyVecEnv below `env` copies its observations and infos without `copy.deepcopy`, to the same end.

    Args:
        env: a DummyVecEnv, in any wrappers; another class is left alone.
    """
    base = env.unwrapped
    if type(base) is not DummyVecEnv or DummyVecEnv.step_wait is not _STEP_WAIT or "step_wait" in vars(base):
        yield
        return
    vars(base)["step_wait"] = partial(_quick_step_wait, base)
    try:
        yield
    finally:
        del vars(base)["step_wait"]


def _quick_step_wait(base: DummyVecEnv) -> VecEnvStepReturn:
    """`DummyVecEnv.step_wait`."""
    for place, env in enumerate(base.envs):
        obs, base.buf_rews[place], terminated, truncated, info = env.step(base.actions[place])
        base.buf_infos[place] = info
        base.buf_dones[place] = is_end = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        if is_end:
            info["terminal_observation"] = obs
            obs, base.reset_infos[place] = env.reset()
        base._save_obs(place, obs)
    buffers: dict[Any, Any] = base.buf_obs  # by None, where there is one space
    seen = buffers[None].copy() if None in buffers else base._obs_from_buf()
    return (
        seen,
        base.buf_rews.copy(),
        base.buf_dones.copy(),
        [{key: _copied(one) for key, one in info.items()} for info in base.buf_infos],
    )


_STEP_WAIT = DummyVecEnv.step_wait
_IMMUTABLE = (bool, int, float, str, type(None), np.float32, np.float64, np.int64, np.bool_)


def _copied(value: Any) -> Any:
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    if kind is dict and all(type(one) in _IMMUTABLE for one in value.values()):
        return value.copy()
    return value.copy("K") if kind is np.ndarray and value.dtype != object else copy.deepcopy(value)


def constructor_parameters(policy: BasePolicy) -> dict[str, Any]:
    """The constructor's arguments as the policy itself lists them, `lr_schedule` included."""
    return dict(policy._get_constructor_parameters())


def same_latent_distribution(policy_class: type, base: type) -> bool:
    """Whether both classes make their action distribution from the actor's latent output by the same method."""
    own: Any = policy_class
    other: Any = base
    found: bool = own._get_action_dist_from_latent is other._get_action_dist_from_latent
    return found


def torch_parts(algorithm: BaseAlgorithm) -> tuple[list[str], list[str]]:
    """Names of the modules and optimisers, and of the tensors, that SB3's own `save` would write."""
    return algorithm._get_torch_save_params()


def set_up_model(algorithm: BaseAlgorithm) -> None:
    """Build networks and buffers, which `_init_setup_model=False` put off."""
    algorithm._setup_model()


def total_timesteps(algorithm: BaseAlgorithm) -> int:
    """The number of environment steps at which the present call of `learn` will end."""
    return algorithm._total_timesteps


def forget_last_observation(algorithm: BaseAlgorithm) -> None:
    """Let the next call of `learn` reset the environments."""
    algorithm._last_obs = None


def stats_window_size(algorithm: BaseAlgorithm) -> int:
    """The number of episodes over which SB3 averages returns and lengths."""
    return algorithm._stats_window_size


def lstm_states(algorithm: BaseAlgorithm) -> Any:
    """The states of a recurrent algorithm's LSTMs after the last step; None for any other algorithm."""
    return getattr(algorithm, "_last_lstm_states", None)


def set_lstm_states(algorithm: BaseAlgorithm, states: Any) -> None:
    """Restore `lstm_states`."""
    recurrent: Any = algorithm
    recurrent._last_lstm_states = states


def set_pending_reset(venv: VecEnv, seeds: Any, options: Any) -> None:
    """Set the seeds and options that the next `reset` of the environments will use."""
    venv._seeds, venv._options = seeds, options


def noise_parameters(noise: NormalActionNoise | OrnsteinUhlenbeckActionNoise) -> dict[str, Any]:
    """The arguments `mean`, `sigma`, `dtype`, and of an Ornstein-Uhlenbeck noise `theta` and `dt` as well."""
    found: dict[str, Any] = {"mean": noise._mu, "sigma": noise._sigma, "dtype": noise._dtype}
    if isinstance(noise, OrnsteinUhlenbeckActionNoise):
        found |= {"theta": float(noise._theta), "dt": float(noise._dt)}
    return found


def begin_update(algorithm: OnPolicyAlgorithm, optimizer: torch.optim.Optimizer) -> None:
    """Set the optimiser's learning rate to its value at the present progress, as `train` does."""
    algorithm._update_learning_rate(optimizer)


def progress_remaining(algorithm: BaseAlgorithm) -> float:
    """From 1 at the start of `learn` to 0 at its end."""
    return algorithm._current_progress_remaining


def check_has_env(algorithm: BaseAlgorithm) -> None:
    """Raise ValueError if an algorithm is to learn and has no environment, which SB3 only asserts, without a word."""
    if algorithm.env is None:
        raise ValueError(
            "the model has no environment to learn in: load it with one, such as load_agent(path, env=env), or give it "
            "one by model.set_env(env)."
        )


def count_updates(algorithm: OnPolicyAlgorithm, n_epochs: int) -> int:
    """Count `n_epochs` more passes over a rollout, and give their total."""
    counting: Any = algorithm
    counting._n_updates += n_epochs
    return int(counting._n_updates)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OTHER_HOOKS = (
    *("_backward_hooks", "_post_accumulate_grad_hooks"),
    *("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"),
)


class ModuleWatch:
    """Whether a module is the tree of modules and parameters that it was, without hooks (also of all) and own methods.

    Args:
        module: not changed, and not kept.
        methods: names that no attribute of it may hide.
    """

    def __init__(self, module: nn.Module, methods: frozenset[str]) -> None:
        self._root, self._methods = vars(module), methods
        # torch keeps these dictionaries for as long as the module lives.
        entries: list[tuple[dict[str, Any], str, Any]] = []
        self._hooks: list[dict[int, Any]] = [getattr(torch_modules, f"_global{name}") for name in _HOOKS]
        self._parts: list[dict[str, Any]] = []
        for part in module.modules():
            entries.append((vars(part), "forward", None))
            entries += [(part._modules, name, child) for name, child in part._modules.items()]
            entries += [(part._parameters, name, one) for name, one in part._parameters.items()]
            self._hooks += [vars(part)[name] for name in _HOOKS]
            self._parts += [part._modules, part._parameters]
        self._count = sum(map(len, self._parts))
        self._places, self._names, self._values = (list(column) for column in zip(*entries, strict=True))

    def is_as_before(self) -> bool:
        """Whether it is."""
        if any(self._hooks) or not self._methods.isdisjoint(self._root) or sum(map(len, self._parts)) != self._count:
            return False
        # Called for each prediction, so without a loop in Python.
        return all(map(is_, map(dict.get, self._places, self._names), self._values))


def has_hooks(part: torch.Tensor | torch.optim.Optimizer) -> bool:
    """Whether a parameter or an optimiser has hooks, or the optimiser another `step` than its class."""
    return "step" in vars(part) or any(getattr(part, name, None) for name in _OTHER_HOOKS)


def normalized_observations(buffer: BaseBuffer, observations: Any, env: VecNormalize | None) -> Any:
    """A replay buffer's observations as the policy gets them."""
    return buffer._normalize_obs(observations, env)
