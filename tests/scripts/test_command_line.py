"""The command line: `evaluate`, `plot`, one clear line for each mistake, and the files that a run is made of."""

from __future__ import annotations

import ast
import json
import pickle
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger

from rlsmooth import __version__
from rlsmooth.agents import BC
from rlsmooth.data import cartpole_v1
from rlsmooth.scripts import bc
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import MetricsFile, read_metrics
from rlsmooth.scripts.run_folder import new_run_folder, read_settings, write_settings

COMMANDS = (
    "bc",
    "bco",
    "gail",
    "airl",
    "dagger",
    "classify",
    "self-train",
    "gan",
    "ppo",
    "a2c",
    "maskable-ppo",
    "recurrent-ppo",
    "record",
    "enjoy",
    "evaluate",
    "plot",
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


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_needs_no_torch(command: str) -> None:
    code = f"""
import sys
from rlsmooth.scripts.main import main
try:
    main([{command!r}, "--help"])
except SystemExit:
    print({{"torch", "gymnasium", "stable_baselines3", "matplotlib"}} & set(sys.modules))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.endswith("set()\n")


def test_version_and_no_command_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlsmooth {__version__}\n"
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
    assert len(fields) >= (0 if "ppo" in command or command == "a2c" else 1 if command in ("gail", "airl") else 2)
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
def one_line(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line on stderr that a wrong command ends with."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    program = "rlsmooth" if words[0] not in COMMANDS else f"rlsmooth {words[0]}"
    assert line.startswith(f"{program}: error: ")
    return line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train", "'train' is no command"),
        ("bc --env Nope-v0", "env='Nope-v0' can't be made"),
        ("bc --env Acrobot-v1", "no demonstrations of env='Acrobot-v1' ship"),
        ("bc --env Acrobot-v1 --demonstrations cartpole-v1", "demonstrations has observation_space="),
        ("bc --demonstrations nowhere.npz", "'nowhere.npz' is neither a file or folder nor"),
        ("bc --smoothing lots", "smoothing='lots' can't be used"),
        ("bc --smoothing 1.5", "smoothing='1.5' can't be used"),
        ("bc --smoothing nan", "smoothing='nan' can't be used"),
        ("bc --learning-rate fast", "learning_rate='fast'"),
        ("bc --learning-rate -1", "learning_rate=-1.0"),
        ("bc --batch-size 0", "batch_size=0"),
        ("bc --epochs 0", "epochs=0"),
        ("bc -n 0", "n_timesteps=0"),
        ("bc --n-episodes 100", "n_episodes=100"),
        ("bc --n-envs 0", "n_envs=0"),
        ("bc --eval-episodes 0", "eval_episodes=0"),
        ("bc --eval-freq 0", "eval_freq=0"),
        ("bc --checkpoint-freq 0", "checkpoint_freq=0"),
        ("bc --net-arch 0", "net_arch=0"),
        ("bc --action-noise 2", "p=2.0"),
        ("bc --validation-fraction 0.001", "fraction=0.001"),
        ("bc --validation-fraction 0 --early-stopping-patience 1", "early_stopping_patience"),
        ("bc --policy NoPolicy", "policy='NoPolicy'"),
        ("bc --device toaster", "device='toaster' can't be used"),
        ("bc -f {file}/below", "can't be written to"),
        ("bc -tb {file}/below", "tensorboard_log="),
        ("bc --resume nowhere", "'nowhere' is no folder of a run"),
        ("evaluate -i nowhere.zip", "trained_agent='nowhere.zip' is neither"),
        ("evaluate -i {file}", "no config.json beside the agent"),
        ("evaluate -i {file} --env CartPole-v1", "is not a zip archive"),
        ("bc --gradient-accumulation 0", "gradient_accumulation=0"),
        ("bc --demonstrations=", "'' is neither"),
        ("bc --seed -1", "seed=-1"),
        ("bc --device meta", "device='meta' can't be used"),
        ("bc --policy MultiInputPolicy", "policy='MultiInputPolicy'"),
        # With so many steps a check that comes after the training would run into the time limit.
        ("record --train-expert 100000000 --output x.txt", "output='x.txt' must be a file"),
        ("record --train-expert 100000000 --n-episodes 0", "n_episodes=0"),
        ("record --train-expert 100000000 --eval-episodes 0", "eval_episodes=0"),
        ("record --train-expert 100000000 --device toaster", "device='toaster' can't be used"),
        ("record --train-expert 100000000 --seed 99999999999", "seed=99999999999"),
        ("record -i {file}", "can't be loaded as ppo"),
        ("plot nowhere", "'nowhere' is no folder of a run"),
        ("plot", "name at least one folder"),
    ],
)
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.txt"
    file.write_text("not an agent")
    assert says in one_line(capsys, words.format(file=file).split())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert not list(tmp_path.glob("logs/*/*"))
    assert file.read_text() == "not an agent"


def truncated(data: bytes, path: Path) -> bytes:
    return data[: len(data) // 2]


def pickled(data: bytes, path: Path) -> bytes:
    return pickle.dumps({"policy": [1, 2, 3]})


def tampered(data: bytes, path: Path) -> bytes:
    """The same archive with one byte of a member changed, checksum and all: only our hash can tell."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    name = next(name for name in members if name.endswith(".safetensors"))
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])
    other = path.with_name("other.zip")
    with zipfile.ZipFile(other, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return other.read_bytes()


@pytest.mark.parametrize("spoil", [truncated, pickled, tampered])
def test_a_spoilt_agent_is_told_and_stays_as_it_is(
    spoil: Callable[[bytes, Path], bytes], runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "agent.zip"
    shutil.copy(runs[0] / "agent.zip", path)
    spoilt = spoil(path.read_bytes(), path)
    path.write_bytes(spoilt)
    assert str(path) in one_line(capsys, ["evaluate", "-i", str(path), "--env", "CartPole-v1"])
    assert path.read_bytes() == spoilt


def test_more_that_does_not_fit(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs[0])
    more = ["--epochs", "3", "--smoothing", "0.2"]
    assert "leave out --smoothing, --epochs." in one_line(capsys, ["bc", "--resume", run, *more])
    assert "env has observation_space=" in one_line(capsys, ["evaluate", "-i", run, "--env", "Acrobot-v1"])
    assert "names no kind of figure" in one_line(capsys, ["plot", run, "--output", str(tmp_path / "x.abc")])
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_there_for_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSMOOTH_TRACEBACK", "1")
    with pytest.raises(ValueError, match="epochs=0"):
        main(["bc", "--epochs", "0"])


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError("disk full"), 2), (ArithmeticError("NaN\nloss"), 2)]
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(args: bc.Args) -> None:
        raise error

    assert run_command("bc", bc.Args, broken, []) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_error_of_ours_is_never_swallowed() -> None:
    def broken(args: bc.Args) -> None:
        raise KeyError("a mistake in the program")

    with pytest.raises(KeyError):
        run_command("bc", bc.Args, broken, [])


