"""Audit a saved agent or classifier: calibration by group of samples, and the labels that its gradients leak.

rlsmooth audit logs/classify/hmda_1 --data hmda
rlsmooth audit logs/bc/CartPole-v1_1/agent.zip --demonstrations cartpole-v1 cartpole-v1-noisy
rlsmooth audit logs/bc/CartPole-v1_1 --demonstrations cartpole-v1 --groups region:2:-0.05,0.05 --alpha 0.1
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.scripts.arguments import alias
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.run_folder import (
    agent_file,
    new_run_folder,
    plain,
    read_command,
    read_settings,
    refuse_several,
    write_settings,
)
from rlsmooth.untrusted import refused

if TYPE_CHECKING:
    from torch import Tensor

    from rlsmooth.audits import LastLayer
    from rlsmooth.data import Demonstrations, LabelledData
    from rlsmooth.targets import Smoothing
    from rlsmooth.training import Classifier

MORE = (0.05, 0.1, 0.2)
"""The further smoothing that disparities are predicted for."""
MOST_BINS, BIN_SIZE, NUM_PERMUTATIONS = 10, 10, 2_000


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure calibration by group, and how many labels gradients of the last layer give away."""

    file: Annotated[Path, tyro.conf.Positional]
    """An agent.zip or a classifier.zip, or the folder of the run that wrote it."""
    demonstrations: Annotated[tuple[str, ...], alias(aliases=["--demos"])] = ()
    """Of an agent: demonstrations to audit it on, each an .npz, a folder or a set of the package. Name some that it was
    not trained on."""
    groups: str = "demonstrator"
    """How to group their transitions: demonstrator, one group for each of them; region:2:-0.05,0.05, the regions
    between these edges of observation 2; or column, the groups that the demonstrations hold."""
    data: str | None = None
    """Of a classifier: a set by name, or an .npz, as for `rlsmooth classify`. Only its test samples are audited, where
    the config.json beside the file says which they are."""
    group: str | None = None
    """Which column of the set has the groups. Default: its only one; without any, all samples are one group."""
    alpha: float | None = None
    """The gradients to attack are those of targets with this uniform smoothing. Default: that of the file's training at
    its end, or 0.1 where the file names none or another kind."""
    alpha_unknown: bool = False
    """The attacker does not know alpha, and infers it."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """How many samples are in the gradients that are attacked; 1 is always included."""
    noise: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    """Standard deviations of the Gaussian noise on each entry of a sample's gradient."""
    attacked: int = 1000
    """Attack the gradients of so many samples, or of all if there are fewer."""
    auxiliary: int = 200
    """How many other labelled samples the attacker has, to know the frequencies of the labels by; 0: he knows those of
    the attacked samples."""
    seed: int = 0
    """Decides the samples that are attacked, the half that temperatures are fitted on, minibatches and noise."""
    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The report goes to <log folder>/audit/<data>_<n>/."""
    num_threads: int = 1
    """How many threads torch and numpy may use; -1: as many as they would."""


class Audited(NamedTuple):
    """What a file and its samples come to: the last layers, by component of the action, and groups of samples."""

    layers: list[LastLayer]
    groups: Any
    """A pandas categorical `[N]` of places in `names`, so that groups without samples are listed."""
    names: dict[Any, str]
    alpha: float
    samples: str


def main(args: Args) -> Path:
    """Audit, and return the folder of the report.

    Raises:
        ImportError: the data come with a package that is missing.
        TypeError: an agent of continuous actions, or one whose logits are not a linear layer's.
        ValueError: an argument is wrong, or names something that is not there, does not fit, or can't be written to.
    """
    if bool(args.demonstrations) == (args.data is not None):
        raise ValueError("name either --demonstrations, to audit an agent, or --data, to audit a classifier.")
    check_positive_int("attacked", args.attacked)
    check_positive_int("auxiliary", args.auxiliary, minimum=0)
    for size, noise in itertools.zip_longest(args.batch_sizes, args.noise, fillvalue=1):
        check_positive_int("batch_sizes", size)
        check_in_range("noise", noise, 0.0)
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.scripts.environment import check_seed, limit_threads
    from rlsmooth.scripts.figures.kinds import new_report, publish_report

    limit_threads(args.num_threads)
    check_seed(args.seed)
    audited = audit_of_agent(args) if args.data is None else audit_of_classifier(args)
    components = [measure_layer(args, layer, audited) for layer in audited.layers]
    exact = [line for component in components for line in component["attacks"] if line["attack"] == "exact"]
    name = "+".join(Path(word).stem for word in ((args.data,) if args.data else args.demonstrations))
    folder = new_run_folder(args.log_folder, "audit", name)
    write_settings(folder, "audit", args)
    report = new_report(
        "audit",
        name=folder.name,
        settings=plain(dataclasses.asdict(args)),
        summary={
            "exact_found": sum(round(line["success"][0] * line["trials"]) for line in exact),
            "exact_of": sum(line["trials"] for line in exact),
        },
        components=components,
        alpha=audited.alpha,
        samples=audited.samples,
    )
    publish_report(folder, report)
    print(f"Report and figure are in {folder}.")
    return folder


# ---- files, samples and groups


def audit_of_classifier(args: Args) -> Audited:
    """The last layer of a classifier, on the samples of a set."""
    import numpy as np
    import torch

    from rlsmooth.audits import LastLayer
    from rlsmooth.targets import uniform
    from rlsmooth.targets.smoothing import as_smoothing

    refuse_several(args.file)
    path = args.file / "classifier.zip" if args.file.is_dir() else args.file
    if not path.is_file():
        raise ValueError(f"file={str(args.file)!r} is neither a classifier's file nor a run's folder that has one.")
    classifier = load_classifier(path)
    data, words = samples_of(args, path)
    knows, takes, classes = classifier.classes_.tolist(), classifier.n_features_in_, data.num_classes
    if data.features.shape[1] != takes or knows not in ([*range(classes)], [*data.class_names]):
        raise ValueError(
            f"data={args.data!r} has {data.features.shape[1]} features and {classes} classes, but the classifier in "
            f"{str(path)!r} takes {takes} and knows {knows}: name the set that it was trained on."
        )
    column = args.group
    if column is None and len(data.groups) < 2:
        column = next(iter(data.groups), None)
    elif column not in data.groups:
        raise ValueError(f"group={column!r} is no column of {args.data}: it has {', '.join(data.groups) or 'none'}.")
    values = np.full(len(data), "all samples") if column is None else data.groups[column]
    names, places = np.unique(values, return_inverse=True)
    alpha = alpha_of(args, () if classifier.smoothing is None else (as_smoothing(classifier.smoothing),))
    target = uniform(torch.from_numpy(data.labels), classes, alpha=alpha)
    layer = LastLayer.of_module(classifier.module_, torch.from_numpy(data.features), target)
    return Audited([layer], categorical(places, len(names)), dict(enumerate(names.tolist())), alpha, words)


def load_classifier(path: Path) -> Classifier:
    """The classifier of a file: of our commands, whose hidden layers are as wide as its tensors, or an "mlp"."""
    from rlsmooth.scripts.classification import network
    from rlsmooth.training import Classifier
    from rlsmooth.training.classifier import FORMAT_NAME, FORMAT_VERSION
    from rlsmooth.training.safe_file import read_safe_file

    file = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
    if file.config.get("model") is not None:
        return Classifier.load(path, device="cpu")
    tensors = file.tensors.get("module", {})
    places = sorted(int(name.split(".")[0]) for name in tensors if re.fullmatch(r"\d{1,4}\.weight", name))
    sizes = [len(tensors[f"{place}.weight"]) for place in places if tensors[f"{place}.weight"].ndim == 2]
    try:
        return Classifier.load(path, network(sizes[:-1]), device="cpu")
    except ValueError as error:
        raise ValueError(f"{error} The command audits networks of our commands; use LastLayer.of_module.") from error


def samples_of(args: Args, path: Path) -> tuple[LabelledData, str]:
    """The samples to audit, and what they are in words."""
    from rlsmooth.data import load_labelled

    assert args.data is not None
    data = load_labelled(args.data)
    try:
        with refused(path.parent, ValueError):
            settings = read_settings(path.parent, read_command(path.parent))
            name, fraction, seed = settings["data"], float(settings["test_fraction"]), int(settings["seed"])
    except ValueError:
        name, fraction, seed = None, 0.0, 0
    if name != args.data:
        return data, f"all {len(data):,} samples of {args.data}, perhaps trained on"
    test = data.split(fraction, seed)[1]
    return test, f"the {len(test):,} test samples of {args.data}"


def audit_of_agent(args: Args) -> Audited:
    """The last layer of an agent's policy, on demonstrations: one for each component of the action."""
    import gymnasium
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    from rlsmooth.agents import action_layers
    from rlsmooth.data import concatenate, load_demonstrations
    from rlsmooth.scripts.loading import load_to_play

    path = agent_file("file", args.file, or_checkpoints=True)
    read = [load_demonstrations(name) for name in args.demonstrations]
    demonstrations = concatenate(read)
    if any(part.action_probs is not None for part in read):
        raise ValueError("demonstrations have action_probs, soft targets that no alpha describes: leave them out.")
    placeholder: Any = gymnasium.Env()  # statistics of VecNormalize come with an environment
    placeholder.observation_space = demonstrations.observation_space
    placeholder.action_space = demonstrations.action_space
    try:
        agent, shown = load_to_play(path, DummyVecEnv([lambda: placeholder]), "cpu")
    except ValueError as error:
        raise ValueError(f"{error} (--demonstrations stand for env.)") from error
    groups, names = groups_of(args, read, demonstrations)
    if isinstance(shown, VecNormalize):
        seen: Any = demonstrations[:].observations
        demonstrations = demonstrations.replace_unchecked(observations=shown.normalize_obs(seen))
    alpha = alpha_of(args, getattr(agent, "smoothings", None) or ())
    layers = action_layers(agent, demonstrations, alpha)
    words = f"the {len(demonstrations):,} transitions of {', '.join(args.demonstrations)}, perhaps trained on"
    return Audited(layers, groups, dict(enumerate(names)), alpha, words)


