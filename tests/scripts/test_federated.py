"""`rlsmooth federated` as its users run it: files, numbers, both kinds of data, a killed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from commands import (
    assert_picture,
    assert_resumed_unchanged,
    assert_same_run,
    assert_written,
    evaluated,
    finished_run,
    report_of,
)
from killing import kill_command
from rlsmooth.agents import BC
from rlsmooth.data import Demonstrations, load_labelled
from rlsmooth.scripts.classification import network
from rlsmooth.scripts.federated import Args, load_parts
from rlsmooth.scripts.main import main
from rlsmooth.training import Classifier, read_safe_file

WORDS = (
    "--data",
    "digits",
    "--rounds",
    "3",
    "--smoothing",
    "0",
    "0.2",
    "--clients",
    "4",
    "--auxiliary",
    "100",
    "--learning-rate",
    "0.3",
)
finished = finished_run("federated", *WORDS)


def parameters(folder: Path) -> dict[str, Tensor]:
    """Those of all networks of a run."""
    return {
        f"{path.stem}/{name}": tensor
        for path in sorted(folder.glob("classifier*.zip"))
        for name, tensor in read_safe_file(
            path, format_name="rlsmooth-classifier", format_version=1
        ).tensors["module"].items()
    }  # fmt: skip


def test_it_writes_networks_and_report(finished: Any, tmp_path: Path) -> None:
    folder, printed = finished
    files = [
        f"{kind}_{alpha}{end}" for alpha in ("0", "0.2") for kind, end in (("classifier", ".zip"), ("smoothing", ""))
    ]
    assert_written(folder, printed, files, WORDS)
    assert "Smoothing does not hide labels" in " ".join(printed.split())
    assert_resumed_unchanged(folder, tmp_path, parameters)


def test_the_numbers_are_those_of_the_saved_network(finished: Any) -> None:
    folder, _ = finished
    data = load_labelled("digits")
    training = data.sample_indices(len(data) - round(0.25 * len(data)), 0)
    test = data.take(np.setdiff1d(np.arange(len(data)), training))
    last = report_of(folder)["last"]
    for word in ("0", "0.2"):
        classifier = Classifier.load(folder / f"classifier_{word}.zip", network((64, 64)), device="cpu")
        assert classifier.score(test.features, test.labels) == pytest.approx(last[word]["accuracy"], abs=1e-6)
        logs = classifier.predict_log_proba(test.features)
        assert -logs[np.arange(len(test)), test.labels].mean() == pytest.approx(last[word]["nll"], abs=1e-5)
        attacks = [value for name, value in last[word].items() if name.startswith("audit_") and name != "audit_prior"]
        assert last[word]["audit_best"] == max(attacks)


def test_demonstrators_train_one_agent(tmp_path: Path) -> None:
    words = ["--demos", "cartpole-v1", "cartpole-v1-noisy", "--split", "by-group", "--rounds", "2", "-f", str(tmp_path)]
    assert main(["federated", *words, "--share", "gradients", "--defence", "clip-noise:1:1"]) == 0
    (folder,) = (tmp_path / "federated").iterdir()
    assert folder.name == "cartpole-v1+cartpole-v1-noisy_1"
    assert evaluated(folder / "agent.zip", "--env", "CartPole-v1")["deterministic"]["mean_reward"] >= 8
    assert_picture(folder / "report.png")


@pytest.mark.slow
def test_masked_demonstrations_train_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside others without masks; the accuracy is that of the saved agent among legal actions."""
    rng, paths = np.random.default_rng(0), []
    for name, masked in (("masked", True), ("free", False)):
        observations = rng.normal(size=(150, 3)).astype(np.float32)
        masks = rng.random((150, 4)) < 0.5
        masks[np.arange(150), rng.integers(4, size=150)] = True
        masks |= not masked
        actions = np.where(masks, observations @ rng.normal(size=(3, 4)), -np.inf).argmax(1)
        Demonstrations.from_arrays(
            observations, actions, observation_space=spaces.Box(-9, 9, (3,)), action_space=spaces.Discrete(4),
            episode_ends=[150], action_masks=masks if masked else None,
        ).save(tmp_path / f"{name}.npz")  # fmt: skip
        paths.append(str(tmp_path / f"{name}.npz"))
    words = ["--demos", *paths, "--split", "by-group", "--rounds", "2", "--auxiliary", "50", "-f", str(tmp_path)]
    assert main(["federated", *words, "--smoothing", "0", "0.2"]) == 0
    (folder,) = (tmp_path / "federated").iterdir()
    args = Args(demonstrations=tuple(paths), split="by-group", auxiliary=50)
    test = load_parts(args).test
    agent = BC.load(folder / "agent_0.2.zip", device="cpu")
    chosen, _ = agent.predict(test.data.features, deterministic=True, action_masks=test.masks)
    assert report_of(folder)["last"]["0.2"]["accuracy"] == pytest.approx((chosen == test.data.labels).mean())
    assert not test.masks.all()
    assert (agent.predict(test.data.features, deterministic=True)[0] != chosen).any()
    assert main(["federated", *words, "--defence", "randomised-labels"]) == 2
    assert "Use ClipAndNoise, or samples without mask" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--optimizer adam --learning-rate 0.01 --keep-optimizer --clients-per-round 3",
        "--momentum 0.9 --keep-optimizer --batch-size 256 --defence clip-noise:1:1",
        "--momentum 0.9 --defence randomised-labels --no-alpha-known",
        "--share gradients --defence clip-noise:1:0.5",
    ],
)
def test_a_killed_run_continues_to_the_same_parameters(tmp_path: Path, words: str) -> None:
    settings = ["--rounds", "40", "--smoothing", "0.1", "0", *words.split()]

    def reached(checkpoints: Path) -> bool:
        return any(checkpoints.glob("smoothing_*/checkpoint_2?.zip"))

    whole, killed = kill_command("federated", settings, tmp_path, reached, run="digits_1", result="classifier_0.zip")
    assert_same_run(whole, killed, parameters)
    assert torch.stack([value.float().abs().sum() for value in parameters(whole).values()]).isfinite().all()
