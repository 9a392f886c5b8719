"""Every registered environment passes the checkers of Gymnasium and SB3, and works in vector environments."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv

import rlsmooth.envs
from rlsmooth.envs import ENVIRONMENTS, TabularEnv, register_environments
from rlsmooth.envs.registration import Entry

IDS = [entry.id for entry in ENVIRONMENTS]
IDENTITY_IDS = [name for name in IDS if "Identity" in name]  # their episodes are as long as asked for
FORMS = ("native", "one_hot", "dict", "image")
CASES = [(name, {"observation": form}) for name in IDENTITY_IDS if name != "rlsmooth/IdentityBox-v0" for form in FORMS]
CASES += [("rlsmooth/IdentityBox-v0", {}), ("rlsmooth/IdentityBox-v0", {"num_dims": 1, "state_bound": 1.0})]
CASES += [("rlsmooth/DeepSea-v0", {}), ("rlsmooth/DeepSea-v0", {"size": 50, "deterministic": False})]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_both_checkers_pass_without_a_warning(name: str, arguments: dict[str, Any]) -> None:
    gymnasium_check_env(gym.make(name, **arguments).unwrapped)  # pytest turns their warnings into errors
    sb3_check_env(gym.make(name, **arguments))


def test_the_ids_of_issue_2_are_there_and_well_formed() -> None:
    wanted = {"Identity", "IdentityMultiDiscrete", "IdentityMultiBinary", "IdentityOrdered", "IdentityMasked"}
    assert {f"rlsmooth/{name}-v0" for name in wanted} <= set(IDS)
    assert len(set(IDS)) == len(IDS)
    assert all(re.fullmatch(r"rlsmooth/[A-Z]\w*-v\d+", name) for name in IDS)


def test_every_class_is_exported_under_its_own_name() -> None:
    for entry in ENVIRONMENTS:
        env = gym.make(entry.id).unwrapped
        assert type(env) is getattr(rlsmooth.envs, type(env).__name__)
        assert type(env).__name__ in rlsmooth.envs.__all__


def test_registering_again_changes_nothing() -> None:
    before = dict(gym.registry)
    register_environments()
    assert dict(gym.registry) == before


def test_an_id_taken_by_somebody_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Entry("rlsmooth/Identity-v0", "elsewhere:Env")
    monkeypatch.setattr("rlsmooth.envs.registration.ENVIRONMENTS", (taken,))
    with pytest.raises(ValueError, match=r"already registered for 'rlsmooth\.envs\.identity:IdentityEnv'"):
        register_environments()


def test_gym_make_imports_the_module_named_before_the_colon() -> None:
    code = (
        "import gymnasium as gym\n"
        "assert not any('rlsmooth' in name for name in gym.registry)\n"
        "env = gym.make('rlsmooth.envs:rlsmooth/Identity-v0', num_actions=3)\n"
        "print(env.spec.id, env.action_space)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "rlsmooth/Identity-v0 Discrete(3)"


@pytest.mark.parametrize("name", IDENTITY_IDS)
def test_vector_environments(name: str) -> None:
    length = 4
    vector = SyncVectorEnv([lambda: gym.make(name, episode_length=length)] * 3)
    vector.reset(seed=1)
    ends = [vector.step(vector.action_space.sample())[3] for _ in range(length)]
    assert np.array_equal(np.stack(ends), [[False] * 3] * (length - 1) + [[True] * 3])

    dummy = DummyVecEnv([lambda: gym.make(name, episode_length=length)] * 3)
    dummy.seed(1)
    dummy.reset()
    for step in range(length):
        _, _, dones, infos = dummy.step(np.stack([dummy.action_space.sample() for _ in range(3)]))
        assert list(dones) == [step == length - 1] * 3
    # SB3 bootstraps from the last observation where it finds these two
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert all(dummy.observation_space.contains(info["terminal_observation"]) for info in infos)


@pytest.mark.parametrize("name", IDS)
def test_vector_environment_masks(name: str) -> None:
    dummy = DummyVecEnv([lambda: gym.make(name)] * 2)
    dummy.seed(0)
    observations = dummy.reset()
    assert dummy.has_attr("action_masks") == ("Masked" in name)
    if "Masked" in name:
        env = dummy.envs[0].unwrapped
        assert isinstance(env, TabularEnv)
        masks = np.stack(dummy.env_method("action_masks"))
        assert np.array_equal(masks, env.problem.legal[[env.state_of(row) for row in observations]])