def groups_of(args: Args, read: list[Demonstrations], joined: Demonstrations) -> tuple[Any, list[str]]:
    """The group of each transition, and the groups' names."""
    import numpy as np
    from gymnasium import spaces

    if args.groups == "demonstrator":
        stems = [Path(word).stem for word in args.demonstrations]
        names = stems if len({*stems}) == len(stems) else [f"{place}: {stem}" for place, stem in enumerate(stems)]
        return categorical(np.repeat(np.arange(len(read)), [len(part) for part in read]), len(names)), names
    if args.groups == "column":
        if joined.groups is None:
            lacking = next(n for n, part in zip(args.demonstrations, read, strict=True) if part.groups is None)
            raise ValueError(f"groups='column', but demonstrations={lacking!r} hold no groups: give another --groups.")
        values, places = np.unique(np.asarray(joined.groups), return_inverse=True)
        return categorical(places, len(values)), [f"group {value}" for value in values]
    try:
        what, index, words = args.groups.split(":")
        place, edges = int(index), [float(word) for word in words.split(",")]
        is_region = what == "region" and all(map(math.isfinite, edges)) and edges == sorted({*edges})
    except ValueError:
        is_region = False
    if not is_region:
        raise ValueError(
            f"groups={args.groups!r} is not known: give demonstrator, column, or region:2:-0.05,0.05 (the index of an "
            "observation, and edges that rise)."
        )
    space = joined.observation_space
    if not isinstance(space, spaces.Box) or not 0 <= place < math.prod(space.shape):
        raise ValueError(f"groups={args.groups!r}: {space} has no observation {place}, counted from 0.")
    values = np.asarray(joined[:].observations).reshape(len(joined), -1)[:, place]
    inner = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    names = [f"below {edges[0]:g}", *inner, f"from {edges[-1]:g}"]
    return categorical(np.searchsorted(edges, values, side="right"), len(names)), names


