"""Other people's environments: wrappers by name, frame stacks, packages, and each family from training to recording."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from commands import COMMAND, zoo_file
from rlsmooth.agents import SmoothedPPO
from rlsmooth.data import Demonstrations
from rlsmooth.scripts.arguments import OnPolicyArgs, environment_settings, to_give_again
from rlsmooth.scripts.environment import make_envs, policy_alias
from rlsmooth.scripts.hyperparameters import resolve_hyperparameters, wrapper_words
from rlsmooth.scripts.on_policy import evaluation_envs, hyperparameter_values, training_envs
from rlsmooth.scripts.run_folder import EnvironmentSettings, choosing_wrappers, env_of_run, write_settings
from support import assert_raises

RESHAPE = "gymnasium.wrappers.ReshapeObservation:{shape: [2, 2]}"


class Told(gym.Env[Any, Any]):
    """Shows a number and a sentence."""

    observation_space = spaces.Dict({"place": spaces.Box(0, 1, (2,)), "said": spaces.Text(5)})
    action_space = spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, nested: bool = False, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        if nested:
            self.observation_space = spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,))))  # type: ignore[assignment]

    def reset(self, **_: Any) -> Any:
        return self.observation_space.sample(), {}


@pytest.fixture
def told() -> Any:
    gym.register("Told-v0", Told)
    yield
    gym.registry.pop("Told-v0")


# ---- wrappers and frame stacks


def test_wrappers_and_the_frame_stack_are_applied_from_the_inside_out() -> None:
    words = ("gymnasium.wrappers.FlattenObservation", RESHAPE, "gymnasium.wrappers.ClipReward:{max_reward: 0.5}")
    for how in (None, "sync"):
        venv = make_envs(EnvironmentSettings(env="CartPole-v1", wrappers=words, frame_stack=3), 2, 0, vectorization=how)
        first = venv.reset()
        assert first.shape == (2, 2, 6)
        assert (first[:, :, :4] == 0).all()
        seen, rewards, *_ = venv.step([0, 1])
        assert rewards.tolist() == [0.5, 0.5]
        assert (seen[:, :, 2:4] == first[:, :, 4:]).all()


def test_rl_zoos_forms_of_wrappers_are_one() -> None:
    assert wrapper_words({"a.B": {"shape": [64, 64]}}) == wrapper_words(["a.B:{shape: [64, 64]}"])
    assert wrapper_words(None) == wrapper_words([]) == []
    for wrong in (3, {"a.B": 1}, {"a.B": {}, "c.D": {}}, "B", "a.B:[1]", [["a.B"]]):
        assert_raises(ValueError, "env_wrapper=", wrapper_words, wrong)


@pytest.mark.parametrize(
    ("wrappers", "stack", "says"),
    [
        (["gymnasium.wrappers.ClipAktion"], None, r"has no class 'ClipAktion' \(did you mean ClipAction\?\)"),
        (["no_such.Wrapper"], None, "the module 'no_such' can't be imported"),
        (["gymnasium.wrappers.ReshapeObservation:{shape: [3]}"], None, "does not fit the environment"),
        (["gymnasium.wrappers.ClipReward:{least: 1}"], None, "does not fit the environment.*'least'"),
        ([], 0, "frame_stack=0"),
    ],
)
def test_a_wrapper_that_can_not_be_used_is_named(wrappers: list[str], stack: int | None, says: str) -> None:
    settings = EnvironmentSettings(env="CartPole-v1", wrappers=tuple(wrappers), frame_stack=stack)
    assert_raises(ValueError, says, make_envs, settings, 1, 0)


def test_observations_that_sb3_can_not_take_are_named_with_a_wrapper(told: Any) -> None:
    assert_raises(ValueError, "whose 'said' is a Text.*wrap it, --env-wrapper", make_envs, "Told-v0", 1, 0)
    settings = EnvironmentSettings(env="Told-v0", env_kwargs={"nested": True})
    assert_raises(ValueError, "a Tuple.*gymnasium.wrappers.FlattenObservation", make_envs, settings, 1, 0)
    assert_raises(ValueError, "frame_stack=2 stacks arrays", make_envs, EnvironmentSettings(
        env="FrozenLake-v1", frame_stack=2), 1, 0)  # fmt: skip


@pytest.mark.parametrize(
    ("env", "form"),
    [("ALE/Pong-v5", "ale_py:ALE/Pong-v5"), ("MiniGrid-Empty-5x5-v0", "minigrid:MiniGrid-Empty-5x5-v0")],
)
def test_an_id_without_its_package_names_the_form_that_works(env: str, form: str) -> None:
    if env in gym.registry:
        pytest.skip("another test has imported its package")
    assert_raises(ValueError, f"Write --env {form}", make_envs, env, 1, 0)


def test_small_images_get_no_convolutions() -> None:
    for shape, name in (((7, 7, 3), "MlpPolicy"), ((36, 36, 3), "CnnPolicy"), ((3, 40, 40), "CnnPolicy")):
        assert policy_alias(spaces.Box(0, 255, shape, np.uint8)) == name


# ---- what a run's file may choose


@pytest.mark.parametrize(
    "word",
    [
        *("mine.Wrapper", "os.system", "gymnasium.wrappers.HumanRendering", "gymnasium.vector.VectorEnv"),
        "gymnasium.wrappers.RecordVideo:{video_folder: x}",
        "gymnasium.wrappers.FrameStackObservation:{stack_size: 100000000}",
        "gymnasium.wrappers.FrameStackObservation:{stack_size: 9999:59:59}",
        "gymnasium.wrappers.TransformObservation:{func: !!python/name:os.system }",
        "gymnasium.wrappers.ResizeObservation:{shape: [2000, 2000]}",
    ],
)
def test_wrappers_that_may_run_write_or_exhaust_are_given_again(word: str) -> None:
    assert choosing_wrappers(["minigrid.wrappers.FlatObsWrapper", word]) == [word]
    assert to_give_again(OnPolicyArgs(env_wrapper=(word,)))["env_wrapper"][0] == (word,)


def test_those_of_known_libraries_are_free_and_packages_are_not() -> None:
    atari = "stable_baselines3.common.atari_wrappers.AtariWrapper:{terminal_on_life_loss: false, screen_size: 84}"
    skip = 'rl_zoo3.wrappers.FrameSkip:{"skip": 2}'
    free = OnPolicyArgs(env="minigrid:MiniGrid-Empty-5x5-v0", env_wrapper=(RESHAPE, atari, skip), frame_stack=64)
    assert to_give_again(free) == {}
    own = OnPolicyArgs(gym_packages=("mine",), frame_stack=65, eval_env_kwargs=("xml_file=/x",))
    assert set(to_give_again(own)) == {"gym_packages", "frame_stack", "eval_env_kwargs"}


def test_a_run_says_how_its_agent_sees(tmp_path: Path) -> None:
    agent = tmp_path / "agent.zip"
    args = OnPolicyArgs(
        env="Pendulum-v1", env_kwargs=("g:9.0",), eval_env_kwargs=("g:1.62",), env_wrapper=(RESHAPE,), frame_stack=2
    )
    write_settings(tmp_path, "ppo", args, {"hyperparameters": {"env_wrapper": [RESHAPE], "frame_stack": 2}})
    own = EnvironmentSettings(env="Pendulum-v1", wrappers=(RESHAPE,), frame_stack=2, env_kwargs={"g": 1.62})
    assert env_of_run(agent) == own
    assert env_of_run(agent, evaluation=False).env_kwargs == {"g": 9.0}
    other = env_of_run(agent, EnvironmentSettings(env="Other-v0"))
    assert (other.wrappers, other.env_kwargs) == ((RESHAPE,), {})
    write_settings(tmp_path, "ppo", OnPolicyArgs(env_wrapper=("mine.W",)))
    assert_raises(ValueError, "if you trust it, give --env-wrapper mine.W", env_of_run, agent)
    write_settings(tmp_path, "ppo", OnPolicyArgs(gym_packages=("mine",)))
    assert_raises(ValueError, "if you trust it, give --gym-packages mine", env_of_run, agent)


def test_evaluations_have_arguments_of_their_own() -> None:
    args = OnPolicyArgs(
        env="Pendulum-v1", env_kwargs=("g=9",), eval_env_kwargs=("g:1.5",), n_eval_envs=1, frame_stack=2
    )
    values = hyperparameter_values("ppo", args, SmoothedPPO, algorithm="ppo")
    hyperparameters = resolve_hyperparameters(values, SmoothedPPO)
    for make, gravity in ((training_envs, 9), (evaluation_envs, 1.5)):
        venv = make(args, hyperparameters)
        assert venv.get_attr("unwrapped")[0].g == gravity
        assert venv.observation_space.shape == (6,)
    assert environment_settings(args, evaluation=True).env_kwargs == {"g": 1.5}


# ---- the families


FEW = (
    "--eval-episodes",
    "1",
    "--n-eval-envs",
    "1",
    "--n-envs",
    "2",
    "-n",
    "64",
    "--save-freq",
    "32",
    "--device",
    "cpu",
)
SMALL = ("-params", "n_steps=16", "batch_size=16", "n_epochs=1")
FLAT = ("--env-wrapper", "minigrid.wrappers.FlatObsWrapper")
GUARDED = f"if __name__ == '__main__':\n    {COMMAND}"  # the processes of environments import it again
FAMILIES = {
    "box2d": ("Box2D", ("--env", "LunarLander-v3", "--env-kwargs", "gravity:-5.0")),
    "minigrid": ("minigrid", ("--env", "minigrid:MiniGrid-Empty-5x5-v0", *FLAT, "--vec-env", "subproc")),
    "minigrid by package": ("minigrid", ("--env", "MiniGrid-DoorKey-5x5-v0", "--gym-packages", "minigrid")),
    "mujoco": ("mujoco", ("--env", "Swimmer-v5")),
    "atari": ("ale_py", ("--env", "ale_py:ALE/Pong-v5")),
    "car racing": ("Box2D", ("--env", "CarRacing-v3")),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_resumed_evaluated_shown_and_recorded(family: str, programs: Any, tmp_path: Path) -> None:
    module, words = FAMILIES[family]
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if family not in ("box2d", "minigrid", "mujoco"):  # RL Zoo's wrappers and frame stacks
        words = (*words, "--conf-file", str(zoo_file("ppo")))
    again = [word for word in words[2:4] if family == "minigrid by package"]

    def run(*words: str) -> str:
        done = programs.run(GUARDED, tmp_path, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    short = ("--env-kwargs", "max_episode_steps=20") if family == "car racing" else ()
    run("ppo", *words, *short, *FEW, *SMALL)
    (folder,) = (tmp_path / "logs" / "ppo").iterdir()
    (folder / "agent.zip").unlink()
    run("ppo", "--resume", str(folder), *again)
    agent = ("-i", str(folder), *again)
    run("evaluate", *agent, "--eval-episodes", "1", "--n-envs", "1", "--device", "cpu")
    run("enjoy", str(folder), *again, "--no-render", "--max-steps", "3", "--device", "cpu")
    run("record", *agent, "--n-episodes", "1", "--n-envs", "1", "--output", "own.npz", "--device", "cpu")
    config = json.loads((folder / "config.json").read_text())
    recorded = Demonstrations.load(tmp_path / "own.npz")
    assert recorded.metadata["env_id"] == config["arguments"]["env"]
    assert recorded.metadata.get("env_wrapper", []) == config["hyperparameters"].get("env_wrapper", [])


@pytest.mark.slow
def test_ataris_wrappers_and_stack_are_those_of_sb3() -> None:
    pytest.importorskip("ale_py")
    settings = EnvironmentSettings(
        env="ale_py:ALE/Pong-v5", wrappers=("stable_baselines3.common.atari_wrappers.AtariWrapper",), frame_stack=4
    )
    ours = make_envs(settings, 2, 3)
    theirs = VecFrameStack(make_atari_env("ale_py:ALE/Pong-v5", n_envs=2, seed=3), 4)
    assert (ours.reset() == theirs.reset()).all()
    for action in np.random.default_rng(0).integers(6, size=(50, 2)):
        assert all(
            np.array_equal(one, other)
            for one, other in zip(ours.step(action)[:3], theirs.step(action)[:3], strict=True)
        )


@pytest.mark.slow
def test_minigrids_mission_is_named_with_the_wrapper(programs: Any, tmp_path: Path) -> None:
    if find_spec("minigrid") is None:  # to import it would register its environments for the tests after
        pytest.skip("minigrid is not installed")
    for how in ("dummy", "subproc"):
        done = programs.run(GUARDED, tmp_path, "ppo", "--env", "minigrid:MiniGrid-Empty-5x5-v0", "--vec-env", how)
        assert done.returncode == 2
        assert "'mission' is a MissionSpace" in done.stderr
        assert "--env-wrapper minigrid.wrappers.FlatObsWrapper" in done.stderr
