"""Files of strangers: opened only if regular, decoded against declared types, within one budget, with one error.

A reader wraps its work in `refused`, so that whatever a damaged or forged file makes some library raise becomes the
error of its format, and calls `decode` on configurations before anything in them is used. Floor 0.
"""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

from rlsmooth.checks import check_in_range

if TYPE_CHECKING:
    from torch import Tensor

MAX_VALUES = 2**21
"""The most values (numbers, texts, lists, objects) in one JSON text: each takes up to 100 bytes of memory."""
FREE_ELEMENTS = 2**22
"""What a file's spaces and networks may have without a tensor that justifies it."""
FREE_BYTES = 2**27
"""What a file's compressed members may unfold to, however small it is."""
MOST_FOLDED = 64
"""How many times as large as the file its compressed members may be, beyond `FREE_BYTES`."""
SPARSE_BYTES, SPARSE_RATIO = 2**26, 16
BLOCK = 512  # the unit of st_blocks
LFS_START = b"version https://git-lfs"


class FileRefusedError(ValueError):
    """A file that this module refuses; readers turn it into the error of their format."""


# ---- opening


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading: no folder, pipe or device, which could give bytes without end, or none ever.

    Raises:
        FileRefusedError: it is none, is a pointer of Git LFS, or is mostly holes.
        OSError: it can't be opened.

    Examples:
        >>> open_regular("/dev/zero")
        Traceback (most recent call last):
        ...
        rlsmooth.untrusted.FileRefusedError: '/dev/zero' is no regular file. Name a file, not a pipe or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            raise FileRefusedError(f"{str(path)!r} can't be read: it is a folder. Name a file.")
        if not stat.S_ISREG(state.st_mode):
            raise FileRefusedError(f"{str(path)!r} is no regular file. Name a file, not a pipe or a device.")
        blocks = getattr(state, "st_blocks", state.st_size)
        if state.st_size > SPARSE_BYTES and blocks * BLOCK * SPARSE_RATIO < state.st_size:
            raise FileRefusedError(
                f"{str(path)!r} claims {state.st_size:,} bytes and holds {blocks * BLOCK:,}. Use another copy."
            )
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    if file.read(len(LFS_START)) == LFS_START:
        file.close()
        raise FileRefusedError(
            f"{str(path)!r} is a pointer of Git LFS and not the file itself. Get the file: git lfs pull."
        )
    file.seek(0)
    return file


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """The bytes of a regular file.

    Args:
        path: the file.
        most: how many bytes it may have; None: any number.

    Raises:
        FileRefusedError: as in `open_regular`, or it is larger than `most`.
        OSError: it can't be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise FileRefusedError(f"{str(path)!r} has {size:,} bytes, over {most:,}. Use another copy.")
        return file.read()


# ---- one error for whatever a reader raises


@contextmanager
def refused(
    path: str | Path, error_type: type[ValueError], fix: str = "Use another copy.", problem: str = "is malformed"
) -> Iterator[None]:
    """Turn whatever the content of a file makes the block raise into the error of its format.

    Only what depends on the file alone belongs inside: a caller's wrong argument is not the file's fault.

    Args:
        path: what the message calls the file.
        error_type: of the format; raised as it is by what knows better.
        fix: the message's last sentence.
        problem: what the message says of the file.

    Examples:
        >>> with refused("a.zip", FileRefusedError):
        ...     {}["weights"]
        Traceback (most recent call last):
        ...
        rlsmooth.untrusted.FileRefusedError: 'a.zip' is malformed (KeyError: 'weights'). Use another copy.
    """
    try:
        yield
    except FileRefusedError as error:
        known = repr(str(path))
        raise error_type(f"{error}" if known in f"{error}" else f"{known}: {error}") from error
    except Exception as error:  # a file can make a library raise anything
        if isinstance(error, error_type) and error_type is not ValueError:
            raise
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        said = f"{error}".rstrip(".")
        raise error_type(f"{str(path)!r} {problem} ({kind}{said}). {fix}") from error


def parse_json(raw: bytes | str) -> Any:
    """The value of a JSON text that is not too large for the memory of a small machine.

    Raises:
        ValueError: it is no JSON, or has over `MAX_VALUES` values.
        RecursionError: it is nested too deeply.
    """
    if isinstance(raw, str):
        raw = raw.encode()
    if sum(raw.count(mark) for mark in (b",", b"[", b"{", b":")) > MAX_VALUES:
        raise FileRefusedError(f"a JSON text of it has over {MAX_VALUES:,} values. Use another copy.")
    return json.loads(raw)


# ---- one budget for a whole file


@dataclass
class _Budget:
    left: int


_BUDGET: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextmanager
def budget(justified: int = 0) -> Iterator[None]:
    """Let the spaces and networks that are built inside have `FREE_ELEMENTS` in all, and 8 times what is justified.

    Args:
        justified: the number of elements of the tensors or arrays in the file.
    """
    token = _BUDGET.set(_Budget(FREE_ELEMENTS + 8 * justified))
    try:
        yield
    finally:
        _BUDGET.reset(token)


def spend(elements: int, what: str) -> None:
    """Take elements from the file's budget before they are allocated; outside `budget`, from one of their own.

    Raises:
        FileRefusedError: there are not as many left.
    """
    current = _BUDGET.get() or _Budget(8 * FREE_ELEMENTS)
    if elements > current.left:
        raise FileRefusedError(
            f"{what} needs {elements:.3g} elements, far more than the tensors of the file justify. Use another copy."
        )
    current.left -= elements


@contextmanager
def modules_within(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop the building of a network as soon as it is far larger than the tensors that are to fill it.

    Parameters are registered when they are reserved and before they are filled, so no memory is used by then. Buffers
    are filled at once, so the size of what torch's factories make is checked before they make it.
    """
    import torch  # here, since reading a command line should not wait for torch
    from torch import Tensor
    from torch.nn.modules import module as hooks_of
    from torch.overrides import TorchFunctionMode

    thread = threading.get_ident()
    elements, count = FREE_ELEMENTS + 4 * sum(each.numel() for each in tensors.values()), 64 + 4 * len(tensors)

    def check(module: Any, name: str, tensor: Any) -> None:
        nonlocal elements, count
        if threading.get_ident() != thread or not isinstance(tensor, Tensor):
            return
        elements, count = elements - tensor.numel(), count - 1
        if elements < 0 or count < 0:
            raise FileRefusedError(
                f"a {type(module).__name__} makes the network far larger than the file's {len(tensors)} tensors. "
                "Use another copy."
            )

    factories = (torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn, torch.arange, torch.eye)

    class CheckedFactories(TorchFunctionMode):
        """Refuses to make a tensor that is larger than the whole network may be."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = kwargs or {}
            if func in factories and func(*args, **{**given, "device": "meta"}).numel() > elements:
                raise FileRefusedError(
                    f"a network of the file's {len(tensors)} tensors has no tensor of that size. Use another copy."
                )
            return func(*args, **given)

    hooks = (
        hooks_of.register_module_parameter_registration_hook(check),
        hooks_of.register_module_buffer_registration_hook(check),
    )
    try:
        with CheckedFactories():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def check_unfolded(unfolded: int, stored: int, way: str = "unpack it, and pack it again with `zip -0`") -> None:
    """Raise FileRefusedError if compressed members unfold to far more than the file's own size.

    Args:
        unfolded: the bytes that they take in memory.
        stored: the bytes of the file.
        way: to read a file that the caller trusts, for the message.
    """
    if is_folded_too_much(unfolded, stored):
        raise FileRefusedError(
            f"its compressed members unfold from {stored:,} to {unfolded:,} bytes. If you trust it, {way}."
        )


def is_folded_too_much(unfolded: int, stored: int) -> bool:
    """Whether members of so many bytes, in a file of so many, are refused by `check_unfolded`."""
    return unfolded > FREE_BYTES and unfolded > MOST_FOLDED * stored


# ---- declared schemas


@dataclass(frozen=True)
class Within:
    """In `Annotated[float, Within(0, 1)]`: the range of a number; `finite=False` also allows NaN and infinities."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    finite: bool = True


