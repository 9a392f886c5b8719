"""`rlsmooth ppo` and the other on-policy commands as their users run them."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch.distributions import Categorical

from commands import (
    COMMAND,
    assert_picture,
    assert_refused,
    assert_resumed_unchanged,
    assert_same_run,
    assert_written,
    evaluated,
    finished_run,
    parameters,
    report_of,
    run_here,
)
from killing import kill_command
from rlsmooth.agents import BC, SmoothedPPO, load_agent, save_agent
from rlsmooth.agents.smoothed.algorithms import SmoothedTraining
from rlsmooth.data import Demonstrations
from rlsmooth.scripts.figures.kinds import draw_reports, new_report
from rlsmooth.scripts.figures.on_policy import smoothing_words
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.on_policy import steps_of
from rlsmooth.scripts.reports import RunReport
from rlsmooth.scripts.run_folder import EnvironmentSettings, env_of_run
from support import assert_raises, read_events, same_parameters, same_tensors

TINY = ("-n", "1024", "--eval-freq", "512", "--save-freq", "512", "--eval-episodes", "3", "--device", "cpu")
ON = ("--smoothing", "0.05", "--exploration-floor", "0.1")
finished = finished_run("ppo", *TINY, *ON)


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    files = ["agent.zip", "best_agent.zip", "evaluations.npz"]
    assert_written(*finished, files, [*ON, "--n-timesteps", "1024"], exactly=False)
    settings = json.loads((finished[0] / "config.json").read_text())
    assert settings["command"] == "ppo"
    assert settings["arguments"]["smoothing"] == "0.05"
    assert settings["hyperparameters"]["smoothing"] == "0.05"
    assert settings["hyperparameters"]["n_timesteps"] == 1024
    assert settings["hyperparameters"]["clip_range"] == "lin_0.2"


def test_the_agent_is_what_was_asked_for(finished: tuple[Path, str]) -> None:
    agent = load_agent(finished[0] / "agent.zip", device="cpu")
    assert type(agent) is SmoothedPPO
    assert (agent.num_timesteps, agent.n_steps, agent.batch_size, agent.gamma) == (1024, 32, 256, 0.98)
    assert agent.alpha == 0.05
    assert agent.policy.exploration_floor == 0.1
    action, _ = agent.predict(np.zeros(4, np.float32), deterministic=True)
    assert int(action) in (0, 1)


def test_the_metrics_have_a_row_for_each_update_and_evaluation(finished: tuple[Path, str]) -> None:
    curves = read_metrics(finished[0] / "metrics.csv")
    assert curves["train/policy_entropy"][0] == [256, 512, 768, 1024]
    assert curves["eval/mean_reward"][0] == [0, 512, 1024]
    assert curves["rollout/ep_rew_mean"][0] == [256, 512, 768, 1024]
    assert set(curves["train/smoothing"][1]) == {0.05}
    assert set(curves["train/exploration_floor"][1]) == {0.1}
    assert 0.6 < curves["train/policy_entropy"][1][0] < math.log(2) - 1e-3  # after the first update, not before it
    fractions = np.asarray(curves["train/policy_entropy"][1]) / math.log(2)
    assert curves["train/entropy_frac"][1] == pytest.approx(fractions, rel=1e-6)


def test_tensorboard_reads_the_events(finished: tuple[Path, str]) -> None:
    events = read_events(finished[0])
    train = "approx_kl entropy_frac entropy_loss exploration_floor kl_reference kl_uniform policy_entropy smoothing"
    tags = {f"train/{name}" for name in (*train.split(), "value_loss")} | {"rollout/ep_rew_mean", "time/fps"}
    assert set(events.Tags()["scalars"]) >= tags | {"eval/mean_reward", "eval/mean_reward_sampled"}
    curves = read_metrics(finished[0] / "metrics.csv")
    logged = events.Scalars("train/policy_entropy")
    assert [event.step for event in logged] == curves["train/policy_entropy"][0]
    assert [event.value for event in logged] == pytest.approx(curves["train/policy_entropy"][1])


def test_the_evaluations_are_those_of_sb3(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    with np.load(folder / "evaluations.npz") as file:
        steps, returns, lengths = file["timesteps"], file["results"], file["ep_lengths"]
    assert steps.tolist() == [0, 512, 1024]
    assert returns.shape == lengths.shape == (3, 3)
    best = load_agent(folder / "best_agent.zip", device="cpu")
    # The first evaluation, of an untrained network, counts as the chart shows it: here it is the best by luck
    assert returns[0].mean() > returns[1:].mean(1).max()
    assert best.num_timesteps == json.loads((folder / "report.json").read_text())["summary"]["best_step"] == 0
    env = make_vec_env("CartPole-v1", 3)
    for name, agent in (("best_agent", best), ("agent", load_agent(folder / "agent.zip", device="cpu"))):
        env.seed(1_000_000)
        again, _ = evaluate_policy(agent, env, 3, return_episode_rewards=True)
        assert sorted(again) == sorted(returns[steps.tolist().index(agent.num_timesteps)]), name


@pytest.mark.parametrize(("command", "rate"), [("ppo", 0.03), ("a2c", 0.003)])
def test_the_entropy_is_that_of_the_saved_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, rate: float
) -> None:
    """In the states of the last rollout, by torch's own Categorical; that of before the last update is another."""
    kept: list[Any] = []
    train = SmoothedTraining.train

    def keeping(self: SmoothedTraining) -> None:
        kept.append((self.rollout_buffer.observations.reshape(-1, 4), copy.deepcopy(self.policy)))
        train(self)

    monkeypatch.setattr(SmoothedTraining, "train", keeping)
    words = [command, "-n", "1024", "--eval-freq", "-1", "--eval-episodes", "1", "--device", "cpu"]
    folder = run_here(tmp_path, *words, "-params", f"learning_rate={rate}")
    observations, before = kept[-1]
    after = load_agent(folder / "agent.zip", device="cpu").policy
    entropies = []
    for policy in (after, before):
        features = policy.extract_features(torch.as_tensor(observations))
        logits = policy.action_net(policy.mlp_extractor(features)[0]).detach()
        entropies.append(float(Categorical(logits=logits).entropy().mean()))
    assert report_of(folder)["summary"]["policy_entropy"] == pytest.approx(entropies[0], rel=1e-5)
    assert entropies[0] != pytest.approx(entropies[1], rel=1e-4)
    assert read_metrics(folder / "metrics.csv")["train/policy_entropy"][1][-1] == pytest.approx(entropies[0], rel=1e-5)


