"""Classifier files, and checkpoints of killed runs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlsmooth.targets import Smoothing, uniform
from rlsmooth.training import Classifier, SafeFileError, checkpoint_steps, classifier_files


def noise(rows: int = 60, classes: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 4)).astype(np.float32), np.arange(rows) % classes


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def make(model: Any = None, **arguments: Any) -> Classifier:
    chosen = network() if model is None else model
    return Classifier(chosen, **{"seed": 0, "device": "cpu", "max_epochs": 6, "batch_size": 16, **arguments})


def assert_same(one: Classifier, two: Classifier) -> None:
    for first, second in zip(one.module_.state_dict().values(), two.module_.state_dict().values(), strict=True):
        assert torch.equal(first, second)
    assert one.history_ == two.history_
    assert (one.n_iter_, one.best_epoch_) == (two.n_iter_, two.best_epoch_)


# ---- files


@pytest.mark.parametrize("names", [["a", "bb", "c"], [5, -1, 7], [False, True, True]])
def test_a_file_brings_everything_back(names: list[Any], tmp_path: Path) -> None:
    X, y = noise()
    labels = np.array(names)[y]
    classes = len(set(names))
    given = make(lambda features, _classes: nn.Linear(features, classes), class_weight={names[0]: 2.0}, max_epochs=2)
    path = given.fit(X, labels).save(tmp_path / "classifier")
    assert path.name == "classifier.zip"
    loaded = Classifier.load(path, nn.Linear(4, classes), device="cpu")
    assert_same(given, loaded)
    assert loaded.classes_.dtype == given.classes_.dtype
    assert loaded.predict(X).tolist() == given.predict(X).tolist()
    np.testing.assert_array_equal(loaded.predict_proba(X), given.predict_proba(X))
    assert loaded.class_weight == {names[0]: 2.0}
    assert loaded.n_features_in_ == 4
    assert loaded.fit(X, labels).n_iter_ == 2


def test_an_mlp_needs_no_model(tmp_path: Path) -> None:
    X, y = noise()
    smoothing = Smoothing(0.2, reference=torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    path = make("mlp", smoothing=smoothing, warm_start=True).fit(X, y).save(tmp_path / "mlp.zip")
    loaded = Classifier.load(path, device="cpu")
    assert torch.equal(loaded.smoothing.reference, smoothing.reference)
    assert loaded.fit(X, y).history_["loss"][0] < make("mlp", smoothing=smoothing).fit(X, y).history_["loss"][0]


def test_what_a_file_can_not_hold_is_asked_for(tmp_path: Path) -> None:
    X, y = noise()
    model = network()
    given = make(model, smoothing=Smoothing(lambda progress: 0.1 * progress), learning_rate=lambda _: 1e-3).fit(X, y)
    path = given.save(tmp_path / "own.zip")
    with pytest.raises(ValueError, match="give the model"):
        Classifier.load(path)
    with pytest.raises(ValueError, match="model does not fit the file"):
        Classifier.load(path, nn.Linear(4, 3))
    loaded = Classifier.load(path, model, device="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(X), given.predict_proba(X))
    with pytest.raises(TypeError, match="NoneType"):
        loaded.fit(X, y)
    ready = Classifier.load(path, model, device="cpu", smoothing=0.1, learning_rate=1e-3)
    assert_same(ready.fit(X, y), make(model).fit(X, y))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not fitted"):
        make().save(tmp_path / "none.zip")
    (tmp_path / "pickle.zip").write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(SafeFileError):
        Classifier.load(tmp_path / "pickle.zip", "mlp")
    X, y = noise()
    whole = make("mlp").fit(X, y).save(tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SafeFileError):
        Classifier.load(tmp_path / "cut.zip")
    with pytest.raises(SafeFileError, match="does not exist"):
        Classifier.load(tmp_path / "missing.zip")


def test_a_fitted_classifier_can_be_pickled() -> None:
    X, y = noise()
    fitted = make().fit(X, y)
    assert_same(fitted, pickle.loads(pickle.dumps(fitted)))


# ---- checkpoints


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Make the run break off once the checkpoint of that epoch is written."""
    original = classifier_files.save_checkpoint

    def write(folder: Any, step: int, **content: Any) -> Path:
        path = original(folder, step, **content)
        if step >= epochs:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(classifier_files, "save_checkpoint", write)


HARD: dict[str, Any] = {
    "mixup": 0.3,
    "smoothing": "lin_0.2",
    "learning_rate": "lin_1e-2",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "validation_fraction": 0.2,
    "early_stopping_patience": 20,
    "class_weight": "balanced",
}


def test_a_run_that_was_broken_off_ends_as_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = noise()
    weights = np.linspace(0.5, 1.5, 60)
    whole = make(**HARD).fit(X, y, weights)
    broken = {**HARD, "checkpoint_folder": tmp_path / "run", "checkpoint_every": 2}
    for epochs in (2, 4):
        with monkeypatch.context() as patch:
            stop_after(patch, epochs)
            with pytest.raises(KeyboardInterrupt):
                make(**broken).fit(X, y, weights, resume=True)
        assert max(checkpoint_steps(tmp_path / "run")) == epochs
    resumed = make(**broken).fit(X, y, weights, resume=True)
    assert_same(whole, resumed)
    assert_same(whole, make(**broken).fit(X, y, weights, resume=True))  # over already: nothing is trained


