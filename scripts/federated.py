"""Train one network on the samples of several clients, while a curious server estimates their labels.

rlsmooth federated --data digits --clients 6 --split dirichlet:0.3 --smoothing 0 0.1 0.2
rlsmooth federated --demonstrations skilled.npz novice.npz --split by-group --rounds 50
rlsmooth federated --defence clip-noise:1:1 --share gradients
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.scripts.arguments import RunArgs, alias, make_smoothing, resumed
from rlsmooth.scripts.command import run_command

if TYPE_CHECKING:
    from torch import nn

    from rlsmooth.data import LabelledData
    from rlsmooth.scripts.training_run import TrainingRun
    from rlsmooth.training import ClipAndNoise, FederatedTrainer

PREFIX = "federated"


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """Train a network by federated averaging, and measure how well a server that looks on learns the labels."""

    data: str = "digits"
    """A set by name, or an .npz with features and labels, as for `rlsmooth classify`."""
    demonstrations: Annotated[tuple[str, ...], alias(aliases=["--demos"])] = ()
    """In place of --data, which does not count then: demonstrations with Discrete actions, each an .npz, a folder or a
    set of the package."""
    clients: int = 6
    """How many clients hold the samples."""
    split: str = "dirichlet:0.3"
    """Who has which samples: even; dirichlet:0.3, the share of each class differs the more the smaller the number; or
    by-group, one client for each of --demonstrations."""
    rounds: int = 30
    """How often clients train and the server averages."""
    clients_per_round: int | None = None
    """Draw so many clients for each round. Default: all."""
    local_epochs: int = 1
    """How often a client goes through its samples in a round."""
    share: Literal["weights", "gradients"] = "weights"
    """What clients send: their parameters after local steps, or the gradient over all their samples."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Of the local steps."""
    keep_optimizer: bool = False
    """Whether clients keep the optimiser's state from round to round."""
    learning_rate: float = 0.1
    """The step size, of the clients or, with --share gradients, of the server."""
    momentum: float = 0.0
    """Of sgd."""
    batch_size: int = 32
    """How many samples are in a local batch."""
    smoothing: tuple[str, ...] = ("0.1",)
    """How much of the target leaves the label: a number, or lin_0.1 for one that falls to 0. Several: a training for
    each."""
    defence: str = "none"
    """How clients hide labels: none; clip-noise:NORM:SIGMA, differentially private steps (extra `privacy`); or
    randomised-labels, each label drawn once from its smoothed target."""
    auxiliary: int = 200
    """How many labelled samples of its own the server has for its attacks; no client trains on them."""
    alpha_known: bool = True
    """Whether the server knows how the labels were smoothed."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """The sizes of the network's hidden layers."""
    test_fraction: float = 0.25
    """The share of the samples that the results are measured on."""
    seed: int = 0
    """Decides the split, the initial weights, and all that clients draw."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples, and bool `[N, K]` the classes that are legal for each, or None."""

    data: LabelledData
    masks: Any = None

    def __len__(self) -> int:
        return len(self.data)

    def take(self, index: Any) -> Samples:
        """Some of the samples."""
        return Samples(self.data.take(index), None if self.masks is None else self.masks[index])


class Parts(NamedTuple):
    """The samples by who has them."""

    clients: list[Samples]
    auxiliary: Samples
    test: Samples


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder.

    Raises:
        ImportError: the data, or Opacus, come with a package that is missing.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "federated")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.scripts.classification import data_name
    from rlsmooth.scripts.environment import check_device, check_seed, limit_threads
    from rlsmooth.scripts.training_run import TrainingRun
    from rlsmooth.training.classifier_model import as_device

    limit_threads(args.num_threads)
    check_device(args.device)
    check_seed(args.seed)
    check_positive_int("rounds", args.rounds)
    if not args.smoothing:
        raise ValueError("smoothing is empty: give at least one, such as 0.1.")
    if args.demonstrations:
        args = dataclasses.replace(args, data="+".join(Path(path).stem for path in args.demonstrations))
    parts = load_parts(args)
    sizes = [len(part) for part in parts.clients]
    print(
        f"Samples of {len(sizes)} clients: {min(sizes):,} to {max(sizes):,}; of the server: {len(parts.auxiliary):,}; "
        f"test: {len(parts.test):,}. {parts.test.data.source}".strip()
    )
    with TrainingRun("federated", args, data_name(args.data)) as run:
        trainers = [make_trainer(args, run, parts, word) for word in args.smoothing]
        run.begin(f"Training on {as_device(args.device).type}", resume_from="round")
        for word, (trainer, save) in zip(args.smoothing, trainers, strict=True):
            trainer.train(args.rounds, resume=args.resume is not None)
            save(run.folder / file_name(args, word))
        histories = {word: trainer.history for word, (trainer, _) in zip(args.smoothing, trainers, strict=True)}
        return run.finish("Networks, report and logs", **results(run, parts, histories))


# ---- samples


