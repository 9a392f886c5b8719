"""`rlsmooth dagger` as its users run it: its files, its numbers, its expert, `evaluate`, mistakes, and a killed run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from commands import (
    assert_drawn_again,
    assert_refused,
    assert_resumed_unchanged,
    assert_table,
    assert_written,
    parameters,
    report_of,
    run_command,
)
from killing import kill_command
from rlsmooth.agents import DAgger, load_agent
from rlsmooth.data import Demonstrations, record
from rlsmooth.scripts.environment import make_envs
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from support import read_events, same_tensors

SMALL = ("--eval-episodes", "2", "--n-envs", "2", "--net-arch", "8", "--device", "cpu")
TINY = (*SMALL, "-n", "600", "--round-min-timesteps", "100", "--epochs", "2", "--beta-schedule", "0.5")


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of cloning, which is the expert: it lasts for 40 steps or more, not for 500."""
    logs = tmp_path_factory.mktemp("expert")
    words = ["bc", "--n-episodes", "2", "--epochs", "2", "--eval-episodes", "1", "--eval-freq", "-1"]
    assert main([*words, "--checkpoint-freq", "-1", "--net-arch", "8", "--device", "cpu", "-f", str(logs)]) == 0
    return logs / "bc" / "CartPole-v1_1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, programs: Any, expert: Path) -> tuple[Path, str]:
    """The folder of a tiny run, in a process of its own, and what it printed."""
    return run_command(programs, tmp_path_factory.mktemp("home"), "dagger", "--expert", str(expert), *TINY)


@pytest.fixture(scope="module")
def report(finished: tuple[Path, str]) -> dict[str, Any]:
    return report_of(finished[0])


def test_all_files_are_written(finished: tuple[Path, str], expert: Path) -> None:
    words = ["--expert", str(expert), "--n-timesteps", "600", "--env", "CartPole-v1"]
    assert_written(finished[0], ["agent.zip", "expert.zip"], words, exactly=False)
    assert (finished[0] / "expert.zip").read_bytes() == (expert / "agent.zip").read_bytes()


def test_the_run_is_that_of_dagger(finished: tuple[Path, str], report: dict[str, Any], expert: Path) -> None:
    folder, _ = finished
    agent = DAgger(
        "MlpPolicy",
        make_envs("CartPole-v1", 2, 0),
        load_agent(expert / "agent.zip", device="cpu"),
        smoothing=0.1,
        beta_schedule=0.5,
        rollout_round_min_timesteps=100,
        bc_train_n_epochs=2,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
        eval_env=make_envs("CartPole-v1", 2, 0),
        n_eval_episodes=2,
    ).learn(600)
    assert same_tensors(parameters(folder), agent.policy.state_dict())
    curves = read_metrics(folder / "metrics.csv")
    for name, value in agent.history[-1].items():
        assert curves[f"dagger/{name}"][1][-1] == value
        assert report["summary"][name] == value
    assert curves["dagger/beta"][1][:2] == [1, 0.5]
    assert len(curves["dagger/round"][0]) == report["summary"]["rounds"] == agent.round > 1
    assert report["summary"]["transitions"] == len(agent.demonstrations) >= 600
    kept = sorted((folder / "checkpoints" / "demos").rglob("round-*/*.npz"))
    assert sum(len(Demonstrations.load(path)) for path in kept) == len(agent.demonstrations)


