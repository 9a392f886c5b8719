"""Agents: cloning with smoothed targets, policies and algorithms that keep exploring, and safe agent files.

The Maskable and Recurrent names need sb3-contrib (`pip install 'rlsmooth[contrib]'`), and are looked up when asked for.
"""

import typing

from rlsmooth.agents.adversarial.airl import AIRL
from rlsmooth.agents.adversarial.gail import GAIL
from rlsmooth.agents.adversarial.reward_envs import LearnedRewardVecEnv
from rlsmooth.agents.adversarial.reward_nets import (
    RewardNet,
    ShapedRewardNet,
    Transitions,
    load_reward_net,
    save_reward_net,
)
from rlsmooth.agents.cloning.advantage import AdvantageWeights
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.cloning.bco import BCO
from rlsmooth.agents.cloning.dagger import DAgger
from rlsmooth.agents.cloning.inverse_dynamics import InverseDynamics
from rlsmooth.agents.cloning.measures import action_layers
from rlsmooth.agents.files.algorithm_file import load_agent, save_agent
from rlsmooth.agents.files.exact_checkpoint import ExactCheckpointCallback, load_checkpoint
from rlsmooth.agents.files.policy_file import AgentFile, load_agent_file, save_agent_file
from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.callback import PolicyEntropyCallback
from rlsmooth.agents.smoothed.entropy import EntropyTerm
from rlsmooth.agents.smoothed.measures import PolicyMeasures, measure_policy, measure_rollout, record_measures
from rlsmooth.agents.smoothed.policies import (
    SmoothedActorCriticCnnPolicy,
    SmoothedActorCriticPolicy,
    SmoothedMultiInputActorCriticPolicy,
    SmoothedPolicy,
)
from rlsmooth.training.divergence import TrainingDivergedError

if typing.TYPE_CHECKING:
    from rlsmooth.agents.smoothed.contrib import (
        SmoothedMaskableActorCriticCnnPolicy,
        SmoothedMaskableActorCriticPolicy,
        SmoothedMaskableMultiInputActorCriticPolicy,
        SmoothedRecurrentActorCriticCnnPolicy,
        SmoothedRecurrentActorCriticPolicy,
        SmoothedRecurrentMultiInputActorCriticPolicy,
    )
    from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO

__all__ = [
    "AIRL",
    "BC",
    "BCO",
    "GAIL",
    "AdvantageWeights",
    "AgentFile",
    "DAgger",
    "EntropyTerm",
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
    "action_layers",
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
            from rlsmooth.agents.smoothed import contrib, contrib_algorithms
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "sb3_contrib":
                raise
            raise ImportError(f"{name} needs sb3-contrib. Install it: pip install 'rlsmooth[contrib]'.") from error
        module = contrib if name.endswith("Policy") else contrib_algorithms
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
