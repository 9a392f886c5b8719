"""`rlsmooth tune`: trials are neither lost nor made twice, and what is said of the best settings is true."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from rlsmooth.scripts import bc, classify, tune
from rlsmooth.scripts.main import main
from rlsmooth.scripts.tune import compared, train_bc, train_classify, train_ppo, with_settings

optuna = pytest.importorskip("optuna")
stats = pytest.importorskip("scipy.stats")
BC = ("--n-episodes", "6", "--validation-fraction", "0.5", "--epochs", "2", "--eval-episodes", "1", "--device", "cpu")
NOT: Callable[..., None] = lambda *_: None  # noqa: E731


def trials_of(folder: Path) -> list[Any]:
    return list(optuna.load_study(study_name="tune", storage=f"sqlite:///{folder / 'study.db'}").trials)


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def test_the_report_says_what_training_by_hand_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.yml"
    space.write_text('{learning_rate: {low: 1e-4, high: 1e-1, log: true}, net_arch: {choices: ["4", "8 8"]}}')
    words = ["tune", "bc", "--trials", "3", "--final-seeds", "2", "--space", str(space), "-f", str(tmp_path)]
    assert main([*words, "--", *BC]) == 0
    folder = tmp_path / "tune" / "bc_CartPole-v1"
    printed, report, trials = capsys.readouterr().out, report_of(folder), trials_of(folder)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    best = min(trials, key=lambda trial: trial.value)
    assert (report["best_trial"], report["settings"]) == (best.number, best.params)
    arch = tuple(map(int, best.params["net_arch"].split()))
    given = bc.Args(n_episodes=6, validation_fraction=0.5, epochs=2, eval_episodes=1, device="cpu")
    settings = {"learning_rate": str(best.params["learning_rate"]), "net_arch": arch}
    chosen = bc.dataclasses.replace(given, **settings)
    assert train_bc(chosen, NOT, False) == {"held-out loss": best.value}
    again = [train_bc(bc.dataclasses.replace(args, seed=2), NOT, True) for args in (given, chosen)]
    for name, value in report["final"].items():
        assert [value["default"][1], value["chosen"][1]] == [found[name] for found in again]
    assert f"--learning-rate {best.params['learning_rate']}" in printed

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("measures.json")}
    (folder / "final" / "default_seed_1" / "measures.json").unlink()
    assert main([*words, "--", *BC]) == 0  # makes what is missing, and nothing else
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("measures.json")}
    assert len(before) == 4
    assert {path.parent.name for path in before if before[path] != after[path]} == {"default_seed_1"}
    assert (report_of(folder), len(trials_of(folder))) == (report, 3)

    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{folder / 'study.db'}")
    lost = study.ask({"learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)})  # and then killed
    words[words.index("--trials") + 1] = "4"
    assert main([*words, "--", *BC]) == 0
    *_, failed, again = trials_of(folder)
    assert (failed.number, failed.state.name, again.state.name) == (3, "FAIL", "COMPLETE")
    assert again.params["learning_rate"] == lost.params["learning_rate"]
    assert report_of(folder)["trials"] == 4
    assert main([*words, "--seed", "1", "--", *BC]) == 2
    assert "holds a study with seed=0, not 1" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_study_makes_the_trials_of_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    at: list[int] = []

    def train(args: Any, report: Any, is_final: bool) -> dict[str, float]:
        calls.append(args.learning_rate)
        loss = (np.log10(float(args.learning_rate)) + 2.5) ** 2 + float(args.smoothing)
        for epoch in range(3):
            report(epoch, loss / (epoch + 1))
            if len(calls) in at and epoch == 1:
                raise KeyboardInterrupt
        return {"held-out loss": float("nan") if float(args.smoothing) > 0.38 else loss / 3}

    monkeypatch.setitem(tune.TUNED, "bc", tune.Tuned("env", train, {"held-out loss": False}))
    made = []
    for moments in ([], [2, 5, 8]):
        calls.clear()
        at[:] = moments
        logs = tmp_path / f"{len(at)}"
        words = ["tune", "bc", "--trials", "14", "--final-seeds", "0", "-f", str(logs)]
        assert [main(words) for _ in (*at, 0)] == [130] * len(at) + [0]
        trials = trials_of(logs / "tune" / "bc_CartPole-v1")
        lost = [trial for trial in trials if trial.state.name == "FAIL" and "failed" not in trial.user_attrs]
        again = {trial.user_attrs["again"]: trial.params for trial in trials if "again" in trial.user_attrs}
        assert again == {trial.number: trial.params for trial in lost}
        assert (len(lost), len(calls)) == (len(at), 14 + len(at))
        made.append([(trial.params, trial.state.name, trial.value) for trial in trials if trial not in lost])
    assert len(made[0]) == 14
    assert {state for _, state, _ in made[0]} == {"COMPLETE", "PRUNED", "FAIL"}
    assert repr(made[0]) == repr(made[1])


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


def test_classify_reports_each_epoch_and_ends_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
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

    def stop(epoch: int, loss: float) -> None:
        raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        train_classify(args, stop, False)


def test_ppo_reports_the_returns_of_its_evaluations() -> None:
    words = ["n_steps=16", "batch_size=16"]
    base = tune.parse_arguments("ppo", tune.importlib.import_module("rlsmooth.scripts.ppo").Args, ["-params", *words])
    settings = {"smoothing": 0.05, "n_epochs": 1, "gamma": 0.9}
    args = with_settings("ppo", base, settings)
    assert (args.smoothing, args.hyperparams) == ("0.05", (*words, "n_epochs=1", "gamma=0.9"))
    args = tune.dataclasses.replace(args, n_timesteps=96, n_envs=2, eval_freq=32, eval_episodes=1, device="cpu")
    seen: list[tuple[int, float]] = []
    found = train_ppo(args, lambda *one: seen.append(one), False)
    assert [place for place, _ in seen] == [1, 2]  # after 32 and 64 steps; the last one is the result
    assert all(value >= 1.0 for value in (*found.values(), *(value for _, value in seen)))


# ---- processes
def start(home: Path, *words: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-P", "-m", "rlsmooth", *words], cwd=home, **pipes)


def has_study(folder: Path) -> bool:
    """Whether the first process has made the study: it writes the tables, and then the study."""
    try:
        with sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True) as file:
            return len(file.execute("select * from studies").fetchall()) == 1
    except sqlite3.OperationalError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 2], ids=["one is killed, the other ends it", "both are killed and resumed"])
def test_two_processes_on_one_study_neither_lose_nor_repeat_a_trial(killed: int, tmp_path: Path) -> None:
    data = ("--n-episodes", "12", "--validation-fraction", "0.25", "--epochs", "12", "--eval-episodes", "2")
    words = ("tune", "bc", "--trials", "12", "--final-seeds", "3", "--", *data, "--device", "cpu")
    folder = tmp_path / "logs" / "tune" / "bc_CartPole-v1"
    both = [start(tmp_path, *words) for _ in range(2)]
    finished: list[Any] = []
    under_way = 0
    while len(finished) < 4 or under_way < 2:  # both are amid a trial
        assert [process.poll() for process in both] == [None, None], both[0].communicate()
        time.sleep(0.01)
        trials = trials_of(folder) if has_study(folder) else []
        finished = [trial for trial in trials if trial.state.is_finished()]
        under_way = len(trials) - len(finished)
    for process in both[:killed]:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = {trial.number: (trial.params, trial.value) for trial in finished}
    both = both[killed:] + [start(tmp_path, *words) for _ in range(2 if killed == 2 else 0)]
    printed = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0] * len(both), printed
    trials = trials_of(folder)
    lost = [trial for trial in trials if trial.state.name == "FAIL"]
    again = [trial for trial in trials if "again" in trial.user_attrs]
    assert len(trials) - len(lost) == 12
    assert len(lost) >= 1
    assert [(trial.user_attrs["again"], trial.params) for trial in again] == [(one.number, one.params) for one in lost]
    after = {trial.number: (trial.params, trial.value) for trial in trials}
    assert before.items() <= after.items()
    assert all(trial.state.is_finished() for trial in trials)
    assert len(list(folder.rglob("measures.json"))) == 6
    assert not list((folder / "workers").iterdir()) or killed
    assert len({said.partition("\n\n")[2] for said, _ in printed}) == 1  # the same report
