"""`rlsmooth bc`, `bco` and `dagger` as their users run them."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecNormalize

from commands import (
    OF_EVERY_RUN,
    assert_drawn_again,
    assert_filmed,
    assert_refused,
    assert_resumed_unchanged,
    assert_same_run,
    assert_written,
    evaluated,
    finished_run,
    parameters,
    report_of,
    run_command,
    run_here,
)
from killing import kill_command
from rlsmooth.agents import BC, BCO, AdvantageWeights, DAgger, InverseDynamics, load_agent
from rlsmooth.data import Demonstrations, ObservationOnly, cartpole_v1, record
from rlsmooth.scripts.environment import make_envs
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from support import mostly_slow, read_events, same_tensors

FEW = ("--n-episodes", "3", "--validation-fraction", "0.34", "--device", "cpu")
TINY = (*FEW, "--epochs", "2", "--eval-episodes", "2")
finished = finished_run("bc", *TINY)


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert_written(folder, printed, ["agent.zip"], [*TINY, "--env", "CartPole-v1"])
    assert "the 1 held-out episode (" in printed
    settings = json.loads((folder / "config.json").read_text())
    assert settings["arguments"]["n_episodes"] == 3
    assert settings["arguments"]["smoothing"] == "0.1"
    assert settings["versions"]["torch"] == metadata.version("torch")


def test_the_agent_acts(finished: tuple[Path, str]) -> None:
    agent = BC.load(finished[0] / "agent.zip")
    action, _ = agent.predict(np.zeros(4, np.float32), deterministic=True)
    assert int(action) in (0, 1)
    assert agent.num_timesteps == 2 * 16  # 1,000 transitions in batches of 64


def test_the_metrics_have_a_row_for_each_log_line_and_evaluation(finished: tuple[Path, str]) -> None:
    curves = read_metrics(finished[0] / "metrics.csv")
    assert curves["bc/loss"][0] == list(range(1, 33))
    assert curves["bc/val_loss"][0] == curves["bc/loss"][0]
    assert curves["eval/mean_reward"][0] == [0, 32]
    assert curves["bc/loss"][1][-1] < curves["bc/loss"][1][0]


def test_tensorboard_reads_the_events(finished: tuple[Path, str]) -> None:
    events = read_events(finished[0])
    tags = events.Tags()
    assert {"bc/loss", "bc/policy_entropy", "bc/val_ece", "eval/mean_reward", "eval/mean_reward_sampled"} <= set(
        tags["scalars"]
    )
    assert "bc/target_matrix" in tags["images"]
    assert [name for name in tags["images"] if "reliability" in name]
    assert [name for name in tags["histograms"] if "entropy" in name]
    assert [event.step for event in events.Scalars("bc/loss")] == list(range(1, 33))


def test_the_summary_is_that_of_the_agent_on_the_held_out_episode(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    summary = report_of(folder)["summary"]
    _, held_out = cartpole_v1().sample_episodes(3, 0).split(0.34, 0)
    policy: Any = BC.load(folder / "agent.zip", device="cpu").policy
    observations = torch.as_tensor(np.asarray(held_out.observations))
    with torch.no_grad():
        probs = policy.get_distribution(observations).distribution.probs.double().numpy()
    labels = np.asarray(held_out.action_labels)
    assert summary["accuracy"] == pytest.approx(np.mean(probs.argmax(-1) == labels), abs=1e-6)
    assert summary["nll_hard"] == pytest.approx(-np.log(probs[np.arange(len(labels)), labels]).mean(), rel=1e-4)
    assert summary["policy_entropy"] == pytest.approx(-(probs * np.log(probs)).sum(-1).mean(), rel=1e-4)
    assert summary["kl_uniform"] == pytest.approx(-np.log(2) - 0.5 * np.log(probs).sum(-1).mean(), rel=1e-3)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_parameters(tmp_path: Path) -> None:
    settings = [*FEW, "--epochs", "16", "--eval-freq", "-1", "--checkpoint-freq", "3200", "--eval-episodes", "1"]
    whole, folder = kill_command("bc", settings, tmp_path, 100)
    assert same_tensors(parameters(whole), parameters(folder))
    there, here = (read_metrics(path / "metrics.csv") for path in (whole, folder))
    assert there["bc/val_loss"] == here["bc/val_loss"]
    assert there["bc/loss"][0] == here["bc/loss"][0]


def test_timesteps_schedules_patience_noise_and_another_tensorboard_folder(tmp_path: Path) -> None:
    words = "--demonstrations cartpole-v1-noisy -n 640 --smoothing lin_0.2 --learning-rate lin_3e-3 --batch-size 32"
    words += " --gradient-accumulation 2 --action-noise 0.1 --spread others --net-arch 8 --eval-episodes 1"
    words += " --checkpoint-freq -1 --eval-freq -1 --weights advantage --temperature 0.5"
    with pytest.warns(UserWarning, match="the critic explains -"):  # of one episode, by halves
        folder = run_here(tmp_path / "logs", "bc", *words.split(), "-tb", str(tmp_path / "tb"))
    curves = read_metrics(folder / "metrics.csv")
    assert curves["bc/batch"][1][-1] == 10
    assert BC.load(folder / "agent.zip", device="cpu").weights == AdvantageWeights(temperature=0.5)
    assert 0 < report_of(folder)["summary"]["effective_share"] < 1
    assert curves["bc/smoothing"][1][-1] == 0
    assert "bc/val_loss" not in curves  # one episode: none is held out
    assert curves["eval/mean_reward"][0] == [10]
    assert not (folder / "checkpoints").exists()
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["CartPole-v1_1"]
    assert not list(folder.glob("events*"))


def demonstrations_of(env: str, path: Path) -> Path:
    """Four episodes of random actions; where there are masks, of the action that is always legal."""
    space = gym.make(env).action_space
    space.seed(0)
    record((lambda state: state) if "Masked" in env else (lambda _: space.sample()), env, 4, seed=0).save(path)
    return path


# ---- bco
QUICK = ("--epochs", "1", "--inverse-epochs", "2", "--eval-episodes", "2", "--n-envs", "2", "--net-arch", "8")
TINY_BCO = (*QUICK, "--n-episodes", "1", "--rounds", "2", "--transitions-per-round", "200", "--device", "cpu")
TINY_BCO += ("--vectorization", "sync")
bco_run = finished_run("bco", *TINY_BCO)


def test_all_files_are_written_of_bco(bco_run: tuple[Path, str]) -> None:
    assert_written(*bco_run, ["agent.zip", "inverse_dynamics.zip"], [*TINY_BCO, "--env", "CartPole-v1"])
    assert "500 in 1 episode\n" in bco_run[1]


def smoothed_and_evaluated() -> dict[str, Any]:
    """What the runs of BCO and DAgger share."""
    given: dict[str, Any] = {"smoothing": 0.1, "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    given["engine"] = "numpy"  # what the commands choose
    return {**given, "eval_env": make_envs("CartPole-v1", 2, 0), "n_eval_episodes": 2}


def test_the_run_is_that_of_bco(bco_run: tuple[Path, str], quick_paths: None) -> None:
    folder, _ = bco_run
    summary = report_of(folder)["summary"]
    data = ObservationOnly.from_demonstrations(cartpole_v1().sample_episodes(1, 0))
    given: dict[str, Any] = {"n_rounds": 2, "transitions_per_round": 200, "n_epochs": 1, "inverse_epochs": 2}
    given |= {"inverse_net_arch": [8], **smoothed_and_evaluated()}
    agent = BCO("MlpPolicy", make_envs("CartPole-v1", 2, 0), data, **given).learn()
    assert same_tensors(parameters(folder), agent.policy.state_dict())
    curves = read_metrics(folder / "metrics.csv")
    assert curves["bco/round"] == ([200, 400], [1, 2])
    for name, value in agent.history[-1].items():
        assert curves[f"bco/{name}"][1][-1] == value
        assert summary[name] == value
    assert summary["demonstrated_return"] == 500
    assert "pseudo_label_accuracy" in summary  # the actions are known here, and not trained on
    model = InverseDynamics.load(folder / "inverse_dynamics.zip", device="cpu")
    assert model.metrics["val_accuracy"] == summary["inverse_dynamics_accuracy"]
    events = read_events(folder)
    assert [event.step for event in events.Scalars("bco/mean_reward")] == [200, 400]
    assert events.Scalars("bco/policy_entropy")[-1].value == pytest.approx(summary["policy_entropy"])


def test_observations_without_actions_soft_guesses_and_another_tensorboard_folder(tmp_path: Path) -> None:
    watched = tmp_path / "watched.npz"
    ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(1, 0).save(watched)
    words = ["bco", "--demonstrations", str(watched), "--pseudo-labels", "soft", "--smoothing", "lin_0.2", *QUICK]
    words += ["--rounds", "1", "--transitions-per-round", "200", "-tb", str(tmp_path / "tb")]
    folder = run_here(tmp_path / "logs", *words)
    assert not list(folder.glob("events*"))
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["CartPole-v1_1"]
    summary = report_of(folder)["summary"]
    assert "pseudo_label_accuracy" not in summary  # nobody knows
    assert "demonstrated_return" not in summary


@pytest.mark.parametrize("run", mostly_slow(["finished", "bco_run", "dagger_run"], "finished"))
def test_a_finished_run_resumes_unchanged_and_is_drawn_evaluated_and_filmed(
    run: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder, _ = request.getfixturevalue(run)
    (tmp_path / "resumed").mkdir()
    assert_resumed_unchanged(folder, tmp_path / "resumed", metrics=run != "finished")
    copy = assert_drawn_again(folder, tmp_path)
    words = ["--demonstrations", "cartpole-v1"] if run == "dagger_run" else []
    assert evaluated(copy, *words)["sampled"]["mean_reward"] >= 1
    assert_filmed(folder, tmp_path)


# ---- dagger
SMALL = ("--eval-episodes", "2", "--n-envs", "2", "--net-arch", "8", "--device", "cpu")
TINY_DAGGER = (*SMALL, "-n", "600", "--round-min-timesteps", "100", "--epochs", "2", "--beta-schedule", "0.5")


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of cloning, which is the expert: it lasts for 40 steps or more, not for 500."""
    words = "bc --n-episodes 2 --epochs 2 --eval-episodes 1 --eval-freq -1 --checkpoint-freq -1 --net-arch 8"
    return run_here(tmp_path_factory.mktemp("expert"), *words.split(), "--device", "cpu")


