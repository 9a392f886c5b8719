"""The harness for Stable-Baselines3's own tests with our classes: it substitutes, counts and tells differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import stable_baselines3

from rlsmooth.scripts.bench import sb3_conformance
from rlsmooth.scripts.bench.sb3_conformance import Args, check_checkout, compare, fingerprints, main

TESTS = """
import pytest
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.ppo import MlpPolicy


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_the_name(algorithm):
    assert algorithm.__name__ in ("PPO", "A2C")


def test_smoothing():
    assert getattr(PPO("MlpPolicy", "CartPole-v1", device="cpu"), "smoothing", None) is None


def test_nothing_on():
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    assert not getattr(model, "is_smoothed", False)


def test_policies():
    model = PPO(MlpPolicy, "CartPole-v1", device="cpu")
    assert isinstance(model.policy, ActorCriticPolicy) and MlpPolicy is ActorCriticPolicy


@pytest.mark.skip
def test_left_out():
    pass


@pytest.mark.xfail
def test_wrong():
    assert 1 == 2


def test_sac():
    assert False
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "tests").mkdir(parents=True)
    (folder / "stable_baselines3").mkdir()
    (folder / "stable_baselines3" / "version.txt").write_text(f"{stable_baselines3.__version__}\n")
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (folder / "tests" / "test_small.py").write_text(TESTS)
    (folder / "tests" / "test_other.py").write_text(
        "from stable_baselines3 import SAC\n\ndef test_it(): assert False\n"
    )
    return folder


@pytest.mark.slow
def test_it_finds_what_ends_otherwise(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sb3_conformance, "fingerprints", list)
    work = tmp_path / "work"
    work.mkdir()
    # As if an earlier process had been cut off after this test, which would pass if it ran again.
    kept = {"test": "tests/test_small.py::test_policies", "outcome": "failed", "message": "kept", "built": []}
    (work / "checkout-on.jsonl").write_text(json.dumps(kept) + "\n")
    result = main(Args(checkout, output=tmp_path / "results", work=work, workers=2))
    named = {(found["test"].partition("::")[2], found["mode"]) for found in result["differences"]}
    both = {("test_the_name[PPO]", "off"), ("test_the_name[A2C]", "off"), ("test_smoothing", "off")}
    assert named == both | {(test, "on") for test, _ in both} | {("test_nothing_on", "on"), ("test_policies", "on")}
    endings = result["tests"]["stable-baselines3"]
    assert endings["tests/test_small.py::test_policies"] == ["passed", "passed", "failed"]
    assert endings["tests/test_small.py::test_left_out"] == ["skipped"] * 3
    assert endings["tests/test_small.py::test_wrong"] == ["xfailed"] * 3
    assert result["counts"]["stable-baselines3"]["parents"] == {"passed": 5, "skipped": 1, "xfailed": 1}
    assert result["built_ours"]["stable-baselines3"] == {"parents": 0, "off": 3, "on": 2}
    assert json.loads((tmp_path / "results" / "sb3_conformance.json").read_text()) == result
    page = (tmp_path / "results" / "sb3_conformance.md").read_text()
    assert "`tests/test_small.py::test_nothing_on`, ours, smoothing on: failed" in page
    assert str(tmp_path) not in page


def test_a_test_that_is_missing_is_a_difference() -> None:
    passed: dict[str, Any] = {"outcome": "passed", "message": ""}
    found = compare(
        "a", {"parents": {"t": passed, "u": passed}, "off": {"t": passed}, "on": {"t": passed, "u": passed}}
    )
    assert [(one.test, one.mode, one.parents, one.ours) for one in found] == [("u", "off", "passed", "not run")]


@pytest.mark.slow
def test_off_is_the_parent_and_on_is_not() -> None:
    rows = fingerprints(128)
    assert len(rows) == 7
    for row in rows:
        assert row["parents"] == row["off"] != row["on"], row


def test_another_version_is_told(checkout: Path) -> None:
    (checkout / "stable_baselines3" / "version.txt").write_text("2.0.0")
    with pytest.raises(ValueError, match=r"checkout is of version 2\.0\.0, installed is"):
        check_checkout("checkout", checkout, "stable_baselines3")
    with pytest.raises(ValueError, match="is no source folder of stable_baselines3"):
        check_checkout("checkout", checkout / "tests", "stable_baselines3")
