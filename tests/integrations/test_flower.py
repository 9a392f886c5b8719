"""Federated training by Flower against the same agents' own training, and against counts of pooled data."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("flwr.app")
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg, FedProx
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor

from rlsmooth.agents import BC
from rlsmooth.data import Demonstrations, cartpole_v1
from rlsmooth.integrations.flower import LocalGrid, client_app, federate, server_app
from rlsmooth.targets import Smoothing
from rlsmooth.training import Classifier, FederatedClient
from support import KilledError

pytestmark = pytest.mark.filterwarnings("default")  # Flower and what it imports warn of their own coming changes
COUNT, ROUNDS, EPOCHS = 53, 4, 2
FLAT = spaces.Box(-1, 1, (3,), np.float32)
PARTS = [np.arange(5), np.arange(5, 29), np.arange(29, COUNT)]
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(COUNT, 3)).astype(np.float32)
Y = np.array(["a", "b", "c"])[GENERATOR.choice(3, COUNT, p=[0.6, 0.3, 0.1])]
Y[PARTS[0]] = "a"  # one client has one class
WEIGHTS = GENERATOR.uniform(0.2, 3.0, COUNT)
SPACES = {
    "discrete": spaces.Discrete(3, start=1),
    "multi_discrete": spaces.MultiDiscrete([2, 4]),
    "box": spaces.Box(-3.0, 1.0, (2,), np.float32),
}


class DropoutExtractor(FlattenExtractor):
    """Half of the observation."""

    def forward(self, observations: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(observations), 0.5, self.training)


def demonstrations(kind: str = "discrete", part: Any = slice(None), weighted: bool = False) -> Demonstrations:
    space = SPACES[kind]
    space.seed(0)
    actions = np.stack([np.asarray(space.sample()) for _ in range(COUNT)])[part]
    weights = WEIGHTS[part] if weighted else None
    return Demonstrations.from_arrays(
        *(X[part], actions), observation_space=FLAT, action_space=space, episode_ends=[len(actions)], weights=weights
    )


def clone(data: Demonstrations | None, kind: str = "discrete", **arguments: Any) -> BC:
    settings = {"batch_size": 8, "smoothing": 0.1, "seed": 0, "device": "cpu", "learning_rate": 0.05} | arguments
    return BC("MlpPolicy", (FLAT, SPACES[kind]), data, **settings)


def sgd(optimizer: Any = torch.optim.SGD, **more: Any) -> dict[str, Any]:
    return {"policy_kwargs": {"net_arch": [8], "optimizer_class": optimizer, **more}}


ADAM = sgd(torch.optim.Adam)


def gap(one: nn.Module, two: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def few(**arguments: Any) -> FedAvg:
    return FedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1, **arguments)


class Grid(LocalGrid):
    """Keeps the reasons of errors; messages to some clients get lost; contexts may be emptied."""

    lost: tuple[int, ...] = ()
    forgets = False

    def deliver(self, message: Message) -> Message | None:
        self.errors = vars(self).get("errors", [])
        node = message.metadata.dst_node_id
        if node in self.lost and message.metadata.message_type == MessageType.TRAIN:
            return None
        if self.forgets:
            self.contexts[node].state = RecordDict()
        reply = super().deliver(message)
        if reply is not None and reply.has_error():
            self.errors.append(reply.error.reason)
        return reply


def partition(context: Context) -> np.ndarray:
    return PARTS[int(context.node_config["partition-id"])]


# ---- one client is the agent alone


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("kind", "arguments", "bound"),
    [
        ("discrete", sgd(), 0),
        ("discrete", sgd(features_extractor_class=DropoutExtractor), 0),
        ("multi_discrete", sgd(), 0),
        ("box", {"learning_rate": 1e-3, **sgd()}, 0),
        ("discrete", sgd() | {"smoothing": "lin_0.3", "learning_rate": "lin_0.1", "l2_coef": 0.1}, 0),
        ("discrete", ADAM, 1e-6),
        ("box", ADAM | {"max_grad_norm": 0.5, "gradient_accumulation": 3}, 1e-6),
        ("discrete", ADAM | {"engine": "numpy"}, 1e-6),
    ],
)
def test_one_client_clones_as_without_a_server(kind: str, arguments: Any, bound: float, weighted: bool) -> None:
    data = demonstrations(kind, weighted=weighted)
    central = clone(data, kind, **arguments).learn(total_epochs=ROUNDS * EPOCHS)
    app = client_app(lambda context: data, lambda given, prior: clone(given, kind, **arguments), local_epochs=EPOCHS)
    agent = clone(None, kind, **arguments)
    assert gap(agent.policy, central.policy) > 1e-3
    result = federate(Grid(app, 1), agent, rounds=ROUNDS, strategy=few())
    assert gap(agent.policy, central.policy) <= bound
    assert len(result.train_metrics_clientapp) == len(result.evaluate_metrics_clientapp) == ROUNDS


def test_an_optimizer_whose_state_is_lost_trains_otherwise() -> None:
    data, agents = demonstrations(), [clone(None, **ADAM) for _ in range(2)]
    app = client_app(lambda context: data, lambda given, prior: clone(given, **ADAM))
    for agent, forgets in zip(agents, (False, True), strict=True):
        grid = Grid(app, 1)
        grid.forgets = forgets
        federate(grid, agent, rounds=ROUNDS, strategy=few())
    assert gap(agents[0].policy, agents[1].policy) > 1e-3


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(1)
    if norm:  # in float64: Adam makes steps of rounding errors where an exact gradient is 0, before BatchNorm
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))


def classifier(norm: bool = False, **arguments: Any) -> Classifier:
    settings = {"batch_size": 8, "seed": 0, "device": "cpu", "learning_rate": 0.03, "smoothing": 0.2}
    return Classifier(network(norm), **(settings | arguments))


def fitted(norm: bool = False) -> Classifier:
    return Classifier.from_module(network(norm), ["a", "b", "c"], (3,))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(
    "arguments", [{}, {"norm": True}, {"weight_decay": 0.3, "max_grad_norm": 0.1}, {"class_weight": "balanced"}]
)
def test_one_client_classifies_as_without_a_server(arguments: Any, weights: Any) -> None:
    mask = np.random.default_rng(1).random((COUNT, 3)) < 0.7
    mask[np.arange(COUNT), np.searchsorted(["a", "b", "c"], Y)] = True
    data = {"X": X, "y": Y, "sample_weight": weights, "mask": mask}
    central = classifier(max_epochs=ROUNDS * EPOCHS, **arguments).fit(**data)
    app = client_app(
        *(lambda context: data, lambda given, prior: classifier(**arguments)),
        local_epochs=EPOCHS,
        send_label_counts=True,
    )
    agent = fitted("norm" in arguments)
    federate(Grid(app, 1), agent, rounds=ROUNDS, strategy=few(), prior=True)
    assert gap(agent.module_, central.module_) < 1e-6
    np.testing.assert_allclose(agent.predict_proba(X), central.predict_proba(X), atol=1e-6)


# ---- several clients


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_of_each_client_is_a_step_on_all_data(weighted: bool) -> None:
    arguments = sgd() | {"batch_size": COUNT, "learning_rate": 0.5}
    central = clone(demonstrations(weighted=weighted), **arguments).learn(total_epochs=ROUNDS)
    app = client_app(
        lambda context: demonstrations(part=partition(context), weighted=weighted),
        lambda given, prior: clone(given, **arguments),
    )
    agent, grid = clone(None, **arguments), Grid(app, len(PARTS))
    federate(grid, agent, rounds=ROUNDS)
    assert gap(agent.policy, central.policy) < 1e-6
    size = sum(parameter.numel() for parameter in agent.policy.parameters())
    # To the clients twice, for training and measures, and back once; each array has a header.
    assert (
        3 * 4 * size < grid.bytes_sent / (ROUNDS * len(PARTS)) < 3 * 4 * size + 3 * 200 * len(agent.policy.state_dict())
    )


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "classes"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_prior_is_that_of_all_data(kind: str, weighted: bool) -> None:
    seen: list[Any] = []
    if kind == "classes":
        agent: Any = fitted()
        labels, sizes = np.searchsorted(["a", "b", "c"], Y).reshape(-1, 1), [3]

        def load(context: Context) -> Any:
            part = partition(context)
            return {"X": X[part], "y": Y[part], "sample_weight": WEIGHTS[part] if weighted else None}

        def make(data: Any, prior: Any) -> Any:
            seen.append(prior)
            return classifier(smoothing=Smoothing(0.1, reference=prior), class_weight="balanced")

    else:
        agent, everything = clone(None, kind), demonstrations(kind)
        labels = everything.action_labels.reshape(COUNT, -1)
        sizes = [3] if kind == "discrete" else [2, 4]

        def load(context: Context) -> Any:
            return demonstrations(kind, partition(context), weighted)

        def make(data: Any, prior: Any) -> Any:
            seen.append(prior)
            priors = [prior] if kind == "discrete" else prior
            recipes = [Smoothing(0.1, reference=one) for one in priors]
            return clone(data, kind, smoothing=recipes[0] if kind == "discrete" else recipes)

    result = federate(Grid(client_app(load, make, send_label_counts=True), 3), agent, rounds=1, prior=True)
    weights = WEIGHTS if weighted else np.ones(COUNT)
    expected = [
        np.array([weights[labels[:, place] == label].sum() for label in range(size)]) / weights.sum()
        for place, size in enumerate(sizes)
    ]
    assert len(seen) == 6  # three clients train, then measure
    for prior in seen:
        for found, one in zip(prior if kind == "multi_discrete" else [prior], expected, strict=True):
            np.testing.assert_allclose(found, one, rtol=1e-12)
    assert np.isfinite(result.train_metrics_clientapp[1]["loss"])


def test_balanced_weights_are_those_of_all_data() -> None:
    central = classifier(max_epochs=1, batch_size=COUNT, class_weight="balanced", learning_rate=1e-3)
    central.model = nn.Linear(3, 3)  # BatchNorm would see each client's samples alone
    app = client_app(
        lambda context: {"X": X[partition(context)], "y": Y[partition(context)]},
        lambda data, prior: FederatedClient(
            nn.Linear(3, 3), data["X"], np.searchsorted(["a", "b", "c"], data["y"]), 3,
            sample_weight=(1 / prior).numpy()[np.searchsorted(["a", "b", "c"], data["y"])],
            smoothing=0.2, learning_rate=0.5, batch_size=None,
        ),
        send_label_counts=True,
    )  # fmt: skip
    start = nn.Linear(3, 3)
    agent = Classifier.from_module(start, ["a", "b", "c"], (3,))
    before = {name: value.clone() for name, value in start.state_dict().items()}
    federate(Grid(app, 3), agent, rounds=1, prior=True)
    # One step of gradient descent on the loss of scikit-learn's balanced weights, written out.
    labels = np.searchsorted(["a", "b", "c"], Y)
    weights = torch.from_numpy(COUNT / (3 * np.bincount(labels))[labels]).double()
    reference = nn.Linear(3, 3).double()
    reference.load_state_dict(before)
    losses = nn.functional.cross_entropy(
        reference(torch.from_numpy(X).double()), torch.from_numpy(labels), label_smoothing=0.2, reduction="none"
    )
    ((weights * losses).sum() / weights.sum()).backward()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.5 * parameter.grad
    assert gap(agent.module_, reference) < 1e-6


def test_a_strategy_may_do_without_a_client() -> None:
    arguments = sgd()
    central = clone(demonstrations(part=PARTS[1]), **arguments).learn(total_epochs=ROUNDS)

    def load(context: Context) -> Demonstrations:
        return demonstrations(part=partition(context))

    def make(data: Demonstrations, prior: Any) -> BC:
        if len(data) == len(PARTS[0]):
            raise OSError("the disk is full")
        return clone(data, **arguments)

    agent, grid = clone(None, **arguments), Grid(client_app(load, make), 3)
    grid.lost = (3,)
    federate(grid, agent, rounds=ROUNDS, strategy=few(fraction_evaluate=0.0))
    assert gap(agent.policy, central.policy) == 0
    assert len(grid.errors) == ROUNDS
    assert "the disk is full" in grid.errors[0]


# ---- a server that is interrupted


@pytest.mark.parametrize("same_grid", [False, True])
def test_a_resumed_server_ends_with_the_same_bits(tmp_path: Any, same_grid: bool) -> None:
    arguments = ADAM if same_grid else sgd()
    app = client_app(
        lambda context: demonstrations(part=partition(context)), lambda data, prior: clone(data, **arguments)
    )
    whole = clone(None, **arguments)
    federate(Grid(app, 2), whole, rounds=ROUNDS)
    calls: list[int] = []

    def dies(agent: BC) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise KilledError
        return {"calls": len(calls)}

    grid, settings = Grid(app, 2), {"rounds": ROUNDS, "checkpoint_folder": tmp_path}
    with pytest.raises(KilledError):
        federate(grid, clone(None, **arguments), evaluate=dies, **settings)
    with pytest.raises(ValueError, match="another run's checkpoints"):
        federate(grid, clone(None, **arguments), **settings)
    with pytest.raises(ValueError, match="rounds=4, not 5"):
        federate(grid, clone(None, **arguments), resume=True, **(settings | {"rounds": 5}))
    with pytest.raises(ValueError, match="other spaces or classes"):
        federate(grid, fitted(), resume=True, **settings)
    agent = clone(None, **arguments, seed=3)
    result = federate(grid if same_grid else Grid(app, 2), agent, resume=True, **settings)
    assert len(result.train_metrics_clientapp) == 2
    assert gap(agent.policy, whole.policy) == 0


# ---- what can't work


def other(**changed: Any) -> Demonstrations:
    given = {"observation_space": FLAT, "action_space": SPACES["discrete"], "episode_ends": [1]} | changed
    return Demonstrations.from_arrays(np.zeros((1, *given["observation_space"].shape)), [1], **given)


@pytest.mark.parametrize(
    ("agent", "data", "problem"),
    [
        ("clone", lambda: other(action_space=spaces.Discrete(4)), r"data has action_space=Discrete\(4\)"),
        ("clone", lambda: other(observation_space=spaces.Box(-1, 1, (2,))), "data has observation_space="),
        ("clone", lambda: {"X": X, "y": Y}, "server trains a BC: load demonstrations"),
        ("clone", lambda: None, "data must be demonstrations, or a dict with X and y, got NoneType"),
        ("classifier", demonstrations, "server trains a Classifier: load X and y"),
        (
            "classifier",
            lambda: {"X": X, "y": np.where(Y == "a", "d", Y)},
            r"y has 'd', which is none of the server's classes \['a', ",
        ),
        ("classifier", lambda: {"X": X[:0], "y": Y[:0]}, r"X has 0 sample\(s\)"),
        ("classifier", lambda: {"X": X, "y": Y, "target": 1}, "data have 'target', which a client can't use"),
        ("counts", demonstrations, r"does not send label counts: give client_app\(send_label_counts=True\)"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_the_first_round(agent: str, data: Any, problem: str) -> None:
    app = client_app(
        lambda context: demonstrations() if context.node_id == 1 and agent == "clone" else data(),
        lambda given, prior: pytest.fail("no client may train"),
    )
    made = fitted() if agent == "classifier" else clone(None)
    with pytest.raises(ValueError, match=rf"of 2 clients can't train this agent. Client [12]: .*{problem}"):
        federate(Grid(app, 2), made, rounds=1, prior=agent == "counts")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda data: clone(data, early_stopping_patience=1, validation=data), "early_stopping is for a run without"),
        (lambda data: clone(data, checkpoint_folder="nowhere"), "checkpoint_folder is for a run without a server"),
        (lambda data: clone(data, policy_kwargs={"net_arch": [3]}), "client's policy does not fit the server's"),
        (lambda data: classifier(), "make returned a Classifier, but the server trains a BC"),
        (lambda data: data, "make must return a BC, a Classifier or a FederatedClient, got Demonstrations"),
    ],
)
def test_a_client_that_can_not_train_says_why(make: Any, problem: str) -> None:
    app = client_app(lambda context: demonstrations(), lambda data, prior: make(data))
    grid = Grid(app, 2)
    with pytest.raises(RuntimeError, match="no client trained in the first round"):
        federate(grid, clone(None), rounds=2)
    assert len({str(error) for error in grid.errors}) == 1
    assert re.search(problem, grid.errors[0]), grid.errors[0]


def test_other_mistakes_are_clear() -> None:
    unbounded = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    free = Demonstrations.from_arrays(
        X, np.zeros((COUNT, 2)), observation_space=FLAT, action_space=unbounded, episode_ends=[COUNT]
    )
    agent = BC("MlpPolicy", (FLAT, unbounded), None, device="cpu")
    grid = Grid(client_app(lambda context: free, lambda data, prior: BC("MlpPolicy", None, data, device="cpu")), 2)
    with pytest.raises(RuntimeError, match="no client trained"):
        federate(grid, agent, rounds=1)
    assert "clients would have different targets" in grid.errors[0]
    with pytest.raises(ValueError, match="prior=True needs Discrete or MultiDiscrete"):
        federate(grid, agent, rounds=1, prior=True)

    data = {"X": X, "y": Y}
    for made, problem in (
        (lambda: classifier(mixup=0.2), "mixup=0.2 can't be used by a client"),
        (lambda: classifier(learning_rate="lin_1e-2"), "learning_rate='lin_1e-2' must be a number"),
        (lambda: classifier(class_weight="balanced"), "the server must ask by prior=True"),
        (
            lambda: FederatedClient(network(), X, np.searchsorted(["a", "b", "c"], Y), 3, share="gradients"),
            "share='gradients' can't be averaged",
        ),
    ):
        grid = Grid(client_app(lambda context: data, lambda given, prior, made=made: made()), 2)
        with pytest.raises(RuntimeError, match="no client trained"):
            federate(grid, fitted(), rounds=1)
        assert problem in grid.errors[0]
    grid = Grid(client_app(lambda context: data, lambda given, prior: classifier()), 2)
    with pytest.raises(RuntimeError, match="no client trained"):
        federate(grid, fitted(), rounds=1, strategy=FedProx(proximal_mu=0.1))
    assert "FedProx's term" in grid.errors[0]
    for wrong, arguments, kind in (
        (Classifier(), {}, ValueError),
        (network(), {}, TypeError),
        (fitted(), {"rounds": 0}, ValueError),
        (fitted(), {"resume": True}, ValueError),
    ):
        with pytest.raises(kind, match=r"from_module|must be a BC|rounds|checkpoint_folder"):
            federate(grid, wrong, **({"rounds": 1} | arguments))
    config = ConfigRecord({"classes": '["a", "b", "c"]'})
    content = RecordDict({"arrays": ArrayRecord(network().state_dict()), "config": config})
    grid.deliver(Message(content, dst_node_id=1, message_type=MessageType.TRAIN))
    assert "message has no 'server-round': use server_app or federate" in grid.errors[-1]

    def missing(context: Context) -> Any:
        raise FileNotFoundError("no/such/file.npz")

    with pytest.raises(RuntimeError, match=r"none of 2 clients answered: .*no/such/file\.npz"):
        federate(Grid(client_app(missing, lambda data, prior: classifier()), 2), fitted(), rounds=1)


# ---- the other apps


def test_a_client_with_a_defence_keeps_its_loss() -> None:
    labels = np.searchsorted(["a", "b", "c"], Y)

    def make(data: Any, prior: Any) -> FederatedClient:
        return FederatedClient(network(), data["X"], labels, 3, defence="randomised_labels")

    result = federate(Grid(client_app(lambda context: {"X": X, "y": Y}, make), 2), fitted(), rounds=1)
    assert dict(result.evaluate_metrics_clientapp[1]) == {}
    assert dict(result.train_metrics_clientapp[1]) == {"epsilon": pytest.approx(np.log(1 + 3 * 0.9 / 0.1))}


def test_the_prior_without_a_client_that_did_not_answer() -> None:
    seen: list[Any] = []

    def load(context: Context) -> Demonstrations:
        if context.node_id == 2 and not seen:
            raise OSError
        return demonstrations(part=partition(context))

    def make(data: Demonstrations, prior: Any) -> BC:
        seen.append(prior)
        return clone(data)

    with pytest.warns(RuntimeWarning, match="that of 2 of 3 clients"):
        federate(Grid(client_app(load, make, send_label_counts=True), 3), clone(None), rounds=1, prior=True)
    kept = np.concatenate([PARTS[0], PARTS[2]])
    np.testing.assert_allclose(seen[0], np.bincount(demonstrations().action_labels[kept]) / len(kept), rtol=1e-12)


def test_four_clients_reach_475_and_the_server_app_saves_the_agent(tmp_path: Any) -> None:
    given = cartpole_v1()
    shares = np.split(np.random.default_rng(0).permutation(given.num_episodes), [1, 3, 8])
    settings = {"smoothing": 0.1, "seed": 1, "device": "cpu", "learning_rate": 3e-3}
    clients = client_app(
        lambda context: given.select_episodes(shares[int(context.node_config["partition-id"])]),
        lambda data, prior: BC("MlpPolicy", None, data, **settings),
        local_epochs=2,
    )
    start = BC("MlpPolicy", (given.observation_space, given.action_space), None, **settings)
    config = {
        "num-server-rounds": 5,
        "save-to": str(tmp_path / "agent.zip"),
        "checkpoint-folder": str(tmp_path / "run"),
    }
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    env = make_vec_env("CartPole-v1", seed=0)
    assert evaluate_policy(start, env, n_eval_episodes=10)[0] < 100
    server_app(lambda context: start)(Grid(clients, 4), context)
    assert evaluate_policy(BC.load(tmp_path / "agent.zip"), env, n_eval_episodes=10)[0] >= 475
    assert (tmp_path / "run" / "checkpoint_5.zip").exists()
