"""Federated training by Flower: a client app and a server app for `BC` and `Classifier`, and a grid in this process.

    client_app   trains on data that stay where they are, and keeps the optimiser's state from round to round
    server_app   sends parameters to the clients, lets a strategy of Flower's combine the replies, and saves the result
    federate     the same within a server app of your own
    LocalGrid    runs all clients in this process, one after another, for tests

Needs `pip install "rlsmooth[flower]"`. With Flower's `FedAvg`, one client trains as it would without a server.
"""

from __future__ import annotations

import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypedDict

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor, nn

from rlsmooth.agents import BC
from rlsmooth.agents.cloning.measures import VALIDATED
from rlsmooth.agents.spaces import check_same_spaces
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations, space_from_json, space_to_json
from rlsmooth.targets import as_smoothing
from rlsmooth.training import Classifier, FederatedClient
from rlsmooth.training.checkpoint import load_module, load_optimizer, optimizer_to_tensors
from rlsmooth.training.classifier_model import as_device, build_model, model_dtype
from rlsmooth.training.classifier_samples import as_label_array, encode_labels, features_and_classes, prepare_data
from rlsmooth.training.run import Progress, RunFolder
from rlsmooth.untrusted import Count, parse_json

Samples: TypeAlias = Demonstrations | Mapping[str, Any]
"""A client's data: demonstrations, or the arguments `X`, `y`, `sample_weight` and `mask` of `Classifier.fit`."""
Prior: TypeAlias = Tensor | list[Tensor] | None
"""The share of each class among all clients' samples, `[K]`; one for each MultiDiscrete dimension; None: not asked."""
STATE = "rlsmooth"
"""Under this name, a client keeps in its context what it needs in the next round."""
NOT_HERE = {
    "mixup": 0.0,
    "amp": False,
    "validation_fraction": 0.0,
    "early_stopping_patience": None,
    "checkpoint_folder": None,
    "tensorboard_log": None,
}
"""Arguments of a `Classifier` that a client can't have, and their defaults."""


# ---- what both sides share


class _Round(NamedTuple):
    """A round's number, from 1 on, and how many there are."""

    number: int
    total: int

    @property
    def progress(self) -> float:
        """The progress remaining at its start: 1 in the first round."""
        return 1.0 - (self.number - 1) / self.total


def _module_of(agent: BC | Classifier) -> nn.Module:
    """The network that is trained.

    Raises:
        TypeError: it is neither a `BC` nor a `Classifier`.
        ValueError: the classifier has no network yet.
    """
    if isinstance(agent, BC):
        return agent.policy
    if not isinstance(agent, Classifier):
        raise TypeError(f"the server's agent must be a BC or a Classifier, got {type(agent).__name__}.")
    if not agent.__sklearn_is_fitted__():
        raise ValueError("the server's Classifier has no network: make it by Classifier.from_module, with all classes.")
    return agent.module_


def _expectation_of(agent: BC | Classifier) -> dict[str, str]:
    """What the clients' data must fit, in the form that a message takes."""
    if isinstance(agent, BC):
        return {"spaces": json.dumps([space_to_json(space) for space in (agent.observation_space, agent.action_space)])}
    return {"classes": json.dumps(agent.classes_.tolist())}


def _class_sizes(expected: Mapping[str, Any]) -> list[int]:
    """The number of classes, or those of each MultiDiscrete dimension.

    Raises:
        ValueError: the actions are no classes.
    """
    if "classes" in expected:
        return [len(parse_json(expected["classes"]))]
    actions = space_from_json(parse_json(expected["spaces"])[1])
    if isinstance(actions, spaces.Discrete):
        return [int(actions.n)]
    if isinstance(actions, spaces.MultiDiscrete):
        return [int(size) for size in actions.nvec.reshape(-1)]
    raise ValueError(f"prior=True needs Discrete or MultiDiscrete actions, the agent has {actions!r}: leave it out.")


