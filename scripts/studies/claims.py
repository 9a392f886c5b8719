"""Ten claims about label smoothing, each with its theory, what the studies measured, and a verdict by fixed rules.

The table in `docs/claims.md` is made from the studies' committed json files, so that it can't differ from them. The
rules were fixed before running. A line *holds* if theory does not contradict it and, against the comparator named, the
95 % interval of every data set lies on the claimed side with an estimate beyond the least effect that counts. It *holds
only if* it is an identity under a stated condition, or some data sets lie on the claimed side and others do not. It
*does not hold* if theory contradicts it, or a data set lies on the other side and none on the claimed one. It is *not
shown* if no data set lies on either side. Mechanism and outcome have lines of their own: a mechanism may hold and its
promised outcome not. Privacy goes by the best attack, fairness by the signed gap.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.audits import Interval, interquartile_mean_interval
from rlsmooth.audits.intervals import mean_interval
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import GREEN, GREY, INK, ORANGE, RED, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, in_words

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "claims.md"
BEGIN, END = "<!-- the table is written by make study-claims -->", "<!-- end of the table -->"
HOLDS, ONLY_IF, FAILS, NOT_SHOWN = "holds", "holds only if", "does not hold", "not shown"
COLOURS = {HOLDS: GREEN, ONLY_IF: ORANGE, FAILS: RED, NOT_SHOWN: GREY}
Studies = Mapping[str, Mapping[str, Any]]
Found = Iterator[tuple[str, list[float]]]
"""Of each data set, its name and the paired differences, a number a seed."""

GROUPS = [(data, epochs) for data in ("hmda", "arrests", "credit", "rodents") for epochs in (10, 100)]
DIGITS = {"digits": "noise 0", "digits, 20 % noise": "noise 0.2"}


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        number: of the claim.
        part: `"mechanism"` or `"outcome"`.
        claim: in words.
        theory: what is exact, and where the claim is off.
        study: the json file that the numbers are from; empty: it is an identity.
        measure: what is compared with what, and its unit.
        side: -1 if the claim is that the difference is below 0, else 1.
        least: the least effect that counts, in that unit.
        find: the differences, from the studies.
        condition: under which it is an identity; empty: it is none.
        contradicted: whether theory contradicts it.
        test: the test of the identity.
        interval: of the differences of one data set.
    """

    number: int
    part: str
    claim: str
    theory: str
    study: str = ""
    measure: str = ""
    side: int = -1
    least: float = 0.0
    find: Callable[[Studies], Found] | None = None
    condition: str = ""
    contradicted: bool = False
    test: str = ""
    interval: Callable[[Sequence[float]], Interval] = interquartile_mean_interval


NAMES = {
    1: "Margin",
    2: "Calibration",
    3: "Pseudo-labels",
    4: "Discriminators",
    5: "Exploration",
    6: "Hierarchies",
    7: "Ordered classes",
    8: "Hybrids",
    9: "Fairness",
    10: "Privacy",
}


# ---- differences, seed by seed


def less(ours: Sequence[Any], theirs: Sequence[Any], value: Callable[[Any], float], other: Any = None) -> list[float]:
    """`value(ours) - value(theirs)` of each seed; `other`: another function of the second."""
    return [value(one) - (other or value)(two) for one, two in zip(ours, theirs, strict=True)]


def digits(value: Callable[[Any], float], other: Any = None, alpha: float = 0.1) -> Callable[[Studies], Found]:
    """Alpha less none, on digits with clean and with noisy labels."""

    def find(studies: Studies) -> Found:
        runs = studies["digits"]["runs"]
        for name, noise in DIGITS.items():
            yield name, less(runs[f"alpha {alpha:g}, {noise}"], runs[f"alpha 0, {noise}"], value, other)

    return find


def groups(value: Callable[[Any], float], other: Any = None) -> Callable[[Studies], Found]:
    """Alpha 0.1 less none, on the data sets with groups."""

    def find(studies: Studies) -> Found:
        runs = studies["fairness"]["runs"]
        for data, epochs in GROUPS:
            ours, theirs = (runs[f"{data}, {epochs} epochs, alpha {alpha}"] for alpha in ("0.1", "0"))
            yield f"{data}, {epochs} epochs", less(ours, theirs, value, other)

    return find