def load_parts(args: Args) -> Parts:
    """The samples of each client, of the server, and for the test.

    Raises:
        ImportError: the data come with a package that is missing.
        ValueError: there are none, they can't be split so, or actions are not Discrete.
    """
    import numpy as np

    from rlsmooth.data import load_labelled
    from rlsmooth.training import dirichlet_split, even_split, group_split

    how, _, number = args.split.partition(":")
    if args.demonstrations:
        samples, groups = labelled_demonstrations(args.demonstrations)
    elif how == "by-group":
        raise ValueError("split=by-group needs --demonstrations: each of them becomes a client.")
    else:
        samples, groups = Samples(load_labelled(args.data)), None
    data = samples.data
    share = check_in_range("test_fraction", args.test_fraction, 0.0, 1.0, low_open=True, high_open=True)
    places = data.sample_indices(len(data) - round(share * len(data)), args.seed)
    test = np.setdiff1d(np.arange(len(data)), places)
    if check_positive_int("auxiliary", args.auxiliary, minimum=1) >= len(places) - args.clients:
        raise ValueError(f"auxiliary={args.auxiliary} leaves the clients none of {len(places)} samples: give fewer.")
    order = np.random.default_rng(args.seed).permutation(places)
    auxiliary, rest = np.sort(order[: args.auxiliary]), np.sort(order[args.auxiliary :])
    if how == "by-group":
        assert groups is not None
        parts = group_split(groups[rest])
    elif how == "even" and not number:
        parts = even_split(len(rest), args.clients, seed=args.seed)
    elif how == "dirichlet":
        concentration = as_number("split", args.split, number)
        parts = dirichlet_split(data.labels[rest], args.clients, concentration, seed=args.seed)
    else:
        raise ValueError(f"split={args.split!r} is not known: give even, dirichlet:0.3 or by-group.")
    return Parts([samples.take(rest[part]) for part in parts], samples.take(auxiliary), samples.take(test))


def labelled_demonstrations(names: tuple[str, ...]) -> tuple[Samples, Any]:
    """Observations as features, actions as labels, masks, and the number of the demonstrations that each is from."""
    import numpy as np
    from gymnasium import spaces

    from rlsmooth.data import LabelledData, load_demonstrations

    read = [load_demonstrations(name) for name in names]
    first = read[0]
    for name, found in zip(names, read, strict=True):
        space = found.observation_space
        if not isinstance(found.action_space, spaces.Discrete) or not isinstance(space, spaces.Box):
            raise ValueError(
                f"demonstrations={name!r} has {found.action_space} and {space}: federated training needs Discrete "
                "actions and observations that are a Box."
            )
        if (space.shape, found.action_space) != (first.observation_space.shape, first.action_space):
            raise ValueError(f"demonstrations={name!r} has other spaces than {names[0]!r}.")
    assert isinstance(first.action_space, spaces.Discrete)
    start, count = int(first.action_space.start), int(first.action_space.n)
    data = LabelledData(
        np.concatenate([np.asarray(part[:].observations).reshape(len(part), -1) for part in read]),
        np.concatenate([part.action_labels for part in read]),
        tuple(f"action {start + number}" for number in range(count)),
    )
    masks = None
    if any(part.action_masks is not None for part in read):
        everything = (np.ones((len(part), count), dtype=bool) for part in read)
        given = zip(read, everything, strict=True)
        masks = np.concatenate([every if part.action_masks is None else part.action_masks for part, every in given])
    return Samples(data, masks), np.repeat(np.arange(len(read)), [len(part) for part in read])


# ---- networks, clients


def make_trainer(
    args: Args, run: TrainingRun, parts: Parts, word: str
) -> tuple[FederatedTrainer, Callable[[Path], object]]:
    """The trainer for one smoothing, and what saves its network."""
    import torch

    from rlsmooth.training import CuriousServer, FedAvg, FederatedClient, FederatedTrainer, FedSGD
    from rlsmooth.training.classifier_model import as_device

    module, save = make_network(args, parts, word)
    device = as_device(args.device)
    module = module.to(device)
    num_classes = parts.test.data.num_classes
    smoothing = make_smoothing("smoothing", word)

    def tensors(part: Samples) -> tuple[Any, Any, Any]:
        masks = None if part.masks is None else torch.from_numpy(part.masks)
        return torch.from_numpy(part.data.features).to(device), torch.from_numpy(part.data.labels), masks

    samples = [tensors(part) for part in parts.clients]
    clients = [
        FederatedClient(
            module,
            features,
            labels,
            num_classes,
            smoothing=smoothing,
            mask=masks,
            optimizer=args.optimizer,
            learning_rate=args.learning_rate,
            momentum=args.momentum,
            batch_size=args.batch_size,
            local_epochs=args.local_epochs,
            keep_optimizer=args.keep_optimizer,
            share=args.share,
            defence=as_defence(args.defence),
            seed=args.seed + place,
        )
        for place, (features, labels, masks) in enumerate(samples)
    ]
    drawn = args.defence == "randomised-labels"
    server = CuriousServer(
        module,
        [labels for _, labels, _ in samples],
        num_classes,
        auxiliary=tensors(parts.auxiliary),
        smoothing=(0.0 if drawn else smoothing) if args.alpha_known else None,
        share=args.share,
        masks=None if parts.test.masks is None else [masks for _, _, masks in samples],
    )
    trainer = FederatedTrainer(
        module,
        clients,
        strategy=FedSGD(args.learning_rate) if args.share == "gradients" else FedAvg(),
        clients_per_round=args.clients_per_round,
        audit=server,
        evaluation=tensors(parts.test),
        checkpoint_folder=run.checkpoints / f"smoothing_{word}",
        tensorboard_log=run.events() / f"smoothing_{word}",
        seed=args.seed,
        verbose=args.verbose,
    )
    return trainer, save


