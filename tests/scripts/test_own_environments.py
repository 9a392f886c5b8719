"""Environments of the user's own by `module:id`, arguments of environments, names of algorithms, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest

from rlsmooth.data import Demonstrations, record
from rlsmooth.scripts.environment import check_env, make_envs
from rlsmooth.scripts.main import COMMANDS, main
from support import assert_raises

MODULE = '''
import gymnasium as gym
import numpy as np
from gymnasium import spaces

class Corridor(gym.Env):
    """Walk right for `length` steps; each pays 1. It draws nothing."""
    def __init__(self, length: int = 3):
        self.length, self.observation_space, self.action_space = length, spaces.Box(0, 99, (1,)), spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.zeros(1, np.float32), {}
    def step(self, action):
        self.place += 1
        return np.full(1, self.place, np.float32), 1.0, self.place == self.length, False, {}

gym.register("Corridor-v0", Corridor)
'''
ENV = ("--env", "corridors:Corridor-v0", "--env-kwargs", "length=5")
WITHOUT_SEED = ("enjoy", "plot", "evaluate", "audit", "list", "completion", "push", "pull", "tune")
QUICK = ("--eval-episodes", "2", "--device", "cpu")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "corridors.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("corridors", None)
    gym.registry.pop("Corridor-v0", None)


def returns(path: Path) -> set[float]:
    return set(Demonstrations.load(path).episode_returns().tolist())


def test_record_train_resume_evaluate_and_enjoy_an_environment_of_ones_own(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("-params", "n_steps=32", "batch_size=32", "n_envs=1")
    assert main(["ppo", *ENV, "-n", "64", *few, *QUICK]) == 0
    (run,) = (own / "logs" / "ppo").iterdir()
    assert json.loads((run / "config.json").read_text())["hyperparameters"]["env_kwargs"] == {"length": 5}
    words = ["record", *ENV, "-i", f"{run}/agent.zip", "--n-episodes", "3", "--output", "own.npz", "--device", "cpu"]
    assert main(words) == 0
    assert returns(own / "own.npz") == {5.0}
    recorded = "demonstrations, recorded in 'corridors:Corridor-v0', has observation_space=Box"
    assert recorded in failure(capsys, "bc", "--demonstrations", "own.npz")  # in CartPole-v1
    metadata = Demonstrations.load(own / "own.npz").metadata
    assert metadata["env_id"] == "corridors:Corridor-v0"
    assert metadata["env_kwargs"] == {"length": 5}
    assert "--env-kwargs length=5" in metadata["command"]
    assert main(["bc", *ENV, "--demonstrations", "own.npz", "--epochs", "1", *QUICK]) == 0
    (clone,) = (own / "logs" / "bc").iterdir()
    assert json.loads((clone / "config.json").read_text())["arguments"]["env_kwargs"] == ["length=5"]
    for folder, extra, expected in ((run, [], 5), (clone, [], 5), (clone, ["--env-kwargs", "length=7"], 7)):
        # A config.json imports nothing: the module is named by whoever types the command.
        words = ["evaluate", "-i", str(folder), "--env", ENV[1], *extra, "--json", "out.json", *QUICK]
        assert main(words) == 0
        assert json.loads((own / "out.json").read_text())["deterministic"]["mean_reward"] == expected
    card = (clone / "README.md").read_text()  # another world's row is another one
    assert all(f"agent.zip in corridors:Corridor-v0 length={length}, seed 0" in card for length in (5, 7))
    capsys.readouterr()
    assert main(["enjoy", str(clone), "--env", ENV[1], "--no-render", "--device", "cpu"]) == 0
    assert "return 5" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["bco", "dagger", "gail", "airl", "a2c"])
def test_every_command_that_trains_passes_the_arguments_on(
    command: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command, "--env", ENV[1], "--env-kwargs", "size=5"]
    words += ["--train-expert", "64"] if command == "dagger" else []
    if command not in ("a2c", "dagger"):
        record(lambda _: 1, ENV[1], 2).save("own.npz")
        words += ["--demonstrations", "own.npz"]
    assert main(words) == 2  # the only argument that there is, is `length`
    assert "can't be made with env_kwargs={'size': 5}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("no_such_module:X-v0", "module 'no_such_module' can't be imported .*PYTHONPATH=. before the command"),
        ("corridors:Corridor-v9", "env='corridors:Corridor-v9' is not known"),
        ("Nothing-v0", "env='Nothing-v0' is not known.* write --env module:Nothing-v0"),
        ("CartPole-v9", "env='CartPole-v9' is not known: .*`v1` \\]\\.$"),
    ],
)
def test_an_environment_that_is_not_there(env: str, says: str, own: Path) -> None:
    assert_raises(ValueError, says, check_env, env)
    assert_raises(ValueError, says.replace("is not known", "can't be made"), make_envs, env, 1, 0)


def test_record_takes_the_arguments_only_of_an_id(own: Path) -> None:
    assert set(record(lambda _: 1, ENV[1], 2, env_kwargs={"length": 4}).episode_lengths()) == {4}
    with pytest.raises(ValueError, match=r"can't be made with env_kwargs=\{'size': 1\}"):
        record(lambda _: 1, ENV[1], 2, env_kwargs={"size": 1})
    with pytest.raises(ValueError, match=r"env_kwargs=.* are for an environment id"):
        record(lambda _: 1, gym.make(ENV[1]), 2, env_kwargs={"a": 1})


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong command line ends with, and exit code 2."""
    capsys.readouterr()
    try:
        code: object = main(list(words))
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("other", ["ppo_mask", "maskable-ppo"])
@pytest.mark.parametrize("joined", [False, True])
def test_both_names_of_an_algorithm_are_understood(
    other: str, joined: bool, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--algo={other}"] if joined else ["--algo", other]
    assert "has no action_masks(): use ppo" in failure(capsys, "gail", *words)
    (own / "agent.zip").write_text("")
    assert "can't be loaded as maskable-ppo" in failure(capsys, "record", *words, "-i", "agent.zip")
    assert "has no action_masks(): use ppo" in failure(capsys, other, "--env", "CartPole-v1")


def test_options_of_what_is_tuned_come_after_two_hyphens(capsys: pytest.CaptureFixture[str]) -> None:
    assert "(options of the command that is tuned come after --)" in failure(capsys, "tune", "bc", "--n-episodes", "4")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("{} --sed 1", "Unrecognized options: --sed, 1 (did you mean --seed?)"),
        ("{} --seed x", "Error parsing --seed: invalid literal for int"),
        ("{} --seed", "Missing value for argument"),
    ],
)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in WITHOUT_SEED])
def test_a_mistake_takes_one_line(command: str, words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(capsys, *words.format(command).split())
    assert line.startswith(f"rlsmooth {command}: error: {says}")
    assert line.endswith(f"; rlsmooth {command} --help lists the options.")


def test_other_mistakes_take_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing: -i PATH, --trained-agent PATH;" in failure(capsys, "evaluate")
    assert "missing: AGENT.zip;" in failure(capsys, "enjoy")
    assert "(did you mean maskable-ppo?)" in failure(capsys, "gail", "--algo", "maskable_pp")
    assert "'self_trian' is no command (did you mean self-train?)" in failure(capsys, "self_trian")


def test_ascii_terminals_get_the_same_line() -> None:
    words = [sys.executable, "-c", "from rlsmooth.scripts.main import main; main(['bc', '--sed', '1'])"]
    for coding in ("ascii", "utf-8"):
        finished = subprocess.run(
            words, env={"PYTHONIOENCODING": coding, "PYTHONPATH": ":".join(sys.path)}, capture_output=True
        )
        assert finished.stderr.decode().startswith("rlsmooth bc: error: Unrecognized options: --sed, 1 (did you mean")
