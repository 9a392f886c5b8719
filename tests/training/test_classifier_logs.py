"""What a fit tells: history, TensorBoard files, lines on the terminal, and the end of a fit that diverges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_calibration_error

from rlsmooth.targets import uniform
from rlsmooth.training import Classifier, TrainingDivergedError, checkpoint_steps, epoch_permutation

MEASURED = ["accuracy", "cross_entropy", "ece", "entropy", "nll_hard"]


def noise(rows: int = 60, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)).astype(np.float32), np.arange(rows) % 3


def make(model: Any = "mlp", **arguments: Any) -> Classifier:
    return Classifier(model, **{"seed": 0, "device": "cpu", "max_epochs": 3, "batch_size": 16, **arguments})


def measured(logits: Tensor, labels: Tensor, alpha: float) -> dict[str, float]:
    """The metrics, each as somebody else computes it."""
    return {
        "cross_entropy": float(functional.cross_entropy(logits, labels, label_smoothing=alpha)),
        "nll_hard": float(functional.cross_entropy(logits, labels)),
        "accuracy": float((logits.argmax(1) == labels).float().mean()),
        "ece": float(multiclass_calibration_error(logits.softmax(1), labels, num_classes=3, n_bins=15)),
        "entropy": float(Categorical(logits=logits).entropy().mean()),
    }


def test_the_history_has_what_others_compute() -> None:
    X, y = noise()
    held_out = noise(rows=30, seed=1)
    fitted = make(smoothing=0.2).fit(X, y, validation=held_out)
    expected = measured(fitted.logits(X), torch.tensor(y), 0.2)
    theirs = measured(fitted.logits(held_out[0]), torch.tensor(held_out[1]), 0.2)
    history = fitted.history_
    assert sorted(history) == sorted(
        ["loss", "learning_rate", "smoothing", "val_loss", *MEASURED, *(f"val_{name}" for name in MEASURED)]
    )
    assert all(len(values) == 3 for values in history.values())
    for name in MEASURED:
        assert history[name][-1] == pytest.approx(expected[name], abs=1e-5), name
        assert history[f"val_{name}"][-1] == pytest.approx(theirs[name], abs=1e-5), name
    assert history["val_loss"] == history["val_cross_entropy"]
    assert history["learning_rate"] == pytest.approx([1e-3] * 3)
    assert history["smoothing"] == pytest.approx([0.2] * 3)


def test_the_loss_is_the_mean_over_an_epochs_updates() -> None:
    X, y = noise()
    fitted = make(lambda _features, _classes: nn.Linear(4, 3), learning_rate=1e-12, batch_size=32).fit(X, y)
    each = functional.cross_entropy(fitted.logits(X), torch.tensor(y), label_smoothing=0.1, reduction="none")
    means = [float(each[rows].mean()) for rows in epoch_permutation(0, 2, 60).split(32)]
    assert fitted.history_["loss"][-1] == pytest.approx(sum(means) / 2, abs=1e-6)


def test_only_the_cross_entropy_weighs_rows() -> None:
    X, y = noise()
    weights = np.arange(60) + 1.0
    fitted = make(smoothing=0.2).fit(X, y, weights)
    logits, labels = fitted.logits(X), torch.tensor(y)
    each = functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
    assert fitted.history_["cross_entropy"][-1] == pytest.approx(np.average(each.numpy(), weights=weights), abs=1e-5)
    assert fitted.history_["nll_hard"][-1] == pytest.approx(measured(logits, labels, 0.2)["nll_hard"], abs=1e-5)


def test_metrics_are_over_the_legal_classes() -> None:
    X, y = noise()
    mask = np.ones((60, 3), dtype=bool)
    mask[np.arange(60), (y + 1) % 3] = False
    fitted = make(smoothing=0.2).fit(X, y, mask=mask)
    assert fitted.history_["accuracy"][-1] == pytest.approx(np.mean(fitted.predict(X, mask=mask) == y))
    target = uniform(torch.tensor(y), 3, alpha=0.2, mask=torch.tensor(mask)).dense(torch.float64)
    log_probs = np.where(mask, fitted.predict_log_proba(X, mask=mask), 0.0)
    assert fitted.history_["cross_entropy"][-1] == pytest.approx(-(target.numpy() * log_probs).sum(1).mean(), abs=1e-5)
    assert max(fitted.history_["entropy"]) <= np.log(2) + 1e-6


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_the_history_and_pictures(tmp_path: Path) -> None:
    X, y = noise()
    fitted = make(tensorboard_log=tmp_path, validation_fraction=0.2).fit(X, y)
    make(tensorboard_log=tmp_path).fit(X, y)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Classifier_1", "Classifier_2"]
    found = read(tmp_path / "Classifier_1")
    assert set(found.Tags()["scalars"]) == {f"classifier/{name}" for name in fitted.history_}
    for name, values in fitted.history_.items():
        events = found.Scalars(f"classifier/{name}")
        assert [event.step for event in events] == [3, 6, 9]  # 48 of 60 rows
        assert [event.value for event in events] == pytest.approx(values)
    assert found.Tags()["images"] == ["classifier/target_matrix", "classifier/reliability"]


def test_a_resumed_fit_goes_on_in_its_tensorboard_folder(tmp_path: Path) -> None:
    X, y = noise()
    stops = {"at": 4}

    class Breaking(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                stops["at"] -= 1
                if stops["at"] == 0:
                    raise KeyboardInterrupt
            return super().forward(inputs)

    arguments = {"tensorboard_log": tmp_path / "logs", "checkpoint_folder": tmp_path / "run", "checkpoint_every": 2}
    model = Breaking(4, 3)
    stops["at"] = 14  # in the fourth epoch, after a log line that no checkpoint has
    with pytest.raises(KeyboardInterrupt):
        make(model, max_epochs=5, **arguments).fit(X, y)
    assert checkpoint_steps(tmp_path / "run") == [2]
    fitted = make(model, max_epochs=5, **arguments).fit(X, y, resume=True)
    (folder,) = (tmp_path / "logs").iterdir()
    events = read(folder).Scalars("classifier/loss")
    assert [event.step for event in events] == [4, 8, 12, 16, 20]
    assert [event.value for event in events] == pytest.approx(fitted.history_["loss"])


def test_lines_and_a_bar_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = noise()
    make(verbose=1, progress_bar=True, validation_fraction=0.2).fit(X, y)
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all(name in lines[0] for name in ("loss", "accuracy", "val_loss", "val_accuracy"))
    assert "9/9" in shown.err
    make().fit(X, y)
    assert capsys.readouterr() == ("", "")


class Exploding(nn.Linear):
    """Gives NaN from the given training batch on."""

    def __init__(self, at: int) -> None:
        super().__init__(4, 3)
        self.at = at
        self.seen = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += self.training
        return super().forward(inputs) * (torch.nan if self.seen >= self.at and self.training else 1.0)


def test_a_fit_that_diverges_names_the_batch_and_its_rows(tmp_path: Path) -> None:
    X, y = noise()
    classifier = make(Exploding(at=10), checkpoint_folder=tmp_path, checkpoint_every=1)
    with pytest.raises(TrainingDivergedError, match=r"step 10: the loss is nan.*lower learning_rate") as caught:
        classifier.fit(X, y)
    assert caught.value.step == 10
    assert caught.value.rows.tolist() == epoch_permutation(0, 2, 60)[16:32].tolist()
    assert checkpoint_steps(tmp_path) == [1, 2]
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match="not fitted"):
        classifier.predict(X)


def test_parameters_that_are_spoilt_by_a_finite_loss_are_found() -> None:
    X, y = noise()
    with pytest.raises(TrainingDivergedError, match="step 1: the parameters are not finite"):
        make(learning_rate=1e39, batch_size=60, max_epochs=1).fit(X, y)


def test_the_rows_of_a_held_out_fit_are_those_that_were_given() -> None:
    X, y = noise()
    with pytest.raises(TrainingDivergedError) as caught:
        make(Exploding(at=1), validation_fraction=0.5, batch_size=1000).fit(X, y)
    kept = set(caught.value.rows.tolist())
    assert len(kept) == 30
    assert max(kept) > 30  # rows of X, not of the training half
