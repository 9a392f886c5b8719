"""`rlsmooth audit` as its users run it: its numbers are those of numpy, scipy and of the audits called directly."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from matplotlib.image import imread
from scipy.special import softmax
from scipy.stats import ttest_ind
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from commands import assert_picture, report_of, run_command, run_here
from rlsmooth.agents import BC, action_layers, save_agent
from rlsmooth.audits import LastLayer, attack_batches, attack_rows, fit_group_temperatures, gap_disparity, noise_curve
from rlsmooth.data import Demonstrations, LabelledData, cartpole_v1, load_demonstrations, load_labelled
from rlsmooth.scripts.audit import Args
from rlsmooth.scripts.command import run_command as parse
from rlsmooth.scripts.figures.kinds import KINDS, load_reports
from rlsmooth.scripts.main import main
from rlsmooth.targets import Smoothing, uniform
from rlsmooth.training import Classifier

FEW = ["--attacked", "60", "--auxiliary", "30", "--batch-sizes", "1", "8", "--noise", "0", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples whose labels are noisy in one of two groups of unequal size, and a classifier of them."""
    folder = tmp_path_factory.mktemp("audit")
    rng = np.random.default_rng(0)
    group = np.where(rng.random(3000) < 0.3, "west", "east")
    features = rng.normal(size=(3000, 3)).astype(np.float32)
    scores = 2 * features + np.where(group == "west", 2.5, 0.5)[:, None] * rng.normal(size=(3000, 3))
    data = LabelledData(features, scores.argmax(1), ("a", "b", "c"), groups={"side": group, "half": group == "west"})
    data.save(folder / "set.npz")
    words = ["--data", str(folder / "set.npz"), "--hidden-sizes", "8", "6", "--epochs", "12", "--device", "cpu"]
    run_here(folder, "classify", *words, "--smoothing", "0.2", "--checkpoint-freq", "-1")
    return folder


@pytest.fixture(scope="module")
def audited(home: Path) -> Path:
    words = [str(home / "classify" / "set_1"), "--data", str(home / "set.npz"), "--group", "side", "--seed", "3"]
    return run_here(home, "audit", *words, *FEW)


def component(folder: Path) -> Any:
    (found,) = report_of(folder)["components"]
    return found


