"""`rlsmooth tune`: trials are neither lost nor made twice, and what is said of the best settings is true."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from rlsmooth.scripts import bc, classify, ppo, tune
from rlsmooth.scripts.command import parse
from rlsmooth.scripts.main import main
from rlsmooth.scripts.tune import compared, train_bc, train_classify, train_ppo, with_settings

optuna = pytest.importorskip("optuna")
stats = pytest.importorskip("scipy.stats")
SPACE = '{learning_rate: {low: 1e-4, high: 1e-1, log: true}, net_arch: {choices: ["4", "8 8"]}}'
NOTHING: Callable[..., None] = lambda *_: None  # noqa: E731


def study_of(folder: Path) -> Any:
    journal = optuna.storages.journal.JournalFileBackend(str(folder / "study.log"))
    return optuna.load_study(study_name="tune", storage=optuna.storages.JournalStorage(journal))


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def test_the_report_says_what_training_by_hand_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.yml").write_text(SPACE)
    words = ["tune", "bc", "--trials", "2", "--final-seeds", "2", "--space", str(tmp_path / "space.yml")]
    words += ["-f", str(tmp_path), "--", "--n-episodes", "2", "--validation-fraction", "0.5", "--epochs", "1"]
    words += ["--eval-episodes", "1", "--device", "cpu"]
    assert main(words) == 0
    folder = tmp_path / "tune" / "bc_CartPole-v1"
    printed, report, trials = capsys.readouterr().out, report_of(folder), study_of(folder).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    best = min(trials, key=lambda trial: trial.value)
    assert (report["best_trial"], report["settings"]) == (best.number, best.params)
    given = bc.Args(n_episodes=2, validation_fraction=0.5, epochs=1, eval_episodes=1, device="cpu")
    arch = tuple(map(int, best.params["net_arch"].split()))
    chosen = dataclasses.replace(given, learning_rate=str(best.params["learning_rate"]), net_arch=arch)
    assert train_bc(chosen, NOTHING, False) == {"held-out loss": best.value}
    again = [train_bc(dataclasses.replace(args, seed=2), NOTHING, True) for args in (given, chosen)]
    for name, value in report["final"].items():
        assert [value["default"][1], value["chosen"][1]] == [found[name] for found in again]
    assert f"--learning-rate {best.params['learning_rate']}" in printed

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("measures.json")}
    (folder / "final" / "default_seed_1" / "measures.json").unlink()
    assert main(words) == 0  # makes what is missing, and nothing else
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("measures.json")}
    assert len(before) == 4
    assert {path.parent.name for path in before if before[path] != after[path]} == {"default_seed_1"}
    assert (report_of(folder), len(study_of(folder).trials)) == (report, 2)
    words[2:2] = ["--seed", "1"]
    assert main(words) == 2
    assert "holds a study with seed=0, not 1" in capsys.readouterr().err
    (tmp_path / "own.yml").write_text("n_episodes: 3")  # what a file says is compared, not its name
    assert main([*words[:2], *words[4 : words.index("--") + 1], "--conf", str(tmp_path / "own.yml")]) == 2
    assert "not ['--env', 'CartPole-v1', '--n-episodes', '3'" in capsys.readouterr().err


def quadratic(calls: list[float], kills: list[int]) -> Callable[..., dict[str, float]]:
    """Training with a known best; it is interrupted in those of its calls that `kills` names."""

    def train(args: Any, report: Any, is_final: bool) -> dict[str, float]:
        calls.append(float(args.learning_rate))
        loss = (np.log10(calls[-1]) + 2.5) ** 2 + float(args.smoothing)
        for epoch in range(3):
            report(epoch, loss / (epoch + 1))
            if len(calls) in kills and epoch == 1:
                raise KeyboardInterrupt
        return {"held-out loss": float("nan") if float(args.smoothing) > 0.38 else loss / 3}

    return train


def test_an_interrupted_study_makes_the_trials_of_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = tmp_path / "space.yml"
    space.write_text("{smoothing: {low: 0.0, high: 0.4}, learning_rate: {low: 1e-4, high: 1e-1, log: true}}")
    made = []
    for kills, seed in (([], "0"), ([2, 5, 8], "0"), ([], "1")):
        calls: list[float] = []
        monkeypatch.setitem(tune.TUNED, "bc", tune.Tuned("env", quadratic(calls, kills), {"held-out loss": False}))
        logs = tmp_path / f"{len(made)}"
        words = ["tune", "bc", "--trials", "12" if seed == "0" else "2", "--final-seeds", "0", "-f", str(logs)]
        words += ["--space", str(space), "--seed", seed]
        assert [main(words) for _ in (*kills, 0)] == [130] * len(kills) + [0]
        trials = study_of(logs / "tune" / "bc_CartPole-v1").trials
        lost = [trial for trial in trials if trial.state.name == "FAIL" and "failed" not in trial.user_attrs]
        again = {trial.user_attrs["again"]: trial.params for trial in trials if "again" in trial.user_attrs}
        assert again == {trial.number: trial.params for trial in lost}
        assert (len(lost), len(calls)) == (len(kills), len(trials))
        made.append([(trial.params, trial.state.name, trial.value) for trial in trials if trial not in lost])
    whole, resumed, other = made
    assert len(whole) == 12
    assert {state for _, state, _ in whole} == {"COMPLETE", "PRUNED", "FAIL"}
    assert repr(whole) == repr(resumed)
    assert whole[0][0] != other[0][0]  # another seed tries other settings


def test_what_a_killed_process_leaves_is_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "space.yml").write_text(SPACE)

    def train(args: Any, report: Any, is_final: bool) -> dict[str, float]:
        return {"return": -((np.log10(float(args.learning_rate)) + 2.5) ** 2)}

    monkeypatch.setitem(tune.TUNED, "bc", tune.Tuned("env", train, {"return": True}))
    words = ["tune", "bc", "--final-seeds", "2", "--space", str(tmp_path / "space.yml"), "-f", str(tmp_path)]
    assert main([*words, "--trials", "2"]) == 0
    folder = tmp_path / "tune" / "bc_CartPole-v1"
    rate, arch = optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True), ["4", "8 8"]
    space = {"learning_rate": rate, "net_arch": optuna.distributions.CategoricalDistribution(arch)}
    lost = study_of(folder).ask(space)
    half = study_of(folder).ask({"learning_rate": rate})  # not all settings are drawn: none of them was tried
    with (folder / "study.log").open("ab") as journal:
        journal.write(b'{"op_code":4,"wor')  # the disk was full
    assert main([*words, "--trials", "4"]) == 0
    trials = study_of(folder).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[4].user_attrs["again"] == lost.number
    assert trials[4].params == lost.params
    assert half.params["learning_rate"] != trials[5].params["learning_rate"]
    report = report_of(folder)
    assert (report["trials"], report["best_trial"]) == (4, max(trials, key=lambda one: one.value or -np.inf).number)


def test_without_optuna_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", "bc", "-f", str(tmp_path / "logs")]) == 2
    assert (
        capsys.readouterr().err == 'rlsmooth tune: error: rlsmooth tune needs Optuna: pip install "rlsmooth[optuna]".\n'
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("shift", "word"), [(-1.0, "better"), (1.0, "worse"), (0.0, "no different")])
def test_the_verdict_is_that_of_a_paired_t_interval(shift: float, word: str) -> None:
    rng = np.random.default_rng(0)
    default = rng.normal(size=10)
    chosen = default + shift + rng.normal(scale=0.3, size=10) - (0.0 if shift else 0.03)
    cells, said = compared(list(default), list(chosen), rises=False)
    low, high = stats.ttest_1samp(chosen - default, 0.0).confidence_interval(0.95)
    assert cells[2] == f"{np.mean(chosen - default):.4g} ({low:.4g} to {high:.4g})"
    opposite = {"better": "worse", "worse": "better", "no different": "no different"}
    assert (said, compared([*default], [*chosen], rises=True)[1]) == (word, opposite[word])


def test_classify_reports_each_epoch_and_ends_where_pruned() -> None:
    args = classify.Args(data="iris", epochs=3, device="cpu", smoothing="0.2")
    seen: list[tuple[int, float]] = []
    found = train_classify(args, lambda *one: seen.append(one), True)
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert found["held-out loss"] == seen[-1][1]
    split = classify.load_data(args)
    classifier = classify.make_classifier(args, split.training, classify.make_smoothing(args, split.training))
    classify.fit(classifier, split, resume=False)
    held_out, test = split.validation, split.test
    assert held_out is not None
    for part, name in ((held_out, "held-out loss"), (test, "test loss")):
        expected = log_loss(part.labels, classifier.predict_proba(part.features), labels=range(3))
        assert found[name] == pytest.approx(expected, abs=1e-5)

    def prune(epoch: int, loss: float) -> None:
        raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        train_classify(args, prune, False)


def test_ppo_reports_the_returns_of_its_evaluations() -> None:
    words = ["n_steps=16", "batch_size=16"]
    base, _ = parse("ppo", ppo.Args, ["-params", *words])
    args = with_settings("ppo", base, {"smoothing": 0.05, "n_epochs": 1, "gamma": 0.9})
    assert (args.smoothing, args.hyperparams) == ("0.05", (*words, "n_epochs=1", "gamma=0.9"))
    args = dataclasses.replace(args, n_timesteps=96, n_envs=2, eval_freq=32, eval_episodes=1, device="cpu")
    seen: list[tuple[int, float]] = []
    found = train_ppo(args, lambda *one: seen.append(one), False)
    assert [place for place, _ in seen] == [1, 2]  # after 32 and 64 steps; the last one is the result
    assert all(value >= 1.0 for value in (*found.values(), *(value for _, value in seen)))


# ---- processes
def start(home: Path, *words: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-P", "-m", "rlsmooth", *words], cwd=home, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 2], ids=["one is killed, the other ends it", "both are killed and resumed"])
def test_two_processes_on_one_study_neither_lose_nor_repeat_a_trial(killed: int, tmp_path: Path) -> None:
    data = ("--n-episodes", "12", "--validation-fraction", "0.25", "--epochs", "12", "--eval-episodes", "2")
    words = ("tune", "bc", "--trials", "12", "--final-seeds", "2", "--", *data, "--device", "cpu")
    folder = tmp_path / "logs" / "tune" / "bc_CartPole-v1"
    both = [start(tmp_path, *words) for _ in range(2)]
    trials: list[Any] = []
    finished: list[Any] = []
    while len(finished) < 4 or sum(not one.state.is_finished() and bool(one.intermediate_values) for one in trials) < 2:
        assert [process.poll() for process in both] == [None, None], both[0].communicate()
        time.sleep(0.01)
        with contextlib.suppress(FileNotFoundError, KeyError):  # not there yet
            trials = study_of(folder).trials
        finished = [trial for trial in trials if trial.state.is_finished()]
    for process in both[:killed]:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = {trial.number: (trial.params, trial.value) for trial in finished}
    both = both[killed:] + [start(tmp_path, *words) for _ in range(2 if killed == 2 else 0)]
    printed = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0] * len(both), printed
    trials = study_of(folder).trials
    lost = [trial for trial in trials if trial.state.name == "FAIL"]
    again = [trial for trial in trials if "again" in trial.user_attrs]
    assert len(trials) - len(lost) == 12
    assert len(lost) >= 1
    tried = [(one.number, one.params) for one in lost if len(one.params) == 5]  # not killed while they were drawn
    assert [(trial.user_attrs["again"], trial.params) for trial in again] == tried
    after = {trial.number: (trial.params, trial.value) for trial in trials}
    assert before.items() <= after.items()
    assert all(trial.state.is_finished() for trial in trials)
    assert len(list(folder.rglob("measures.json"))) == 4
    assert len({said.partition("\n\n")[2] for said, _ in printed}) == 1  # the same report
