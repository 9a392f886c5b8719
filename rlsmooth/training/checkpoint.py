"""Checkpoints: a folder of `checkpoint_<step>.zip`, each whole or not there, and optimiser state as plain data."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.training.safe_file import SafeFileError, read_safe_file, tree_from_json, tree_to_json, write_safe_file
from rlsmooth.untrusted import AnyNumber, decode, decode_fields, refused

FORMAT_NAME = "rlsmooth-checkpoint"
FORMAT_VERSION = 1
NOT_NEGATIVE = ("lr", "eps", "weight_decay", "betas", "alpha", "momentum")
"""Options of optimisers that are never below 0."""
CHOSEN = ("foreach", "fused")
"""Switches of optimisers that are None where torch chooses."""
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "momentum_buffer", "sum")
"""What optimisers keep in the shape of each parameter; the last but one may be None."""
FILE_NAME = re.compile(r"checkpoint_(0|[1-9][0-9]*)\.zip")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read and checked.

    Attributes:
        step: the step it was saved at.
        config: the plain data given to `save_checkpoint` (tuples have become lists).
        tensors: group name to tensor name to tensor.
        path: the file.
        versions: version of Python and of each library that wrote it.
    """

    step: int
    config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    path: Path
    versions: dict[str, str]

    def decoded(self, schema: Any) -> Any:
        """The entries of the config that a TypedDict declares, each of its type; optional ones may be missing.

        Raises:
            SafeFileError: one is missing or of another type.
        """
        hints = get_type_hints(schema, include_extras=True)
        with self.refused():
            declared = {name: value for name, value in self.config.items() if name in hints}
            return decode_fields(hints, declared, "config", schema.__optional_keys__)

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Turn whatever its content makes the block raise into SafeFileError; see `rlsmooth.untrusted.refused`."""
        with refused(self.path, SafeFileError, "Use another checkpoint.", "is malformed or does not fit"):
            yield


def decode_history(encoded: Any, name: str, length: int | None = None) -> dict[str, list[float]]:
    """The numbers of a run's log lines by quantity, as a file holds them.

    Args:
        encoded: of JSON.
        name: what errors call it.
        length: of each column; None: they must be of one length.

    Raises:
        ValueError: it is no dict of lists of numbers, or a list has another length.

    Examples:
        >>> decode_history({"step": [1, 2], "loss": [0.5, 0.25]}, "history", 2)
        {'step': [1, 2], 'loss': [0.5, 0.25]}
    """
    found: dict[str, list[float]] = decode(dict[str, list[AnyNumber]], encoded, name)
    lengths = {len(column) for column in found.values()} | ({length} if found and length is not None else set())
    if len(lengths) > 1:
        raise ValueError(f"{name} has columns of {sorted(lengths)} numbers, which must be as many")
    return found


def save_checkpoint(
    folder: str | Path,
    step: int,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    keep: int = 2,
) -> Path:
    """Write `folder/checkpoint_<step>.zip`, then delete all but the `keep` latest up to this step.

    The new file is whole and on the disk before an old one goes, so that a kill or a power cut at any moment leaves at
    least one good checkpoint. Files of later steps are never touched: they are another run's, or damaged ones that this
    run went back behind and will write again. One run a folder.

    Args:
        folder: made if it is missing.
        step: 0 or more; a checkpoint of the same step is replaced.
        config: JSON-able plain data: counters, arguments, what `optimizer_to_tensors` and `execution_state` gave.
        tensors: group name to tensor name to tensor, for example `{"policy": policy.state_dict(), "rng": rng_state()}`.
        keep: how many to keep, 1 or more.

    Returns:
        The path of the new file.

    Raises:
        TypeError: `step` or `keep` is no whole number, or the data can't be kept (see `write_safe_file`).
        ValueError: `step` is negative, `keep` is under 1, or the folder can't be written to.
        OSError: the disk failed or is full; the checkpoints that were there stay.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> for step in (10, 20, 30):
        ...     path = save_checkpoint(folder, step, config={"loss": 0.5}, tensors={"net": {"w": torch.zeros(1)}})
        >>> checkpoint_steps(folder)
        [20, 30]
    """
    step = check_positive_int("step", step, minimum=0)
    keep = check_positive_int("keep", keep)
    path = check_writable_folder("folder", folder) / f"checkpoint_{step}.zip"
    head = {"step": step, "config": dict(config)}
    write_safe_file(path, head, tensors=tensors, format_name=FORMAT_NAME, format_version=FORMAT_VERSION, config_name="")
    earlier = [other for other in checkpoint_steps(folder) if other < step]
    for old in earlier[: max(0, len(earlier) - (keep - 1))]:
        _checkpoint_path(folder, old).unlink(missing_ok=True)
    return path


def checkpoint_steps(folder: str | Path) -> list[int]:
    """The steps of the checkpoint files in `folder`, ascending, unread; `[]` if the folder is missing.

    Other files, among them what a killed save left half written, are passed over. A trainer that starts a new run
    should refuse a folder where this is not empty.

    Examples:
        >>> checkpoint_steps("no/such/folder")
        []
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        return []
    matches = [FILE_NAME.fullmatch(path.name) for path in folder.iterdir()]
    return sorted(int(match[1]) for match in matches if match)


