"""What the classification trainer refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlsmooth.targets import Smoothing, from_probs, one_hot, uniform
from rlsmooth.training import Classifier
from rlsmooth.training.classifier_labels import hold_out

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12) % 3


def make(model: Any = "mlp", **arguments: Any) -> Classifier:
    return Classifier(model, **{"seed": 0, "device": "cpu", "max_epochs": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"smoothing": 1.5}, ValueError, "alpha=1.5"),
        ({"smoothing": "linear"}, ValueError, "no schedule"),
        ({"smoothing": None}, TypeError, "smoothing must be"),
        ({"smoothing": Smoothing(0.1, reference=torch.eye(4) + 0.1)}, ValueError, "made for 4 classes"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate=0.0"),
        ({"learning_rate": "exp_1"}, ValueError, "no schedule"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"batch_size": 2.5}, TypeError, "batch_size"),
        ({"max_epochs": 0}, ValueError, "max_epochs=0"),
        ({"mixup": -0.1}, ValueError, "mixup=-0.1"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction"),
        ({"validation_fraction": 0.01}, ValueError, "leaves no row"),
        ({"validation_fraction": 0.9}, ValueError, "without a training row"),
        ({"early_stopping_patience": 3}, ValueError, "needs validation data"),
        ({"early_stopping_patience": 0, "validation_fraction": 0.25}, ValueError, "early_stopping_patience=0"),
        ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every"),
        ({"class_weight": "even"}, ValueError, "class_weight='even'"),
        ({"class_weight": 2.0}, TypeError, "class_weight must be"),
        ({"class_weight": {0: 1.0, 9: 2.0}}, ValueError, "class_weight has 9"),
        ({"class_weight": [1.0, 2.0]}, ValueError, r"class_weight has shape \(2,\)"),
        ({"class_weight": [1.0, 2.0, -1.0]}, ValueError, "class_weight of 2"),
        ({"class_weight": [0.0, 0.0, 0.0]}, ValueError, "leave no row"),
        ({"model": "cnn"}, ValueError, "model='cnn'"),
        ({"model": 3}, TypeError, "model must be"),
        ({"model": lambda _features, _classes: None}, TypeError, "gave a NoneType"),
        ({"model": nn.Linear(5, 3)}, ValueError, "model can't read inputs"),
        ({"model": nn.Linear(4, 2)}, ValueError, r"model gives torch.float32 \(2, 2\) for 2 rows"),
        ({"model": nn.ReLU()}, ValueError, r"needs floating-point logits \(2, 3\)"),
        ({"model": nn.Linear(4, 3).requires_grad_(False)}, ValueError, "nothing in it can be trained"),
        ({"device": "abacus"}, RuntimeError, "abacus"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**arguments).fit(X, Y)


def with_entry(array: Any, place: Any, value: Any) -> Any:
    changed = np.array(array)
    changed[place] = value
    return changed


MASK = np.ones((12, 3), dtype=bool)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"X": with_entry(X, (3, 1), np.nan)}, ValueError, r"X\[3\] contains NaN"),
        ({"X": with_entry(X, (5, 0), np.inf)}, ValueError, r"X\[5\] contains NaN, infinity"),
        ({"X": with_entry(X.astype(np.float64), (2, 0), 1e300)}, ValueError, "too large for float32"),
        ({"X": X[:, 0]}, ValueError, "Reshape your data"),
        ({"X": X[:0], "y": Y[:0]}, ValueError, r"0 sample\(s\)"),
        ({"X": X[:, :0]}, ValueError, r"0 feature\(s\)"),
        ({"X": X.astype(complex)}, ValueError, "Complex data"),
        ({"X": torch.tensor(X).to(torch.complex64)}, ValueError, "Complex data"),
        ({"X": [["a", "b"]] * 12}, ValueError, "could not convert"),
        ({"y": None}, ValueError, "requires y"),
        ({"y": Y[:5]}, ValueError, "y has 5 labels, but X 12 rows"),
        ({"y": Y + 0.5}, ValueError, "Unknown label type"),
        ({"y": with_entry(Y.astype(float), 4, np.nan)}, ValueError, r"y\[4\] is NaN"),
        ({"y": np.eye(3)[Y]}, ValueError, r"give soft labels as target="),
        ({"y": np.array([0, "a", None] * 4, dtype=object)}, ValueError, "can't be sorted"),
        ({"sample_weight": np.ones(5)}, ValueError, r"sample_weight has shape \(5,\)"),
        ({"sample_weight": with_entry(np.ones(12), 7, -1)}, ValueError, r"sample_weight\[7\]"),
        ({"sample_weight": np.zeros(12)}, ValueError, "all weights are zero"),
        ({"classes": [0, 1]}, ValueError, r"y\[2\]=.*none of the classes 0, 1"),
        ({"target": torch.ones(12, 3) / 3}, TypeError, "target must be a Target"),
        ({"target": one_hot(torch.tensor(Y), 4)}, ValueError, "4 classes"),
        ({"target": one_hot(torch.tensor(Y[:6]), 3)}, ValueError, r"batch \(6,\)"),
        ({"mask": MASK.astype(int)}, TypeError, "mask must be bool"),
        ({"mask": MASK[:4]}, ValueError, r"mask has shape \(4, 3\)"),
        ({"mask": with_entry(MASK, 6, False)}, ValueError, r"mask\[6\] allows no class"),
        ({"mask": with_entry(MASK, (6, 0), False)}, ValueError, "labels.*illegal under its mask"),
        (
            {"mask": with_entry(MASK, (6, 1), False), "target": uniform(Y, 3)},
            ValueError,
            r"target\[6\] has mass on class 1",
        ),
        ({"validation": X}, TypeError, r"validation must be \(X, y\)"),
        ({"validation": (X[:, :3], Y)}, ValueError, "validation has 3 features"),
        ({"validation": (X, Y + 1)}, ValueError, "validation's y.*none of the classes"),
        ({"validation": (X, Y[:3])}, ValueError, "validation's y has 3 labels"),
    ],
)
def test_bad_data_are_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make().fit(**{"X": X, "y": Y, **given})


def test_what_does_not_go_together_is_named() -> None:
    with pytest.raises(ValueError, match="both given: choose one"):
        make(validation_fraction=0.25).fit(X, Y, validation=(X, Y))
    with pytest.raises(ValueError, match="alpha for each training row"):
        make(smoothing=Smoothing(torch.full((12,), 0.1))).fit(X, Y, validation=(X, Y))
    with pytest.raises(ValueError, match="mixup can't mix"):
        make(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), mixup=0.2).fit(torch.zeros(12, 4, dtype=torch.int64), Y)
    normalised = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="batch_size=11 leaves one row of 12"):
        make(normalised, batch_size=11).fit(X, Y)
    make(normalised, batch_size=6).fit(X, Y)


def test_predictions_want_the_features_of_the_fit() -> None:
    fitted = make().fit(X, Y)
    with pytest.raises(ValueError, match="X has 3 features, but Classifier is expecting 4"):
        fitted.predict(X[:, :3])
    with pytest.raises(ValueError, match=r"X\[0\] contains NaN"):
        fitted.predict_proba(X * np.nan)
    with pytest.raises(ValueError, match="mask has shape"):
        fitted.predict(X, mask=MASK[:4])


def test_a_failed_fit_leaves_the_earlier_one() -> None:
    fitted = make().fit(X, Y)
    before = fitted.predict_proba(X)
    with pytest.raises(ValueError, match="NaN"):
        fitted.fit(X * np.nan, Y)
    np.testing.assert_array_equal(fitted.predict_proba(X), before)


def test_arguments_are_kept_as_they_were_given() -> None:
    given: dict[str, Any] = {"smoothing": 2, "batch_size": "many", "class_weight": {0: 1.0}}
    classifier = Classifier(**given)
    assert all(classifier.get_params()[name] is value for name, value in given.items())


class Tokens(nn.Module):
    """Needs whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        assert tokens.dtype == torch.int64
        logits: Tensor = self.embedding(tokens)
        return logits


