"""The classification trainer against loops written by hand: what it learns, with which options, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Smoothing, Target, Tree, from_probs, mixture, one_hot, uniform
from rlsmooth.training import Classifier, epoch_permutation
from rlsmooth.training import classifier as classifier_module
from rlsmooth.training.classifier_samples import hold_out
from support import NoWaiting, assert_raises

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


X, y = noise()


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
    labels = np.array(names)[y]
    classifier = make(max_epochs=1).fit(X, labels)
    plain = make(max_epochs=1).fit(X, y)
    assert classifier.classes_.tolist() == names
    assert classifier.predict(X).dtype == labels.dtype
    assert classifier.predict(X).tolist() == np.array(names)[plain.predict(X)].tolist()
    assert_same(classifier, plain)


def test_bools_are_two_classes_and_more_can_be_named() -> None:
    X, y = noise(classes=2)
    classifier = make(network(classes=2)).fit(X, y.astype(bool))
    assert classifier.classes_.tolist() == [False, True]
    assert classifier.predict(X).dtype == bool
    # Labels that are lacking can be named.
    classifier = make(smoothing=0.2).fit(X, y, classes=[0, 1, 2, 3])
    assert classifier.predict_proba(X).shape == (48, 4)
    assert_raises(ValueError, "none of the classes 0, 2", make(network(classes=2)).fit, X, y, classes=[0, 2])


class Convolutions(nn.Module):
    """A small net with batch normalisation and dropout on 8 x 8 pixels that come as bytes."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        self.layers = nn.Sequential(*first, nn.Flatten(), nn.Dropout(0.1), nn.Linear(8 * 16, 10))

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
    lazy = make(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4))).fit(X, y)
    assert lazy.module_[0].weight.shape == (8, 5)
    for model in (network(dtype=torch.float64), lambda _features, _classes: network(dtype=torch.float64)):
        wide = make(model).fit(X.astype(np.float64), y)
        assert wide.logits(X).dtype == torch.float64


def test_frozen_parameters_stay() -> None:
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
    torch.manual_seed(5)
    one, two = make("mlp", seed=None).fit(X, y), make("mlp", seed=None).fit(X, y)
    torch.manual_seed(5)
    three = make("mlp", seed=None).fit(X, y)
    assert not torch.equal(parameters(one)[0], parameters(two)[0])
    assert_same(one, three)


def test_a_warm_start_goes_on_in_new_orders() -> None:
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
    assert_raises(ValueError, "same classes", classifier.fit, X, y + 1)
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


# ---- updates as in a loop written by hand; targets, masks, weights and mixup
def by_hand(
    model: nn.Module, X: Any, y: Any, loss: Any, *, epochs: int, batch_size: int, learning_rate: float = 1e-3
) -> nn.Module:
    """The loop that anybody would write, with torch's own Adam; `loss(logits, labels, rows)`."""
    module = copy.deepcopy(model)
    inputs, labels = torch.as_tensor(X), torch.as_tensor(y)
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        order = epoch_permutation(0, epoch, len(inputs))
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            loss(module(inputs[rows]), labels[rows], rows).backward()
            optimizer.step()
    return module


def torchs(**options: Any) -> Any:
    """torch's own cross-entropy, as `by_hand` takes it."""
    return lambda logits, labels, _rows: functional.cross_entropy(logits, labels, **options)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("batch_size", [48, 20])
def test_updates_are_those_of_torchs_label_smoothing(alpha: float, batch_size: int) -> None:
    expected = by_hand(network(), X, y, torchs(label_smoothing=alpha), epochs=3, batch_size=batch_size)
    assert_close(make(smoothing=alpha, batch_size=batch_size, max_epochs=3).fit(X, y), expected)


def test_the_first_update_equals_torchs_in_float64() -> None:
    model, wide = network(dtype=torch.float64), X.astype(np.float64)
    expected = by_hand(model, wide, y, torchs(label_smoothing=0.1), epochs=1, batch_size=48)
    assert_close(make(model, smoothing=0.1, batch_size=48, max_epochs=1).fit(wide, y), expected, tolerance=1e-9)


