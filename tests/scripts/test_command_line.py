"""The command line: `evaluate`, `plot`, `record`, hyperparameters, and one clear line for each mistake."""

from __future__ import annotations

import ast
import dataclasses
import json
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
import yaml
from matplotlib.image import imread
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from commands import COMMAND, assert_refused, evaluated, zoo_file
from rlsmooth import __version__
from rlsmooth.agents import BC, SmoothedPPO
from rlsmooth.data import Demonstrations, cartpole_v1
from rlsmooth.envs import ENVIRONMENTS
from rlsmooth.scripts import airl, bc, gail, ppo, record
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.hyperparameters import Hyperparameters, read_hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import MetricsFile, read_metrics
from rlsmooth.scripts.run_folder import new_run_folder, read_settings, write_settings
from support import assert_raises, repack

COMMANDS = (
    *("bc", "bco", "gail", "airl", "dagger", "classify", "self-train", "gan", "federated"),
    *("ppo", "a2c", "maskable-ppo", "recurrent-ppo", "record", "enjoy", "evaluate", "audit", "plot", "tune"),
    *("list", "completion"),
)
SHARED = ("arguments",)  # what several of them take


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny runs that differ by their smoothing."""
    logs = tmp_path_factory.mktemp("logs")
    words = ["bc", "--n-episodes", "2", "--validation-fraction", "0.5", "--epochs", "2", "--eval-episodes", "2"]
    for smoothing in ("0", "0.4"):
        assert main([*words, "--smoothing", smoothing, "--device", "cpu", "-f", str(logs)]) == 0
    return [logs / "bc" / "CartPole-v1_1", logs / "bc" / "CartPole-v1_2"]


# ---- the command
def test_help_names_every_command_and_needs_no_torch() -> None:
    code = "import sys; from rlsmooth.scripts.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in finished.stdout for name in COMMANDS)


def test_the_help_of_a_command_needs_no_torch() -> None:
    code = f"""
import sys
from rlsmooth.scripts.main import main
for command in {COMMANDS!r}:
    try:
        main([command, "--help"])
    except SystemExit:
        print(command, {{"torch", "gymnasium", "stable_baselines3", "matplotlib", "wandb", "yaml"}} & set(sys.modules))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line for line in finished.stdout.splitlines() if line.endswith("set()")] == [f"{c} set()" for c in COMMANDS]


def test_version_and_no_command_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlsmooth {__version__}\n"
    assert main(["train"]) == 2
    assert capsys.readouterr().err.startswith("rlsmooth: error: 'train' is no command")
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs_as_a_file_too(command: str, repository: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(repository / "scripts" / f"{command.replace('-', '_')}.py"), "--help"]
    finished = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--help" in finished.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [*COMMANDS, *SHARED])