def categorical(places: Any, count: int) -> Any:
    """Places in a list of `count` names, with those that no sample has."""
    import pandas

    return pandas.Categorical.from_codes(places, categories=range(count))


def alpha_of(args: Args, recipes: Sequence[Smoothing]) -> float:
    """The alpha of the targets whose gradients are attacked: what is given, or a uniform smoothing of the training."""
    from rlsmooth.targets import Smoothing

    if args.alpha is not None:
        return check_in_range("alpha", args.alpha, 0.0, 1.0, high_open=True)
    found = {None if one.alpha is None or one != Smoothing(one.alpha) else one.alpha_at(0.0) for one in recipes}
    alpha = found.pop() if len(found) == 1 else None
    return alpha if isinstance(alpha, float) and alpha < 1 else 0.1


# ---- measures


def measure_layer(args: Args, layer: LastLayer, audited: Audited) -> dict[str, Any]:
    """All numbers of one layer, as JSON has them."""
    logits = layer.features.double() @ layer.weight.double().mT
    if layer.bias is not None:
        logits = logits + layer.bias.double()
    logits = logits.masked_fill(~layer.legal, -math.inf)
    numbers: dict[str, Any] = as_json(
        {
            "name": layer.name,
            "groups": calibration_by_group(logits, layer.labels, audited),
            "disparities": disparities(args, logits, layer.labels, audited),
            **leakage(args, layer, audited.alpha),
        }
    )
    return numbers