def test_class_weights_without_smoothing_are_torchs() -> None:
    weight = torch.tensor([1.0, 0.5, 3.0, 0.0])
    classifier = make(smoothing=0.0, class_weight=weight, batch_size=48).fit(X, y)
    assert_close(classifier, by_hand(network(), X, y, torchs(weight=weight), epochs=2, batch_size=48))
    named = make(smoothing=0.0, class_weight={1: 0.5, 2: 3.0, 3: 0.0}, batch_size=48).fit(X, y)
    assert_same(classifier, named)


def test_class_and_sample_weights_weigh_rows_as_in_scikit_learn() -> None:
    weight, rows_weight = torch.tensor([1.0, 0.5, 3.0, 0.25]), torch.rand(48) + 0.1
    classifier = make(smoothing=0.2, class_weight=weight.tolist()).fit(X, y, rows_weight)

    def loss(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        each = functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
        combined = weight[labels] * rows_weight[rows]
        return (combined * each).mean() / (weight[torch.tensor(y)] * rows_weight).mean()

    assert_close(classifier, by_hand(network(), X, y, loss, epochs=2, batch_size=16))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("batch_size", [1, 6, 48])
@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_weights_count_the_same_at_every_batch_size(mixup: float, batch_size: int, held_out: float) -> None:
    """With parameters that stay, the losses of an epoch are the weighted mean over the training samples."""
    model = network()
    nn.init.zeros_(model[2].weight)  # the same logits for every sample: then losses are linear in the targets
    rows_weight = np.random.default_rng(1).exponential(size=48) ** 2
    arguments = {"class_weight": {0: 5.0, 3: 0.1}, "learning_rate": 1e-30, "max_epochs": 1, "smoothing": 0.3}
    fitted = make(model, batch_size=batch_size, mixup=mixup, validation_fraction=held_out, **arguments)
    fitted.fit(X, y, rows_weight)
    trained, taken = (np.arange(48), None) if not held_out else hold_out(y, held_out, 0)
    weights = rows_weight * np.array([5.0, 1.0, 1.0, 0.1])[y]
    each = functional.cross_entropy(model(torch.tensor(X)), torch.tensor(y), label_smoothing=0.3, reduction="none")
    losses = each.detach().double().numpy()
    found = fitted.history_
    assert found["loss"] == [pytest.approx(np.average(losses[trained], weights=weights[trained]), rel=1e-5)]
    if taken is not None:
        assert found["val_loss"] == [pytest.approx(np.average(losses[taken], weights=weights[taken]), rel=1e-5)]


@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_weights_that_are_all_alike_change_no_bit(mixup: float) -> None:
    plain, ones, threes = (make(mixup=mixup).fit(X, y, weights) for weights in (None, np.ones(48), np.full(48, 0.3)))
    assert_same(plain, ones)
    assert_same(plain, threes)


def test_balanced_classes_are_as_probable_as_each_other() -> None:
    """Without features a class is as probable as its weight says, however seldom it is in a minibatch."""
    y = np.arange(640) % 20 == 0
    given: dict[str, Any] = {"smoothing": 0.0, "class_weight": "balanced", "learning_rate": "lin_0.02"}
    for batch_size, epochs in ((2, 2), (32, 25)):
        classifier = make(lambda _, classes: nn.Linear(1, classes), batch_size=batch_size, max_epochs=epochs, **given)
        rare = classifier.fit(np.zeros((640, 1), dtype=np.float32), y).predict_proba([[0.0]])[0, 1]
        assert rare == pytest.approx(0.5, abs=0.03), batch_size


def test_weights_that_leave_nothing_to_measure_are_refused() -> None:
    with pytest.raises(ValueError, match="all samples of validation weight 0"):
        one_epoch(class_weight={0: 0.0}).fit(X12, Y12, validation=(X12[Y12 == 0], Y12[Y12 == 0]))
    with pytest.raises(ValueError, match="all held-out samples weight 0"):
        one_epoch(validation_fraction=0.25).fit(X12, Y12, with_entry(np.zeros(12), hold_out(Y12, 0.25, 0)[0], 1.0))


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    X, _ = noise()
    y = np.repeat([0, 1, 2, 3], [30, 12, 4, 2])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y)
    assert_same(make(class_weight="balanced").fit(X, y), make(class_weight=expected).fit(X, y))


