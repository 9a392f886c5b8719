"""`rlsmooth gail` and `airl` with every generator, from a clone, on masks and boxes, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from matplotlib.image import imread
from sb3_contrib import TRPO
from stable_baselines3 import DQN, SAC

from rlsmooth.agents import BC, load_agent
from rlsmooth.data import record
from rlsmooth.scripts import airl, gail
from rlsmooth.scripts.hyperparameters import read_hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.run_folder import command_line

SMALL = ("--eval-episodes", "2", "--eval-freq", "-1", "--save-freq", "-1", "--device", "cpu", "--demo-batch-size", "64")


def trained(tmp_path: Path, *words: str) -> Path:
    """The folder of a run that was started in `tmp_path`."""
    assert main([*words, *SMALL, "-f", str(tmp_path)]) == 0
    (folder,) = (tmp_path / words[0]).iterdir()
    return folder


def recorded(env: str, path: Path, n_episodes: int = 2) -> Path:
    """Demonstrations of whoever does what the state says, or the middle of a Box."""
    record(lambda state: state if np.ndim(state) == 0 else np.zeros(1, np.float32), env, n_episodes, seed=0).save(path)
    return path


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("gail -n 256 --algo a2c --smoothing lin_0.1 --reward-form log_d", "SmoothedA2C"),
        ("airl -n 512 --algo trpo --hyperparams n_steps=128 batch_size=128", "TRPO"),
        ("gail -n 512 --algo dqn --gen-train-timesteps 256 --reward-form logit", "DQN"),
        pytest.param("gail -n 512 --hyperparams normalize=true", "SmoothedPPO", marks=pytest.mark.slow),
        pytest.param("airl -n 256 --algo a2c --fake-target 0", "SmoothedA2C", marks=pytest.mark.slow),
    ],
)
def test_every_generator_trains_and_is_evaluated_and_drawn(words: str, kind: str, tmp_path: Path) -> None:
    folder = trained(tmp_path, *words.split())
    assert type(load_agent(folder / "agent.zip", device="cpu")).__name__ == kind
    assert not (folder / "checkpoints").exists()
    curves = read_metrics(folder / "metrics.csv")
    assert {"mean/disc/disc_acc_expert", "mean/disc/disc_acc_gen", "mean/disc/disc_probability_gen"} <= set(curves)
    assert ("train/policy_entropy" in curves) == (kind != "DQN")
    (folder / "report.png").unlink()
    assert main(["plot", str(folder)]) == 0
    assert imread(folder / "report.png").shape[:2] == (1000, 1600)
    output = tmp_path / "numbers.json"
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "2", "--json", str(output)]) == 0
    assert np.isfinite(json.loads(output.read_text())["sampled"]["mean_reward"])
    assert main(["enjoy", str(folder), "--no-render", "--max-steps", "3"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        "gail --algo sac --gen-train-timesteps 64 --hyperparams learning_starts=64 gradient_steps=8 train_freq=8",
        pytest.param(
            "airl --algo sac --gen-train-timesteps 64 --hyperparams learning_starts=64 gradient_steps=8 train_freq=8",
            marks=pytest.mark.slow,
        ),
        pytest.param("airl --algo ppo --hyperparams n_steps=32 batch_size=32", marks=pytest.mark.slow),
    ],
)
def test_continuous_actions(words: str, tmp_path: Path) -> None:
    data = recorded("Pendulum-v1", tmp_path / "pendulum.npz")
    folder = trained(tmp_path, *words.split(), "--env", "Pendulum-v1", "-n", "256", "--demonstrations", str(data))
    assert np.isfinite(read_metrics(folder / "metrics.csv")["mean/disc/disc_loss"][1]).all()
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0
    assert main(["enjoy", str(folder), "--no-render", "--max-steps", "3"]) == 0


def test_action_masks(tmp_path: Path) -> None:
    env = "rlsmooth/IdentityMasked-v0"
    data = recorded(env, tmp_path / "masked.npz", 4)
    words = ("--algo", "maskable-ppo", "--env", env, "-n", "512", "--smoothing", "0.01", "--demonstrations", str(data))
    folder = trained(tmp_path, "airl", *words)
    assert type(load_agent(folder / "agent.zip", device="cpu")).__name__ == "SmoothedMaskablePPO"
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of cloning."""
    logs = tmp_path_factory.mktemp("clone")
    words = ["bc", "--n-episodes", "3", "--epochs", "3", "--eval-episodes", "1", "--eval-freq", "-1"]
    assert main([*words, "--checkpoint-freq", "-1", "--device", "cpu", "-f", str(logs)]) == 0
    return logs / "bc" / "CartPole-v1_1"


def test_a_cloned_policy_is_where_the_generator_begins(clone: Path, tmp_path: Path) -> None:
    words = ("gail", "-n", "512", "--from-bc", str(clone), "--value-warmup-steps", "511")
    ours = load_agent(trained(tmp_path, *words) / "agent.zip", device="cpu").policy.state_dict()
    actor = BC.load(clone / "agent.zip", device="cpu").policy.state_dict()
    # Only the critic was trained.
    assert all(torch.equal(ours[name], actor[name]) for name in actor if name.startswith(("action", "mlp_extractor.p")))


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        *(("dqn", env) for env in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3")),
        *(("sac", env) for env in ("Pendulum-v1", "LunarLanderContinuous-v3")),
        *(("trpo", env) for env in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "LunarLander-v3")),
    ],
)
def test_hyperparameters_are_rl_zoos(algorithm: str, env: str) -> None:
    spec = importlib.util.find_spec("rl_zoo3")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    theirs = Path(spec.submodule_search_locations[0]) / "hyperparams" / f"{algorithm}.yml"
    kind: type = {"dqn": DQN, "sac": SAC, "trpo": TRPO}[algorithm]
    mine, its = (resolve_hyperparameters(read_hyperparameters(algorithm, env, path), kind) for path in (None, theirs))
    assert (mine.n_timesteps, mine.n_envs, mine.policy, mine.normalize) == (
        its.n_timesteps,
        its.n_envs,
        its.policy,
        its.normalize,
    )
    one, other = dict(mine.arguments), dict(its.arguments)
    rates = [values.pop("learning_rate", None) for values in (one, other)]
    assert one == other
    first, second = (rate(0.5) if callable(rate) else rate for rate in rates)
    assert first == second


