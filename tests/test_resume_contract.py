"""The contract of every trainer about runs that are cut off: the same bits, one run a folder, errors that help."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

from killing import assert_same_after_kills
from rlsmooth.data import ObservationOnly, cartpole_v1
from rlsmooth.envs import IdentityEnv
from rlsmooth.training import TrainingDivergedError, read_safe_file, save_checkpoint
from rlsmooth.training import run as run_module
from rlsmooth.training.run import TrainingInterrupted
from support import REPOSITORY, KilledError, assert_equal, assert_raises, draw, forge, put
from trainers import NET, TRAINERS, OfClassifier, Trainer

BLOWN_UP = {"learning_rate": 1e38, "policy_kwargs": {**NET, "optimizer_class": torch.optim.SGD}}
# How many times as long as the shortest a run lasts that is killed; the others are in the slow tests.
KILLED = {"BC": 4}
KILLED_TOO = {
    "AIRL": 4,
    "BCO": 4,
    "DAgger": 6,
    "GAIL": 4,
    "Classifier": 4,
    "GAN": 20,
    "SelfTraining": 4,
    "PPO": 8,
    "DQN": 4,
}
# Trainers around another trainer; the others are in the slow tests.
ROUNDS = ("BCO",)
STOPPED = [name if name in ROUNDS else pytest.param(name, marks=pytest.mark.slow) for name in TRAINERS]
# What is refused when it differs from the run's: the name, and the arguments of `resume` that differ.
OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "BC": {"demonstrations": {"data": draw(seed=1)}, "total": {"epochs": 4}},
    "BCO": {"demonstrations": {"data": ObservationOnly.from_demonstrations(cartpole_v1().sample_episodes(1, seed=1))}},
    "DAgger": {"total_timesteps": {"total": 80}, "env": {"env": make_vec_env(lambda: IdentityEnv(4), n_envs=2)}},
    "GAIL": {"demonstrations": {"data": cartpole_v1()}},
    "AIRL": {"demonstrations": {"data": cartpole_v1()}},
    "Classifier": {"X": {"X": OfClassifier.X + 1}, "batch_size": {"batch_size": 8}, "max_epochs": {"epochs": 7}},
    "SelfTraining": {"X": {"X": OfClassifier.X + 1}, "batch_size": {"batch_size": 8}},
    "GAN": {"data": {"data": torch.zeros(9, 2)}, "batch_size": {"batch_size": 4}, "steps": {"steps": 12}},
    "PPO": {"env": {"n_envs": 3}},
    "DQN": {"env": {"n_envs": 3}},
}
# What makes the loss or the parameters infinite, where a trainer watches them.
DIVERGING: dict[str, dict[str, Any]] = {
    "BC": BLOWN_UP,
    "BCO": BLOWN_UP,
    "DAgger": BLOWN_UP,
    "GAIL": {"disc_opt_cls": torch.optim.SGD, "disc_learning_rate": 1e38},
    "AIRL": {"disc_opt_cls": torch.optim.SGD, "disc_learning_rate": 1e38},
    "Classifier": {"learning_rate": 1e39},
    "SelfTraining": {"learning_rate": 1e39},
    "GAN": {"data": lambda count: torch.full((count, 2), torch.nan)},
}

of_each = pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)


def is_free(folder: Path) -> bool:
    """Whether another process could train there: this opens the folder anew, as that does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@of_each
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """And another process that trains in the folder meanwhile is refused, as this one is where another trains.

    Small networks are trained on one thread where the user has not set the number, but for SB3's own algorithms.
    """
    is_ours = type(trainer).__name__ not in ("OfPPO", "OfDQN")
    if is_ours:
        request.getfixturevalue("two_threads")
    outside = torch.get_num_threads()
    whole, (run, new), free = trainer.start(None), (tmp_path / "run", tmp_path / "new"), []
    threads = set()

    def save(*given: Any, **named: Any) -> Path:
        free.append(is_free(run))
        threads.add(torch.get_num_threads())
        return save_checkpoint(*given, **named)

    monkeypatch.setattr(run_module, "save_checkpoint", save)
    assert_raises(KilledError, None, trainer.start, run, trainer.at)
    assert list(run.rglob("checkpoint_*.zip"))
    gc.collect()  # a callback of Stable-Baselines3 is not told that an error ended the training
    new.mkdir()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for call, folder in ((trainer.resume, run), (trainer.start, new)):
        other = os.open(folder, os.O_RDONLY)  # an open file of its own, as another process has
        fcntl.flock(other, fcntl.LOCK_EX)
        assert_raises(ValueError, f"another process is training in {str(folder)!r}", call, folder)
        os.close(other)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert_equal(trainer.state(trainer.resume(run)), trainer.state(whole))
    assert_equal(trainer.state(trainer.resume(run)), trainer.state(whole))  # of a run that has ended
    assert free
    assert not any(free)
    assert is_free(run)
    assert threads == {1 if is_ours else outside}
    assert torch.get_num_threads() == outside


