"""What pseudo-labels become: targets by hand, the teacher's average against torch's, the balance of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import make_blobs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rlsmooth.targets import Smoothing, Target
from rlsmooth.training import Classifier, SelfTraining
from rlsmooth.training.self_training_labels import average_into, select

F64 = torch.float64


class Scripted:
    """Gives the logits that its features are, times a factor that each fit makes larger, and keeps what it is given."""

    def __init__(
        self,
        *,
        smoothing: float | Smoothing = 0.0,
        warm_start: bool = False,
        checkpoint_folder: str | None = None,
        log: Any = None,
    ) -> None:
        self.smoothing = smoothing
        self.warm_start = warm_start
        self.checkpoint_folder = checkpoint_folder
        self.log = log
        self.module_ = nn.Linear(1, 1, bias=False, dtype=F64)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("smoothing", "warm_start", "checkpoint_folder", "log")}

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, target: Any = None, resume: bool = False) -> Scripted:
        fits = vars(self).setdefault("fits_", [])
        self.classes_, self.n_features_in_ = np.unique(y), X.shape[1]
        fits.append((X, y, sample_weight, target))
        with torch.no_grad():
            self.module_.weight.fill_(float(len(fits)))
        return self

    def logits(self, X: Any) -> Tensor:
        return torch.from_numpy(np.asarray(X)) * self.module_.weight.detach()[0]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.logits(X).softmax(-1).numpy()
        return found


LOGITS = np.random.default_rng(0).normal(size=(60, 4)) * 2
GIVEN = np.where(np.arange(60) < 8, np.arange(60) % 4, -1)


def fitted(scripted: Scripted | None = None, **arguments: Any) -> tuple[SelfTraining, list[Any]]:
    """A run over `LOGITS`, and what each fit was given."""
    base = Scripted() if scripted is None else scripted
    model = SelfTraining(base, **arguments).fit(LOGITS, GIVEN, np.arange(60) + 1.0)  # type: ignore[arg-type]
    return model, model.classifier_.fits_  # type: ignore[attr-defined]


def rounds_of(model: SelfTraining, fits: list[Any], number: int) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """The target of the fit after round `number`, its rows, and in which round each got its label."""
    rows = np.flatnonzero((model.labeled_iter_ >= 0) & (model.labeled_iter_ <= number))
    X, y, weights, target = fits[number]
    np.testing.assert_array_equal(X, LOGITS[rows])
    np.testing.assert_array_equal(y, model.transduction_[rows])
    np.testing.assert_array_equal(weights, rows + 1.0)
    assert isinstance(target, Target)
    return target.dense(F64), rows, model.labeled_iter_[rows]


def probabilities(rows: NDArray[np.int64], rounds: NDArray[np.int64]) -> Tensor:
    """What the teacher gave when it labelled the rows: fit number r multiplies the logits by r."""
    return (torch.from_numpy(LOGITS[rows]) * torch.from_numpy(rounds).unsqueeze(-1)).softmax(-1)


@pytest.mark.parametrize(
    "own", [0.0, 0.2, Smoothing(0.3, torch.tensor([0.1, 0.2, 0.3, 0.4]))], ids=["0", "0.2", "prior"]
)
@pytest.mark.parametrize("pseudo", [0.0, 0.2, 0.1, Smoothing(0.3, "adjacent"), Smoothing(0.2, spread="others")])
def test_given_labels_and_pseudo_labels_have_their_own_smoothing(own: Any, pseudo: Any) -> None:
    model, fits = fitted(Scripted(smoothing=own), smoothing=pseudo, threshold=0.9)
    assert model.n_iter_ >= 2
    for number in range(len(fits)):
        target, rows, rounds = rounds_of(model, fits, number)
        labels = torch.from_numpy(model.transduction_[rows])
        for recipe, places in ((own, rounds == 0), (pseudo, rounds > 0)):
            recipe = recipe if isinstance(recipe, Smoothing) else Smoothing(recipe)
            expected = recipe(labels[places], 4).dense(F64)
            torch.testing.assert_close(target[places], expected, rtol=0, atol=1e-12)


def test_an_adaptive_target_has_the_confidence_of_its_pseudo_label() -> None:
    model, fits = fitted(Scripted(smoothing=0.1), smoothing="confidence_adaptive", threshold=0.8)
    assert model.n_iter_ >= 2
    target, rows, rounds = rounds_of(model, fits, len(fits) - 1)
    made = rounds > 0
    confidence, best = probabilities(rows[made], rounds[made]).max(-1)
    np.testing.assert_array_equal(model.transduction_[rows[made]], best.numpy())
    expected = (
        ((1 - confidence) / 3).unsqueeze(-1).expand(-1, 4).scatter(-1, best.unsqueeze(-1), confidence.unsqueeze(-1))
    )
    torch.testing.assert_close(target[made], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(target[~made].max(-1).values, torch.full((8,), 0.925, dtype=F64))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_soft_labels_are_sharpened_then_smoothed(temperature: float, alpha: float) -> None:
    model, fits = fitted(labels="soft", temperature=temperature, smoothing=alpha, threshold=0.8)
    hard, _ = fitted(threshold=0.8)
    np.testing.assert_array_equal(model.labeled_iter_, hard.labeled_iter_)  # the threshold sees no temperature
    target, rows, rounds = rounds_of(model, fits, len(fits) - 1)
    made = rounds > 0
    power = probabilities(rows[made], rounds[made]) ** (1 / temperature)
    sharpened = power / power.sum(-1, keepdim=True)
    torch.testing.assert_close(target[made], (1 - alpha) * sharpened + alpha / 4, rtol=0, atol=1e-12)
    own = nn.functional.one_hot(torch.from_numpy(GIVEN[:8]), 4).to(F64)
    torch.testing.assert_close(target[~made], own, rtol=0, atol=0)


def test_the_teacher_is_the_average_of_the_students() -> None:
    decay = 0.75
    model, fits = fitted(Scripted(warm_start=True), ema_decay=decay, threshold=0.8)
    assert model.n_iter_ >= 3
    average, teachers = 1.0, [1.0]
    for number in range(2, len(fits) + 1):
        average = decay * average + (1 - decay) * number
        teachers.append(average)
    assert model.teacher_.module_.weight.item() == pytest.approx(average, abs=1e-12)
    assert model.classifier_.module_.weight.item() == len(fits)
    for number in range(1, model.n_iter_ + 1):  # it is the teacher whose confidence counts
        waiting = (model.labeled_iter_ == -1) | (model.labeled_iter_ >= number)
        confidence = (torch.from_numpy(LOGITS) * teachers[number - 1]).softmax(-1).amax(-1).numpy()
        np.testing.assert_array_equal(model.labeled_iter_ == number, waiting & (confidence > 0.8))


def test_the_average_is_torchs(device: torch.device) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

    students = [Tied().to(device) for _ in range(4)]
    for step, network in enumerate(students):
        network.norm(torch.randn(5, 3, device=device))
        network.norm.num_batches_tracked += step
    ours, theirs = Tied().to(device), None
    ours.load_state_dict(students[0].state_dict())
    theirs = AveragedModel(students[0], multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(students[0])
    for network in students[1:]:
        average_into(ours, network, 0.9)
        theirs.update_parameters(network)
    for (name, mean), expected in zip(ours.state_dict().items(), theirs.module.state_dict().values(), strict=True):
        if mean.is_floating_point():
            torch.testing.assert_close(mean, expected, msg=name)
    assert ours.norm.num_batches_tracked == students[-1].norm.num_batches_tracked
    assert ours.second.weight is ours.first.weight


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay="):
        average_into(nn.Linear(1, 1), nn.Linear(1, 1), decay)


@given(
    seed=st.integers(0, 2**16),
    size=st.integers(1, 60),
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
    criterion=st.sampled_from(["threshold", "k_best"]),
    k_best=st.integers(4, 20),
)
def test_a_balanced_round_takes_the_best_of_each_class(
    seed: int, size: int, threshold: float, criterion: str, k_best: int
) -> None:
    generator = np.random.default_rng(seed)
    confidence, places = generator.uniform(0.25, 1, size), generator.integers(4, size=size)
    arguments: dict[str, Any] = {"criterion": criterion, "threshold": threshold, "k_best": k_best}
    chosen = select(confidence, places, 4, class_balance=True, **arguments)
    assert len(set(chosen.tolist())) == len(chosen)
    eligible = confidence > threshold if criterion == "threshold" else np.ones(size, dtype=bool)
    available = np.bincount(places[eligible], minlength=4)
    taken = np.bincount(places[chosen], minlength=4)
    if criterion == "threshold":
        assert set(taken[available > 0].tolist()) <= {available[available > 0].min(initial=size)}
    else:
        np.testing.assert_array_equal(taken, np.minimum(available, k_best // 4))
    left = eligible.copy()
    left[chosen] = False
    for place in range(4):
        worst = confidence[chosen][places[chosen] == place].min(initial=1.0)
        assert (confidence[left & (places == place)] <= worst).all()


def test_balance_reaches_the_rounds() -> None:
    X, labels = make_blobs(  # two of three classes are rare
        n_samples=[120, 30, 30], centers=[[-3, 0], [3, 0], [0, 4]], cluster_std=1.2, random_state=0
    )
    y = np.full(len(X), -1)
    for label in range(3):
        y[np.flatnonzero(labels == label)[:5]] = label
    base = Classifier(nn.Linear, learning_rate=0.1, max_epochs=20, seed=0, device="cpu")
    for arguments in ({"threshold": 0.7}, {"criterion": "k_best", "k_best": 30}):
        plain = SelfTraining(base, max_iter=2, **arguments).fit(X, y)  # type: ignore[arg-type]
        even = SelfTraining(base, max_iter=2, class_balance=True, **arguments).fit(X, y)  # type: ignore[arg-type]
        for number in (1, 2):
            made = np.bincount(even.transduction_[even.labeled_iter_ == number], minlength=3)
            assert made.max() == made.min() > 0
        first = np.bincount(plain.transduction_[plain.labeled_iter_ == 1], minlength=3)
        assert first.max() > first.min()
