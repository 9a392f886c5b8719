"""Two processes that train together end as one that sees the whole minibatch."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gymnasium import spaces
from torch import Tensor, nn

from rlsmooth.agents import BC, BCO
from rlsmooth.data import Demonstrations
from rlsmooth.training import Classifier
from rlsmooth.training.distributed import RankFailedError, Ranks, join_ranks, process_group
from support import draw, recorded, samples

Job = Callable[[], Any]
UPDATES = 60


def together(job: Job, size: int, folder: Path) -> list[Any]:
    """What `job` returns, or the error it raises, in each of so many processes; None of one that has left."""
    meeting = folder / f"meeting_{time.monotonic_ns()}"

    def one(rank: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        try:
            found = job()
        except Exception as error:
            found = error
        torch.save(found, f"{meeting}_{rank}")
        dist.destroy_process_group()
        os._exit(0)  # not through the handlers of pytest, whose fork this is

    processes = [multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    paths = [Path(f"{meeting}_{rank}") for rank in range(size)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]


def weighted(count: int = 101, **more: Any) -> Demonstrations:
    given = draw(count, **more)
    return given.replace_unchecked(weights=np.random.default_rng(5).uniform(0.1, 3, len(given)).astype(np.float32))


def masked() -> Demonstrations:
    given = draw(101)
    masks = np.random.default_rng(4).random((101, 3)) < 0.6
    masks[np.arange(101), np.asarray(given.actions)] = True
    return given.replace_unchecked(action_masks=masks)


def composite(space: spaces.Space[Any]) -> Demonstrations:
    observations = np.random.default_rng(3).normal(size=(101, 4)).astype(np.float32)
    actions = samples(space, 101, seed=3)
    return recorded(observations, actions, spaces.Box(-np.inf, np.inf, (4,)), space)


def streamed(folder: Path) -> Demonstrations:
    weighted().save_folder(folder / "data")
    return Demonstrations.load(folder / "data")


WIDE = spaces.Box(np.array([-40.0, 1.0], np.float32), np.array([80.0, 1.5], np.float32))
CASES: dict[str, tuple[Callable[[], Demonstrations], dict[str, Any]]] = {
    "plain": (lambda: draw(128), {"batch_size": 32}),
    "weights": (weighted, {"batch_size": 32}),
    "odd batch": (lambda: draw(99), {"batch_size": 33}),
    "short last batch": (lambda: draw(97), {"batch_size": 32}),
    "accumulation": (weighted, {"batch_size": 15, "gradient_accumulation": 3}),
    "clip": (draw, {"batch_size": 16, "max_grad_norm": 0.05}),
    "l2": (draw, {"batch_size": 16, "l2_coef": 0.05}),
    "schedule": (draw, {"batch_size": 16, "learning_rate": "lin_1e-3", "smoothing": "lin_0.3"}),
    "masks": (masked, {"batch_size": 20, "kl_coef": 0.1}),
    "multi-discrete": (lambda: composite(spaces.MultiDiscrete([3, 5])), {"batch_size": 20}),
    "box": (lambda: composite(WIDE), {"batch_size": 20, "max_grad_norm": 0.5}),
}
MIXED = {
    "much at once": (
        lambda: weighted().replace_unchecked(action_masks=masked().action_masks),
        {
            "batch_size": 15,
            "gradient_accumulation": 3,
            "max_grad_norm": 0.05,
            "l2_coef": 0.05,
            "learning_rate": "lin_1e-2",
            "smoothing": "lin_0.3",
        },
    ),
    "multi-discrete": CASES["multi-discrete"],
    "box": CASES["box"],
}


def train(demonstrations: Demonstrations, updates: int, arguments: dict[str, Any], **more: Any) -> BC:
    return BC("MlpPolicy", None, demonstrations, seed=1, device="cpu", **{**arguments, **more}).learn(
        total_batches=updates
    )


def parameters(agent: BC) -> Tensor:
    return torch.cat([each.detach().reshape(-1) for each in agent.policy.parameters()])


def assert_alike(
    job: Callable[[], Tensor], size: int, folder: Path, relative: float = 0.0, absolute: float = 1e-6
) -> None:
    alone, shared = job(), together(job, size, folder)
    assert all(torch.equal(each, shared[0]) for each in shared)
    torch.testing.assert_close(shared[0], alone, rtol=relative, atol=absolute)


@pytest.mark.parametrize("case", MIXED)
def test_processes_end_as_one(case: str, tmp_path: Path) -> None:
    make, arguments = MIXED[case]
    assert_alike(lambda: parameters(train(make(), UPDATES, arguments)), 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "size"),
    [*((case, 2) for case in CASES), *((case, 4) for case in ("weights", "odd batch", "box"))],
)
def test_each_option_ends_as_in_one_process(case: str, size: int, tmp_path: Path) -> None:
    make, arguments = CASES[case]
    relative = 1e-6 if case == "box" else 0.0  # of a wide Box, some parameters are above 6
    assert_alike(lambda: parameters(train(make(), 200, arguments)), size, tmp_path, relative)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_streamed_data_end_as_in_one_process(shuffle: str, tmp_path: Path) -> None:
    given = streamed(tmp_path)
    assert_alike(lambda: parameters(train(given, 200, {"batch_size": 31, "shuffle": shuffle})), 2, tmp_path)


class Flat(nn.Module):
    """As many write it: it can't see a minibatch without samples."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(num_features, num_classes) for _ in range(2))

    def forward(self, X: Tensor) -> Tensor:
        found: Tensor = self.layers[0](X.view(len(X), -1))
        return found