def make_network(args: Args, parts: Parts, word: str) -> tuple[nn.Module, Callable[[Path], object]]:
    """A network with the seed's weights, and what saves it: as a classifier, or as an agent of behaviour cloning."""
    import numpy as np

    from rlsmooth.training import Classifier
    from rlsmooth.training.classifier_model import build_model

    if args.demonstrations:
        return make_policy(args, word)
    from rlsmooth.scripts.classification import network

    everything = np.concatenate([part.data.features for part in parts.clients])
    test = parts.test.data
    module = build_model(
        network(args.hidden_sizes, everything), test.features.shape[1], test.num_classes, seed=args.seed
    )

    def save(path: Path) -> None:
        shape = test.features.shape[1:]
        smoothing = make_smoothing("smoothing", word)
        classes = np.arange(test.num_classes)
        Classifier.from_module(module, classes, shape, smoothing=smoothing, seed=args.seed).save(path)

    return module, save


def make_policy(args: Args, word: str) -> tuple[nn.Module, Callable[[Path], object]]:
    """The layers of a behaviour-cloning policy between observations and logits, and the agent's `save`."""
    from torch import nn

    from rlsmooth.agents import BC
    from rlsmooth.data import load_demonstrations

    demonstrations = load_demonstrations(args.demonstrations[0])
    sizes = [check_positive_int("hidden_sizes", size) for size in args.hidden_sizes]
    agent = BC(
        "MlpPolicy",
        (demonstrations.observation_space, demonstrations.action_space),
        demonstrations,
        smoothing=make_smoothing("smoothing", word),
        policy_kwargs={"net_arch": sizes},
        seed=args.seed,
        device=args.device,
    )
    policy: Any = agent.policy
    return nn.Sequential(policy.features_extractor, policy.mlp_extractor.policy_net, policy.action_net), agent.save


def as_defence(words: str) -> ClipAndNoise | Literal["randomised_labels"] | None:
    """What `--defence` describes.

    Raises:
        ValueError: no defence is called so, or a number is wrong.
    """
    from rlsmooth.training import ClipAndNoise

    name, *numbers = words.split(":")
    if name == "none" and not numbers:
        return None
    if name == "randomised-labels" and not numbers:
        return "randomised_labels"
    if name == "clip-noise" and len(numbers) == 2:
        norm, noise = (as_number("defence", words, number) for number in numbers)
        return ClipAndNoise(norm, noise)
    raise ValueError(f"defence={words!r} is not known: give none, clip-noise:1:1 (norm, sigma) or randomised-labels.")


def as_number(name: str, words: str, number: str) -> float:
    """The number in an option's words; ValueError if it is none."""
    try:
        return float(number)
    except ValueError:
        raise ValueError(f"{name}={words!r}: {number!r} is no number.") from None


def file_name(args: Args, word: str) -> str:
    """The file of a trained network."""
    kind = "agent" if args.demonstrations else "classifier"
    return f"{kind}.zip" if len(args.smoothing) == 1 else f"{kind}_{word}.zip"


def best_attack(history: dict[str, list[float]]) -> list[float]:
    """In each round, the score of the attack that did best in it: an upper bound for a server that knows which."""
    columns = [column for name, column in history.items() if name.startswith("audit_") and name != "audit_prior"]
    return [
        max((value for value in row if math.isfinite(value)), default=math.nan) for row in zip(*columns, strict=True)
    ]


def results(run: TrainingRun, parts: Parts, histories: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """The entries of the report: the curves of each smoothing, and where they ended."""
    from rlsmooth.scripts.metrics_file import write_history

    for found in histories.values():
        found["audit_best"] = best_attack(found)
    joined = {f"smoothing_{word}/{name}": column for word, found in histories.items() for name, column in found.items()}
    last = {word: {name: column[-1] for name, column in found.items()} for word, found in histories.items()}
    return {
        "curves": write_history(run.folder / "metrics.csv", joined, PREFIX),
        "summary": next(iter(last.values())),
        "last": last,
        "data": {
            "clients": " + ".join(f"{len(part):,}" for part in parts.clients),
            "server": f"{len(parts.auxiliary):,}",
            "test": f"{len(parts.test):,}",
        },
        "source": parts.test.data.source,
    }


if __name__ == "__main__":
    sys.exit(run_command("federated", Args, main))
