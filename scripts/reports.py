"""The report of a run: its numbers, kept as `report.json`, and its results as tables on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rich.console import Console
from rich.table import Table

from rlsmooth.scripts.metrics_file import Curve, read_metrics
from rlsmooth.scripts.run_folder import read_json, read_settings, write_json
from rlsmooth.untrusted import AnyNumber, decode_fields, refused

if TYPE_CHECKING:
    from matplotlib.axes import Axes


ENTRIES = {
    "name": str,
    "settings": dict[str, Any],
    "curves": dict[str, tuple[list[AnyNumber], list[AnyNumber]]],
    "summary": dict[str, AnyNumber],
}
"""What every `report.json` holds; others depend on the command."""
Row: TypeAlias = tuple[str, ...]
"""Of a table: a name, and a value with its unit, or several."""


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A run in numbers; plain data only.

    Attributes:
        name: of the run's folder.
        command: that made it.
        settings: the arguments of the run.
        curves: by column of `metrics.csv`, what was logged over the run.
        summary: what the run ended with.
        extras: the entries of the file that only runs of this kind have (`ReportKind.extras`).
    """

    name: str
    command: str
    settings: Mapping[str, Any]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)


Runs: TypeAlias = Sequence[tuple[RunReport, str, Any]]
"""What a panel compares: reports, each with its name in the legend and its colour."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A figure that compares several runs.

    Attributes:
        panels: four; each draws all runs into its axes. The legend names the lines of the first.
        name: of a run, in the legend.
        legend_title: what the names are made of.
        ncols: of the legend.
        order: by which the runs are sorted, from dark colours to light ones; None: as they are given.
    """

    panels: tuple[Callable[[Axes, Runs], None], ...]
    name: Callable[[RunReport], str]
    legend_title: str
    ncols: int = 3
    order: Callable[[RunReport], Any] | None = None


def logged_curves(folder: Path) -> Mapping[str, Curve]:
    """The curves of a run that has not ended."""
    return read_metrics(folder / "metrics.csv")


@dataclass(frozen=True, kw_only=True)
class ReportKind:
    """What the reports of one kind of runs hold, and how they are printed and drawn.

    Attributes:
        name: of the kind, for people.
        commands: those whose runs are of this kind, each with what it is called in titles, or nothing.
        subject: the setting that says what the run was trained on.
        needed: the settings without which no report can be shown.
        extras: the entries that only this kind has in `report.json`, each with its default.
        results: the rows of the printed table.
        header: of the printed table; None: it has none.
        note: printed below the table.
        title: of the figure.
        panels: six of the figure, or four; each draws the run into its axes.
        comparison: of several runs; None: they can't be compared.
        logged: the curves in the folder of a run that has not ended.
    """

    name: str
    commands: Mapping[str, str]
    subject: str = "env"
    needed: tuple[str, ...]
    extras: Mapping[str, Any] = field(default_factory=dict)
    results: Callable[[RunReport], list[Row]]
    header: Callable[[RunReport], list[str]] | None = None
    note: Callable[[RunReport], str]
    title: Callable[[RunReport], str]
    panels: tuple[Callable[[Axes, RunReport], None], ...]
    comparison: Comparison | None = None
    logged: Callable[[Path], Mapping[str, Curve]] = logged_curves

    def new(
        self,
        *,
        name: str,
        settings: Mapping[str, Any],
        command: str | None = None,
        curves: Mapping[str, Curve] | None = None,
        summary: Mapping[str, float] | None = None,
        **extras: Any,
    ) -> RunReport:
        """A report from the entries of its file.

        Raises:
            TypeError: an entry is unknown.
        """
        unknown = sorted(extras.keys() - self.extras.keys())
        if unknown:
            raise TypeError(f"no report of {self.name} has {', '.join(unknown)}")
        return RunReport(
            name=name,
            command=next(iter(self.commands)) if command is None else command,
            settings=settings,
            curves=curves or {},
            summary=summary or {},
            extras={**self.extras, **extras},
        )

    def save(self, folder: Path, report: RunReport) -> None:
        """Write `report.json`."""
        entries: dict[str, Any] = {"name": report.name, "settings": report.settings}
        if len(self.commands) > 1:
            entries["command"] = report.command
        write_json(
            folder / "report.json", {**entries, "curves": report.curves, "summary": report.summary, **report.extras}
        )

    def load(self, folder: Path, command: str) -> RunReport:
        """A run's report; of a run that has not ended, its settings and the curves so far.

        Raises:
            ValueError: another command made the run, or a file is malformed.
        """
        settings = read_settings(folder, command)
        self._check(settings, folder / "config.json")
        path = folder / "report.json"
        if not path.exists():
            part = "hyperparameters"
            extras = {part: read_settings(folder, command, part)} if part in self.extras else {}
            return self.new(name=folder.name, settings=settings, command=command, curves=self.logged(folder), **extras)
        entries = read_json(path)
        with refused(path, ValueError, "Train again.", "is no report of this version"):
            hints = {**ENTRIES, "command": Literal[*self.commands], **dict.fromkeys(self.extras, Any)}
            optional = frozenset(hints) - {"name", "settings"}
            report = self.new(**{"command": command, **decode_fields(hints, entries, "report", optional)})
        self._check(report.settings, path)
        return report

    def print(self, report: RunReport) -> None:
        """Print a run's table."""
        title = (self.commands[report.command], str(report.settings[self.subject]), report.name)
        header = None if self.header is None else self.header(report)
        print_table(", ".join(word for word in title if word), self.results(report), self.note(report), header)

    def _check(self, settings: Mapping[str, Any], path: Path) -> None:
        missing = [name for name in self.needed if name not in settings]
        if missing:
            raise ValueError(f"{str(path)!r} is not of this version: it lacks {', '.join(missing)}.")


