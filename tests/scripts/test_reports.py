"""Reports that earlier versions wrote: each is loaded, written again, printed in the same words, and drawn."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
from matplotlib.image import imread

from commands import assert_refused
from rlsmooth.audits import interquartile_mean_band
from rlsmooth.scripts import seeds
from rlsmooth.scripts.figures.kinds import KINDS, draw_reports, load_reports, new_report, publish_report
from rlsmooth.scripts.figures.on_policy import DEFAULT_RATES
from rlsmooth.scripts.figures.seeds import HIGH, LOW, merge_seeds
from rlsmooth.scripts.main import main
from rlsmooth.scripts.reports import RunReport, return_words, share_words, with_unit
from support import assert_raises

FROZEN = next(folder / "frozen" / "reports" for folder in Path(__file__).parents if (folder / "frozen").is_dir())
RUNS = sorted(folder.name for folder in FROZEN.iterdir())
FILES = {"config.json", "report.json", "table.txt"}  # as a run wrote and printed them; of the GANs' samples, a few


ALGORITHMS = {
    "ppo": stable_baselines3.PPO,
    "a2c": stable_baselines3.A2C,
    "maskable-ppo": sb3_contrib.MaskablePPO,
    "recurrent-ppo": sb3_contrib.RecurrentPPO,
}


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
def test_a_run_of_another_version_is_reported(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, part in (("config.json", "arguments"), ("report.json", "settings")):
        folder = tmp_path / file
        shutil.copytree(FROZEN / name, folder)
        content = json.loads((folder / file).read_text())
        lost = next(iter(content[part]))
        del content[part][lost]
        (folder / file).write_text(json.dumps(content))
        assert_refused(f"{file}' is not of this version: it lacks {lost}", ["plot", str(folder)], capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"curves": "float32"}, "is no report of this version (report.curves must be an object"),
        ({"command": True}, "is no report of this version (report.command"),
        ({"summary": {"mean_reward": None}}, "report.summary.mean_reward=None must be a number"),
        ({"unknown": 1}, "report has unknown"),
        ({"hyperparameters": 3}, "can't be drawn"),
    ],
)
def test_a_report_of_a_stranger_is_drawn_or_refused(
    change: dict[str, Any], words: str, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(FROZEN / "ppo", folder)
    content = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(content | change))
    assert_refused(words, ["plot", str(folder)], capsys)


@pytest.mark.parametrize("name", RUNS)
def test_every_panel_has_a_title_and_data(name: str) -> None:
    report = load(name)
    figure = draw_reports([report])
    assert figure.get_size_inches().tolist() == [16, 10]
    assert len(figure.axes) == len(KINDS[report.command].panels)
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
    subject = KINDS[reports[0].command].subject
    together = {subject: reports[0].settings[subject]}
    reports = [dataclasses.replace(report, settings={**report.settings, **together}) for report in reports]
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
    with pytest.raises(ValueError, match="on CartPole-v1, Pendulum-v1 don't share an axis: name those on one env"):
        draw_reports([load("bc"), load("bc_box")])
    with pytest.raises(ValueError, match="on iris, olive don't share an axis: name those on one data"):
        draw_reports([load("classify"), load("classify_unscaled")])


def seeded(name: str, seed: int, value: float, **settings: Any) -> RunReport:
    """A report of two points per curve, and another seed."""
    report = load(name)
    curves = {tag: ([0, 100], [value, value + 1]) for tag in report.curves}
    changed = {**report.settings, "seed": seed, **settings}
    return dataclasses.replace(report, settings=changed, curves=curves, summary={"policy_entropy": value})


@pytest.mark.parametrize("name", ["gail", "airl", "gail_dqn", "dagger", "dagger_box"])
def test_every_panel_says_what_it_shows(name: str) -> None:
    figure = draw_reports([load(name)])
    *drawn, results = figure.axes
    for ax in drawn:
        assert ax.get_xlabel().startswith("steps")
        assert ax.get_ylabel()
        assert ax.lines
        legend = ax.get_legend()
        assert legend is not None
        assert 1 <= len(legend.get_texts()) <= 3  # a fourth would be written over the title
    figure.canvas.draw()
    assert min(text.get_window_extent().y0 for text in results.texts) > 20  # on the page
    assert len(results.texts) > 16


def test_what_was_not_logged_is_said_to_be_missing() -> None:
    for name in ("airl", "dagger"):
        begun = new_report(name, name="run_1", settings=load(name).settings)
        words = {text.get_text() for ax in draw_reports([begun]).axes for text in ax.texts}
        assert "nothing logged" in words


def test_panels_and_legends_of_a_comparison() -> None:
    for names, place, panel, labels in (
        (
            ("gail", "airl", "gail_dqn"),
            0,
            "Return of sampled actions",
            [
                "GAIL CartPole-v1_1: 0.9 and 0, ppo, smoothing 0.05, 0",
                "AIRL CartPole-v1_1: 1 and 0, trpo, 0",
                "GAIL CartPole-v1_2: 1 and 0, dqn, 0",
            ],
        ),
        (["dagger"] * 2, 1, "Does as the expert did, before training", ["CartPole-v1_1: 0.5, 0.1, 0"] * 2),
        (["dagger_box"] * 2, 1, "Distance from the expert's actions", ["Pendulum-v1_1: 15, 0.1, 0"] * 2),
    ):
        figure = draw_reports([load(name) for name in names])
        assert figure.axes[place].get_title(loc="left") == panel
        assert [text.get_text() for text in figure.legends[0].get_texts()] == labels


def test_rows_name_units_and_settings() -> None:
    def shown(report: RunReport) -> dict[str, str]:
        words = [text.get_text() for text in draw_reports([report]).axes[-1].texts]
        assert set(dict(KINDS[report.command].results(report))) <= set(words[::2])
        return dict(zip(words[::2], words[1::2], strict=True))

    gail = load("gail")
    changed = {"reward_form": "logit", "terminal_states": "as_is"}
    gail = dataclasses.replace(gail, settings={**gail.settings, **changed})
    gail.extras["hyperparameters"]["normalize"] = True
    rows = shown(gail)
    assert rows["generator"] == "ppo in 8 environments, normalised"
    assert rows["reward"] == "log D - log(1 - D)"
    assert rows["terminal states"] == "as is"
    assert rows["training"] == "768 steps, 2,975 a second"
    rows = shown(load("dagger"))
    assert rows["beta schedule"] == "0.5 to the power of the round"
    assert rows["labelled"] == "679 in 5 rounds"
    assert shown(load("dagger_box"))["beta schedule"] == "1 to 0 in 15 rounds"


def test_seeds_of_one_setting_are_one_line_with_an_interval() -> None:
    values = [0.0, 1.0, 5.0]
    runs = [seeded("ppo", seed, value, device=f"cuda:{seed}") for seed, value in enumerate(values)]
    other = seeded("ppo", 0, 9.0, smoothing="0.2")
    merged, alone = merge_seeds([runs[0], other, *runs[1:]])
    assert alone is other
    assert (merged.name, merged.settings["seed"], merged.summary) == ("3 runs", "0 to 2", {"policy_entropy": 2.0})
    tag = "train/policy_entropy"
    assert merged.curves[tag] == ([0, 100], [2.0, 3.0])  # a quarter of three runs is less than one
    band = interquartile_mean_band(np.add.outer(values, [0.0, 1.0]))
    assert merged.curves[tag + LOW][1] == band.low.tolist()
    assert merged.curves[tag + HIGH][1] == band.high.tolist()
    figure = draw_reports([runs[0], other, *runs[1:]])
    panel = next(ax for ax in figure.axes if ax.get_title(loc="left") == "Policy entropy")
    assert sorted(list(line.get_ydata()) for line in panel.lines) == [[2.0, 3.0], [9.0, 10.0]]  # type: ignore[arg-type]
    assert len(panel.collections) == 1  # the band of the setting that has several runs
    assert "4 runs, 2 settings" in figure.get_suptitle()
    assert any("3 runs" in text.get_text() for text in figure.legends[0].get_texts())


def test_what_seeds_do_not_share() -> None:
    pair = [seeded("bc", 3, 1.0), seeded("bc", 8, 2.0)]
    (merged,) = merge_seeds(pair)
    assert merged.settings["seed"] == "3, 8"
    assert not [tag for tag in merged.curves if tag.endswith(LOW)]  # two runs have no interval
    assert len(merge_seeds([*pair, pair[0]])) == 2  # the same run again
    later = dataclasses.replace(pair[1], curves={tag: ([50, 150], [0.0, 0.0]) for tag in pair[1].curves})
    (merged,) = merge_seeds([pair[0], later])
    assert merged.curves["bc/loss"] == ([50, 100], [0.75, 1.0])  # where both have data
    apart = dataclasses.replace(pair[1], curves={tag: ([500], [0.0]) for tag in pair[1].curves})
    assert merge_seeds([pair[0], apart])[0].curves == {}


def test_ticks_are_in_the_unit_of_their_axis() -> None:
    for largest, unit, size in ((80, "", 1.0), (1_500, "", 1.0), (30_000, "k", 1e3), (2_500_000, "M", 1e6)):
        report = load("ppo")
        curves = {tag: ([0, largest], [0.0, 0.0]) for tag in report.curves}
        figure = draw_reports([dataclasses.replace(report, curves=curves)])
        figure.canvas.draw()
        for place, label in zip(figure.axes[1].get_xticks(), figure.axes[1].get_xticklabels(), strict=True):
            words = label.get_text()
            assert words == "0" or (words.endswith(unit) and float(words.rstrip("kM").replace(",", "")) * size == place)


def test_every_dimension_has_its_targets() -> None:
    report = load("bc")
    matrix = next(iter(report.extras["target_matrices"].values()))
    for count in (2, 5, 8):
        extras = {**report.extras, "target_matrices": {str(place): matrix for place in range(count)}}
        panel = draw_reports([dataclasses.replace(report, extras=extras)]).axes[4]
        assert len(panel.child_axes) == min(count, 6)
        assert panel.get_title(loc="left").endswith("by dimension" if count <= 6 else "the first dimensions")


def test_the_learning_rate_of_an_algorithm_is_a_number() -> None:
    for command, algorithm in ALGORITHMS.items():
        assert inspect.signature(algorithm).parameters["learning_rate"].default == DEFAULT_RATES[command]
    words = [text.get_text() for ax in draw_reports([load("ppo")]).axes for text in ax.texts]
    assert not [word for word in words if "default" in word]


def test_the_folder_of_several_seeds_stands_for_its_runs(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {}
    for seed, name in ((0, "bc"), (3, "bc")):
        folders[seed] = Path(f"logs/bc/CartPole-v1_{seed + 1}")
        shutil.copytree(FROZEN / name, folders[seed])
        settings = json.loads((folders[seed] / "config.json").read_text())
        settings["arguments"]["seed"] = seed
        (folders[seed] / "config.json").write_text(json.dumps(settings))
    whole = Path("logs/bc/CartPole-v1-seeds_1")
    whole.mkdir()
    (whole / "seed_0.log").write_text("begun")
    assert_refused("seeds_1' is of --seeds that have not ended", ["plot", str(whole)], capsys)
    seeds.report("bc", folders, whole)
    drawn = imread(whole / "seeds.png")
    (whole / "seeds.png").unlink()
    moved = (tmp_path / "logs").rename(tmp_path / "moved") / "bc"
    whole = moved / whole.name
    assert main(["plot", str(whole)]) == 0
    assert (imread(whole / "seeds.png") == drawn).all()
    assert main(["plot", str(whole), str(FROZEN / "bc")]) == 0
    assert Path("comparison.png").exists()
    says = f"{str(whole)!r} reports several runs: name one of {moved}/CartPole-v1_1, {moved}/CartPole-v1_4."
    for words in ("evaluate -i", "enjoy", "bc --resume", "audit --data iris", "push me/agent", "dagger --expert"):
        command = words.split()
        place = 1 if command[0] in ("audit", "push") else len(command)
        assert_refused(says, [*command[:place], str(whole), *command[place:]], capsys)
    (whole / "seeds.json").write_text('{"runs": ["CartPole-v1_1"]}')
    assert_refused("seeds.json", ["plot", str(whole)], capsys)


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
    assert [with_unit(value, "return") for value in (0.86, 12.34, 0.0)] == ["0.860", "12.3", "0.0"]
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


def test_shares_of_rounds_name_their_transitions(capsys: pytest.CaptureFixture[str]) -> None:
    bco, dagger = load("bco"), load("dagger")
    bco.extras["watched"] = "12 in 1 episode"
    dagger.curves["dagger/transitions"] = ([1, 2], [40.0, 52.0])  # type: ignore[index]
    for report in (bco, dagger):
        KINDS[report.command].print(report)
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("100 % of 12 ", "87 % of 12 ", "97 % of 12 ", "98 % of 52 "))


def test_a_spread_has_the_digits_of_its_return() -> None:
    assert [return_words(*pair) for pair in ((9.5, 0.25), (0.0, 0.0), (0.0, 0.013), (0.012, 0.5), (0.5, 2.0))] == [
        "9.5 ± 0.2",
        "0.0 ± 0.0",
        "0.000 ± 0.013",
        "0.012 ± 0.500",
        "0.5 ± 2.0",
    ]


def test_an_ended_self_training_without_pseudo_labels_says_so() -> None:
    report = load("self_train")
    tags = ("test_accuracy", "num_labelled")
    curves = {f"self_train/{tag}": report.curves[f"self_train/{tag}"] for tag in tags}
    words = {
        text.get_text() for ax in draw_reports([dataclasses.replace(report, curves=curves)]).axes for text in ax.texts
    }
    assert "nothing was labelled" in words
    assert "drawn when the run ends" not in words


def test_targets_name_actions_that_do_not_start_at_0() -> None:
    report = load("bc")
    summary = {**report.summary, "first_action": 5.0}
    panel = draw_reports([dataclasses.replace(report, summary=summary)]).axes[4]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["5", "6"]
