"""`rlsmooth ppo -i` and its kind: a saved agent that is trained further."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from commands import assert_refused, assert_same_run, parameters, report_of, run_here
from killing import kill_command
from rlsmooth.agents import BC, SmoothedPPO, load_agent, save_agent
from rlsmooth.scripts import ppo
from rlsmooth.scripts.hyperparameters import resolve_hyperparameters
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.on_policy import hyperparameter_values, new_algorithm, training_envs, with_saved_agent
from rlsmooth.scripts.run_folder import read_settings
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError
from rlsmooth.training.safe_file import read_safe_file, write_safe_file
from support import assert_raises, same_parameters, same_tensors

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
        "recurrent-ppo --env CartPole-v1 --n-envs 2 --hyperparams normalize=false",
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
    error = 0.02 if "normalize=true" in words else 0.0
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
        ([*begin, str(trained), "--min-entropy-frac", "0.3", "--exploration-floor", "0.1"], "choose one"),
        ([*begin, str(trained), "--hyperparams", "n_step=3"], "n_step"),
    ):
        assert_refused(says, words, capsys)
    assert not (tmp_path / "logs").exists()


FORM: Any = {"format_name": "rlsmooth-agent", "format_version": 1}


def changed_file(path: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy an agent's file with something else in its description."""
    content = read_safe_file(path, **FORM)
    change(content.config["config"])
    write_safe_file(to, content.config, tensors=content.tensors, **FORM)
    return to


def made_further(path: Path, *words: str) -> Any:
    """The agent that `rlsmooth ppo -i path` would train, with its hyperparameters as `values`."""
    args = with_saved_agent(ppo.Args(**parsed(["-i", str(path), "--device", "cpu", *words])))
    values = hyperparameter_values("ppo", args, SmoothedPPO, algorithm="ppo")
    hyperparameters = resolve_hyperparameters(values, SmoothedPPO)
    agent = new_algorithm(SmoothedPPO, args, hyperparameters, training_envs(args, hyperparameters))
    agent.values, agent.env_id = values, args.env  # type: ignore[attr-defined]
    return agent


def parsed(words: list[str]) -> dict[str, Any]:
    return vars(tyro.cli(ppo.Args, args=words))


def saved(path: Path, env: Any = "CartPole-v1", **arguments: Any) -> Path:
    """A small agent's file."""
    return save_agent(SmoothedPPO("MlpPolicy", env, n_steps=64, device="cpu", **arguments), path / "agent.zip")


def test_a_smoothing_keeps_what_it_is_not_given(tmp_path: Path) -> None:
    own = Smoothing("lin_0.1", "triangular")
    path = saved(tmp_path, "rlsmooth/IdentityOrdered-v0", smoothing=own)
    env = ("--env", "rlsmooth/IdentityOrdered-v0")
    assert made_further(path, *env).smoothing == own
    assert made_further(path, *env).values["smoothing"] == "lin_0.1"
    for words in (["--smoothing", "0.02"], ["--hyperparams", "smoothing=0.02"]):
        assert made_further(path, *env, *words).smoothing == Smoothing(0.02, "triangular")
    assert made_further(path, *env, "--reference", "adjacent").smoothing == Smoothing("lin_0.1", "adjacent")


def test_the_reference_of_an_agent_that_began_with_a_clone_stays(clone: Path, tmp_path: Path) -> None:
    model = SmoothedPPO.from_bc(BC.load(clone / "agent.zip"), "CartPole-v1", n_steps=64, device="cpu")
    path = save_agent(model, tmp_path / "agent.zip")
    assert same_tensors(
        made_further(path, "--smoothing", "0.3").reference_policy.state_dict(), model.reference_policy.state_dict()
    )
    assert_raises(ValueError, "its reference is the clone", made_further, path, "--reference", "adjacent")


def test_what_is_given_turns_off_what_excludes_it(tmp_path: Path) -> None:
    path = saved(tmp_path, exploration_floor="lin_0.2", target_entropy_frac=0.4)
    agent = made_further(path, "--min-entropy-frac", "0.3")
    assert (agent.exploration_floor, agent.min_entropy_frac, agent.target_entropy_frac) == (0.0, 0.3, 0.4)
    agent = made_further(path, "--hyperparams", "target_entropy_nats=0.3")
    assert (agent.exploration_floor, agent.target_entropy_frac, agent.target_entropy_nats) == ("lin_0.2", None, 0.3)
    assert agent.entropy_target.is_new()  # shares and nats have nothing in common
    assert_raises(ValueError, "--smoothing does nothing here", made_further, path, "--smoothing", "0.3")
    off = "target_entropy_frac=null"
    assert made_further(path, "--smoothing", "0.3", "--hyperparams", off).alpha == 0.3


