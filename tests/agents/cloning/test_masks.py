"""Action masks in data or environment: an alias acts under them, a class that can't says so."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from rlsmooth.agents import BC, BCO, GAIL, DAgger, SmoothedActorCriticPolicy, load_agent
from rlsmooth.data import ObservationOnly, record
from rlsmooth.envs import IdentityEnv, IdentityMaskedEnv
from support import assert_raises

CPU: dict[str, Any] = {"seed": 0, "device": "cpu"}
ENV = IdentityMaskedEnv(4, illegal_action="raise")
MASKED = record(ENV.expert_action, ENV, 4)
UNMASKED = record(ENV.expert_action, ENV, 4, action_masks=False)
OBSERVED = ObservationOnly.from_demonstrations(MASKED)


def bco(policy: Any = "MlpPolicy") -> BCO:
    return BCO(policy, ENV, OBSERVED, n_rounds=2, transitions_per_round=50, inverse_epochs=1, n_epochs=1, **CPU)


def dagger(policy: Any = "MlpPolicy") -> DAgger:
    return DAgger(policy, ENV, ENV.expert_action, learning_rate=0.01, bc_train_n_epochs=10, **CPU)


BUILD: dict[str, Any] = {
    "environment and data": lambda policy="MlpPolicy": BC(policy, ENV, MASKED, learning_rate=0.05, **CPU),
    "data": lambda policy="MlpPolicy": BC(policy, None, MASKED, learning_rate=0.05, **CPU),
    "environment": lambda policy="MlpPolicy": BC(policy, ENV, UNMASKED, learning_rate=0.05, **CPU),
    "evaluation": lambda policy="MlpPolicy": BC(policy, None, UNMASKED, eval_env=ENV, learning_rate=0.05, **CPU),
    "dagger": dagger,
    "bco": bco,
}


@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
def test_an_alias_acts_under_the_masks(build: Any, tmp_path: Path) -> None:
    agent = build()
    assert type(agent.policy).__name__ == "MaskableActorCriticPolicy"
    states = np.arange(4)
    legal = np.asarray(MASKED.action_masks)[[int(np.flatnonzero(MASKED.observations == state)[0]) for state in states]]
    for one in (agent, load_agent(agent.save(tmp_path / "agent"), device="cpu")):
        for deterministic in (True, False):  # untrained: only the masks can keep it from illegal actions
            actions, _ = one.predict(states, deterministic=deterministic, action_masks=legal)
            assert legal[states, actions].all()


@pytest.mark.parametrize("name", ["environment and data", "environment", "dagger"])
def test_the_clone_returns_what_the_expert_does(name: str) -> None:
    agent = BUILD[name]()
    agent = agent.learn(1000) if isinstance(agent, DAgger) else agent.learn(total_epochs=30)
    assert agent.evaluate()["mean_reward"] == 10.0  # an illegal action would raise
    assert evaluate_policy(agent, ENV, 5, warn=False)[0] == 10.0  # sb3-contrib's own


@pytest.mark.parametrize("build", BUILD.values(), ids=BUILD)
def test_a_class_that_cannot_use_masks_names_the_one_that_can(build: Any) -> None:
    instance = ActorCriticPolicy(ENV.observation_space, ENV.action_space, lambda _: 1e-3)
    for given, wanted in (
        (ActorCriticPolicy, "MaskableActorCriticPolicy"),
        (instance, "MaskableActorCriticPolicy"),
        (SmoothedActorCriticPolicy, "SmoothedMaskableActorCriticPolicy"),
    ):
        with pytest.warns(UserWarning, match=f"which will choose illegal actions: use {wanted} ") as caught:
            build(given)
        assert [one.filename for one in caught] == [__file__]  # the user's line


def test_one_warning_is_enough_and_files_do_not_warn(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="illegal actions"):
        agent = dagger(ActorCriticPolicy)
    free = IdentityMaskedEnv(4)
    agent.set_env(free)
    agent.learn(500)  # warnings are errors here
    assert agent.round > 0
    BC.load(agent.save(tmp_path / "agent"), free, MASKED, device="cpu").learn(total_epochs=1)
    DAgger.load(tmp_path / "agent.zip", free, free.expert_action, device="cpu")


def test_where_no_masks_are_there_policies_are_the_plain_ones() -> None:
    env = IdentityEnv(4)
    assert type(BC("MlpPolicy", env, record(env.expert_action, env, 1), **CPU).policy) is ActorCriticPolicy
    box = spaces.Box(-1.0, 1.0, (2,))
    assert type(BC("MlpPolicy", (box, box), None, **CPU).policy) is ActorCriticPolicy


def test_without_sb3_contrib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.startswith("sb3_contrib"):
            monkeypatch.setitem(sys.modules, name, None)
    for build in BUILD.values():
        assert_raises(ValueError, r"pip install 'rlsmooth\[contrib\]'", build)


def test_generators_and_warm_starts_that_forget_the_masks_warn() -> None:
    with pytest.warns(UserWarning, match=r"its ActorCriticPolicy: it will choose illegal.*MaskablePPO"):
        GAIL(MASKED, A2C("MlpPolicy", IdentityMaskedEnv(4), **CPU), seed=0, horizon=10)
    clone = BC("MlpPolicy", None, MASKED, **CPU)
    with pytest.warns(UserWarning, match=r"model is a PPO.*MaskablePPO"):
        clone.warm_start(PPO("MlpPolicy", ENV, **CPU))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clone.warm_start(MaskablePPO("MlpPolicy", ENV, **CPU))
