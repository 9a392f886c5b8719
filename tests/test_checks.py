"""Argument checks, schedules, and files that are whole or not there."""

from __future__ import annotations

import math
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlsmooth.atomic import atomic_file, write_bytes_atomically
from rlsmooth.checks import check_choice, check_in_range, check_positive_int, check_writable_folder
from rlsmooth.schedules import as_schedule, check_schedule, is_zero, linear_start, start_of, value_at
from support import assert_raises


def test_choice_accepts_what_is_listed() -> None:
    check_choice("spread", "all", ("all", "others"))


@pytest.mark.parametrize("value", ["ALL", "", "al", None, 1, ["all"], ("all",)])
def test_choice_names_argument_value_and_choices(value: object) -> None:
    message = re.escape(f"spread={value!r} is not known: choose one of 'all', 'others'.")
    assert_raises(ValueError, f"^{message}$", check_choice, "spread", value, ("all", "others"))


@pytest.mark.parametrize(("value", "number"), [(0, 0.0), (1, 1.0), (0.5, 0.5), (np.float64(0.25), 0.25)])
def test_range_returns_a_float(value: float, number: float) -> None:
    result = check_in_range("alpha", value, 0.0, 1.0)
    assert type(result) is float
    assert result == number


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, 1.001])
def test_range_names_argument_value_and_interval(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^alpha={value!r} must be a finite number in \[0, 1\]\.$"):
        check_in_range("alpha", value, 0.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_unbounded_range_still_wants_finite_numbers(value: float) -> None:
    assert_raises(ValueError, r"must be a finite number in \[-inf, inf\]", check_in_range, "decay", value)


def test_open_ends_are_excluded_and_written_as_such() -> None:
    assert check_in_range("power", 1e-300, 0.0, low_open=True) == 1e-300
    with pytest.raises(ValueError, match=r"power=0 must be a finite number in \(0, inf\]"):
        check_in_range("power", 0, 0.0, low_open=True)
    with pytest.raises(ValueError, match=r"eps=1 must be a finite number in \[0, 1\)"):
        check_in_range("eps", 1, 0.0, 1.0, high_open=True)


@pytest.mark.parametrize("value", [True, "1", None, [1.0], torch.tensor(1.0)])
def test_range_refuses_what_is_no_number(value: object) -> None:
    assert_raises(TypeError, f"^alpha must be a number, got {type(value).__name__} ", check_in_range, "alpha", value)


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_positive_int_returns_an_int(value: int) -> None:
    result = check_positive_int("num_classes", value)
    assert type(result) is int
    assert result == 3


@pytest.mark.parametrize("value", [True, 3.0, "3", None, torch.ones(2)])
def test_positive_int_refuses_what_is_no_whole_number(value: object) -> None:
    assert_raises(TypeError, r"num_classes|only integer tensors", check_positive_int, "num_classes", value)


def test_positive_int_names_the_minimum() -> None:
    assert_raises(ValueError, r"^num_classes=0 must be at least 1\.$", check_positive_int, "num_classes", 0)
    assert_raises(ValueError, r"^width=1 must be at least 2\.$", check_positive_int, "width", 1, 2)
    assert check_positive_int("width", 0, 0) == 0


def test_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = check_writable_folder("log_folder", str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("kept")
    with pytest.raises(
        ValueError, match=rf"^log_folder='{re.escape(str(place))}' can't be written to .*another folder"
    ):
        check_writable_folder("log_folder", place)
    assert place.read_text() == "kept"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_raises(ValueError, "can't be written to", check_writable_folder, "log_folder", tmp_path)
    tmp_path.chmod(0o700)


# ---- schedules


@pytest.mark.parametrize("text", ["lin", "lin_", "lin_x", "lin_0_1", "exp_0.1", "0.1", "", "_lin_1"])
def test_other_words_are_no_schedule(text: str) -> None:
    assert linear_start(text) is None
    example = r'is no schedule: give a number, "lin_0\.1" \(from 0\.1 down to 0\) or a callable\.$'
    for call in (
        lambda: start_of("rate", text),
        lambda: as_schedule(text, "rate"),
        lambda: check_schedule("rate", text, low=0, high=1),
        lambda: value_at("rate", text, 0.5, low=0, high=1),
    ):
        assert_raises(ValueError, rf"^rate={text!r} {example}", call)
    with pytest.raises(ValueError, match=r'give a number, "lin_0\.9" \(from 0\.9 to 1\) or a callable'):
        start_of("real_target", text, end=1.0)


def test_linear_schedules_run_to_their_end() -> None:
    assert linear_start("lin_-2e-1") == -0.2
    assert [as_schedule("lin_0.1")(progress) for progress in (1.0, 0.3, 0.0)] == [0.1, 0.3 * 0.1, 0.0]
    found = [value_at("floor", "lin_0.1", progress, low=0, high=1) for progress in (1.0, 0.3, 0.0)]
    assert found == [0.1, 0.3 * 0.1, 0.0]
    found = [value_at("target", "lin_0.8", progress, low=0, high=1, end=1.0) for progress in (1.0, 0.3, 0.0)]
    assert found == [0.8, 1 - 0.3 * (1 - 0.8), 1.0]


def test_numbers_and_callables_are_taken_as_they_are() -> None:
    assert as_schedule(0.5)(0.1) == value_at("floor", 0.5, 0.1, low=0, high=1) == 0.5
    assert as_schedule(lambda progress: progress**2)(0.5) == value_at("a", lambda p: p**2, 0.5, low=0, high=1) == 0.25
    check_schedule("floor", lambda progress: 7.0, low=0, high=1)
    with pytest.raises(ValueError, match=r"^floor, a callable, gave 7\.0 at progress 0\.5: floor=7\.0 must be"):
        value_at("floor", lambda progress: 7.0, 0.5, low=0, high=1)


@pytest.mark.parametrize("number", [None, "x", math.nan, -1.0, math.inf])
def test_what_a_learning_rate_function_gives_is_checked(number: Any) -> None:
    rate = as_schedule(lambda progress: number)
    error = ValueError if isinstance(number, float) else TypeError
    assert_raises(error, f"^learning_rate, a callable, gave {number!r} at progress 0.5", rate, 0.5)
    given = as_schedule(lambda progress: np.float32(0.5))(1.0)
    assert type(given) is float  # JSON can't hold numpy's scalars, and checkpoints keep the rate


def test_numbers_out_of_range_are_named() -> None:
    assert_raises(TypeError, "learning_rate", as_schedule, None)
    for bad in (0.0, -1.0, float("inf")):
        assert_raises(ValueError, r"^learning_rate=.* must be a finite number in \(0", as_schedule, bad)
    for text in ("lin_0", "lin_-1", "lin_inf", "lin_nan"):
        assert_raises(ValueError, f"^learning_rate='{text}' must start from a finite number above 0", as_schedule, text)
    for bad in (-0.1, 1.5, "lin_1.5", "lin_nan"):
        with pytest.raises(ValueError, match=r"^floor=.* must be a finite number in \[0, 1\]"):
            check_schedule("floor", bad, low=0, high=1)
    assert_raises(TypeError, "floor must be a number", check_schedule, "floor", None, low=0, high=1)


def test_only_the_number_0_is_off() -> None:
    values = (0, 0.0, 0.1, "lin_0", lambda progress: 0.0)
    assert [is_zero(value) for value in values] == [True, True, False, False, False]


# ---- a file is whole or not there


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes_atomically(path, b"one")
    write_bytes_atomically(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyError

    assert_raises(KeyError, None, write_half)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_old_file_is_there_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_the_block_may_seek_and_read(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as file:
        file.write(b"abc")
        file.seek(1)
        assert file.read() == b"bc"
        file.seek(0)
        file.write(b"A")
    assert (tmp_path / "file").read_bytes() == b"Abc"


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_modes_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_bytes(b"")
    write_bytes_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    (tmp_path / "ours").chmod(0o640)
    write_bytes_atomically(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o640


def test_places_that_can_not_be_written(tmp_path: Path) -> None:
    assert_raises(ValueError, "is a folder: name a file", write_bytes_atomically, tmp_path, b"")
    assert_raises(ValueError, "can't be written", write_bytes_atomically, tmp_path / "missing" / "file", b"")


KILLED = """
import sys
from rlsmooth.atomic import write_bytes_atomically
for number in range(10**9):
    write_bytes_atomically(sys.argv[1], bytes([number % 256]) * 300_000)
    if number == 0:
        print("started", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for attempt in range(3):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(0.01 + 0.013 * attempt)
            os.kill(process.pid, signal.SIGKILL)
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
