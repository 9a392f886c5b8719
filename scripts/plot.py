"""Draw a run's report again, or compare several runs.

rlsmooth plot logs/bc/CartPole-v1_1
rlsmooth plot logs/bc/CartPole-v1_* --output comparison.png
rlsmooth plot logs/ppo/CartPole-v1_1 logs/a2c/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rlsmooth.checks import check_writable_folder
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.run_folder import read_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw the report of one run, or one figure that compares several."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The runs' folders. A run that has not ended is drawn as far as it is."""
    output: Path | None = None
    """The picture: .png, .svg or .pdf. Default: report.png in the run's folder, or comparison.png here."""


def main(args: Args) -> Path:
    """Draw, and return the picture's path.

    Raises:
        ValueError: a folder is none of a run, runs of two kinds are to be compared, or the picture can't be written.
    """
    if not args.folders:
        raise ValueError("name at least one folder of a run.")
    # Imported here, so that the arguments can be listed, and a wrong one told, without waiting for torch.
    from rlsmooth.scripts.drawing import save_figure

    commands = [read_command(folder) for folder in args.folders]
    kinds = {KINDS.get(command, "on-policy") for command in commands}
    if len(kinds) > 1:
        raise ValueError(f"runs of {' and '.join(sorted(kinds))} can't be compared: name those of one kind.")
    figure = FIGURES[kinds.pop()](args.folders)
    output = args.output or (args.folders[0] / "report.png" if len(commands) == 1 else Path("comparison.png"))
    check_writable_folder("output", output.parent)
    save_figure(output, figure)
    print(f"drawn to {output}")
    return output


def _cloning_figure(folders: Sequence[Path]) -> Figure:
    from rlsmooth.scripts.figures import comparison_figure, report_figure
    from rlsmooth.scripts.report import load_report

    reports = [load_report(folder) for folder in folders]
    return report_figure(reports[0]) if len(reports) == 1 else comparison_figure(reports)


def _on_policy_figure(folders: Sequence[Path]) -> Figure:
    from rlsmooth.scripts.on_policy_figures import on_policy_comparison_figure, on_policy_figure
    from rlsmooth.scripts.on_policy_report import load_on_policy_report

    reports = [load_on_policy_report(folder) for folder in folders]
    return on_policy_figure(reports[0]) if len(reports) == 1 else on_policy_comparison_figure(reports)


def _cloning_from_observation_figure(folders: Sequence[Path]) -> Figure:
    from rlsmooth.scripts.bco_figures import bco_comparison_figure, bco_figure
    from rlsmooth.scripts.bco_report import load_bco_report

    reports = [load_bco_report(folder) for folder in folders]
    return bco_figure(reports[0]) if len(reports) == 1 else bco_comparison_figure(reports)


def _classification_figure(folders: Sequence[Path]) -> Figure:
    from rlsmooth.scripts.classify_figures import classify_comparison_figure, classify_figure
    from rlsmooth.scripts.classify_report import load_classify_report

    reports = [load_classify_report(folder) for folder in folders]
    return classify_figure(reports[0]) if len(reports) == 1 else classify_comparison_figure(reports)


def _self_training_figure(folders: Sequence[Path]) -> Figure:
    from rlsmooth.scripts.self_train_figures import self_train_comparison_figure, self_train_figure
    from rlsmooth.scripts.self_train_report import load_self_train_report

    reports = [load_self_train_report(folder) for folder in folders]
    return self_train_figure(reports[0]) if len(reports) == 1 else self_train_comparison_figure(reports)


def _gan_figure(folders: Sequence[Path]) -> Figure:
    from rlsmooth.scripts.gan_report import gan_figure, load_gan_report

    if len(folders) > 1:
        raise ValueError("runs of gan can't be compared: name one folder.")
    return gan_figure(load_gan_report(folders[0]))


def _adversarial_figure(folders: Sequence[Path]) -> Figure:
    from rlsmooth.scripts.adversarial_figures import adversarial_comparison_figure, adversarial_figure
    from rlsmooth.scripts.adversarial_report import load_adversarial_report

    reports = [load_adversarial_report(folder) for folder in folders]
    return adversarial_figure(reports[0]) if len(reports) == 1 else adversarial_comparison_figure(reports)


def _dagger_figure(folders: Sequence[Path]) -> Figure:
    from rlsmooth.scripts.dagger_figures import dagger_comparison_figure, dagger_figure
    from rlsmooth.scripts.dagger_report import load_dagger_report

    reports = [load_dagger_report(folder) for folder in folders]
    return dagger_figure(reports[0]) if len(reports) == 1 else dagger_comparison_figure(reports)


FIGURES: dict[str, Callable[[Sequence[Path]], Figure]] = {
    "bc": _cloning_figure,
    "bco": _cloning_from_observation_figure,
    "classify": _classification_figure,
    "dagger": _dagger_figure,
    "gan": _gan_figure,
    "gail or airl": _adversarial_figure,
    "on-policy": _on_policy_figure,
    "self-train": _self_training_figure,
}
"""What draws the runs of each kind."""
KINDS = {name: name for name in FIGURES} | {"gail": "gail or airl", "airl": "gail or airl"}
"""By command, the kind of its runs; all others are on-policy."""

if __name__ == "__main__":
    sys.exit(run_command("plot", Args, main))
