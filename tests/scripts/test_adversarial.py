"""`rlsmooth gail` and `airl` as their users run them: files, numbers, figures, generators, mistakes, a killed run."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.image import imread
from sb3_contrib import TRPO
from stable_baselines3 import DQN, SAC

from commands import (
    MISTAKES_IN_ENVIRONMENTS,
    OF_EVERY_RUN,
    assert_drawn_again,
    assert_resumed_unchanged,
    assert_table,
    assert_written,
    report_of,
    run_command,
    run_here,
    zoo_file,
)
from killing import kill_command
from rlsmooth.agents import BC, GAIL, RewardNet, SmoothedPPO, load_agent, load_reward_net
from rlsmooth.agents.adversarial.reward_nets import build_net
from rlsmooth.data import cartpole_v1, record
from rlsmooth.scripts import airl, gail
from rlsmooth.scripts.environment import make_envs
from rlsmooth.scripts.figures.kinds import KINDS, draw_reports, new_report
from rlsmooth.scripts.figures.rounds import beta_words
from rlsmooth.scripts.hyperparameters import read_hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.reports import RunReport
from rlsmooth.scripts.run_folder import command_line
from rlsmooth.training import checkpoint_steps
from support import read_events, same_tensors

ON = ("--real-target", "0.9", "--smoothing", "0.05", "--n-episodes", "2", "--reward-net-arch", "8", "8")
TINY = ("-n", "768", "--eval-freq", "512", "--save-freq", "256", "--eval-episodes", "2", "--device", "cpu")
FILES = {"agent.zip", "best_agent.zip", "evaluations.npz", "reward_net.zip"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, programs: Any) -> tuple[Path, str]:
    """The folder of a tiny run, in a process of its own, and what it printed."""
    return run_command(programs, tmp_path_factory.mktemp("home"), "gail", *TINY, *ON)


@pytest.fixture(scope="module")
def report(finished: tuple[Path, str]) -> dict[str, Any]:
    return report_of(finished[0])


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    """Of the generator and of the reward net, of the saved run."""
    policy = load_agent(folder / "agent.zip", device="cpu").policy.state_dict()
    return {**policy, **load_reward_net(folder / "reward_net.zip").state_dict(prefix="reward_net.")}


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    assert_written(finished[0], FILES, [*ON, "--n-timesteps", "768", "--env", "CartPole-v1"], exactly=False)
    assert checkpoint_steps(finished[0] / "checkpoints") == [512, 768]


def test_the_run_is_that_of_gail(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    folder, _ = finished
    values = {**read_hyperparameters("ppo", "CartPole-v1"), "n_timesteps": 768, "smoothing": 0.05}
    settings = resolve_hyperparameters(values, SmoothedPPO)
    generator = SmoothedPPO("MlpPolicy", make_envs("CartPole-v1", 8, 0), seed=0, device="cpu", **settings.arguments)
    spaces = generator.observation_space, generator.action_space
    net = build_net(lambda: RewardNet(*spaces, net_arch=[8, 8]), 0)
    demonstrations = cartpole_v1().sample_episodes(2, 0)
    trainer = GAIL(demonstrations, generator, net, real_target=0.9, seed=0).learn(768)
    expected = {**generator.policy.state_dict(), **net.state_dict(prefix="reward_net.")}
    assert same_tensors(parameters(folder), expected)
    assert trainer.rounds == 3
    curves = read_metrics(folder / "metrics.csv")
    assert curves["mean/disc/disc_acc_expert"][0] == [256, 512, 768]
    assert curves["train/policy_entropy"][0] == [256, 512, 768]
    assert curves["eval/mean_reward"][0] == [0, 512, 768]
    summary = report["summary"]
    assert summary["demonstrated_return"] == 500
    assert summary["disc/disc_probability_gen"] == curves["mean/disc/disc_probability_gen"][1][-1]
    assert summary["steps"] == 768
    assert summary["largest_entropy"] == pytest.approx(math.log(2))


def test_tensorboard_and_the_table_say_the_same(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    folder, printed = finished
    events = read_events(folder)
    found = report["summary"]
    scalars = events.Scalars("mean/disc/disc_acc_expert")
    assert [event.step for event in scalars] == [256, 512, 768]
    assert scalars[-1].value == pytest.approx(found["disc/disc_acc_expert"])
    probability, accuracy = found["disc/disc_probability_expert"], found["disc/disc_acc_expert"]
    rows = {
        "return, sampled": f"{found['mean_reward_sampled']:.1f} ± {found['std_reward_sampled']:.1f}",
        "return, demonstrations": "500.0",
        "D on the expert": f"{probability:.3f}, right {100 * accuracy:.1f} %",
        "policy entropy": f"{found['policy_entropy']:.3f} nats",
        "training": "768 steps",
    }
    assert_table(printed, rows)
    assert "1,000 in 2 episodes" in printed


def test_evaluate_and_plot_work_on_it(finished: tuple[Path, str], tmp_path: Path) -> None:
    copy = assert_drawn_again(finished[0], tmp_path)
    numbers = tmp_path / "numbers.json"
    for agent in (copy, copy / "best_agent.zip"):
        assert main(["evaluate", "-i", str(agent), "--eval-episodes", "1", "--json", str(numbers)]) == 0
        assert json.loads(numbers.read_text())["sampled"]["policy_entropy"] > 0


def test_enjoy_films_it(finished: tuple[Path, str], tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    film = tmp_path / "agent.gif"
    assert main(["enjoy", str(finished[0]), "--video", str(film), "--max-steps", "5"]) == 0
    assert film.read_bytes()[:3] == b"GIF"


def test_airl_runs_and_is_compared_with_gail(finished: tuple[Path, str], tmp_path: Path, capsys: Any) -> None:
    words = [*TINY, "--potential-net-arch", "8", "--terminal-states", "as_is", "-f", str(tmp_path)]
    assert main(["airl", *words, "--n-disc-updates-per-round", "1"]) == 0
    folder = tmp_path / "airl" / "CartPole-v1_1"
    assert {path.name for path in folder.iterdir()} >= OF_EVERY_RUN | FILES
    net = load_reward_net(folder / "reward_net.zip")
    assert type(net).__name__ == "ShapedRewardNet"
    assert net.gamma == load_agent(folder / "agent.zip", device="cpu").gamma == 0.98  # type: ignore[comparison-overlap]
    assert [layer.out_features for layer in net.potential.layers if isinstance(layer, torch.nn.Linear)] == [8, 1]  # type: ignore[union-attr]
    output = tmp_path / "both.svg"
    assert main(["plot", str(finished[0]), str(folder), "--output", str(output)]) == 0
    assert "<svg" in output.read_text()
    capsys.readouterr()
    assert main(["ppo", "-n", "256", "--eval-episodes", "1", "--device", "cpu", "-f", str(tmp_path)]) == 0
    assert main(["plot", str(folder), str(tmp_path / "ppo" / "CartPole-v1_1")]) == 2
    assert "runs of gail or airl and on-policy can't be compared" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, str], tmp_path: Path) -> None:
    assert_resumed_unchanged(finished[0], tmp_path, parameters)


@pytest.mark.parametrize("command", ["gail", pytest.param("airl", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_parameters(command: str, tmp_path: Path) -> None:
    settings = [*ON, "-n", "2048", "--save-freq", "256"]
    settings += ["--eval-freq", "1024", "--eval-episodes", "2", "--device", "cpu"]
    whole, folder = kill_command(command, settings, tmp_path, 512)
    assert same_tensors(parameters(whole), parameters(folder))
    there, here = (read_metrics(path / "metrics.csv") for path in (whole, folder))
    assert {name: curve for name, curve in there.items() if name[:5] != "time/"} == {
        name: curve for name, curve in here.items() if name[:5] != "time/"
    }
    with np.load(whole / "evaluations.npz") as one, np.load(folder / "evaluations.npz") as other:
        assert all((one[name] == other[name]).all() for name in one.files)


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


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        *(("dqn", env) for env in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3")),
        *(("sac", env) for env in ("Pendulum-v1", "LunarLanderContinuous-v3")),
        *(("trpo", env) for env in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "LunarLander-v3")),
    ],
)
def test_hyperparameters_are_rl_zoos(algorithm: str, env: str) -> None:
    theirs = zoo_file(algorithm)
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
    *((f"{command} {words}", says) for command in ("gail", "airl") for words, says in MISTAKES_IN_ENVIRONMENTS),
    ("airl --env Acrobot-v1", "no demonstrations of env='Acrobot-v1' ship"),
    ("gail --env Acrobot-v1 --demonstrations cartpole-v1", "demonstrations has observation_space="),
    ("gail --demonstrations nowhere.npz", "'nowhere.npz' is neither a file or folder nor"),
    ("gail --demonstrations {file}", "is not a .npz file"),
    ("gail --n-episodes 100", "n_episodes=100"),
    ("gail -n 1000 --algo dqn", "n_timesteps=1000 ends before the first round of gen_train_timesteps=1024"),
    ("gail -n 0", "n_timesteps=0"),
    ("airl --eval-freq 0", "eval_freq=0"),
    ("gail --save-freq 0", "save_freq=0"),
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
    ("airl --algo dqn", "has no log-probability of an action"),
    ("gail --algo maskable-ppo", "has no action_masks()"),
    ("gail --hyperparams no_such=1", "'no_such' is unknown"),
    ("gail --algo dqn --hyperparams n_epochs=3", "'n_epochs' is unknown to DQN"),
    ("gail --conf-file nowhere.yml", "conf_file='nowhere.yml' can't be read"),
    ("gail --from-bc nowhere.zip", "from_bc='nowhere.zip' is neither"),
    ("gail --value-warmup-steps 10", "is for --from-bc"),
    ("airl --resume {clone}", "was not written by `rlsmooth airl`"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES)
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(words: str, says: str, clone: Path, refused: Any) -> None:
    refused(words, says, clone=clone)


def test_what_does_not_fit_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_here(tmp_path, "gail", "-n", "256", *SMALL)
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


# ---- figures: legends of one line, tables that fit, nothing unlabelled
RETURNS = ("mean_reward", "std_reward", "mean_reward_sampled", "std_reward_sampled")
DISCRIMINATOR = ("acc_expert", "acc_gen", "probability_expert", "probability_gen", "entropy", "loss")


def adversarial(*, box: bool = False, command: str = "gail") -> RunReport:
    """A run with everything that can be logged, or of an algorithm and an action space with less."""
    tags = [f"eval/{name}" for name in RETURNS] + [f"mean/disc/disc_{name}" for name in DISCRIMINATOR]
    tags += ["rollout/ep_rew_wrapped_mean"]
    tags += [] if box else ["train/policy_entropy", "train/entropy_frac"]
    summary = {tag.partition("/")[2]: 0.5 for tag in tags}
    summary |= {"best_mean_reward": 1.0, "best_step": 512, "steps": 1024, "steps_per_second": 100.0}
    summary |= {} if box else {"largest_entropy": math.log(2), "demonstrated_return": 500.0}
    return new_report(
        command,
        name="run_1",
        settings={
            "env": "E-v0",
            "seed": 0,
            "algo": "sac" if box else "ppo",
            "real_target": 0.9,
            "fake_target": 0.0,
            "terminal_states": "as_is",
            "demo_batch_size": 256,
            "n_disc_updates_per_round": 2,
            "eval_episodes": 20,
            **({"reward_form": "logit"} if command == "gail" else {}),
        },
        hyperparameters={"n_envs": 8, "normalize": True, "smoothing": "lin_0.1"},
        curves={tag: ([512.0, 1024.0], [0.4, 0.5]) for tag in tags},
        summary=summary,
        demonstrated="12,000 in 24 episodes",
    )


def dagger(*, box: bool = False) -> RunReport:
    """A run on discrete actions, or on continuous ones."""
    names = [*RETURNS, "beta", "learner_share", "cross_entropy", "nll_hard", "policy_entropy", "transitions"]
    names += ["expert_error"] if box else ["expert_agreement", "accuracy", "entropy_frac"]
    return new_report(
        "dagger",
        name="run_1",
        settings={
            "env": "E-v0",
            "seed": 0,
            "smoothing": "0.1",
            "reference": "uniform",
            "beta_schedule": "0.7",
            "expert_targets": "actions",
            "net_arch": [64, 64],
            "eval_episodes": 20,
        },
        curves={f"dagger/{name}": ([512.0, 1024.0], [0.4, 0.5]) for name in names},
        summary={**dict.fromkeys(names, 0.5), "expert_return": 500.0, "rounds": 2},
        expert="SmoothedPPO, 100,000 steps",
    )


FIGURES = [
    lambda: draw_reports([adversarial()]),
    lambda: draw_reports([adversarial(box=True, command="airl")]),
    lambda: draw_reports([dagger()]),
    lambda: draw_reports([dagger(box=True)]),
]


def panels(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


@pytest.mark.parametrize("draw", FIGURES)
def test_every_panel_says_what_it_shows(draw: object) -> None:
    assert callable(draw)
    figure = draw()
    assert figure.get_size_inches().tolist() == [16, 10]
    *drawn, results = figure.axes
    assert len(drawn) == 5
    for ax in drawn:
        assert ax.get_title(loc="left")
        assert ax.get_xlabel().startswith("steps")
        assert ax.get_ylabel()
        assert ax.lines
        legend = ax.get_legend()
        assert legend is not None
        assert 1 <= len(legend.get_texts()) <= 3  # a fourth would be written over the title
    heights = [text.get_position()[1] for text in results.texts]
    assert min(heights) > -0.05  # on the page
    assert len(heights) > 16


def test_what_was_not_logged_is_said_to_be_missing() -> None:
    begun = new_report("airl", name="run_1", settings=adversarial().settings)
    words = {text.get_text() for ax in draw_reports([begun]).axes for text in ax.texts}
    assert "nothing logged yet" in words
    begun = new_report("dagger", name="run_1", settings=dagger().settings)
    words = {text.get_text() for ax in draw_reports([begun]).axes for text in ax.texts}
    assert "nothing logged yet" in words


def test_several_runs_are_compared() -> None:
    reports = [adversarial(), adversarial(command="airl"), adversarial(box=True)]
    figure = draw_reports(reports)
    assert panels(figure)[0] == "Return of sampled actions"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "GAIL run_1: 0.9 and 0, ppo, smoothing lin_0.1, 0",
        "AIRL run_1: 0.9 and 0, ppo, smoothing lin_0.1, 0",
        "GAIL run_1: 0.9 and 0, sac, smoothing lin_0.1, 0",
    ]
    assert panels(draw_reports([dagger(), dagger()]))[1] == "Does as the expert did, before training"
    assert panels(draw_reports([dagger(box=True), dagger(box=True)]))[1] == "Distance from the expert's actions"


def shown_rows(report: RunReport) -> dict[str, str]:
    """The table in the figure: each name is followed by its value."""
    words = [text.get_text() for text in draw_reports([report]).axes[-1].texts]
    assert set(dict(KINDS[report.command].results(report))) <= set(words[::2])
    return dict(zip(words[::2], words[1::2], strict=True))


def test_rows_name_units_and_settings() -> None:
    rows = shown_rows(adversarial())
    assert rows["D on the generator"] == "0.500, right 50.0 %"
    assert rows["generator"] == "ppo in 8 environments, normalised"
    assert rows["reward"] == "log D - log(1 - D)"
    assert rows["terminal states"] == "as is"
    assert rows["training"] == "1,024 steps, 100 a second"
    rows = shown_rows(dagger())
    assert rows["beta schedule"] == "0.7 to the power of the round"
    assert beta_words("15") == "1 to 0 in 15 rounds"
    assert rows["labelled"] == "0 in 2 rounds"
