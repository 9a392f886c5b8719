"""The other on-policy commands and ways to start them, reports of several runs, and one clear line for each mistake."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from matplotlib.image import imread
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from rlsmooth.agents import BC, load_agent
from rlsmooth.data import Demonstrations
from rlsmooth.scripts import ppo
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.run_folder import command_line, env_of_run

SMALL = ("--eval-episodes", "2", "--eval-freq", "-1", "--save-freq", "-1", "--device", "cpu")


def trained(tmp_path: Path, *words: str) -> Path:
    """The folder of a run that was started in `tmp_path`."""
    assert main([*words, *SMALL, "-f", str(tmp_path)]) == 0
    (folder,) = (tmp_path / words[0]).iterdir()
    return folder


def summary(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "report.json").read_text())["summary"]
    return found


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_agent(folder / "agent.zip", device="cpu").policy.state_dict()
    return state


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("a2c --env CartPole-v1 -n 1200 --smoothing lin_0.1", "SmoothedA2C"),
        ("maskable-ppo -n 1024 --exploration-floor 0.1", "SmoothedMaskablePPO"),
        pytest.param(
            "maskable-ppo --env rlsmooth/IdentityMaskedMultiDiscrete-v0 -n 256 --smoothing 0.1",
            "SmoothedMaskablePPO",
            marks=pytest.mark.slow,
        ),
        ("recurrent-ppo -n 512 --target-entropy-frac 0.8", "SmoothedRecurrentPPO"),
        pytest.param(
            "ppo --env rlsmooth/IdentityBox-v0 -n 256 --target-entropy-nats 1.0", "SmoothedPPO", marks=pytest.mark.slow
        ),
        ("ppo --env rlsmooth/IdentityOrdered-v0 -n 256 --smoothing 0.1 --reference triangular", "SmoothedPPO"),
        pytest.param(
            "ppo --env rlsmooth/IdentityMultiBinary-v0 -n 256 --smoothing 0.1 --ent-coef 0.01",
            "SmoothedPPO",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_kind_trains_and_is_evaluated_and_drawn(words: str, kind: str, tmp_path: Path) -> None:
    folder = trained(tmp_path, *words.split())
    assert type(load_agent(folder / "agent.zip", device="cpu")).__name__ == kind
    assert not (folder / "checkpoints").exists()
    curves = read_metrics(folder / "metrics.csv")
    assert {"train/policy_entropy", "train/kl_reference", "train/smoothing", "train/exploration_floor"} <= set(curves)
    (folder / "report.png").unlink()
    assert main(["plot", str(folder)]) == 0
    assert imread(folder / "report.png").shape[:2] == (1000, 1600)
    output = tmp_path / "numbers.json"
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "2", "--json", str(output)]) == 0
    assert np.isfinite(json.loads(output.read_text())["sampled"]["policy_entropy"])


@pytest.mark.slow
def test_a_masked_identity_is_solved(tmp_path: Path) -> None:
    folder = trained(tmp_path, "maskable-ppo", "-n", "3000", "--smoothing", "0.01")
    assert summary(folder)["mean_reward"] == 10.0  # the optimum
    assert summary(folder)["entropy_frac"] > 0.001


def test_environments_in_processes_give_the_same_agent(tmp_path: Path) -> None:
    words = ("ppo", "--env", "rlsmooth/Identity-v0", "-n", "256", "--n-envs", "2", "--smoothing", "0.1")
    here, apart = trained(tmp_path / "here", *words), trained(tmp_path / "apart", *words, "--vec-env", "subproc")
    one, other = parameters(here), parameters(apart)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_normalised_observations_are_normalised_wherever_the_agent_plays(tmp_path: Path) -> None:
    folder = trained(tmp_path, "ppo", "--env", "CartPole-v1", "-n", "2048", "--hyperparams", "normalize=true")
    agent = load_agent(folder / "agent.zip", env=make_vec_env("CartPole-v1", 8), device="cpu")
    normalizer = agent.get_vec_normalize_env()
    assert isinstance(normalizer, VecNormalize)
    assert normalizer.obs_rms.count > 2000  # type: ignore[union-attr]

    path = tmp_path / "demonstrations.npz"
    assert main(["record", "-i", str(folder / "agent.zip"), "--n-episodes", "2", "--output", str(path)]) == 0
    recorded = Demonstrations.load(path)
    observations = np.asarray(recorded.observations)
    assert np.abs(observations[:, 2]).max() < 0.21 + 0.05  # the pole's angle, in radians
    actions, _ = agent.predict(normalizer.normalize_obs(observations), deterministic=True)
    assert (actions == recorded.actions).all()

    output = tmp_path / "numbers.json"
    words = ["evaluate", "-i", str(folder), "--eval-episodes", "2", "--seed", "1000000", "--json", str(output)]
    assert main(words) == 0
    played = json.loads(output.read_text())["deterministic"]
    assert played["mean_reward"] == pytest.approx(summary(folder)["mean_reward"])  # the same two episodes


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of cloning."""
    logs = tmp_path_factory.mktemp("clone")
    words = ["bc", "--n-episodes", "3", "--epochs", "3", "--eval-episodes", "1", "--eval-freq", "-1"]
    assert main([*words, "--checkpoint-freq", "-1", "--device", "cpu", "-f", str(logs)]) == 0
    return logs / "bc" / "CartPole-v1_1"


