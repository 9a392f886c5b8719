"""A client of federated training: it trains on samples that stay with it, and sends parameters or gradients.

    FederatedClient   has the methods of Flower's NumPyClient
    ClipAndNoise      a defence: differentially private local steps (DP-SGD), by Opacus
    label_dp_epsilon  what labels that are drawn once from their smoothed targets guarantee

Smoothed targets hide nothing from a server that reads gradients (`rlsmooth.audits.gradient_attacks`). Labels that are
drawn once from the smoothed target do: `defence="randomised_labels"`, with a known label-DP epsilon.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.audits import classification_summary
from rlsmooth.checks import check_choice, check_in_range, check_positive_int
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Smoothing, as_smoothing
from rlsmooth.targets.arguments import broadcast_mask, check_mask
from rlsmooth.training.checkpoint import load_optimizer, optimizer_to_tensors
from rlsmooth.training.classifier_model import model_dtype
from rlsmooth.training.classifier_samples import as_weights
from rlsmooth.training.run import fingerprint, samples_at_once
from rlsmooth.training.safe_file import encode_smoothing
from rlsmooth.training.seeding import EpochCut, epoch_permutation, has_batch_norm, isolated_rng

Parameters: TypeAlias = list[NDArray[Any]]
"""What is sent: the arrays of `state_dict()`, in its order; with `share="gradients"` their gradients, 0 of buffers."""
FitResult: TypeAlias = tuple[Parameters, float, dict[str, float]]
"""What `fit` of a client returns: arrays, number of samples (with weights: their sum), metrics."""
EvaluationResult: TypeAlias = tuple[float, float, dict[str, float]]
"""What `evaluate` of a client returns: loss, number of samples, metrics."""
Share: TypeAlias = Literal["weights", "gradients"]
Samples: TypeAlias = tuple[Any, Any] | tuple[Any, Any, Any]
"""`(X, y)`, or `(X, y, mask)`."""

ROWS_AT_ONCE = 4096


# ---- parameters as arrays


def get_parameters(module: nn.Module) -> Parameters:
    """Copies of a module's parameters and buffers as arrays, in the order of `state_dict()`.

    Examples:
        >>> [array.shape for array in get_parameters(nn.Linear(3, 2))]
        [(2, 3), (2,)]
    """
    return [tensor.detach().cpu().numpy().copy() for tensor in module.state_dict().values()]


def set_parameters(module: nn.Module, parameters: Sequence[NDArray[Any]]) -> None:
    """Put arrays of `get_parameters` into a module of the same shapes.

    Raises:
        ValueError: another number of arrays, or another shape.
    """
    state = module.state_dict()
    if len(parameters) != len(state):
        raise ValueError(f"parameters has {len(parameters)} arrays, the module needs {len(state)}: {list(state)}.")
    for (name, tensor), array in zip(state.items(), parameters, strict=True):
        if tuple(array.shape) != tuple(tensor.shape):
            raise ValueError(
                f"parameters of {name!r} have shape {array.shape}, the module needs {tuple(tensor.shape)}."
            )
        tensor.copy_(torch.from_numpy(np.array(array)))


# ---- defences


@dataclass(frozen=True)
class ClipAndNoise:
    """DP-SGD (Abadi et al. 2016): each sample's gradient is clipped, and noise added to their sum. Needs Opacus.

    A local step draws each sample with probability `batch_size / N`. The epsilon that a client reports is that of its
    samples against everyone who sees the parameters or gradients that it sends, by Opacus' RDP accountant, over all its
    steps so far. The `loss` among its metrics has no noise: do not publish it.

    Attributes:
        max_norm: the bound of the norm of a sample's gradient.
        noise_multiplier: the noise's standard deviation, as a multiple of `max_norm`; 0: only clipped, epsilon is
            infinite.
        delta: the delta for which epsilon is reported.

    Raises:
        ValueError: a value outside its range.
    """

    max_norm: float
    noise_multiplier: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        check_in_range("max_norm", self.max_norm, 0.0, low_open=True)
        check_in_range("noise_multiplier", self.noise_multiplier, 0.0)
        check_in_range("delta", self.delta, 0.0, 1.0, low_open=True, high_open=True)

    def epsilon(self, sample_rate: float, steps: int) -> float:
        """The epsilon after so many steps (natural logarithm): infinite without noise, 0 before the first step.

        Args:
            sample_rate: the probability with which a step draws each sample.
            steps: local steps, over all rounds.

        Raises:
            ImportError: Opacus is missing.
        """
        if steps == 0:
            return 0.0
        if self.noise_multiplier == 0:
            return math.inf
        return _accounted_epsilon(self.noise_multiplier, sample_rate, steps, self.delta)


@lru_cache(maxsize=1024)  # clients of one size have the same
def _accounted_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    accountant = _opacus().accountants.RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    return float(accountant.get_epsilon(delta))


def _opacus() -> Any:
    try:
        import opacus  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise ImportError("ClipAndNoise needs Opacus: pip install 'rlsmooth[privacy]'.") from error
    return opacus


def label_dp_epsilon(smoothing: float | str | Smoothing, num_classes: int) -> float:
    """The label-DP epsilon of a label that is drawn once from its smoothed target: `max ln(q_c[k] / q_d[k])` (nats).

    For uniform smoothing over all classes this is K-ary randomised response, `ln(1 + K (1 - alpha) / alpha)`, which is
    also the largest margin that training on the smoothed target has at its optimum. It is infinite if one label's
    target has a class that another's has not. (Trained on as it is, a smoothed target has no such guarantee.)

    Args:
        smoothing: how labels become targets.
        num_classes: `K`.

    Raises:
        ValueError: alpha follows a schedule, so that a label would be drawn again and again.

    Examples:
        >>> round(label_dp_epsilon(0.1, 10), 3), label_dp_epsilon(0.0, 10)
        (4.511, inf)
    """
    recipe = as_smoothing(smoothing)
    if not recipe.is_constant:
        raise ValueError(
            f"smoothing={smoothing!r} follows a schedule: labels are drawn once, so give a constant alpha."
        )
    logs = recipe(torch.arange(num_classes), num_classes).dense(torch.float64).log()
    # A class that no label's target has is never drawn, so that it gives nothing away.
    drawn = logs[:, logs.isfinite().any(0)]
    return float((drawn.max(0).values - drawn.min(0).values).max())


def draw_labels(smoothing: Smoothing, labels: Tensor, num_classes: int, *, seed: int) -> Tensor:
    """One label for each sample, drawn from its smoothed target: int64 `[N]`, on the CPU.

    Args:
        smoothing: how labels become targets, with a constant alpha.
        labels: int64 `[N]`.
        num_classes: `K`.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0]))
    rows = (smoothing(part.cpu(), num_classes).dense(torch.float64) for part in torch.split(labels, ROWS_AT_ONCE))
    return torch.cat([torch.multinomial(part, 1, generator=generator).squeeze(1) for part in rows])