def test_every_option_has_a_type_and_a_sentence(command: str, repository: Path) -> None:
    tree = ast.parse((repository / "scripts" / f"{command.replace('-', '_')}.py").read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Args")]
    pairs = [pair for args in found for pair in zip(args.body, args.body[1:], strict=False)]
    fields = [(field, following) for field, following in pairs if isinstance(field, ast.AnnAssign)]
    least = {"gail": 1, "airl": 1, "list": 1, "completion": 1}.get(command, 2)
    assert len(fields) >= (0 if "ppo" in command or command == "a2c" else least)
    for field, following in fields:
        sentence = following.value.value if isinstance(following, ast.Expr) else ""  # type: ignore[attr-defined]
        assert sentence[:1].isupper() or sentence[:1].isdigit(), ast.unparse(field)
        assert sentence.endswith("."), ast.unparse(field)


@pytest.mark.parametrize("command", ["bc", "ppo", "a2c", "maskable-ppo", "recurrent-ppo", "gail", "airl"])
def test_the_options_have_rl_zoos_names(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    shared = ("--env", "--seed", "-n", "--device", "--eval-freq", "--eval-episodes", "-tb", "-f", "-P", "--num-threads")
    more = ("--n-eval-envs", "--save-freq", "--vec-env", "-params", "-conf", "--verbose")
    for names in shared if command == "bc" else (*shared, *more):
        assert f" {names} " in printed or f" {names}," in printed, names


def test_an_unknown_option_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bc", "--no-such-option"])
    assert ended.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


# ---- mistakes
def tampered(path: Path) -> bytes:
    """The same archive with one byte of a member changed, checksum and all: only our hash can tell."""

    def change(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith(".safetensors"))
        members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])

    return repack(path, change).read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.read_bytes()[: path.stat().st_size // 2],
        lambda path: pickle.dumps({"policy": [1, 2, 3]}),
        tampered,
    ],
)
def test_a_spoilt_agent_is_told_and_stays_as_it_is(
    spoil: Callable[[Path], bytes], runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.zip"
    shutil.copy(runs[0] / "agent.zip", path)
    spoilt = spoil(path)
    path.write_bytes(spoilt)
    assert_refused(str(path), ["evaluate", "-i", str(path), "--env", "CartPole-v1"], capsys)
    assert path.read_bytes() == spoilt


def test_more_that_does_not_fit(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs[0])
    more = ["--epochs", "3", "--smoothing", "0.2"]
    assert_refused("leave out --smoothing, --epochs.", ["bc", "--resume", run, *more], capsys)
    assert_refused("env has observation_space=", ["evaluate", "-i", run, "--env", "Acrobot-v1"], capsys)
    assert_refused("names no kind of figure", ["plot", run, "--output", str(tmp_path / "x.abc")], capsys)
    assert_refused("names no kind of figure", ["plot", run, run, "--output", str(tmp_path / "x.rgba")], capsys)
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_there_for_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSMOOTH_TRACEBACK", "1")
    assert_raises(ValueError, "epochs=0", main, ["bc", "--epochs", "0"])


def test_exit_codes_and_that_an_error_of_ours_is_never_swallowed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_by(error: BaseException) -> Callable[[bc.Args], None]:
        def broken(args: bc.Args) -> None:
            raise error

        return broken

    for error, code in ((KeyboardInterrupt(), 130), (OSError("disk full"), 2), (ArithmeticError("NaN\nloss"), 2)):
        assert run_command("bc", bc.Args, fails_by(error), []) == code
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert_raises(KeyError, None, run_command, "bc", bc.Args, fails_by(KeyError("a mistake in the program")), [])
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert run_command("bc", bc.Args, lambda args: None, []) == 2
    assert "WORLD_SIZE='two'" in capsys.readouterr().err


# ---- evaluate and plot
def test_evaluate_agrees_with_sb3(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--n-envs", "1", "--seed", "7", "--demonstrations", "cartpole-v1")
    found = evaluated(runs[1], *words, episodes=3)
    agent = BC.load(runs[1] / "agent.zip", "CartPole-v1", device="cpu")
    env = agent.get_env()
    env.seed(7)
    mean, std = evaluate_policy(agent, env, n_eval_episodes=3)
    assert found["deterministic"]["mean_reward"] == pytest.approx(mean)
    assert found["deterministic"]["std_reward"] == pytest.approx(std)
    assert found["deterministic"]["mean_ep_length"] == pytest.approx(mean)  # a reward of 1 each step
    actions, _ = agent.predict(np.asarray(cartpole_v1().observations), deterministic=True)
    assert found["demonstrations"]["accuracy"] == pytest.approx(np.mean(actions == cartpole_v1().actions), abs=1e-6)
    printed = capsys.readouterr().out
    assert f"{mean:.1f}" in printed
    assert f"{found['sampled']['policy_entropy']:.3f} nats" in printed


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot_compares_runs(runs: list[Path], tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"comparison.{suffix}"
    assert main(["plot", *map(str, runs), "--output", str(output)]) == 0
    assert output.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])


def test_plot_draws_a_run_that_has_only_begun(runs: list[Path], tmp_path: Path) -> None:
    shutil.copy(runs[0] / "config.json", tmp_path)
    assert main(["plot", str(tmp_path)]) == 0
    assert imread(tmp_path / "report.png").shape[:2] == (1000, 1600)


@pytest.mark.parametrize("content", ["[]", "{", '{"command": "ppo"}'])
def test_a_config_of_something_else_is_told(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(content)
    assert_refused("config.json", ["plot", str(tmp_path)], capsys)
    assert_refused("config.json", ["bc", "--resume", str(tmp_path)], capsys)


def test_damaged_metrics_are_reported(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    (folder / "report.json").unlink()
    (folder / "metrics.csv").write_bytes(b"step,bc/loss\n1,\xff\xfe\n")
    assert_refused("metrics.csv", ["plot", str(folder)], capsys)


# ---- the run's folder and its files
def test_folders_are_numbered_from_the_highest(tmp_path: Path) -> None:
    for name in ("Some-Env-v0_2", "Some-Env-v0_10", "Some-Env-v0_x", "Some-Env-v0", "Other_30"):
        (tmp_path / "bc" / name).mkdir(parents=True)
    assert new_run_folder(tmp_path, "bc", "Some/Env-v0") == tmp_path / "bc" / "Some-Env-v0_11"
    assert new_run_folder(tmp_path, "bc", "New-v0").name == "New-v0_1"
    assert new_run_folder(tmp_path, "bc", "module:New-v1").name == "module-New-v1_1"


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path, "bc", "CartPole-v1"), range(64)))
    assert len(set(folders)) == 64
    assert sorted(int(folder.name.rpartition("_")[2]) for folder in folders) == list(range(1, 65))