def test_a_cloned_policy_is_where_ppo_begins(clone: Path, tmp_path: Path) -> None:
    words = ("ppo", "--env", "CartPole-v1", "-n", "768", "--from-bc", str(clone), "--smoothing", "0.5")
    folder = trained(tmp_path, *words, "--value-warmup-steps", "256")
    actor = BC.load(clone / "agent.zip", device="cpu").policy.state_dict()
    ours = parameters(folder)
    # One rollout fitted the critic, one update moved the actor, not far, and the last one has a learning rate of 0.
    assert not torch.equal(ours["action_net.weight"], actor["action_net.weight"])
    assert torch.allclose(ours["action_net.weight"], actor["action_net.weight"], atol=0.05)
    curves = read_metrics(folder / "metrics.csv")
    assert curves["train/kl_reference"][1][0] == pytest.approx(0.0, abs=1e-6)  # the clone itself
    assert curves["train/kl_uniform"][1][0] > 0.01

    only_critic = trained(tmp_path / "more", *words, "--value-warmup-steps", "767")
    state = parameters(only_critic)
    assert all(
        torch.equal(state[name], actor[name]) for name in actor if name.startswith(("action", "mlp_extractor.p"))
    )


def test_kl_to_the_clone_falls_over_the_whole_run_unless_told_otherwise(clone: Path, tmp_path: Path) -> None:
    # 1,000 is no multiple of the rollout's 256 steps: the last update is beyond the end.
    words = ("-n", "1000", "--from-bc", str(clone / "agent.zip"), "--hyperparams", "normalize=true")
    folder = trained(tmp_path, "ppo", "--env", "CartPole-v1", *words)
    steps, alphas = read_metrics(folder / "metrics.csv")["train/smoothing"]
    assert steps == [256, 512, 768, 1024]
    assert alphas == pytest.approx([0.1 * (1 - 0.256), 0.1 * (1 - 0.512), 0.1 * (1 - 0.768), 0.0])
    # Rewards alone are normalised: the clone has seen observations as they are.
    agent = load_agent(folder / "agent.zip", env=make_vec_env("CartPole-v1", 8), device="cpu")
    normalizer = agent.get_vec_normalize_env()
    assert (normalizer.norm_obs, normalizer.norm_reward) == (False, True)
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0