# ---- rows that several kinds have


def return_words(value: float, spread: float | None = None) -> str:
    """A return, and its standard deviation: with more digits where all of it is small, as on DeepSea."""
    digits = 1 if max(abs(value), spread or 0.0) >= 1 or value == 0 == (spread or 0) else 3
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def return_rows(found: Mapping[str, float]) -> list[Row]:
    """Returns of the last evaluation, of deterministic and of sampled actions."""
    return [
        (f"return, {how}", return_words(found[f"mean_reward{suffix}"], found[f"std_reward{suffix}"]))
        for suffix, how in (("", "deterministic"), ("_sampled", "sampled"))
        if f"mean_reward{suffix}" in found
    ]


def best_rows(found: Mapping[str, float]) -> list[Row]:
    """The best evaluation, and when it was."""
    if "best_mean_reward" not in found:
        return []
    return [("best evaluation", f"{return_words(found['best_mean_reward'])} at {found['best_step']:,.0f} steps")]


def entropy_rows(found: Mapping[str, float]) -> list[Row]:
    """The policy's entropy, and its share of the largest possible one; without one it is of continuous actions."""
    if "policy_entropy" not in found:
        return []
    share = f" ({100 * found['entropy_frac']:.1f} % of log n)" if "entropy_frac" in found else ""
    rows: list[Row] = [
        ("policy entropy" if share else "differential entropy", f"{found['policy_entropy']:.3f} nats{share}")
    ]
    if "entropy_frac_min" in found:
        rows.append(("of the lowest state", f"{100 * found['entropy_frac_min']:.1f} % of log n"))
    return rows


def speed_rows(found: Mapping[str, float]) -> list[Row]:
    """How many steps were trained for, and how fast."""
    if "steps" not in found:
        return []
    speed = f", {found['steps_per_second']:,.0f} a second" if "steps_per_second" in found else ""
    return [("training", f"{found['steps']:,.0f} steps{speed}")]


def leading_number(words: str) -> int | None:
    """The number that words such as `1,000 in 2 episodes` begin with; None if they don't."""
    first = words.partition(" ")[0].replace(",", "")
    return int(first) if first.isdigit() else None


def layers_words(sizes: Iterable[int]) -> str:
    """The sizes of hidden layers: `64 × 64`."""
    return " × ".join(map(str, sizes)) or "none"


# ---- tables on the terminal

FEW_SAMPLES, MANY_SAMPLES = 100, 1000
"""Up to the former, a share is printed with the number of samples; from the latter on, with a tenth of a percent."""

EVALUATED = {
    "mean_reward": ("return, mean", "return"),
    "std_reward": ("return, std", "return"),
    "min_reward": ("return, lowest", "return"),
    "mean_ep_length": ("episode length", "return"),
    "accuracy": ("accuracy", "share"),
    "nll_hard": ("negative log-likelihood", "nats"),
    "ece": ("calibration error (ECE)", ""),
    "policy_entropy": ("policy entropy", "nats"),
    "entropy_frac": ("of the largest possible", "%"),
    "entropy_frac_min": ("the same of the lowest state", "%"),
    "entropy_below": ("states below guarantee or target", "%"),
    "kl_uniform": ("KL(uniform‖policy)", "nats"),
}


def print_evaluation(title: str, found: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> None:
    """Print an evaluation's table, a column for each way of playing and one for the demonstrations.

    Args:
        title: above it.
        found: by column, numbers by name.
        counts: by column, of how many transitions its shares are; a column that is left out has many.
    """
    rows = [
        (
            label,
            *(
                with_unit(column[name], unit, counts.get(head)) if name in column else ""
                for head, column in found.items()
            ),
        )
        for name, (label, unit) in EVALUATED.items()
        if any(name in column for column in found.values())
    ]
    print_table(title, rows, "Entropy and KL: mean over the states that were met.", header=["", *found])


def print_table(title: str, rows: Sequence[Row], note: str, header: Sequence[str] | None = None) -> None:
    """Print rows with a title above and a note below."""
    table = Table(show_header=header is not None)
    for place, name in enumerate(header or [""] * len(rows[0])):
        table.add_column(name, style="cyan" if place == 0 else None, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A pipe has no width of its own: 80 columns would cut the rows of long names.
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(title, style="italic", highlight=False, soft_wrap=True)  # a table would break it at its own width
    console.print(table)
    console.print(note, style="dim", highlight=False)


def with_unit(value: float, unit: str, count: int | None = None) -> str:
    """A value in words: `92.3 %`, `0.412 nats`; `return`: as `return_words`, without a unit.

    Args:
        value: the number.
        unit: `"share"` for a share of samples.
        count: of how many; None: of many.
    """
    if unit == "return":
        return return_words(value)
    if unit == "share":
        return share_words(value, count)
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.3f} {unit}".strip()


def share_words(value: float, count: int | None = None, sign: str = "") -> str:
    """A share in percent, with no more digits than so many samples can tell apart.

    Args:
        value: the share, in [0, 1]; a difference of shares with a sign.
        count: of how many samples; None: of many. Few are named.
        sign: `"+"`: write the sign.

    Examples:
        >>> share_words(0.9737), share_words(0.9737, 500), share_words(1.0, 1)
        ('97.4 %', '97 %', '100 % of 1')
    """
    digits = 1 if count is None or count >= MANY_SAMPLES else 0
    named = f" of {count}" if count is not None and count < FEW_SAMPLES and not sign else ""
    return f"{100 * value:{sign}.{digits}f} %{named}"
