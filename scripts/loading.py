"""Load saved agents of every kind to play, and read the distributions of those that SB3 trains off-policy."""

from __future__ import annotations

import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rlsmooth.agents import BC, load_agent, measure_policy
from rlsmooth.agents.acting import quick_actor
from rlsmooth.agents.files.exact_checkpoint import load_checkpointed_agent
from rlsmooth.agents.sb3 import is_maskable
from rlsmooth.agents.smoothed.distributions import MixedCategorical, MixedGaussian
from rlsmooth.agents.smoothed.measures import MEASURED_BYTES, entropy_bound, read_distribution
from rlsmooth.agents.smoothed.policies import initial_lstm_states
from rlsmooth.agents.spaces import box_reference, normalised_space
from rlsmooth.data import Demonstrations
from rlsmooth.scripts.measure import measure
from rlsmooth.untrusted import open_regular, refused

MOST_ROWS = 4096
GAUSSIAN = ("SACPolicy", "TQCPolicy", "CrossQPolicy")
"""By name: sb3-contrib, which has two of them, may be missing."""
MEASURED = ("policy_entropy", "entropy_frac", "entropy_frac_min", "kl_uniform")


def is_agent_file(path: Path) -> bool:
    """Whether it is a zip in our own form, to be checked when it is read; SB3's zips hold pickles."""
    return "config.json" in _members(path)


def _members(path: Path) -> set[str]:
    with refused(path, ValueError), open_regular(path) as file:
        return {*zipfile.ZipFile(file).namelist()} if zipfile.is_zipfile(file) else set()


CONTRIB = {
    "maskable-ppo": "MaskablePPO",
    "qrdqn": "QRDQN",
    "recurrent-ppo": "RecurrentPPO",
    "tqc": "TQC",
    "trpo": "TRPO",
}
"""The algorithms of sb3-contrib (extra `contrib`)."""
OFF_POLICY = ("ddpg", "dqn", "qrdqn", "sac", "td3", "tqc")


def load_sb3(path: Path, algo: str, *, env: VecEnv | None = None, device: str = "auto") -> Any:
    """The agent in a zip that SB3 or sb3-contrib has saved. It is unpickled: code in it runs.

    Args:
        path: of the zip.
        algo: the algorithm, by the name of an option.
        env: to play in.
        device: where the agent runs.

    Raises:
        ValueError: it can't be loaded as one of that algorithm, or sb3-contrib is not installed.
    """
    if algo == "bc":
        raise ValueError(
            f"algo='bc' is none of SB3's, and {str(path)!r} is SB3's zip: name the algorithm that saved it."
        )
    package, name = ("sb3_contrib", CONTRIB[algo]) if algo in CONTRIB else ("stable_baselines3", algo.upper())
    more = {"buffer_size": 1} if algo in OFF_POLICY and env is not None else {}  # nothing is stored in it
    try:
        return getattr(import_module(package), name).load(path, env=env, device=device, **more)
    except ImportError as error:
        raise ValueError(f'algo={algo!r} needs sb3-contrib: pip install "rlsmooth[contrib]".') from error
    except Exception as error:  # unpickling can fail in any way
        raise ValueError(f"trained_agent={str(path)!r} can't be loaded as {algo}: {error}") from error


def _trusted(path: Path, env: VecEnv, device: str, algo: str) -> Any:
    """SB3's agent, and the statistics that RL Zoo saves beside it, in a folder of the environment's name."""
    print(f"{path} is a pickle: code in it runs now, since --trust was given.", flush=True)
    found = [*path.parent.glob("vecnormalize.pkl"), *path.parent.glob("*/vecnormalize.pkl")]
    if len(found) == 1:
        print(f"Observations are normalised by {found[0]}, a pickle too.")
        env = VecNormalize.load(str(found[0]), env)
    return load_sb3(path, algo, env=env, device=device)


def load_to_play(path: Path, env: VecEnv, device: str, *, trust: str | None = None) -> tuple[Any, VecEnv]:
    """The agent of a file, and the environments as it must see them.

    Args:
        path: an agent file of ours, or the folder of a run's checkpoints, whose last one is read then.
        env: with the agent's spaces.
        device: where the agent runs.
        trust: the algorithm of SB3's own zip, which is then unpickled; None: such a zip is refused.

    Returns:
        A `BC` or an algorithm, and `env`, within a `VecNormalize` that neither learns nor touches rewards if the agent
        was trained in one.

    Raises:
        SafeFileError: the file is damaged, or no agent of ours.
        ValueError: spaces that differ, or a zip of SB3's own that nobody trusts.
    """
    is_foreign = path.is_file() and {"data", "policy.pth"} <= _members(path)
    if is_foreign and trust is None:
        raise ValueError(
            f"{str(path)!r} is a zip of Stable-Baselines3's own, a pickle, which can run any code when it is loaded: "
            "if you trust who made it, give --trust, and its algorithm by --algo."
        )
    with warnings.catch_warnings():  # it need not train in as many environments as here
        warnings.filterwarnings("ignore", "You have specified a mini-batch size", UserWarning)
        if path.is_dir():
            agent, step = load_checkpointed_agent(path, env, device=device)
            print(f"The run in {path.parent} has not ended: this is its agent at checkpoint {step:,}.")
        elif is_foreign and trust is not None:
            agent = _trusted(path, env, device, trust)
        else:
            agent = load_agent(path, env=env, device=device)
    normalizer = agent.get_vec_normalize_env()
    if normalizer is None:
        return agent, env
    normalizer.training = normalizer.norm_reward = False
    normalizer.observation_space = normalised_space(normalizer.observation_space, normalizer)
    return agent, normalizer