class Experts(Flat):
    """Uses one of its layers at first, and later another one, or both, in the second process."""

    forwards: ClassVar = {"at once": 0, "later": 3, "both": 3}
    kind = "at once"

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)
        self.left = self.forwards[self.kind]

    def forward(self, X: Tensor) -> Tensor:
        self.left -= self.training
        other = Ranks.current().rank == 1 and self.left < 0
        found: Tensor = self.layers[int(other)](X)
        return found + self.layers[0](X) if other and self.kind == "both" else found


def fitted(**arguments: Any) -> Tensor:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(90, 3)).astype(np.float32)
    y = np.repeat([0, 1, 2], [60, 20, 10])
    weight = generator.uniform(0.1, 3, 90)
    classifier = Classifier(**{"seed": 1, "device": "cpu", "batch_size": 16, "max_epochs": 10, **arguments})
    classifier.fit(X, y, sample_weight=weight)
    return torch.cat([each.detach().reshape(-1) for each in classifier.module_.parameters()])


@pytest.mark.parametrize(
    "arguments",
    [
        {"class_weight": "balanced", "max_grad_norm": 0.1},
        {"model": Flat, "batch_size": 89},  # of the last sample, one process has no share
        pytest.param({"smoothing": "lin_0.2", "max_epochs": 34}, marks=pytest.mark.slow),  # 204 updates
        pytest.param({"class_weight": "balanced", "max_epochs": 34, "seed": 0}, marks=pytest.mark.slow),
    ],
)
def test_a_classifier_ends_as_in_one_process(arguments: dict[str, Any], tmp_path: Path) -> None:
    assert_alike(lambda: fitted(**arguments), 2, tmp_path)


