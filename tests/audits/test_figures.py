"""Drawings: what stands on the axes is what was given, and nothing but the axes is touched."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from rlsmooth.audits import reliability_bins, risk_coverage
from rlsmooth.audits.figures import (
    draw_entropy_histogram,
    draw_reliability,
    draw_risk_coverage,
    draw_target_matrix,
    new_figure,
)


def test_a_reliability_diagram_shows_the_filled_bins() -> None:
    bins = reliability_bins(torch.tensor([0.1, 0.7, 0.9]), torch.tensor([False, True, False]), num_bins=5)
    figure, axes = new_figure()
    draw_reliability(axes, bins, ece=0.25)
    policy = next(line for line in axes.lines if "ECE 0.250" in str(line.get_label()))
    x, y = policy.get_data()
    np.testing.assert_allclose(np.asarray(x), [0.1, 0.7, 0.9], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(y), [0.0, 1.0, 0.0])
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert sum(heights) == pytest.approx(1.0)
    figure.canvas.draw()


def test_a_reliability_diagram_of_nothing_is_empty() -> None:
    _, axes = new_figure()
    draw_reliability(axes, reliability_bins(torch.zeros(0), torch.zeros(0)))
    assert len(axes.lines[1].get_xdata()) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "written"), [(3, 9), (15, 0)])
def test_a_target_matrix_is_written_into_its_cells_while_they_are_few(size: int, written: int) -> None:
    matrix = torch.eye(size) * 0.9 + 0.1 / size
    figure, axes = new_figure()
    draw_target_matrix(axes, matrix, names=[f"action {place}" for place in range(size)])
    (image,) = axes.images
    np.testing.assert_allclose(np.asarray(image.get_array()), matrix.numpy(), rtol=1e-6)
    assert len(axes.texts) == written
    assert axes.get_yticklabels()[1].get_text() == "action 1"
    figure.canvas.draw()


def test_an_entropy_histogram_counts_every_state() -> None:
    entropies = torch.tensor([0.0, 0.1, 0.1, 0.69])
    figure, axes = new_figure()
    draw_entropy_histogram(axes, entropies, maximum=float(np.log(2)))
    assert sum(patch.get_height() for patch in axes.patches) == 4  # type: ignore[attr-defined]
    draw_entropy_histogram(axes, torch.tensor([-1.5, 2.0]))  # differential entropies may be negative
    assert axes.get_xlim()[0] < -1.5
    figure.canvas.draw()


def test_importing_needs_no_matplotlib() -> None:
    code = "import sys, rlsmooth.audits.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- classifiers
def test_risk_coverage_curves_share_axes() -> None:
    hits = torch.tensor([True, True, False, True])
    curves = {
        "good": risk_coverage(torch.tensor([0.9, 0.8, 0.1, 0.7]), hits),
        "bad": risk_coverage(torch.tensor([0.1, 0.2, 0.9, 0.3]), hits),
    }
    figure, axes = new_figure()
    for name, curve in curves.items():
        draw_risk_coverage(axes, curve, label=name, colour="black")
    assert len(axes.lines) == 2
    for line, curve in zip(axes.lines, curves.values(), strict=True):
        x, y = line.get_data()
        np.testing.assert_allclose(np.asarray(x), [0.25, 0.5, 0.75, 1.0])
        np.testing.assert_allclose(np.asarray(y), curve.risk.numpy())
    legend = axes.get_legend()
    written = [text.get_text() for text in legend.get_texts()]
    assert written == ["good (AURC 0.0625)", f"bad (AURC {curves['bad'].area:.4f})"]
    assert axes.get_ylim()[0] == 0
    figure.canvas.draw()


def test_the_curve_of_nothing_is_empty() -> None:
    figure, axes = new_figure()
    draw_risk_coverage(axes, risk_coverage(torch.zeros(0), torch.zeros(0)))
    assert len(axes.lines[0].get_xdata()) == 0  # type: ignore[arg-type]
    assert axes.lines[0].get_label() == "model"
    figure.canvas.draw()


def test_reliability_is_named_and_coloured() -> None:
    _, axes = new_figure()
    bins = reliability_bins(torch.tensor([0.3, 0.7]), torch.tensor([False, True]))
    draw_reliability(axes, bins, label="classifier", colour="#ff0000")
    line = axes.lines[-1]
    assert (line.get_label(), line.get_color()) == ("classifier", "#ff0000")
    with pytest.raises(TypeError):
        draw_reliability(axes, bins, 0.1)  # type: ignore[misc]
