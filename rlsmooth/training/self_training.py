"""`SelfTraining`: a classifier labels the samples that have no label, and learns from its own labels, smoothed."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any, Literal, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.checks import check_choice, check_in_range, check_positive_int, check_writable_folder
from rlsmooth.targets import Smoothing, teacher
from rlsmooth.training.classifier import Classifier
from rlsmooth.training.classifier_model import ScikitLearnEstimator, average_into, not_fitted_error
from rlsmooth.training.classifier_samples import in_class_order, keep_feature_names
from rlsmooth.training.run import check_folder_given, safe_points
from rlsmooth.training.self_training_labels import (
    PseudoSmoothing,
    Recipes,
    SelfTrainingSamples,
    as_given,
    as_pseudo,
    pseudo_target,
    select,
    take,
)
from rlsmooth.training.self_training_report import (
    GradientBins,
    RoundReport,
    confirmation_bias,
    gradient_bins,
    share_of_right,
)


@final
class SelfTraining(ScikitLearnEstimator):
    """Semi-supervised classification by pseudo-labels, with scikit-learn's names and rules for which samples get one.

    In each round the classifier (the student) is trained on all samples that have a label. Then the teacher, which is
    the student or the moving average of all students so far, predicts the samples that have none; where it is confident
    enough its prediction becomes their label for good (Yarowsky 1995; Lee 2013). Pseudo-labels become targets by a
    smoothing of their own; given labels by the classifier's.

    With hard labels, no smoothing, no average and no balance the samples labelled, round by round, are those of
    scikit-learn's `SelfTrainingClassifier`. A last round that labels nothing leaves the classifier as it is, trained on
    these very samples, where scikit-learn trains it again.

    Args:
        classifier: cloned, so that it stays as it is. Its `smoothing` may be no schedule. With a `checkpoint_folder`
            each round has a folder of its own within it.
        threshold: in [0, 1): a prediction of a higher probability becomes a label.
        criterion: `"threshold"`, or `"k_best"`: the `k_best` most probable predictions of a round.
        k_best: how many predictions a round takes by `"k_best"`.
        max_iter: rounds at most; None: until nothing is left to label, or nothing gets a label.
        smoothing: of pseudo-labels: alpha, or a `Smoothing`; or `"confidence_adaptive"`: each has the alpha with which
            its target's probability is the confidence it was made with.
        labels: `"hard"`: one-hot; `"soft"`: the teacher's probabilities, sharpened.
        temperature: above 0, of soft labels: `softmax(logits / temperature)`, sharper below 1. The threshold looks at
            the probabilities as they are (Xie et al. 2020).
        ema_decay: the teacher's parameters are a moving average over rounds, `decay · teacher + (1 - decay) · student`
            after each time that the student was trained, from the first student on. It needs a classifier with
            `warm_start=True`: networks that were trained apart can't be averaged. None: the student is the teacher.
        class_balance: in each round take from each class as many as from the others: with `"threshold"` as many as the
            rarest of the classes predicted above it has, with `"k_best"` at most `k_best // K`; the most confident.
        verbose: 1 prints a line a round.

    Attributes:
        classifier_: the last student; `predict` and the like ask it.
        teacher_: what made the labels: `classifier_` itself, or the moving average.
        transduction_: `[N]`, `y` with pseudo-labels filled in; -1 where there is none.
        labeled_iter_: int64 `[N]`, the round in which each sample got its label: 0 given, -1 never.
        termination_condition_: `"all_labeled"`, `"max_iter"` or `"no_change"`.
        n_iter_: rounds.
        rounds_: a `RoundReport` a round.
        classes_: `[K]`, the labels that are given in `y`, sorted.
        n_features_in_: second axis of `X`; `feature_names_in_` exists if `X` was a data frame.

    Examples:
        >>> X = torch.linspace(-1, 1, 20).unsqueeze(-1)
        >>> y = [0] + [-1] * 18 + [1]
        >>> student = Classifier(torch.nn.Linear, learning_rate=0.1, max_epochs=50, seed=0, device="cpu")
        >>> model = SelfTraining(student, criterion="k_best", k_best=9, smoothing=0.1).fit(X, y)
        >>> model.n_iter_, model.termination_condition_, model.predict([[-0.4], [0.4]]).tolist()
        (2, 'all_labeled', [0, 1])
    """

    classifier_: Classifier
    teacher_: Classifier
    transduction_: NDArray[Any]
    labeled_iter_: NDArray[np.int64]
    termination_condition_: str
    n_iter_: int
    rounds_: list[RoundReport]
    classes_: NDArray[Any]
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]

    def __init__(
        self,
        classifier: Classifier,
        *,
        threshold: float = 0.75,
        criterion: Literal["threshold", "k_best"] = "threshold",
        k_best: int = 10,
        max_iter: int | None = 10,
        smoothing: float | Smoothing | Literal["confidence_adaptive"] = 0.0,
        labels: Literal["hard", "soft"] = "hard",
        temperature: float = 1.0,
        ema_decay: float | None = None,
        class_balance: bool = False,
        verbose: int = 0,
    ) -> None:
        self.classifier = classifier
        self.threshold = threshold
        self.criterion = criterion
        self.k_best = k_best
        self.max_iter = max_iter
        self.smoothing = smoothing
        self.labels = labels
        self.temperature = temperature
        self.ema_decay = ema_decay
        self.class_balance = class_balance
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, true_labels: Any = None, resume: bool = False) -> Self:
        """Train, label, and train again.

        Args:
            X: `[N, ...]`, all samples, as `Classifier.fit` takes them.
            y: `[N]` labels, -1 where there is none. Text must be of dtype object, so that -1 stays a number.
            sample_weight: `[N]`, 0 or more, of samples with a given or a pseudo-label.
            true_labels: `[N]`, for `rounds_` alone, which then says how right pseudo-labels are; -1 where not known.
            resume: continue a run with the classifier's `checkpoint_folder` that was cut off.

        Returns:
            The estimator itself.

        Raises:
            TypeError: an argument of a kind that is not listed, such as a classifier that takes no `target`.
            ValueError: a value out of range, shapes that do not fit, no sample with a label, text that is no object;
                and as `Classifier.fit`.

        Warns:
            UserWarning: no sample is without a label, or `k_best` is more than there are.
        """
        student = _clone(self.classifier)
        self._check_arguments(student)
        check_folder_given(student.checkpoint_folder, resume=resume)
        given, pseudo = as_given(student.smoothing), as_pseudo(self.smoothing, self.labels)
        samples = SelfTrainingSamples.of(X, y, sample_weight, true_labels, soft=self.labels == "soft")
        recipes = Recipes(
            in_class_order(given, samples.classes),
            in_class_order(pseudo, samples.classes) if isinstance(pseudo, Smoothing) else pseudo,
        )
        self._compare(len(samples.classes), len(samples.unlabelled()))
        self.classifier_, self.rounds_, self.n_iter_ = student, [], 0
        self.transduction_, self.labeled_iter_, self.classes_ = samples.labels, samples.labelled_in, samples.classes

        folder = student.checkpoint_folder
        if folder is not None:
            check_writable_folder("checkpoint_folder", folder)
        with safe_points(folder, shared=True):  # those of the fits
            self._make_rounds(samples, recipes, resume=resume)
        self.n_features_in_ = student.n_features_in_
        keep_feature_names(X, self, student, self.teacher_)
        return self

    def _make_rounds(self, samples: SelfTrainingSamples, recipes: Recipes, *, resume: bool) -> None:
        """The loop: train, label, and train again."""
        self._train(samples, recipes, resume=resume)
        self.termination_condition_ = "max_iter"
        while len(samples.unlabelled()) and self.n_iter_ != self.max_iter:
            self.n_iter_ += 1
            chosen, gradients = self._label(samples, recipes.pseudo)
            if len(chosen):
                self._train(samples, recipes, resume=resume)
            self.rounds_.append(self._report(samples, chosen, gradients))
            if not len(chosen):
                self.termination_condition_ = "max_iter" if self.n_iter_ == self.max_iter else "no_change"
                break
            if self.verbose:
                print(f"End of iteration {self.n_iter_}, added {len(chosen)} new labels.")
        if not len(samples.unlabelled()):
            self.termination_condition_ = "all_labeled"

    def _train(self, samples: SelfTrainingSamples, recipes: Recipes, *, resume: bool) -> None:
        """Fit the student to the labelled samples, and bring the teacher up to date."""
        student, known = self.classifier_, samples.labelled()
        folder = self.classifier.checkpoint_folder
        if folder is not None:
            student.set_params(checkpoint_folder=Path(folder) / f"fit_{self.n_iter_}")
        weights = None if samples.weights is None else samples.weights[known]
        target = samples.target(known, recipes)
        student.fit(take(samples.inputs, known), samples.labels[known], weights, target=target, resume=resume)
        if self.ema_decay is None:
            self.teacher_ = student
        elif self.n_iter_ == 0:
            self.teacher_ = copy.deepcopy(student)
        else:
            average_into(self.teacher_.module_, student.module_, self.ema_decay)

    def _label(self, samples: SelfTrainingSamples, pseudo: PseudoSmoothing) -> tuple[NDArray[np.int64], GradientBins]:
        """Give some of the samples without a label the teacher's; return them, and the gradients of all candidates."""
        candidates = samples.unlabelled()
        inputs = take(samples.inputs, candidates)
        probabilities = self.teacher_.predict_proba(inputs)  # [M, K]
        logits = self.teacher_.logits(inputs).to(torch.float64)
        places, confidence = probabilities.argmax(-1), probabilities.max(-1)
        soft = teacher(logits, self.temperature).dense(torch.float64) if self.labels == "soft" else None
        labels, sureness = torch.from_numpy(places), torch.from_numpy(confidence)
        target = pseudo_target(labels, sureness, soft, len(samples.classes), pseudo)
        gradients = gradient_bins(logits, labels, sureness, target)
        chosen = select(
            confidence,
            places,
            len(samples.classes),
            criterion=self.criterion,
            threshold=self.threshold,
            k_best=self.k_best,
            class_balance=self.class_balance,
        )
        samples.keep(
            candidates[chosen],
            places[chosen],
            confidence[chosen],
            None if soft is None else soft[torch.from_numpy(chosen)].numpy(),
            number=self.n_iter_,
        )
        return candidates[chosen], gradients

    def _report(self, samples: SelfTrainingSamples, chosen: NDArray[np.int64], gradients: GradientBins) -> RoundReport:
        """What the round showed, under the student that was trained on its labels."""
        new_accuracy = accuracy = bias = None
        if samples.truth is not None:
            made, is_right = samples.is_right(np.flatnonzero(samples.labelled_in > 0))
            new_accuracy = share_of_right(samples.is_right(chosen)[1])
            accuracy = share_of_right(is_right)
            now = np.zeros(0)
            if len(made):
                probabilities = self.classifier_.predict_proba(take(samples.inputs, made))
                now = probabilities[np.arange(len(made)), samples.places[made]]
            bias = confirmation_bias(samples.confidence[made], now, is_right)
        return RoundReport(
            self.n_iter_,
            len(samples.labelled()),
            len(chosen),
            float(samples.confidence[chosen].mean()) if len(chosen) else None,
            new_accuracy,
            accuracy,
            bias,
            gradients,
        )

    def _check_arguments(self, student: Classifier) -> None:
        """In `fit` and not in the constructor, where scikit-learn's tools want every argument kept as it was given."""
        check_in_range("threshold", self.threshold, 0.0, 1.0, high_open=True)
        check_choice("criterion", self.criterion, ("threshold", "k_best"))
        check_positive_int("k_best", self.k_best)
        if self.max_iter is not None:
            check_positive_int("max_iter", self.max_iter, minimum=0)
        check_choice("labels", self.labels, ("hard", "soft"))
        temperature = check_in_range("temperature", self.temperature, 0.0, low_open=True)
        if temperature != 1 and self.labels == "hard":
            raise ValueError(
                f'temperature={temperature:g} sharpens soft labels only: set labels="soft", or leave it 1.'
            )
        arguments = student.get_params()
        if arguments.get("warm_start") and arguments.get("validation_fraction"):
            raise ValueError(
                "classifier.validation_fraction holds out other samples in each round, and with warm_start samples "
                "that were trained on: set it to 0, or warm_start=False."
            )
        if self.ema_decay is not None:
            check_in_range("ema_decay", self.ema_decay, 0.0, 1.0, high_open=True)
            if not student.warm_start:
                raise ValueError(
                    "ema_decay averages the networks of all rounds, which only makes sense where each round continues "
                    "from the last one's: give a classifier with warm_start=True."
                )

    def _compare(self, num_classes: int, num_unlabelled: int) -> None:
        """Say what does not fit the data."""
        if self.class_balance and self.criterion == "k_best" and self.k_best < num_classes:
            raise ValueError(
                f"k_best={self.k_best} is less than the {num_classes} classes, which class_balance would share it "
                f"among: give at least {num_classes}."
            )
        if not num_unlabelled:
            warnings.warn("y contains no unlabeled samples", UserWarning, stacklevel=3)
        if self.criterion == "k_best" and self.k_best > num_unlabelled:
            warnings.warn(
                "k_best is larger than the amount of unlabeled samples. All unlabeled samples will be labeled in the "
                "first iteration",
                UserWarning,
                stacklevel=3,
            )

    def __sklearn_is_fitted__(self) -> bool:
        return "classifier_" in vars(self)

    def _fitted(self) -> Classifier:
        if not self.__sklearn_is_fitted__():
            raise not_fitted_error(type(self).__name__)
        return self.classifier_

    def predict(self, X: Any, mask: Any = None) -> NDArray[Any]:
        """The most probable label of each sample, `[N]`; see `Classifier.predict`."""
        return self._fitted().predict(X, mask)

    def predict_proba(self, X: Any, mask: Any = None) -> NDArray[np.float64]:
        """Probabilities, float64 `[N, K]`, in the order of `classes_`; see `Classifier.predict_proba`."""
        return self._fitted().predict_proba(X, mask)

    def predict_log_proba(self, X: Any, mask: Any = None) -> NDArray[np.float64]:
        """Log-probabilities (nats), float64 `[N, K]`, in the order of `classes_`."""
        return self._fitted().predict_log_proba(X, mask)

    def logits(self, X: Any) -> Tensor:
        """What the network gives, `[N, K]`; see `Classifier.logits`."""
        return self._fitted().logits(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy; see `Classifier.score`."""
        return self._fitted().score(X, y, sample_weight)


def _clone(classifier: Any) -> Any:
    """An unfitted classifier with copies of the same arguments, as scikit-learn's `clone` makes it.

    Raises:
        TypeError: it is none whose `fit` takes `target=`.
    """
    is_instance = not isinstance(classifier, type)
    fit = getattr(classifier, "fit", None)
    if not (is_instance and callable(fit) and "target" in inspect.signature(fit).parameters):
        given = classifier.__name__ if isinstance(classifier, type) else type(classifier).__name__
        raise TypeError(
            f"classifier must be an rlsmooth.training.Classifier (its fit takes target=), got {given}"
            f"{'' if is_instance else ', which is the class: give an instance'}."
        )
    arguments = classifier.get_params(deep=False)
    return type(classifier)(**{name: copy.deepcopy(value) for name, value in arguments.items()})