class Doubles(nn.Module):
    """Computes in float64."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_features, 64), nn.ReLU(), nn.Linear(64, num_classes)).double()

    def forward(self, X: Tensor) -> Tensor:
        found: Tensor = self.layers(X.double())
        return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3])  # in float32 these end 2e-6 and 1e-5 apart: Adam divides by gradients near 0
def test_what_differs_is_rounding_alone(seed: int, tmp_path: Path) -> None:
    job = partial(fitted, class_weight="balanced", max_epochs=34, seed=seed, model=Doubles)
    assert_alike(job, 2, tmp_path, absolute=1e-13)


@pytest.mark.slow
def test_cloning_from_observation_ends_as_in_one_process(tmp_path: Path) -> None:
    from rlsmooth.data import cartpole_v1

    def clone() -> Tensor:
        agent = BCO(
            "MlpPolicy",
            "CartPole-v1",
            cartpole_v1(),
            n_rounds=2,
            transitions_per_round=64,
            n_epochs=1,
            inverse_epochs=3,
            seed=1,
            device="cpu",
            checkpoint_folder=tmp_path / f"run_{Ranks.current().size}",
        ).learn()
        return parameters(agent.bc)

    assert_alike(clone, 2, tmp_path)


def test_one_writes_and_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    given, arguments = weighted(), {"batch_size": 30, "max_grad_norm": 0.1}

    def begin(updates: int, name: str) -> Tensor:
        writes = {"checkpoint_folder": tmp_path / name, "tensorboard_log": tmp_path / f"{name}_events"}
        return parameters(train(given, updates, arguments, **writes, checkpoint_every=10))

    def resume() -> Tensor:
        agent = BC.resume(tmp_path / "cut", None, given, device="cpu")
        return parameters(agent.learn(total_batches=UPDATES))

    whole = together(lambda: begin(UPDATES, "whole"), 2, tmp_path)

    class EndedError(Exception):
        pass

    def cut() -> None:
        agent = BC(
            "MlpPolicy",
            None,
            given,
            seed=1,
            device="cpu",
            **arguments,
            checkpoint_folder=tmp_path / "cut",
            checkpoint_every=10,
        )
        update = agent._update

        def breaks_off(*parts: Any, **more: Any) -> Tensor:
            if agent.num_timesteps == 25:
                raise EndedError
            return update(*parts, **more)

        agent._update = breaks_off  # type: ignore[method-assign]
        with pytest.raises(EndedError):
            agent.learn(total_batches=UPDATES)

    together(cut, 2, tmp_path)
    assert all(torch.equal(each, whole[0]) for each in together(resume, 2, tmp_path))
    assert len(list((tmp_path / "whole_events").rglob("events.*"))) == 1
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert files == {"resume.zip", f"checkpoint_{UPDATES}.zip", f"checkpoint_{UPDATES - 10}.zip"}


@pytest.mark.filterwarnings("ignore:the network has dropout")
def test_dropout_draws_in_each_process_and_is_repeated_by_a_resumed_run(tmp_path: Path) -> None:
    drawn: list[Tensor] = []

    class Drops(nn.Dropout):
        def forward(self, X: Tensor) -> Tensor:
            found = super().forward(X)
            if self.training:
                drawn.append(found.detach() != 0)
            return found

    class BrokenOff(Classifier):
        def _log(self, state: Any, *others: Any) -> None:
            if state.epoch == 3:
                raise InterruptedError
            super()._log(state, *others)

    def run(kind: type[Classifier] = Classifier, resume: bool = False) -> list[Tensor]:
        folder = tmp_path / str(kind is BrokenOff or resume)
        drawn.clear()
        y = np.arange(45) % 3  # in minibatches of 15: shares of 7 and 8
        fitted = kind(
            lambda f, k: nn.Sequential(Drops(0.5), nn.Linear(f, k)),
            seed=1,
            device="cpu",
            batch_size=15,
            max_epochs=4,
            checkpoint_folder=folder,
            checkpoint_every=1,
        )
        fitted.fit(np.ones((45, 3), np.float32) + y[:, None], y, resume=resume)
        return [*fitted.module_.parameters(), *drawn[-3:]]

    def both() -> list[list[Tensor]]:
        whole = run()
        with pytest.raises(InterruptedError):
            run(BrokenOff)
        return [whole, run(resume=True)]

    found = together(both, 2, tmp_path)
    for whole, resumed in found:
        assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    (first, _), (second, _) = found
    assert not torch.equal(first[-1][:7], second[-1][:7])


def test_what_cannot_be_equal_is_refused(tmp_path: Path) -> None:
    given = draw()

    def seeds_differ() -> None:
        BC("MlpPolicy", None, given, seed=Ranks.current().rank, device="cpu").learn(total_batches=1)

    def mixes() -> None:
        fitted(mixup=0.2)

    def normalises() -> None:
        Classifier(lambda f, k: nn.Sequential(nn.BatchNorm1d(f), nn.Linear(f, k)), seed=0, device="cpu").fit(
            np.zeros((4, 2), np.float32), [0, 1, 0, 1]
        )

    def chooses(kind: str) -> None:
        Experts.kind = kind
        fitted(model=Experts)

    def drops_inside() -> None:
        for layer in (nn.LSTM(3, 4, 2, dropout=0.5), nn.MultiheadAttention(4, 2, dropout=0.5)):
            with pytest.warns(UserWarning, match="the network has dropout"):
                assert join_ranks(layer).has_dropout
        assert not join_ranks(nn.LSTM(3, 4, 2)).has_dropout
        raise ValueError("warned")

    def drops() -> None:
        with pytest.warns(UserWarning, match="the network has dropout"):
            fitted(model=lambda f, k: nn.Sequential(nn.Dropout(0.5), nn.Linear(f, k)), max_epochs=1)
        raise ValueError("warned")

    def in_numpy() -> None:
        BC("MlpPolicy", None, given, seed=0, device="cpu", engine="numpy").learn(total_batches=1)

    def all_of_them() -> list[str]:
        found = []
        choices = [partial(chooses, kind) for kind in Experts.forwards]
        for job in (seeds_differ, mixes, normalises, *choices, in_numpy, drops, drops_inside):
            with pytest.raises(ValueError) as error:
                job()
            found.append(str(error.value))
        return found

    first, second = together(all_of_them, 2, tmp_path)
    assert first == second
    expected = (
        "seed differs",
        "mixup=0.2",
        "BatchNorm",
        *["chooses by its input"] * 3,
        "engine='numpy'",
        "warned",
        "warned",
    )
    for says, words in zip(first, expected, strict=True):
        assert words in says


def test_a_process_whose_partner_has_ended_says_so(tmp_path: Path) -> None:
    given = draw()

    def job() -> str:
        agent = BC("MlpPolicy", None, given, seed=0, device="cpu", batch_size=8)

        def leave(progress: float) -> float:
            if Ranks.current().rank == 1 and progress < 0.5:
                os._exit(3)
            return 1e-3

        agent._rate_changes, agent.lr_schedule = True, leave
        with pytest.raises(RankFailedError) as error:
            agent.learn(total_batches=40)
        return str(error.value)

    started = time.monotonic()
    says, left = together(job, 2, tmp_path)
    assert "another process of this run has ended" in says
    assert left is None
    assert time.monotonic() - started < 30


def test_alone_nothing_changes() -> None:
    with process_group() as ranks:
        assert ranks == Ranks(0, 1) == Ranks.current()
        assert ranks.any(True, False) == (True, False)
        assert ranks.share(3, 9) == (3, 9)
    assert [Ranks(rank, 3).share(10, 14) for rank in range(3)] == [(10, 11), (11, 12), (12, 14)]
    assert [(Ranks(rank, 3).share(5, 6), Ranks(rank, 3).is_idle(5, 6)) for rank in range(3)] == [
        ((5, 6), True),
        ((5, 6), True),
        ((5, 6), False),
    ]


@pytest.mark.parametrize(
    ("gpus", "took", "backend"), [(0, [], "gloo"), (4, [3], "cpu:gloo,cuda:nccl"), (2, [1], "gloo")]
)
def test_processes_share_gpus_where_there_are_too_few(
    gpus: int, took: list[int], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    joined: list[str] = []
    given = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3", "RANK": "3", "MASTER_ADDR": "localhost"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="MASTER_PORT is not set"), process_group():
        pass
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: joined.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with process_group():
        assert (taken, joined) == (took, [backend])
