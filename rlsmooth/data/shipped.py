"""The demonstrations that ship with the package, and loading of demonstrations by name or path."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rlsmooth.data.arrays import read_plain_npz
from rlsmooth.data.demonstrations import Demonstrations
from rlsmooth.data.files import DemonstrationsFileError, read_folder
from rlsmooth.untrusted import open_regular

SHIPPED = ("cartpole-v1", "cartpole-v1-noisy")
CARTPOLE = Path(__file__).with_name("cartpole_v1.npz")


def cartpole_v1() -> Demonstrations:
    """24 episodes of CartPole-v1, each of the highest return, 500: 12,000 transitions.

    Recorded from a PPO agent that we trained, by the command in the set's `metadata`, with its versions and scores. The
    actions are sampled, not the most probable ones: the states are more varied, so that cloning needs less data, and
    the labels have the entropy of a real stochastic expert.

    Examples:
        >>> demonstrations = cartpole_v1()
        >>> len(demonstrations), demonstrations.num_episodes, float(demonstrations.episode_returns().min())
        (12000, 24, 500.0)
    """
    return Demonstrations.load(CARTPOLE)


def cartpole_v1_noisy(n_episodes: int = 1, p: float = 0.3, seed: int = 0) -> Demonstrations:
    """A deliberately small and noisy part of `cartpole_v1`, made on the fly.

    With all of `cartpole_v1`, cloning reaches 500 with or without smoothing, so it can't show a difference. With the
    defaults here a 64x64 network reached about 320, so there is room for one.

    Args:
        n_episodes: how many of the episodes, drawn without replacement.
        p: the probability that an action is replaced by the other one.
        seed: the same seed gives the same episodes and noise.

    Raises:
        TypeError, ValueError: `n_episodes` is no whole number from 1 to 24, or `p` no number in [0, 1].

    Examples:
        >>> few = cartpole_v1_noisy(n_episodes=2, p=0.3, seed=0)
        >>> few.num_episodes, few.metadata["action_noise"]
        (2, {'p': 0.3, 'seed': 0})
    """
    return cartpole_v1().sample_episodes(n_episodes, seed).with_action_noise(p, seed)


def load_demonstrations(name_or_path: str | Path) -> Demonstrations:
    """A shipped set by name ("cartpole-v1", "cartpole-v1-noisy"), or a file or folder of ours by path.

    Raises:
        DemonstrationsFileError: it is neither, or the file is damaged.

    Examples:
        >>> load_demonstrations("cartpole-v1").num_episodes
        24
    """
    if name_or_path == "cartpole-v1":
        return cartpole_v1()
    if name_or_path == "cartpole-v1-noisy":
        return cartpole_v1_noisy()
    path = Path(name_or_path).expanduser()
    if not str(name_or_path) or not path.exists():  # an empty path would be this folder
        raise DemonstrationsFileError(
            f"{str(name_or_path)!r} is neither a file or folder nor one of the shipped sets: {', '.join(SHIPPED)}."
        )
    return Demonstrations.load(path)


def describe_data(name_or_path: str | Path) -> dict[str, Any]:
    """The name of a shipped set, or of a file or folder of data, its SHA-256, and how much it holds.

    The SHA-256 of a folder is that of its files, in the order of their names, end to end.

    Raises:
        ValueError: it is neither.
        OSError: it can't be read.

    Examples:
        >>> found = describe_data("cartpole-v1")
        >>> found["name"], found["episodes"], found["transitions"], len(found["sha256"])
        ('cartpole-v1', 24, 12000, 64)
    """
    path = CARTPOLE if name_or_path in SHIPPED else Path(name_or_path).expanduser()
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with open_regular(file) as opened:
            while block := opened.read(2**20):
                digest.update(block)
    name = str(name_or_path) if path == CARTPOLE else path.name
    arrays = read_folder(path) if path.is_dir() else read_plain_npz(path, ("episode_ends", "labels"))
    found = {"name": name, "sha256": digest.hexdigest()}
    if "episode_ends" in arrays:
        return {**found, "episodes": len(arrays["episode_ends"]), "transitions": int(arrays["episode_ends"][-1])}
    return {**found, "samples": len(arrays["labels"])}