def calibration_by_group(logits: Tensor, labels: Tensor, audited: Audited) -> list[dict[str, Any]]:
    """A line for each group: calibration, and points of a reliability diagram with as many samples each."""
    import numpy as np

    from rlsmooth.audits import group_calibration

    confidences, chosen = (column.numpy() for column in logits.softmax(-1).max(-1))
    hits, lines = chosen == labels.numpy(), []
    for line in group_calibration(confidences, hits, audited.groups):
        here = np.flatnonzero(audited.groups.codes == line.group)
        order = here[confidences[here].argsort(kind="stable")]
        bins = np.array_split(order, min(MOST_BINS, max(1, len(order) // BIN_SIZE)))
        points = [[float(confidences[one].mean()), float(hits[one].mean()), len(one)] for one in bins if len(one)]
        lines.append({**line._asdict(), "group": audited.names[line.group], "reliability": points})
    return lines


def disparities(args: Args, logits: Tensor, labels: Tensor, audited: Audited) -> list[dict[str, Any]]:
    """The signed disparity as it is, after calibration (on the half that it was not fitted on), and predicted."""
    import numpy as np

    from rlsmooth.audits import fit_group_temperatures, fit_temperature, gap_disparity, predicted_gap

    names, groups, chosen = audited.names, audited.groups, logits.argmax(-1)
    reference = int(np.bincount(groups.codes).argmax())  # of all lines, whichever group is largest in a half

    def line(name: str, confidences: Any, here: Any, num_resamples: int = 1) -> dict[str, Any]:
        hits = (chosen == labels)[here]
        found = gap_disparity(
            confidences, hits, groups[here], reference=reference, seed=args.seed, num_resamples=num_resamples
        )
        return {
            "name": name,
            "samples": len(hits),
            "disparity": found,
            "method": found.method,
            "group": None if found.group is None else names[found.group],
            "reference": names[found.reference],
            "against": {names[other]: interval for other, interval in found.against.items()},
            "spread": found.spread,
            "p_value": found.p_value if num_resamples > 1 else None,
        }

    def confidence(values: Tensor, here: Any) -> Tensor:
        return values.softmax(-1).gather(-1, chosen[here].unsqueeze(-1)).squeeze(-1)

    every = np.ones(len(labels), dtype=bool)
    rest = np.random.default_rng(args.seed).permutation(len(labels)) >= len(labels) // 2
    fitted, mine, own = (logits[~rest], labels[~rest]), groups[~rest], (logits[rest], groups[rest])
    as_it_is = confidence(logits, every)
    scaled = {
        "as it is": own[0],
        "one temperature": own[0] / fit_temperature(*fitted),
        "temperature by group": fit_group_temperatures(*fitted, mine).calibrated(*own),
        "temperature, bias by group": fit_group_temperatures(*fitted, mine, bias=True).calibrated(*own),
    }
    lines = [line("as it is", as_it_is, every, NUM_PERMUTATIONS)]
    lines += [line(f"half: {name}", confidence(values, rest), rest) for name, values in scaled.items()]
    counts = (logits > -math.inf).sum(-1).numpy()
    for alpha in MORE:
        smoothed = as_it_is.numpy().copy()
        for count in np.unique(counts):  # masks leave each sample its own number of classes
            here = counts == count
            smoothed[here] = predicted_gap(smoothed[here], smoothed[here], alpha, int(count))
        lines.append(line(f"predicted, alpha {alpha:g} more", smoothed, every))
    return lines


def leakage(args: Args, layer: LastLayer, alpha: float) -> dict[str, Any]:
    """Attacks on gradients of one sample and of minibatches, and through noise."""
    import numpy as np
    import torch

    from rlsmooth.audits import attack_batches, attack_rows, noise_curve

    total = len(layer.features)
    if args.auxiliary >= total:
        raise ValueError(f"auxiliary={args.auxiliary} leaves none of {total} samples to attack: give fewer.")
    order = torch.from_numpy(np.random.default_rng(args.seed).permutation(total))

    def part(chosen: Tensor) -> LastLayer:
        mask = None if layer.mask is None else layer.legal[chosen]
        return dataclasses.replace(layer, features=layer.features[chosen], target=layer.target[chosen], mask=mask)

    theirs = part(order[args.auxiliary :][: args.attacked])
    auxiliary = part(order[: args.auxiliary]) if args.auxiliary else None
    prior = None if auxiliary is None else torch.bincount(auxiliary.labels, minlength=len(layer.weight)).double()
    known = None if args.alpha_unknown else alpha
    sizes = [size for size in args.batch_sizes if size != 1]
    attacks = attack_rows(theirs, alpha=known, prior=prior)
    attacks += attack_batches(theirs, sizes, alpha=known, auxiliary=auxiliary, prior=prior, seed=args.seed)
    points = noise_curve(theirs, args.noise, alpha=alpha, prior=prior, seed=args.seed)
    return {"attacks": [each._asdict() for each in attacks], "noise": [each._asdict() for each in points]}


def as_json(value: Any) -> Any:
    """The value with lists for tuples, and None for numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(run_command("audit", Args, main))
