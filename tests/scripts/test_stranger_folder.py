"""Commands on the folder of a stranger's run: nothing in it chooses what is imported or where is written."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tyro

from rlsmooth.scripts.arguments import resume_line, resumed, to_give_again
from rlsmooth.scripts.bc import Args as BCArgs
from rlsmooth.scripts.classify import Args as ClassifyArgs
from rlsmooth.scripts.main import main
from rlsmooth.scripts.ppo import Args as PPOArgs
from rlsmooth.scripts.run_folder import choosing_kwargs, plain, write_json

PLANTED = """
import pathlib, gymnasium
pathlib.Path({mark!r}).touch()
gymnasium.register("Evil-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=20)
"""
SMALL = "--n-timesteps 64 --n-envs 1 --eval-episodes 1 -params n_steps=32 batch_size=32 --log-folder"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of PPO with a checkpoint."""
    logs = tmp_path_factory.mktemp("logs")
    assert main(["ppo", "--env", "CartPole-v1", "--save-freq", "32", *SMALL.split(), str(logs)]) == 0
    return logs / "ppo" / "CartPole-v1_1"


@pytest.fixture
def folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and a module `planted` in the working directory that leaves `mark` when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    Path("planted.py").write_text(PLANTED.format(mark=str(tmp_path / "mark")))
    return Path(shutil.copytree(run, tmp_path / "run"))


def changed(folder: Path, **arguments: Any) -> list[str]:
    """The words that resume the run, after these have been changed in its `config.json`."""
    config = json.loads((folder / "config.json").read_text())
    config["arguments"] |= arguments
    write_json(folder / "config.json", config)
    return [config["command"], "--resume", str(folder)]


def test_a_module_is_imported_only_if_the_command_line_names_it(folder: Path, capsys: Any) -> None:
    words = changed(folder, env="planted:Evil-v0")
    for more in ([], ["--env", "planted:Other-v0"], ["--env", "Evil-v0"]):
        assert main([*words, *more]) == 2
        assert "give --env planted:Evil-v0 again" in capsys.readouterr().err
    assert main(["evaluate", "-i", str(folder)]) == 2
    assert not Path("mark").exists()
    shutil.rmtree(folder / "checkpoints")  # of the other environment
    assert main([*words, "--env", "planted:Evil-v0"]) == 0
    assert Path("mark").exists()


def test_a_place_to_write_is_used_only_if_the_command_line_names_it(folder: Path, capsys: Any) -> None:
    words = changed(folder, tensorboard_log="elsewhere")
    assert main(words) == 2
    assert "give --tensorboard-log elsewhere again" in capsys.readouterr().err
    assert not Path("elsewhere").exists()
    assert main([*words, "--tensorboard-log", "elsewhere"]) == 0
    assert list(Path("elsewhere").glob("run/events*"))


@pytest.mark.parametrize("word", ["xml_file=/a.xml", "render_mode=human", "a=[1, 2]"])
def test_arguments_of_an_environment_that_may_choose_are_given_again(word: str, folder: Path, capsys: Any) -> None:
    name, _, value = word.partition("=")
    config = json.loads((folder / "config.json").read_text())
    config["hyperparameters"]["env_kwargs"] = {name: [1, 2] if value == "[1, 2]" else value}
    write_json(folder / "config.json", config)
    quoted = shlex.quote(word)
    for words in (changed(folder), changed(folder, env_kwargs=[word])):
        assert main(words) == 2
        assert f"give --env-kwargs {quoted} again" in capsys.readouterr().err
        assert main([*words, "--env-kwargs", "other=1"]) == 2
        assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 2
        assert f"give --env-kwargs {quoted}" in capsys.readouterr().err
        assert resume_line("ppo", folder, PPOArgs()).endswith(f"--env-kwargs {quoted}")
        if name != "render_mode":
            assert main([*words, "--env-kwargs", word]) == 2  # as far as the environment, which has no such argument
            assert "can't be made with env_kwargs" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["id=planted:Evil-v0", "log=../x", "u=http://x", "k=&a [1]", "d={a: b}", "m=a.b", "x"])
def test_what_may_choose_is_no_number_switch_or_word(word: str) -> None:
    assert choosing_kwargs([word, "a=1", "b: 1e-3", "c=true", "d=8x8", "e=-0.5", "f="]) == [word]


@pytest.mark.parametrize(
    ("env", "kwargs"), [("FrozenLake-v1", ("map_name=8x8", "is_slippery=false")), ("Pendulum-v1", ("g=9.5",))]
)
def test_numbers_switches_and_words_of_ones_own_run_need_not_be_given_again(
    env: str, kwargs: tuple[str, ...], tmp_path: Path
) -> None:
    own = ("--env", env, "--env-kwargs", *kwargs)
    assert main(["ppo", *own, *SMALL.split(), str(tmp_path)]) == 0
    folder = tmp_path / "ppo" / f"{env}_1"
    assert main(["ppo", "--resume", str(folder)]) == 0
    assert main(["ppo", "--resume", str(folder), *own]) == 0  # what is equal may be given again
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1"]) == 0