def policies(value: Callable[[Mapping[str, float], str, str], float]) -> Callable[[Studies], Found]:
    """Alpha 0.1 less none, on policies by demonstrator and by region; `value` is of a run and two groups' names."""

    def find(studies: Studies) -> Found:
        for env, regions in {"CartPole-v1": ("upright", "tilted"), "Acrobot-v1": ("low", "high")}.items():
            ours, theirs = (seeds_of(studies["policies"]["runs"][f"{env}, alpha {alpha}"]) for alpha in ("0.1", "0"))
            for kind, names in {"demonstrators": ("skilled", "weak"), "regions": regions}.items():
                differences = [value(a, *names) - value(b, *names) for a, b in _pairs(ours, theirs)]
                yield f"{env} policy by {kind}", differences

    return find


def seeds_of(columns: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """A table a seed, of one with a column a measure."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def both(one: Callable[[Studies], Found], two: Callable[[Studies], Found]) -> Callable[[Studies], Found]:
    """The data sets of two studies."""

    def find(studies: Studies) -> Found:
        yield from one(studies)
        yield from two(studies)

    return find


def arms(
    study: str, pairs: Mapping[str, tuple[str, str]], measure: str, key: str = "runs"
) -> Callable[[Studies], Found]:
    """By data set, one arm less another."""

    def find(studies: Studies) -> Found:
        runs = studies[study][key]
        for name, (ours, theirs) in pairs.items():
            yield name, less(_at(runs, ours), _at(runs, theirs), lambda run: run[measure])

    return find


def _at(runs: Any, path: str) -> Any:
    for part in path.split(" > "):
        runs = runs[part]
    return runs


def gan(measure: str, minus: float | None = None) -> Callable[[Studies], Found]:
    """One-sided smoothing of 0.9 less hard targets, or less a number."""

    def find(studies: Studies) -> Found:
        for case, runs in studies["gan_modes"]["runs"].items():
            ours = runs["one-sided 0.9"][measure]
            yield case, [a - (b if minus is None else minus) for a, b in zip(ours, runs["hard"][measure], strict=True)]

    return find


def deep_sea(studies: Studies) -> Found:
    """Steps until the treasure is found."""
    tests = studies["deep_sea"]["tests"]
    for size in tests["PPO"]:
        yield f"size {size}", less(tests["SmoothedPPO"][size], tests["PPO"][size], lambda run: float(run["steps"]))


def exploration(ours: str, theirs: str) -> Callable[[Studies], Found]:
    """By task, the steps until it is solved, as shares of the budget, of one arm less another's."""

    def find(studies: Studies) -> Found:
        for task, arms_of in studies["exploration"]["tests"].items():
            yield task, less(arms_of[ours], arms_of[theirs], lambda run: float(run["share"]))

    return find


def pseudo(studies: Studies) -> Found:
    """The damping of the least certain pseudo-labels, less that of confident ones."""
    for alpha in ("0.05", "0.1", "0.2"):
        ratios = [run["ratios"][alpha] for run in studies["pseudo_gradients"]["runs"]]
        yield f"alpha {alpha}", [row[0] - row[2] for row in ratios if row[0] == row[0]]


def privacy(studies: Studies) -> Found:
    """The best attack, alpha 0.1 less none."""
    ours, theirs = (studies["privacy"]["runs"][f"alpha {alpha}"] for alpha in ("0.1", "0"))
    for state in ("before", "after"):
        yield f"one sample, {state} training", [a[state]["exact"] - b[state]["exact"] for a, b in _pairs(ours, theirs)]
        best = [[_best_of_batch(run[state]) for run in pair] for pair in _pairs(ours, theirs)]
        yield f"minibatch of 32, {state} training", [a - b for a, b in best]
    for when in ("first", "last"):
        pairs = _pairs(ours, theirs)
        yield f"federated, {when} round", [a["federated"][when] - b["federated"][when] for a, b in pairs]


def policy_privacy(studies: Studies) -> Found:
    """The best attack on the actions of a policy, alpha 0.1 less none."""
    kinds = {
        "one sample": ("exact", "sign", "argmin", "iDLG"),
        "minibatch of 32": tuple(
            f"{name}, 32"
            for name in ("LLG", *(f"{kind}, alpha known" for kind in ("iLRG", "auxiliary", "counts, softmax(bias)")))
        ),
    }
    for env in ("CartPole-v1", "Acrobot-v1"):
        ours, theirs = (seeds_of(studies["policies"]["runs"][f"{env}, alpha {alpha}"]) for alpha in ("0.1", "0"))
        for state in ("before", "after"):
            for kind, names in kinds.items():
                best = [
                    [max(run[f"{state}: {name}"] for name in names) for run in pair] for pair in _pairs(ours, theirs)
                ]
                yield f"{env} policy, {kind}, {state} training", [a - b for a, b in best]


def _pairs(ours: Sequence[Any], theirs: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(ours, theirs, strict=True))


def _best_of_batch(found: Mapping[str, Any]) -> float:
    """The best attack on minibatches of three classes that an observer can make."""
    names = (f"{name}, three 32" for name in ("LLG", "iLRG", "auxiliary", "counts, softmax(bias)"))
    return max(float(found[name]) for name in names if found[name] is not None)


def _disparity(run: Any) -> float:
    return abs(float(run["plain"]["B"]["gap"] - run["plain"]["A"]["gap"]))


# ---- the lines

HIERARCHICAL = {name: (f"{name} > hierarchical 0.1, decay 1", f"{name} > flat 0.1") for name in ("rodents", "olive")}
ADJACENT = {name: (f"{name}, adjacent", f"{name}, flat") for name in ("marriages", "poverty", "diamonds")}
CLONES = {name: (f"{name} > one-hot, smoothed by 0.1", f"{name} > one-hot") for name in ("CartPole-v1", "Acrobot-v1")}
LINES = (
    Line(
        1, "mechanism", "Smoothing bounds the logit margin.",
        "Its optimum is `log(1 + K (1 - a) / a)`, a finite number. The shift of the margin's gradient is constant, `a` "
        "over all classes and `a K / (K - 1)` over the others: that alone would not bound it.",
        "digits", "margin on the training samples, a = 0.1 less none (nats)", -1, 0.1,
        digits(lambda run: run["training_margin"]),
    ),
    Line(
        2, "mechanism", "Smoothing lowers confidence.",
        "At the optimum by `a (conf - 1 / K)`.",
        "digits, fairness", "confidence less accuracy, a = 0.1 less none", -1, 0.005,
        both(
            digits(lambda run: run["plain"]["confidence_gap"]),
            groups(lambda run: run["plain"]["all"]["gap"]),
        ),
    ),
    Line(
        2, "outcome", "So the model is better calibrated.",
        "Only while it is overconfident: `a < 2 gap / (conf - 1 / K)`. A calibrated model becomes wrong by "
        "`a (conf - 1 / K)`.",
        "digits, fairness", "ECE as trained, a = 0.1 less none", -1, 0.005,
        both(digits(lambda run: run["plain"]["ece"]), groups(lambda run: run["plain"]["all"]["ece"])),
        condition="the model is overconfident by more than half of what smoothing takes",
    ),
    Line(
        2, "outcome", "It is better calibrated than by a fitted temperature.",
        "No theorem. A temperature is fitted to the gap that is there.",
        "digits, fairness", "ECE, a = 0.1 as trained less none with a temperature", -1, 0.005,
        both(
            digits(lambda run: run["plain"]["ece"], lambda run: run["scaled"]["ece"]),
            groups(lambda run: run["plain"]["all"]["ece"], lambda run: run["temperature"]["all"]["ece"]),
        ),
    ),
    Line(
        2, "outcome", "It generalises better.",
        "No theorem.",
        "digits, fairness", "accuracy, a = 0.1 less none", 1, 0.005,
        both(digits(lambda run: run["plain"]["accuracy"]), groups(lambda run: run["plain"]["all"]["accuracy"])),
    ),
    Line(
        3, "mechanism", "Smoothing damps the gradient of uncertain pseudo-labels most.",
        "Backwards: its ratio to the hard label's gradient is `|q - t| / (1 - q)`, `t = 1 - a + a / K`: about 1 - a "
        "for uncertain ones, 0 at `q = t`, and far above 1 beyond: there it unlearns.",
        "pseudo_gradients", "ratio of norms at confidence up to .5 less that at .7 to .9", -1, 0.01, pseudo,
        contradicted=True,
    ),
    Line(
        3, "outcome", "Smoothed pseudo-labels reduce confirmation bias.",
        "Separate from the mechanism.",
        "self_training", "accuracy, smoothed by 0.1 less hard", 1, 0.005,
        arms(
            "self_training",
            {"k best": ("smoothed 0.1", "hard"), "threshold": ("smoothed 0.1, threshold", "hard, threshold")},
            "accuracy",
        ),
    ),
    Line(
        4, "mechanism", "One-sided smoothing of 0.9 keeps D(real) at most 0.9.",
        "True of the optimal discriminator `0.9 p / (p + g)`; a trained one may exceed it.",
        "gan_modes", "largest D on a real row of the second half of training, less 0.9", -1, 0.0,
        gan("probability_real_max", 0.9), condition="the discriminator is optimal",
    ),
    Line(
        4, "outcome", "So the generator keeps a gradient and finds more modes.",
        "At the optimal discriminator the non-saturating gradient is unchanged.",
        "gan_modes", "modes found, 0.9 less hard targets", 1, 0.5, gan("modes"),
    ),
    Line(
        5, "mechanism", "Smoothing is a KL to the uniform policy, and keeps entropy.",
        "Exact: `CE(q, p) = (1 - a) CE + a KL(u‖p) + a H(u)`. An entropy bonus is the other direction, KL(p‖u).",
        "distil_dqn", "entropy / log n of the cloned policy, smoothed by 0.1 less not", 1, 0.01,
        arms("distil_dqn", CLONES, "entropy", "students"),
    ),
    Line(
        5, "outcome", "So PPO finds a far reward sooner.",
        "No theorem.",
        "deep_sea", "steps until Deep Sea is solved, or all; SmoothedPPO less PPO", -1, 500.0, deep_sea,
    ),
    Line(
        5, "outcome", "With KL to the uniform policy, PPO solves sooner what must be explored.",
        "No theorem.",
        "exploration", "steps until solved, of the budget; KL to uniform less PPO", -1, 0.05,
        exploration("KL to uniform", "PPO"), interval=mean_interval,
    ),
    Line(
        5, "mechanism", "A guarantee keeps the entropy above a bound in every state.",
        "Exact: `(1 - f) p + f u` is majorised by `(1 - f) e + f u`, e certain of one action, and entropy is "
        "Schur-concave.",
        test="tests/losses/test_policy.py",
    ),
    Line(
        5, "outcome", "With a guarantee, PPO solves sooner what must be explored.",
        "No theorem. An action that only the floor f draws, of n, has the gradient of `log p` times "
        "`(1 - f) p / ((1 - f) p + f / n)`: where p has collapsed, nothing is learnt from it.",
        "exploration", "steps until solved, of the budget; guarantee less PPO", -1, 0.05,
        exploration("guarantee", "PPO"), interval=mean_interval,
    ),
    Line(
        5, "outcome", "With a guarantee, it does so sooner than with an entropy bonus.",
        "As before.",
        "exploration", "steps until solved, of the budget; guarantee less ent_coef", -1, 0.05,
        exploration("guarantee", "ent_coef"), interval=mean_interval,
    ),
    Line(
        5, "outcome", "A cloned policy that samples its actions does better.",
        "No: sampling takes the uniform actions that smoothing put in.",
        "distil_dqn", "return of sampled actions, smoothed by 0.1 less not", 1, 5.0,
        arms("distil_dqn", CLONES, "sampled", "students"),
    ),
    Line(
        6, "mechanism", "Hierarchical smoothing puts near classes next in rank.",
        "It changes the ranking below the label.",
        "hierarchy", "mean tree distance of the 5 most probable, less flat smoothing", -1, 0.01,
        arms("hierarchy", HIERARCHICAL, "distance_at_5"),
    ),
    Line(
        6, "outcome", "So mistakes are less severe.",
        "No theorem: a mistake is about the first rank.",
        "hierarchy", "mean tree distance of mistakes, less flat smoothing", -1, 0.005,
        arms("hierarchy", HIERARCHICAL, "mistake_severity"),
    ),
    Line(
        7, "outcome", "Smoothing over neighbours lowers the error in grades.",
        "The median is kept only between the outer grades: there, the one neighbour gets all.",
        "ordinal_classes", "mean absolute error, adjacent less flat smoothing (grades)", -1, 0.005,
        arms("ordinal_classes", ADJACENT, "mae"),
    ),
    Line(
        7, "outcome", "It gives better probabilities of grades.",
        "No theorem.",
        "ordinal_classes", "ranked probability score, adjacent less flat smoothing", -1, 0.001,
        arms("ordinal_classes", ADJACENT, "rps"),
    ),
    Line(
        8, "outcome", "Mixed targets teach what a hybrid is made of.",
        "Even weights are right only where the parentage is even.",
        "hybrid_digits", "error of the predicted parentage, even weights less pure images alone", -1, 0.01,
        arms(
            "hybrid_digits",
            {f"{k} hybrids": (f"{k}, even weights, alpha 0", f"{k}, pure images") for k in ("even", "uneven")},
            "error",
        ),
    ),
    Line(
        8, "outcome", "Mass outside the parents helps.",
        "No theorem.",
        "hybrid_digits", "error of the predicted parentage, a = 0.1 less 0", -1, 0.01,
        arms(
            "hybrid_digits",
            {
                f"{k} hybrids": (f"{k}, even weights, alpha 0.1", f"{k}, even weights, alpha 0")
                for k in ("even", "uneven")
            },
            "error",
        ),
    ),
    Line(
        8, "outcome", "It beats a hard class of its own for the hybrids.",
        "No theorem.",
        "hybrid_iris", "distance from Fisher's share, mixed targets less three classes", -1, 0.01,
        arms("hybrid_iris", {"iris": ("hybrids (1/3, 2/3)", "three classes")}, "error"),
    ),
    Line(
        9, "mechanism", "Smoothing lowers the confidence of every group.",
        "By `a (conf - 1 / K)` each: most where confidence is high.",
        "fairness, policies", "confidence of the group that is less sure, a = 0.1 less none", -1, 0.005,
        both(
            groups(lambda run: min(run["plain"]["A"]["confidence"], run["plain"]["B"]["confidence"])),
            policies(lambda run, a, b: min(run[f"confidence, {a}"], run[f"confidence, {b}"])),
        ),
    ),
    Line(
        9, "outcome", "So groups are calibrated more alike.",
        "`D_a = D_0 - a (conf_B - conf_A)`: of a calibrated model smoothing creates a disparity, and a harder group's "
        "grows. The unsigned ECE difference may vanish as one group becomes underconfident.",
        "fairness, policies", "size of gap_B - gap_A (signed gaps), a = 0.1 less none", -1, 0.005,
        both(groups(_disparity), policies(lambda run, a, b: abs(run[f"gap, {b}"] - run[f"gap, {a}"]))),
        contradicted=True,
    ),
    Line(
        10, "mechanism", "Smoothing brings the gradients of two labels closer together.",
        "The squared distance by exactly `(1 - a)²`, like noise scaled by `1 / (1 - a)`; with clipping not even that.",
        test="tests/audits/test_gradient_attacks.py",
    ),
    Line(
        10, "outcome", "So labels are harder to infer from gradients.",
        "The target of one sample follows from its gradient exactly, at every a: `q = softmax(W h + b) - db`.",
        "privacy, policies", "share of labels found by the best attack, a = 0.1 less none", -1, 0.02,
        both(privacy, policy_privacy),
        contradicted=True,
    ),
)  # fmt: skip


# ---- verdicts


def verdict(line: Line, found: Mapping[str, Interval]) -> str:
    """By the rules of this file.

    Args:
        line: the claim.
        found: by data set, the interval of the differences.
    """
    if line.contradicted:
        return FAILS
    if line.condition:
        return f"{ONLY_IF} {line.condition}"
    if not found:
        return HOLDS
    claimed = [name for name, it in found.items() if _is_beyond(line.side, it) and abs(it.estimate) >= line.least]
    other = [name for name, it in found.items() if _is_beyond(-line.side, it)]
    if len(claimed) == len(found):
        return HOLDS
    if claimed:
        return f"{ONLY_IF} the data are {', or '.join(claimed)}"
    return FAILS if other else NOT_SHOWN


def _is_beyond(side: int, interval: Interval) -> bool:
    return interval.low > 0 if side > 0 else interval.high < 0


def kind_of(words: str) -> str:
    """The verdict without its condition."""
    return next(kind for kind in (ONLY_IF, HOLDS, FAILS, NOT_SHOWN) if words.startswith(kind))


@dataclass(frozen=True)
class Judged:
    """A line with its intervals, how many seeds they are of, and its verdict."""

    line: Line
    found: dict[str, Interval]
    seeds: int
    verdict: str


def judge(studies: Studies, lines: Sequence[Line] = LINES) -> list[Judged]:
    """All lines, judged by the results of the studies."""
    judged = []
    for line in lines:
        values = {} if line.find is None else dict(line.find(studies))
        found = {name: line.interval(column) for name, column in values.items()}
        judged.append(Judged(line, found, min(map(len, values.values()), default=0), verdict(line, found)))
    return judged


def read_studies(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The committed results that the lines need, by study."""
    names = sorted({name for line in LINES for name in line.study.split(", ") if name})
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}


# ---- page and figure


def table(judged: Sequence[Judged]) -> str:
    """The table of the page."""
    lines = [
        "| claim | theory | measured: difference, (95 % interval) | seeds | verdict |",
        "|---|---|---|---:|---|",
    ]
    for entry in judged:
        line = entry.line
        if line.find is None:
            numbers = f"an identity: `{line.test}`"
        else:
            form = "+.0f" if line.least >= 5 else "+.2f" if line.least >= 0.1 else "+.3f"
            parts = [f"{name} {in_words(interval, form)}" for name, interval in entry.found.items()]
            sources = ", ".join(f"[{name}](../scripts/studies/results/{name}.md)" for name in line.study.split(", "))
            least = f"; least effect {line.least:g}" if line.least else ""
            numbers = f"{line.measure}{least}: {'; '.join(parts)}. {sources}"
        claim = f"**{line.number} {NAMES[line.number]}**, {line.part}: {line.claim}"
        seeds = str(entry.seeds) if entry.seeds else ""
        lines.append(f"| {claim} | {line.theory} | {numbers} | {seeds} | **{entry.verdict}** |")
    return "\n".join(lines)


def with_table(page: str, words: str) -> str:
    """The page with another table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{words}\n\n{END}{after}"


def draw(path: Path, judged: Sequence[Judged]) -> None:
    """A line a claim: each data set's effect in least effects, to the right where the claim says, and the verdict."""
    with mpl.rc_context({**STYLE, "axes.titlepad": 10}):
        figure = Figure(figsize=(16, 12), dpi=100, layout="constrained")
        axes = figure.subplots()
        axes.axvspan(-1, 1, color="#F2F2F2", zorder=0)
        axes.axvline(0, color=INK, linewidth=1)
        for place, entry in enumerate(judged):
            line, colour = entry.line, COLOURS[kind_of(entry.verdict)]
            unit = (line.least or 0.05) * line.side
            for shift, interval in enumerate(entry.found.values()):
                at = place + (shift - (len(entry.found) - 1) / 2) * 0.75 / max(4, len(entry.found))
                ends = sorted((interval.low / unit, interval.high / unit))
                axes.plot(ends, [at, at], color=colour, linewidth=1.5)
                axes.plot(interval.estimate / unit, at, "o", markersize=4, color=colour)
            axes.text(
                1.01, place, kind_of(entry.verdict), transform=axes.get_yaxis_transform(), va="center", color=colour,
                fontweight="bold",
            )  # fmt: skip
        axes.set_yticks(
            range(len(judged)),
            [f"{entry.line.number} {NAMES[entry.line.number]}: {entry.line.claim}" for entry in judged],
        )
        axes.set_ylim(len(judged) - 0.4, -0.6)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlabel(
            "effect, in least effects that count (grey: too small); right: as claimed. A point is a data set, with its "
            "95 % interval over seeds"
        )
        axes.grid(axis="y", visible=False)
        figure.suptitle("Does label smoothing do what is said of it?", x=0.012, ha="left", fontsize=18)
        save_figure(path, figure)


def main(args: Args) -> None:
    """Write table and figure from the committed results."""
    judged = judge(read_studies())
    folder = args.results or RESULTS
    draw(folder / "claims.png", judged)
    if args.results is None:
        page = with_table(PAGE.read_text(encoding="utf-8"), table(judged))
        write_bytes_atomically(PAGE, page.encode())
    print(table(judged))


if __name__ == "__main__":
    sys.exit(run_command("study claims", Args, main))