AnyNumber = Annotated[float, Within(finite=False)]
Count = Annotated[int, Within(0)]
Positive = Annotated[int, Within(1)]
MOST_INT = 2**63


def decode(hint: Any, value: Any, where: str) -> Any:
    """The value that JSON holds in place of one of type `hint`, or an error that names its place.

    Args:
        hint: None, bool, int, float, str, Path, a Literal, list, tuple, dict with str keys, a union, a TypedDict (no
            other keys than its own), `Annotated[..., Within(...)]` of those, or Any. A number must be finite unless
            its range says otherwise.
        value: of `json.loads`.
        where: what errors call it.

    Raises:
        ValueError: it is of another type or outside its range.

    Examples:
        >>> decode(tuple[int, ...], [1, 2], "sizes")
        (1, 2)
        >>> decode(bool, "yes", "amp")
        Traceback (most recent call last):
        ...
        ValueError: amp='yes' must be true or false
    """
    ranges = []
    while typing.get_origin(hint) is Annotated:
        hint, *more = typing.get_args(hint)
        ranges += [one for one in more if isinstance(one, Within)]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in arguments):
            raise ValueError(f"{where}={value!r:.80} must be one of {', '.join(map(repr, arguments))}")
        return value
    if typing.is_typeddict(hint):
        return _decode_typed_dict(hint, value, where)
    if origin in (list, tuple, dict) or hint in (list, tuple, dict):
        return _decode_container(origin or hint, arguments, value, where)
    return _decode_plain(hint, value, where, ranges[0] if ranges else Within())