def test_two_runs_are_compared(clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [trained(tmp_path / word, word, "--env", "CartPole-v1", "-n", "256") for word in ("ppo", "a2c")]
    output = tmp_path / "comparison.svg"
    assert main(["plot", *map(str, folders), "--output", str(output)]) == 0
    words = output.read_text()
    assert "<svg" in words
    assert main(["plot", str(clone), str(folders[0])]) == 2
    assert "can't be compared" in capsys.readouterr().err


def test_the_command_line_gives_the_same_arguments_back() -> None:

    args = ppo.Args(hyperparams=("n_steps=64", "gamma=0.9"), smoothing="lin_0.1", from_bc=Path("a b"), n_envs=3)
    words = command_line("ppo", args)

    assert tyro.cli(ppo.Args, args=shlex.split(words)[2:]) == args
    assert {field.name for field in dataclasses.fields(ppo.Args)} > {"hyperparams", "conf_file"}


MISTAKES = [
    ("ppo --env Nope-v0", "env='Nope-v0' can't be made"),
    ("ppo -n 0", "n_timesteps=0"),
    ("ppo --n-envs 0", "n_envs=0"),
    ("ppo --eval-freq 0", "eval_freq=0"),
    ("ppo --save-freq 0", "save_freq=0"),
    ("ppo --eval-episodes 0", "eval_episodes=0"),
    ("ppo --n-eval-envs 0", "n_eval_envs=0"),
    ("ppo --smoothing lots", "'lots'"),
    ("ppo --smoothing -1", "smoothing"),
    ("ppo --smoothing nan", "nan"),
    ("ppo --reference adjacent", "--reference adjacent does nothing without --smoothing"),
    ("ppo --exploration-floor 2", "exploration_floor"),
    ("ppo --exploration-floor lin_0_1", "exploration_floor='lin_0_1'"),
    ("ppo --target-entropy-frac 2", "target_entropy_frac"),
    ("ppo --target-entropy-nats 2", "target_entropy_nats"),
    ("ppo --target-entropy-nats 0.1 --target-entropy-frac 0.1", "target_entropy"),
    ("ppo --env Pendulum-v1 --target-entropy-frac 0.1", "target_entropy_frac"),
    ("ppo --env Pendulum-v1 --exploration-floor 0.1", "SDE"),
    ("ppo --from-bc nowhere.zip", "from_bc='nowhere.zip' is neither"),
    ("ppo --from-bc {file}", "is not a zip archive"),
    ("ppo --from-bc {file} --reference adjacent", "can't be used with --from-bc"),
    ("ppo --from-bc {file} --value-warmup-steps 1000000", "leaves nothing of n_timesteps=100000"),
    ("ppo --value-warmup-steps 10", "is for --from-bc"),
    ("ppo --conf-file nowhere.yml", "conf_file='nowhere.yml' can't be read"),
    ("ppo --hyperparams n_steps", "must be key=value"),
    ("ppo --hyperparams no_such=1", "'no_such' is unknown"),
    ("ppo --hyperparams n_steps=many", "n_steps"),
    ("ppo --hyperparams policy=NoPolicy", "NoPolicy"),
    ("ppo --hyperparams env_kwargs={{no_such:1}}", "env='CartPole-v1' can't be made"),
    ("ppo --device toaster", "device='toaster' can't be used"),
    ("ppo --seed -1", "seed=-1"),
    ("ppo -f {file}/below", "can't be written to"),
    ("ppo -tb {file}/below", "tensorboard_log="),
    ("ppo --resume nowhere", "'nowhere' is no folder of a run"),
    ("maskable-ppo --env CartPole-v1", "has no action_masks()"),
    ("recurrent-ppo --from-bc {clone}", "recurrent"),
    ("ppo --from-bc {clone} --env Acrobot-v1", "env has observation_space="),
    ("ppo --resume {clone}", "was not written by `rlsmooth ppo`"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES)
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(
    words: str,
    says: str,
    clone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.txt"
    file.write_text("not an agent")
    assert main(words.format(file=file, clone=clone).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rlsmooth {words.split()[0]}: error: ")
    assert says in line
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert not list(tmp_path.glob("logs/*/*"))


def test_what_does_not_fit_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path, "ppo", "--env", "CartPole-v1", "-n", "256")
    for words, says in (
        (["ppo", "--resume", str(folder), "-n", "512", "--smoothing", "1"], "leave out --n-timesteps, --smoothing."),
        (["a2c", "--resume", str(folder)], "was not written by `rlsmooth a2c`"),
        (["evaluate", "-i", str(folder), "--demonstrations", "cartpole-v1"], "is for cloned agents"),
        (["evaluate", "-i", str(folder), "--env", "Acrobot-v1"], "observation_space="),
        (["record", "-i", str(folder / "agent.zip"), "--env", "Acrobot-v1"], "observation_space="),
        (["ppo", "--from-bc", str(folder)], "agent"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line


def test_a_run_of_another_version_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path, "ppo", "--env", "rlsmooth/Identity-v0", "-n", "256")
    for name, part in (("config.json", "arguments"), ("report.json", "settings")):
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps({**json.loads(before), part: {}}))
        capsys.readouterr()
        assert main(["plot", str(folder)]) == 2
        assert "it lacks env" in capsys.readouterr().err
        (folder / name).write_text(before)


def test_the_run_of_an_agent_says_what_to_play_and_imports_nothing(tmp_path: Path) -> None:
    def say(env: str, kwargs: Any = None) -> None:
        settings = {"command": "ppo", "arguments": {"env": env}, "hyperparameters": {"env_kwargs": kwargs or {}}}
        (tmp_path / "config.json").write_text(json.dumps(settings))

    agent = tmp_path / "agent.zip"
    with pytest.raises(ValueError, match="give --env"):
        env_of_run(agent)
    assert env_of_run(agent, "My-v0") == ("My-v0", {})
    say("My-v0", {"size": 3})
    assert env_of_run(agent) == env_of_run(agent, "My-v0") == ("My-v0", {"size": 3})
    assert env_of_run(agent, "Other-v0") == ("Other-v0", {})
    say("rlsmooth.envs:rlsmooth/Identity-v0")
    assert env_of_run(agent) == ("rlsmooth.envs:rlsmooth/Identity-v0", {})
    say("evil:My-v0", {"size": 3})
    with pytest.raises(ValueError, match="imports a module, env='evil:My-v0': if you trust it, give --env"):
        env_of_run(agent)
    assert env_of_run(agent, "evil:My-v0") == ("evil:My-v0", {"size": 3})


def test_the_hyperparameters_of_a_resumed_run_are_those_it_began_with(tmp_path: Path) -> None:
    conf = tmp_path / "conf.yml"
    conf.write_text("default: {n_timesteps: 256, n_steps: 64, batch_size: 64, env_kwargs: {num_actions: 3}}")
    words = ("ppo", "--env", "rlsmooth/Identity-v0", "--conf-file", str(conf))
    folder = trained(tmp_path / "logs", *words)
    before = parameters(folder)
    conf.unlink()
    (folder / "agent.zip").unlink()
    assert main(["ppo", "--resume", str(folder)]) == 0  # from the beginning: it kept no checkpoints
    assert all(torch.equal(before[name], after) for name, after in parameters(folder).items())
    assert before["action_net.weight"].shape[0] == 3
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0  # in the environment with three actions
    assert gym.make("rlsmooth/Identity-v0").action_space.n != 3  # type: ignore[attr-defined]
