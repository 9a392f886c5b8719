"""The table of this package's environments. To add one: write its family's file, then add one line here.

Nothing else needs to change: the tests run Gymnasium's and SB3's checkers on every line of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        id: Gymnasium id, `rlsmooth/<Name>-v<number>`. A change of behaviour is a new version, not a changed line.
        entry_point: `module:class`, imported only when the environment is made.
    """

    id: str
    entry_point: str


ENVIRONMENTS = (
    # Identity: the right action is the state.
    Entry("rlsmooth/Identity-v0", "rlsmooth.envs.identity:IdentityEnv"),
    Entry("rlsmooth/IdentityMultiDiscrete-v0", "rlsmooth.envs.identity:IdentityMultiDiscreteEnv"),
    Entry("rlsmooth/IdentityMultiBinary-v0", "rlsmooth.envs.identity:IdentityMultiBinaryEnv"),
    # Identity with `action_masks()`.
    Entry("rlsmooth/IdentityMasked-v0", "rlsmooth.envs.masked:IdentityMaskedEnv"),
    Entry("rlsmooth/IdentityMaskedMultiDiscrete-v0", "rlsmooth.envs.masked:IdentityMaskedMultiDiscreteEnv"),
    Entry("rlsmooth/IdentityMaskedMultiBinary-v0", "rlsmooth.envs.masked:IdentityMaskedMultiBinaryEnv"),
    # Ordered and continuous actions.
    Entry("rlsmooth/IdentityOrdered-v0", "rlsmooth.envs.ordered:IdentityOrderedEnv"),
    Entry("rlsmooth/IdentityBox-v0", "rlsmooth.envs.box:IdentityBoxEnv"),
    # Data sets, if scikit-learn is there: the default one is its digits.
    Entry("rlsmooth/DatasetBandit-v0", "rlsmooth.envs.dataset_bandit:DatasetBanditEnv"),
    Entry("rlsmooth/DatasetBanditMasked-v0", "rlsmooth.envs.dataset_bandit:DatasetBanditMaskedEnv"),
    # Exploration.
    Entry("rlsmooth/DeepSea-v0", "rlsmooth.envs.deep_sea:DeepSeaEnv"),
)


def register_environments() -> None:
    """Make every environment of the table known to `gymnasium.make`; `import rlsmooth.envs` does so.

    Calling it again changes nothing.

    Raises:
        ValueError: if somebody else has registered one of the ids for another class.

    Examples:
        >>> register_environments()
        >>> gym.make("rlsmooth/Identity-v0").unwrapped.optimal_return()
        10.0
    """
    for entry in ENVIRONMENTS:
        known = gym.registry.get(entry.id)
        if known is None:
            gym.register(entry.id, entry_point=entry.entry_point)
        elif known.entry_point != entry.entry_point:
            raise ValueError(
                f"{entry.id!r} is already registered for {known.entry_point!r}: remove it from gymnasium.registry."
            )
