"""The results table in a small version, its settings, and the zoo's agents, which are played as a user would."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from commands import written
from rlsmooth.audits import interquartile_mean_interval
from rlsmooth.scripts import evaluate
from rlsmooth.scripts.hyperparameters import read_hyperparameters
from rlsmooth.scripts.studies import benchmark, zoo
from rlsmooth.scripts.studies.benchmark import BenchmarkArgs
from support import assert_raises

KNOWN = "rlsmooth/IdentityMultiDiscrete-v0"


@pytest.mark.parametrize("env", benchmark.STEPS)
def test_each_row_has_settings_of_its_own_and_an_agent_in_the_zoo(env: str) -> None:
    for command in ["maskable-ppo"] if benchmark.has_masks(env) else ["ppo", "a2c"]:
        assert read_hyperparameters(command, env) != read_hyperparameters(command, "no such environment")
    assert zoo.STEPS[env] >= benchmark.STEPS[env]
    assert set(zoo.STEPS) == set(benchmark.STEPS)


def test_unknown_rows_are_refused(tmp_path: Path) -> None:
    args = BenchmarkArgs(folder=tmp_path, small=True, envs=("CartPole-v0",))
    assert_raises(ValueError, r"envs=\['CartPole-v0'\].*CartPole-v1", benchmark.main, args)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_table_is_made_of_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    envs = ("rlsmooth/IdentityMasked-v0", KNOWN)
    args = BenchmarkArgs(folder=tmp_path / "runs", results=tmp_path, workers=2, small=True, envs=envs)
    benchmark.main(args)
    assert written("benchmark", tmp_path)[1] in capsys.readouterr().out
    result, page = written("benchmark", tmp_path)
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")
    ]
    columns = [*benchmark.IMITATING, *benchmark.REWARDED]
    assert rows[0][3:] == columns
    for row, env in zip(rows[1:3], envs, strict=True):
        runs = result["runs"][env]
        assert row[0] == zoo.short(env)
        assert runs["difference"] == [{"difference": 0.0}]  # smoothing off is SB3's own algorithm, to the bit
        assert runs["expert"][0]["final"] > 5  # of 10, after a fifth of its steps
        for name, cell in zip(columns, row[3:], strict=True):
            if name not in runs:
                assert cell == ("not run" if name == benchmark.OFF else "none")
                continue
            found = interquartile_mean_interval([run["final"] for run in runs[name]])
            assert cell == f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})"
            assert len({run["final"] for run in runs[name]} | {run["seconds"] for run in runs[name]}) > 1
    assert not {benchmark.OFF, benchmark.A2C} & set(result["runs"][envs[0]])
    assert result["runs"][KNOWN][benchmark.SB3] != result["runs"][KNOWN][benchmark.OFF]
    lost = tmp_path / "runs" / "IdentityMultiDiscrete-v0_SmoothedPPO_1.json"
    before = json.loads(lost.read_text())["result"]
    lost.unlink()  # as if it had been broken off before this run ended
    benchmark.main(args)
    again = json.loads(lost.read_text())["result"]
    assert {**again, "seconds": 0} == {**before, "seconds": 0}


@pytest.mark.slow
def test_the_zoos_agents_can_be_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "STEPS", {KNOWN: 10_000, "Acrobot-v1": 2_048})
    zoo.main(zoo.Args(small=True, workers=1))
    folder = Path("build/zoo/IdentityMultiDiscrete-v0")
    found = evaluate.main(evaluate.Args(trained_agent=folder / "best_agent.zip"))
    assert 0 < found["deterministic"]["mean_reward"] <= 10
    with tarfile.open("build/rlsmooth-zoo.tar.gz") as packed:
        names = packed.getnames()
        assert {f"rlsmooth-zoo/{name}/{file}" for name in ("Acrobot-v1", folder.name) for file in zoo.FILES} <= set(
            names
        )
    for file in ("README.md", "config.json", "report.json", "card.json"):
        assert str(tmp_path) not in (folder / file).read_text()  # a card says nothing of the machine
    card = (folder / "README.md").read_text()
    assert re.search(r"\| ?`?smoothing`? ?\|.*0\.01", card)