def measure_on_states(agent: Any, played: Demonstrations) -> dict[str, float]:
    """Mean entropy, its share of the largest possible, and KL(uniform‖policy), nats, on the states of some episodes.

    The lowest state's share too, and where the policy has a guarantee or an entropy target how many are below it.
    An agent with a memory is measured with what it remembers there; the others on at most 4,096 states, fewer
    where observations are large.
    """
    if isinstance(agent, BC):
        found, _ = measure(agent, played)
        return {name: found[name] for name in MEASURED if name in found}
    policy = agent.policy
    policy.set_training_mode(False)
    more: dict[str, Any] = {}
    stride = 1
    if "Recurrent" in type(policy).__name__:
        starts = torch.zeros(len(played), device=policy.device)
        starts[0] = 1.0
        starts[torch.as_tensor(played.episode_ends[:-1], device=policy.device)] = 1.0
        more["episode_starts"] = starts
        more["lstm_states"] = initial_lstm_states(policy, 1)  # one sequence of all transitions
    else:
        observation_bytes = 4 * max(1, spaces.flatdim(played.observation_space))
        stride = -(-len(played) // min(MOST_ROWS, max(1, MEASURED_BYTES // observation_bytes)))
    if is_maskable(policy):
        assert played.action_masks is not None
        more["action_masks"] = torch.as_tensor(played.action_masks[::stride], device=policy.device)
    seen: Any = played.observations
    rows = {key: value[::stride] for key, value in seen.items()} if isinstance(seen, dict) else seen[::stride]
    observations, _ = policy.obs_to_tensor(rows)
    if isinstance(agent, OffPolicyAlgorithm):
        return _measure_off_policy(agent, observations)
    with torch.no_grad():
        measures = measure_policy(policy, observations, **more)
    values = {name: getattr(measures, name) for name in MEASURED}
    bound = entropy_bound(agent)
    if bound is not None:
        values["entropy_below"] = measures.entropy_below(bound[0], is_fraction=bound[1])
    return {name: float(value) for name, value in values.items() if value is not None}


def _measure_off_policy(agent: OffPolicyAlgorithm, observations: Any) -> dict[str, float]:
    """Mean entropy of the distribution of sampled actions, and its share; nothing for an agent like TD3."""
    try:
        acting = off_policy_acting(agent, observations)
    except ValueError:
        return {}
    entropies = acting.mixture_entropy()
    found = {} if entropies is None else {"policy_entropy": float(entropies.mean())}
    if isinstance(acting, MixedCategorical):
        shares = acting.entropy_fractions()[0]
        found |= {"entropy_frac": float(shares.mean()), "entropy_frac_min": float(shares.min())}
    return found


@torch.no_grad()
def off_policy_acting(agent: Any, observations: Any) -> MixedCategorical | MixedGaussian:
    """The distribution that the agent's sampled actions come from, one for each observation.

    Args:
        agent: DQN, QR-DQN (the greedy action, or with the exploration rate in force any), SAC, TQC or CrossQ (a
            Gaussian before it is squashed, of which entropies are).
        observations: tensors, as its policy takes them.

    Raises:
        ValueError: the agent has none, as TD3.
    """
    policy: Any = agent.policy
    if type(policy).__name__ in GAUSSIAN:
        mean, log_std, _ = policy.actor.get_action_dist_params(observations)
        centre, spread = box_reference(agent.action_space)
        return MixedGaussian(centre.to(agent.device), spread.to(agent.device)).proba_distribution(mean, log_std)
    try:
        values = read_distribution(policy, observations, None, None, None)
    except TypeError as error:
        raise ValueError(
            f"a {type(agent).__name__} acts from no distribution, so there are no probabilities to show: play it by "
            "`rlsmooth evaluate`."
        ) from error
    greedy = values.mode()
    outputs = torch.full((len(greedy), agent.action_space.n), -torch.inf, device=agent.device)
    outputs.scatter_(-1, greedy.unsqueeze(-1), 0.0)
    acting = MixedCategorical("discrete", (outputs.shape[-1],), floor=float(agent.exploration_rate))
    return acting.proba_distribution(outputs)


class NormalisedAgent:
    """An agent that was trained on normalised observations, acting on those that an environment shows.

    Args:
        agent: an algorithm.
        normalizer: with the statistics of its training.
    """

    def __init__(self, agent: Any, normalizer: VecNormalize) -> None:
        self.agent = quick_actor(agent)
        self.policy = agent.policy
        self.normalizer = normalizer

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Call the agent's `predict` on normalised observations, with the masks if it takes them."""
        more = {"action_masks": action_masks} if is_maskable(self.policy) else {}
        seen = self.normalizer.normalize_obs(observation)
        actions, state = self.agent.predict(seen, state, episode_start, deterministic, **more)
        return actions, state
