"""Learning curves with intervals, one colour an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rlsmooth.audits import interquartile_mean_band
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, STYLE

COLOURS = (GREY, BLUE, RED, GREEN, PURPLE, ORANGE)


def curves_chart(
    path: Path,
    arms: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    panels: Sequence[tuple[str, str, str]],
    title: str,
    lines: Mapping[str, float] | None = None,
) -> None:
    """Draw, for each panel, the interquartile mean over an arm's runs, with its 95 % bootstrap band.

    Args:
        path: of the PNG.
        arms: name to the runs' results, whose curves share their steps.
        panels: `(key of the steps, key of the values, label)`.
        title: of the figure.
        lines: panel's label to a level that is marked there.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5 * len(panels), 4.6), dpi=120, layout="constrained")
        figure.suptitle(title)
        for axes, (steps_key, key, label) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            for colour, (name, runs) in zip(COLOURS, arms.items(), strict=False):
                length = min(len(run[key]) for run in runs)
                steps = np.asarray(runs[0][steps_key][:length])
                values = np.asarray([run[key][:length] for run in runs], dtype=np.float64)
                band = interquartile_mean_band(values, num_resamples=2_000)
                axes.plot(steps, band.estimate, color=colour, label=name, linewidth=2)
                axes.fill_between(steps, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
            if lines and label in lines:
                axes.axhline(lines[label], color="#888888", linestyle="--", linewidth=1)
            axes.set(xlabel="environment steps", ylabel=label)
        axes.legend(frameon=False)
        figure.savefig(path)
