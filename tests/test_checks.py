"""Argument checks: what passes comes back, what doesn't names argument, value and fix."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rlsmooth.checks import check_choice, check_in_range, check_positive_int, check_writable_folder


def test_choice_accepts_what_is_listed() -> None:
    check_choice("spread", "all", ("all", "others"))


@pytest.mark.parametrize("value", ["ALL", "", "al", None, 1, ["all"], ("all",)])
def test_choice_names_argument_value_and_choices(value: object) -> None:
    message = re.escape(f"spread={value!r} is not known: choose one of 'all', 'others'.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_choice("spread", value, ("all", "others"))


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
    with pytest.raises(ValueError, match=r"must be a finite number in \[-inf, inf\]"):
        check_in_range("decay", value)


def test_open_ends_are_excluded_and_written_as_such() -> None:
    assert check_in_range("power", 1e-300, 0.0, low_open=True) == 1e-300
    with pytest.raises(ValueError, match=r"power=0 must be a finite number in \(0, inf\]"):
        check_in_range("power", 0, 0.0, low_open=True)
    with pytest.raises(ValueError, match=r"eps=1 must be a finite number in \[0, 1\)"):
        check_in_range("eps", 1, 0.0, 1.0, high_open=True)


@pytest.mark.parametrize("value", [True, "1", None, [1.0], torch.tensor(1.0)])
def test_range_refuses_what_is_no_number(value: object) -> None:
    with pytest.raises(TypeError, match=f"^alpha must be a number, got {type(value).__name__} "):
        check_in_range("alpha", value)


@pytest.mark.parametrize("value", [3, np.int64(3), torch.tensor(3)])
def test_positive_int_returns_an_int(value: int) -> None:
    result = check_positive_int("num_classes", value)
    assert type(result) is int
    assert result == 3


@pytest.mark.parametrize("value", [True, 3.0, "3", None, torch.ones(2)])
def test_positive_int_refuses_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(TypeError, match=r"num_classes|only integer tensors"):
        check_positive_int("num_classes", value)


def test_positive_int_names_the_minimum() -> None:
    with pytest.raises(ValueError, match=r"^num_classes=0 must be at least 1\.$"):
        check_positive_int("num_classes", 0)
    with pytest.raises(ValueError, match=r"^width=1 must be at least 2\.$"):
        check_positive_int("width", 1, 2)
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
    with pytest.raises(ValueError, match="can't be written to"):
        check_writable_folder("log_folder", tmp_path)
    tmp_path.chmod(0o700)
