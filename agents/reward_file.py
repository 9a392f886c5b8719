"""Files of reward networks, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlsmooth.agents.agent_file import load_parameters
from rlsmooth.agents.policy_arguments import decode_arguments, encode_arguments
from rlsmooth.agents.reward_net import RewardNet, ShapedRewardNet
from rlsmooth.checks import check_writable_folder
from rlsmooth.training import SafeFileError, isolated_rng, read_safe_file, write_safe_file

__all__ = ["decode_net", "encode_net", "load_reward_net", "save_reward_net", "with_suffix"]

FORMAT_NAME = "rlsmooth-reward"
FORMAT_VERSION = 1
PLAIN, SHAPED = "reward", "shaped"


def save_reward_net(net: RewardNet | ShapedRewardNet, path: str | Path) -> Path:
    """Write a reward network's file, whole or not at all.

    Args:
        net: a `RewardNet` or a `ShapedRewardNet`, such as `trainer.reward_net`; of AIRL, `trainer.reward_net.reward`
            is the part without shaping. Of extractors and activations of your own the file keeps the name only.
        path: `.zip` is added to a name without a suffix, and a missing folder made.

    Returns:
        The path written.

    Raises:
        TypeError: it is another module.
        ValueError: the folder can't be written to.

    Example:
        >>> import tempfile
        >>> from gymnasium import spaces
        >>> net = RewardNet(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), net_arch=[16])
        >>> path = save_reward_net(net, f"{tempfile.mkdtemp()}/reward"); path.name
        'reward.zip'
        >>> load_reward_net(path).arguments["net_arch"]
        [16]
    """
    if not isinstance(net, (RewardNet, ShapedRewardNet)):
        raise TypeError(
            f"net is a {type(net).__name__}: pass a RewardNet or a ShapedRewardNet, or keep your own module's "
            "state_dict() by safetensors."
        )
    path = with_suffix(path)
    config, tensors = encode_net(net)
    write_safe_file(path, config, tensors=tensors, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
    return path


def load_reward_net(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    custom_objects: Mapping[str, Any] | None = None,
) -> RewardNet | ShapedRewardNet:
    """Read a file of `save_reward_net`. Runs no code that the file could name; the random state does not move.

    Args:
        path: the file.
        device: where the network goes.
        custom_objects: `features_extractor_class`, `features_extractor_kwargs` or `activation_fn` in place of the
            file's; needed where these are of your own.

    Returns:
        The network, in evaluation mode.

    Raises:
        SafeFileError: the file is damaged, is another kind of file, or asks for `custom_objects`.

    Example:
        See `save_reward_net`.
    """
    path = Path(path).expanduser()
    path = path if path.exists() else path.with_name(f"{path.name}.zip") if not path.suffix else path
    content = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
    net = decode_net(path, content.config, content.tensors, custom_objects=custom_objects or {})
    return net.to(device).eval()


def encode_net(net: RewardNet | ShapedRewardNet) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """A network as JSON and groups of tensors."""
    base = net.reward if isinstance(net, ShapedRewardNet) else net
    arguments, of_arguments = encode_arguments(base.arguments)
    config: dict[str, Any] = {"kind": PLAIN, "arguments": arguments}
    if isinstance(net, ShapedRewardNet):
        config |= {"kind": SHAPED, "gamma": net.gamma, "potential_net_arch": net.potential_net_arch}
    return config, {"net": dict(net.state_dict()), "net_arguments": of_arguments}


def decode_net(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    custom_objects: Mapping[str, Any],
) -> RewardNet | ShapedRewardNet:
    """The network of `encode_net`.

    Args:
        path: what errors call the file.
        config: the JSON.
        tensors: the groups.
        custom_objects: argument to value, in place of the file's.

    Raises:
        SafeFileError: what it says is malformed, or does not fit.
    """
    try:
        known = {name: value for name, value in custom_objects.items() if name in config["arguments"]}
        arguments = decode_arguments(path, config["arguments"], tensors=tensors["net_arguments"], custom_objects=known)
        with isolated_rng():
            net: RewardNet | ShapedRewardNet = RewardNet(**arguments)
            if config["kind"] == SHAPED:
                assert isinstance(net, RewardNet)
                net = ShapedRewardNet(net, gamma=config["gamma"], potential_net_arch=config["potential_net_arch"])
            elif config["kind"] != PLAIN:
                raise ValueError(f"there is no kind of network {config['kind']!r}")
    except SafeFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, AssertionError) as error:
        raise SafeFileError(f"{str(path)!r} has a malformed reward network ({error!r}). Use another copy.") from error
    own: Any = net
    load_parameters(path, own, tensors.get("net", {}))
    return net


def with_suffix(path: str | Path) -> Path:
    """The path with `.zip` if it had no suffix, in a folder that can be written to."""
    path = Path(path).expanduser()
    path = path if path.suffix else path.with_name(f"{path.name}.zip")
    check_writable_folder("path", path.parent)
    return path
