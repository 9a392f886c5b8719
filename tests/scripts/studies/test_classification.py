"""Small versions of the studies of classifiers and GANs: their arms differ as they say, and they run to the end."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from rlsmooth.data import load_labelled
from rlsmooth.scripts.studies import digits, gan_modes, hierarchy, hybrid_iris, self_training
from rlsmooth.scripts.studies.runner import Args
from rlsmooth.targets import Tree
from rlsmooth.training import generator_loss


def test_the_best_margins_are_the_formulas() -> None:
    assert digits.best_margin(0.0) == math.inf
    for alpha in digits.ALPHAS[1:]:
        assert digits.best_margin(alpha) == pytest.approx(math.log(1 + 10 * (1 - alpha) / alpha))


def run(alpha: float, noise: float, epochs: int = 8) -> dict[str, Any]:
    settings = {"arm": "x", "alpha": alpha, "noise": noise, "seed": 0, "epochs": epochs}
    return digits.train(settings)


def test_one_run() -> None:
    plain, noisy = run(0.0, 0.0), run(0.2, 0.2)
    assert plain["rows"] == [1078, 360, 359]
    assert sum(plain["bins"]["counts"]) == 359
    assert plain["plain"]["accuracy"] == plain["scaled"]["accuracy"] > 0.85
    assert plain["temperature"] == pytest.approx(plain["scaled"]["temperature"])
    assert noisy["plain"]["accuracy"] > 0.7
    assert noisy["training_margin"] < plain["training_margin"]
    hits = np.dot(plain["bins"]["counts"], plain["bins"]["accuracy"])
    assert hits / 359 == pytest.approx(plain["plain"]["accuracy"])


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path: Path) -> None:
    digits.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "digits.json").read_text())
    assert set(found["runs"]) == {digits.arm_of(alpha, noise) for alpha in digits.ALPHAS for noise in digits.NOISES}
    assert all(len(runs) == 2 for runs in found["runs"].values())
    assert "| 0.1 | scaled |" in (tmp_path / "digits.md").read_text()


# ---- taxonomy
TREE = Tree.from_nested({"a": ["p", "q", "r"], "b": ["s"], "c": ["t", "u"]})


@pytest.mark.parametrize("arm", [arm for arm in hierarchy.ARMS if arm != "Boltzmann, decay 1"])
def test_an_arm_takes_its_mass_off_the_label(arm: str) -> None:
    settings = hierarchy.ARMS[arm]
    smoothing = hierarchy.smoothing_of(TREE, alpha=settings["alpha"], decay=settings["decay"])
    dense = smoothing(torch.arange(6), 6).dense(torch.float64)
    expected = torch.full((6,), 1 - settings["alpha"], dtype=torch.float64)
    torch.testing.assert_close(dense.diagonal(), expected, rtol=0, atol=1e-12)
    ratio = dense[0, 1] / dense[0, 3]  # a relative's share to a stranger's
    if settings["alpha"]:
        ratios = {0.0: 1.0, 0.5: 2.718, 1.0: 7.389, 2.0: 54.6}
        assert ratio.item() == pytest.approx(ratios[settings["decay"]], rel=1e-3)


def test_each_comparison_is_of_two_arms_of_one_mass_or_of_flat_and_none() -> None:
    pairs = hierarchy.planned_pairs()
    assert len(pairs) == len(hierarchy.ARMS) - 1
    for one, other in pairs:
        assert {one, other} <= hierarchy.ARMS.keys()
        if other.startswith("flat"):
            assert hierarchy.ARMS[one]["alpha"] == hierarchy.ARMS[other]["alpha"]
        else:
            assert other == "none"


def test_differences_go_seed_by_seed() -> None:
    arms = {"x": [{"nll": 3.0}, {"nll": 1.0}], "y": [{"nll": 1.0}, {"nll": 2.0}]}
    assert hierarchy.differences(arms, "nll", "x", "y") == [2.0, -1.0]


def test_every_arm_has_a_colour_of_its_kind() -> None:
    assert hierarchy.colour_of("none") == hierarchy.COLOURS["none"]
    assert hierarchy.colour_of("hierarchical 0.3, decay 2") == hierarchy.COLOURS["decay 2"]
    assert hierarchy.colour_of("Boltzmann, decay 1") != hierarchy.colour_of("hierarchical 0.1, decay 1")


def test_one_run_of_hierarchy() -> None:
    arm = "hierarchical 0.1, decay 1"
    settings: dict[str, Any] = {
        "arm": arm,
        "data": "olive",
        "seed": 0,
        **hierarchy.DATA["olive"],
        **hierarchy.ARMS[arm],
    }
    result = hierarchy.train({**settings, "epochs": 20})
    assert result["rows"] == [114, 115, 343]
    assert result["accuracy"] > 0.5
    assert 1 <= result["mistake_severity"] <= 2
    assert result["distance_at_1"] == pytest.approx(result["mistake_severity"] * (1 - result["accuracy"]), abs=1e-6)
    assert result["scaled_nll"] < result["nll"]  # so early it is not confident enough
    assert result["temperature"] < 1


def test_the_rodents_are_a_taxonomy_of_two_levels() -> None:
    data = load_labelled("rodents")
    assert (data.num_classes, len(data.hierarchy)) == (24, 9)
    needed = sum(hierarchy.DATA["rodents"][part] for part in ("train", "tune", "test"))
    assert needed < len(data)


@pytest.mark.slow
def test_it_runs_from_start_to_end_of_hierarchy(tmp_path: Path) -> None:
    hierarchy.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "hierarchy.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "hierarchy.json").read_text())
    for name in hierarchy.DATA:
        assert {arm: len(runs) for arm, runs in result["runs"][name].items()} == dict.fromkeys(hierarchy.ARMS, 2)
    page = (tmp_path / "hierarchy.md").read_text()
    assert all(page.count(f"\n| {arm} |") == 2 for arm in hierarchy.ARMS)


# ---- iris
@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("hybrids (1/3, 2/3)", [[1, 0], [1 / 3, 2 / 3], [0, 1]]),
        ("hybrids (1/2, 1/2)", [[1, 0], [1 / 2, 1 / 2], [0, 1]]),
        ("three classes", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ],
)
def test_what_the_arms_train_on(arm: str, expected: list[list[float]]) -> None:
    target = hybrid_iris.target_of(torch.arange(3), **hybrid_iris.ARMS[arm])
    torch.testing.assert_close(target.dense(torch.float64), torch.tensor(expected, dtype=torch.float64))


def test_what_the_parents_alone_train_on() -> None:
    parents = torch.tensor([hybrid_iris.SETOSA, hybrid_iris.VIRGINICA])
    hard = hybrid_iris.target_of(parents, **hybrid_iris.ARMS["parents, hard"])
    torch.testing.assert_close(hard.dense(), torch.eye(2))
    smoothed = hybrid_iris.target_of(parents, **hybrid_iris.ARMS["parents, smoothed by 0.1"])
    torch.testing.assert_close(smoothed.dense(), torch.tensor([[0.95, 0.05], [0.05, 0.95]]))


def test_the_discriminant_is_scikit_learns() -> None:
    data = load_labelled("iris")
    parents = data.labels != hybrid_iris.VERSICOLOR
    model = LinearDiscriminantAnalysis(solver="lsqr").fit(data.features[parents], data.labels[parents])
    setosa, versicolor, virginica = (
        float((data.features[data.labels == species].astype(np.float64) @ model.coef_[0]).mean())
        for species in range(3)
    )
    ours = hybrid_iris.discriminant_place(data)
    assert ours == pytest.approx((versicolor - setosa) / (virginica - setosa), rel=1e-4)


@pytest.mark.parametrize("arm", ["parents, hard", "hybrids (1/3, 2/3)", "three classes"])
def test_one_run_of_hybrid_iris(arm: str) -> None:
    settings: dict[str, Any] = {"arm": arm, "seed": 0, "epochs": 60, **hybrid_iris.ARMS[arm]}
    result = hybrid_iris.train(settings)
    assert [len(shares) for shares in result["shares"]] == [15, 15, 15]
    assert result["hybrid_share"] == pytest.approx(np.mean(result["shares"][1]))
    assert result["setosa_share"] > 0.9
    assert result["virginica_share"] > 0.8
    assert result["told"] > (0.6 if arm == "parents, hard" else 0.85)
    errors = [abs(np.asarray(shares) - truth) for shares, truth in zip(result["shares"], (0, 2 / 3, 1), strict=True)]
    assert result["error"] == pytest.approx(np.concatenate(errors).mean())


@pytest.mark.slow
def test_it_runs_from_start_to_end_of_hybrid_iris(tmp_path: Path) -> None:
    hybrid_iris.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "hybrid_iris.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "hybrid_iris.json").read_text())
    assert {arm: len(runs) for arm, runs in result["runs"].items()} == dict.fromkeys(hybrid_iris.ARMS, 2)
    page = (tmp_path / "hybrid_iris.md").read_text()
    assert all(f"\n| {arm} |" in page for arm in hybrid_iris.ARMS)


# ---- self-training
def settings(arm: str, epochs: int = 8) -> dict[str, Any]:
    return {"arm": arm, "seed": 0, "epochs": epochs, "arguments": self_training.ARMS.get(arm, {})}


def test_the_rounds_of_an_arm_without_a_threshold_label_every_row() -> None:
    rows = len(load_labelled("digits").split(0.25, seed=0)[0])
    assert rows == 1348
    arms = [arguments for arguments in self_training.ARMS.values() if "k_best" in arguments]
    assert len(arms) == 5
    for arguments in arms:
        assert (arguments["max_iter"] - 1) * arguments["k_best"] < rows - self_training.LABELS
        assert arguments["max_iter"] * arguments["k_best"] >= rows - self_training.LABELS


def test_all_arms_start_from_one_teacher_and_the_bound_is_that_teacher() -> None:
    arms = {
        arm: self_training.train({**settings(arm), "arguments": {**self_training.ARMS[arm], "max_iter": 1}})
        for arm in ("hard", "smoothed 0.1", "confidence-adaptive")
    }
    first = {arm: result["rounds"][0] for arm, result in arms.items()}
    for arm in ("smoothed 0.1", "confidence-adaptive"):
        assert first[arm]["gradients"]["hard"] == first["hard"]["gradients"]["hard"]
        assert first[arm]["gradients"]["target"] != first[arm]["gradients"]["hard"]
        assert first[arm]["new_accuracy"] == first["hard"]["new_accuracy"]
    assert first["hard"]["gradients"]["target"] == first["hard"]["gradients"]["hard"]
    assert first["hard"]["num_labelled"] == 50 + 220
    few = self_training.train(settings("50 labels alone"))
    assert few.keys() == {"accuracy", "ece"}
    assert 0.2 < few["accuracy"] < 0.95


@pytest.mark.slow
def test_it_runs_from_start_to_end_of_self_training(tmp_path: Path) -> None:
    self_training.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "self_training.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "self_training.json").read_text())
    arms = (self_training.BOUNDS[0], *self_training.ARMS, self_training.BOUNDS[1])
    assert {arm: len(runs) for arm, runs in result["runs"].items()} == dict.fromkeys(arms, 2)
    page = (tmp_path / "self_training.md").read_text()
    for arm, runs in result["runs"].items():
        mean = sum(run["accuracy"] for run in runs) / 2  # of two, all is the middle half
        (shown,) = re.findall(rf"^\| {re.escape(arm)} \| (\S+) ", page, flags=re.MULTILINE)
        assert float(shown) == pytest.approx(mean, abs=6e-4)


# ---- GAN modes
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
