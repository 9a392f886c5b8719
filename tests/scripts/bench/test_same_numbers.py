"""The recording of seeded runs: it repeats, and its comparison finds what differs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsmooth.scripts.bench import same_numbers
from rlsmooth.scripts.bench.same_numbers import Args, Log, compare, digest, largest_difference, main

ENVIRONMENT = {"torch": "2"}
RECORDING: dict[str, Any] = {
    "environment": ENVIRONMENT,
    "runs": {
        "first": {"parameters": "a1", "tags": {"bc/loss": [[1, 2], [0.5, 0.25]], "bc/ece": [[2], ["nan"]]}},
        "second": {"parameters": "b2", "tags": {"train/loss": [[8], [300.0]]}},
    },
}


@pytest.fixture
def after() -> dict[str, Any]:
    """A second recording, equal to the first."""
    return copy.deepcopy(RECORDING)


def test_equal_recordings_have_no_difference(after: dict[str, Any]) -> None:
    table, faults = compare(RECORDING, after)
    assert faults == []
    assert table.splitlines()[2:] == ["| first | yes | 2 | 0 |", "| second | yes | 1 | 0 |"]


def test_another_digest_is_found(after: dict[str, Any]) -> None:
    after["runs"]["second"]["parameters"] = "b3"
    table, faults = compare(RECORDING, after)
    assert faults == ["second: the parameters differ"]
    assert "| second | NO | 1 | 0 |" in table


def test_another_value_is_found(after: dict[str, Any]) -> None:
    after["runs"]["first"]["tags"]["bc/loss"][1][1] += 5e-7
    after["runs"]["second"]["tags"]["train/loss"][1][0] += 2e-4  # relative: 7e-7
    assert compare(RECORDING, after)[1] == []
    after["runs"]["first"]["tags"]["bc/loss"][1][1] = 0.26
    table, faults = compare(RECORDING, after)
    assert faults == ["first: bc/loss differs by 0.01"]
    assert "| first | yes | 2 | 0.01 |" in table


@pytest.mark.parametrize(
    "other", [[[1, 3], [0.5, 0.25]], [[1], [0.5]], [[1, 2], [0.5, "nan"]], [[1, 2], ["inf", 0.25]]]
)
def test_other_steps_and_lost_numbers_are_found(other: list[Any]) -> None:
    assert largest_difference([[1, 2], [0.5, 0.25]], other) == float("inf")
    assert largest_difference(other, [[1, 2], [0.5, 0.25]]) == float("inf")


def test_a_missing_tag_and_a_missing_run_are_found_and_a_new_tag_is_shown(after: dict[str, Any]) -> None:
    tags = after["runs"]["first"]["tags"]
    tags["bc/error"] = tags.pop("bc/ece")
    del after["runs"]["second"]
    table, faults = compare(RECORDING, after)
    assert faults == ["first: bc/ece is missing", "second: the run is missing"]
    assert "| first | yes | 1, 1 missing, 1 new | 0 |" in table


def test_the_exit_status_says_whether_files_differ(tmp_path: Path, after: dict[str, Any]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(RECORDING))
    second.write_text(json.dumps(after))
    assert main(Args(compare=(first, second))) == 0
    del after["runs"]["first"]["tags"]["bc/loss"]
    second.write_text(json.dumps(after))
    assert main(Args(compare=(first, second))) == 1


def test_a_digest_sees_one_bit() -> None:
    linear = torch.nn.Linear(2, 2)
    found = digest([linear])
    assert found == digest([copy.deepcopy(linear)])
    with torch.no_grad():
        linear.bias[0] = torch.nextafter(linear.bias[0], torch.tensor(2.0))
    assert found != digest([linear])


def test_a_log_keeps_all_but_timings() -> None:
    log = Log()
    logger = log.logger
    logger.record("train/loss", 1 / 3)
    logger.record("train/n_updates", 4, exclude="tensorboard")
    logger.record("train/histogram", torch.tensor([1.0, 3.0]))
    logger.record("time/fps", 100)
    logger.dump(7)
    assert log.tags == {
        "train/loss": ([7], [0.333333333]),
        "train/n_updates": ([7], [4.0]),
        "train/histogram/mean": ([7], [2.0]),
        "train/histogram/std": ([7], [1.0]),
    }


def test_a_run_is_recorded_and_repeats(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    name = "inverse-dynamics-box"
    for file in (first, second):
        torch.rand(3)
        assert main(Args(output=file, only=(name,))) == 0
    assert first.read_text() == second.read_text()
    run = json.loads(first.read_text())["runs"][name]
    assert len(run["parameters"]) == 64
    assert run["tags"]["inverse_dynamics/val_accuracy"][1][0] > 0


def test_an_unknown_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no such run: nothing\. There are bc-discrete, "):
        main(Args(only=("nothing",)))


def test_the_reference_holds_every_run() -> None:
    reference = Path(same_numbers.__file__).parent / "results" / "same_numbers_before.json"
    assert json.loads(reference.read_text())["runs"].keys() == same_numbers.RUNS.keys()
