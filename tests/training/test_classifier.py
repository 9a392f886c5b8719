"""The classification trainer: what it learns, from any labels and by any network; seeds, early stopping, devices."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rlsmooth.training import Classifier, epoch_permutation

datasets = pytest.importorskip("sklearn.datasets")


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Training and test halves of scikit-learn's digits, in [0, 1]."""
    X, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = (X[order] / 16).astype(np.float32), y[order]
    return X[:1200], y[:1200], X[1200:], y[1200:]


def noise(rows: int = 48, features: int = 5, classes: int = 4, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows without any pattern, of every class."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, features)).astype(np.float32), np.arange(rows) % classes


def network(features: int = 5, classes: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
    generator_state = torch.get_rng_state()
    torch.manual_seed(7)
    built = nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes)).to(dtype)
    torch.set_rng_state(generator_state)
    return built


def make(model: Any = None, **arguments: Any) -> Classifier:
    chosen = network() if model is None else model
    return Classifier(chosen, **{"seed": 0, "device": "cpu", "max_epochs": 2, "batch_size": 16, **arguments})


def parameters(classifier: Classifier) -> list[Tensor]:
    return list(classifier.module_.state_dict().values())


def assert_same(one: Classifier, two: Classifier) -> None:
    for first, second in zip(parameters(one), parameters(two), strict=True):
        assert torch.equal(first, second)


