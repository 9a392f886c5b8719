"""Each update of the classification trainer is the one of a loop written by hand; targets, masks, weights and mixup."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Smoothing, Target, Tree, from_probs, mixture, uniform
from rlsmooth.training import Classifier, epoch_permutation
from rlsmooth.training import classifier as classifier_module


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


def assert_close(classifier: Classifier, module: nn.Module, tolerance: float = 1e-6) -> None:
    for found, expected in zip(parameters(classifier), module.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---- each update is the one of a loop written by hand


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("batch_size", [48, 20])
def test_updates_are_those_of_torchs_label_smoothing(alpha: float, batch_size: int) -> None:
    X, y = noise()
    classifier = make(smoothing=alpha, batch_size=batch_size, max_epochs=3).fit(X, y)

    def loss(logits: Tensor, labels: Tensor, _rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=alpha)

    assert_close(classifier, by_hand(network(), X, y, loss, epochs=3, batch_size=batch_size))


def test_the_first_update_equals_torchs_in_float64() -> None:
    X, y = noise()
    X = X.astype(np.float64)
    model = network(dtype=torch.float64)
    classifier = make(model, smoothing=0.1, batch_size=48, max_epochs=1).fit(X, y)

    def loss(logits: Tensor, labels: Tensor, _rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=0.1)

    assert_close(classifier, by_hand(model, X, y, loss, epochs=1, batch_size=48), tolerance=1e-9)


def test_class_weights_without_smoothing_are_torchs() -> None:
    X, y = noise()
    weight = torch.tensor([1.0, 0.5, 3.0, 0.0])
    classifier = make(smoothing=0.0, class_weight=weight).fit(X, y)

    def loss(logits: Tensor, labels: Tensor, _rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, weight=weight)

    assert_close(classifier, by_hand(network(), X, y, loss, epochs=2, batch_size=16))
    named = make(smoothing=0.0, class_weight={1: 0.5, 2: 3.0, 3: 0.0}).fit(X, y)
    assert_same(classifier, named)


def test_class_and_sample_weights_weigh_rows_as_in_scikit_learn() -> None:
    X, y = noise()
    weight, rows_weight = torch.tensor([1.0, 0.5, 3.0, 0.25]), torch.rand(48) + 0.1
    classifier = make(smoothing=0.2, class_weight=weight.tolist()).fit(X, y, rows_weight)

    def loss(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        each = functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
        combined = weight[labels] * rows_weight[rows]
        return (combined * each).sum() / combined.sum()

    assert_close(classifier, by_hand(network(), X, y, loss, epochs=2, batch_size=16))


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    X, _ = noise()
    y = np.repeat([0, 1, 2, 3], [30, 12, 4, 2])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y)
    assert_same(make(class_weight="balanced").fit(X, y), make(class_weight=expected).fit(X, y))


def test_whole_weights_are_repeated_rows() -> None:
    X, y = noise()
    X = X.astype(np.float64)
    repeats = np.random.default_rng(0).integers(0, 4, size=48)
    for class_weight in (None, "balanced"):
        arguments = {"batch_size": 1000, "max_epochs": 5, "class_weight": class_weight}
        weighted = make(network(dtype=torch.float64), **arguments).fit(X, y, repeats)
        repeated = make(network(dtype=torch.float64), **arguments).fit(X.repeat(repeats, 0), y.repeat(repeats))
        assert_close(weighted, repeated.module_, tolerance=1e-9)


def test_a_row_of_weight_zero_plays_no_part() -> None:
    X, y = noise()
    weights = np.ones(48)
    weights[10] = 0.0
    wild = X.copy()
    wild[10] = 1e4
    arguments = {"batch_size": 48}
    assert_same(make(**arguments).fit(X, y, weights), make(**arguments).fit(wild, y, weights))


def test_gradients_are_clipped_and_weights_decay() -> None:
    X, y = noise()
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
    X, y = noise()
    seen: list[float] = []

    def rate(progress: float) -> float:
        seen.append(progress)
        return 1e-3 * progress

    fitted = make(learning_rate=rate, smoothing="lin_0.4").fit(X, y)
    assert seen[-6:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert fitted.history_["learning_rate"] == pytest.approx([4 / 6 * 1e-3, 1 / 6 * 1e-3])
    assert fitted.history_["smoothing"] == pytest.approx([0.2, 0.0])
    assert_same(fitted, make(learning_rate="lin_1e-3", smoothing=Smoothing(lambda progress: 0.4 * progress)).fit(X, y))


class Waits(TorchDispatchMode):
    """Notes what would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "aten.equal", "masked_select", "unique")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, "lin_0.1"])
@pytest.mark.parametrize("with_rest", [False, True])
def test_no_update_waits_for_the_device(
    smoothing: float | str, with_rest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = noise()
    waits = Waits()
    update = Classifier._update

    def watched(*arguments: Any) -> Tensor:
        with waits:
            return update(*arguments)

    monkeypatch.setattr(Classifier, "_update", watched)
    rest = {"sample_weight": np.ones(48), "mask": np.ones((48, 4), dtype=bool)} if with_rest else {}
    make(smoothing=smoothing, max_grad_norm=1.0 if with_rest else None).fit(X, y, **rest)
    assert waits.seen == []
    with waits:
        torch.ones(()).item()
    assert waits.seen == ["aten._local_scalar_dense.default"]


# ---- targets, masks, mixup


def test_a_given_target_takes_the_place_of_smoothing() -> None:
    X, y = noise()
    target = uniform(torch.tensor(y), 4, alpha=0.3)
    assert_same(make(smoothing=0.0).fit(X, y, target=target), make(smoothing=0.3).fit(X, y))
    soft = from_probs(torch.tensor(np.random.default_rng(0).dirichlet(np.ones(4), size=48)))

    def loss(logits: Tensor, _labels: Tensor, rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, soft.dense()[rows])

    assert_close(make().fit(X, y, target=soft), by_hand(network(), X, y, loss, epochs=2, batch_size=16))


def test_one_alpha_a_row_and_hybrids() -> None:
    X, y = noise()
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
    start = module.fit(X, y).module_

    def loss(logits: Tensor, labels: Tensor, _rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=0.1)

    assert_close(classifier, by_hand(start, X, y, loss, epochs=2, batch_size=16), tolerance=1e-5)


def test_masks_keep_softmax_and_smoothing_on_legal_classes() -> None:
    X, y = noise()
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
    with pytest.raises(ValueError, match="same names"):
        Classifier(nn.Linear, smoothing=given).fit(X, np.char.upper(y))


def test_a_warm_start_without_a_seed_holds_out_the_same_rows() -> None:
    X, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    classifier = Classifier(nn.Linear, max_epochs=1, warm_start=True, validation_fraction=0.3, device="cpu").fit(X, y)
    first = classifier._seed
    assert classifier.fit(X, y)._seed == first
    assert Classifier(nn.Linear, max_epochs=1, device="cpu").fit(X, y)._seed != first