@pytest.fixture(scope="module")
def dagger_run(tmp_path_factory: pytest.TempPathFactory, programs: Any, expert: Path) -> tuple[Path, str]:
    """The folder of a tiny run, in a process of its own, and what it printed."""
    return run_command(programs, tmp_path_factory.mktemp("home"), "dagger", "--expert", str(expert), *TINY_DAGGER)


def test_all_files_are_written_of_dagger(dagger_run: tuple[Path, str], expert: Path) -> None:
    words = ["--expert", str(expert), "--n-timesteps", "600", "--env", "CartPole-v1"]
    assert_written(*dagger_run, ["agent.zip", "expert.zip"], words, exactly=False)
    assert (dagger_run[0] / "expert.zip").read_bytes() == (expert / "agent.zip").read_bytes()


def test_the_run_is_that_of_dagger(dagger_run: tuple[Path, str], expert: Path) -> None:
    folder, printed = dagger_run
    summary = report_of(folder)["summary"]
    assert f"Return of the expert: {summary['expert_return']:.1f}" in printed
    given: dict[str, Any] = {"beta_schedule": 0.5, "rollout_round_min_timesteps": 100, "bc_train_n_epochs": 2}
    told = load_agent(expert / "agent.zip", device="cpu")
    agent = DAgger("MlpPolicy", make_envs("CartPole-v1", 2, 0), told, **given, **smoothed_and_evaluated()).learn(600)
    assert same_tensors(parameters(folder), agent.policy.state_dict())
    curves = read_metrics(folder / "metrics.csv")
    for name, value in agent.history[-1].items():
        assert curves[f"dagger/{name}"][1][-1] == value
        assert summary[name] == value
    assert curves["dagger/beta"][1][:2] == [1, 0.5]
    assert len(curves["dagger/round"][0]) == summary["rounds"] == agent.round > 1
    assert summary["transitions"] == len(agent.demonstrations) >= 600
    agreement = read_events(folder).Scalars("dagger/expert_agreement")
    assert [event.step for event in agreement] == curves["dagger/expert_agreement"][0]
    assert agreement[-1].value == pytest.approx(summary["expert_agreement"])
    kept = sorted((folder / "checkpoints" / "demos").rglob("round-*/*.npz"))
    assert sum(len(Demonstrations.load(path)) for path in kept) == len(agent.demonstrations)