def assert_close(classifier: Classifier, module: nn.Module, tolerance: float = 1e-6) -> None:
    for found, expected in zip(parameters(classifier), module.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---- what it learns


def test_digits_are_learnt() -> None:
    X, y, X_test, y_test = digits()
    classifier = Classifier(smoothing=0.1, max_epochs=10, learning_rate=5e-3, seed=0, device="cpu").fit(X, y)
    assert classifier.score(X_test, y_test) > 0.95
    assert classifier.history_["cross_entropy"][-1] < classifier.history_["cross_entropy"][0] / 2
    assert classifier.n_iter_ == classifier.best_epoch_ == 10
    assert classifier.n_features_in_ == 64


def test_smoothing_lowers_confidence_to_the_targets_own() -> None:
    X, y = (rows[:500] for rows in digits()[:2])
    confidences = {}
    for alpha in (0.0, 0.3):
        fitted = Classifier(smoothing=alpha, max_epochs=40, learning_rate="lin_1e-2", seed=0, device="cpu").fit(X, y)
        confidences[alpha] = fitted.predict_proba(X).max(1).mean()
    assert confidences[0.0] > 0.98
    assert confidences[0.3] == pytest.approx(1 - 0.3 + 0.3 / 10, abs=0.02)


@pytest.mark.parametrize("names", [["cat", "dog", "emu", "fox"], [-3, 0, 7, 1000], [0.0, 1.0, 2.0, 3.0]])
def test_labels_of_any_kind_come_back(names: list[Any]) -> None:
    X, y = noise()
    labels = np.array(names)[y]
    classifier = make(max_epochs=1).fit(X, labels)
    plain = make(max_epochs=1).fit(X, y)
    assert classifier.classes_.tolist() == names
    assert classifier.predict(X).dtype == labels.dtype
    assert classifier.predict(X).tolist() == np.array(names)[plain.predict(X)].tolist()
    assert_same(classifier, plain)


def test_bools_are_two_classes() -> None:
    X, y = noise(classes=2)
    classifier = make(network(classes=2)).fit(X, y.astype(bool))
    assert classifier.classes_.tolist() == [False, True]
    assert classifier.predict(X).dtype == bool


def test_labels_that_are_lacking_can_be_named() -> None:
    X, y = noise(classes=2)
    classifier = make(smoothing=0.2).fit(X, y, classes=[0, 1, 2, 3])
    assert classifier.predict_proba(X).shape == (48, 4)
    with pytest.raises(ValueError, match="none of the classes 0, 2"):
        make(network(classes=2)).fit(X, y, classes=[0, 2])


class Convolutions(nn.Module):
    """A small net with batch normalisation and dropout on 8 x 8 pixels that come as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(8 * 16, 10),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels.float() / 16)


def test_a_convolutional_net_learns_from_bytes() -> None:
    X, y, X_test, y_test = digits()
    images, test_images = (torch.tensor(rows * 16).to(torch.uint8).reshape(-1, 1, 8, 8) for rows in (X, X_test))
    given = Convolutions()
    before = copy.deepcopy(given.state_dict())
    classifier = Classifier(given, max_epochs=4, learning_rate=1e-2, seed=0, device="cpu").fit(images, y)
    assert classifier.score(test_images, y_test) > 0.93
    assert not classifier.module_.training
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())  # it was copied


def test_a_callable_is_told_the_sizes_and_seeded() -> None:
    X, y = noise()
    sizes = []

    def build(num_features: int, num_classes: int) -> nn.Module:
        sizes.append((num_features, num_classes))
        return nn.Sequential(nn.Flatten(), nn.Linear(num_features, num_classes))

    one, two = (make(build).fit(X.reshape(48, 5, 1), y) for _ in range(2))
    assert sizes == [(5, 4), (5, 4)]
    assert_same(one, two)
    other = make(build, seed=1).fit(X.reshape(48, 5, 1), y)
    assert not torch.equal(parameters(one)[0], parameters(other)[0])


def test_lazy_layers_and_float64_networks_are_served() -> None:
    X, y = noise()
    lazy = make(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4))).fit(X, y)
    assert lazy.module_[0].weight.shape == (8, 5)
    for model in (network(dtype=torch.float64), lambda _features, _classes: network(dtype=torch.float64)):
        wide = make(model).fit(X.astype(np.float64), y)
        assert wide.logits(X).dtype == torch.float64


def test_frozen_parameters_stay() -> None:
    X, y = noise()
    model = network()
    model[0].requires_grad_(False)
    classifier = make(model).fit(X, y)
    assert torch.equal(classifier.module_[0].weight, model[0].weight)
    assert not torch.equal(classifier.module_[2].weight, model[2].weight)


def test_mixup_learns() -> None:
    X, y, X_test, y_test = digits()
    classifier = Classifier(mixup=0.2, max_epochs=8, learning_rate=1e-2, seed=0, device="cpu").fit(X, y)
    assert classifier.score(X_test, y_test) > 0.94


# ---- seeds, early stopping, devices


def test_one_seed_one_result_whatever_the_global_generators() -> None:
    X, y = noise()
    arguments = {"mixup": 0.3, "validation_fraction": 0.25}
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 4))
    one = make(model, **arguments).fit(X, y)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    two = make(model, **arguments).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(one, two)
    assert one.history_ == two.history_
    assert not torch.equal(parameters(one)[0], parameters(make(model, seed=1, **arguments).fit(X, y))[0])


def test_without_a_seed_torchs_generator_decides() -> None:
    X, y = noise()
    torch.manual_seed(5)
    one, two = make("mlp", seed=None).fit(X, y), make("mlp", seed=None).fit(X, y)
    torch.manual_seed(5)
    three = make("mlp", seed=None).fit(X, y)
    assert not torch.equal(parameters(one)[0], parameters(two)[0])
    assert_same(one, three)


def test_a_warm_start_goes_on_in_new_orders() -> None:
    X, y = noise()
    classifier = make(warm_start=True, max_epochs=1, learning_rate=0.01).fit(X, y)
    first = copy.deepcopy(classifier.module_)
    classifier.fit(X, y)
    module = copy.deepcopy(first)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for rows in epoch_permutation(0, 1, 48).split(16):
        optimizer.zero_grad()
        functional.cross_entropy(module(torch.tensor(X)[rows]), torch.tensor(y)[rows], label_smoothing=0.1).backward()
        optimizer.step()
    assert_close(classifier, module)
    with pytest.raises(ValueError, match="same classes"):
        classifier.fit(X, y + 1)
    assert_same(make(max_epochs=1).fit(X, y), make(max_epochs=1).fit(X, y).fit(X, y))  # without it, from the start


def test_early_stopping_goes_back_to_the_best() -> None:
    X, y = noise(rows=200)
    held_out = noise(rows=60, seed=1)
    arguments = {"learning_rate": 0.02, "smoothing": 0.0}
    stopped = make(early_stopping_patience=3, max_epochs=60, **arguments).fit(X, y, validation=held_out)
    losses = stopped.history_["val_loss"]
    best = int(np.argmin(losses)) + 1
    assert stopped.best_epoch_ == best < stopped.n_iter_ == best + 3
    found = functional.cross_entropy(stopped.logits(held_out[0]), torch.tensor(held_out[1]))
    assert float(found) == pytest.approx(min(losses), abs=1e-5)


def test_the_validation_loss_of_a_schedule_is_that_of_hard_labels() -> None:
    X, y = noise()
    fitted = make(smoothing="lin_0.5", validation_fraction=0.25).fit(X, y)
    assert fitted.history_["val_loss"] == fitted.history_["val_nll_hard"] != fitted.history_["val_cross_entropy"]
    constant = make(smoothing=0.5, validation_fraction=0.25).fit(X, y)
    assert constant.history_["val_loss"] == constant.history_["val_cross_entropy"]


def test_every_device_trains(device: torch.device) -> None:
    X, y, X_test, y_test = digits()
    arguments: dict[str, Any] = {"max_epochs": 4, "learning_rate": 1e-2, "seed": 0, "device": device}
    mask = torch.ones(len(y), 10, dtype=torch.bool)
    plain = Classifier(**arguments).fit(torch.tensor(X, device=device), torch.tensor(y, device=device))
    assert plain.score(X_test, y_test) > 0.9
    assert next(plain.module_.parameters()).device.type == device.type
    assert plain.logits(X_test).device.type == "cpu"
    many = Classifier(mixup=0.2, smoothing="lin_0.2", class_weight="balanced", **arguments)
    many.fit(X, y, np.ones(len(y)), mask=mask, validation=(X_test, y_test))
    assert many.score(X_test, y_test) > 0.9
    half = Classifier(amp=True, **arguments).fit(X, y)
    assert half.score(X_test, y_test) > 0.9
    assert half.logits(X_test).dtype == torch.float32
