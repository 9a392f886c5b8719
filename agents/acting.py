"""A base for agents that are not algorithms of Stable-Baselines3 but can be called, evaluated and logged like them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import Tensor, nn

from rlsmooth.agents.plain_mlp import predict_plainly
from rlsmooth.agents.sb3 import is_maskable, quick_steps
from rlsmooth.agents.spaces import ActionBins, check_counts_from_start, check_same_spaces, wrap_env
from rlsmooth.checks import check_finite_observations
from rlsmooth.data.arrays import action_dims, forward
from rlsmooth.training import isolated_rng


class ActingModel:
    """An agent with a policy, a logger and perhaps environments. Subclasses set the fields.

    Attributes:
        policy: predicts the actions.
        observation_space: the policy's, images channel-first.
        action_space: the environment's.
        device: where the policy is.
        env: the environment, or None.
        eval_env: the environment of evaluations, or None.
        num_timesteps: how far training is.
        n_envs: the number of environments, 1 without any.
        verbose: 0 or 1.
        bins: decodes the policy's actions where a Box is cut into bins, else None.
        n_eval_episodes: of each evaluation.
        seed: of evaluations too.
    """

    policy: BasePolicy
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    device: torch.device
    env: VecEnv | None
    eval_env: VecEnv | None
    num_timesteps: int
    n_envs: int
    verbose: int
    bins: ActionBins | None
    n_eval_episodes: int
    seed: int
    _logger: Logger | None
    _has_custom_logger: bool

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Actions as the environment takes them, and the state, as SB3's `predict`.

        Args:
            observation: one observation, or a batch of them.
            state: passed through; for recurrent policies.
            episode_start: passed through; for recurrent policies.
            deterministic: the most probable action (a Box: the mean), else a sampled one.
            action_masks: bool, True = legal; only for sb3-contrib's maskable policies.

        Raises:
            ValueError: masks for a policy that takes none, an observation of another shape.
        """
        try:
            return self._predict(observation, state, episode_start, deterministic, action_masks)
        except RuntimeError as error:
            if action_masks is None or "shape" not in str(error):  # that torch can't give the masks
                raise
            raise ValueError(
                f"action_masks has shape {np.shape(action_masks)}, but each observation needs "
                f"{int(action_dims(self.policy.action_space).sum())} Booleans, one for each choice ({error})."
            ) from error

    def _predict(
        self, observation: Any, state: Any, episode_start: Any, deterministic: bool, action_masks: Any
    ) -> tuple[NDArray[Any], Any]:
        policy: Any = self.policy
        found = predict_plainly(policy, observation, action_masks, deterministic=deterministic)
        if found is not None:
            return found if self.bins is None else self.bins.decode(found), state
        parts = observation.items() if isinstance(observation, dict) else None
        observation = forward(observation) if parts is None else {key: forward(part) for key, part in parts}
        if is_maskable(policy):
            actions, state = policy.predict(observation, state, episode_start, deterministic, action_masks=action_masks)
        elif action_masks is not None:
            raise ValueError(
                f"action_masks can't be used by {type(policy).__name__}: train with policy='MaskableMlpPolicy'."
            )
        else:
            actions, state = policy.predict(observation, state, episode_start, deterministic)
        if self.bins is not None:
            return self.bins.decode(actions), state
        return actions, state

    def play(self, *, n_episodes: int, seed: int) -> dict[str, float]:
        """Play episodes deterministically and sampled, in `eval_env` or else the environment.

        Args:
            n_episodes: for each of the two.
            seed: of the environments and of the sampled actions.

        Raises:
            ValueError: there is no environment.
        """
        env = self.env if self.eval_env is None else self.eval_env
        if env is None:
            raise ValueError("there is no environment to evaluate in: give eval_env.")
        use_masks = is_maskable(self.policy) and env.has_attr("action_masks")
        return play(self, env, n_episodes=n_episodes, seed=seed, use_masks=use_masks)

    def evaluate(self) -> dict[str, float]:
        """Run `n_eval_episodes` with deterministic actions and as many with sampled ones, in `eval_env` or else `env`.

        Returns:
            `mean_reward`, `std_reward`, `mean_ep_length`, and the same names with `_sampled` for sampled actions.

        Raises:
            ValueError: there is no environment.
        """
        return self.play(n_episodes=self.n_eval_episodes, seed=self.seed)

    def warm_start(self, model: BaseAlgorithm) -> None:
        """Copy the actor into an SB3 algorithm (PPO, A2C, MaskablePPO), which then starts with this agent's policy.

        The algorithm's critic is still untrained: keep `learning_rate` or `clip_range` small until it is fitted.

        Raises:
            TypeError: `model` is not an SB3 algorithm.
            ValueError: spaces or architectures differ.
        """
        copy_actor(self.policy, model)

    @property
    def logger(self) -> Logger:
        """SB3's logger; before `learn` and without `set_logger` one that writes nowhere."""
        if self._logger is None:
            self._logger = configure(None, [""])
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Log there from now on, whatever `tensorboard_log` and `verbose` are."""
        self._logger = logger
        self._has_custom_logger = True

    def dump_logs(self) -> None:
        """Write the values recorded since the last time."""
        self.logger.dump(self.num_timesteps)

    def get_env(self) -> VecEnv | None:
        """The environment, or that of the evaluations, or None."""
        return self.eval_env if self.env is None else self.env

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Use another environment from now on.

        Args:
            env: with the same spaces.
            force_reset: taken for SB3's sake; no environment is in the middle of an episode here.

        Raises:
            TypeError: it is no environment.
            ValueError: its spaces are not the agent's.
        """
        wrapped = wrap_env("env", env, self.verbose)
        check_same_spaces(
            "env", (wrapped.observation_space, wrapped.action_space), (self.observation_space, self.action_space)
        )
        self.env, self.n_envs = wrapped, wrapped.num_envs

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The `VecNormalize` among the environment's wrappers, or None."""
        env = self.get_env()
        return None if env is None else unwrap_vec_normalize(env)