ADVERSARIAL: dict[str, Any] = {"hyperparams": ("n_steps=64",), "real_target": 0.9, "correct_offset": False, "n_envs": 3}


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("bc", bc.Args(net_arch=(8, 4), progress=True, tensorboard_log=Path("a folder"), n_timesteps=9)),
        ("ppo", ppo.Args(hyperparams=("a=64", "b=0.9"), smoothing="lin_0.1", from_bc=Path("a b"), n_envs=3)),
        ("gail", gail.Args(reward_net_arch=(8,), **ADVERSARIAL)),
        ("airl", airl.Args(reward_net_arch=(8,), **ADVERSARIAL)),
    ],
)
def test_the_command_line_gives_the_same_arguments_back(command: str, args: Any, tmp_path: Path) -> None:
    args = dataclasses.replace(args, env="rlsmooth/Identity-v0")
    write_settings(tmp_path, command, args)
    words = json.loads(json.dumps(read_settings(tmp_path, command)))
    assert words["env"] == "rlsmooth/Identity-v0"
    assert command != "bc" or words["net_arch"] == [8, 4]
    seen: list[Any] = []
    line = shlex.split((tmp_path / "command.txt").read_text())
    assert line[:2] == ["rlsmooth", command]
    assert run_command(command, type(args), seen.append, line[2:]) == 0
    assert seen == [args]


def write_rows(path: Path, steps: range, last_step: int | None = None) -> None:
    logger = Logger(None, [MetricsFile(path, last_step)])
    for step in steps:
        logger.record("bc/loss", 1 / (step + 1))
        logger.record("bc/text", "a, b", exclude="csv")
        if step % 2:
            logger.record("eval/mean_reward", step)
        logger.dump(step)
    logger.close()


def test_a_resumed_run_goes_on_in_its_metrics_file(tmp_path: Path) -> None:
    path, whole = tmp_path / "metrics.csv", tmp_path / "whole.csv"
    write_rows(path, range(7))
    with path.open("a") as file:
        file.write("7,0.1")  # killed while writing
    write_rows(path, range(5, 9), last_step=4)
    write_rows(whole, range(9))
    assert read_metrics(path) == read_metrics(whole)
    assert read_metrics(path)["bc/loss"] == ([float(step) for step in range(9)], [1 / (step + 1) for step in range(9)])
    assert read_metrics(path)["eval/mean_reward"][0] == [1, 3, 5, 7]
    assert path.read_text().startswith("step,bc/loss")
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.csv", "whole.csv"}
    assert read_metrics(tmp_path / "none.csv") == {}


# ---- hyperparameters agree with RL Zoo's, and RL Zoo's own files can be read


ALGORITHMS: dict[str, Any] = {"ppo": PPO, "a2c": A2C, "maskable-ppo": MaskablePPO, "recurrent-ppo": RecurrentPPO}
GENERATORS: dict[str, Any] = {"dqn": DQN, "sac": SAC, "trpo": TRPO}
CLASSIC = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "LunarLander-v3")


