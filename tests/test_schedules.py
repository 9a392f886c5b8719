"""Schedules: one reading of `"lin_…"` for learning rates, floors, targets and coefficients."""

from __future__ import annotations

import pytest

from rlsmooth.schedules import as_schedule, check_schedule, is_zero, linear_start, start_of, value_at


@pytest.mark.parametrize("text", ["lin", "lin_", "lin_x", "lin_0_1", "exp_0.1", "0.1", "", "_lin_1"])
def test_other_words_are_no_schedule(text: str) -> None:
    assert linear_start(text) is None
    example = r'is no schedule: write "lin_0\.1" \(from 0\.1 down to 0\), or give a callable\.$'
    for call in (
        lambda: start_of("rate", text),
        lambda: as_schedule(text, "rate"),
        lambda: check_schedule("rate", text, low=0, high=1),
        lambda: value_at("rate", text, 0.5, low=0, high=1),
    ):
        with pytest.raises(ValueError, match=rf"^rate={text!r} {example}"):
            call()
    with pytest.raises(ValueError, match=r'write "lin_0\.9" \(from 0\.9 to 1\), or give a callable'):
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


def test_numbers_out_of_range_are_named() -> None:
    for bad in (0.0, -1.0, float("inf"), "lin_0", "lin_-1", "lin_inf", "lin_nan"):
        with pytest.raises(ValueError, match=r"^learning_rate=.* must be a finite number in \(0"):
            as_schedule(bad)
    for bad in (-0.1, 1.5, "lin_1.5", "lin_nan"):
        with pytest.raises(ValueError, match=r"^floor=.* must be a finite number in \[0, 1\]"):
            check_schedule("floor", bad, low=0, high=1)
    with pytest.raises(TypeError, match="floor must be a number"):
        check_schedule("floor", None, low=0, high=1)


def test_only_the_number_0_is_off() -> None:
    values = (0, 0.0, 0.1, "lin_0", lambda progress: 0.0)
    assert [is_zero(value) for value in values] == [True, True, False, False, False]
