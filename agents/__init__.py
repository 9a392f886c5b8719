"""Agents: cloning with smoothed targets, policies and algorithms that keep exploring, and safe agent files.

The Maskable and Recurrent names need sb3-contrib (`pip install 'rlsmooth[contrib]'`), and are looked up when asked for.
"""

import typing

from rlsmooth.agents.agent_file import AgentFile, load_agent_file, save_agent_file
from rlsmooth.agents.airl import AIRL
from rlsmooth.agents.bc import BC
from rlsmooth.agents.bco import BCO
from rlsmooth.agents.dagger import DAgger
from rlsmooth.agents.entropy_slot import EntropySlot
from rlsmooth.agents.exact_checkpoint import ExactCheckpointCallback, load_checkpoint
from rlsmooth.agents.gail import GAIL
from rlsmooth.agents.inverse_dynamics import InverseDynamics
from rlsmooth.agents.learned_reward import LearnedRewardVecEnv
from rlsmooth.agents.model_file import load_agent, save_agent
from rlsmooth.agents.policy_entropy_callback import PolicyEntropyCallback
from rlsmooth.agents.policy_measures import PolicyMeasures, measure_policy, measure_rollout, record_measures
from rlsmooth.agents.reward_file import load_reward_net, save_reward_net
from rlsmooth.agents.reward_net import RewardNet, ShapedRewardNet, Transitions
from rlsmooth.agents.smoothed_algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed_policies import (
    SmoothedActorCriticCnnPolicy,
    SmoothedActorCriticPolicy,
    SmoothedMultiInputActorCriticPolicy,
)
from rlsmooth.agents.smoothed_policy import SmoothedPolicy
from rlsmooth.training.run import TrainingDivergedError

if typing.TYPE_CHECKING:
    from rlsmooth.agents.smoothed_contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
    from rlsmooth.agents.smoothed_contrib_policies import (
        SmoothedMaskableActorCriticCnnPolicy,
        SmoothedMaskableActorCriticPolicy,
        SmoothedMaskableMultiInputActorCriticPolicy,
        SmoothedRecurrentActorCriticCnnPolicy,
        SmoothedRecurrentActorCriticPolicy,
        SmoothedRecurrentMultiInputActorCriticPolicy,
    )

__all__ = [
    "AIRL",
    "BC",
    "BCO",
    "GAIL",
    "AgentFile",
    "DAgger",
    "EntropySlot",
    "ExactCheckpointCallback",
    "InverseDynamics",
    "LearnedRewardVecEnv",
    "PolicyEntropyCallback",
    "PolicyMeasures",
    "RewardNet",
    "ShapedRewardNet",
    "SmoothedA2C",
    "SmoothedActorCriticCnnPolicy",
    "SmoothedActorCriticPolicy",
    "SmoothedMaskableActorCriticCnnPolicy",
    "SmoothedMaskableActorCriticPolicy",
    "SmoothedMaskableMultiInputActorCriticPolicy",
    "SmoothedMaskablePPO",
    "SmoothedMultiInputActorCriticPolicy",
    "SmoothedPPO",
    "SmoothedPolicy",
    "SmoothedRecurrentActorCriticCnnPolicy",
    "SmoothedRecurrentActorCriticPolicy",
    "SmoothedRecurrentMultiInputActorCriticPolicy",
    "SmoothedRecurrentPPO",
    "TrainingDivergedError",
    "Transitions",
    "load_agent",
    "load_agent_file",
    "load_checkpoint",
    "load_reward_net",
    "measure_policy",
    "measure_rollout",
    "record_measures",
    "save_agent",
    "save_agent_file",
    "save_reward_net",
]


def __getattr__(name: str) -> object:
    """Import what needs sb3-contrib when somebody asks for it."""
    if name in __all__ and name.startswith(("SmoothedMaskable", "SmoothedRecurrent")):
        try:
            from rlsmooth.agents import smoothed_contrib_algorithms, smoothed_contrib_policies
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "sb3_contrib":
                raise
            raise ImportError(f"{name} needs sb3-contrib. Install it: pip install 'rlsmooth[contrib]'.") from error
        module = smoothed_contrib_policies if name.endswith("Policy") else smoothed_contrib_algorithms
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