def test_whole_weights_are_repeated_rows() -> None:
    wide = X.astype(np.float64)
    repeats = np.random.default_rng(0).integers(0, 4, size=48)
    for class_weight in (None, "balanced"):
        arguments = {"batch_size": 1000, "max_epochs": 5, "class_weight": class_weight}
        weighted = make(network(dtype=torch.float64), **arguments).fit(wide, y, repeats)
        repeated = make(network(dtype=torch.float64), **arguments).fit(wide.repeat(repeats, 0), y.repeat(repeats))
        assert_close(weighted, repeated.module_, tolerance=1e-9)


def test_a_row_of_weight_zero_plays_no_part() -> None:
    weights, wild = np.ones(48), X.copy()
    weights[10], wild[10] = 0.0, 1e4
    assert_same(make(batch_size=48).fit(X, y, weights), make(batch_size=48).fit(wild, y, weights))


def test_gradients_are_clipped_and_weights_decay() -> None:
    module = network()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.3)
    for rows in epoch_permutation(0, 0, 48).split(16):
        optimizer.zero_grad()
        functional.cross_entropy(module(torch.tensor(X[rows])), torch.tensor(y)[rows], label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.05)
        optimizer.step()
    fitted = make(max_epochs=1, learning_rate=0.01, weight_decay=0.3, max_grad_norm=0.05).fit(X, y)
    assert_close(fitted, module)


def test_schedules_follow_the_progress_of_the_run() -> None:
    seen: list[float] = []

    def rate(progress: float) -> float:
        seen.append(progress)
        return 1e-3 * progress

    fitted = make(learning_rate=rate, smoothing="lin_0.4").fit(X, y)
    assert seen[-6:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert fitted.history_["learning_rate"] == pytest.approx([4 / 6 * 1e-3, 1 / 6 * 1e-3])
    assert fitted.history_["smoothing"] == pytest.approx([0.2, 0.0])
    assert_same(fitted, make(learning_rate="lin_1e-3", smoothing=Smoothing(lambda progress: 0.4 * progress)).fit(X, y))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, "lin_0.1"])
@pytest.mark.parametrize("with_rest", [False, True])
def test_no_update_waits_for_the_device(smoothing: float | str, with_rest: bool, monkeypatch: Any) -> None:
    X, y = noise()
    guard = NoWaiting()
    update = Classifier._update

    def watched(*arguments: Any) -> Tensor:
        with guard:
            return update(*arguments)

    monkeypatch.setattr(Classifier, "_update", watched)
    rest = {"sample_weight": np.ones(48), "mask": np.ones((48, 4), dtype=bool)} if with_rest else {}
    make(smoothing=smoothing, max_grad_norm=1.0 if with_rest else None).fit(X, y, **rest)
    assert guard.seen  # updates were made under its eyes


# ---- targets, masks, mixup
def test_a_given_target_takes_the_place_of_smoothing() -> None:
    target = uniform(torch.tensor(y), 4, alpha=0.3)
    assert_same(make(smoothing=0.0).fit(X, y, target=target), make(smoothing=0.3).fit(X, y))
    soft = from_probs(torch.tensor(np.random.default_rng(0).dirichlet(np.ones(4), size=48)))

    def loss(logits: Tensor, _labels: Tensor, rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, soft.dense()[rows])

    assert_close(make().fit(X, y, target=soft), by_hand(network(), X, y, loss, epochs=2, batch_size=16))


def test_one_alpha_a_row_and_hybrids() -> None:
    alphas = torch.linspace(0, 0.5, 48)
    target = uniform(torch.tensor(y), 4, alpha=alphas)
    assert_same(make(smoothing=Smoothing(alphas)).fit(X, y), make().fit(X, y, target=target))
    parents = torch.tensor([[0, 3]]).expand(48, 2)
    hybrid = make(max_epochs=100, learning_rate=0.05).fit(
        X, y, target=mixture(parents, torch.tensor([[1 / 3, 2 / 3]]).expand(48, 2), 4, alpha=0.0)
    )
    np.testing.assert_allclose(hybrid.predict_proba(X).mean(0), [1 / 3, 0, 0, 2 / 3], atol=0.02)