@pytest.mark.parametrize("trainer", STOPPED)
def test_a_run_that_is_asked_to_stop_again_and_again_ends_the_same(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal waits when a call begins: each takes one step, collection, epoch or rollout on from the last's files."""
    run, changed = TRAINERS[trainer], {"n_rounds": 2} if trainer == "BCO" else {}
    whole = run.start(None, **changed)
    for call in (partial(run.start, **changed), *[run.resume] * 99):
        monkeypatch.setattr(run_module._REQUESTS, "depth", 0)
        monkeypatch.setattr(run_module._REQUESTS, "number", signal.SIGTERM)
        with pytest.raises(TrainingInterrupted, match=r"A checkpoint of .* was written|is over") as ended:
            call(tmp_path)
        assert ended.value.exit_code == 143
        assert run_module._REQUESTS.depth == 0
        if "is over" in str(ended.value):
            break
    assert_equal(run.state(run.resume(tmp_path)), run.state(whole))


SECOND = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, HELPERS)
from rlsmooth.agents import DAgger
from rlsmooth.envs import IdentityEnv
from trainers import CUSTOM, TRAINERS, KillAt

def attempt():
    try:
        DAgger.resume("run", IdentityEnv(4), int, custom_objects=CUSTOM, device="cpu")
        print("resumed", flush=True)
    except ValueError as error:
        print(error, flush=True)

class Fork(KillAt):  # a worker of the process that trains, which outlives it
    def _on_step(self):
        if self.num_timesteps == self.step and os.fork() == 0:
            attempt()
            Path("worker").write_text(str(os.getpid()))
            time.sleep(60)
            os._exit(0)
        return True

import trainers
trainers.KillAt = Fork
first = os.fork()
if first == 0:
    TRAINERS["DAgger"].times = 10**6
    TRAINERS["DAgger"].start(Path("run"), 60)
while not Path("worker").exists() or not Path("worker").read_text():
    time.sleep(0.01)
attempt()
os.kill(first, signal.SIGKILL)
os.waitpid(first, 0)
attempt()
os.kill(int(Path("worker").read_text()), signal.SIGKILL)
"""


def test_a_lock_ends_with_the_process_that_trains(programs: Any, tmp_path: Path) -> None:
    done = programs.run(SECOND.replace("HELPERS", repr(str(REPOSITORY / "tests" / "helpers"))), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = "another process is training in 'run': wait until it ends, or end it, before the run is resumed."
    assert done.stdout.splitlines() == [refused, refused, "resumed"]


@pytest.mark.parametrize("trainer", [TRAINERS[name] for name in ("BC", "GAIL", "GAN", "PPO")])
def test_no_entry_of_a_forged_checkpoint_is_taken_for_another(trainer: Trainer, tmp_path: Path) -> None:
    assert_raises(KilledError, None, trainer.start, tmp_path, trainer.at)
    newest, *others = sorted(tmp_path.rglob("checkpoint_*.zip"), key=lambda path: -int(path.stem.split("_")[1]))
    for other in others:
        if other.parent == newest.parent:
            other.unlink()
    whole = newest.read_bytes()
    file = read_safe_file(newest, format_name="rlsmooth-checkpoint", format_version=1)
    entries: dict[str, Any] = file.config["config"]
    for name, value in entries.items():
        wrong = -1 if type(value) is int else "yes"
        forge(newest, lambda head, _, name=name, wrong=wrong: put(head, ("config", "config", name), wrong))
        if value is not None or isinstance(trainer, (OfClassifier, type(TRAINERS["BC"]))):
            with pytest.raises(ValueError, match=r"Use another|was started with|environments"):
                trainer.resume(tmp_path)
        newest.write_bytes(whole)
    trainer.resume(tmp_path)


@of_each
def test_a_folder_that_holds_another_run_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    trainer.start(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"resume|load_checkpoint|go on from") as found:
        trainer.start(tmp_path)
    assert str(tmp_path) in str(found.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("trainer", "name"), [(one, name) for one, names in OTHERS.items() for name in names])
def test_what_differs_from_the_run_is_refused_by_name(trainer: str, name: str, tmp_path: Path) -> None:
    run = TRAINERS[trainer]
    assert_raises(KilledError, None, run.start, tmp_path, run.at)
    assert_raises(ValueError, name, run.resume, tmp_path, **OTHERS[trainer][name])
    run.resume(tmp_path)  # nothing was spoilt


@of_each
def test_an_empty_folder_holds_no_run(trainer: Trainer, tmp_path: Path) -> None:
    if trainer.begins_anew:
        assert_equal(trainer.state(trainer.resume(tmp_path)), trainer.state(trainer.start(None)))
        return
    with pytest.raises(ValueError, match=r"holds no run to (go on with|resume)") as found:
        trainer.resume(tmp_path)
    assert str(tmp_path) in str(found.value)


@pytest.mark.parametrize("trainer", DIVERGING)
def test_a_run_that_diverges_stops_and_names_the_step(trainer: str, tmp_path: Path) -> None:
    error = FloatingPointError if trainer in ("GAIL", "AIRL") else TrainingDivergedError
    with pytest.raises(error, match=r"(step|batch|round|update) \d+"):
        TRAINERS[trainer].start(tmp_path, **DIVERGING[trainer])


@pytest.mark.parametrize(
    ("trainer", "times"), [*KILLED.items(), *(pytest.param(*one, marks=pytest.mark.slow) for one in KILLED_TOO.items())]
)
def test_a_run_that_is_killed_again_and_again_ends_the_same(
    trainer: str, times: int, programs: Any, tmp_path: Path
) -> None:
    """SIGKILL at random moments, saves included, of a run with dropout and schedules."""
    assert_same_after_kills(programs, tmp_path, trainer, times)
