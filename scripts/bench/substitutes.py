"""A pytest plugin that puts our classes in the place of Stable-Baselines3's names, for its own tests.

    export RLSMOOTH_SUBSTITUTE=on RLSMOOTH_SUBSTITUTE_RECORD=tests.jsonl
    python -P -m pytest -p rlsmooth.scripts.bench.substitutes tests

The parents' modules hold their own names already: only what imports them afterwards, which is the tests, gets ours.
For each test it appends one JSON line: outcome, seconds, and the names of the on-policy models and policies it built.
"""

from __future__ import annotations

import importlib
import json
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from rlsmooth import agents

Mode = Literal["parents", "off", "on"]
MODES: tuple[Mode, ...] = ("parents", "off", "on")
MODE_VARIABLE, RECORD_VARIABLE = "RLSMOOTH_SUBSTITUTE", "RLSMOOTH_SUBSTITUTE_RECORD"
SMOOTHING = 0.1
"""What `smoothing` is with everything on, where a test does not give it."""

ALGORITHMS = {
    "PPO": ("stable_baselines3", "stable_baselines3.ppo"),
    "A2C": ("stable_baselines3", "stable_baselines3.a2c"),
    "MaskablePPO": ("sb3_contrib", "sb3_contrib.ppo_mask"),
    "RecurrentPPO": ("sb3_contrib", "sb3_contrib.ppo_recurrent"),
}
"""Our algorithms, without `Smoothed`, and where users import the parents from."""

POLICIES = {
    "stable_baselines3.common.policies": (
        "ActorCriticPolicy",
        "ActorCriticCnnPolicy",
        "MultiInputActorCriticPolicy",
    ),
    "sb3_contrib.common.maskable.policies": (
        "MaskableActorCriticPolicy",
        "MaskableActorCriticCnnPolicy",
        "MaskableMultiInputActorCriticPolicy",
    ),
    "sb3_contrib.common.recurrent.policies": (
        "RecurrentActorCriticPolicy",
        "RecurrentActorCriticCnnPolicy",
        "RecurrentMultiInputActorCriticPolicy",
    ),
}
ALIASES = {
    "stable_baselines3.ppo": ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"),
    "stable_baselines3.a2c": ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"),
    "sb3_contrib.ppo_mask": ("MlpPolicy", "CnnPolicy", "MultiInputPolicy"),
    "sb3_contrib.ppo_recurrent": ("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy"),
}
"""Modules that give the policies of POLICIES, in that order, short names."""


def substitute_for(name: str, mode: Mode) -> type[OnPolicyAlgorithm]:
    """Our algorithm for SB3's `name`; with smoothing on its `smoothing` is SMOOTHING unless an argument says otherwise.

    Examples:
        >>> substitute_for("PPO", "off").__name__
        'SmoothedPPO'
        >>> substitute_for("A2C", "on")("MlpPolicy", "CartPole-v1").smoothing.alpha
        0.1
    """
    ours: type[OnPolicyAlgorithm] = getattr(agents, f"Smoothed{name}")
    if mode == "off":
        return ours

    def __init__(self: Any, *args: Any, smoothing: Any = SMOOTHING, **kwargs: Any) -> None:  # noqa: N807
        cast(Any, ours).__init__(self, *args, smoothing=smoothing, **kwargs)

    def fill(namespace: dict[str, Any]) -> None:
        namespace |= {"__init__": __init__, "__module__": __name__, "__doc__": ours.__doc__}

    return types.new_class(ours.__name__, (ours,), {}, fill)


def substitute(mode: Mode) -> None:
    """Give our classes the parents' names, in the modules from which users import these; `"parents"` changes nothing.

    TRPO, of which we have no form, gets our policies under its aliases.
    """
    if mode == "parents":
        return
    for name, modules in ALGORITHMS.items():
        ours = substitute_for(name, mode)
        for module in modules:
            setattr(importlib.import_module(module), name, ours)
    smoothed = {
        name: getattr(agents, f"Smoothed{name}") for names in POLICIES.values() for name in names
    }  # all before the first is replaced
    parents = {
        getattr(importlib.import_module(module), name): smoothed[name]
        for module, names in POLICIES.items()
        for name in names
    }
    for module, names in ALIASES.items():
        for name in names:
            there = importlib.import_module(module)
            setattr(there, name, parents[getattr(there, name)])
    trpo: Any = importlib.import_module("sb3_contrib").TRPO
    trpo.policy_aliases = {alias: parents[policy] for alias, policy in trpo.policy_aliases.items()}
    for module, names in POLICIES.items():
        for name in names:
            setattr(importlib.import_module(module), name, smoothed[name])


# ---- what pytest calls

_built: set[str] = set()
_outcome: dict[str, Any] = {}


def _watch(base: type[Any]) -> None:
    """Note the class of each object of `base` that is built."""
    original = base.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        _built.add(type(self).__name__)
        original(self, *args, **kwargs)

    base.__init__ = __init__


def pytest_configure() -> None:
    """Substitute before any test is imported."""
    if RECORD_VARIABLE not in os.environ:
        return
    mode = os.environ.get(MODE_VARIABLE)
    if mode not in MODES:
        raise pytest.UsageError(f"{MODE_VARIABLE}={mode!r}: choose one of {', '.join(MODES)}.")
    substitute(mode)
    _watch(OnPolicyAlgorithm)
    _watch(ActorCriticPolicy)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has its line already: an earlier process was cut off after it."""
    record = Path(os.environ.get(RECORD_VARIABLE, ""))
    if not record.is_file():
        return
    known = {json.loads(line)["test"] for line in record.read_text(encoding="utf-8").splitlines()}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Append the test's line."""
    _built.clear()
    _outcome.clear()
    try:
        return (yield)
    finally:
        if RECORD_VARIABLE in os.environ and "outcome" in _outcome:  # else it was interrupted
            line = {"test": item.nodeid, **_outcome, "built": sorted(_built)}
            with Path(os.environ[RECORD_VARIABLE]).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a phase ended; a failure anywhere counts, and so does a skip."""
    _outcome["seconds"] = round(_outcome.get("seconds", 0.0) + report.duration, 2)
    if report.when == "call" or report.outcome != "passed":
        expected = "xfailed" if report.outcome == "skipped" and hasattr(report, "wasxfail") else report.outcome
        if _outcome.get("outcome") != "failed":
            _outcome["outcome"] = expected
            _outcome["message"] = _message(report) if report.outcome == "failed" else ""


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(report.longrepr if crash is None else crash.message)[:600]
