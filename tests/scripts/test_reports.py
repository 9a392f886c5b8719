"""Reports that earlier versions wrote: each is loaded, written again, printed in the same words, and drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlsmooth.scripts.figures.kinds import KINDS, draw_reports, load_reports, new_report, publish_report
from rlsmooth.scripts.reports import RunReport, share_words, with_unit
from support import assert_raises

FROZEN = next(folder / "frozen" / "reports" for folder in Path(__file__).parents if (folder / "frozen").is_dir())
RUNS = sorted(folder.name for folder in FROZEN.iterdir())
FILES = {"config.json", "report.json", "table.txt"}  # as a run wrote and printed them; of the GANs' samples, a few


def load(name: str) -> RunReport:
    (report,) = load_reports([FROZEN / name])
    return report


def test_there_is_a_report_of_every_command() -> None:
    assert {load(name).command for name in RUNS} == set(KINDS)
    assert all({path.name for path in (FROZEN / name).iterdir()} == FILES for name in RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_it_is_written_and_printed_as_it_was(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = load(name)
    KINDS[report.command].save(tmp_path, report)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads((FROZEN / name / "report.json").read_text())
    KINDS[report.command].print(report)
    assert capsys.readouterr().out == (FROZEN / name / "table.txt").read_text()


def test_all_is_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_report(tmp_path, load("bc"))
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.png"}
    assert capsys.readouterr().out == (FROZEN / "bc" / "table.txt").read_text()


@pytest.mark.parametrize("name", RUNS)
def test_every_panel_has_a_title_and_data(name: str) -> None:
    figure = draw_reports([load(name)])
    assert figure.get_size_inches().tolist() == [16, 10]
    assert len(figure.axes) == 6
    assert all(ax.get_title(loc="left") for ax in figure.axes)
    words = {text.get_text() for ax in figure.axes for text in ax.texts}
    assert "drawn when the run ends" not in words


@pytest.mark.parametrize(
    "names",
    [
        ("bc", "bc_box"),
        ("bco", "bco_box"),
        ("dagger", "dagger_box"),
        ("gail", "airl"),
        ("ppo", "a2c", "maskable_ppo", "recurrent_ppo"),
        ("classify", "classify_unscaled"),
        ("self_train", "self_train_ema"),
    ],
)
def test_several_are_compared_by_name(names: tuple[str, ...]) -> None:
    reports = load_reports([FROZEN / name for name in names])
    figure = draw_reports(reports)
    assert len(figure.axes) == 4
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(shown) == len(names)
    assert all(any(report.name in words for words in shown) for report in reports)


def test_what_can_not_be_compared() -> None:
    with pytest.raises(ValueError, match="runs of gan can't be compared: name one folder"):
        draw_reports([load("gan_points"), load("gan_images")])
    assert_raises(ValueError, "runs of bc and on-policy can't be compared", draw_reports, [load("bc"), load("ppo")])


def test_a_report_has_the_entries_of_its_command() -> None:
    report = new_report("bco", name="run_1", settings={}, watched="2 episodes")
    assert (report.command, report.extras, report.curves) == ("bco", {"watched": "2 episodes"}, {})
    assert new_report("bco", name="run_1", settings={}).extras == {"watched": ""}
    with pytest.raises(TypeError, match="no report of bco has reliability"):
        new_report("bco", name="run_1", settings={}, reliability=None)


def test_a_run_that_goes_on_is_drawn_as_far_as_it_is(tmp_path: Path) -> None:
    for name, tag in (("gan_points", "gan/discriminator_loss"), ("gail", "rollout/ep_rew_wrapped_mean")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(FROZEN / name / "config.json", folder)
        (folder / "metrics.csv").write_text(f"step,{tag}\n1,0.5\n2,0.25\n")
        (report,) = load_reports([folder])
        assert report.name == name
        assert report.curves == {tag: ([1, 2], [0.5, 0.25])}
        assert report.summary == {}
        settings = json.loads((folder / "config.json").read_text())
        assert report.extras.get("hyperparameters") == settings.get("hyperparameters")
        drawn = [line for ax in draw_reports([report]).axes for line in ax.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
        assert any(list(line.get_ydata()) == [0.5, 0.25] for line in drawn)  # type: ignore[arg-type]


def test_a_folder_of_another_command_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"command": "record", "arguments": {}}))
    assert_raises(ValueError, "was written by none of bc, bco, dagger, gail, airl, ppo", load_reports, [tmp_path])


def test_shares_have_the_digits_that_their_samples_can_tell_apart() -> None:
    """One sample is right or wrong: a tenth of a percent would be invented."""
    counts = (None, 5000, 1000, 999, 100, 99, 1)
    expected = ["66.7 %", "66.7 %", "66.7 %", "67 %", "67 %", "67 % of 99", "67 % of 1"]
    assert [share_words(2 / 3, count) for count in counts] == expected
    assert [with_unit(1.0, unit, 1) for unit in ("share", "%", "nats")] == ["100 % of 1", "100.0 %", "1.000 nats"]
    assert share_words(0.021, 38, "+") == "+2 %"


@pytest.mark.parametrize("name", ["bc", "classify", "self_train"])
def test_a_result_of_one_sample_is_printed_as_such(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = load(name)
    report.extras["data"] |= {"held out": "1 in 1 episodes"} if name == "bc" else {"test": "1"}
    report.summary["accuracy"] = 1.0
    KINDS[name.replace("_", "-")].print(report)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│ accuracy ")]
    assert "100 % of 1 " in line
    assert "100.0" not in line