@pytest.mark.slow
def test_an_expert_is_trained_and_gives_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train-expert", "256", "--expert-targets", "probabilities", "--demonstrations", "cartpole-v1"]
    words += ["--smoothing", "lin_0.2", "--beta-schedule", "1"]
    few = [*SMALL, "-n", "20", "--round-min-timesteps", "10", "--epochs", "1", "--eval-episodes", "1"]
    # The demonstrations' 12,000 rows have no probabilities: they count as certain.
    folder = run_here(tmp_path / "logs", "dagger", *words, "--n-episodes", "1", *few, "-tb", str(tmp_path / "tb"))
    assert "Training an expert, SmoothedPPO, for 256 steps" in capsys.readouterr().out
    assert load_agent(folder / "expert.zip", device="cpu").num_timesteps == 256
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["CartPole-v1_1"]
    report, curves = report_of(folder), read_metrics(folder / "metrics.csv")
    assert report["expert"] == "SmoothedPPO, 256 steps"
    assert report["summary"]["transitions"] == 500 + curves["dagger/transitions"][0][-1]


def test_an_expert_that_saw_normalised_observations(tmp_path: Path) -> None:
    words = "ppo -n 512 --hyperparams normalize=true --eval-freq -1 --save-freq -1 --eval-episodes 2 --device cpu"
    expert = run_here(tmp_path, *words.split())
    folder = run_here(tmp_path, "dagger", "-i", str(expert), *TINY_DAGGER, "-n", "60")
    agent = load_agent(expert / "agent.zip", env=make_envs("CartPole-v1", 8, 0), device="cpu")
    normalizer = agent.get_vec_normalize_env()
    assert isinstance(normalizer, VecNormalize)
    (path, *_) = sorted((folder / "checkpoints" / "demos").rglob("*.npz"))
    labelled = Demonstrations.load(path)
    shown = normalizer.normalize_obs(np.asarray(labelled.observations))
    assert (agent.predict(shown, deterministic=True)[0] == labelled.actions).all()
    # Its own return is that of its own evaluation: the same seeds and the same episodes.
    assert report_of(folder)["summary"]["expert_return"] == report_of(expert)["summary"]["mean_reward"]