def test_whole_numbers_of_a_tensor_are_left_to_the_model() -> None:
    tokens = torch.randint(5, (12, 6))
    assert make(Tokens()).fit(tokens, Y).predict(tokens).shape == (12,)
    assert make().fit(np.arange(48).reshape(12, 4), Y).predict([[1, 2, 3, 4]]).shape == (1,)


def test_one_class_and_one_row_are_enough() -> None:
    single = make(smoothing=0.1).fit(X, np.zeros(12, dtype=int))
    assert single.predict_proba(X).tolist() == [[1.0]] * 12
    assert single.history_["loss"] == [0.0]
    assert make().fit(X[:1], Y[:1]).predict(X).tolist() == [0] * 12


def test_held_out_rows_are_a_stratified_split() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 30, 20]))
    training, validation = hold_out(labels, 0.2, seed=3)
    assert sorted([*training, *validation]) == list(range(100))
    assert np.bincount(labels[validation]).tolist() == [10, 6, 4]
    assert (hold_out(labels, 0.2, seed=3)[1] == validation).all()
    assert (hold_out(labels, 0.2, seed=4)[1] != validation).any()


def test_held_out_rows_take_their_targets_along() -> None:
    """The targets say the opposite of the labels: only rows that kept theirs can be learnt so."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    features = (np.eye(2)[labels] + 0.1 * rng.normal(size=(200, 2))).astype(np.float32)
    opposite = from_probs(torch.tensor(np.eye(2)[1 - labels]))
    fitted = make(validation_fraction=0.3, max_epochs=40, learning_rate=0.03).fit(features, labels, target=opposite)
    assert fitted.history_["cross_entropy"][-1] < 0.01
    assert fitted.history_["val_cross_entropy"][-1] < 0.01
    assert fitted.history_["val_accuracy"][-1] == 0.0