def _prior_of(counts: Sequence[float], sizes: Sequence[int]) -> Prior:
    """The shares of the classes, from the counts of all components, one after another.

    Examples:
        >>> _prior_of([1.0, 3.0], [2])
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    parts = torch.split(torch.tensor(counts, dtype=torch.float64), list(sizes))
    shares = [part / part.sum() for part in parts]
    return shares[0] if len(shares) == 1 else shares


# ---- clients


def client_app(
    load: Callable[[Context], Samples],
    make: Callable[[Any, Prior], BC | Classifier | FederatedClient],
    *,
    local_epochs: int = 1,
    send_label_counts: bool = False,
) -> ClientApp:
    """An app that trains for a round on data that stay here, and sends back parameters.

    Args:
        load: returns this client's data: demonstrations, or the arguments of `Classifier.fit` by name. The context's
            `node_config` and `run_config` say which. It is called for each message.
        make: returns the agent for `(data, prior)`, the same in each round; the server's parameters then replace its
            own. `prior` has the classes' shares among all clients' samples, for `Smoothing(reference=prior)`, if the
            server asks for it, else it is None. A `Classifier` trains as a `FederatedClient` does; one that `make`
            returns is used as it is, with its defence and its own `local_epochs`.
        local_epochs: passes over the data in a round.
        send_label_counts: whether a server that asks gets the numbers of samples of each class.

    Raises:
        TypeError: `local_epochs` is no whole number.
        ValueError: it is below 1. In a round, which the strategy then counts as failed: data that do not fit the
            server's agent, an argument of the agent's that a client can't have.
    """
    check_positive_int("local_epochs", local_epochs)
    app = ClientApp()

    def begin(message: Message, context: Context) -> tuple[BC | FederatedClient, _Round]:
        expected = message.content.config_records["config"]
        data: Any = load(context)
        _check_fits(data, expected)
        counts = expected.get("label-counts")
        prior = None if counts is None else _prior_of(counts, _class_sizes(expected))
        agent = make(data, prior)
        if isinstance(agent, Classifier):
            agent = _as_federated_client(agent, data, expected, prior, local_epochs)
        _check_can_train(agent, expected)
        names = ("server-round", "num-rounds", "first-round")
        if missing := [name for name in names if name not in expected]:
            raise ValueError(f"the server's message has no {missing[0]!r}: use server_app or federate.")
        number, total, first = (int(expected[name]) for name in names)
        return agent, _Round(first - 1 + number, total)

    @app.query()  # type: ignore[untyped-decorator, unused-ignore]
    def query(message: Message, context: Context) -> Message:
        expected, found = message.content.config_records["config"], RecordDict()
        try:
            data = load(context)
            _check_fits(data, expected)
            if expected["asks-for-counts"]:
                if not send_label_counts:
                    raise ValueError("it does not send label counts: give client_app(send_label_counts=True).")
                found["counts"] = MetricRecord({"label-counts": _label_counts(data, expected)})
        except ValueError as error:
            found["config"] = ConfigRecord({"problem": str(error)})
        return Message(content=found, reply_to=message)

    @app.train()  # type: ignore[untyped-decorator, unused-ignore]
    def train(message: Message, context: Context) -> Message:
        agent, number = begin(message, context)
        given = message.content.array_records["arrays"]
        if isinstance(agent, BC):
            arrays, metrics = _train_bc(agent, given, number, local_epochs, context)
        else:
            arrays, metrics = _train_federated(agent, given, number, context)
        return Message(content=RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)

    @app.evaluate()  # type: ignore[untyped-decorator, unused-ignore]
    def evaluate(message: Message, context: Context) -> Message:
        agent, number = begin(message, context)
        metrics = _measures_of(agent, message.content.array_records["arrays"], number)
        return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


def _check_fits(data: Samples, expected: Mapping[str, Any]) -> None:
    """Raise ValueError unless a client's data can train the server's agent.

    It says that they are of another kind, that there are none, which spaces differ, or which label is none of the
    server's classes.
    """
    if isinstance(data, Demonstrations):
        if "spaces" not in expected:
            raise ValueError("data are demonstrations, but the server trains a Classifier: load X and y.")
        theirs, ours = (space_from_json(space) for space in parse_json(expected["spaces"]))
        check_same_spaces("data", (data.observation_space, data.action_space), (theirs, ours))
        if not len(data):
            raise ValueError("data have no transition: a client needs at least one.")
    elif isinstance(data, Mapping) and {"X", "y"} <= data.keys():
        if "classes" not in expected:
            raise ValueError("data have X and y, but the server trains a BC: load demonstrations.")
        _, labels, classes = features_and_classes(data["X"], data["y"], parse_json(expected["classes"]))
        if unknown := sorted(set(labels.tolist()) - set(classes.tolist()), key=str):
            raise ValueError(
                f"y has {unknown[0]!r}, which is none of the server's classes {classes.tolist()}: make the server's "
                "Classifier with all classes."
            )
        if more := data.keys() - {"X", "y", "sample_weight", "mask"}:
            raise ValueError(f"data have {min(more)!r}, which a client can't use: X, y, sample_weight and mask.")
    else:
        raise ValueError(f"data must be demonstrations, or a dict with X and y, got {type(data).__name__}.")


def _label_counts(data: Samples, expected: Mapping[str, Any]) -> list[float]:
    """The number of samples of each class, counted by their weights; of all components, one after another."""
    sizes = _class_sizes(expected)
    if isinstance(data, Demonstrations):
        labels, weights = data.action_labels.reshape(len(data), -1), data.weights
    else:
        classes = np.asarray(parse_json(expected["classes"]))
        labels, weights = encode_labels(as_label_array(data["y"], len(data["y"])), classes), data.get("sample_weight")
        labels = labels.reshape(-1, 1)
    weights = None if weights is None else np.asarray(weights)
    counts = [np.bincount(labels[:, place], weights, minlength=size) for place, size in enumerate(sizes)]
    return [float(count) for count in np.concatenate(counts)]


def _as_federated_client(
    classifier: Classifier, data: Mapping[str, Any], expected: Mapping[str, Any], prior: Prior, local_epochs: int
) -> FederatedClient:
    """A client with the arguments of a classifier.

    Raises:
        ValueError: one of them can't be used in rounds; see also `Classifier.fit`.
    """
    if "classes" not in expected:
        raise ValueError("make returned a Classifier, but the server trains a BC: return a BC.")
    if changed := [name for name, default in NOT_HERE.items() if getattr(classifier, name) != default]:
        raise ValueError(f"{changed[0]}={getattr(classifier, changed[0])!r} can't be used by a client: leave it out.")
    if not isinstance(classifier.learning_rate, (int, float)):
        raise ValueError(f"learning_rate={classifier.learning_rate!r} must be a number for a client.")
    class_weight = classifier.class_weight
    if isinstance(class_weight, str) and class_weight == "balanced":
        if not isinstance(prior, Tensor):
            raise ValueError("class_weight='balanced' needs all clients' classes: the server must ask by prior=True.")
        class_weight = torch.where(prior > 0, 1.0 / (prior.count_nonzero() * prior), 1.0)
    features, labels, classes = features_and_classes(data["X"], data["y"], parse_json(expected["classes"]))
    seed = classifier.seed or 0
    module = build_model(classifier.model, features, len(classes), seed=seed).to(as_device(classifier.device))
    found = prepare_data(
        data["X"],
        labels,
        data.get("sample_weight"),
        validation=None,
        target=None,
        mask=data.get("mask"),
        classes=classes,
        smoothing=as_smoothing(classifier.smoothing),
        class_weight=class_weight,
        validation_fraction=0.0,
        seed=seed,
        device=as_device(classifier.device),
        dtype=model_dtype(module),
    )
    samples = found.samples
    return FederatedClient(
        module,
        samples.inputs,
        samples.labels,
        len(classes),
        smoothing=found.smoothing,
        mask=samples.mask,
        sample_weight=samples.weights,
        optimizer="adam",
        learning_rate=classifier.learning_rate,
        weight_decay=classifier.weight_decay,
        max_grad_norm=classifier.max_grad_norm,
        batch_size=classifier.batch_size,
        local_epochs=local_epochs,
        keep_optimizer=True,
        seed=seed,
    )


def _check_can_train(agent: BC | FederatedClient, expected: Mapping[str, Any]) -> None:
    """Raise unless an agent can train in rounds.

    Raises:
        TypeError: it is another object.
        ValueError: an argument that is for a run without a server, or a strategy that asks for what clients have not.
    """
    if expected.get("proximal-mu", 0.0):
        raise ValueError("the strategy asks for FedProx's term, which clients don't have: use another, such as FedAvg.")
    if isinstance(agent, FederatedClient):
        if agent.share != "weights":
            raise ValueError("share='gradients' can't be averaged by Flower's strategies: share weights.")
        return
    if not isinstance(agent, BC):
        raise TypeError(f"make must return a BC, a Classifier or a FederatedClient, got {type(agent).__name__}.")
    for name in ("checkpoint_folder", "early_stopping", "eval_env"):
        if getattr(agent, name) is not None:
            raise ValueError(f"{name} is for a run without a server: leave it out of a client's BC.")
    actions = agent.action_space
    if isinstance(actions, spaces.Box) and agent.bins is None and not actions.is_bounded():
        raise ValueError(f"{actions!r} has no bounds, so that clients would have different targets: give bounds.")


def _train_bc(
    agent: BC, arrays: ArrayRecord, number: _Round, local_epochs: int, context: Context
) -> tuple[ArrayRecord, dict[str, float]]:
    """Train for the epochs of a round, which are those of a run over all rounds. Returns parameters and metrics."""
    load_module("the client's policy", agent.policy, arrays.to_torch_state_dict(), "the server's parameters")
    optimizer, kept = agent.policy.optimizer, _kept_state(context)
    if kept is not None:
        tensors, config = kept
        agent.rng = {name: tensors.pop(f"rng.{name}") for name in config["rng"]}
        load_optimizer(optimizer, tensors, config["optimizer"])
    updates = local_epochs * agent.batches_per_epoch
    progress, agent.is_resumed = agent.progress, True
    progress.start, progress.step, progress.end = 0, (number.number - 1) * updates, number.total * updates
    end = _EndOfRound(updates)
    agent.learn(total_batches=progress.end, callback=end, log_interval=progress.end + 1)
    tensors, config = optimizer_to_tensors(optimizer)
    rng = {f"rng.{name}": tensor for name, tensor in agent.rng.items()}
    _keep_state(context, tensors | rng, {"optimizer": config, "rng": list(agent.rng)})
    metrics = {"num-examples": _size_of(agent), "loss": float(torch.stack(end.losses).mean())}
    return ArrayRecord(agent.policy.state_dict()), metrics


class _EndOfRound(BaseCallback):
    """Ends training after some updates, and keeps their losses."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.updates = updates
        self.losses: list[Tensor] = []

    def _on_step(self) -> bool:
        self.losses.append(torch.as_tensor(self.locals["loss"]))
        return self.n_calls < self.updates


