"""The expert of a DAgger run: any policy or function, asked for its action, or the probabilities of all actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import Tensor

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.acting import ActingModel, quick_actor
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.cloning.policy_building import make_head
from rlsmooth.agents.cloning.rounds import RoundsModel
from rlsmooth.agents.files.algorithm_file import load_agent
from rlsmooth.agents.files.algorithm_state import observations_differ
from rlsmooth.agents.heads import CategoricalHead
from rlsmooth.agents.sb3 import is_maskable
from rlsmooth.agents.smoothed.policies import PolicyQueries
from rlsmooth.agents.spaces import check_counts_from_start, check_same_spaces
from rlsmooth.data.actors import Actor, Predictor, checked_action
from rlsmooth.data.arrays import action_dims, action_starts, forward, stack_observations
from rlsmooth.losses import log_probabilities


def legal_actions(
    agent: BC, observations: Any, masks: NDArray[np.bool_] | None, *, deterministic: bool = False
) -> NDArray[Any]:
    """Actions of a batch, as the environment takes them; none that a mask forbids.

    Sampled ones are drawn from torch's global generator.

    Args:
        agent: a clone.
        observations: `[n, ...]`, or a dict of such.
        masks: bool `[n, sum of the dimensions' choices]`, True = legal; None: everything is.
        deterministic: the most probable legal action, else a sampled one.
    """
    if masks is None:
        return agent.predict(observations, deterministic=deterministic)[0]
    if is_maskable(agent.policy):
        return agent.predict(observations, deterministic=deterministic, action_masks=masks)[0]
    picked = []
    with torch.no_grad():
        for probabilities in _probabilities(agent.head, observations, masks):
            flat = probabilities.reshape(-1, probabilities.shape[-1])
            drawn = flat.argmax(dim=-1) if deterministic else torch.multinomial(flat, 1)
            picked.append(drawn.reshape(len(masks), -1))
    start = agent_spaces.action_start(agent.action_space)
    actions: NDArray[Any] = torch.cat(picked, dim=1).cpu().numpy()
    actions = actions.reshape(len(masks), *(agent.action_space.shape or ()))
    return actions if start is None else actions + start


def action_probabilities(
    head: CategoricalHead, observations: Any, masks: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """float32 `[n, K]`: the probability of each action of a Discrete space, 0 where a mask forbids it.

    Args:
        head: of the policy.
        observations: `[n, ...]`, or a dict of such.
        masks: bool `[n, K]`, True = legal; None: everything is.
    """
    with torch.no_grad():
        (probabilities,) = _probabilities(head, observations, masks)
    found: NDArray[np.float32] = probabilities.float().cpu().numpy()
    return found


def _probabilities(
    head: CategoricalHead | Any, observations: Any, masks: NDArray[np.bool_] | None
) -> list[torch.Tensor]:
    """Of each group of components (see `CategoricalHead`)."""
    assert isinstance(head, CategoricalHead)
    policy = head.policy
    policy.set_training_mode(False)
    tensors, _ = policy.obs_to_tensor(observations)
    legal = head.mask_groups(None if masks is None else torch.as_tensor(forward(masks), device=policy.device))
    return [log_probabilities(logits, mask).exp() for logits, mask in zip(head.outputs(tensors), legal, strict=True)]


ExpertLike: TypeAlias = BaseAlgorithm | BasePolicy | ActingModel | Predictor | Callable[..., Any] | str | Path
ExpertTargets: TypeAlias = Literal["actions", "probabilities"]
TOLERANCE = 1e-4
"""How far from 1 probabilities may sum, as in `Demonstrations`."""


class Labels(NamedTuple):
    """The expert's answer to one observation of each environment.

    Attributes:
        actions: one an environment, as demonstrations store them.
        probabilities: float `[n, K]`, or None where only actions are asked for.
    """

    actions: list[NDArray[Any]]
    probabilities: NDArray[Any] | None


class Expert:
    """An expert that was checked, and that is asked the same way whatever it is.

    Args:
        given: an algorithm, a policy, an agent, the path of an agent file, or a function, as `DAgger` takes them.
        env: the environment, whose spaces the expert must share.
        targets: what to ask for.
        deterministic: its most probable action, else a sampled one.
        batched: whether a function gets batches.

    Raises:
        TypeError: `given` is no policy, or provides no probabilities.
        ValueError: spaces that differ, a `VecNormalize` that normalises otherwise than the one that the expert was
            trained in, or probabilities of another space than a Discrete one.
        SafeFileError: the agent file can't be read.
    """

    def __init__(
        self, given: ExpertLike, env: VecEnv, *, targets: ExpertTargets, deterministic: bool, batched: bool
    ) -> None:
        self.origin = given
        self.action_space = env.action_space
        self.targets = targets
        self.deterministic = deterministic
        self.batched = batched
        own_normalizer = unwrap_vec_normalize(env)
        if isinstance(given, (str, Path)):
            # A file's statistics come with an environment; in a VecNormalize they would take the place of its own.
            given = load_agent(given, env=env if own_normalizer is None else own_normalizer.venv)
        if not isinstance(given, Predictor) and not callable(given):
            raise TypeError(
                f"expert must have SB3's predict, be a function or name an agent file, got {type(given).__name__}."
            )
        self.given = given
        policy = given if isinstance(given, BasePolicy) else getattr(given, "policy", None)
        if isinstance(policy, BasePolicy):
            check_counts_from_start("expert", policy)
        seen, done = getattr(given, "observation_space", None), getattr(given, "action_space", None)
        if isinstance(seen, spaces.Space) and isinstance(done, spaces.Space):  # a function has none
            check_same_spaces("expert", (seen, done), (env.observation_space, env.action_space))
        self.clone = given if isinstance(given, BC) else given.bc if isinstance(given, RoundsModel) else None
        # An algorithm that was trained on normalised observations, in an environment whose own are not.
        self.normalizer: VecNormalize | None = None
        if isinstance(given, (BaseAlgorithm, ActingModel)):
            self.normalizer = given.get_vec_normalize_env()
        if self.normalizer is not None and own_normalizer is not None:
            _check_shows_the_same(self.normalizer, own_normalizer)
            self.normalizer = None  # the environment does it
        self.source: CategoricalHead | PolicyQueries | None = None
        if targets == "probabilities":
            if not isinstance(self.action_space, spaces.Discrete):
                raise ValueError(
                    f"expert_targets='probabilities' needs a Discrete action space, this one is {self.action_space!r}: "
                    "use 'actions'."
                )
            self.source = self._source_of_probabilities()
        self.restart(env.num_envs)

    def restart(self, num_envs: int) -> None:
        """Forget recurrent states: every environment begins an episode."""
        self.starts = np.ones(num_envs, dtype=bool)
        if self.clone is None and self.source is None:
            self._actor = Actor(quick_actor(self.given), batched=self.batched, deterministic=self.deterministic)

    def label(
        self, observations: Sequence[Any], masks: NDArray[np.bool_] | None, generator: np.random.Generator
    ) -> Labels:
        """What the expert does, or would do, at one observation of each environment.

        Args:
            observations: one an environment.
            masks: bool `[n, sum of the dimensions' choices]`, True = legal; None: everything is.
            generator: draws the actions where probabilities are asked for and `deterministic` is False.

        Raises:
            ValueError: an action outside the action space or illegal under its mask, malformed probabilities.
        """
        seen = observations
        if self.normalizer is not None:  # elementwise: one observation is normalised as a batch of them
            seen = [self.normalizer.normalize_obs(observation) for observation in observations]
        if self.targets == "probabilities":
            return self._from_probabilities(seen, masks, generator)
        if self.clone is not None:
            chosen = list(legal_actions(self.clone, stack_observations(seen), masks, deterministic=self.deterministic))
        else:
            chosen = list(self._actor(seen, None if masks is None else list(masks), self.starts))
        actions = [checked_action(one, self.action_space, "expert") for one in chosen]
        self._check_legal(actions, masks)
        return Labels(actions, None)

    def _from_probabilities(
        self, seen: Sequence[Any], masks: NDArray[np.bool_] | None, generator: np.random.Generator
    ) -> Labels:
        assert isinstance(self.action_space, spaces.Discrete)
        if isinstance(self.source, CategoricalHead):
            given: Any = action_probabilities(self.source, stack_observations(seen), masks)
        elif self.source is not None:
            given = self._asked_of(self.source, stack_observations(seen), masks)
        else:
            given = np.stack([np.asarray(one) for one in self._actor(seen, None, self.starts)])
        probabilities = self._checked(given, masks)
        if self.deterministic:
            chosen = probabilities.argmax(axis=1)
        else:
            total = probabilities.cumsum(axis=1)
            drawn = generator.random((len(total), 1)) * total[:, -1:]
            chosen = (total <= drawn).sum(axis=1)  # the first whose sum exceeds it: never one of probability 0
        actions = [np.asarray(one, dtype=np.int64) for one in chosen + self.action_space.start]
        return Labels(actions, probabilities)

    @staticmethod
    def _asked_of(policy: PolicyQueries, observations: Any, masks: NDArray[np.bool_] | None) -> NDArray[Any]:
        found = policy.action_probabilities(observations, masks if is_maskable(policy) else None)
        assert isinstance(found, Tensor)
        given: NDArray[Any] = found.detach().cpu().numpy()
        if masks is None or is_maskable(policy):
            return given
        given = np.where(masks, given, 0)
        with np.errstate(invalid="ignore"):  # nothing legal has any probability: NaN, which is refused
            shares: NDArray[Any] = given / given.sum(axis=1, keepdims=True)
        return shares

    def _checked(self, given: NDArray[Any], masks: NDArray[np.bool_] | None) -> NDArray[np.float64]:
        assert isinstance(self.action_space, spaces.Discrete)
        shape = (len(self.starts), int(self.action_space.n))
        if given.shape != shape or given.dtype.kind != "f":
            raise ValueError(
                f"the expert gave an array of shape {given.shape} and dtype {given.dtype}: with "
                f"expert_targets='probabilities' it must be floats of shape {shape}, one probability an action."
            )
        values: NDArray[np.float64] = given.astype(np.float64)
        good = np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1)
        good &= np.abs(values.sum(axis=1) - 1) <= TOLERANCE
        if not good.all():
            number = int(good.argmin())
            raise ValueError(
                f"the expert gave the probabilities {values[number]} in environment {number}: they must be finite and "
                ">= 0 and sum to 1."
            )
        if masks is not None and (values[~masks] > 0).any():
            number = int(((values > 0) & ~masks).any(axis=1).argmax())
            raise ValueError(
                f"the expert gave the probabilities {values[number]} in environment {number}, whose action mask is "
                f"{masks[number]}: an illegal action's must be 0."
            )
        return values

    def _check_legal(self, actions: Sequence[NDArray[Any]], masks: NDArray[np.bool_] | None) -> None:
        """Before the environment is asked to do it."""
        if masks is None:
            return
        dims = action_dims(self.action_space)
        columns = np.stack([action.reshape(-1) for action in actions]).astype(np.int64)
        columns += np.cumsum(dims) - dims - action_starts(self.action_space)
        legal = np.take_along_axis(masks, columns, axis=1).all(axis=1)
        if not legal.all():
            number = int(legal.argmin())
            raise ValueError(
                f"the expert chose {actions[number]} in environment {number}, which its action mask forbids "
                f"({masks[number].tolist()}): give an expert that knows the masks, such as a MaskablePPO."
            )

    def _source_of_probabilities(self) -> CategoricalHead | PolicyQueries | None:
        """What provides the probabilities; None: a function gives them itself."""
        if self.clone is not None:
            assert isinstance(self.clone.head, CategoricalHead)
            return self.clone.head
        policy = self.given if isinstance(self.given, BasePolicy) else getattr(self.given, "policy", None)
        if isinstance(policy, BasePolicy):
            names = {base.__name__ for base in type(policy).__mro__}
            if "RecurrentActorCriticPolicy" in names or not (
                isinstance(policy, ActorCriticPolicy) or is_maskable(policy)
            ):
                raise TypeError(
                    f"expert has the policy {type(policy).__name__}, which does not provide the probabilities of "
                    "its actions at a single observation: use expert_targets='actions'."
                )
            if isinstance(policy, PolicyQueries):  # whose exploration floor counts too
                return policy
            head = make_head(policy, self.action_space, None)
            assert isinstance(head, CategoricalHead)
            return head
        if isinstance(self.given, Predictor):
            raise TypeError(
                f"expert is a {type(self.given).__name__}, whose predict gives actions, no probabilities: use "
                "expert_targets='actions', or a function that returns probabilities."
            )
        return None


def _check_shows_the_same(of_expert: VecNormalize, own: VecNormalize) -> None:
    different = observations_differ(of_expert, own)
    if different:
        raise ValueError(
            "expert was trained on the observations of another VecNormalize than env has, and would misread env's "
            f"({different}): give env the expert's statistics (env.obs_rms = expert.get_vec_normalize_env().obs_rms, "
            "and the same settings), or an env without VecNormalize, whose observations are normalised for the expert."
        )
