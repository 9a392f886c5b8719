"""`rlsmooth gail` and `airl` as their users run them: files, numbers, figures, generators, mistakes, a killed run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import (
    OF_EVERY_RUN,
    assert_drawn_again,
    assert_filmed,
    assert_picture,
    assert_refused,
    assert_resumed_unchanged,
    assert_same_run,
    assert_written,
    evaluated,
    finished_run,
    report_of,
    run_here,
)
from killing import kill_command
from rlsmooth.agents import BC, GAIL, RewardNet, SmoothedPPO, load_agent, load_reward_net
from rlsmooth.agents.adversarial.reward_nets import build_net
from rlsmooth.data import cartpole_v1, record
from rlsmooth.scripts.environment import make_envs
from rlsmooth.scripts.hyperparameters import read_hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.run_folder import read_settings
from rlsmooth.training import checkpoint_steps
from support import read_events, same_tensors

ON = ("--real-target", "0.9", "--smoothing", "0.05", "--n-episodes", "2", "--reward-net-arch", "8", "8")
TINY = ("-n", "768", "--eval-freq", "512", "--save-freq", "256", "--eval-episodes", "2", "--device", "cpu")
FILES = {"agent.zip", "best_agent.zip", "evaluations.npz", "reward_net.zip"}
BRIDGED = ("--vectorization", "vector_entry_point")
finished = finished_run("gail", *TINY, *ON, *BRIDGED)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    """Of the generator and of the reward net, of the saved run."""
    policy = load_agent(folder / "agent.zip", device="cpu").policy.state_dict()
    return {**policy, **load_reward_net(folder / "reward_net.zip").state_dict(prefix="reward_net.")}


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    assert_written(*finished, FILES, [*ON, *BRIDGED, "--n-timesteps", "768", "--env", "CartPole-v1"], exactly=False)
    assert "1,000 in 2 episodes" in finished[1]
    assert checkpoint_steps(finished[0] / "checkpoints") == [512, 768]


def test_the_run_is_that_of_gail(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    values = {**read_hyperparameters("ppo", "CartPole-v1"), "n_timesteps": 768, "smoothing": 0.05}
    settings = resolve_hyperparameters(values, SmoothedPPO)
    generator = SmoothedPPO("MlpPolicy", make_envs("CartPole-v1", 8, 0), seed=0, device="cpu", **settings.arguments)
    spaces = generator.observation_space, generator.action_space
    net = build_net(lambda: RewardNet(*spaces, net_arch=[8, 8]), 0)
    demonstrations = cartpole_v1().sample_episodes(2, 0)
    # Rollouts have 256 steps, and each 64 of them are worth an update.
    trainer = GAIL(demonstrations, generator, net, real_target=0.9, n_disc_updates_per_round=4, seed=0).learn(768)
    assert read_settings(folder, "gail")["n_disc_updates_per_round"] == 4
    expected = {**generator.policy.state_dict(), **net.state_dict(prefix="reward_net.")}
    assert same_tensors(parameters(folder), expected)
    assert trainer.rounds == 3
    curves = read_metrics(folder / "metrics.csv")
    assert curves["mean/disc/disc_acc_expert"][0] == [256, 512, 768]
    assert curves["train/policy_entropy"][0] == [256, 512, 768]
    assert curves["eval/mean_reward"][0] == [0, 512, 768]
    summary = report_of(folder)["summary"]
    assert summary["demonstrated_return"] == 500
    assert summary["disc/disc_probability_gen"] == curves["mean/disc/disc_probability_gen"][1][-1]
    assert summary["steps"] == 768
    assert summary["largest_entropy"] == pytest.approx(math.log(2))
    scalars = read_events(folder).Scalars("mean/disc/disc_acc_expert")
    assert [event.step for event in scalars] == [256, 512, 768]
    assert scalars[-1].value == pytest.approx(summary["disc/disc_acc_expert"])


def test_it_resumes_unchanged_and_is_drawn_evaluated_and_filmed(finished: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "resumed").mkdir()
    assert_resumed_unchanged(finished[0], tmp_path / "resumed", parameters)
    copy = assert_drawn_again(finished[0], tmp_path)
    for agent in (copy, copy / "best_agent.zip"):
        assert evaluated(agent)["sampled"]["policy_entropy"] > 0
    assert_filmed(finished[0], tmp_path)


def test_airl_runs_and_is_compared_with_gail(finished: tuple[Path, str], tmp_path: Path, capsys: Any) -> None:
    words = [*TINY, "--potential-net-arch", "8", "--terminal-states", "as_is", "--n-disc-updates-per-round", "1"]
    folder = run_here(tmp_path, "airl", *words)
    assert {path.name for path in folder.iterdir()} >= OF_EVERY_RUN | FILES
    net = load_reward_net(folder / "reward_net.zip")
    assert type(net).__name__ == "ShapedRewardNet"
    assert net.gamma == load_agent(folder / "agent.zip", device="cpu").gamma == 0.98  # type: ignore[comparison-overlap]
    assert [layer.out_features for layer in net.potential.layers if isinstance(layer, torch.nn.Linear)] == [8, 1]  # type: ignore[union-attr]
    output = tmp_path / "both.svg"
    assert main(["plot", str(finished[0]), str(folder), "--output", str(output)]) == 0
    assert "<svg" in output.read_text()
    (tmp_path / "config.json").write_text(json.dumps({"command": "ppo", "arguments": {}}))
    words = ["plot", str(folder), str(tmp_path)]
    assert_refused("runs of gail or airl and on-policy can't be compared", words, capsys)


@pytest.mark.slow  # a kill of AIRL is in the contract of resuming, one of a command in the tests of bc and ppo
@pytest.mark.parametrize("command", ["gail", "airl"])
def test_a_killed_run_goes_on_to_the_same_parameters(command: str, tmp_path: Path) -> None:
    settings = [*ON, "-n", "2048", "--save-freq", "256"]
    settings += ["--eval-freq", "1024", "--eval-episodes", "2", "--device", "cpu"]
    whole, folder = kill_command(command, settings, tmp_path, 512)
    assert_same_run(whole, folder, parameters)


# ---- every generator, from a clone, on masks and boxes; mistakes
SMALL = ("--eval-episodes", "2", "--eval-freq", "-1", "--save-freq", "-1", "--device", "cpu", "--demo-batch-size", "64")


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
    folder = run_here(tmp_path, *words.split(), *SMALL)
    assert type(load_agent(folder / "agent.zip", device="cpu")).__name__ == kind
    assert not (folder / "checkpoints").exists()
    curves = read_metrics(folder / "metrics.csv")
    assert {"mean/disc/disc_acc_expert", "mean/disc/disc_acc_gen", "mean/disc/disc_probability_gen"} <= set(curves)
    assert ("train/policy_entropy" in curves) == (kind != "DQN")
    (folder / "report.png").unlink()
    assert main(["plot", str(folder)]) == 0
    assert_picture(folder / "report.png")
    assert np.isfinite(evaluated(folder, episodes=2)["sampled"]["mean_reward"])
    assert main(["enjoy", str(folder), "--no-render", "--max-steps", "3"]) == 0


SAC = "--algo sac --gen-train-timesteps 64 --hyperparams learning_starts=64 gradient_steps=8 train_freq=8"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(f"gail {SAC}", marks=pytest.mark.slow),
        pytest.param(f"airl {SAC}", marks=pytest.mark.slow),
        "airl --algo ppo --hyperparams n_steps=32 batch_size=32",
    ],
)
def test_continuous_actions(words: str, tmp_path: Path) -> None:
    data = recorded("Pendulum-v1", tmp_path / "pendulum.npz")
    folder = run_here(
        tmp_path, *words.split(), "--env", "Pendulum-v1", "-n", "256", "--demonstrations", str(data), *SMALL
    )
    assert np.isfinite(read_metrics(folder / "metrics.csv")["mean/disc/disc_loss"][1]).all()
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0
    assert main(["enjoy", str(folder), "--no-render", "--max-steps", "3"]) == 0


def test_action_masks(tmp_path: Path) -> None:
    env = "rlsmooth/IdentityMasked-v0"
    data = recorded(env, tmp_path / "masked.npz", 4)
    words = ("--env", env, "-n", "512", "--smoothing", "0.01", "--demonstrations", str(data))
    folder = run_here(tmp_path, "airl", *words, *SMALL)  # the default, ppo, stands for maskable-ppo
    assert type(load_agent(folder / "agent.zip", device="cpu")).__name__ == "SmoothedMaskablePPO"
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0


def test_a_cloned_policy_is_where_the_generator_begins(clone: Path, tmp_path: Path) -> None:
    words = ("gail", "-n", "512", "--from-bc", str(clone), "--value-warmup-steps", "511")
    ours = load_agent(run_here(tmp_path, *words, *SMALL) / "agent.zip", device="cpu").policy.state_dict()
    actor = BC.load(clone / "agent.zip", device="cpu").policy.state_dict()
    # Only the critic was trained.
    assert all(torch.equal(ours[name], actor[name]) for name in actor if name.startswith(("action", "mlp_extractor.p")))


def test_what_does_not_fit_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_here(tmp_path, "gail", "-n", "256", *SMALL)
    for words, says in (
        (["gail", "--resume", str(folder), "--real-target", "0.9"], "leave out --real-target."),
        (["airl", "--resume", str(folder)], "was not written by `rlsmooth airl`"),
        (["evaluate", "-i", str(folder), "--demonstrations", "cartpole-v1"], "is for cloned agents"),
    ):
        assert_refused(says, words, capsys)