def resolved(command: str, env: str, conf_file: Path | None = None, *overrides: str) -> Hyperparameters:
    values = read_hyperparameters(command, env, conf_file, overrides)
    return resolve_hyperparameters(values, (ALGORITHMS | GENERATORS)[command])


def comparable(value: Any) -> Any:
    """With schedules by what they give: SB3's have no equality of their own."""
    if isinstance(value, dict):
        return {name: comparable(part) for name, part in value.items()}
    return [value(progress) for progress in (1.0, 0.3, 0.0)] if callable(value) and "Schedule" in repr(value) else value


@pytest.mark.parametrize(
    ("command", "zoo", "ours", "theirs"),
    [
        *((command, command, env, env) for command in ("ppo", "a2c", "trpo") for env in CLASSIC),
        *((command, command, "Swimmer-v5", "Swimmer-v4") for command in ("ppo", "a2c")),
        *((command, command, *2 * ("MountainCarContinuous-v0",)) for command in ("ppo", "a2c")),
        *(("ppo", "ppo", *2 * (f"MiniGrid-{name}-v0",)) for name in ("Empty-Random-5x5", "DoorKey-5x5")),
        *(("dqn", "dqn", env, env) for env in CLASSIC if env != "Pendulum-v1"),
        *(("sac", "sac", env, env) for env in ("Pendulum-v1", "LunarLanderContinuous-v3")),
        ("recurrent-ppo", "ppo_lstm", "Acrobot-v1", "Acrobot-v1"),
        ("recurrent-ppo", "ppo_lstm", "CartPole-v1", "CartPoleNoVel-v1"),
        ("recurrent-ppo", "ppo_lstm", "Pendulum-v1", "PendulumNoVel-v1"),
        ("recurrent-ppo", "ppo_lstm", "MountainCar-v0", "MountainCarNoVel-v0"),
        ("recurrent-ppo", "ppo_lstm", "LunarLander-v3", "LunarLanderNoVel-v2"),
    ],
)
def test_they_are_rl_zoos(command: str, zoo: str, ours: str, theirs: str) -> None:
    mine, its = resolved(command, ours), resolved(command, theirs, zoo_file(zoo))
    assert (mine.n_timesteps, mine.n_envs, mine.policy) == (its.n_timesteps, its.n_envs, its.policy)
    assert (mine.normalize, mine.env_wrapper) == (its.normalize, its.env_wrapper)
    assert comparable(dict(mine.arguments)) == comparable(dict(its.arguments))


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "ppo_lstm"])
def test_rl_zoos_own_files_can_be_used(algorithm: str, tmp_path: Path) -> None:
    command = {"ppo_lstm": "recurrent-ppo"}.get(algorithm, algorithm)
    table = yaml.safe_load(zoo_file(algorithm).read_text())
    unsupported = {"vec_env_wrapper", "callback", "monitor_kwargs"}
    read = 0
    for env, values in table.items():
        if read == 0 and not unsupported & set(values):  # the whole file is parsed each time: once is enough
            assert resolved(command, env, zoo_file(algorithm)).n_timesteps == values["n_timesteps"]
        own = tmp_path / "one.yml"
        own.write_text(yaml.safe_dump({env: values}))
        found = resolved(command, env, own)
        assert found.n_timesteps == values["n_timesteps"]
        assert found.frame_stack == values.get("frame_stack")
        assert bool(found.env_wrapper) is ("env_wrapper" in values)
        read += 1
        if isinstance(values.get("policy_kwargs"), str):  # written as a Python expression, which is not run
            names = {"nn": nn, "RMSpropTFLike": RMSpropTFLike, "dict": dict}
            assert found.arguments["policy_kwargs"] == eval(values["policy_kwargs"], names)
    assert read == len(table) > 20
    own.write_text("default: {callback: a.B}")
    assert_raises(ValueError, r"of RL Zoo can't be used here", resolved, command, "X-v0", own)


@pytest.mark.parametrize("command", sorted(ALGORITHMS))
def test_every_environment_of_ours_has_some(command: str) -> None:
    for entry in ENVIRONMENTS:
        if command == "maskable-ppo" and "Masked" not in entry.id:
            continue
        values = read_hyperparameters(command, entry.id)
        assert values != read_hyperparameters(command, "NoSuchEnv-v0"), entry.id
        resolve_hyperparameters(values, ALGORITHMS[command])