def _train_federated(
    client: FederatedClient, arrays: ArrayRecord, number: _Round, context: Context
) -> tuple[ArrayRecord, dict[str, float]]:
    """The same by a client that has its own loop. One with a defence keeps the loss, which has no noise, to itself."""
    if (kept := _kept_state(context)) is not None:
        client.load_state(*kept)
    parameters = _parameters_for(client.module, arrays)
    config = {"server_round": number.number, "progress_remaining": number.progress}
    _, size, metrics = client.fit(parameters, config)
    _keep_state(context, *client.state())
    shown = "loss" if client.defence is None else "epsilon"
    value = metrics["loss"] if client.defence is None else client.epsilon
    return ArrayRecord(client.module.state_dict()), {"num-examples": size, shown: value}


def _parameters_for(module: nn.Module, arrays: ArrayRecord) -> list[NDArray[Any]]:
    """The arrays in the order of the module's state.

    Raises:
        ValueError: they are those of another module.
    """
    load_module("the client's network", module, arrays.to_torch_state_dict(), "the server's parameters")
    return [arrays[name].numpy() for name in module.state_dict()]


def _measures_of(agent: BC | FederatedClient, arrays: ArrayRecord, number: _Round) -> dict[str, float]:
    """Measures of the server's parameters on held-out demonstrations, or on the client's samples where none are."""
    if isinstance(agent, FederatedClient) and agent.defence is not None:
        return {"num-examples": agent.size}  # a measure without noise would weaken the defence
    if isinstance(agent, FederatedClient):
        loss, size, found = agent.evaluate(_parameters_for(agent.module, arrays), {})
        return {"num-examples": size, "loss": loss, **found}
    load_module("the client's policy", agent.policy, arrays.to_torch_state_dict(), "the server's parameters")
    measures = agent.measures
    measured = measures.validation(number.progress) or measures.training(number.progress)
    return {"num-examples": _size_of(agent)} | {name: measured[name] for name in VALIDATED if name in measured}