# ---- evaluate and plot
def test_evaluate_agrees_with_sb3(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "numbers.json"
    words = ["evaluate", "-i", str(runs[1]), "--eval-episodes", "3", "--n-envs", "1", "--seed", "7"]
    assert main([*words, "--demonstrations", "cartpole-v1", "--json", str(output)]) == 0
    found = json.loads(output.read_text())
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


def test_plot_draws_the_report_again(runs: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs[0], copy)
    drawn = (copy / "report.png").read_bytes()
    (copy / "report.png").unlink()
    assert main(["plot", str(copy)]) == 0
    assert (imread(copy / "report.png") == imread(runs[0] / "report.png")).all()
    assert drawn == (runs[0] / "report.png").read_bytes()


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
    assert "config.json" in one_line(capsys, ["plot", str(tmp_path)])
    assert "config.json" in one_line(capsys, ["bc", "--resume", str(tmp_path)])


def test_a_run_of_another_version_is_told(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, key in (("config.json", "arguments"), ("report.json", "settings")):
        folder = tmp_path / name
        shutil.copytree(runs[0], folder)
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, key: {}}))
        line = one_line(capsys, ["plot", str(folder)])
        assert name in line
        assert "it lacks env" in line


def test_damaged_metrics_and_unknown_figures_are_reported(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    (folder / "report.json").unlink()
    (folder / "metrics.csv").write_bytes(b"step,bc/loss\n1,\xff\xfe\n")
    assert "metrics.csv" in one_line(capsys, ["plot", str(folder)])
    assert "names no kind of figure" in one_line(
        capsys, ["plot", str(runs[0]), str(runs[0]), "--output", str(tmp_path / "x.rgba")]
    )


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


def test_the_command_line_gives_the_same_arguments_back(tmp_path: Path) -> None:
    args = bc.Args(
        env="rlsmooth/Identity-v0", net_arch=(8, 4), progress=True, tensorboard_log=Path("a folder"), n_timesteps=9
    )
    write_settings(tmp_path, "bc", args)
    words = json.loads(json.dumps(read_settings(tmp_path, "bc")))
    assert words["net_arch"] == [8, 4]
    seen: list[Any] = []
    line = shlex.split((tmp_path / "command.txt").read_text())
    assert run_command("bc", bc.Args, seen.append, line[2:]) == 0
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


def test_metrics_that_are_not_there_are_empty(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv") == {}
