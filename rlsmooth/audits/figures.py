"""Figures of the results of an audit, on axes that the caller has: for TensorBoard, reports and notebooks.

Nothing here imports matplotlib before a figure is wanted, and nothing touches its global state: no `pyplot`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlsmooth.audits.arguments import takes_arrays
from rlsmooth.audits.calibration import ReliabilityBins, has_equal_widths
from rlsmooth.audits.selective import RiskCoverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MODEL_COLOUR, IDEAL_COLOUR, COUNT_COLOUR = "#1f5fa8", "#555555", "#c9d6e6"


def new_figure(width: float = 5.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure of its own, without `pyplot`, so that drawing needs no screen and leaves nothing open.

    Args:
        width: in inches.
        height: in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def draw_reliability(
    axes: Axes,
    bins: ReliabilityBins,
    *,
    ece: float | None = None,
    title: str = "Reliability",
    label: str = "policy",
    colour: str = MODEL_COLOUR,
) -> None:
    """A reliability diagram: accuracy against confidence, bin by bin, with the share of samples behind it.

    Points under the diagonal are overconfident, points above it (smoothing tends there) underconfident.

    Args:
        axes: where to draw.
        bins: a result of `reliability_bins`.
        ece: written into the diagram.
        title: of the diagram.
        label: what the legend calls the model.
        colour: of its line.
    """
    edges, counts = bins.edges.detach().cpu().double(), bins.counts.detach().cpu().double()
    share = (counts / counts.sum().clamp(min=1e-300)).nan_to_num()
    filled = counts > 0
    words = f"{float(counts.nansum()):,.0f} samples"
    if has_equal_widths(bins):
        places, widths = edges[:-1].tolist(), edges.diff().tolist()
        axes.bar(places, share.tolist(), width=widths, align="edge", color=COUNT_COLOUR, label=f"share of the {words}")
    else:  # bins of equal size: bars would all be as high
        axes.plot([], [], linestyle="", label=words)
    axes.plot([0, 1], [0, 1], linestyle="--", color=IDEAL_COLOUR, label="perfectly calibrated")
    axes.plot(
        bins.mean_confidence.detach().cpu()[filled].tolist(),
        bins.accuracy.detach().cpu()[filled].tolist(),
        marker="o",
        color=colour,
        label=label if ece is None else f"{label} (ECE {ece:.3f})",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence (largest probability)", ylabel="accuracy", title=title)
    axes.legend(loc="upper left", fontsize="small", framealpha=0.9)


def draw_risk_coverage(
    axes: Axes,
    curve: RiskCoverage,
    *,
    title: str = "Risk when only the surest samples are answered",
    label: str = "model",
    colour: str = MODEL_COLOUR,
) -> None:
    """A risk-coverage curve: the share of wrong answers against the share of samples that are answered.

    Call it once for each model to have them on one pair of axes.

    Args:
        axes: where to draw.
        curve: a result of `risk_coverage`.
        title: of the diagram.
        label: what the legend calls the model; the area under the curve is added.
        colour: of its line.
    """
    coverage, risk = curve.coverage.detach().cpu().tolist(), curve.risk.detach().cpu().tolist()
    area = float(curve.area)
    axes.plot(coverage, risk, color=colour, label=label if math.isnan(area) else f"{label} (AURC {area:.4f})")
    axes.set(
        xlim=(0, 1), xlabel="coverage (share of samples answered)", ylabel="risk (share of those wrong)", title=title
    )
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize="small", framealpha=0.9)


@takes_arrays
def draw_target_matrix(
    axes: Axes, matrix: Tensor, *, names: Sequence[str] | None = None, title: str = "Target of each label"
) -> None:
    """The target of each label as an image: row = demonstrated action, column = action, colour = probability.

    Args:
        axes: where to draw.
        matrix: float `[K, K]`.
        names: of the actions; their numbers if left out.
        title: of the image.
    """
    values = matrix.detach().cpu().double()
    size = len(values)
    axes.imshow(values.numpy(), vmin=min(0.0, float(values.min())), vmax=1.0, cmap="Blues", aspect="equal")
    axes.set(xlabel="action", ylabel="demonstrated action", title=title)
    if size <= 20:
        labels = list(names) if names is not None else [str(place) for place in range(size)]
        axes.set_xticks(range(size), labels, rotation=90 if size > 4 and max(map(len, labels)) > 3 else 0)
        axes.set_yticks(range(size), labels)
    if size <= 8:  # more numbers would overlap
        for row in range(size):
            for column in range(size):
                value = float(values[row, column])
                colour = "white" if value > 0.6 else "black"
                axes.text(
                    column,
                    row,
                    f"{value:.3f}".rstrip("0").rstrip("."),
                    ha="center",
                    va="center",
                    color=colour,
                    fontsize="small",
                )


@takes_arrays
def draw_entropy_histogram(
    axes: Axes, entropies: Tensor, *, maximum: float | None = None, title: str = "Entropy of the policy"
) -> None:
    """How the policy's entropy is spread over states.

    Args:
        axes: where to draw.
        entropies: `[N]`, nats.
        maximum: the uniform policy's entropy, drawn as a line; None: none.
        title: of the histogram.
    """
    values = entropies.detach().cpu().double().flatten()
    low = min(0.0, float(values.min())) if len(values) else 0.0
    high = max(float(values.max()) if len(values) else 1.0, maximum or 0.0, low + 1e-6)
    counts = torch.histc(values, bins=40, min=low, max=high)
    edges = torch.linspace(low, high, 41, dtype=torch.float64)
    axes.bar(edges[:-1].tolist(), counts.tolist(), width=edges.diff().tolist(), align="edge", color=MODEL_COLOUR)
    if maximum is not None:
        axes.axvline(maximum, linestyle="--", color=IDEAL_COLOUR, label=f"uniform policy ({maximum:.3f})")
        axes.legend(loc="upper center", fontsize="small", framealpha=0.9)
    axes.set(xlabel="entropy (nats)", ylabel="states", title=title)