def _size_of(agent: BC) -> float:
    """The number of transitions that a client trains on, or the sum of their weights."""
    data = agent.demonstrations
    assert data is not None
    return len(data) if data.weights is None else float(np.asarray(data.weights, dtype=np.float64).sum())


def _keep_state(context: Context, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Keep tensors and JSON in a client's context."""
    context.state[STATE] = ArrayRecord(dict(tensors))
    context.state[f"{STATE}-config"] = ConfigRecord({"json": json.dumps(config)})


def _kept_state(context: Context) -> tuple[dict[str, Tensor], Any] | None:
    """What `_keep_state` kept in an earlier round, or None."""
    if STATE not in context.state:
        return None
    return dict(context.state.array_records[STATE].to_torch_state_dict()), parse_json(
        str(context.state.config_records[f"{STATE}-config"]["json"])
    )


# ---- the server


def server_app(make: Callable[[Context], BC | Classifier], **arguments: Any) -> ServerApp:
    """An app that trains an agent by `federate` and saves it.

    Its run's configuration has `num-server-rounds`, and may have `save-to`, the agent's file, `checkpoint-folder` and
    `resume`; an empty text counts as not given. Paths are those of the machine where Flower's SuperLink runs, and of
    its folder: give absolute ones.

    Args:
        make: returns the agent, whose parameters are the start: a `BC` with spaces and without demonstrations, or a
            `Classifier.from_module` with all classes.
        arguments: of `federate`, which replace the configuration's.
    """
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator, unused-ignore]
    def main(grid: Grid, context: Context) -> None:
        agent, config = make(context), context.run_config
        names = {"rounds": "num-server-rounds", "checkpoint_folder": "checkpoint-folder", "resume": "resume"}
        given = {argument: config[name] for argument, name in names.items() if config.get(name, "") != ""}
        federate(grid, agent, **(given | arguments))
        if config.get("save-to"):
            agent.save(str(config["save-to"]))

    return app