@pytest.mark.parametrize("command", ["gail", "airl"])
def test_the_command_line_gives_the_same_arguments_back(command: str) -> None:
    kind: type[gail.Args] | type[airl.Args] = gail.Args if command == "gail" else airl.Args
    args = kind(hyperparams=("n_steps=64",), real_target=0.9, correct_offset=False, reward_net_arch=(8,), n_envs=3)
    words = shlex.split(command_line(command, args))
    assert words[:2] == ["rlsmooth", command]
    assert tyro.cli(kind, args=words[2:]) == args
    assert {field.name for field in dataclasses.fields(kind)} > {"real_target", "demo_batch_size", "terminal_states"}


MISTAKES = [
    ("gail --env Nope-v0", "env='Nope-v0' can't be made"),
    ("airl --env Acrobot-v1", "no demonstrations of env='Acrobot-v1' ship"),
    ("gail --env Acrobot-v1 --demonstrations cartpole-v1", "demonstrations has observation_space="),
    ("gail --demonstrations nowhere.npz", "'nowhere.npz' is neither a file or folder nor"),
    ("gail --demonstrations {file}", "is not a .npz file"),
    ("gail --n-episodes 100", "n_episodes=100"),
    ("gail -n 1000 --algo dqn", "n_timesteps=1000 ends before the first round of gen_train_timesteps=1024"),
    ("gail -n 0", "n_timesteps=0"),
    ("gail --n-envs 0", "n_envs=0"),
    ("airl --eval-freq 0", "eval_freq=0"),
    ("gail --save-freq 0", "save_freq=0"),
    ("gail --eval-episodes 0", "eval_episodes=0"),
    ("gail --n-eval-envs 0", "n_eval_envs=0"),
    ("gail --real-target 0", "real_target"),
    ("airl --real-target 1.5", "real_target"),
    ("gail --real-target 0.5 --fake-target 0.5", "fake_target"),
    ("gail --demo-batch-size 0", "demo_batch_size=0"),
    ("gail --n-disc-updates-per-round 0", "n_disc_updates_per_round=0"),
    ("airl --gen-train-timesteps 0", "gen_train_timesteps=0"),
    ("gail --gen-replay-buffer-capacity 0", "capacity=0"),
    ("gail --disc-learning-rate 0", "disc_learning_rate"),
    ("gail --horizon 0", "horizon=0"),
    ("gail --horizon 5 --terminal-states as_is", "--horizon does nothing with --terminal-states as_is"),
    ("gail --reward-net-arch 0", "reward_net_arch=0"),
    ("airl --potential-net-arch 8 0", "potential_net_arch=0"),
    ("gail --smoothing lots", "'lots'"),
    ("gail --reference adjacent", "--reference adjacent does nothing without --smoothing"),
    ("gail --algo trpo --smoothing 0.1", "algo='trpo' has no --smoothing: leave it out, or use ppo, a2c"),
    ("airl --algo sac --exploration-floor 0.1 --reference adjacent", "has no --exploration-floor, --reference"),
    ("gail --algo sac", "algo='sac' needs a Box action space, env='CartPole-v1' has Discrete(2)"),
    ("gail --algo dqn --env Pendulum-v1", "algo='dqn' needs a Discrete action space"),
    ("airl --algo dqn", "can't tell the log-probability of an action"),
    ("gail --algo maskable-ppo", "has no action_masks()"),
    ("gail --hyperparams no_such=1", "'no_such' is unknown"),
    ("gail --algo dqn --hyperparams n_epochs=3", "'n_epochs' is unknown to DQN"),
    ("gail --conf-file nowhere.yml", "conf_file='nowhere.yml' can't be read"),
    ("gail --from-bc nowhere.zip", "from_bc='nowhere.zip' is neither"),
    ("gail --value-warmup-steps 10", "is for --from-bc"),
    ("airl --device toaster", "device='toaster' can't be used"),
    ("gail --seed -1", "seed=-1"),
    ("gail -f {file}/below", "can't be written to"),
    ("gail -tb {file}/below", "tensorboard_log="),
    ("gail --resume nowhere", "'nowhere' is no folder of a run"),
    ("airl --resume {clone}", "was not written by `rlsmooth airl`"),
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
    file.write_text("no folder")
    assert main(words.format(file=file, clone=clone).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rlsmooth {words.split()[0]}: error: ")
    assert says in line
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert not list(tmp_path.glob("logs/*/*"))


def test_what_does_not_fit_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path, "gail", "-n", "256")
    for words, says in (
        (["gail", "--resume", str(folder), "--real-target", "0.9"], "leave out --real-target."),
        (["airl", "--resume", str(folder)], "was not written by `rlsmooth airl`"),
        (["evaluate", "-i", str(folder), "--demonstrations", "cartpole-v1"], "is for cloned agents"),
    ):
        capsys.readouterr()
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    for name, part in (("config.json", "arguments"), ("report.json", "settings")):
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps({**json.loads(before), part: {}}))
        capsys.readouterr()
        assert main(["plot", str(folder)]) == 2
        assert "it lacks env" in capsys.readouterr().err
        (folder / name).write_text(before)
