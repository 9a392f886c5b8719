"""`rlsmooth bco` as its users run it: its files, its numbers, `evaluate`, mistakes, and that a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from commands import (
    assert_drawn_again,
    assert_resumed_unchanged,
    assert_table,
    assert_written,
    parameters,
    report_of,
    run_command,
)
from killing import kill_command
from rlsmooth.agents import BC, BCO, InverseDynamics
from rlsmooth.data import ObservationOnly, cartpole_v1, record
from rlsmooth.scripts.environment import make_envs
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from support import read_events, same_tensors

QUICK = ("--epochs", "1", "--inverse-epochs", "2", "--eval-episodes", "2", "--n-envs", "2", "--net-arch", "8")
TINY = (*QUICK, "--n-episodes", "1", "--rounds", "2", "--transitions-per-round", "200", "--device", "cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, programs: Any) -> tuple[Path, str]:
    """The folder of a tiny run, in a process of its own, and what it printed."""
    return run_command(programs, tmp_path_factory.mktemp("home"), "bco", *TINY)


@pytest.fixture(scope="module")
def report(finished: tuple[Path, str]) -> dict[str, Any]:
    return report_of(finished[0])


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    assert_written(finished[0], ["agent.zip", "inverse_dynamics.zip"], [*TINY, "--env", "CartPole-v1"])


def test_the_run_is_that_of_bco(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    folder, _ = finished
    agent = BCO(
        "MlpPolicy",
        make_envs("CartPole-v1", 2, 0),
        ObservationOnly.from_demonstrations(cartpole_v1().sample_episodes(1, 0)),
        smoothing=0.1,
        n_rounds=2,
        transitions_per_round=200,
        n_epochs=1,
        policy_kwargs={"net_arch": [8]},
        inverse_epochs=2,
        inverse_net_arch=[8],
        seed=0,
        device="cpu",
        eval_env=make_envs("CartPole-v1", 2, 0),
        n_eval_episodes=2,
    ).learn()
    saved, expected = BC.load(folder / "agent.zip", device="cpu").policy.state_dict(), agent.policy.state_dict()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
    curves = read_metrics(folder / "metrics.csv")
    assert curves["bco/round"] == ([200, 400], [1, 2])
    for name, value in agent.history[-1].items():
        assert curves[f"bco/{name}"][1][-1] == value
        assert report["summary"][name] == value
    assert report["summary"]["demonstrated_return"] == 500
    assert "pseudo_label_accuracy" in report["summary"]  # the actions are known here, and not trained on
    model = InverseDynamics.load(folder / "inverse_dynamics.zip", device="cpu")
    assert model.metrics["val_accuracy"] == report["summary"]["inverse_dynamics_accuracy"]


def test_tensorboard_and_the_table_say_the_same(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    folder, printed = finished
    events = read_events(folder)
    found = report["summary"]
    assert [event.step for event in events.Scalars("bco/mean_reward")] == [200, 400]
    assert events.Scalars("bco/policy_entropy")[-1].value == pytest.approx(found["policy_entropy"])
    rows = {
        "return, sampled": f"{found['mean_reward_sampled']:.1f} ± {found['std_reward_sampled']:.1f}",
        "return, demonstrations": "500.0",
        "pseudo-labels: right": f"{100 * found['pseudo_label_accuracy']:.1f} %",
        "confidence in them": f"{100 * found['pseudo_label_confidence']:.1f} %",
        "policy entropy": f"{found['policy_entropy']:.3f} nats",
    }
    assert_table(printed, rows)
    assert "500 in 1 episodes" in printed


def test_evaluate_and_plot_work_on_it(finished: tuple[Path, str], tmp_path: Path) -> None:
    copy = assert_drawn_again(finished[0], tmp_path)
    numbers = tmp_path / "numbers.json"
    assert main(["evaluate", "-i", str(copy), "--eval-episodes", "1", "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text())["sampled"]["mean_reward"] >= 1


def test_enjoy_films_it(finished: tuple[Path, str], tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    film = tmp_path / "agent.gif"
    assert main(["enjoy", str(finished[0]), "--video", str(film), "--max-steps", "5"]) == 0
    assert film.read_bytes()[:3] == b"GIF"


def test_observations_without_actions_soft_guesses_and_another_tensorboard_folder(tmp_path: Path) -> None:
    watched = tmp_path / "watched.npz"
    ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(1, 0).save(watched)
    words = ["bco", "--demonstrations", str(watched), "--pseudo-labels", "soft", "--smoothing", "lin_0.2", *QUICK]
    words += [
        "--rounds",
        "1",
        "--transitions-per-round",
        "200",
        "-f",
        str(tmp_path / "logs"),
        "-tb",
        str(tmp_path / "tb"),
    ]
    assert main(words) == 0
    folder = tmp_path / "logs" / "bco" / "CartPole-v1_1"
    assert not list(folder.glob("events*"))
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["CartPole-v1_1"]
    summary = json.loads((folder / "report.json").read_text())["summary"]
    assert "pseudo_label_accuracy" not in summary  # nobody knows
    assert "demonstrated_return" not in summary


@pytest.mark.parametrize(
    "env", [pytest.param("rlsmooth/IdentityBox-v0", marks=pytest.mark.slow), "rlsmooth/IdentityMasked-v0"]
)
def test_other_action_spaces(env: str, tmp_path: Path) -> None:
    played = make_envs(env, 1, 0)
    space = played.action_space
    space.seed(0)
    policy = (lambda _: space.sample()) if isinstance(space, spaces.Box) else (lambda state: state)
    record(policy, env, 4, seed=0).save(tmp_path / "demonstrations.npz")
    words = ["bco", "--env", env, "--demonstrations", str(tmp_path / "demonstrations.npz"), *QUICK]
    assert main([*words, "--rounds", "1", "--transitions-per-round", "100", "-f", str(tmp_path)]) == 0
    (folder,) = (tmp_path / "bco").iterdir()
    summary = json.loads((folder / "report.json").read_text())["summary"]
    assert ("pseudo_label_error" if isinstance(space, spaces.Box) else "pseudo_label_accuracy") in summary
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--env Nope-v0", "env='Nope-v0' can't be made"),
        ("--env Acrobot-v1", "no demonstrations of env='Acrobot-v1' ship"),
        ("--env Acrobot-v1 --demonstrations cartpole-v1", "demonstrations has observation_space="),
        ("--demonstrations nowhere.npz", "'nowhere.npz' is neither a file or folder nor"),
        ("--demonstrations {file}", "is not a .npz file"),
        ("--n-episodes 100", "n_episodes=100"),
        ("--rounds 0", "n_rounds=0"),
        ("--transitions-per-round 0", "transitions_per_round=0"),
        ("--smoothing lots", "smoothing='lots' can't be used"),
        ("--inverse-smoothing 2", "inverse_smoothing='2' can't be used"),
        ("--learning-rate fast", "learning_rate='fast'"),
        ("--inverse-learning-rate -1", "learning_rate=-1.0"),
        ("--batch-size 0", "batch_size=0"),
        ("--epochs 0", "n_epochs=0"),
        ("--net-arch 0", "net_arch=0"),
        ("--eval-episodes 0", "eval_episodes=0"),
        ("--n-envs 0", "n_envs=0"),
        ("--seed -1", "seed=-1"),
        ("--device toaster", "device='toaster' can't be used"),
        ("--policy NoPolicy", "policy='NoPolicy'"),
        ("--action-bins 5", "action_bins"),
        ("-f {file}/below", "can't be written to"),
        ("-tb {file}/below", "tensorboard_log="),
        ("--resume nowhere", "'nowhere' is no folder of a run"),
    ],
)
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(words: str, says: str, refused: Any) -> None:
    refused(f"bco {words}", says)


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, str], tmp_path: Path) -> None:
    assert_resumed_unchanged(finished[0], tmp_path)


@pytest.mark.slow
def test_a_run_killed_in_a_round_goes_on_to_the_same_parameters(tmp_path: Path) -> None:
    settings = [*TINY, "--rounds", "4", "--epochs", "4"]
    whole, folder = kill_command("bco", settings, tmp_path, 2)
    expected, resumed = map(parameters, (whole, folder))
    assert same_tensors(expected, resumed)
    there, here = (read_metrics(path / "metrics.csv") for path in (whole, folder))
    assert there == here
    assert np.isfinite(here["bco/cross_entropy"][1]).all()