def latest_checkpoint(folder: str | Path, *, device: torch.device | str = "cpu") -> Checkpoint | None:
    """Read the latest good checkpoint in `folder`.

    Damaged ones are passed over, each with a RuntimeWarning that names the file and the fault.

    Args:
        folder: where `save_checkpoint` wrote.
        device: where the tensors go. The CPU is right for most: `load_state_dict` and `load_optimizer` move what
            belongs on a GPU, and leave on the CPU what belongs there (Adam's `step`).

    Returns:
        The checkpoint, or None if the folder is missing or holds no checkpoint file at all.

    Raises:
        SafeFileError: there are checkpoint files, and not one of them can be read. Starting afresh without a word would
            be worse.

    Examples:
        >>> latest_checkpoint("no/such/folder") is None
        True
    """
    faults: list[str] = []
    for step in reversed(checkpoint_steps(folder)):
        path = _checkpoint_path(folder, step)
        try:
            file = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION, device=device)
            is_whole = set(file.config) == {"step", "config"} and isinstance(file.config["config"], dict)
            if not is_whole or file.config["step"] != step:
                raise SafeFileError(f"{str(path)!r} is the checkpoint of another step, renamed. Delete it.")
        except SafeFileError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            warnings.warn(
                f"Passed over a bad checkpoint, going back to step {step}: {fault}", RuntimeWarning, stacklevel=2
            )
        return Checkpoint(
            step=step, config=file.config["config"], tensors=file.tensors, path=path, versions=file.versions
        )
    if faults:
        raise SafeFileError(f"No checkpoint in {str(folder)!r} can be read: {' '.join(faults)}")
    return None


