"""What a trainer of GAIL or AIRL is made of besides its generator, as plain data and tensors, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from rlsmooth.agents.agent_file import load_parameters
from rlsmooth.agents.bc_encoding import fingerprint
from rlsmooth.agents.policy_arguments import custom_name, decode_arguments, encode_arguments
from rlsmooth.agents.reward_file import decode_net, encode_net
from rlsmooth.agents.reward_net import RewardNet, ShapedRewardNet
from rlsmooth.data import Demonstrations
from rlsmooth.training import SafeFileError, load_optimizer, optimizer_to_tensors

if TYPE_CHECKING:
    from rlsmooth.agents.adversarial import AdversarialImitation

__all__ = [
    "argument_names",
    "build_trainer",
    "for_net",
    "run_state",
    "set_run_state",
    "set_trainer_state",
    "trainer_state",
]

OPTIMIZER = "disc_opt_cls"
IN_FILES = {OPTIMIZER: "optimizer_class"}
"""What the tables of classes that a file may name call an argument."""
BACK = {value: key for key, value in IN_FILES.items()}


def trainer_state(trainer: AdversarialImitation) -> dict[str, Any]:
    """Arguments, reward network, its optimiser, counters and draws.

    Returns:
        A tree of plain data and tensors; they are not copied.
    """
    arguments, argument_tensors = encode_arguments(_renamed(trainer.arguments, IN_FILES))
    net = trainer.reward_net
    description: dict[str, Any] | None = None
    tensors = {"net": dict(net.state_dict())}
    if isinstance(net, (RewardNet, ShapedRewardNet)):
        description, tensors = encode_net(net)
    moments, optimizer = optimizer_to_tensors(trainer.optimizer)
    return {
        "class": type(trainer).__name__,
        "arguments": arguments,
        "argument_tensors": argument_tensors,
        "net": description,
        "net_tensors": tensors,
        "optimizer": optimizer,
        "optimizer_tensors": moments,
        "rounds": trainer.rounds,
        "knows_absorbing": trainer.knows_absorbing,
        "draws": trainer.draws.bit_generator.state,
    }


def build_trainer(
    build: type[AdversarialImitation],
    path: Path,
    state: Mapping[str, Any],
    demonstrations: Demonstrations,
    gen_algo: BaseAlgorithm,
    *,
    reward_net: nn.Module | None,
    custom_objects: Mapping[str, Any],
) -> AdversarialImitation:
    """A trainer of `trainer_state`, in that state.

    Args:
        build: GAIL or AIRL.
        path: what errors call the file.
        state: of `trainer_state`.
        demonstrations: to train on.
        gen_algo: the generator.
        reward_net: a network of the user's own.
        custom_objects: argument to value, of the trainer or the network, in place of the file's.

    Raises:
        SafeFileError: another class's state, or one that is malformed, or asks for `reward_net` or `custom_objects`.
    """
    if state.get("class") != build.__name__:
        raise SafeFileError(f"{str(path)!r} is of {state.get('class')}: use that class, not {build.__name__}.")
    names = argument_names(build)
    own = _renamed({name: value for name, value in custom_objects.items() if name in names}, IN_FILES)
    custom = custom_name(state["arguments"].get(IN_FILES[OPTIMIZER]))
    if custom is not None and OPTIMIZER not in custom_objects:
        raise SafeFileError(
            f"{str(path)!r} was saved with an optimiser of its writer's own ({custom}). Load it with "
            f"custom_objects={{{OPTIMIZER!r}: {custom.rpartition('.')[2]}}}."
        )
    arguments = _renamed(
        decode_arguments(path, state["arguments"], tensors=state["argument_tensors"], custom_objects=own), BACK
    )
    if set(arguments) != names:
        raise SafeFileError(f"{str(path)!r} has the arguments {sorted(arguments)}. Use another copy.")
    if reward_net is None:
        if state["net"] is None:
            raise SafeFileError(
                f"{str(path)!r} has a network of its writer's own: pass one built as before, reward_net=."
            )
        reward_net = decode_net(path, state["net"], state["net_tensors"], custom_objects=custom_objects)
    make: Any = build
    trainer: AdversarialImitation = make(demonstrations, gen_algo, reward_net, **arguments)
    set_trainer_state(trainer, state, path)
    for group in trainer.optimizer.param_groups:  # the file's state has put back its own
        if "disc_learning_rate" in own:
            group["lr"] = trainer.arguments["disc_learning_rate"]
        group.update(own.get("disc_opt_kwargs") or {})
    return trainer


def for_net(state: Mapping[str, Any], custom_objects: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Those of `custom_objects` that are the trainer's, or that its network can't do without.

    Others are the generator's, whose arguments have the same names.

    Args:
        state: of `trainer_state`.
        custom_objects: argument to value.
        names: of the trainer's arguments.
    """
    arguments = (state["net"] or {}).get("arguments", {})
    asked = {name for name, value in arguments.items() if custom_name(value) is not None}
    return {name: value for name, value in custom_objects.items() if name in names | asked}


def set_trainer_state(trainer: AdversarialImitation, state: Mapping[str, Any], path: Path) -> None:
    """Put back what `trainer_state` gave, arguments apart.

    Raises:
        SafeFileError: the network's parameters don't fit.
        ValueError: the rest does not.
    """
    net: Any = trainer.reward_net
    load_parameters(path, net, state["net_tensors"]["net"])
    load_optimizer(trainer.optimizer, state["optimizer_tensors"], state["optimizer"])
    trainer.rounds = int(state["rounds"])
    trainer.knows_absorbing = bool(state["knows_absorbing"])
    trainer.draws.bit_generator.state = state["draws"]


def run_state(trainer: AdversarialImitation) -> dict[str, Any]:
    """All that a run needs in the middle of it: `trainer_state`, the generator's rows, what it is trained on."""
    if trainer.fingerprint is None:
        trainer.fingerprint = fingerprint(trainer.demonstrations)
    return {
        "trainer": trainer_state(trainer),
        "rows": trainer.generated.state(),
        "trained_at": trainer.trained_at,
        "fingerprint": trainer.fingerprint,
    }


def set_run_state(trainer: AdversarialImitation, state: Mapping[str, Any], path: Path) -> None:
    """Put back what `run_state` gave.

    Raises:
        SafeFileError, ValueError: see `set_trainer_state`; or the demonstrations are others.
    """
    if trainer.fingerprint is None:
        trainer.fingerprint = fingerprint(trainer.demonstrations)
    if state["fingerprint"] != trainer.fingerprint:
        raise ValueError("demonstrations: these are not those that the run was started with.")
    set_trainer_state(trainer, state["trainer"], path)
    trainer.generated.set_state(state["rows"])
    trainer.trained_at = int(state["trained_at"])


def argument_names(build: type[AdversarialImitation]) -> set[str]:
    """The constructor's keyword-only arguments."""
    parameters = inspect.signature(build).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}