def test_with_everything_off_it_is_sb3s_ppo(tmp_path: Path) -> None:
    assert main(["ppo", *TINY, "--engine", "torch", "--seed", "3", "-f", str(tmp_path)]) == 0
    env = make_vec_env("CartPole-v1", 8, seed=3)
    given: dict[str, Any] = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20}
    given |= {"ent_coef": 0.0, "learning_rate": LinearSchedule(0.001, 0.0, 1.0)}
    given |= {"clip_range": LinearSchedule(0.2, 0.0, 1.0), "seed": 3, "device": "cpu"}
    model = PPO("MlpPolicy", env, **given)
    torch.set_num_threads(1)
    model.learn(1024)
    assert same_tensors(parameters(tmp_path / "ppo" / "CartPole-v1_1"), model.policy.state_dict())


@pytest.mark.slow  # BC's is quick, and the contract of resuming has the generators
def test_a_run_killed_at_any_moment_goes_on_to_the_same_agent(tmp_path: Path) -> None:
    settings = ["-n", "2560", "--eval-freq", "1024", "--save-freq", "512", "--eval-episodes", "1", "--device", "cpu"]
    settings += ["--target-entropy-frac", "0.9", "--exploration-floor", "lin_0.2"]
    whole, folder = kill_command("ppo", settings, tmp_path, 1024)
    assert_same_run(whole, folder)
    # Not byte for byte: the episodes in the file have their clock times
    best = [load_agent(path / "best_agent.zip", device="cpu") for path in (whole, folder)]
    assert best[0].num_timesteps == best[1].num_timesteps
    assert same_parameters(*best)