def decode_fields(hints: Mapping[str, Any], value: Any, where: str, optional: frozenset[str] = frozenset()) -> Any:
    """A dict whose keys are those of `hints`, each decoded; `optional` ones may be missing.

    Raises:
        ValueError: a key is missing, unknown, or its value is none of its type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, got {value!r:.80}")
    missing, unknown = sorted(hints.keys() - value.keys() - optional), sorted(value.keys() - hints.keys())
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(f"{where} {' and '.join(faults)}")
    return {name: decode(hints[name], each, f"{where}.{name}") for name, each in value.items()}


def _decode_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    faults = []
    for choice in choices:
        try:
            return decode(choice, value, where)
        except ValueError as error:
            faults.append(str(error))
    raise ValueError(max(faults, key=len) if len(faults) < 3 else " or ".join(faults))


def _decode_typed_dict(hint: Any, value: Any, where: str) -> Any:
    return decode_fields(typing.get_type_hints(hint, include_extras=True), value, where, hint.__optional_keys__)


def _decode_container(kind: type, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if kind is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {value!r:.80}")
        of_values = arguments[1] if arguments else Any
        return {name: decode(of_values, each, f"{where}.{name}") for name, each in value.items()}
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} must be a list, got {value!r:.80}")
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise ValueError(f"{where} must be a list of {len(arguments)}, got {value!r:.80}")
        hints = list(arguments)
    else:
        hints = [arguments[0] if arguments else Any] * len(value)
    return kind(
        decode(hint, each, f"{where}[{place}]") for place, (hint, each) in enumerate(zip(hints, value, strict=True))
    )


def _decode_plain(hint: Any, value: Any, where: str, within: Within) -> Any:
    if hint in (None, type(None)):
        if value is not None:
            raise ValueError(f"{where}={value!r:.80} must be null")
        return None
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{where}={value!r:.80} must be true or false")
        return value
    if hint in (str, Path):
        if not isinstance(value, str):
            raise ValueError(f"{where}={value!r:.80} must be a text")
        return hint(value)
    if hint not in (int, float):
        raise TypeError(f"{where} is declared as {hint!r}, which decode does not know")
    if isinstance(value, bool) or not isinstance(value, int if hint is int else (int, float)):
        raise ValueError(f"{where}={value!r:.80} must be a {'whole ' if hint is int else ''}number")
    if isinstance(value, int) and not -MOST_INT <= value < MOST_INT:
        raise ValueError(f"{where} is a whole number beyond 64 bits")
    if within.finite:
        check_in_range(where, value, within.low, within.high, low_open=within.low_open, high_open=within.high_open)
    return value