def play(agent: Any, env: VecEnv, *, n_episodes: int, seed: int, use_masks: bool) -> dict[str, float]:
    """Mean return and length of `n_episodes` episodes, once deterministic and once sampled.

    Both see the same seeds, and every call sees them again, so that two evaluations differ by the policy alone. The
    global random generators are left as they were.

    Args:
        agent: with SB3's `predict`.
        env: vectorised.
        n_episodes: for each of the two.
        seed: of the environments and of the sampled actions.
        use_masks: ask the environment for `action_masks` and pass them to `predict`.

    Returns:
        `mean_reward`, `std_reward` and `mean_ep_length`, and the same with `_sampled`.
    """
    found: dict[str, float] = {}
    for suffix, deterministic in (("", True), ("_sampled", False)):
        returns, lengths = play_episodes(
            agent, env, n_episodes=n_episodes, seed=seed, use_masks=use_masks, deterministic=deterministic
        )
        found[f"mean_reward{suffix}"] = float(np.mean(returns))
        found[f"std_reward{suffix}"] = float(np.std(returns))
        found[f"mean_ep_length{suffix}"] = float(np.mean(lengths))
    return found


def play_episodes(
    agent: Any, env: VecEnv, *, n_episodes: int, seed: int, use_masks: bool, deterministic: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return and length of each of `n_episodes` episodes; seeds and generators as in `play`.

    Args:
        agent: with SB3's `predict`.
        env: vectorised.
        n_episodes: how many.
        seed: of the environments and of the sampled actions.
        use_masks: ask the environment for `action_masks` and pass them to `predict`.
        deterministic: the most probable actions, else sampled ones.

    Raises:
        ValueError: an observation is not finite.
    """
    checked: Any = _CheckedActor(agent)
    with isolated_rng(seed), quick_steps(env):
        env.seed(seed)
        if use_masks:
            from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked

            returns, lengths = evaluate_masked(
                checked, env, n_episodes, deterministic, return_episode_rewards=True, warn=False
            )
        else:
            returns, lengths = evaluate_policy(
                checked, env, n_episodes, deterministic, return_episode_rewards=True, warn=False
            )
    return np.asarray(returns, np.float64), np.asarray(lengths, np.int64)


class QuickActor:
    """The `predict` of an algorithm whose policy is a plain MLP of SB3's own class, in less time: equal actions.

    Args:
        agent: an algorithm with SB3's or sb3-contrib's own `predict`.
    """

    def __init__(self, agent: BaseAlgorithm) -> None:
        self.agent, self.policy = agent, agent.policy
        self.predict = wraps(agent.predict)(partial(self._predict))  # with the parameters that callers ask for

    def _predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False, **masks: Any
    ) -> tuple[Any, Any]:
        found = predict_plainly(self.policy, observation, masks.get("action_masks"), deterministic=deterministic)
        if found is not None:
            return found, state
        return self.agent.predict(observation, state, episode_start, deterministic, **masks)


def quick_actor(agent: Any) -> Any:
    """The agent, or a `QuickActor` where that can take its place.

    Args:
        agent: of any kind.
    """
    predict = getattr(type(agent), "predict", None)
    is_own = predict is BaseAlgorithm.predict or getattr(predict, "__module__", "").startswith("sb3_contrib.")
    return QuickActor(agent) if isinstance(agent, BaseAlgorithm) and is_own and "predict" not in vars(agent) else agent


class _CheckedActor:
    """An agent whose `predict` raises ValueError if the environments' observations are not finite."""

    def __init__(self, agent: Any) -> None:
        self.agent = quick_actor(agent)
        self.steps = 0

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        check_finite_observations(self.steps, observation)
        self.steps += 1
        return self.agent.predict(observation, *args, **kwargs)


CRITIC = ("value_net.", "mlp_extractor.value_net.", "vf_features_extractor.", "lstm_critic.", "critic.")


def copy_actor(policy: BasePolicy, model: BaseAlgorithm) -> None:
    """Copy all of `policy` but its critic, which cloning does not train, into `model.policy`.

    A recurrent policy with a `skip_connection` gets weights of 0 for its actor's LSTM, which itself stays as it is.

    Args:
        policy: the source.
        model: PPO, A2C, sb3-contrib's MaskablePPO, ...; its critic and its optimiser stay as they are.

    Raises:
        TypeError: `model` has no policy.
        ValueError: spaces or architectures differ; the message names what does. The model's actions count from 0 and
            its action space does not.

    Warns:
        UserWarning: `policy` uses action masks, and the model does not.
    """
    if not isinstance(model, BaseAlgorithm):
        raise TypeError(f"model is a {type(model).__name__}: give an algorithm of Stable-Baselines3, such as PPO.")
    check_same_spaces(
        "model", (model.observation_space, model.action_space), (policy.observation_space, policy.action_space)
    )
    check_counts_from_start("model", model.policy)
    if is_maskable(policy) and not is_maskable(model.policy):
        warnings.warn(
            f"model is a {type(model).__name__}, whose {type(model.policy).__name__} can't use the action masks that "
            "the agent acts under: use sb3-contrib's MaskablePPO.",
            UserWarning,
            stacklevel=3,
        )
    ours, theirs = actor_state(policy), actor_state(model.policy)
    lstm = getattr(model.policy, "lstm_actor", None)
    if lstm is not None and getattr(model.policy, "skip_connection", False):
        ours = with_memory(ours, lstm)
    problems = [f"it lacks {name}" for name in ours if name not in theirs]
    problems += [f"it has {name}, which the agent lacks" for name in theirs if name not in ours]
    problems += [
        f"its {name} has shape {tuple(theirs[name].shape)}, the agent's {tuple(ours[name].shape)}"
        for name in ours
        if name in theirs and theirs[name].shape != ours[name].shape
    ]
    if problems:
        raise ValueError(
            f"model's policy has another architecture: {'; '.join(problems[:4])}. "
            "Build it with the policy class and policy_kwargs of the agent."
        )
    # The one difference that no parameter shows, and the easiest to make.
    mine, its = (getattr(one, "activation_fn", None) for one in (policy, model.policy))
    if mine is not its:
        raise ValueError(f"model's policy has activation_fn={its}, the agent's {mine}: build it with the agent's.")
    model.policy.load_state_dict({**model.policy.state_dict(), **ours})


def actor_state(policy: BasePolicy) -> dict[str, Tensor]:
    """The parameters and buffers of a policy without its critic's."""
    return {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith(CRITIC)}


def with_memory(actor: Mapping[str, Tensor], lstm: nn.LSTM) -> dict[str, Tensor]:
    """The state of an actor that reads the output of `lstm` beside its features, and does what `actor` does."""
    first = _first_weight(actor)
    unread = actor[first].new_zeros(len(actor[first]), lstm.hidden_size)
    own = {f"lstm_actor.{name}": tensor for name, tensor in lstm.state_dict().items()}
    return {**actor, **own, first: torch.cat([actor[first], unread], dim=1)}


def without_memory(actor: Mapping[str, Tensor], num_features: int) -> dict[str, Tensor]:
    """The state of the actor that `with_memory` was given, as long as the weights of its LSTM's output are 0."""
    first = _first_weight(actor)
    rest = {name: tensor for name, tensor in actor.items() if not name.startswith("lstm_actor.")}
    return {**rest, first: actor[first][:, :num_features]}


def _first_weight(actor: Mapping[str, Tensor]) -> str:
    hidden = "mlp_extractor.policy_net.0.weight"
    return hidden if hidden in actor else "action_net.weight"