def test_resuming_a_finished_run_changes_nothing_but_its_report(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder = assert_resumed_unchanged(finished[0], tmp_path)
    assert (folder / "evaluations.npz").read_bytes() == (finished[0] / "evaluations.npz").read_bytes()


def test_evaluate_agrees_with_sb3(finished: tuple[Path, str]) -> None:
    found = evaluated(finished[0], "--n-envs", "1", "--seed", "7", "--vectorization", "vector_entry_point", episodes=3)
    agent = load_agent(finished[0] / "agent.zip", device="cpu")
    env = make_vec_env("CartPole-v1", 1, seed=7)
    mean, std = evaluate_policy(agent, env, 3)
    assert found["deterministic"]["mean_reward"] == pytest.approx(mean)
    assert found["deterministic"]["std_reward"] == pytest.approx(std)
    assert 0 < found["sampled"]["policy_entropy"] <= math.log(2)
    assert found["sampled"]["entropy_frac"] == pytest.approx(found["sampled"]["policy_entropy"] / math.log(2))
    assert 0 < found["sampled"]["entropy_frac_min"] < found["sampled"]["entropy_frac"]


def test_record_plays_the_agent(finished: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "demonstrations.npz"
    words = ["record", "-i", str(finished[0] / "agent.zip"), "--n-episodes", "2", "--output", str(path)]
    assert main(words) == 0
    recorded = Demonstrations.load(path)
    assert recorded.metadata["expert"] == {"algo": "SmoothedPPO"}
    assert main([*words, "--vectorization", "sync"]) == 0
    again = Demonstrations.load(path)
    assert again.metadata["env_id"] == recorded.metadata["env_id"] == "CartPole-v1"
    assert np.array_equal(np.asarray(again.observations), np.asarray(recorded.observations))
    agent = load_agent(finished[0] / "agent.zip", device="cpu")
    actions, _ = agent.predict(np.asarray(recorded.observations), deterministic=True)
    assert (actions == recorded.actions).all()


# ---- the other commands and ways to start them, reports of several runs, mistakes
SMALL = ("--eval-episodes", "2", "--eval-freq", "-1", "--save-freq", "-1", "--device", "cpu")


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
        pytest.param("recurrent-ppo -n 512 --target-entropy-frac 0.8", "SmoothedRecurrentPPO", marks=pytest.mark.slow),
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
    folder = run_here(tmp_path, *words.split(), *SMALL)
    assert type(load_agent(folder / "agent.zip", device="cpu")).__name__ == kind
    assert not (folder / "checkpoints").exists()
    curves = read_metrics(folder / "metrics.csv")
    assert {"train/policy_entropy", "train/kl_reference", "train/smoothing", "train/exploration_floor"} <= set(curves)
    (folder / "report.png").unlink()
    assert main(["plot", str(folder)]) == 0
    assert_picture(folder / "report.png")
    assert np.isfinite(evaluated(folder, episodes=2)["sampled"]["policy_entropy"])


@pytest.mark.slow
def test_a_masked_identity_is_solved(tmp_path: Path) -> None:
    folder = run_here(tmp_path, "maskable-ppo", "-n", "3000", "--smoothing", "0.01", *SMALL)
    summary = report_of(folder)["summary"]
    assert summary["mean_reward"] == 10.0  # the optimum
    assert summary["entropy_frac"] > 0.001


@pytest.mark.slow
def test_environments_in_processes_give_the_same_agent(tmp_path: Path) -> None:
    words = ("ppo", "--env", "rlsmooth/Identity-v0", "-n", "256", "--n-envs", "2", "--smoothing", "0.1")
    here = run_here(tmp_path / "here", *words, *SMALL)
    for place, way in enumerate((("--vec-env", "subproc"), ("--vectorization", "sync"), ("--vectorization", "async"))):
        apart = run_here(tmp_path / str(place), *words, *way, *SMALL)
        assert same_tensors(parameters(here), parameters(apart))


def test_normalised_observations_are_normalised_wherever_the_agent_plays(tmp_path: Path) -> None:
    folder = run_here(tmp_path, "ppo", "--env", "CartPole-v1", "-n", "2048", "--hyperparams", "normalize=true", *SMALL)
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
    played = evaluated(folder, "--seed", "1000000", episodes=2)["deterministic"]  # the same two episodes
    assert played["mean_reward"] == pytest.approx(report_of(folder)["summary"]["mean_reward"])


def test_a_cloned_policy_is_where_ppo_begins(clone: Path, tmp_path: Path) -> None:
    words = ("ppo", "--env", "CartPole-v1", "-n", "768", "--from-bc", str(clone), "--smoothing", "0.5")
    folder = run_here(tmp_path, *words, "--value-warmup-steps", "256", *SMALL)
    actor = BC.load(clone / "agent.zip", device="cpu").policy.state_dict()
    ours = parameters(folder)
    # One rollout fitted the critic, one update moved the actor, not far, and the last one has a learning rate of 0.
    assert not torch.equal(ours["action_net.weight"], actor["action_net.weight"])
    assert torch.allclose(ours["action_net.weight"], actor["action_net.weight"], atol=0.05)
    curves = read_metrics(folder / "metrics.csv")
    assert curves["train/kl_reference"][1][0] == pytest.approx(0.0, abs=1e-6)  # the clone itself
    assert curves["train/kl_uniform"][1][0] > 0.01
    only_critic = parameters(run_here(tmp_path / "more", *words, "--value-warmup-steps", "767", *SMALL))
    kept = [name for name in actor if name.startswith(("action", "mlp_extractor.p"))]
    assert all(torch.equal(only_critic[name], actor[name]) for name in kept)


@pytest.mark.parametrize("command", ["a2c", pytest.param("recurrent-ppo", marks=pytest.mark.slow)])
def test_the_other_algorithms_begin_with_a_clone_too_and_keep_a_guarantee(
    command: str, clone: Path, tmp_path: Path
) -> None:
    words = ("--env", "CartPole-v1", "-n", "512", "--from-bc", str(clone), "--min-entropy-frac", "0.4")
    folder = run_here(tmp_path, command, *words, "--value-warmup-steps", "256", *SMALL)
    curves = read_metrics(folder / "metrics.csv")
    assert curves["train/kl_reference"][1][0] == pytest.approx(0.0, abs=1e-6)
    assert min(curves["train/entropy_frac_min"][1]) > 0.4 - 1e-6
    assert load_agent(folder / "agent.zip", device="cpu").value_warmup_left == 0  # type: ignore[union-attr]


def test_kl_to_the_clone_falls_over_the_whole_run_unless_told_otherwise(clone: Path, tmp_path: Path) -> None:
    # 1,000 is no multiple of the rollout's 256 steps: the last update is beyond the end.
    words = ("-n", "1000", "--from-bc", str(clone / "agent.zip"), "--hyperparams", "normalize=true")
    folder = run_here(tmp_path, "ppo", "--env", "CartPole-v1", *words, *SMALL)
    steps, alphas = read_metrics(folder / "metrics.csv")["train/smoothing"]
    assert steps == [256, 512, 768, 1024]
    assert alphas == pytest.approx([0.1 * (1 - 0.256), 0.1 * (1 - 0.512), 0.1 * (1 - 0.768), 0.0])
    # Rewards alone are normalised: the clone has seen observations as they are.
    agent = load_agent(folder / "agent.zip", env=make_vec_env("CartPole-v1", 8), device="cpu")
    normalizer = agent.get_vec_normalize_env()
    assert (normalizer.norm_obs, normalizer.norm_reward) == (False, True)
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0


def test_what_does_not_fit_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_here(tmp_path, "ppo", "--env", "CartPole-v1", "-n", "256", *SMALL)
    for words, says in (
        (["ppo", "--resume", str(folder), "-n", "512", "--smoothing", "1"], "leave out --n-timesteps, --smoothing."),
        (["a2c", "--resume", str(folder)], "was not written by `rlsmooth a2c`"),
        (["evaluate", "-i", str(folder), "--demonstrations", "cartpole-v1"], "is for cloned agents"),
        (["evaluate", "-i", str(folder), "--env", "Acrobot-v1"], "observation_space="),
        (["record", "-i", str(folder / "agent.zip"), "--env", "Acrobot-v1"], "observation_space="),
        (["ppo", "--from-bc", str(folder)], "agent"),
    ):
        assert_refused(says, words, capsys)


def test_the_run_of_an_agent_says_what_to_play_and_imports_nothing(tmp_path: Path) -> None:
    def say(env: str, kwargs: Any = None) -> None:
        settings = {"command": "ppo", "arguments": {"env": env}, "hyperparameters": {"env_kwargs": kwargs or {}}}
        (tmp_path / "config.json").write_text(json.dumps(settings))

    agent = tmp_path / "agent.zip"

    def found(env: str = "") -> tuple[str, Any]:
        settings = env_of_run(agent, EnvironmentSettings(env=env))
        return settings.env, settings.env_kwargs

    assert_raises(ValueError, "give --env", env_of_run, agent)
    assert found("My-v0") == ("My-v0", {})
    say("My-v0", {"size": 3})
    assert found() == found("My-v0") == ("My-v0", {"size": 3})
    assert found("Other-v0") == ("Other-v0", {})
    say("rlsmooth.envs:rlsmooth/Identity-v0")
    assert found() == ("rlsmooth.envs:rlsmooth/Identity-v0", {})
    say("evil:My-v0", {"size": 3})
    assert_raises(
        ValueError, "imports a module, env='evil:My-v0': if you trust it, give --env evil:My-v0", env_of_run, agent
    )
    assert found("evil:My-v0") == ("evil:My-v0", {"size": 3})


def test_the_hyperparameters_of_a_resumed_run_are_those_it_began_with(tmp_path: Path) -> None:
    conf = tmp_path / "conf.yml"
    conf.write_text("default: {n_timesteps: 256, n_steps: 64, batch_size: 64, env_kwargs: {num_actions: 3}}")
    words = ("ppo", "--env", "rlsmooth/Identity-v0", "--conf-file", str(conf))
    folder = run_here(tmp_path / "logs", *words, *SMALL)
    before = parameters(folder)
    conf.unlink()
    (folder / "agent.zip").unlink()
    assert main(["ppo", "--resume", str(folder)]) == 0  # from the beginning: it kept no checkpoints
    assert same_tensors(before, parameters(folder))
    assert before["action_net.weight"].shape[0] == 3
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0  # in the environment with three actions
    assert gym.make("rlsmooth/Identity-v0").action_space.n != 3  # type: ignore[attr-defined]


# ---- words and curves of reports that depend on the action space and on what was on
def _report(*, box: bool = False, floor: float = 0.0) -> RunReport:
    tags = {"train/smoothing": 0.05, "train/exploration_floor": floor, "train/policy_entropy": 0.6}
    tags |= {"train/kl_reference": 0.1}
    if not box:
        tags["train/kl_uniform"] = 0.1
    return new_report(
        "ppo",
        name="run_1",
        settings={"env": "E-v0", "seed": 0, "reference": "uniform", "smoothing": "0.05", "from_bc": None},
        hyperparameters={"smoothing": "0.05"},
        curves={tag: ([256, 512], [value, value]) for tag, value in tags.items()},
    )


def test_a_box_is_not_said_to_be_smoothed_towards_uniform() -> None:
    assert smoothing_words(_report()) == "0.05 towards uniform"
    assert smoothing_words(_report(box=True)) == "0.05 towards a Gaussian"


@pytest.mark.parametrize(("floor", "shown"), [(0.0, False), (0.05, True)])
def test_a_floor_that_was_never_on_is_not_in_the_legend(floor: float, shown: bool) -> None:
    axes = draw_reports([_report(floor=floor)]).axes
    drawn = {str(line.get_label()) for ax in axes for line in ax.get_lines()}
    assert ("exploration floor" in drawn) is shown
    assert "of KL (alpha)" in drawn


@pytest.mark.slow
def test_an_agent_with_functions_of_its_writers_own_is_played_by_the_commands(programs: Any, tmp_path: Path) -> None:
    own: Any = {
        "learning_rate": lambda left: 1e-3 * left,
        "clip_range": lambda left: 0.2,
        "smoothing": lambda left: left,
    }
    path = save_agent(SmoothedPPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, **own), tmp_path / "agent.zip")
    for words in (("evaluate", "--eval-episodes", "1", "-i"), ("enjoy", "--no-render", "--max-steps", "5")):
        done = programs.run(COMMAND, tmp_path, *words, str(path), "--env", "CartPole-v1", warnings_are_errors=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("ppo -n 600 --n-envs 1 -params n_steps=2048", "2,048"),
        ("ppo -n 600 --n-envs 3 -params n_steps=200 batch_size=200", "600"),
        ("a2c -n 601 --n-envs 8 -params n_steps=5", "640"),
        ("recurrent-ppo -n 10 --n-envs 2 -params n_steps=64", "128"),
        ("maskable-ppo -n 10 --n-envs 2 --env rlsmooth/IdentityMasked-v0 -params n_steps=64", "128"),
        ("gail -n 600 --n-envs 1 -params n_steps=2048", "2,048"),
        ("airl -n 600 --n-envs 1 --algo trpo -params n_steps=2048", "2,048"),
        ("gail -n 1030 --n-envs 1 --algo dqn -params train_freq=256", "1,280"),
    ],
)
def test_the_steps_that_are_said_are_those_that_are_trained(
    words: str, steps: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Any, what: str, *__: Any, **___: Any) -> None:
        raise ValueError(what)

    monkeypatch.setattr("rlsmooth.scripts.training_run.TrainingRun.begin", stop)
    assert main([*words.split(), "--eval-episodes", "1", "--device", "cpu", "--log-folder", str(tmp_path)]) == 2
    assert f"for {steps} steps in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "algorithm",
    [
        lambda env: SmoothedPPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu"),
        lambda env: DQN("MlpPolicy", env, train_freq=8, learning_starts=100, device="cpu"),
    ],
)
def test_rollouts_are_trained_whole(algorithm: Any) -> None:
    for steps in (1, 16, 17):
        made = algorithm(make_vec_env("CartPole-v1", 2))
        assert steps_of(made, steps) == made.learn(steps).num_timesteps
