"""Options of every command: groups, files of options, several seeds, lists and the shells' completions."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from commands import COMMAND, assert_refused
from killing import assert_ended, children
from rlsmooth.scripts import ppo, seeds
from rlsmooth.scripts.command import grouped_options, option_sentences, option_words, parse, save_conf
from rlsmooth.scripts.main import COMMANDS, main
from rlsmooth.scripts.run_folder import plain, write_json

REQUIRED = {"evaluate": ["-i", "a.zip"], "enjoy": ["a.zip"], "completion": ["bash"], "audit": ["a.zip"], "plot": ["a"]}
REQUIRED |= {"tune": ["bc"], "push": ["a", "b/c"], "pull": ["b/c", "a"]}


def args_of(command: str) -> Any:
    return import_module(f"rlsmooth.scripts.{command.replace('-', '_')}").Args


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_one_group_and_comes_back_from_a_file(command: str, tmp_path: Path) -> None:
    args_type = args_of(command)
    *groups, shared = dataclasses.fields(grouped_options(command, args_type))
    names = [
        field.name
        for group in groups
        for field in dataclasses.fields(group.type.__origin__)  # type: ignore[union-attr]
    ]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(args_type))
    assert shared.name == "shared"
    assert ("seeds" in [field.name for field in dataclasses.fields(shared.type.__origin__)]) is ("resume" in names)  # type: ignore[union-attr]
    assert option_sentences(args_type).keys() >= set(names)
    path = tmp_path / "own.yml"
    words = REQUIRED.get(command, [])
    given, _ = parse(command, args_type, words)
    save_conf(command, given, path)
    assert parse(command, args_type, [*words, "--conf", str(path)])[0] == given


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text(
        "seed: 3\nnet-arch: []\nenv_kwargs: {g: 9.5, b: text}\nsmoothing: 0.25\nprogress: true\nmax_grad_norm: null"
    )
    for words in (["--conf", str(path)], [f"--conf={path}"]):
        args, _ = parse("bc", args_of("bc"), [*words, "--env", "Pendulum-v1", "--seed", "5"])
        expected = {"env": "Pendulum-v1", "seed": 5, "net_arch": (), "smoothing": "0.25", "progress": True}
        assert {name: getattr(args, name) for name in expected} == expected
        assert args.env_kwargs == ("g=9.5", "b=text")
    settings = {"command": "ppo", "arguments": {"seed": 7, "hyperparams": ["n_steps=8"]}, "versions": {}}
    path.write_text(json.dumps(settings))  # a run's config.json
    assert parse("ppo", ppo.Args, ["--conf", str(path)])[0] == ppo.Args(seed=7, hyperparams=("n_steps=8",))


def test_a_file_of_options_keeps_the_seeds_and_the_words_of_a_tuned_command(tmp_path: Path) -> None:
    path, inner = tmp_path / "own.yml", tmp_path / "inner.yml"
    inner.write_text("epochs: 3")
    assert main(["bc", "--seeds", "4", "2", "--save-conf", str(path)]) == 0
    assert parse("bc", args_of("bc"), ["--conf", str(path)])[1].seeds == (4, 2)
    words = ["--conf", str(inner), "--net-arch", "8", "4"]  # after --, the file is of bc
    assert main(["tune", "bc", "--trials", "3", "--save-conf", str(path), "--", *words]) == 0
    args, _ = parse("tune", args_of("tune"), ["bc", "--conf", str(path)])
    assert (args.trials, args.options) == (3, tuple(words))
    args, _ = parse("tune", args_of("tune"), ["bc", "--conf", str(path), "--", "--seed", "1"])
    assert args.options == ("--seed", "1")
    path.write_text("env_wrapper: [a.B, c.D]")  # a list last, before the positional argument
    args, _ = parse("enjoy", args_of("enjoy"), ["a.zip", "--conf", str(path)])
    assert (args.agent, args.env_wrapper) == (Path("a.zip"), ("a.B", "c.D"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("env_wrapper", ["mine.Wrapper"]),
        ("gym_packages", ["mine"]),
        ("env_kwargs", ["size=8", "xml_file=/a.xml"]),
        ("hyperparams", ["env_wrapper=mine.Wrapper"]),
        ("hyperparams", ["n_steps=1e12"]),
        ("env", "mine:A-v0"),
        ("track", "wandb"),
        ("log_folder", "/elsewhere"),
        ("conf_file", "other.yml"),
    ],
)
def test_a_runs_settings_as_options_choose_no_code_or_place(name: str, value: Any, tmp_path: Path, capsys: Any) -> None:
    path, typed = tmp_path / "config.json", option_words(name, value)
    path.write_text(json.dumps({"command": "ppo", "arguments": {"seed": 7, name: value}}))
    assert_refused(f"is of a run and has {name}=", ["ppo", "--conf", str(path)], capsys)
    assert_refused(f"give {typed[0]}", ["ppo", "--conf", str(path)], capsys)
    assert parse("ppo", ppo.Args, ["--conf", str(path), *typed])[0].seed == 7


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("smoothng: 1", "has 'smoothng', which is no option of rlsmooth ppo (did you mean smoothing?)"),
        ("conf: x", "has 'conf', which is no option of rlsmooth ppo"),
        ("[1]", "must be a mapping of options"),
        ("a: [", "can't be read"),
        ("{command: bc, arguments: {}}", "is of `rlsmooth bc`"),
        ("!!python/object/apply:os.system [x]", "can't be read"),
    ],
)
def test_a_wrong_file_of_options_is_named(content: str, says: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "own.yml"
    path.write_text(content)
    assert_refused(f"conf={str(path)!r}", ["ppo", "--conf", str(path)], capsys)
    assert_refused(says, ["ppo", "--conf", str(path)], capsys)
    assert_refused("can't be read", ["ppo", "--conf", str(tmp_path / "no.yml")], capsys)


@pytest.mark.parametrize(
    ("made_by", "words", "fix"),
    [
        ("tune", ["bc"], "the settings that the study chose are in its report.md"),
        ("tune", ["tune", "bc"], "the command that resumes it in command.txt"),
        ("bc", ["tune", "bc"], "after --, as in `rlsmooth tune bc -- --conf FILE`"),
        ("bc", ["classify"], "name the config.json of such a run, or a file that --save-conf wrote"),
        ("bc", ["evaluate", "-i", "a.zip"], "name a file that --save-conf wrote"),
        ("audit", ["audit", "a.zip"], "name a file that --save-conf wrote"),
    ],
)
def test_the_settings_of_another_command_or_of_a_study_are_refused(
    made_by: str, words: list[str], fix: str, tmp_path: Path, capsys: Any
) -> None:
    arguments = vars(parse(made_by, args_of(made_by), REQUIRED.get(made_by, []))[0])
    write_json(path := tmp_path / "config.json", {"command": made_by, "arguments": plain(arguments)})
    says = f"conf={str(path)!r} is of `rlsmooth {made_by}`, not of a run of `rlsmooth {words[0]}`: "
    assert_refused(says, [*words, "--conf", str(path)], capsys)
    assert_refused(fix.replace("FILE", str(path)), [*words, "--conf", str(path)], capsys)


@pytest.mark.parametrize(
    ("command", "words", "name", "value"),
    [
        *((command, ["--save-freq", "7"], "checkpoint_freq", 7) for command in ("bc", "classify", "gan")),
        ("ppo", ["--checkpoint-freq", "7"], "save_freq", 7),
        *((command, ["--n-eval-envs", "3"], "n_envs", 3) for command in ("bc", "evaluate")),
        ("enjoy", ["--eval-episodes", "4"], "episodes", 4),
        ("evaluate", ["--eval-env-kwargs", "g:9"], "eval_env_kwargs", ("g:9",)),
    ],
)
def test_a_name_of_another_command_is_understood(command: str, words: list[str], name: str, value: Any) -> None:
    args, _ = parse(command, args_of(command), [*REQUIRED.get(command, []), *words])
    assert getattr(args, name) == value


# ---- seeds


def test_seeds_that_can_not_be_used_are_refused(tmp_path: Path, capsys: Any) -> None:
    assert_refused("--seeds 1 1 names a seed twice", ["bc", "--seeds", "1", "1"], capsys)
    assert_refused("--seeds starts new runs", ["ppo", "--seeds", "1", "--resume", "x"], capsys)
    assert_refused("seed=-1", ["ppo", "--seeds", "-1"], capsys)


def test_a_signal_to_several_seeds_is_passed_on(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    passed: list[bool] = []
    monkeypatch.setattr(seeds._Runs, "train", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(seeds._Runs, "interrupt", lambda _: passed.append(True))
    assert main(["bc", "--seeds", "1", "2", "--log-folder", str(tmp_path)]) == 143
    assert passed == [True]


@pytest.mark.slow
def test_seeds_give_the_runs_that_they_give_alone_and_a_failed_one_is_told(programs: Any, tmp_path: Path) -> None:
    (tmp_path / "falls.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Falls(CartPoleEnv):\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        if seed == 5:\n"
        "            raise ValueError('no seed 5')\n"
        "        return super().reset(seed=seed, options=options)\n"
        "gym.register('Falls-v0', Falls, max_episode_steps=20)\n"
    )
    words = ("bc", "--env", "falls:Falls-v0", "--demonstrations", "cartpole-v1", "--n-episodes", "2", "--epochs", "1")
    words = (*words, "--n-envs", "1", "--eval-episodes", "2", "--device", "cpu")
    code = f"import os, sys; os.environ['PYTHONPATH'] = {str(tmp_path)!r}; sys.path.insert(0, {str(tmp_path)!r})"
    done = programs.run(f"if __name__ == '__main__':\n    {code}; {COMMAND}", tmp_path, *words, "--seeds", *"2358")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "1 of 4 seeds failed, the others are kept. seed 5: rlsmooth bc: error:" in done.stderr
    assert "no seed 5" in done.stderr
    (folder,) = (tmp_path / "logs" / "bc").glob("*-seeds_1")
    told = json.loads((folder / "seeds.json").read_text())
    assert set(told["runs"]) == {"2", "3", "8"}
    reports = [json.loads((tmp_path / path / "report.json").read_text()) for path in told["runs"].values()]
    assert [report["settings"]["seed"] for report in reports] == [2, 3, 8]
    values = [report["summary"]["accuracy"] for report in reports]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert told["summary"]["accuracy"] == pytest.approx({"mean": np.mean(values), "low": low, "high": high})
    assert (folder / "seeds.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_seeds_save_and_end_when_their_command_is_killed(tmp_path: Path) -> None:
    words = ("bc", "--epochs", "100000", "--checkpoint-freq", "100", "--num-threads", "1", "--device", "cpu")
    words = (*words, "--eval-freq", "-1", "--seeds", "1", "2")
    command = [sys.executable, "-P", "-m", "rlsmooth", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len([*tmp_path.glob("logs/bc/CartPole-v1_?/checkpoints/checkpoint_*.zip")]) < min(2, os.cpu_count() or 1):
        assert process.poll() is None
        time.sleep(0.02)
    pids = [pid for pid, _ in children(process)]
    process.kill()
    process.wait()
    assert_ended(pids)
    logs = [path.read_text() for path in tmp_path.glob("logs/bc/CartPole-v1-seeds_1/seed_*.log")]
    assert logs
    assert all("rlsmooth bc --resume" in text for text in logs)


# ---- lists and completions


def test_list_names_what_there_is(capsys: Any) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for word in ("recurrent-ppo", "rlsmooth/DeepSea-v0", "breast-cancer", "cartpole-v1-noisy", "ale_py:ALE/Pong-v5"):
        assert word in printed
    assert main(["list", "data-sets"]) == 0
    assert "recurrent-ppo" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_the_script_and_completes_by_it(shell: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert "'maskable-ppo': {'description': 'train PPO with action masks" in script.read_text()
    if shell == "fish":  # an argument of a program ends at 128 KiB
        assert '"$pycode" | $python_cmd - $words' in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    if shell == "zsh":
        subprocess.run([shell, "-n", str(script)], check=True)
        return
    if shell == "fish":
        asks = "source $argv; complete -C 'rlsmooth bc --reference tri'"
        words = ["fish", "--no-config", "-c", asks, str(script)]
        assert subprocess.run(words, check=True, capture_output=True, text=True).stdout.split() == ["triangular"] * 2
        return
    asks = 'source "$0"; F=$(complete -p rlsmooth | sed "s/.*-F \\([^ ]*\\).*/\\1/")'
    asks += (
        "; COMP_WORDS=(rlsmooth bc --reference tri); COMP_CWORD=3; $F rlsmooth tri --reference; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", asks, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "triangular\n"
