"""Federated training: a server sends parameters to clients, combines what they send back, and may audit it.

FederatedTrainer  the loop over rounds: sends parameters, audits, aggregates, evaluates, writes checkpoints
CuriousServer     estimates the clients' labels from what they send
FedAvg, FedSGD    combine what the clients of a round send, by numbers of samples
even_split, dirichlet_split, group_split    the samples of each client
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias, TypedDict, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.audits import (
    classification_summary,
    counts_from_class_means,
    counts_ilrg,
    counts_llg,
    label_counts,
    round_counts,
)
from rlsmooth.audits.label_leakage import among_legal, last_linear
from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.targets import Smoothing, as_smoothing
from rlsmooth.training.checkpoint import Checkpoint, decode_history, load_module
from rlsmooth.training.classifier_model import model_dtype
from rlsmooth.training.divergence import TrainingDivergedError
from rlsmooth.training.federated_client import (
    FederatedClient,
    FitResult,
    Parameters,
    Samples,
    Share,
    get_parameters,
    labelled_samples,
    logits_of,
    set_parameters,
)
from rlsmooth.training.run import (
    EventLog,
    OnLog,
    Progress,
    RunFolder,
    append_values,
    check_folder_given,
    check_given_again,
    check_same_arguments,
    log_line,
    safe_points,
    stop,
    stop_requested,
)
from rlsmooth.training.seeding import epoch_permutation, few_threads
from rlsmooth.untrusted import AnyNumber, Count

Audit: TypeAlias = Callable[[int, int, Parameters, Parameters, int, Mapping[str, float]], Mapping[str, float]]
"""Called with round, client, what was sent to it, what came back, its number of samples and metrics."""
SPLIT_ATTEMPTS = 1000
SHOWN = ("loss", "accuracy", "nll")


# ---- the samples of each client


def even_split(num_samples: int, num_clients: int, *, seed: int = 0) -> list[NDArray[np.int64]]:
    """Shuffled samples in parts of equal size, up to one.

    Args:
        num_samples: how many there are to divide.
        num_clients: at most `num_samples`.
        seed: of the order.

    Returns:
        for each client the sorted indices of its samples, int64.

    Raises:
        ValueError: there are fewer samples than clients.

    Examples:
        >>> [len(part) for part in even_split(7, 3)]
        [3, 2, 2]
    """
    _check_split(num_samples, num_clients)
    order = epoch_permutation(seed, 0, num_samples).numpy()
    return [np.sort(part) for part in np.array_split(order, num_clients)]


def dirichlet_split(
    labels: NDArray[Any], num_clients: int, concentration: float, *, seed: int = 0, min_samples: int = 1
) -> list[NDArray[np.int64]]:
    """Clients with different shares of the classes: those of each class are Dirichlet-distributed (Hsu et al. 2019).

    Args:
        labels: `[N]`.
        num_clients: how many parts.
        concentration: above 0; small: each class is with few clients; large: an even split.
        seed: of the draw.
        min_samples: of each client; the split is drawn again until all have as many, at most 1000 times.

    Returns:
        for each client the sorted indices of its samples, int64.

    Raises:
        ValueError: fewer samples than clients need, or no draw gave each client `min_samples`.

    Examples:
        >>> parts = dirichlet_split(np.arange(100) % 2, 3, 0.5)
        >>> sorted(np.concatenate(parts).tolist()) == list(range(100))
        True
    """
    labels = np.asarray(labels)
    _check_split(len(labels), num_clients)
    check_in_range("concentration", concentration, 0.0, low_open=True)
    check_positive_int("min_samples", min_samples, minimum=0)
    generator = np.random.default_rng(seed)
    for _ in range(SPLIT_ATTEMPTS):
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(np.full(num_clients, concentration))
            cuts = (np.cumsum(shares)[:-1] * len(members)).round().astype(np.int64)
            for client, part in enumerate(np.split(members, cuts)):
                owner[part] = client
        if np.bincount(owner, minlength=num_clients).min() >= min_samples:
            return [np.flatnonzero(owner == client) for client in range(num_clients)]
    raise ValueError(
        f"concentration={concentration} gave no split of {len(labels)} samples with min_samples={min_samples} for each "
        f"of {num_clients} clients in {SPLIT_ATTEMPTS} draws: give a larger concentration or fewer clients."
    )


def group_split(groups: Any) -> list[NDArray[np.int64]]:
    """One client per group, in the order of the sorted groups.

    Args:
        groups: `[N]`, the group of each sample: numbers or text.

    Examples:
        >>> [part.tolist() for part in group_split(["b", "a", "b"])]
        [[1], [0, 2]]
    """
    values = np.asarray(groups)
    return [np.flatnonzero(values == group) for group in np.unique(values)]


def _check_split(num_samples: int, num_clients: int) -> None:
    if check_positive_int("num_clients", num_clients) > num_samples:
        raise ValueError(f"num_clients={num_clients} is more than the {num_samples} samples: give fewer.")


# ---- strategies


class Strategy(Protocol):
    """Combines what the clients of a round send."""

    def initialize_parameters(self, parameters: Parameters) -> None:
        """Take note of the parameters that the clients get in the next round."""

    def aggregate_fit(
        self, server_round: int, results: Sequence[tuple[int, FitResult]], failures: Sequence[BaseException]
    ) -> tuple[Parameters, dict[str, float]]:
        """The new parameters, and metrics.

        Args:
            server_round: from 1 on.
            results: for each client that trained, its number and what its `fit` returned.
            failures: errors of others. In one process there are none: an error ends the run.
        """


def weighted_mean(results: Sequence[tuple[Sequence[NDArray[Any]], float]]) -> Parameters:
    """The mean of arrays by numbers of samples, in float64; of integers (counters of BatchNorm) the largest.

    Args:
        results: `(arrays, number of samples or sum of their weights)`, at least one, of the same shapes.

    Raises:
        ValueError: there is none, or none has a sample.

    Examples:
        >>> weighted_mean([([np.zeros(1)], 1), ([np.ones(1)], 3)])
        [array([0.75])]
    """
    total = sum(count for _, count in results)
    if total <= 0:
        raise ValueError("results has no samples: at least one client must have trained.")
    means = []
    for parts in zip(*(arrays for arrays, _ in results), strict=True):
        if parts[0].dtype.kind != "f":
            means.append(np.max(np.stack(parts), axis=0))
            continue
        shares = (part.astype(np.float64) * (count / total) for part, (_, count) in zip(parts, results, strict=True))
        means.append(np.asarray(sum(shares)).astype(parts[0].dtype))
    return means


class FedAvg:
    """The new parameters are the mean of the clients', by numbers of samples (McMahan et al. 2017)."""

    def initialize_parameters(self, parameters: Parameters) -> None:
        """Does nothing: the mean does not depend on them."""

    def aggregate_fit(
        self, server_round: int, results: Sequence[tuple[int, FitResult]], failures: Sequence[BaseException]
    ) -> tuple[Parameters, dict[str, float]]:
        """The mean of the parameters in `results`."""
        return weighted_mean([(arrays, count) for _, (arrays, count, _) in results]), {}


