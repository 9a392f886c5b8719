"""Agent cards: what hubs read in them, what they keep back, and that they fail no run."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from rlsmooth.data import cartpole_v1
from rlsmooth.data.shipped import describe_data
from rlsmooth.scripts import record
from rlsmooth.scripts.card import CARD, MARK, card_text, describe_used_data, write_card
from rlsmooth.scripts.main import main

FROZEN = next(folder / "frozen" / "reports" for folder in Path(__file__).parents if (folder / "frozen").is_dir())
COMMANDS = {json.loads((run / "config.json").read_text())["command"]: run.name for run in sorted(FROZEN.iterdir())}
SECTIONS = ["Command", "Data", "Settings", "Results", "Calibration", "Entropy", "use", "Limits", "Files", "Versions"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a BC run, as if it had just ended."""
    return Path(shutil.copytree(FROZEN / "bc", tmp_path / "run"))


def card_of(folder: Path, **facts: Any) -> str:
    write_card(folder, **facts)
    return (folder / CARD).read_text("utf-8")


@pytest.mark.parametrize("name", [run for command, run in COMMANDS.items() if command != "audit"])
def test_the_card_of_every_command_is_read_by_the_hubs_own_reader(name: str, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", minversion="1.0")
    folder = Path(shutil.copytree(FROZEN / name, tmp_path / "run"))
    text = card_of(folder)
    data = hub.ModelCard(text).data
    assert data.library_name == "rlsmooth"
    summary = json.loads((folder / "report.json").read_text())["summary"]
    for result in data.eval_results or []:
        assert result.metric_value == pytest.approx(summary[result.metric_type], rel=1e-5)
    assert {"mean_reward", "accuracy"} & {result.metric_type for result in data.eval_results or []} or name == "gan"
    titles = [line.split()[-1] for line in text.splitlines() if line.startswith("## ")]
    assert titles == SECTIONS
    assert "per_second" not in text  # the same run gives the same card
    assert text == card_of(folder)


def test_intervals_are_those_of_students_t(folder: Path) -> None:
    columns = {"deterministic": {"mean_reward": 10.0, "std_reward": 2.0, "ece": 0.25, "policy_entropy": 0.5}}
    text = card_of(
        folder, evaluations={"agent.zip in A-v0": {"seed": 7, "episodes": 6, "columns": columns, "on": "a.npz"}}
    )
    low, high = stats.t.interval(0.95, 5, 10.0, 2.0 / 5**0.5)  # of the population's deviation
    assert f"| return, agent.zip in A-v0, seed 7 | 10 ± 2 in 6 episodes [{low:.6g}, {high:.6g}] |" in text
    assert "| expected calibration error (ECE) | 0.25 |" in text
    assert "On a.npz." in text
    assert "| policy entropy, nats | 0.5 |" in text


def test_what_was_written_below_the_mark_is_kept(folder: Path) -> None:
    card_of(folder)
    with (folder / CARD).open("a", encoding="utf-8") as file:
        file.write("\n\nMine: ä.\n")
    text = card_of(folder, evaluations={"best": {"seed": 0, "episodes": 1, "columns": {}}})
    assert text.endswith(f"{MARK}\n\nMine: ä.\n")
    assert text.count(MARK) == 1


@pytest.mark.parametrize("broken", ["readme", "config", "report", "folder"])
def test_a_card_that_can_not_be_written_is_one_line_on_stderr(broken: str, folder: Path, capsys: Any) -> None:
    if broken == "readme":
        (folder / CARD).write_text("# My own")
    elif broken == "folder":
        shutil.rmtree(folder)
    else:
        (folder / f"{broken}.json").write_text('{"command": [], "summary": 3}')
    write_card(folder)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (folder / CARD).exists() or (folder / CARD).read_text() == "# My own"


PLACES = [
    "/home/jane/x.npz",
    "~/jane/x.npz",
    "~jane/x.npz",
    r"C:\Users\jane\x.npz",
    "../jane/x.npz",
    "jane/my data/x.npz",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_place_of_a_machine_is_in_a_card(place: str, folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["arguments"] |= {"demonstrations": place, "log_folder": place, "env_kwargs": [f"file={place}", "size=3"]}
    config["hyperparameters"] = {"policy_kwargs": f"dict(file='{place}', n=1)", "env": "ALE/Pong-v5"}
    path.write_text(json.dumps(config))
    words = (
        f"rlsmooth bc --env ALE/Pong-v5 --demonstrations '{place}' --log-folder '{place}' --from-bc '{place}' --seed 3"
    )
    (folder / "command.txt").write_text(words)
    text = card_of(folder)
    if "my data" in place:  # a plain word before the slash may be the name of an environment, but in paths alone
        text = text.replace(f"file={place}", "").replace(f"file='{place}'", "")
    assert "jane" not in text + (folder / "card.json").read_text()
    assert "rlsmooth bc --env ALE/Pong-v5 --demonstrations x.npz --from-bc x.npz --seed 3" in text
    assert "size=3" in text


def test_the_data_are_named_with_their_hash(tmp_path: Path) -> None:
    given = cartpole_v1().select_episodes([0, 1])
    given.save(path := tmp_path / "jane.npz")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"name": "jane.npz", "sha256": digest, "episodes": 2, "transitions": 1000}
    assert describe_data(path) == facts
    given.save_folder(tmp_path / "folder")
    whole = b"".join(file.read_bytes() for file in sorted((tmp_path / "folder").iterdir()))
    sizes = {"episodes": 2, "transitions": 1000}
    assert describe_data(tmp_path / "folder") == {
        "name": "folder",
        "sha256": hashlib.sha256(whole).hexdigest(),
        **sizes,
    }

    class Given:
        """As a command's options are."""

        env, demonstrations = "CartPole-v1", None

    assert describe_used_data("bc", Given)[0]["name"] == "cartpole-v1"
    assert describe_used_data("dagger", Given) == []
    Given.demonstrations = str(tmp_path / "gone.npz")  # type: ignore[assignment]
    assert describe_used_data("bc", Given) == [{"name": "gone.npz"}]
    config = {"command": "bc", "arguments": {"env": "CartPole-v1"}}
    text = card_text(config, {}, {"data": [facts]})
    assert f"| jane.npz | 2 episodes, 1,000 transitions |\n| SHA-256 | `{digest}` |" in text


def test_the_command_in_a_recording_has_no_paths() -> None:
    args = record.Args(env="ALE/A-v0", env_kwargs=("a:/home/jane/b", "n=3"), env_wrapper=("m.W:{to: /home/jane/c}",))
    expected = "rlsmooth record --env ALE/A-v0 --env-kwargs a:b n=3 --env-wrapper m.W:{to: c}"
    assert record._command(args) == expected


@pytest.mark.slow
def test_two_runs_give_one_card_and_an_evaluation_renews_it(tmp_path: Path) -> None:
    options = "--epochs 1 --n-episodes 1 --eval-freq -1 --eval-episodes 2 --seed 5"
    for name in "ab":
        assert main(["bc", *options.split(), "--log-folder", str(tmp_path / name)]) == 0
    first, second = (tmp_path / name / "bc/CartPole-v1_1" for name in "ab")
    text = (first / CARD).read_text()
    assert text == (second / CARD).read_text()
    assert "| cartpole-v1 | 24 episodes, 12,000 transitions |" in text
    assert "of seed 5" in text
    assert str(tmp_path) not in text
    assert main(["evaluate", "-i", str(first), "--eval-episodes", "3", "--demonstrations", "cartpole-v1"]) == 0
    renewed = (first / CARD).read_text()
    assert "return, sampled actions, agent.zip in CartPole-v1, seed 0" in renewed
    assert "in 3 episodes" in renewed
    assert "On cartpole-v1." in renewed