SHORT = ("--epochs", "2", "--eval-episodes", "1")
ONE_ROUND = (*QUICK, "--rounds", "1", "--transitions-per-round", "100")
WITH_EXPERT = (*SMALL, "--train-expert", "512", "-n", "100", "--round-min-timesteps", "20")


@pytest.mark.parametrize(
    ("command", "env", "options", "measured"),
    [
        pytest.param("bc", "IdentityBox", SHORT, "nll_hard", marks=pytest.mark.slow),
        ("bc", "IdentityBox", (*SHORT, "--action-bins", "5", "--reference", "triangular"), "accuracy"),
        ("bc", "IdentityMultiDiscrete", (*SHORT, "--kl-coef", "0.1"), "accuracy"),
        pytest.param("bc", "IdentityMultiBinary", SHORT, "accuracy", marks=pytest.mark.slow),
        pytest.param("bc", "IdentityMasked", SHORT, "accuracy", marks=pytest.mark.slow),
        pytest.param("bc", "IdentityMasked", (*SHORT, "--policy", "MlpPolicy"), "accuracy", marks=pytest.mark.slow),
        pytest.param("bco", "IdentityBox", ONE_ROUND, "pseudo_label_error", marks=pytest.mark.slow),
        pytest.param("bco", "IdentityMasked", ONE_ROUND, "pseudo_label_accuracy", marks=pytest.mark.slow),
        pytest.param("dagger", "IdentityMasked", WITH_EXPERT, "expert_agreement", marks=pytest.mark.slow),
        pytest.param("dagger", "IdentityBox", WITH_EXPERT, "expert_error", marks=pytest.mark.slow),
    ],
)
def test_other_action_spaces(command: str, env: str, options: tuple[str, ...], measured: str, tmp_path: Path) -> None:
    path = demonstrations_of(f"rlsmooth/{env}-v0", tmp_path / "demonstrations.npz")
    given = [] if command == "dagger" else ["--demonstrations", str(path)]
    folder = run_here(tmp_path, command, "--env", f"rlsmooth/{env}-v0", *given, *options)
    assert {path.name for path in folder.iterdir()} >= OF_EVERY_RUN | {"agent.zip"}
    assert measured in report_of(folder)["summary"]
    words = given if command == "bc" else []
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1", *words]) == 0
    assert f"return, agent.zip in rlsmooth/{env}-v0, seed 0" in (folder / "README.md").read_text()
    if command == "dagger":
        assert main(["plot", str(folder), str(folder), "--output", str(tmp_path / "both.png")]) == 0


def test_demonstrations_of_another_environment_are_told(expert: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "identity.npz"
    record(lambda state: state, "rlsmooth/Identity-v0", 1, seed=0).save(data)
    words = ["dagger", "--expert", str(expert), "--demonstrations", str(data), "-f", str(tmp_path / "logs")]
    assert_refused("demonstrations has observation_space=", words, capsys)


@pytest.mark.slow
def test_a_run_without_its_expert_trains_it_again(tmp_path: Path) -> None:
    folder = run_here(tmp_path, "dagger", "--train-expert", "256", *TINY_DAGGER, "-n", "100")
    before, asked = parameters(folder), (folder / "expert.zip").read_bytes()
    for name in ("expert.zip", "agent.zip"):  # as of a run that was killed while the expert was trained
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints")
    assert main(["dagger", "--resume", str(folder)]) == 0
    assert same_tensors(before, parameters(folder))
    assert len(asked) == (folder / "expert.zip").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("bco", (*TINY_BCO, "--rounds", "4", "--epochs", "4")),
        ("dagger", (*TINY_DAGGER, "-n", "2000", "--epochs", "8", "--expert", "{expert}")),
    ],
)
def test_a_run_killed_in_a_round_goes_on_to_the_same_parameters(
    command: str, settings: tuple[str, ...], expert: Path, tmp_path: Path
) -> None:
    whole, folder = kill_command(command, [word.format(expert=expert) for word in settings], tmp_path, 2)
    assert_same_run(whole, folder)
    assert np.isfinite(read_metrics(folder / "metrics.csv")[f"{command}/cross_entropy"][1]).all()
