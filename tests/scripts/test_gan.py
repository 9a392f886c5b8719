"""`rlsmooth gan` as its users run it: what it writes and prints, and that a run goes on where it was broken off."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.training import GANTrainer, checkpoint_steps, gan_case
from support import read_events

TINY = ("--hidden", "8", "--batch-size", "16", "--eval-samples", "50", "--device", "cpu")
FILES = {"checkpoints", "command.txt", "config.json", "gan.zip", "metrics.csv", "report.json", "report.png"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run."""
    home = tmp_path_factory.mktemp("home")
    words = ["--steps", "12", "--checkpoint-freq", "5", "--eval-freq", "4", "--real-target", "lin_0.8"]
    assert main(["gan", *TINY, *words, "-f", str(home)]) == 0
    return home / "gan" / "ring_1"


def test_all_files_are_written(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= FILES
    assert [name.startswith("events.out.tfevents.") for name in names - FILES] == [True]
    assert json.loads((finished / "config.json").read_text())["arguments"]["real_target"] == "lin_0.8"
    assert shlex.split((finished / "command.txt").read_text())[:4] == ["rlsmooth", "gan", "--hidden", "8"]
    assert checkpoint_steps(finished / "checkpoints") == [10, 12]


def test_the_metrics_have_a_row_for_each_log_line_and_evaluation(finished: Path) -> None:
    curves = read_metrics(finished / "metrics.csv")
    assert curves["gan/discriminator_loss"][0] == list(range(1, 13))
    assert curves["eval/modes"][0] == [4, 8, 12]
    assert curves["gan/real_target"][1][0] == pytest.approx(0.8)
    events = read_events(finished)
    assert {"gan/probability_real", "eval/high_quality"} <= set(events.Tags()["scalars"])
    assert "eval/samples" in events.Tags()["images"]


def test_the_saved_networks_make_the_samples_of_the_report(finished: Path) -> None:
    ring = gan_case("ring", seed=0, hidden=(8,))
    trainer = GANTrainer.load(finished / "gan.zip", ring.make_generator, ring.make_discriminator, device="cpu")
    report = json.loads((finished / "report.json").read_text())
    torch.testing.assert_close(trainer.sample(2_500, seed=0), torch.tensor(report["samples"]), rtol=0, atol=1e-4)
    assert report["summary"]["modes"] == float(ring.evaluate(trainer.sample(50, seed=0))["modes"])


def test_the_report_is_a_picture_of_the_stated_size(finished: Path, tmp_path: Path) -> None:
    assert main(["plot", str(finished), "--output", str(tmp_path / "again.png")]) == 0
    for path in (finished / "report.png", tmp_path / "again.png"):
        pixels = imread(path)
        assert pixels.shape[:2] == (1000, 1600)
        assert pixels[..., :3].std() > 0.05  # not an empty page


def test_a_run_goes_on_from_its_last_checkpoint(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ring_1"
    shutil.copytree(finished, folder)
    for name in ("gan.zip", "report.json", "report.png", "checkpoints/checkpoint_12.zip"):
        (folder / name).unlink()
    assert main(["gan", "--resume", str(folder)]) == 0
    ring = gan_case("ring", seed=0, hidden=(8,))
    samples = [
        GANTrainer.load(path / "gan.zip", ring.make_generator, ring.make_discriminator, device="cpu").sample(9, seed=1)
        for path in (finished, folder)
    ]
    assert torch.equal(*samples)
    there, here = (read_metrics(path / "metrics.csv") for path in (finished, folder))
    for name in set(there) - {"gan/steps_per_second"}:
        assert there[name] == here[name], name


def test_digits_and_what_the_table_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--case", "digits", "--width", "4", "--steps", "2", "--eval-samples", "30", "--ema-decay", "0.9"]
    words += ["--checkpoint-freq", "-1", "--eval-freq", "-1", "-tb", str(tmp_path / "tb"), "--seed", "3"]
    assert main(["gan", *words, "-f", str(tmp_path)]) == 0
    folder = tmp_path / "gan" / "digits_1"
    summary = json.loads((folder / "report.json").read_text())["summary"]
    printed = capsys.readouterr().out.splitlines()
    for name, value in {
        "digits found": f"{summary['digits']:.0f} of 10",
        "distance to real images": f"{summary['distance']:.2f}",
        "D(real)": f"{summary['probability_real']:.3f}",
    }.items():
        assert any(name in line and value in line for line in printed), name
    assert not (folder / "checkpoints").exists()
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["digits_1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--real-target", "1.2"], "real_target=1.2"),
        (["--real-target", "soft"], "real_target='soft' is no schedule"),
        (["--steps", "0"], "steps=0"),
        (["--eval-freq", "0"], "eval_freq=0"),
        (["--learning-rate", "fast"], "learning_rate='fast'"),
        (["--case", "digits", "--image-size", "9"], "image_size=9 must be a power of 2"),
        (["--resume", "nowhere"], "is no folder of a run"),
    ],
)
def test_wrong_arguments_end_in_one_line_and_leave_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [] if "--resume" in words else ["-f", str(tmp_path)]
    assert main(["gan", *words, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("gan/*"))