def test_overrides_come_last_and_are_read_as_yaml() -> None:
    words = ("n_steps=6.4e1", "learning_rate:1e-3", "ent_coef=.5", "normalize=true", "gamma=0.9", "clip_range=lin_0.3")
    found = resolved("ppo", "CartPole-v1", None, *words, "policy_kwargs={net_arch: [8], activation_fn: ReLU}")
    arguments = dict(found.arguments)
    assert (arguments["n_steps"], type(arguments["n_steps"])) == (64, int)
    assert arguments["learning_rate"] == 1e-3
    assert arguments["ent_coef"] == 0.5
    assert arguments["policy_kwargs"] == {"net_arch": [8], "activation_fn": nn.ReLU}
    assert found.normalize == {"gamma": 0.9}  # VecNormalize discounts as the algorithm does
    assert [arguments["clip_range"](progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([0.3, 0.15, 0.0])


def test_our_algorithms_take_their_parents_arguments_and_their_own() -> None:
    values = {**read_hyperparameters("ppo", "Pendulum-v1"), "smoothing": 0.1, "exploration_floor": "lin_0.1"}
    found = resolve_hyperparameters(values, SmoothedPPO)
    assert found.arguments["smoothing"] == 0.1
    assert found.arguments["sde_sample_freq"] == 4
    guaranteed = resolve_hyperparameters({"min_entropy_frac": "lin_0.3"}, SmoothedPPO).arguments
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", device="cpu", **guaranteed)
    assert model.policy.min_entropy_frac == 0.3
    with pytest.raises(ValueError, match=r"'kwargs' is unknown to SmoothedPPO: choose of .*exploration_floor.*n_steps"):
        resolve_hyperparameters({"kwargs": 1}, SmoothedPPO)


def test_normalization_may_be_a_part() -> None:
    for words in ("normalize={norm_reward: false}", "normalize=dict(norm_reward=False)"):
        assert resolved("ppo", "X-v0", None, words).normalize == {"gamma": 0.99, "norm_reward": False}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("n_steps", "'n_steps' must be key=value"),
        ("no_such=1", "'no_such' is unknown to PPO: choose of"),
        ("seed=1", "'seed' is unknown"),
        ("learning_rate=fast", "learning_rate='fast' must be a number, or such as"),
        ("learning_rate=lin_0_1", "learning_rate='lin_0_1'"),
        ("learning_rate=-1", "learning_rate=-1 must be a number above 0"),
        ("clip_range=[1]", "clip_range="),
        ("n_timesteps=0", "n_timesteps=0"),
        ("n_timesteps=1.5", "n_timesteps must be a whole number"),
        ("n_envs=0", "n_envs=0"),
        ("n_steps=64.5", "n_steps=64.5 must be a whole number"),
        ("n_epochs=true", "n_epochs=True must be a number"),
        ("use_sde=1", "use_sde=1 must be true or false"),
        ("gamma=high", "gamma='high' must be a number"),
        ("target_kl=small", "target_kl='small' must be a number"),
        ("policy=3", "policy=3"),
        ("policy_kwargs=3", "policy_kwargs=3"),
        ("policy_kwargs={activation_fn: Sin}", "activation_fn='Sin' is unknown: choose one of"),
        ("policy_kwargs=dict(net_arch=open('x'))", "policy_kwargs="),
        ("policy_kwargs=__import__('os')", "policy_kwargs="),
        ("env_kwargs=3", "env_kwargs=3"),
        ("_init_setup_model=false", "'_init_setup_model' is unknown"),
        ("n_steps={", "the value of 'n_steps={' can't be read"),
    ],
)
def test_a_wrong_override_is_told(word: str, says: str) -> None:
    with pytest.raises((ValueError, TypeError)) as told:
        resolved("ppo", "CartPole-v1", None, word)
    assert says in str(told.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [("[1]", "must be a mapping"), ("a: [", "can't be read"), ("Other-v0: {}", "neither for 'CartPole-v1' nor")],
)
def test_a_wrong_file_is_told(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "conf.yml"
    path.write_text(content)
    assert_raises(ValueError, says, read_hyperparameters, "ppo", "CartPole-v1", path)
    assert_raises(ValueError, "can't be read", read_hyperparameters, "ppo", "CartPole-v1", tmp_path / "missing.yml")


def test_a_file_runs_no_code(tmp_path: Path) -> None:
    path, witness = tmp_path / "conf.yml", tmp_path / "witness"
    path.write_text(
        f"default: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{witness}']]"
    )
    assert_raises(ValueError, "can't be read", read_hyperparameters, "ppo", "CartPole-v1", path)
    path.write_text(f"""default: {{policy_kwargs: "dict(a=open('{witness}', 'w'))"}}""")
    assert_raises(ValueError, "policy_kwargs", resolved, "ppo", "CartPole-v1", path)
    assert not witness.exists()


# ---- record


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    A2C("MlpPolicy", "CartPole-v1", seed=0, device="cpu").save(path)
    return path


def test_an_expert_is_trained_evaluated_saved_and_recorded(programs: Any, tmp_path: Path) -> None:
    arguments = ["--env", "CartPole-v1", "--train-expert", "256", "--n-episodes", "5", "--eval-episodes", "3"]
    result = programs.run(COMMAND, tmp_path, "record", *arguments, "--n-envs", "2", "--seed", "1", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "logs" / "record" / "CartPole-v1_1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "card.json",
        "demonstrations.npz",
        "expert.zip",
    ]
    card = (folder / "README.md").read_text()
    assert "CartPole-v1 by `rlsmooth record`" in card
    assert str(tmp_path) not in card
    read = Demonstrations.load(folder / "demonstrations.npz")
    assert read.num_episodes == 5
    assert read.metadata["expert"]["n_timesteps"] == 256
    assert read.metadata["expert"]["evaluation"]["sampled"]["n_episodes"] == 3
    assert str(tmp_path) not in str(read.metadata)
    assert "expert, deterministic: return" in result.stdout
    assert "5 episodes" in result.stdout


def test_the_same_command_gives_the_same_file(tmp_path: Path) -> None:
    files = []
    for name in ("one.npz", "two.npz"):
        given: dict[str, Any] = {"env": "MountainCar-v0", "n_timesteps": 256, "n_episodes": 2, "eval_episodes": 1}
        given |= {"device": "cpu", "log_folder": tmp_path / "logs", "output": tmp_path / name}
        arguments = record.Args(**given)
        assert record.main(arguments) == tmp_path / name
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    folders = {path.name for path in (tmp_path / "logs" / "record").iterdir()}
    assert folders == {"MountainCar-v0_1", "MountainCar-v0_2"}


def test_a_trained_agent_is_recorded_with_the_short_flags(agent: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--algo", "a2c", "-i", str(agent), "--n-episodes", "3", "--stochastic", "-f", str(tmp_path), "-P"]
    path = record.main(tyro.cli(record.Args, args=arguments))
    assert "3/3" in capsys.readouterr().err  # the progress bar
    assert path == tmp_path / "record" / "CartPole-v1_1" / "demonstrations.npz"
    read = Demonstrations.load(path)
    assert read.metadata["deterministic"] is False
    assert read.metadata["command"] == "rlsmooth record --algo a2c --n-episodes 3 --stochastic"


def test_agents_of_sb3_contrib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, small = tmp_path / "agent.zip", {"lstm_hidden_size": 4}
    RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs=small).save(path)
    given: dict[str, Any] = {"n_episodes": 2, "output": tmp_path / "out.npz", "device": "cpu"}
    arguments = record.Args(algo="recurrent-ppo", trained_agent=path, **given)
    assert Demonstrations.load(record.main(arguments)).metadata["policy"] == "RecurrentPPO"
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    assert_raises(ValueError, r'pip install "rlsmooth\[contrib\]"', record.main, arguments)


def test_bad_agents_and_low_returns(agent: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    broken = tmp_path / "broken.zip"
    broken.write_bytes(agent.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"broken.zip' can't be loaded as a2c"):
        record.main(record.Args(algo="a2c", trained_agent=broken, output=output, device="cpu"))
    with pytest.raises(ValueError, match=r"less than min_return=500: nothing was written"):
        record.main(
            record.Args(algo="a2c", trained_agent=agent, output=output, device="cpu", n_episodes=2, min_return=500)
        )
    assert not output.exists()
