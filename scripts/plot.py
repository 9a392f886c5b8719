"""Draw a run's report again, or compare several runs.

rlsmooth plot logs/bc/CartPole-v1_1
rlsmooth plot logs/bc/CartPole-v1_* --output comparison.png
rlsmooth plot logs/ppo/CartPole-v1_1 logs/a2c/CartPole-v1_1
rlsmooth plot logs/ppo/CartPole-v1-seeds_1 logs/a2c/CartPole-v1-seeds_1

Runs that differ in their seed alone are drawn as one line, with the interval of its mean.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from rlsmooth.checks import check_writable_folder
from rlsmooth.scripts.command import run_command


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw the report of one run, or one figure that compares several."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The runs' folders, or that of --seeds for all its runs. A run that has not ended is drawn as far as it is."""
    output: Path | None = None
    """The figure: .png, .svg or .pdf. Default: report.png, of --seeds seeds.png, in the folder; or comparison.png."""


def main(args: Args) -> Path:
    """Draw, and return the figure's path.

    Raises:
        ValueError: a folder is none of a run, runs of two kinds or environments are compared, or the figure can't be
            written.
    """
    if not args.folders:
        raise ValueError("name at least one folder of a run.")
    # Imported here, so that the arguments can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.scripts.figures.kinds import draw_reports, load_reports
    from rlsmooth.scripts.figures.page import save_figure
    from rlsmooth.scripts.run_folder import runs_in

    runs = [run for folder in args.folders for run in runs_in(folder)]
    figure = draw_reports(load_reports(runs))
    name = "report.png" if args.folders[0] in runs else "seeds.png"
    output = args.output or (args.folders[0] / name if len(args.folders) == 1 else Path("comparison.png"))
    check_writable_folder("output", output.parent)
    save_figure(output, figure)
    print(f"drawn to {output}")
    return output


if __name__ == "__main__":
    sys.exit(run_command("plot", Args, main))
