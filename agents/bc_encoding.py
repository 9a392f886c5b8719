"""Demonstrations and custom objects as a file knows them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlsmooth.data import Demonstrations

__all__ = ["fingerprint", "split_custom_objects"]

HASHED_ROWS = 4096
TRAINED_ON = ("actions", "action_masks", "weights", "action_probs")
OWN_OBJECTS = ("smoothing", "reference", "learning_rate")


def fingerprint(demonstrations: Demonstrations) -> str:
    """A sha256 that tells one set of demonstrations from another: of their size, episodes and up to 4096 rows.

    The rows are spread evenly, so that a set larger than memory need not be read; the same set in memory and on the
    disk has the same fingerprint.

    Example:
        >>> from rlsmooth.data import cartpole_v1
        >>> fingerprint(cartpole_v1()) == fingerprint(cartpole_v1())
        True
    """
    count = len(demonstrations)
    rows: NDArray[np.int64] = np.unique(np.linspace(0, count - 1, min(count, HASHED_ROWS)).astype(np.int64))
    digest = hashlib.sha256()
    digest.update(f"{count} {demonstrations.observation_space} {demonstrations.action_space}".encode())
    digest.update(np.ascontiguousarray(demonstrations.episode_ends, dtype=np.int64).tobytes())
    batch = demonstrations[rows]
    observations = batch.observations if isinstance(batch.observations, dict) else {"": batch.observations}
    fields = {f"observations.{key}": value for key, value in sorted(observations.items())}
    fields |= {name: value for name in TRAINED_ON if (value := getattr(batch, name)) is not None}
    for name, value in fields.items():
        kept = np.ascontiguousarray(value)
        digest.update(f"{name} {kept.dtype} {kept.shape}".encode())
        digest.update(kept.tobytes())
    return digest.hexdigest()


def split_custom_objects(
    custom_objects: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(the agent's own arguments, the policy's)`."""
    given = dict(custom_objects or {})
    own = {name: given.pop(name) for name in OWN_OBJECTS if name in given}
    return own, given