def test_a_file_of_an_earlier_version_gets_what_it_lacks(tmp_path: Path) -> None:
    def forget(config: dict[str, Any]) -> None:
        for name in ("min_entropy_frac", "min_entropy_nats", "target_entropy_nats", "engine"):
            del config["arguments"][name]

    path = changed_file(saved(tmp_path), tmp_path / "old.zip", forget)
    agent = made_further(path, "--min-entropy-frac", "0.5")
    assert (agent.min_entropy_frac, agent.policy.min_entropy_frac) == (0.5, 0.5)
    assert made_further(path, "--target-entropy-nats", "0.2").entropy_target.target == 0.2


def test_the_environment_is_that_of_the_run_unless_one_is_given(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert made_further(path).env_id == "CartPole-v1"
    (tmp_path / "config.json").write_text(json.dumps({"command": "ppo", "arguments": {"env": "CartPole-v0"}}))
    with pytest.warns(DeprecationWarning, match="out of date"):
        assert made_further(path).env_id == "CartPole-v0"
    (tmp_path / "config.json").write_text(json.dumps({"command": "ppo", "arguments": {"env": "mine:CartPole-v0"}}))
    assert_raises(ValueError, "imports a module.*give --env mine:CartPole-v0", made_further, path)


def test_statistics_go_on_and_follow_gamma(tmp_path: Path) -> None:
    normalizer = VecNormalize(make_vec_env("CartPole-v1"), gamma=0.9, clip_obs=3.0)
    normalizer.training = False  # as after an evaluation
    path = saved(tmp_path, normalizer, gamma=0.9)
    for words, gamma in (([], 0.9), (["--hyperparams", "gamma=0.99"], 0.99)):
        agent = made_further(path, *words)
        found = agent.get_vec_normalize_env()
        assert (agent.gamma, found.gamma, found.training, found.clip_obs) == (gamma, gamma, True, 3.0)


@pytest.mark.parametrize(
    ("name", "value"), [("n_steps", 10**8), ("batch_size", 10**9), ("n_epochs", 10**9), ("stats_window_size", 10**15)]
)
def test_a_file_does_not_choose_memory_and_time(name: str, value: int, tmp_path: Path) -> None:
    path = changed_file(saved(tmp_path), tmp_path / "bad.zip", lambda config: config["arguments"].update({name: value}))
    assert_raises(ValueError, f"has {name}={value}, which is over.*--hyperparams {name}={value}", made_further, path)
    assert getattr(made_further(path, "--hyperparams", f"{name}=64"), name.replace("stats", "_stats")) == 64


@pytest.mark.parametrize(("name", "value"), [("clip_obs", "x"), ("gamma", None), ("venv", 1), ("norm_obs_keys", 3)])
def test_malformed_settings_of_a_normaliser_are_told_before_the_run(name: str, value: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, VecNormalize(make_vec_env("CartPole-v1")))
    path = changed_file(path, tmp_path / "bad.zip", lambda to: to["normalization"]["settings"].update({name: value}))
    assert_raises(SafeFileError, "malformed training state", made_further, path)
    assert_raises(SafeFileError, "malformed|don't fit", load_agent, path, env="CartPole-v1")


def test_a_run_without_a_checkpoint_begins_again_from_any_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent)
    wrapper = "env_wrapper=gymnasium.wrappers.FlattenObservation"
    folder = run_here(
        tmp_path, "ppo", "-i", trained.name, "-n", "256", "--hyperparams", "batch_size=128", wrapper, *SMALL
    )
    before = parameters(folder)
    (folder / "agent.zip").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["ppo", "--resume", str(folder)]) == 0
    assert same_tensors(before, parameters(folder))
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0
    assert f"trained_agent: {trained.name}" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_gail_takes_the_agent_of_its_own_run(tmp_path: Path) -> None:
    env = ("--env", "rlsmooth/IdentityMasked-v0")
    demonstrations = tmp_path / "played.npz"
    first = run_here(tmp_path, "maskable-ppo", *env, "-n", "256", *SMALL)
    assert main(["record", "-i", str(first), "--n-episodes", "3", "--output", str(demonstrations)]) == 0
    words = ("gail", *env, "--demonstrations", str(demonstrations), "-n", "512")
    gail = run_here(tmp_path, *words, *SMALL)
    again = run_here(tmp_path, *words, "-i", str(gail), *SMALL)
    assert type(load_agent(again / "agent.zip", device="cpu")).__name__ == "SmoothedMaskablePPO"


def test_a_file_does_not_choose_how_many_environments_there_are(trained: Path, tmp_path: Path) -> None:
    path = changed_file(trained / "agent.zip", tmp_path / "agent.zip", lambda config: config.update(n_envs=5_000))
    assert_raises(ValueError, "has n_envs=5000, which is over 1,024", made_further, path)
