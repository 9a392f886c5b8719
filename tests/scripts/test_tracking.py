"""What SB3's logger gets is sent to Weights & Biases, MLflow or Trackio where it is asked for."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from commands import COMMAND, assert_refused, run_here
from rlsmooth.scripts.arguments import OnPolicyArgs, to_give_again
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.tracking import open_tracker

TOOLS = ("wandb", "mlflow", "trackio")


class Stub(types.ModuleType):
    """Notes how it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def note(*args: Any, **named: Any) -> Any:
            self.calls.append((name, args, named))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=named.get("run_id") or "given"))

        return note

    def logged(self) -> list[tuple[dict[str, float], int]]:
        return [(args[0], named["step"]) for name, args, named in self.calls if name in ("log", "log_metrics")]


@pytest.fixture(params=TOOLS)
def tool(request: Any, monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub(request.param)
    monkeypatch.setitem(sys.modules, request.param, stub)
    return stub


def test_numbers_are_sent_with_their_step_and_a_resumed_run_is_the_same_one(tool: Stub, tmp_path: Path) -> None:
    folder = tmp_path / "ppo" / "CartPole-v1_1"
    folder.mkdir(parents=True)
    for step in (10, 20):
        logger = Logger(None, [open_tracker(tool.__name__, "mine", folder, {"seed": 3, "env": "CartPole-v1"})])
        logger.record("train/loss", np.float32(0.5))
        logger.record("time/total_timesteps", step, exclude="tensorboard")
        logger.record("train/words", "text")
        logger.record("train/histogram", torch.zeros(3))
        logger.dump(step)
        logger.close()
    assert tool.logged() == [({"train/loss": 0.5}, 10), ({"train/loss": 0.5}, 20)]
    began = [named for name, _, named in tool.calls if name in ("init", "start_run")]
    if tool.__name__ == "mlflow":
        assert [named["run_id"] for named in began] == [None, "given"]
        assert [args for name, args, _ in tool.calls if name == "set_experiment"] == [("mine",)] * 2
    else:
        key = "id" if tool.__name__ == "wandb" else "name"
        assert began[0][key] == began[1][key]
        assert all(named["project"] == "mine" and named["resume"] == "allow" for named in began)
        assert began[0]["config"] == {"seed": 3, "env": "CartPole-v1"}
    assert tool.calls[-1][0] == ("end_run" if tool.__name__ == "mlflow" else "finish")


def test_a_tool_that_is_missing_is_named_before_anything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["bc", "--n-episodes", "2", "--track", "wandb", "-f", str(tmp_path / "logs"), "--eval-episodes", "1"]
    assert_refused('pip install "rlsmooth[wandb]"', words, capsys)
    assert not list(tmp_path.glob("logs/*/*"))


def test_no_file_chooses_to_send() -> None:
    assert to_give_again(OnPolicyArgs(track="mlflow"))["track"][0] == "mlflow"


@pytest.mark.slow
def test_a_run_sends_what_its_metrics_file_holds(tool: Stub, tmp_path: Path, programs: Any) -> None:
    words = (
        "ppo",
        "-n",
        "128",
        "--n-envs",
        "1",
        "--eval-episodes",
        "1",
        "-params",
        "n_steps=64",
        "batch_size=64",
        "--device",
        "cpu",
    )
    folder = run_here(tmp_path, *words, "--track", tool.__name__)
    sent: dict[str, list[float]] = {}
    for values, step in tool.logged():
        for key, value in values.items():
            sent.setdefault(key, []).append(step)
            assert isinstance(value, float)
    curves = read_metrics(folder / "metrics.csv")
    assert {key: steps for key, (steps, _) in curves.items() if key in sent} == sent
    assert {"eval/mean_reward", "train/loss"} <= sent.keys()
    assert main(["ppo", "--resume", str(folder)]) == 2  # the file does not choose it
    assert main(["ppo", "--resume", str(folder), "--track", tool.__name__]) == 0
    code = f"try: {COMMAND}\nfinally: print(sorted({set(TOOLS)} & set(sys.modules)))"
    assert programs.run(code, tmp_path, *words, "-f", "more").stdout.endswith("[]\n")