class _SavedServer(TypedDict):
    """The configuration of a checkpoint."""

    rounds: Count
    expected: dict[str, str]


def federate(
    grid: Grid,
    agent: BC | Classifier,
    *,
    rounds: int,
    strategy: Strategy | None = None,
    prior: bool = False,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    checkpoint_folder: str | Path | None = None,
    resume: bool = False,
    timeout: float = 3600.0,
) -> Result:
    """Train an agent on the data of all clients; it then has the last round's parameters.

    Before the first round, each client is asked whether its data fit the agent.

    Args:
        grid: of the server app.
        agent: a `BC` or a fitted `Classifier`.
        rounds: how often clients train and the strategy combines their parameters; schedules refer to it.
        strategy: one of Flower's; None: its `FedAvg`, which waits for two clients. Clients count by their numbers of
            samples, or the sum of their weights.
        prior: ask the clients for the numbers of samples of each class, and send all clients the shares of their sum.
        evaluate: returns numbers for the agent with the parameters of a round; called before the first round too.
        checkpoint_folder: a checkpoint follows each round, for `resume`; None: none.
        resume: continue from the last checkpoint, or start if there is none. A strategy's own state, such as that of
            `FedAdam`, and the optimisers of clients whose context is new start afresh; without them, the result is that
            of an uninterrupted run, bit for bit.
        timeout: seconds that a round waits for replies.

    Returns:
        Flower's record of the metrics of each round, counted from the first of this call.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a client's data do not fit the agent; a checkpoint folder of another run.
        RuntimeError: no client answered, or none trained in the first round.

    Warns:
        RuntimeWarning: the prior leaves out a client that did not answer.
    """
    module, expected = _module_of(agent), _expectation_of(agent)
    check_positive_int("rounds", rounds)
    strategy = FedAvg() if strategy is None else strategy
    folder, done = None, 0
    if checkpoint_folder is None and resume:
        raise ValueError("resume=True needs the run's checkpoint_folder.")
    if checkpoint_folder is not None:
        folder = RunFolder(checkpoint_folder, unit="round", resume="federate(..., resume=True)")
        done = _restored_rounds(folder, module, expected, rounds, resume=resume)
    answers = _ask_clients(grid, strategy, expected, prior=prior, timeout=timeout)
    config = {**expected, **answers, "num-rounds": rounds, "first-round": done + 1}
    start = ArrayRecord(module.state_dict())

    def after_round(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number and arrays is start:
            raise RuntimeError("no client trained in the first round: Flower's log has the reason that each gave.")
        load_module("the server's agent", module, arrays.to_torch_state_dict(), "the strategy's parameters")
        if number and folder is not None:
            saved = {"rounds": rounds, "expected": expected}
            folder.save(done + number, saved, {"module": module.state_dict()}, keeps_rng=False)
        return (
            None if evaluate is None else MetricRecord({name: float(value) for name, value in evaluate(agent).items()})
        )

    return strategy.start(
        grid=grid,
        initial_arrays=start,
        num_rounds=rounds - done,
        timeout=timeout,
        train_config=ConfigRecord(config),
        evaluate_config=ConfigRecord(config),
        evaluate_fn=after_round,
    )


def _restored_rounds(
    folder: RunFolder, module: nn.Module, expected: Mapping[str, str], rounds: int, *, resume: bool
) -> int:
    """Put a checkpoint's parameters into the module if a run is resumed. Returns how many rounds are done.

    Raises:
        ValueError: the checkpoints are another run's.
        SafeFileError: none can be read.
    """
    checkpoint = folder.begin(resume=resume)
    if checkpoint is None:
        return 0
    saved = checkpoint.decoded(_SavedServer)
    Progress(end=saved["rounds"]).begin(rounds, "rounds", is_resumed=True)
    if saved["expected"] != dict(expected):
        raise ValueError(
            f"{str(folder.path)!r} holds the run of an agent with other spaces or classes: {saved['expected']}."
        )
    load_module("the server's agent", module, checkpoint.tensors["module"], f"the run in {str(folder.path)!r}")
    return checkpoint.step


def _ask_clients(
    grid: Grid, strategy: Strategy, expected: Mapping[str, str], *, prior: bool, timeout: float
) -> dict[str, list[float]]:
    """Ask all clients that are connected whether their data fit, and, for a prior, how many samples each class has.

    Raises:
        ValueError: the data of one don't fit.
        RuntimeError: none answered.
    """
    sizes = _class_sizes(expected) if prior else []
    needed = max(getattr(strategy, name, 1) for name in ("min_available_nodes", "min_train_nodes"))
    while len(nodes := list(grid.get_node_ids())) < needed:
        time.sleep(1)
    question = RecordDict({"config": ConfigRecord({**expected, "asks-for-counts": prior})})
    messages = [Message(content=question, message_type=MessageType.QUERY, dst_node_id=node) for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    answers = {reply.metadata.src_node_id: reply.content for reply in replies if not reply.has_error()}
    problems = {node: found["config"]["problem"] for node, found in answers.items() if "config" in found}
    if problems:
        node, problem = min(problems.items())
        raise ValueError(f"{len(problems)} of {len(nodes)} clients can't train this agent. Client {node}: {problem}")
    if not answers:
        reasons = [str(reply.error.reason) for reply in replies] or ["no reply came in time"]
        raise RuntimeError(f"none of {len(nodes)} clients answered: {reasons[0]}.")
    if not prior:
        return {}
    if len(answers) < len(nodes):
        warnings.warn(f"The prior is that of {len(answers)} of {len(nodes)} clients.", RuntimeWarning, stacklevel=3)
    counts = [answers[node]["counts"]["label-counts"] for node in sorted(answers)]
    total = [math.fsum(column) for column in zip(*counts, strict=True)]
    assert len(total) == sum(sizes)
    return {"label-counts": total}


# ---- all clients in this process


class LocalGrid(Grid):  # type: ignore[misc, unused-ignore]
    """A grid that runs each client in this process, one after another: exact, without sockets and other processes.

    As with Flower's own grids, a client's error becomes an error reply, and clients keep their contexts.

    Args:
        app: the clients'.
        num_clients: how many there are; a context has `partition-id` and `num-partitions`.
        run_config: of all contexts.

    Attributes:
        contexts: by the number of the node, from 1 on.
        bytes_sent: the size of all arrays that went to clients and back.
    """

    def __init__(self, app: ClientApp, num_clients: int, run_config: Mapping[str, Any] | None = None) -> None:
        self.app = app
        self.contexts = {
            place + 1: Context(
                run_id=1,
                node_id=place + 1,
                node_config={"partition-id": place, "num-partitions": num_clients},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for place in range(check_positive_int("num_clients", num_clients))
        }
        self.bytes_sent = 0
        self._numbers, self._replies = itertools.count(), dict[str, Message]()
        from flwr.supercore.task_identity import TaskIdentity  # where Message looks for the run's numbers

        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0

    def deliver(self, message: Message) -> Message | None:
        """A client's reply; None if there is none, as a subclass may decide to test what a strategy does then."""
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            return Message(Error(code=2, reason=f"{type(error)}:<'{error}'>"), reply_to=message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies of the clients; `timeout` does not count."""
        return self.pull_messages(self.push_messages(messages))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let the clients answer. Returns the numbers of their replies."""
        numbers = []
        for message in messages:
            reply = self.deliver(message)
            for one in (message, reply):
                if one is not None and one.has_content():
                    self.bytes_sent += sum(record.count_bytes() for record in one.content.array_records.values())
            if reply is not None:
                numbers.append(str(next(self._numbers)))
                self._replies[numbers[-1]] = reply
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies of these numbers."""
        return [self._replies.pop(number) for number in message_ids]

    def get_node_ids(self) -> list[int]:
        """The numbers of the clients, from 1 on."""
        return list(self.contexts)

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        """A message of the server's."""
        return Message(*arguments, **named)

    def set_run(self, run: Any) -> None:
        """Does nothing: there is one run."""

    @property
    def run(self) -> Any:
        """None: there is no run of Flower's."""
        return None
