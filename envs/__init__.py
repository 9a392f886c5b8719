"""Small environments whose optimum is known in closed form, and mostly the optimal smoothed policy too.

Importing this package registers them with Gymnasium, as `rlsmooth/...`;
`gym.make("rlsmooth.envs:rlsmooth/Identity-v0")` does both at once. `rlsmooth.envs.registration` is the table of ids,
and the place to add one.
"""

from rlsmooth.envs.box import IdentityBoxEnv
from rlsmooth.envs.dataset_bandit import DatasetBanditEnv, DatasetBanditMaskedEnv
from rlsmooth.envs.deep_sea import DeepSeaEnv
from rlsmooth.envs.identity import (
    IdentityEnv,
    IdentityMultiBinaryEnv,
    IdentityMultiDiscreteEnv,
)
from rlsmooth.envs.masked import IdentityMaskedEnv, IdentityMaskedMultiBinaryEnv, IdentityMaskedMultiDiscreteEnv
from rlsmooth.envs.optima import soft_optimum
from rlsmooth.envs.ordered import IdentityOrderedEnv
from rlsmooth.envs.registration import ENVIRONMENTS, register_environments
from rlsmooth.envs.snapshot import Resumable
from rlsmooth.envs.snapshot_values import CannotSnapshotError
from rlsmooth.envs.tabular import TabularProblem
from rlsmooth.envs.tabular_env import MaskedTabularEnv, TabularEnv
from rlsmooth.envs.vector_bridge import EnvPoolVectorEnv, SameStepCartPole, VectorEnvBridge

__all__ = [
    "ENVIRONMENTS",
    "CannotSnapshotError",
    "DatasetBanditEnv",
    "DatasetBanditMaskedEnv",
    "DeepSeaEnv",
    "EnvPoolVectorEnv",
    "IdentityBoxEnv",
    "IdentityEnv",
    "IdentityMaskedEnv",
    "IdentityMaskedMultiBinaryEnv",
    "IdentityMaskedMultiDiscreteEnv",
    "IdentityMultiBinaryEnv",
    "IdentityMultiDiscreteEnv",
    "IdentityOrderedEnv",
    "MaskedTabularEnv",
    "Resumable",
    "SameStepCartPole",
    "TabularEnv",
    "TabularProblem",
    "VectorEnvBridge",
    "register_environments",
    "soft_optimum",
]

register_environments()
