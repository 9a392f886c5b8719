"""The study of GAN modes: its stack is as many networks apart, it counts as it says, and it runs from start to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rlsmooth.scripts.studies import gan_modes
from rlsmooth.training import generator_loss


def test_a_stack_is_as_many_networks_apart() -> None:
    stack = gan_modes.StackedMLP(3, (2, 5, 4, 1))
    rows = torch.randn(7, 3, 2)
    optimizer = torch.optim.Adam(stack.parameters(), lr=0.01)
    apart = []
    for run in range(3):
        layers: list[nn.Module] = []
        for weight, bias in zip(stack.weights, stack.biases, strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[2])
            layer.weight.data, layer.bias.data = weight[run].detach().T.clone(), bias[run, 0].detach().clone()
            layers += [layer, nn.ReLU()]
        apart.append(nn.Sequential(*layers[:-1]))
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.01) for network in apart]
    for _ in range(3):
        optimizer.zero_grad()
        generator_loss(stack(rows)).backward()
        norms = []
        for run, network in enumerate(apart):
            optimizers[run].zero_grad()
            generator_loss(network(rows[:, run])).backward()
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
            optimizers[run].step()
        torch.testing.assert_close(gan_modes.gradient_norms(stack), torch.stack(norms), rtol=1e-4, atol=1e-6)
        optimizer.step()
    for run, network in enumerate(apart):
        torch.testing.assert_close(stack(rows)[:, run], network(rows[:, run]), rtol=1e-4, atol=1e-5)


def test_an_arm_measures_each_run() -> None:
    settings = {"case": "ring", "arm": "two-sided", "targets": (0.9, 0.1), "runs": 2, "steps": 100, "points": 500}
    result = gan_modes.train({**settings, "seed": 1})
    assert result["steps"] == list(range(5, 101, 5))
    for name in gan_modes.MEASURES:
        assert np.shape(result[name]) == (2,), name
    assert np.shape(result["curves"]["modes"]) == (20, 2)
    assert result["modes"] == result["curves"]["modes"][-1]
    assert result["gradient_norm"][0] != result["gradient_norm"][1]


def test_means_have_standard_errors() -> None:
    assert gan_modes._mean_and_error([1.0, 2.0, 3.0, 6.0], ".2f") == "3.00 ± 1.08"


@pytest.mark.slow
def test_the_small_study_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "rlsmooth.scripts.studies.gan_modes", "--small", "--workers", "1"]
    finished = subprocess.run(
        [*command, "--folder", str(tmp_path / "runs"), "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    page = (tmp_path / "gan_modes.md").read_text()
    assert page in finished.stdout
    assert "| *GAN, published* | 17.3 ± 0.8 | 94.8 ± 0.7 % | 0.70 ± 0.07 |" in page
    found = json.loads((tmp_path / "gan_modes.json").read_text())["runs"]
    assert set(found["grid"]) == set(gan_modes.ARMS)
    mean = np.mean(found["grid"]["hard"]["modes"])
    assert re.search(rf"2D-grid\n.*?\| hard \| {mean:.1f} ± ", page, flags=re.DOTALL)
    assert (tmp_path / "gan_modes.png").stat().st_size > 10_000