def test_checkpoints_do_not_change_a_run(tmp_path: Path) -> None:
    X, y = noise()
    assert_same(make(**HARD).fit(X, y), make(**HARD, checkpoint_folder=tmp_path, checkpoint_every=1).fit(X, y))
    assert checkpoint_steps(tmp_path) == [5, 6]


def test_a_warm_start_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = noise()
    whole = make(warm_start=True).fit(X, y).fit(X, y)
    first = make(warm_start=True).fit(X, y)
    first.set_params(checkpoint_folder=tmp_path, checkpoint_every=3)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            first.fit(X, y)
    resumed = make(checkpoint_folder=tmp_path).fit(X, y, resume=True)
    assert_same(whole, resumed)


def test_a_seed_that_was_drawn_is_that_of_the_run(tmp_path: Path) -> None:
    X, y = noise()
    arguments = {"seed": None, "validation_fraction": 0.2, "checkpoint_folder": tmp_path}
    one = make("mlp", **arguments).fit(X, y)
    assert_same(one, make("mlp", **arguments).fit(X, y, resume=True))


def test_what_does_not_belong_together_is_not_resumed(tmp_path: Path) -> None:
    X, y = noise()
    with pytest.raises(ValueError, match="resume=True needs checkpoint_folder"):
        make().fit(X, y, resume=True)
    make(checkpoint_folder=tmp_path).fit(X, y)
    with pytest.raises(ValueError, match="holds another run's checkpoints"):
        make(checkpoint_folder=tmp_path).fit(X, y)

    def resume(X: Any = X, y: Any = y, model: Any = None, **changed: Any) -> None:
        given = {name: changed.pop(name) for name in ("target", "mask", "sample_weight") if name in changed}
        make(model, checkpoint_folder=tmp_path, **changed).fit(X, y, **given, resume=True)

    for changed in ({"batch_size": 8}, {"max_epochs": 7}, {"smoothing": 0.2}, {"class_weight": "balanced"}):
        (name,) = changed
        with pytest.raises(ValueError, match=f"^{name} is .* was started with"):
            resume(**changed)
    with pytest.raises(ValueError, match="seed is 1"):
        resume(seed=1)
    with pytest.raises(ValueError, match="model does not fit"):
        resume(model=nn.Linear(4, 3))
    moved = X.copy()
    moved[17, 2] += 1
    others = (
        {"X": moved},
        {"y": y[::-1].copy()},
        {"sample_weight": np.ones(60)},
        {"target": uniform(torch.tensor(y), 3, alpha=0.2)},
        {"mask": np.ones((60, 3), dtype=bool)},
    )
    for other in others:
        with pytest.raises(ValueError, match="not what the run"):
            resume(**other)
    resume()


SCRIPT = """
    import os, random, signal, time
    import numpy as np, torch
    from rlsmooth.training import Classifier, checkpoint_steps

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 6)).astype(np.float32), rng.integers(4, size=400)

    def build(features, classes):
        return torch.nn.Sequential(torch.nn.Linear(features, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(),
            torch.nn.Dropout(0.2), torch.nn.Linear(32, classes))

    def train(name):
        classifier = Classifier(build, smoothing="lin_0.2", learning_rate="lin_3e-3", mixup=0.2, batch_size=48,
            max_epochs=20, validation_fraction=0.25, early_stopping_patience=100, seed=0, device="cpu",
            checkpoint_folder=name, checkpoint_every=2)
        print(name, max([0, *checkpoint_steps(name)]), flush=True)
        classifier.fit(X, y, resume=True)
        torch.save(classifier.module_.state_dict(), f"{name}.pt")

    def start(name):  # forked, so that the libraries are imported once; killed all the same
        process = os.fork()
        if process == 0:
            train(name)
            os._exit(0)
        return process

    Classifier(max_epochs=1, device="cpu").fit(X, y)  # what torch imports with its first optimiser
    assert os.waitpid(start("whole"), 0)[1] == 0
    moments = random.Random(0)
    for goal in (0, 6, 12):  # epochs: a fixed time would be too early or too late on another machine
        process = start("killed")
        while max([0, *checkpoint_steps("killed")]) < goal and os.waitpid(process, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.03))
        os.kill(process, signal.SIGKILL)
        print("killed" if os.WIFSIGNALED(os.waitpid(process, 0)[1]) else "too late", flush=True)
    assert os.waitpid(start("killed"), 0)[1] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    """SIGKILL at random moments, saves included, of a run with dropout, mixup, schedules and early stopping."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("killed") == 3, lines
    assert any(line.startswith("killed ") and not line.endswith(" 0") for line in lines), lines  # went on midway
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