def test_a_place_on_another_machine_is_given_again(folder: Path, capsys: Any) -> None:
    assert main(changed(folder, from_bc="//host/agent.zip")) == 2
    assert "give --from-bc //host/agent.zip again" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
@pytest.mark.parametrize("name", ["checkpoints", "metrics.csv", "agent.zip", "best"])
def test_links_in_a_folder_are_not_followed(folder: Path, name: str, capsys: Any) -> None:
    target = Path("precious") / "file"
    target.parent.mkdir()
    target.write_text("mine")
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target.parent if name == "checkpoints" else target)
    assert main(changed(folder)) == 2
    assert "is a link" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", "0"), ("seed", 1e3), ("num_threads", True), ("env", 3)),
        *(("verbose", None), ("hyperparams", "a"), ("x", 1)),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(folder: Path, name: str, value: Any, capsys: Any) -> None:
    assert main(changed(folder, **{name: value})) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "config.json" in error


NET = {"policy_kwargs": {"net_arch": {"vf": [10**6]}}}


@pytest.mark.parametrize("part", ["arguments", "hyperparameters"])
@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("n_envs", 10**6, "1,024"),
        ("n_timesteps", 10**12, "1,000,000,000"),
        ("eval_episodes", 10**9, "1,000,000"),
        ("n_epochs", 10**9, "1,000,000"),
        ("n_steps", 2**40, "65,536"),
        ("policy_kwargs", NET["policy_kwargs"], "33,554,432"),
        ("policy_kwargs", "dict(net_arch=[1000000, 1000000])", "33,554,432"),
        ("policy_kwargs", {"net_arch": [1] * 1000}, "64"),
    ],
)
def test_sizes_that_exhaust_a_machine_are_given_again(
    folder: Path, part: str, name: str, value: Any, bound: str, capsys: Any
) -> None:
    config = json.loads((folder / "config.json").read_text())
    if (name in config["arguments"]) < (part == "arguments") or (name, part) == ("eval_episodes", "hyperparameters"):
        return
    config[part][name] = value
    write_json(folder / "config.json", config)
    began = time.perf_counter()
    assert main(["ppo", "--resume", str(folder)]) == 2
    assert time.perf_counter() - began < 5
    error = capsys.readouterr().err
    assert all(word in error for word in (name, "config.json", bound, str(value)[:6].strip("{'"), "again"))


@pytest.mark.parametrize(("args", "name"), [(BCArgs, "net_arch"), (ClassifyArgs, "hidden_sizes")])
def test_a_long_list_of_layers_is_given_again(args: Any, name: str) -> None:
    for sizes, is_free in (((64, 64), True), ((4096, 4096), True), ((10**6,), False), ((1,) * 100_000, False)):
        assert (name not in to_give_again(args(**{name: sizes}))) is is_free
    assert all(to_give_again(each(batch_size=2**40)) for each in (BCArgs, ClassifyArgs))
    assert not to_give_again(args(seed=2**32 - 1, checkpoint_freq=10**9))


def test_a_size_of_ones_own_is_free(folder: Path) -> None:
    """On the command line of a new run, and of a resumed one where it is given again."""
    own = PPOArgs(n_envs=2_000, hyperparams=("n_steps=70000", "batch_size=7"))
    write_json(folder / "config.json", {"hyperparameters": {"n_envs": 2_000, "n_steps": 70_000, "batch_size": 7}})
    line = resume_line("ppo", folder, own)
    assert line.endswith("--n-envs 2000 --hyperparams n_steps=70000")
    settings = {"command": "ppo", "arguments": plain(dataclasses.asdict(own)), "hyperparameters": {"n_steps": 70_000}}
    write_json(folder / "config.json", settings)
    given = tyro.cli(PPOArgs, args=shlex.split(line)[2:])
    assert resumed(given, "ppo").n_envs == 2_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n_steps", -1), ("n_steps", "x"), ("normalize", {"a": 1}), ("policy_kwargs", {"a": 1}), ("policy", "x")),
        *(("rollout_buffer_kwargs", "x"), ("rollout_buffer_kwargs", {"a": 1}), ("stats_window_size", -1)),
        *(("smoothing", {"a": 1}), ("gamma", None), ("n_envs", "x"), ("unknown", 1), ("env_kwargs", [1])),
    ],
)
def test_forged_hyperparameters_are_refused_by_file_and_entry(folder: Path, name: str, value: Any, capsys: Any) -> None:
    shutil.rmtree(folder / "checkpoints")
    config = json.loads((folder / "config.json").read_text())
    config["hyperparameters"][name] = value
    write_json(folder / "config.json", config)
    assert main(["ppo", "--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert str(folder / "config.json") in error
    assert name in error


def test_the_line_that_resumes_a_run_gives_them_again() -> None:
    assert resume_line("bc", Path("a b"), BCArgs()) == "rlsmooth bc --resume 'a b'"
    own = BCArgs(env="mine:Env-v0", tensorboard_log=Path("tb"))
    assert resume_line("bc", Path("r"), own) == "rlsmooth bc --resume r --env mine:Env-v0 --tensorboard-log tb"