def test_the_groups_of_a_classifier_are_numpys_and_scipys(home: Path, audited: Path) -> None:
    """Recomputed from the parameters in the file, on the test samples of the run that wrote it."""
    test = load_labelled(home / "set.npz").split(0.25, 0)[1]
    file = Classifier.load(home / "classify" / "set_1" / "classifier.zip", lambda d, k: layers(d, k), device="cpu")
    logits = file.logits(test.features).double().numpy()
    found, p = component(audited), softmax(logits, axis=1)
    confidence, hit = p.max(1), p.argmax(1) == test.labels
    side = test.groups["side"]
    assert [line["group"] for line in found["groups"]] == ["east", "west"]
    residuals = [(confidence - hit)[side == name] for name in ("east", "west")]
    for line, residual, name in zip(found["groups"], residuals, ("east", "west"), strict=True):
        assert line["rows"] == len(residual)
        assert line["gap"] == line["gap_interval"][0] == pytest.approx(residual.mean(), abs=1e-6)
        assert line["accuracy"] == pytest.approx(hit[side == name].mean())
        assert sum(point[2] for point in line["reliability"]) == len(residual)
        points = np.array(line["reliability"])
        assert np.ptp(points[:, 2]) <= 1
        assert points[:, 2] @ (points[:, 0] - points[:, 1]) == pytest.approx(residual.sum(), abs=1e-4)
    first = found["disparities"][0]
    assert (first["group"], first["reference"], first["samples"]) == ("west", "east", 750)
    assert first["disparity"][0] == pytest.approx(residuals[1].mean() - residuals[0].mean(), abs=1e-6)
    # Half a hit and half a miss more in each group move the interval a little.
    welch = ttest_ind(residuals[1], residuals[0], equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(first["disparity"][1:], welch, atol=0.004)
    assert first["disparity"] == pytest.approx([*gap_disparity(confidence, hit, side)], abs=1e-6)
    assert first["method"] == "Welch's t"
    # The prediction is the formula; calibration is measured on the half that it was not fitted on.
    gap = confidence[side == "west"].mean() - confidence[side == "east"].mean()
    for line, alpha in zip(found["disparities"][-3:], (0.05, 0.1, 0.2), strict=True):
        assert line["disparity"][0] == pytest.approx(first["disparity"][0] - alpha * gap, abs=1e-6)
    rest = np.random.default_rng(3).permutation(750) >= 375
    fitted = fit_group_temperatures(logits[~rest], test.labels[~rest], side[~rest], bias=True)
    scaled = fitted.calibrated(logits[rest], side[rest]).softmax(-1).numpy()[np.arange(375), logits[rest].argmax(1)]
    line = {line["name"]: line for line in found["disparities"]}["half: temperature, bias by group"]
    assert line["disparity"] == pytest.approx([*gap_disparity(scaled, hit[rest], side[rest])], abs=1e-5)
    assert abs(line["disparity"][0]) < abs(first["disparity"][0])


def layers(num_features: int, num_classes: int) -> nn.Module:
    """The command's network, written out."""
    from rlsmooth.scripts.classification import Standardise

    scaling = Standardise(torch.zeros(num_features), torch.ones(num_features))
    hidden = nn.Linear(num_features, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()
    return nn.Sequential(scaling, *hidden, nn.Linear(6, num_classes))


@pytest.mark.parametrize("unknown", [False, True])
def test_the_attacks_are_those_of_the_audits(home: Path, audited: Path, unknown: bool) -> None:
    """Alpha is that of the training; whoever does not know it infers it."""
    words = [str(home / "classify" / "set_1"), "--data", str(home / "set.npz"), "--group", "side", "--seed", "3"]
    folder = run_here(home, "audit", *words, *FEW, "--alpha-unknown") if unknown else audited
    test = load_labelled(home / "set.npz").split(0.25, 0)[1]
    classifier = Classifier.load(home / "classify" / "set_1" / "classifier.zip", layers, device="cpu")
    order = np.random.default_rng(3).permutation(len(test))

    def part(chosen: Any) -> LastLayer:
        mine = test.take(chosen)
        target = uniform(torch.from_numpy(mine.labels), 3, alpha=0.2)
        return LastLayer.of_module(classifier.module_, torch.from_numpy(mine.features), target)

    auxiliary, layer = part(order[:30]), part(order[30:90])
    prior = torch.bincount(auxiliary.labels, minlength=3).double()
    alpha = None if unknown else 0.2
    expected = attack_rows(layer, prior=prior) + attack_batches(
        layer, [8], alpha=alpha, auxiliary=auxiliary, prior=prior, seed=3
    )
    found = component(folder)
    assert report_of(folder)["alpha"] == 0.2
    assert len(found["attacks"]) == len(expected) == 9
    for line, result in zip(found["attacks"], expected, strict=True):
        assert (line["attack"], line["batch_size"], line["trials"]) == result[:3]
        assert line["success"] == pytest.approx([*result.success])
        assert line["prior"] == pytest.approx(result.prior)
    for line, point in zip(found["noise"], noise_curve(layer, [0, 1], alpha=0.2, prior=prior, seed=3), strict=True):
        assert line["success"] == pytest.approx([*point.success])
        assert [line[name] for name in ("expected", "equivalent_noise")] == pytest.approx(
            [point.expected, point.equivalent_noise]
        )
    assert report_of(folder)["summary"] == {"exact_found": 60, "exact_of": 60}


def test_files_line_and_figure(home: Path, audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in audited.iterdir()} == {"command.txt", "config.json", "report.json", "report.png"}
    assert_picture(audited / "report.png")
    (report,) = load_reports([audited])
    KINDS["audit"].print(report)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "Smoothing does not hide labels: exact attack 60 of 60."
    assert any("over samples, not over seeds" in line for line in rest)
    assert not any("…" in line for line in rest)
    line, seen = shlex.split((audited / "command.txt").read_text()), list[Any]()
    assert line[:3] == ["rlsmooth", "audit", str(home / "classify" / "set_1")]
    assert parse("audit", Args, seen.append, line[2:]) == 0
    assert json.loads((audited / "config.json").read_text())["arguments"]["file"] == str(seen[0].file)
    assert (seen[0].group, seen[0].seed, seen[0].noise, seen[0].data) == ("side", 3, (0, 1), str(home / "set.npz"))
    copy = tmp_path / "copy"
    shutil.copytree(audited, copy)
    (copy / "report.png").unlink()
    assert main(["plot", str(copy)]) == 0
    assert (imread(copy / "report.png") == imread(audited / "report.png")).all()
    (copy / "report.json").unlink()  # killed before it was written
    assert main(["plot", str(copy)]) == 0


def test_an_agent_by_demonstrator(clone: Path, tmp_path: Path) -> None:
    skilled, noisy = cartpole_v1().select_episodes([0]), load_demonstrations("cartpole-v1-noisy")
    skilled.save(tmp_path / "skilled.npz")
    words = ["audit", str(clone), "--demos", str(tmp_path / "skilled.npz"), "cartpole-v1-noisy"]
    found = component(run_here(tmp_path, *words, *FEW))
    agent = BC.load(clone / "agent.zip", device="cpu")
    for line, name, data in zip(found["groups"], ("skilled", "cartpole-v1-noisy"), (skilled, noisy), strict=True):
        with torch.no_grad():
            p = agent.policy.get_distribution(torch.as_tensor(data.observations)).distribution.probs.double().numpy()
        assert (line["group"], line["rows"]) == (name, len(data))
        assert line["gap"] == pytest.approx((p.max(1) - (p.argmax(1) == data.actions)).mean(), abs=1e-6)
    first = found["disparities"][0]
    assert (first["group"], first["reference"]) == ("cartpole-v1-noisy", "skilled")
    gaps = [line["gap"] for line in found["groups"]]
    assert first["disparity"][0] == pytest.approx(gaps[1] - gaps[0])
    assert 0 < first["disparity"][0] < 0.5  # the noisy demonstrator is followed less often than the policy believes


def test_an_agent_by_region_and_by_column(clone: Path, tmp_path: Path) -> None:
    """A region that no state is in is listed; one sample has a gap and no interval."""
    data = cartpole_v1().select_episodes([0])
    angle = np.asarray(data.observations)[:, 2]
    cuts = np.array([1, 167, 334])
    edges = (np.sort(angle)[cuts] + np.sort(angle)[cuts - 1]) / 2
    region = f"region:2:{','.join(map(str, edges))},9"
    words = ["audit", str(clone / "agent.zip"), *FEW]
    data.replace_unchecked(groups=np.searchsorted(edges, angle, side="right")).save(tmp_path / "held.npz")
    by_region = component(run_here(tmp_path, *words, "--demos", str(tmp_path / "held.npz"), "--groups", region))
    by_column = component(run_here(tmp_path, *words, "--demos", str(tmp_path / "held.npz"), "--groups", "column"))
    assert [line["rows"] for line in by_region["groups"]] == [1, 166, 167, 166, 0]
    assert by_region["groups"][0]["gap_interval"][1:] == [None, None]
    assert by_region["groups"][0]["gap"] is not None
    assert by_region["groups"][4]["gap"] is by_region["groups"][4]["accuracy"] is None
    assert {line["reference"] for line in by_region["disparities"]} == {by_region["groups"][2]["group"]}
    columns = [{**line, "group": ""} for line in by_column["groups"]]
    assert columns == [{**line, "group": ""} for line in by_region["groups"][:4]]


def test_an_agent_that_sees_normalised_observations(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    agent = PPO("MlpPolicy", env, n_steps=64, batch_size=64, seed=0, device="cpu").learn(256)
    save_agent(agent, tmp_path / "agent.zip")
    words = ["audit", str(tmp_path / "agent.zip"), "--demos", "cartpole-v1-noisy", *FEW]
    folder = run_here(tmp_path, *words)
    seen = env.normalize_obs(np.asarray(load_demonstrations("cartpole-v1-noisy").observations))
    with torch.no_grad():
        p: Any = agent.policy.get_distribution(torch.as_tensor(seen, dtype=torch.float32)).distribution  # type: ignore[union-attr]
    (line,) = component(folder)["groups"]
    assert line["confidence"] == pytest.approx(float(p.probs.amax(1).mean()), abs=1e-6)
    assert report_of(folder)["alpha"] == 0.1  # PPO's file names no smoothed targets
    assert component(folder)["disparities"][0]["group"] is None


def many(space: spaces.Space[Any], actions: Any, **more: Any) -> Demonstrations:
    observations = np.random.default_rng(0).normal(size=(len(actions), 2)).astype(np.float32)
    box = spaces.Box(-9, 9, (2,))
    return Demonstrations.from_arrays(
        observations, actions, observation_space=box, action_space=space, episode_ends=[len(actions)], **more
    )


def test_components_of_a_masked_action(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has attacks and groups of its own; masks give its samples their own numbers of choices."""
    rng = np.random.default_rng(0)
    masks = np.ones((200, 5), dtype=bool)
    masks[:90, 2] = False
    actions = np.stack((rng.integers(0, 2, 200), rng.integers(0, 2, 200)), axis=1)
    data = many(spaces.MultiDiscrete([3, 2]), actions, action_masks=masks)
    data.save(tmp_path / "held.npz")
    agent = BC("MlpPolicy", None, data, smoothing=[0.3, 0.3], seed=0, device="cpu")
    agent.save(tmp_path / "agent.zip")
    words = ["audit", str(tmp_path / "agent.zip"), "--demos", str(tmp_path / "held.npz"), *FEW]
    report = report_of(run_here(tmp_path, *words, "--groups", "region:0:0"))
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "Smoothing does not hide labels: exact attack 120 of 120."
    assert report["alpha"] == 0.3
    for found, layer in zip(report["components"], action_layers(agent, data, 0.3), strict=True):
        assert found["name"] == layer.name
        assert f"{layer.name}: from 0" in printed
        p, count = layer.probabilities.numpy(), layer.legal.sum(1).numpy()
        west = np.asarray(data.observations)[:, 0] < 0
        residual = p.max(1) - (p.argmax(1) == layer.labels.numpy()) - 0.2 * (p.max(1) - 1 / count)
        line = found["disparities"][-1]
        sign = 1 if line["group"] == "below 0" else -1
        assert line["disparity"][0] == pytest.approx(sign * (residual[west].mean() - residual[~west].mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("{run}", "name either --demonstrations, to audit an agent, or --data"),
        ("{run} --data {set} --demos cartpole-v1", "name either --demonstrations"),
        ("nowhere --data {set}", "file='nowhere' is neither a classifier's file nor"),
        ("nowhere --demos cartpole-v1", "file='nowhere' is neither an agent's file nor"),
        ("{run} --data {set}", "group=None is no column of"),
        ("{run} --data {set} --group eastwest", "it has side, half."),
        ("{run} --data iris", "data='iris' has 4 features and 3 classes"),
        ("{run} --data olive", "name the set that it was trained on"),
        ("{run}/classifier.zip --demos cartpole-v1", "is a 'rlsmooth-classifier' file"),
        ("{clone}/agent.zip --data {set}", "is a 'rlsmooth-agent' file"),
        ("{run} --data {set} --group side --alpha 1", "alpha=1.0"),
        ("{run} --data {set} --group side --auxiliary 750", "auxiliary=750 leaves none of 750 samples"),
        ("{run} --data {set} --group side --attacked 0", "attacked=0"),
        ("{run} --data {set} --group side --batch-sizes 1 8 999 --attacked 9", "batch_sizes has "),
        ("{run} --data {set} --group side --batch-sizes 0", "batch_sizes=0"),
        ("{run} --data {set} --group side --noise -1", "noise=-1.0"),
        ("{run} --data {set} --group side --seed -1", "seed=-1"),
        ("{clone} --demos nowhere.npz", "nowhere.npz"),
        ("{clone} --demos cartpole-v1 --groups column", "groups='column', but demonstrations='cartpole-v1' hold no"),
        ("{clone} --demos cartpole-v1 --groups skill", "groups='skill' is not known: give demonstrator, column, or"),
        ("{clone} --demos cartpole-v1 --groups region:2:1,0", "edges that rise"),
        ("{clone} --demos cartpole-v1 --groups region:2:nan", "edges that rise"),
        ("{clone} --demos cartpole-v1 --groups region:4:0", "has no observation 4, counted from 0"),
        ("{clone} --demos {box}", "(--demonstrations stand for env.)"),
    ],
)
def test_mistakes(home: Path, clone: Path, tmp_path: Path, refused: Callable[..., None], words: str, says: str) -> None:
    box = tmp_path / "box.npz"
    many(spaces.Box(-1, 1, (1,)), np.zeros((300, 1), np.float32)).save(box)
    refused(f"audit {words}", says, run=home / "classify" / "set_1", set=home / "set.npz", clone=clone, box=box)


def test_agents_and_networks_that_it_does_not_audit(tmp_path: Path, refused: Callable[..., None]) -> None:
    data = many(spaces.Box(-1, 1, (1,)), np.zeros((300, 1), np.float32))
    data.save(tmp_path / "box.npz")
    BC("MlpPolicy", None, data, seed=0, device="cpu").save(tmp_path / "gauss.zip")
    refused(
        "audit {gauss} --demos {box}",
        "whose Gaussian head has no labels: audit agents with discrete actions",
        gauss=tmp_path / "gauss.zip",
        box=tmp_path / "box.npz",
    )
    odd = Classifier.from_module(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), [0, 1, 2], (4,))
    odd.save(tmp_path / "odd.zip")
    refused("audit {odd} --data iris", "use LastLayer.of_module", odd=tmp_path / "odd.zip")
    soft = many(spaces.Discrete(2), np.zeros(300, int), action_probs=np.full((300, 2), 0.5))
    soft.save(tmp_path / "soft.npz")
    refused(
        "audit {odd} --demos {soft}",
        "demonstrations have action_probs",
        odd=tmp_path / "odd.zip",
        soft=tmp_path / "soft.npz",
    )


def test_which_samples_and_which_alpha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the run's config.json all samples are audited, and said to be; only uniform smoothing has an alpha."""
    monkeypatch.chdir(tmp_path)
    iris = load_labelled("iris")
    smoothing = Smoothing(0.4, "uniform", "others")
    Classifier("mlp", smoothing=smoothing, max_epochs=1, seed=0, device="cpu").fit(iris.features, iris.labels).save(
        "c.zip"
    )
    folder = run_here(tmp_path, "audit", "c.zip", "--data", "iris", *FEW)
    report = report_of(folder)
    assert report["samples"] == "all 150 samples of iris, perhaps trained on"
    assert report["alpha"] == 0.1
    assert [line["group"] for line in component(folder)["groups"]] == ["all samples"]
    folder = run_here(
        tmp_path, "audit", "c.zip", "--data", "iris", "--alpha", "0.4", "--auxiliary", "0", "--noise", "1"
    )
    assert report_of(folder)["alpha"] == 0.4
    assert component(folder)["attacks"][0]["trials"] == 150


@pytest.mark.slow
def test_a_process_of_its_own(home: Path, audited: Path, tmp_path: Path, programs: Any) -> None:
    words = [str(home / "classify" / "set_1"), "--data", str(home / "set.npz"), "--group", "side", "--seed", "3"]
    folder, printed = run_command(programs, tmp_path, "audit", *words, *FEW)
    assert printed.splitlines()[0] == "Smoothing does not hide labels: exact attack 60 of 60."
    assert report_of(folder)["components"] == report_of(audited)["components"]
