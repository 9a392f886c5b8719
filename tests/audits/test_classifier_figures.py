"""The drawings of classifiers show what was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlsmooth.audits import reliability_bins, risk_coverage
from rlsmooth.audits.figures import draw_reliability, draw_risk_coverage, new_figure


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
    assert legend is not None
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