def test_many_classes_need_no_dense_target() -> None:
    X, y = noise(rows=96, classes=48)
    classifier = make(lambda features, classes: nn.Linear(features, classes)).fit(X, y)
    module = make(lambda features, classes: nn.Linear(features, classes), max_epochs=1)
    module.learning_rate = lambda _: 1e-12
    expected = by_hand(module.fit(X, y).module_, X, y, torchs(label_smoothing=0.1), epochs=2, batch_size=16)
    assert_close(classifier, expected, tolerance=1e-5)


def test_masks_keep_softmax_and_smoothing_on_legal_classes() -> None:
    mask = torch.rand(48, 4) < 0.5
    mask[torch.arange(48), torch.tensor(y)] = True
    target = uniform(torch.tensor(y), 4, alpha=0.2, mask=mask)

    def loss(logits: Tensor, _labels: Tensor, rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits.masked_fill(~mask[rows], -1e9), target.dense()[rows])

    classifier = make(smoothing=0.2).fit(X, y, mask=mask)
    assert_close(classifier, by_hand(network(), X, y, loss, epochs=2, batch_size=16))
    probabilities = classifier.predict_proba(X, mask=mask)
    assert (probabilities[~mask.numpy()] == 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    assert mask[torch.arange(48), torch.tensor(classifier.predict(X, mask=mask.numpy()))].all()


def test_mixup_mixes_rows_and_targets_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row r is the r-th unit vector, so that a mixed row shows the share of each row in it."""
    labels, weights = torch.arange(48) % 4, torch.arange(48, dtype=torch.float64) + 1
    mask = torch.rand(48, 4) < 0.5
    mask[torch.arange(48), labels] = True
    seen: list[tuple[Tensor, Target, dict[str, Any]]] = []
    inputs: list[Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(48, 4)

        def forward(self, mixed: Tensor) -> Tensor:
            if self.training:
                inputs.append(mixed.to(torch.float64))
            return self.net(mixed)

    def watch(logits: Tensor, target: Target, **others: Any) -> Tensor:
        seen.append((logits, target, others))
        return cross_entropy(logits, target, **others)

    monkeypatch.setattr(classifier_module, "cross_entropy", watch)
    arguments = {"mixup": 0.4, "smoothing": 0.2, "batch_size": 20}
    make(Watching(), **arguments).fit(torch.eye(48), labels, weights, mask=mask)
    dense = weights.unsqueeze(1) * uniform(labels, 4, alpha=0.2, mask=mask).dense(torch.float64)
    assert len(inputs) == len(seen) == 6
    for shares, (_, target, others) in zip(inputs, seen, strict=True):
        torch.testing.assert_close(shares.sum(1), torch.ones(len(shares), dtype=torch.float64), atol=1e-6, rtol=0)
        torch.testing.assert_close(target.dense(torch.float64), shares @ dense, atol=1e-5, rtol=1e-5)
        assert torch.equal(others["mask"], shares @ mask.double() > 0)
    assert any(((shares > 0).sum(1) == 2).any() for shares in inputs)


def test_a_trees_leaves_are_matched_with_text_labels_by_name() -> None:
    tree = Tree.from_nested({"dogs": ["wolf", "fox"], "cats": ["lion", "cat"]})
    names = ["wolf", "fox", "lion", "cat"]
    X, y = np.eye(4)[np.arange(80) % 4], np.array(names)[np.arange(80) % 4]
    given = Smoothing(0.4, tree)
    classifier = Classifier(
        nn.Linear, smoothing=given, learning_rate=0.05, max_epochs=150, batch_size=80, seed=0, device="cpu"
    ).fit(X, y)
    probabilities = dict(zip(classifier.classes_.tolist(), classifier.predict_proba(np.eye(4)[:1])[0], strict=True))
    expected = dict(zip(names, given(torch.tensor([0]), 4).dense()[0].tolist(), strict=True))
    assert probabilities["fox"] > 3 * probabilities["lion"]
    for name, value in expected.items():
        assert probabilities[name] == pytest.approx(value, abs=0.05)
    assert_raises(
        ValueError, "leaves, once each: it lacks", Classifier(nn.Linear, smoothing=given).fit, X, np.char.upper(y)
    )


def test_a_warm_start_without_a_seed_holds_out_the_same_rows() -> None:
    X, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    classifier = Classifier(nn.Linear, max_epochs=1, warm_start=True, validation_fraction=0.3, device="cpu").fit(X, y)
    first = classifier._seed
    assert classifier.fit(X, y)._seed == first
    assert Classifier(nn.Linear, max_epochs=1, device="cpu").fit(X, y)._seed != first


# ---- what it refuses, and how it says so
X12 = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y12 = np.arange(12) % 3


def one_epoch(model: Any = "mlp", **arguments: Any) -> Classifier:
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
        ({"validation_fraction": 0.01}, ValueError, "leaves none on one side"),
        ({"validation_fraction": 0.9}, ValueError, "without a training sample"),
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
        ({"class_weight": [0.0, 0.0, 0.0]}, ValueError, "leave no sample"),
        ({"model": "cnn"}, ValueError, "model='cnn'"),
        ({"model": 3}, TypeError, "model must be"),
        ({"model": lambda _features, _classes: None}, TypeError, "gave a NoneType"),
        ({"model": nn.Linear(5, 3)}, ValueError, "model can't read inputs"),
        ({"model": nn.Linear(4, 2)}, ValueError, r"model gives torch.float32 \(2, 2\) for 2 samples"),
        ({"model": nn.ReLU()}, ValueError, r"needs floating-point logits \(2, 3\)"),
        ({"model": nn.Linear(4, 3).requires_grad_(False)}, ValueError, "nothing in it can be trained"),
        ({"device": "abacus"}, RuntimeError, "abacus"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    assert_raises(error, message, one_epoch(**arguments).fit, X12, Y12)


def with_entry(array: Any, place: Any, value: Any) -> Any:
    changed = np.array(array)
    changed[place] = value
    return changed


MASK = np.ones((12, 3), dtype=bool)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"X": with_entry(X12, (3, 1), np.nan)}, ValueError, r"X\[3\] contains NaN"),
        ({"X": with_entry(X12, (5, 0), np.inf)}, ValueError, r"X\[5\] contains NaN, infinity"),
        ({"X": with_entry(X12.astype(np.float64), (2, 0), 1e300)}, ValueError, "too large for float32"),
        ({"X": X12[:, 0]}, ValueError, "Reshape your data"),
        ({"X": X12[:0], "y": Y12[:0]}, ValueError, r"0 sample\(s\)"),
        ({"X": X12[:, :0]}, ValueError, r"0 feature\(s\)"),
        ({"X": X12.astype(complex)}, ValueError, "Complex data"),
        ({"X": torch.tensor(X12).to(torch.complex64)}, ValueError, "Complex data"),
        ({"X": [["a", "b"]] * 12}, ValueError, "could not convert"),
        ({"y": None}, ValueError, "requires y"),
        ({"y": Y12[:5]}, ValueError, "y has 5 labels, but X has 12 samples"),
        ({"y": Y12 + 0.5}, ValueError, "Unknown label type"),
        ({"y": with_entry(Y12.astype(float), 4, np.nan)}, ValueError, r"y\[4\] is NaN"),
        ({"y": np.eye(3)[Y12]}, ValueError, r"give soft labels as target="),
        ({"y": np.array([0, "a", b"c"] * 4, dtype=object)}, ValueError, "can't be sorted"),
        ({"sample_weight": np.ones(5)}, ValueError, r"sample_weight has shape \(5,\)"),
        ({"sample_weight": with_entry(np.ones(12), 7, -1)}, ValueError, r"sample_weight\[7\]"),
        ({"sample_weight": np.zeros(12)}, ValueError, "all weights are zero"),
        ({"classes": [0, 1]}, ValueError, r"y\[2\]=.*none of the classes 0, 1"),
        ({"target": torch.ones(12, 3) / 3}, TypeError, "target must be a Target"),
        ({"target": one_hot(torch.tensor(Y12), 4)}, ValueError, "4 classes"),
        ({"target": one_hot(torch.tensor(Y12[:6]), 3)}, ValueError, r"batch \(6,\)"),
        ({"mask": MASK.astype(int)}, TypeError, "mask must be bool"),
        ({"mask": MASK[:4]}, ValueError, r"mask has shape \(4, 3\)"),
        ({"mask": with_entry(MASK, 6, False)}, ValueError, r"mask\[6\] allows no class"),
        ({"mask": with_entry(MASK, (6, 0), False)}, ValueError, "labels.*illegal under its mask"),
        (
            {"mask": with_entry(MASK, (6, 1), False), "target": uniform(Y12, 3)},
            ValueError,
            r"target\[6\] has mass on class 1",
        ),
        ({"validation": X12}, TypeError, r"validation must be \(X, y\)"),
        ({"validation": (X12[:, :3], Y12)}, ValueError, "validation has 3 features"),
        ({"validation": (X12, Y12 + 1)}, ValueError, "validation's y.*none of the classes"),
        ({"validation": (X12, Y12[:3])}, ValueError, "validation's y has 3 labels"),
    ],
)
def test_bad_data_are_named(given: dict[str, Any], error: type[Exception], message: str) -> None:
    assert_raises(error, message, one_epoch().fit, **{"X": X12, "y": Y12, **given})


def test_what_does_not_go_together_is_named() -> None:
    with pytest.raises(ValueError, match="both given: choose one"):
        one_epoch(validation_fraction=0.25).fit(X12, Y12, validation=(X12, Y12))
    with pytest.raises(ValueError, match="alpha for each training sample"):
        one_epoch(smoothing=Smoothing(torch.full((12,), 0.1))).fit(X12, Y12, validation=(X12, Y12))
    with pytest.raises(ValueError, match="mixup can't mix"):
        one_epoch(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), mixup=0.2).fit(torch.zeros(12, 4).long(), Y12)
    normalised = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="batch_size=1 makes minibatches of one sample of 12"):
        one_epoch(normalised, batch_size=1).fit(X12, Y12)
    one_epoch(normalised, batch_size=6).fit(X12, Y12)


def test_predictions_want_the_features_of_the_fit() -> None:
    fitted = one_epoch().fit(X12, Y12)
    assert_raises(ValueError, "X has 3 features, but Classifier is expecting 4", fitted.predict, X12[:, :3])
    assert_raises(ValueError, r"X\[0\] contains NaN", fitted.predict_proba, X12 * np.nan)
    assert_raises(ValueError, "mask has shape", fitted.predict, X12, mask=MASK[:4])


def test_a_failed_fit_leaves_the_earlier_one() -> None:
    fitted = one_epoch().fit(X12, Y12)
    before = fitted.predict_proba(X12)
    assert_raises(ValueError, "NaN", fitted.fit, X12 * np.nan, Y12)
    np.testing.assert_array_equal(fitted.predict_proba(X12), before)


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
    assert one_epoch(Tokens()).fit(tokens, Y12).predict(tokens).shape == (12,)
    assert one_epoch().fit(np.arange(48).reshape(12, 4), Y12).predict([[1, 2, 3, 4]]).shape == (1,)


def test_one_class_and_one_row_are_enough() -> None:
    single = one_epoch(smoothing=0.1).fit(X12, np.zeros(12, dtype=int))
    assert single.predict_proba(X12).tolist() == [[1.0]] * 12
    assert single.history_["loss"] == [0.0]
    assert one_epoch().fit(X12[:1], Y12[:1]).predict(X12).tolist() == [0] * 12


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
    fitted = one_epoch(validation_fraction=0.3, max_epochs=40, learning_rate=0.03).fit(
        features, labels, target=opposite
    )
    assert fitted.history_["cross_entropy"][-1] < 0.01
    assert fitted.history_["val_cross_entropy"][-1] < 0.01
    assert fitted.history_["val_accuracy"][-1] == 0.0