# ---- a client


@final
class FederatedClient:
    """Trains a network on samples that stay here, and sends back its parameters or gradients.

    It has the methods of Flower's NumPyClient: `get_parameters`, `fit`, `evaluate`. The local loss is the mean of
    `CE(smoothing(y), softmax(module(x)))` over a minibatch (nats), with weights as in `Classifier`. The seed and the
    round decide the order of the samples and all random numbers, so that a round can be repeated.

    Args:
        module: maps `[N, ...]` to logits `[N, K]`. `fit` and `evaluate` write the parameters that they get into it, so
            that clients in one process may share it.
        inputs: `[N, ...]`, a tensor, or an array that becomes one of the module's floating-point type.
        labels: int64 `[N]`, 0 to K - 1.
        num_classes: `K`.
        smoothing: alpha, a schedule over the rounds `"lin_0.1"`, or a `Smoothing`.
        mask: bool `[N, K]`, True = legal.
        sample_weight: `[N]`, 0 or more; a strategy counts the client by their sum.
        optimizer: `"sgd"` or `"adam"`.
        learning_rate: of the local steps.
        momentum: of `"sgd"`.
        weight_decay: of `"adam"`, decoupled from the gradient (AdamW).
        max_grad_norm: the gradient's norm is clipped to it; None: no clipping.
        batch_size: samples of a local step; None: all.
        local_epochs: passes over the samples in a round.
        keep_optimizer: keep the optimiser's state (momentum, Adam's moments) from round to round. Without, each round
            starts with a fresh one, and one client of Adam does not train as it would alone.
        share: `"weights"`: local steps, and the new parameters are sent; `"gradients"`: the gradient of the loss over
            all samples is sent, without a step. Local settings of the optimiser and of epochs do not count then.
        defence: None; a `ClipAndNoise`; or `"randomised_labels"`: each label is drawn once from its smoothed target,
            and training is on the drawn labels, unsmoothed. See `label_dp_epsilon`.
        seed: of the order of the samples, of dropout, of noise and of drawn labels. Give each client its own.

    Raises:
        TypeError: a value of a kind that is not listed.
        ValueError: a value out of range, shapes that do not fit, an illegal label.
        ImportError: `ClipAndNoise` without Opacus.

    Examples:
        >>> client = FederatedClient(nn.Linear(1, 2), torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]), 2)
        >>> parameters, count, metrics = client.fit(client.get_parameters({}), {"server_round": 1})
        >>> count, sorted(metrics)
        (2, ['learning_rate', 'loss', 'progress_remaining', 'steps'])
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Any,
        labels: Any,
        num_classes: int,
        *,
        smoothing: float | str | Smoothing = 0.1,
        mask: Tensor | None = None,
        sample_weight: Any = None,
        optimizer: Literal["sgd", "adam"] = "sgd",
        learning_rate: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        batch_size: int | None = 32,
        local_epochs: int = 1,
        keep_optimizer: bool = False,
        share: Share = "weights",
        defence: ClipAndNoise | Literal["randomised_labels"] | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("optimizer", optimizer, ("sgd", "adam"))
        check_choice("share", share, ("weights", "gradients"))
        check_in_range("learning_rate", learning_rate, 0.0, low_open=True)
        check_in_range("momentum", momentum, 0.0, 1.0, high_open=True)
        check_positive_int("local_epochs", local_epochs)
        check_positive_int("num_classes", num_classes)
        check_positive_int("seed", seed, minimum=0)
        self.module = module
        self.inputs, self.labels, self.mask = labelled_samples((inputs, labels, mask), num_classes, model_dtype(module))
        self.num_classes = num_classes
        self.smoothing = as_smoothing(smoothing)
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = check_in_range("weight_decay", weight_decay, 0.0)
        self.max_grad_norm = max_grad_norm
        if max_grad_norm is not None:
            check_in_range("max_grad_norm", max_grad_norm, 0.0, low_open=True)
        weights = as_weights(sample_weight, len(self))
        self.weights = (
            None if weights is None else torch.from_numpy(weights).to(self.labels.device, model_dtype(module))
        )
        self.size = len(self) if weights is None else float(weights.sum())
        self.batch_size = (
            len(self) if batch_size is None else min(check_positive_int("batch_size", batch_size), len(self))
        )
        self.local_epochs = local_epochs
        self.keep_optimizer = keep_optimizer
        self.share = share
        self.defence = defence
        self.seed = seed
        self.steps = 0
        self._fits = 0
        self._optimizer_state: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._trained_labels, self._trained_smoothing = self.labels, self.smoothing
        self.smoothing(self.labels, num_classes, mask=self.mask)  # checks values once; rounds need not
        if defence is not None and (weights is not None or max_grad_norm is not None):
            name = "max_grad_norm" if weights is None else "sample_weight"
            raise ValueError(
                f"{name} can't be used with a defence, whose guarantee is for runs without: leave one out."
            )
        if defence == "randomised_labels":
            self._randomise_labels()
        elif isinstance(defence, ClipAndNoise):
            self._check_private()
        elif defence is not None:
            raise ValueError(f"defence={defence!r}: give None, a ClipAndNoise or 'randomised_labels'.")
        if share == "gradients" and has_batch_norm(module):
            raise ValueError("share='gradients' can't send the running statistics of BatchNorm: share weights.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def _step_size(self) -> int:
        """The expected number of samples of a private step."""
        return len(self) if self.share == "gradients" else self.batch_size

    def get_parameters(self, config: Mapping[str, Any]) -> Parameters:
        """The module's current parameters and buffers."""
        return get_parameters(self.module)

    def fit(self, parameters: Sequence[NDArray[Any]], config: Mapping[str, Any]) -> FitResult:
        """Train for a round.

        Args:
            parameters: where it starts.
            config: `server_round`, from 1 on, decides what is drawn (default: the number of calls);
                `progress_remaining`, 1 to 0, is for an alpha that follows a schedule.

        Returns:
            arrays, number of samples (with weights: their sum), and metrics: `loss` (mean over the steps' samples,
            nats), `steps`, `learning_rate`, `progress_remaining`, and `epsilon` with `ClipAndNoise`.
        """
        self._fits += 1
        number = int(config.get("server_round", self._fits))
        progress = float(config.get("progress_remaining", 1.0))
        set_parameters(self.module, parameters)
        self.module.train()
        with isolated_rng(_mixed_seed(self.seed, number)):
            if isinstance(self.defence, ClipAndNoise):
                losses = self._train_privately(self.defence, progress)
            elif self.share == "gradients":
                losses = [self._backward(torch.arange(len(self)), progress)]
            else:
                losses = self._train(number, progress)
        self.module.eval()
        self.steps += len(losses)
        total = sum(count for _, count in losses)
        metrics = {
            "loss": float(torch.stack([loss * (count / max(total, 1)) for loss, count in losses]).sum()),
            "steps": float(len(losses)),
            "learning_rate": self.learning_rate,
            "progress_remaining": progress,
        }
        if isinstance(self.defence, ClipAndNoise):
            metrics["epsilon"] = self.epsilon
        return self._to_send(), self.size, metrics

    def evaluate(self, parameters: Sequence[NDArray[Any]], config: Mapping[str, Any]) -> EvaluationResult:
        """The mean negative log-likelihood of the true labels (nats), the number of samples, and `accuracy`.

        Args:
            parameters: of the network that is measured.
            config: not used.
        """
        set_parameters(self.module, parameters)
        summary = classification_summary(logits_of(self.module, self.inputs, self.mask, self.batch_size), self.labels)
        return summary["nll"], len(self), {"accuracy": summary["accuracy"]}

    # ---- local training

    def _train(self, number: int, progress: float) -> list[tuple[Tensor, int]]:
        """The local loop: shuffle the samples, update. Returns the losses."""
        optimizer = self._begun_optimizer()
        cut = EpochCut(len(self), self.batch_size, joins_single=has_batch_norm(self.module))
        losses = []
        for epoch in range(self.local_epochs):
            order = epoch_permutation(self.seed, (number - 1) * self.local_epochs + epoch, len(self))
            for update in range(len(cut)):
                start, end = cut.bounds(update)
                losses.append(self._backward(order[start:end], progress))
                if self.max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
                optimizer.step()
        if self.keep_optimizer:
            self._optimizer_state = optimizer_to_tensors(optimizer)
        return losses

    def _train_privately(self, defence: ClipAndNoise, progress: float) -> list[tuple[Tensor, int]]:
        """The same with Poisson-sampled minibatches, clipped gradients of single samples, and noise."""
        optimizer = self._begun_optimizer()
        private = _opacus().optimizers.DPOptimizer(
            optimizer,
            noise_multiplier=defence.noise_multiplier,
            max_grad_norm=defence.max_norm,
            expected_batch_size=self._step_size,
        )
        steps = 1 if self.share == "gradients" else self.local_epochs * math.ceil(len(self) / self.batch_size)
        losses = []
        with self._sample_gradients() as per_sample:
            for _ in range(steps):
                private.zero_grad(set_to_none=True)
                drawn = torch.nonzero(torch.rand(len(self)) < self._step_size / len(self)).squeeze(1)
                if len(drawn):
                    losses.append(self._backward(drawn, progress, module=per_sample))
                else:  # only noise; not every layer takes a minibatch of none
                    for parameter in private.params:
                        parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
                    losses.append((self.inputs.new_zeros((), dtype=model_dtype(self.module)), 0))
                if self.share == "gradients":
                    private.pre_step()
                else:
                    private.step()
        if self.keep_optimizer:
            self._optimizer_state = optimizer_to_tensors(optimizer)
        return losses

    @contextmanager
    def _sample_gradients(self) -> Iterator[nn.Module]:
        """The module with Opacus' hooks, which keep each sample's gradient."""
        per_sample = _opacus().GradSampleModule(self.module)
        try:
            with warnings.catch_warnings():  # torch warns Opacus' hooks that inputs need no gradient
                warnings.filterwarnings("ignore", "Full backward hook", UserWarning)
                yield per_sample
        finally:
            per_sample.remove_hooks()
            for parameter in self.module.parameters():  # Opacus' notes, which the next round would trip over
                for name in ("grad_sample", "summed_grad"):
                    if hasattr(parameter, name):
                        delattr(parameter, name)

    def _backward(self, places: Tensor, progress: float, module: nn.Module | None = None) -> tuple[Tensor, int]:
        """The gradients of the mean loss of some samples. Returns it, without a wait, and how many they are."""
        places = places.to(self.labels.device)
        mask = None if self.mask is None else self.mask[places]
        labels = self._trained_labels[places]
        target = self._trained_smoothing(labels, self.num_classes, mask=mask, progress=progress, validate=False)
        logits = (self.module if module is None else module)(self.inputs[places])
        weight, size = None if self.weights is None else self.weights[places], self.size / len(self)
        loss = cross_entropy(logits, target, mask=mask, weight=weight, reduction="sum") / (max(len(places), 1) * size)
        if module is None:
            self.module.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), len(places)

    def _begun_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser at the start of a round."""
        optimizer = self._make_optimizer()
        if self.keep_optimizer and self._optimizer_state is not None:
            load_optimizer(optimizer, *self._optimizer_state)
        return optimizer

    def _make_optimizer(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        if self.optimizer == "sgd":
            return torch.optim.SGD(trained, lr=self.learning_rate, momentum=self.momentum)
        decay = self.weight_decay
        return (
            torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=decay)
            if decay
            else torch.optim.Adam(trained, lr=self.learning_rate)
        )

    def _to_send(self) -> Parameters:
        if self.share == "weights":
            return get_parameters(self.module)
        state = self.module.state_dict(keep_vars=True).values()
        gradients = (torch.zeros_like(part) if part.grad is None else part.grad for part in state)
        return [gradient.detach().cpu().numpy().copy() for gradient in gradients]

    # ---- defences

    def _randomise_labels(self) -> None:
        if self.mask is not None:
            raise ValueError(
                "defence='randomised_labels' can't be used with mask: a drawn label could be illegal. Use "
                "ClipAndNoise, or samples without mask."
            )
        label_dp_epsilon(self.smoothing, self.num_classes)  # refuses a schedule
        drawn = draw_labels(self.smoothing, self.labels, self.num_classes, seed=self.seed)
        self._trained_labels, self._trained_smoothing = drawn.to(self.labels.device), Smoothing(0.0)

    def _check_private(self) -> None:
        """Raise ValueError, naming the layer, where Opacus can't take each sample's gradient."""
        refused = "module can't be trained with ClipAndNoise: "
        self.module.train()  # Opacus asks for it
        for name, layer, why in _not_private("", self.module):
            raise ValueError(
                f"{refused}its layer {name!r} is a {type(layer).__name__}. {why}. Use another layer, such as GroupNorm "
                "for BatchNorm; opacus.validators.ModuleValidator.fix(module) replaces some."
            )
        trained = {name: part for name, part in self.module.named_parameters() if part.requires_grad}
        inplace = [name for name, layer in self.module.named_modules() if getattr(layer, "inplace", False)]
        try:
            with isolated_rng(0), self._sample_gradients() as per_sample:
                self._backward(torch.arange(min(len(self), 2)), 1.0, module=per_sample)
                unused = [name for name, part in trained.items() if getattr(part, "grad_sample", None) is None]
        except RuntimeError as error:
            hint = f" Layer {inplace[0]!r} works in place: make it with inplace=False." if inplace else ""
            raise ValueError(f"{refused}{str(error).partition('. ')[0]}.{hint}") from error
        self.module.zero_grad(set_to_none=True)
        if unused:
            raise ValueError(f"{refused}no logit depends on its parameter {unused[0]!r}: freeze it, or take it out.")

    @property
    def epsilon(self) -> float:
        """What the defence guarantees for a label or, with `ClipAndNoise`, a sample, so far; infinite without one."""
        if self.defence == "randomised_labels":
            return label_dp_epsilon(self.smoothing, self.num_classes)
        if isinstance(self.defence, ClipAndNoise):
            return self.defence.epsilon(self._step_size / len(self), self.steps)
        return math.inf

    # ---- checkpoints

    def arguments(self) -> dict[str, Any]:
        """The arguments that affect the result, as JSON-able values."""
        noise, more = self.defence, [self.weight_decay, self.max_grad_norm]
        return {
            "smoothing": encode_smoothing([self.smoothing]),
            "optimizer": [
                *(self.optimizer, self.learning_rate, self.momentum, self.keep_optimizer),
                *(more if any(more) else []),  # which earlier versions did not have
            ],
            "local": [self.batch_size, self.local_epochs, self.share, self.seed],
            "defence": [noise.max_norm, noise.noise_multiplier, noise.delta]
            if isinstance(noise, ClipAndNoise)
            else noise,
        }

    def fingerprint(self) -> str:
        """A sha256 of the samples."""
        shape = f"{self.inputs.dtype} {tuple(self.inputs.shape)}"
        optional = (part for part in (self.mask, self.weights) if part is not None)
        return fingerprint(shape, self.inputs, self.labels, *optional)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What changes during a run besides the parameters: tensors, and JSON."""
        tensors, optimizer = self._optimizer_state or ({}, None)
        return tensors, {"steps": self.steps, "optimizer": optimizer}

    def load_state(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: it belongs to an optimiser of another class or for parameters of other shapes.
        """
        self.steps = check_positive_int("steps", config["steps"], minimum=0)
        self._optimizer_state = None
        if config["optimizer"] is not None:
            self._optimizer_state = dict(tensors), dict(config["optimizer"])
            load_optimizer(self._make_optimizer(), *self._optimizer_state)  # refuses what does not fit


def _not_private(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The layers of which no gradient of a single sample is to be had, each with its name and the reason."""
    inner = [found for child, part in module.named_children() for found in _not_private(f"{name}.{child}", part)]
    yield from inner
    if inner:
        return
    if has_batch_norm(module):  # Opacus overlooks layers without parameters that are trained
        yield name.removeprefix("."), module, "It mixes the samples of a minibatch"
    if getattr(module, "track_running_stats", False):
        yield name.removeprefix("."), module, "Its running statistics are sent without noise"
    for fault in _opacus().validators.ModuleValidator.validate(module, strict=False)[:1]:
        yield name.removeprefix("."), module, str(fault).partition(". ")[0]


# ---- samples


def labelled_samples(
    samples: Samples, num_classes: int, dtype: torch.dtype, device: torch.device | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tensors `[N, ...]`, int64 `[N]` and bool `[N, K]` or None, checked, on the inputs' device or the one given."""
    inputs, labels, mask = (*samples, None)[:3]
    features = inputs if isinstance(inputs, Tensor) else torch.from_numpy(np.array(inputs)).to(dtype)
    known = labels if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels))
    if known.is_floating_point() or known.ndim != 1 or len(known) != len(features) or not len(known):
        raise ValueError(
            f"labels must be [N] whole numbers, one for each of at least one input, got {known.dtype} "
            f"{tuple(known.shape)} for {len(features)} inputs."
        )
    features = features if device is None else features.to(device)
    known = known.to(features.device, torch.int64)
    if bool((known < 0).any()) or bool((known >= num_classes).any()):
        raise ValueError(f"labels must be 0 to {num_classes - 1}, got {int(known.min())} to {int(known.max())}.")
    if features.is_floating_point() and not bool(features.isfinite().all()):
        raise ValueError("inputs holds NaN or infinity: remove these samples.")
    if mask is None:
        return features, known, None
    legal = broadcast_mask(mask, known.shape, num_classes).to(features.device)
    check_mask(legal, known)
    return features, known, legal


@torch.no_grad()
def logits_of(module: nn.Module, inputs: Tensor, mask: Tensor | None, batch_size: int) -> Tensor:
    """The logits of all samples, in evaluation mode; illegal classes at -inf."""
    module.eval()
    most = samples_at_once(lambda: module(inputs[:1]), batch_size, len(inputs))
    logits = torch.cat([module(part) for part in torch.split(inputs, most)])
    return logits if mask is None else logits.masked_fill(~mask, -torch.inf)


def _mixed_seed(seed: int, number: int) -> int:
    """A seed for torch's generators in one round of one client."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])