def test_tensorboard_and_the_table_say_the_same(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    folder, printed = finished
    events = read_events(folder)
    found = report["summary"]
    agreement = events.Scalars("dagger/expert_agreement")
    assert [event.step for event in agreement] == read_metrics(folder / "metrics.csv")["dagger/expert_agreement"][0]
    assert agreement[-1].value == pytest.approx(found["expert_agreement"])
    rows = {
        "return, sampled": f"{found['mean_reward_sampled']:.1f} ± {found['std_reward_sampled']:.1f}",
        "return, expert": f"{found['expert_return']:.1f}",
        "does as the expert did": f"{100 * found['expert_agreement']:.1f} %",
        "policy entropy": f"{found['policy_entropy']:.3f} nats",
        "labelled": f"{found['transitions']:,.0f} in {found['rounds']:.0f} rounds",
    }
    assert_table(printed, rows)
    assert f"Return of the expert: {found['expert_return']:.1f}" in printed


def test_evaluate_and_plot_work_on_it(finished: tuple[Path, str], tmp_path: Path) -> None:
    copy = assert_drawn_again(finished[0], tmp_path)
    numbers = tmp_path / "numbers.json"
    words = ["evaluate", "-i", str(copy), "--eval-episodes", "1", "--json", str(numbers)]
    assert main([*words, "--demonstrations", "cartpole-v1"]) == 0
    assert json.loads(numbers.read_text())["sampled"]["mean_reward"] >= 1


def test_enjoy_films_it(finished: tuple[Path, str], tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    film = tmp_path / "agent.gif"
    assert main(["enjoy", str(finished[0]), "--video", str(film), "--max-steps", "5"]) == 0
    assert film.read_bytes()[:3] == b"GIF"


def test_an_expert_is_trained_and_gives_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train-expert", "256", "--expert-targets", "probabilities", "--demonstrations", "cartpole-v1"]
    words += ["--smoothing", "lin_0.2", "--beta-schedule", "1"]
    folders = ["-f", str(tmp_path / "logs"), "-tb", str(tmp_path / "tb")]
    few = [*SMALL, "-n", "20", "--round-min-timesteps", "10", "--epochs", "1", "--eval-episodes", "1"]
    # The demonstrations' 12,000 rows have no probabilities: they count as certain.
    assert main(["dagger", *words, "--n-episodes", "1", *few, *folders]) == 0
    folder = tmp_path / "logs" / "dagger" / "CartPole-v1_1"
    assert "Training an expert, SmoothedPPO, for 256 steps" in capsys.readouterr().out
    assert load_agent(folder / "expert.zip", device="cpu").num_timesteps == 256
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["CartPole-v1_1"]
    report = json.loads((folder / "report.json").read_text())
    assert report["expert"] == "SmoothedPPO, 256 steps"
    assert report["summary"]["transitions"] == 500 + read_metrics(folder / "metrics.csv")["dagger/transitions"][0][-1]


def test_an_expert_that_saw_normalised_observations(tmp_path: Path) -> None:
    words = ["ppo", "-n", "512", "--hyperparams", "normalize=true", "--eval-freq", "-1", "--save-freq", "-1"]
    assert main([*words, "--eval-episodes", "2", "--device", "cpu", "-f", str(tmp_path)]) == 0
    expert = tmp_path / "ppo" / "CartPole-v1_1"
    assert main(["dagger", "-i", str(expert), *TINY, "-n", "60", "-f", str(tmp_path)]) == 0
    folder = tmp_path / "dagger" / "CartPole-v1_1"
    agent = load_agent(expert / "agent.zip", env=make_envs("CartPole-v1", 8, 0), device="cpu")
    normalizer = agent.get_vec_normalize_env()
    assert isinstance(normalizer, VecNormalize)
    (path, *_) = sorted((folder / "checkpoints" / "demos").rglob("*.npz"))
    labelled = Demonstrations.load(path)
    shown = normalizer.normalize_obs(np.asarray(labelled.observations))
    assert (agent.predict(shown, deterministic=True)[0] == labelled.actions).all()
    # Its own return is that of its own evaluation: the same seeds and the same episodes.
    asked, own = (json.loads((run / "report.json").read_text())["summary"] for run in (folder, expert))
    assert asked["expert_return"] == own["mean_reward"]


@pytest.mark.parametrize(
    "env", ["rlsmooth/IdentityMasked-v0", pytest.param("rlsmooth/IdentityBox-v0", marks=pytest.mark.slow)]
)
def test_other_action_spaces(env: str, tmp_path: Path) -> None:
    words = ["dagger", "--env", env, "--train-expert", "512", *SMALL, "-n", "100", "--round-min-timesteps", "20"]
    assert main([*words, "-f", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "dagger").iterdir()
    summary = json.loads((folder / "report.json").read_text())["summary"]
    assert ("expert_error" if "Box" in env else "expert_agreement") in summary
    assert main(["plot", str(folder), str(folder), "--output", str(tmp_path / "both.png")]) == 0
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--env Nope-v0", "env='Nope-v0' can't be made"),
        ("--expert nowhere.zip", "expert='nowhere.zip' is neither an agent's file nor a run's folder"),
        ("--expert {file}", "is not a zip archive"),
        ("--expert {expert} --env Acrobot-v1", "observation_space="),
        ("--expert {expert} --train-expert 10", "--train-expert is for runs without --expert"),
        ("--train-expert 0", "train_expert=0"),
        ("--env CliffWalking-v1", "nobody says how long to train an expert of env='CliffWalking-v1'"),
        ("--env Pendulum-v1 --expert-targets probabilities", "expert_targets='probabilities' needs a Discrete"),
        ("--expert {expert} --demonstrations nowhere.npz", "'nowhere.npz' is neither a file or folder nor"),
        ("--expert {expert} --demonstrations cartpole-v1 --n-episodes 100", "n_episodes=100"),
        ("--expert {expert} --n-episodes 1", "--n-episodes is for --demonstrations"),
        ("--expert {expert} -n 0", "n_timesteps=0"),
        ("--expert {expert} --beta-schedule never", "beta_schedule='never' must be a whole number"),
        ("--expert {expert} --beta-schedule 0", "beta_schedule"),
        ("--expert {expert} --beta-schedule 1.5", "beta_schedule"),
        ("--expert {expert} --round-min-episodes 0", "rollout_round_min_episodes=0"),
        ("--expert {expert} --round-min-timesteps 0", "rollout_round_min_timesteps=0"),
        ("--expert {expert} --epochs 0", "bc_train_n_epochs=0"),
        ("--expert {expert} --smoothing lots", "smoothing='lots' can't be used"),
        ("--expert {expert} --learning-rate fast", "learning_rate='fast'"),
        ("--expert {expert} --batch-size 0", "batch_size=0"),
        ("--expert {expert} --net-arch 0", "net_arch=0"),
        ("--expert {expert} --eval-episodes 0", "eval_episodes=0"),
        ("--expert {expert} --n-envs 0", "n_envs=0"),
        ("--expert {expert} --n-eval-envs 0", "n_eval_envs=0"),
        ("--expert {expert} --seed -1", "seed=-1"),
        ("--expert {expert} --device toaster", "device='toaster' can't be used"),
        ("--expert {expert} --policy NoPolicy", "policy='NoPolicy'"),
        ("--expert {expert} --action-bins 5", "action_bins"),
        ("--expert {expert} -f {file}/below", "can't be written to"),
        ("--expert {expert} -tb {file}/below", "tensorboard_log="),
        ("--resume nowhere", "'nowhere' is no folder of a run"),
        ("--resume {expert}", "was not written by `rlsmooth dagger`"),
    ],
)
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(words: str, says: str, expert: Path, refused: Any) -> None:
    refused(f"dagger {words}", says, expert=expert)


def test_demonstrations_of_another_environment_are_told(expert: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "identity.npz"
    record(lambda state: state, "rlsmooth/Identity-v0", 1, seed=0).save(data)
    words = ["dagger", "--expert", str(expert), "--demonstrations", str(data), "-f", str(tmp_path / "logs")]
    assert_refused("demonstrations has observation_space=", words, capsys)


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, str], tmp_path: Path) -> None:
    assert_resumed_unchanged(finished[0], tmp_path)


def test_a_run_without_its_expert_trains_it_again(tmp_path: Path) -> None:
    words = ["dagger", "--train-expert", "256", *TINY, "-n", "100", "-f", str(tmp_path)]
    assert main(words) == 0
    folder = tmp_path / "dagger" / "CartPole-v1_1"
    before, asked = parameters(folder), (folder / "expert.zip").read_bytes()
    for name in ("expert.zip", "agent.zip"):  # as of a run that was killed while the expert was trained
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints")
    assert main(["dagger", "--resume", str(folder)]) == 0
    assert same_tensors(before, parameters(folder))
    assert len(asked) == (folder / "expert.zip").stat().st_size


@pytest.mark.slow
def test_a_run_killed_in_a_round_goes_on_to_the_same_parameters(expert: Path, tmp_path: Path) -> None:
    settings = [*TINY, "-n", "2000", "--epochs", "8", "--expert", str(expert)]
    whole, folder = kill_command("dagger", settings, tmp_path, 2)
    assert same_tensors(parameters(whole), parameters(folder))
    there, here = (read_metrics(path / "metrics.csv") for path in (whole, folder))
    assert there == here
    assert np.isfinite(here["dagger/cross_entropy"][1]).all()
