"""`rlsmooth ppo -i` and its kind: a saved agent that is trained further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env

from commands import assert_refused, assert_same_run, parameters, report_of, run_here
from killing import kill_command
from rlsmooth.agents import SmoothedPPO, load_agent, save_agent
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.run_folder import read_settings
from rlsmooth.training.safe_file import read_safe_file, write_safe_file
from support import same_parameters, same_tensors

SMALL = ("--eval-episodes", "2", "--eval-freq", "-1", "--save-freq", "-1", "--device", "cpu")
OWN = ("--smoothing", "0.05", "--hyperparams", "n_steps=32", "batch_size=32", "learning_rate=lin_1e-3", "gamma=0.9")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with settings that are not the defaults."""
    words = ("ppo", "--env", "CartPole-v1", "-n", "512", "--n-envs", "4", *OWN)
    return run_here(tmp_path_factory.mktemp("trained"), *words, *SMALL)


def test_it_is_what_loading_and_learning_gives(trained: Path, tmp_path: Path) -> None:
    folder = run_here(
        tmp_path,
        "ppo",
        "-i",
        str(trained),
        "-n",
        "256",
        "--seed",
        "3",
        "--engine",
        "torch",
        "--ent-coef",
        "0.02",
        *SMALL,
    )
    env = make_vec_env("CartPole-v1", 4, seed=3)
    agent = load_agent(trained / "agent.zip", env=env, device="cpu", custom_objects={"ent_coef": 0.02})
    agent.set_random_seed(3)
    agent.engine = "torch"
    agent.learn(256)
    assert same_tensors(parameters(folder), agent.policy.state_dict())
    assert (agent.n_steps, agent.gamma, agent.smoothing.alpha, agent.lr_schedule(1.0)) == (32, 0.9, 0.05, 1e-3)
    values = read_settings(folder, "ppo", "hyperparameters")
    assert {name: values[name] for name in ("n_envs", "n_steps", "gamma", "ent_coef", "n_timesteps")} == {
        "n_envs": 4,
        "n_steps": 32,
        "gamma": 0.9,
        "ent_coef": 0.02,
        "n_timesteps": 256,
    }
    assert read_metrics(folder / "metrics.csv")["time/total_timesteps"][0][-1] == 256


@pytest.mark.parametrize(
    "words",
    [
        "ppo --env Pendulum-v1 --n-envs 2 --hyperparams normalize=true use_sde=false n_steps=64 batch_size=64",
        "a2c --env CartPole-v1 --env-wrapper gymnasium.wrappers.FlattenObservation",
        "ppo --env FrozenLake-v1 --env-kwargs map_name=8x8 is_slippery=false --n-envs 2",
        "ppo --env CartPole-v1 --frame-stack 3 --hyperparams learning_rate=1e-3",
        "maskable-ppo --env rlsmooth/IdentityMasked-v0 --exploration-floor 0.1",
        "recurrent-ppo --env CartPole-v1 --n-envs 2",
    ],
)
def test_it_begins_where_the_run_ended(words: str, tmp_path: Path) -> None:
    command, *options = words.split()
    often = [*SMALL, "--eval-freq", "100"]
    before = run_here(tmp_path, command, *options, "-n", "256", *often)
    env = read_settings(before, command)["env"]
    after = run_here(tmp_path, command, "-i", str(before), "--env", env, "-n", "256", *often)
    last, first = (read_metrics(folder / "metrics.csv") for folder in (before, after))
    # Statistics of VecNormalize have seen two more observations, those of a reset.
    error = 0.02 if "normalize" in words else 0.0
    for name in ("eval/mean_reward", "eval/mean_reward_sampled", "eval/mean_ep_length"):
        assert first[name][0][0] == 0
        assert first[name][1][0] == pytest.approx(last[name][1][-1], rel=error)
    assert not same_tensors(parameters(before), parameters(after))


def test_a_target_entropy_can_be_turned_on_and_off(trained: Path, tmp_path: Path) -> None:
    on = run_here(tmp_path, "ppo", "-i", str(trained), "-n", "1024", "--target-entropy-frac", "0.99", *SMALL)
    assert report_of(on)["summary"]["target_entropy"] == pytest.approx(0.99 * 0.6931, abs=1e-4)
    alphas = read_metrics(on / "metrics.csv")["train/smoothing"][1]
    assert len(set(alphas)) == len(alphas)
    off = run_here(tmp_path, "ppo", "-i", str(on), "-n", "256", "--hyperparams", "target_entropy_frac=null", *SMALL)
    agent = load_agent(off / "agent.zip", device="cpu")
    assert isinstance(agent, SmoothedPPO)
    assert (agent.entropy_target, agent.alpha) == (None, 0.05)


def test_a_run_killed_goes_on_to_the_same_agent(trained: Path, tmp_path: Path) -> None:
    settings = ["-i", str(trained), "-n", "1280", "--eval-freq", "512", "--save-freq", "256", "--eval-episodes", "1"]
    whole, folder = kill_command("ppo", [*settings, "--device", "cpu"], tmp_path, 512)
    assert_same_run(whole, folder)
    first = load_agent(trained / "agent.zip", device="cpu")
    assert not same_parameters(first, load_agent(folder / "agent.zip", device="cpu"))


def test_what_does_not_fit_is_told(
    trained: Path, clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = ("ppo", "--log-folder", str(tmp_path / "logs"), "-i")
    foreign = tmp_path / "sb3.zip"
    SmoothedPPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").save(foreign)
    other = save_agent(DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu"), tmp_path / "dqn.zip")
    for words, says in (
        ([*begin, str(tmp_path / "none.zip")], "is neither an agent's file nor a run's folder"),
        ([*begin, str(clone)], "is a clone"),
        ([*begin, str(other)], "is a DQN, and SmoothedPPO is trained here"),
        ([*begin, str(foreign)], "pickle"),
        (["a2c", *begin[1:], str(trained)], "is a SmoothedPPO, and SmoothedA2C is trained here"),
        ([*begin, str(trained), "--env", "Acrobot-v1"], "observation_space="),
        ([*begin, str(trained), "--from-bc", str(clone)], "--from-bc can't be used with --trained-agent"),
        ([*begin, str(trained), "--conf-file", "mine.yml"], "mine.yml"),
        ([*begin, str(trained), "--value-warmup-steps", "10"], "is for --from-bc"),
        ([*begin, str(trained), "--hyperparams", "policy_kwargs={}"], "can't change policy_kwargs"),
        ([*begin, str(trained), "--hyperparams", "n_step=3"], "n_step"),
    ):
        assert_refused(says, words, capsys)
    assert not (tmp_path / "logs").exists()


def test_a_file_does_not_choose_how_many_environments_there_are(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form: Any = {"format_name": "rlsmooth-agent", "format_version": 1}
    content = read_safe_file(trained / "agent.zip", **form)
    content.config["config"]["n_envs"] = 5_000
    path = tmp_path / "agent.zip"
    write_safe_file(path, content.config, tensors=content.tensors, **form)
    assert_refused("has n_envs=5000: if you trust it, give --n-envs", ["ppo", "-i", str(path)], capsys)