class FedSGD:
    """One step against the mean of the clients' gradients (`share="gradients"`), by numbers of samples.

    Args:
        learning_rate: of that step.
    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = check_in_range("learning_rate", learning_rate, 0.0, low_open=True)
        self._parameters: Parameters = []

    def initialize_parameters(self, parameters: Parameters) -> None:
        """Take the parameters that the next gradients are of."""
        self._parameters = parameters

    def aggregate_fit(
        self, server_round: int, results: Sequence[tuple[int, FitResult]], failures: Sequence[BaseException]
    ) -> tuple[Parameters, dict[str, float]]:
        """`parameters - learning_rate · mean gradient`."""
        gradients = weighted_mean([(arrays, count) for _, (arrays, count, _) in results])
        rate = self.learning_rate
        stepped = [
            (part - rate * gradient).astype(part.dtype)
            for part, gradient in zip(self._parameters, gradients, strict=True)
        ]
        return stepped, {}


# ---- the server's loop


@final
class FederatedTrainer:
    """Trains one network on the samples of all clients, which keep them.

    Each round, the clients get the current parameters and train one after another; then the strategy combines what
    they send. `history` has one value per round of: `loss` (mean over the clients' samples, nats), `accuracy`, `nll`,
    `ece` and `confidence_gap` on `evaluation`, `epsilon` (the largest of the clients, with a defence), and
    `audit_<name>`, means over the clients. TensorBoard shows the same under `federated/`. Steps are rounds.

    Args:
        module: the network; its parameters are the start, and after `train` the result.
        clients: all clients.
        strategy: `FedAvg()` by default; `FedSGD(learning_rate)` where clients share gradients.
        clients_per_round: so many are drawn for each round, without replacement; None: all.
        audit: called between the client's `fit` and the aggregation; its numbers go to `history`.
        evaluation: `(X, y)` or `(X, y, mask)`, samples for measures after each round; None: none.
        checkpoint_folder: a checkpoint follows each round, for `train(resume=True)`; None: none.
        tensorboard_log: folder for TensorBoard's files; None: none.
        on_log: called with the round and its values.
        seed: of the choice of clients.
        verbose: 1 prints a line per round.

    Raises:
        ValueError: no clients, a value out of range, or a strategy that does not fit what clients share.

    Examples:
        >>> module, inputs, labels = nn.Linear(1, 2), torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        >>> clients = [FederatedClient(module, inputs, labels, 2, seed=seed) for seed in (0, 1)]
        >>> len(FederatedTrainer(module, clients).train(3).history["loss"])
        3
    """

    def __init__(
        self,
        module: nn.Module,
        clients: Sequence[FederatedClient],
        *,
        strategy: Strategy | None = None,
        clients_per_round: int | None = None,
        audit: Audit | None = None,
        evaluation: Samples | None = None,
        checkpoint_folder: str | Path | None = None,
        tensorboard_log: str | Path | None = None,
        on_log: OnLog | None = None,
        seed: int = 0,
        verbose: int = 0,
    ) -> None:
        if not clients:
            raise ValueError("clients is empty: give at least one FederatedClient.")
        if clients_per_round is not None and check_positive_int("clients_per_round", clients_per_round) > len(clients):
            raise ValueError(f"clients_per_round={clients_per_round} is more than the {len(clients)} clients.")
        self.strategy: Strategy = FedAvg() if strategy is None else strategy
        for index, client in enumerate(clients):
            if isinstance(self.strategy, FedSGD if client.share == "weights" else FedAvg):
                raise ValueError(
                    f"clients[{index}] shares {client.share}, which {type(self.strategy).__name__} can't combine: "
                    "give FedAvg() for weights, FedSGD(learning_rate) for gradients."
                )
        self.module = module
        self.clients = list(clients)
        self.clients_per_round = clients_per_round
        self.audit = audit
        classes = clients[0].num_classes
        self.evaluation = None if evaluation is None else labelled_samples(evaluation, classes, model_dtype(module))
        self.checkpoint_folder = checkpoint_folder
        self.tensorboard_log = tensorboard_log
        self.on_log = on_log
        self.seed = check_positive_int("seed", seed, minimum=0)
        self.verbose = verbose
        self.parameters = get_parameters(module)
        self.history: dict[str, list[float]] = {}
        self.progress = Progress()

    def train(self, rounds: int, *, resume: bool = False) -> Self:
        """Train for some rounds; another call continues.

        SIGINT and SIGTERM, where a command handles them, end the run after the round.

        Args:
            rounds: how many; the total that schedules refer to.
            resume: continue an interrupted call from its last round, or start if it has none. On the CPU, the final
                parameters are those of an uninterrupted run, bit for bit.

        Raises:
            ValueError: a checkpoint folder of another run, a resumed run with other samples or arguments.
            TrainingDivergedError: a client sent a value that is not finite.
        """
        check_positive_int("rounds", rounds)
        check_folder_given(self.checkpoint_folder, resume=resume)
        own = self.progress.step or None
        checkpoint = None if self.checkpoint_folder is None else self._run_folder().begin(resume=resume, own_up_to=own)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.progress.begin(rounds, "rounds", is_resumed=checkpoint is not None)
        resumed_at = self.progress.step if resume else None
        used = self.checkpoint_folder is not None
        data = self._fingerprints() if used else {}
        self.strategy.initialize_parameters(self.parameters)
        with (
            safe_points(self.checkpoint_folder),
            few_threads(self.module, batch_size=self.clients[0].batch_size),
            EventLog(self.tensorboard_log, resumed_at=resumed_at, on_log=self.on_log) as events,
        ):
            while not self.progress.is_over:
                self._round(self.progress.step + 1, events)
                if used:
                    self._save_checkpoint(data)
                    if stop_requested():
                        stop(f"A checkpoint of round {self.progress.step:,} was written.")
        set_parameters(self.module, self.parameters)
        return self

    def _round(self, number: int, events: EventLog) -> None:
        """One round: clients train, the audit looks on, the strategy combines, and the result is measured."""
        config = {"server_round": number, "progress_remaining": self.progress.remaining}
        results: list[tuple[int, FitResult]] = []
        audited: dict[str, list[float]] = {}
        for index in self._chosen(number):
            sent, count, metrics = self.clients[index].fit(self.parameters, config)
            self._check_finite(number, index, sent)
            if self.audit is not None:
                size = len(self.clients[index])
                append_values(audited, self.audit(number, index, self.parameters, sent, size, metrics))
            results.append((index, (sent, count, metrics)))
        self.parameters, found = self.strategy.aggregate_fit(number, results, [])
        self.strategy.initialize_parameters(self.parameters)
        self.progress.step = number
        counts = [count for _, (_, count, _) in results]
        values = {
            "loss": float(np.average([metrics["loss"] for _, (_, _, metrics) in results], weights=counts)),
            **found,
        }
        values |= self._measures()
        epsilons = [client.epsilon for client in self.clients]
        if any(map(math.isfinite, epsilons)):
            values["epsilon"] = max(epsilons)
        for name, column in audited.items():  # a client that an attack finds nothing of does not count
            known = [value for value in column if not math.isnan(value)]
            values[f"audit_{name}"] = sum(known) / len(known) if known else math.nan
        append_values(self.history, values)
        events.write("federated", values, number)
        if self.verbose:
            print(log_line(f"round {number}/{self.progress.end}", values, SHOWN))

    def _chosen(self, number: int) -> list[int]:
        """The clients of a round."""
        if self.clients_per_round is None:
            return list(range(len(self.clients)))
        generator = np.random.default_rng([self.seed, number])
        return sorted(generator.choice(len(self.clients), self.clients_per_round, replace=False).tolist())

    def _measures(self) -> dict[str, float]:
        if self.evaluation is None:
            return {}
        set_parameters(self.module, self.parameters)
        inputs, labels, mask = self.evaluation
        summary = classification_summary(logits_of(self.module, inputs, mask, self.clients[0].batch_size), labels)
        return {name: summary[name] for name in ("accuracy", "nll", "ece", "confidence_gap")}

    def _check_finite(self, number: int, index: int, sent: Parameters) -> None:
        if all(np.isfinite(part).all() for part in sent if part.dtype.kind == "f"):
            return
        where = (
            "" if self.checkpoint_folder is None else f" The checkpoints in {str(self.checkpoint_folder)!r} are good."
        )
        raise TrainingDivergedError(
            f"round {number}: clients[{index}] sent a value that is not finite: give a smaller learning_rate, and look "
            f"for huge values in its inputs.{where}",
            number,
            np.empty(0, dtype=np.int64),
        )

    # ---- checkpoints

    def _run_folder(self) -> RunFolder:
        assert self.checkpoint_folder is not None
        return RunFolder(self.checkpoint_folder, unit="round", resume="train(..., resume=True)")

    def _arguments(self) -> dict[str, Any]:
        return {
            "clients": [client.arguments() for client in self.clients],
            "strategy": [type(self.strategy).__name__, getattr(self.strategy, "learning_rate", None)],
            "clients_per_round": self.clients_per_round,
            "seed": self.seed,
        }

    def _fingerprints(self) -> dict[str, str]:
        return {f"clients[{index}]": client.fingerprint() for index, client in enumerate(self.clients)}

    def _save_checkpoint(self, data: Mapping[str, str]) -> None:
        state = dict(zip(self.module.state_dict(), map(torch.from_numpy, map(np.array, self.parameters)), strict=True))
        clients = {f"client_{index}": client.state() for index, client in enumerate(self.clients)}
        config = {
            "arguments": self._arguments(),
            "progress": [self.progress.step, self.progress.start, self.progress.end],
            "history": self.history,
            "data": dict(data),
            "clients": {name: rest for name, (_, rest) in clients.items()},
        }
        tensors = {"module": state, **{name: held for name, (held, _) in clients.items()}}
        self._run_folder().save(self.progress.step, config, tensors, keeps_rng=False)

    def _restore(self, checkpoint: Checkpoint) -> None:
        config, tensors, folder = checkpoint.decoded(SavedRun), checkpoint.tensors, self._run_folder().path
        check_same_arguments(config["arguments"], self._arguments(), folder)
        check_given_again(config["data"], self._fingerprints(), folder)
        load_module("module", self.module, tensors["module"], f"the run in {str(folder)!r}")
        self.parameters = get_parameters(self.module)
        with checkpoint.refused():
            for index, client in enumerate(self.clients):
                name = f"client_{index}"
                client.load_state(tensors.get(name, {}), config["clients"][name])
            step, start, end = config["progress"]
            if step != checkpoint.step or not start <= step <= end:
                raise ValueError(f"progress={config['progress']} is not that of round {checkpoint.step}")
            self.history = decode_history(config["history"], "history", step)
            self.progress.step, self.progress.start, self.progress.end = step, start, end


class SavedRun(TypedDict):
    """The configuration of a checkpoint."""

    arguments: dict[str, Any]
    progress: tuple[Count, Count, Count]
    history: dict[str, list[AnyNumber]]
    data: dict[str, str]
    clients: dict[str, dict[str, Any]]


# ---- a server that looks on


@final
class CuriousServer:
    """Estimates from what a client sends how many of its samples have each class: an `audit` of `FederatedTrainer`.

    It is honest but curious: it follows the protocol, and computes what it can. From the last layer it takes the
    gradient, or, where weights are shared, the pseudo-gradient `(before - after) / (learning rate · steps)`, which is
    the gradient exactly after one step of SGD. Each attack gives counts; its score is the overlap with the true ones,
    `sum_k min(n_k, m_k) / N`. `prior` needs no gradient (the class shares of the server's own samples): read every
    other score against it.

    | score | attack |
    |---|---|
    | `prior` | class shares of `auxiliary` |
    | `llg` | `rlsmooth.audits.counts_llg` |
    | `ilrg` | `rlsmooth.audits.counts_ilrg` |
    | `mean_probabilities` | `rlsmooth.audits.label_counts`, mean probabilities from `auxiliary` |
    | `class_means` | `rlsmooth.audits.counts_from_class_means`, class means from `auxiliary` |

    Without a bias in the last layer only `prior` and `llg` are there, and with masks no `ilrg`. Under masks the server
    is taken to know which classes were legal.

    Args:
        module: of the clients' architecture (copied); its output is that of an `nn.Linear`.
        labels: each client's true labels, int64 `[N]`: only the scores use them.
        num_classes: `K`.
        auxiliary: `(X, y)` or `(X, y, mask)`, labelled samples of the server's own.
        smoothing: the clients' uniform smoothing, if it is known; None: it is estimated where an attack can.
        share: what clients send.
        masks: of each client the mask of its samples, bool `[N, K]`, True = legal; None: all classes are legal.

    Raises:
        TypeError: the module's output is not that of an `nn.Linear`.
        ValueError: the smoothing is not uniform over all classes; masks and labels of different numbers; or as
            `FederatedClient`.
    """

    def __init__(
        self,
        module: nn.Module,
        labels: Sequence[Tensor],
        num_classes: int,
        *,
        auxiliary: Samples,
        smoothing: float | str | Smoothing | None = None,
        share: Share = "weights",
        masks: Sequence[Tensor] | None = None,
    ) -> None:
        self.module = copy.deepcopy(module)
        self.smoothing = None if smoothing is None else as_smoothing(smoothing)
        if self.smoothing is not None and (self.smoothing.reference, self.smoothing.spread) != ("uniform", "all"):
            raise ValueError("smoothing must be uniform over all classes, or None: the attacks know no other.")
        device = next(self.module.parameters()).device
        self._inputs, own, self._mask = labelled_samples(auxiliary, num_classes, model_dtype(module), device)
        layer, _ = last_linear(self.module, self._inputs[:1])
        state = list(self.module.state_dict(keep_vars=True).values())
        places = [[at for at, part in enumerate(state) if part is it] for it in (layer.weight, layer.bias)]
        if not places[0]:
            raise TypeError(
                "module ends in an nn.Linear whose weight is computed from others: the attacks need its own."
            )
        self._weight, self._bias = places[0][0], places[1][0] if places[1] else None
        self._counts = [torch.bincount(part.cpu(), minlength=num_classes).to(torch.float64) for part in labels]
        self._members = nn.functional.one_hot(own.cpu(), num_classes).to(torch.float64)
        self.share = share
        self._masks = None if masks is None else [mask.cpu() for mask in masks]
        if masks is not None and [tuple(mask.shape) for mask in masks] != [(len(part), num_classes) for part in labels]:
            raise ValueError(f"masks must be [N, {num_classes}] for each client's N labels.")

    def __call__(
        self,
        server_round: int,
        client: int,
        before: Parameters,
        after: Parameters,
        count: int,
        metrics: Mapping[str, float],
    ) -> dict[str, float]:
        """The scores for one client in one round, by attack; NaN where an attack finds nothing."""
        true = self._counts[client]
        size, recipe = int(true.sum()), self.smoothing
        alpha: Any = None if recipe is None else recipe.alpha_at(metrics.get("progress_remaining", 1.0))
        mask = None if self._masks is None else self._masks[client]
        set_parameters(self.module, before)
        logits = logits_of(self.module, self._inputs, self._mask, len(self._inputs))
        probabilities, shares = logits.double().softmax(-1).cpu(), self._members.mean(0)
        found = {"prior": shares * size if mask is None else among_legal(shares, mask).sum(0)}
        slopes = self._gradient(self._weight, before, after, metrics)
        found["llg"] = counts_llg(slopes, size)
        if self._bias is not None:
            errors = self._gradient(self._bias, before, after, metrics)
            weight, bias = (torch.from_numpy(before[place]).double() for place in (self._weight, self._bias))
            level = 0.0 if alpha is None else alpha
            means = (self._members.T @ probabilities) / self._members.sum(0).unsqueeze(-1)  # NaN: no sample of a class
            counted: dict[str, Callable[[], Tensor]] = {
                "ilrg": lambda: counts_ilrg(slopes, errors, weight, bias, size, alpha=level),
                "mean_probabilities": lambda: label_counts(errors, probabilities.mean(0), size, alpha=level, mask=mask),
                "class_means": lambda: counts_from_class_means(means, errors, size, alpha=alpha, mask=mask),
            }
            if mask is not None:
                del counted["ilrg"]
            nothing = torch.full_like(shares, math.nan)  # at alpha 1 no target depends on its label
            found |= {name: nothing if level == 1 else counts() for name, counts in counted.items()}
        return {name: _overlap(round_counts(counts, size), true) for name, counts in found.items()}

    def _gradient(self, place: int, before: Parameters, after: Parameters, metrics: Mapping[str, float]) -> Tensor:
        if self.share == "gradients":
            return torch.from_numpy(after[place]).double()
        moved = torch.from_numpy(before[place]).double() - torch.from_numpy(after[place]).double()
        return moved / (metrics["learning_rate"] * metrics["steps"])


def _overlap(counts: Tensor, true: Tensor) -> float:
    return math.nan if bool((counts < 0).any()) else float(torch.minimum(counts, true).sum() / true.sum())