def load_module(name: str, module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put parameters and buffers from a file into a module of the caller's.

    Args:
        name: what errors call the module.
        module: of the same shapes.
        state: of its `state_dict`.
        where: what errors call the source: `"the file 'a.zip'"`.

    Raises:
        ValueError: the module has other names or shapes.
    """
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"{name} does not fit {where}: {error}") from error


def optimizer_to_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimiser's state into named tensors and JSON, for any optimiser whose `state_dict()` is plain data.

    Returns:
        `(tensors, config)`: the tensors by name (`state.0.exp_avg`, ...; not copied) and the JSON-able rest.

    Raises:
        TypeError: the state holds something that is neither a tensor nor plain data.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.Adam([weight])
        >>> weight.sum().backward(); optimizer.step()
        >>> tensors, config = optimizer_to_tensors(optimizer)
        >>> sorted(tensors)
        ['optimizer.state.0.exp_avg', 'optimizer.state.0.exp_avg_sq', 'optimizer.state.0.step']
        >>> load_optimizer(optimizer, tensors, config)
    """
    encoded, tensors = tree_to_json(optimizer.state_dict(), "optimizer")
    config = {"class": type(optimizer).__name__, "shapes": _parameter_shapes(optimizer), "state_dict": encoded}
    return tensors, config


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Put back what `optimizer_to_tensors` took, exactly, into an optimiser of the same class over the same parameters.

    Raises:
        ValueError: the state belongs to an optimiser of another class, or over parameters of other shapes or grouped
            otherwise, or it is incomplete.
    """
    if not isinstance(config, Mapping) or not {"class", "shapes", "state_dict"} <= set(config):
        raise ValueError("config is not what optimizer_to_tensors gave: it lacks 'class', 'shapes' or 'state_dict'.")
    if config["class"] != type(optimizer).__name__:
        raise ValueError(
            f"the state is of a {config['class']}, the optimizer is a {type(optimizer).__name__}: build the same class."
        )
    if config["shapes"] != _parameter_shapes(optimizer):
        raise ValueError(
            f"the state is for parameter groups of shapes {config['shapes']}, the optimizer has "
            f"{_parameter_shapes(optimizer)}: build it over the same parameters in the same order."
        )
    try:
        state = tree_from_json(config["state_dict"], tensors)
        encoded, named = tree_to_json(state, "optimizer")
        if encoded != config["state_dict"] or named.keys() != {
            name for name in tensors if name.startswith("optimizer.")
        }:
            raise ValueError("its tensors are not those that it names")
        _check_optimizer_state(optimizer, state)
        # load_state_dict keeps the tensors it is given where dtype and device fit: the caller's must not change later.
        optimizer.load_state_dict(_clone_tensors(state))
    except Exception as error:  # torch takes what it is given, and fails on it somewhere
        raise ValueError(f"the optimizer state is malformed ({error!r}): use another checkpoint.") from error


def _checkpoint_path(folder: str | Path, step: int) -> Path:
    return Path(folder).expanduser() / f"checkpoint_{step}.zip"


def _parameter_shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    """The shape of each parameter of each group: what the state must fit."""
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Compare a state, which torch would take as it is, with the optimiser's own, and fit it to this torch's options.

    Raises:
        ValueError: groups or their options are others or of another type, or a tensor is of another shape or type than
            the parameter that it belongs to.
    """
    own = optimizer.state_dict()
    if len(state["param_groups"]) != len(own["param_groups"]):
        raise ValueError(f"it has {len(state['param_groups'])} parameter groups")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group, mine in zip(state["param_groups"], own["param_groups"], strict=True):
        others = {name: (group | mine)[name] for name in group.keys() ^ mine.keys()}
        implied = {"decoupled_weight_decay": isinstance(optimizer, torch.optim.AdamW)}  # by the class; else off
        if group["params"] != mine["params"] or any(
            value is not None and value is not implied.get(name, False) for name, value in others.items()
        ):
            raise ValueError(f"the options {sorted(others)} of a parameter group differ")
        for name in others.keys() & group.keys():  # another version of torch has them
            del group[name]
        group.update({name: mine[name] for name in others.keys() & mine.keys()})
        for name, value in group.items():
            _check_option(name, value, mine[name])
    names = {frozenset(kept) for kept in state["state"].values()}
    if len(names) > 1:
        raise ValueError("it has other values of one parameter than of another")
    for place, kept in state["state"].items():
        if type(place) is not int or not 0 <= place < len(parameters):
            raise ValueError(f"there is no parameter {place!r}")
        for name, value in kept.items():
            _check_kept(f"{name} of parameter {place}", name, value, parameters[place].shape)


def _check_kept(where: str, name: str, value: Any, shape: torch.Size) -> None:
    """Check one value that is kept of a parameter: a tensor of its shape, or a number."""
    if value is None and name == "momentum_buffer":
        return
    shapes = (shape,) if name in MOMENTS else (shape, torch.Size([]), torch.Size([1]))
    if isinstance(value, Tensor):
        if value.shape not in shapes or not value.dtype.is_floating_point:
            raise ValueError(f"{where} is {value.dtype} of shape {tuple(value.shape)}")
    elif name in MOMENTS or type(value) not in (int, float):
        raise ValueError(f"{where} is a {type(value).__name__}")
    if name == "step" and not 0 <= float(value) < math.inf:
        raise ValueError(f"{where} is {float(value)}")


def _check_option(name: str, value: Any, mine: Any) -> None:
    """Check one option of a parameter group: numbers stay numbers, pairs pairs, switches switches."""
    numbers = (int, float)
    is_switch = isinstance(value, bool) and isinstance(mine, bool)
    if name == "params" or is_switch or (name in CHOSEN and value in (None, True, False)):
        return
    if isinstance(mine, (tuple, list)) and isinstance(value, (tuple, list)) and len(value) == len(mine):
        for one, other in zip(value, mine, strict=True):
            _check_option(name, one, other)
    elif isinstance(mine, Tensor) and isinstance(value, Tensor):
        if value.shape != mine.shape or not bool(torch.isfinite(value).all()):
            raise ValueError(f"the option {name} is of shape {tuple(value.shape)} or not finite")
    elif (
        isinstance(value, bool)
        or isinstance(mine, bool)
        or not isinstance(value, numbers)
        or not isinstance(mine, numbers)
        or not -math.inf < value < math.inf
        or (name in NOT_NEGATIVE and value < 0)
        or (name == "betas" and value >= 1)
    ):
        raise ValueError(f"the option {name}={value!r:.50} does not fit {mine!r:.50}")


def _clone_tensors(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: _clone_tensors(item) for key, item in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_clone_tensors(item) for item in tree)
    return tree
