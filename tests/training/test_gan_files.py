"""What the GAN trainer keeps on the disk: its file, and checkpoints of runs that were killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlsmooth.training import GANTrainer, SafeFileError, checkpoint_steps

SCRIPT = """
import os, signal, sys
import torch
from torch import nn
from rlsmooth.training import GANTrainer

def generator():
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

def discriminator():
    return nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(8, 1))

def make(folder=None, tensorboard_log=None, **other):
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(5)) + 1
    arguments = dict(
        latent_size=3, batch_size=8, learning_rate="lin_0.01", real_target="lin_0.8", discriminator_updates=2,
        ema_decay=0.9, evaluate=lambda rows: {"mean": rows.mean()}, evaluate_every=4, evaluation_samples=10, seed=0,
        device="cpu", checkpoint_folder=folder, checkpoint_every=5, tensorboard_log=tensorboard_log,
    )
    return GANTrainer(generator, discriminator, data, **{**arguments, **other})

def die(trainer):
    if trainer.step == 13:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    make(sys.argv[1]).train(17, log_every=3, callback=die)
"""
shared: dict[str, Any] = {"__name__": "shared"}
exec(SCRIPT, shared)
make, generator, discriminator = shared["make"], shared["generator"], shared["discriminator"]


def state(trainer: GANTrainer) -> list[Tensor]:
    assert trainer.average is not None
    modules = (trainer.generator, trainer.discriminator, trainer.average)
    return [tensor for module in modules for tensor in module.state_dict().values()]


def same(one: GANTrainer, two: GANTrainer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state(one), state(two), strict=True))


class BrokenOffError(Exception):
    """What breaks a run off."""


def break_at(step: int) -> Any:
    def callback(trainer: GANTrainer) -> None:
        if trainer.step == step:
            raise BrokenOffError

    return callback


# ---- checkpoints


def test_a_killed_run_goes_on_to_the_same_parameters(tmp_path: Path) -> None:
    script, folder = tmp_path / "run.py", tmp_path / "checkpoints"
    script.write_text(SCRIPT)
    command = [sys.executable, "-P", str(script), str(folder), str(torch.get_num_threads())]
    killed = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert checkpoint_steps(folder) == [5, 10]
    resumed, whole = make(folder).train(17, resume=True, log_every=3), make().train(17, log_every=3)
    assert resumed.step == 17
    assert same(resumed, whole)
    assert resumed.history == whole.history  # also the line at 12, whose steps lie on both sides of the checkpoint
    assert resumed.evaluations == whole.evaluations
    assert same(resumed.train(3), whole.train(3))


def test_a_run_broken_off_before_its_first_update_and_one_that_was_over(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    first = make(folder).train(6, resume=True)  # nothing there yet: the run begins
    assert same(first, make().train(6))
    over = make(folder).train(6, resume=True)
    assert same(over, first)
    assert (over.history, over.evaluations) == (first.history, first.evaluations)
    with pytest.raises(BrokenOffError):
        make(tmp_path / "early").train(6, callback=break_at(1))
    assert checkpoint_steps(tmp_path / "early") == [0]
    assert same(make(tmp_path / "early").train(6, resume=True), first)


def test_what_does_not_fit_the_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenOffError):
        make(tmp_path).train(9, callback=break_at(7))
    with pytest.raises(ValueError, match="holds another run's checkpoints"):
        make(tmp_path).train(9)
    with pytest.raises(ValueError, match="was for total_steps=9, not 12"):
        make(tmp_path).train(12, resume=True)
    with pytest.raises(ValueError, match=r"batch_size=4 was 8 in the run"):
        make(tmp_path, batch_size=4).train(9, resume=True)
    with pytest.raises(ValueError, match=r"real_target='lin_0\.7' was 'lin_0\.8'"):
        make(tmp_path, real_target="lin_0.7").train(9, resume=True)
    other = GANTrainer(generator, discriminator, torch.zeros(9, 2), latent_size=3)
    trainer = make(tmp_path)
    trainer.data = other.data
    with pytest.raises(ValueError, match="data: these are not those"):
        trainer.train(9, resume=True)
    with pytest.raises(ValueError, match="needs the run's checkpoint_folder"):
        make().train(9, resume=True)


def test_tensorboard_has_each_step_once_after_a_resumption(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    with pytest.raises(BrokenOffError):
        make(tmp_path / "kept", tmp_path / "events").train(9, callback=break_at(8), log_every=1)
    make(tmp_path / "kept", tmp_path / "events").train(9, resume=True, log_every=1)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [event.step for event in events.Scalars("gan/generator_loss")] == list(range(1, 10))


# ---- the trainer's own file


def test_a_loaded_trainer_samples_and_trains_on(tmp_path: Path) -> None:
    trainer = make(learning_rate=0.01, real_target=0.9).train(6)
    path = trainer.save(tmp_path / "gan")
    assert path == tmp_path / "gan.zip"
    loaded = GANTrainer.load(path, generator, discriminator, device="cpu")
    assert torch.equal(loaded.sample(5, seed=3), trainer.sample(5, seed=3))
    assert loaded.history == trainer.history
    assert (loaded.step, loaded.batch_size, loaded.real_target, loaded.betas) == (6, 8, 0.9, (0.5, 0.999))
    with pytest.raises(ValueError, match="data is None"):
        loaded.train(1)
    assert trainer.data is not None
    assert trainer.data.tensor is not None
    again = GANTrainer.load(path, generator, discriminator, trainer.data.tensor, device="cpu").train(4)
    assert again.step == 10
    first, now = trainer.generator.state_dict(), again.generator.state_dict()
    assert not torch.equal(first["0.weight"], now["0.weight"])


def test_functions_have_to_be_given_again(tmp_path: Path) -> None:
    trainer = make(real_target=lambda progress: 0.9)
    path = trainer.save(tmp_path / "gan.zip")
    data = torch.rand(20, 2)
    with pytest.raises(ValueError, match="real_target was a callable"):
        GANTrainer.load(path, generator, discriminator, data).train(1)
    given = {"real_target": lambda progress: 0.8}
    loaded = GANTrainer.load(path, generator, discriminator, data, custom_objects=given).train(1)
    assert loaded.history["real_target"] == [0.8]


def test_what_does_not_fit_the_file_is_named(tmp_path: Path) -> None:
    path = make().save(tmp_path / "gan.zip")
    with pytest.raises(ValueError, match="discriminator does not fit the file"):
        GANTrainer.load(path, generator, nn.Linear(2, 1))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SafeFileError):
        GANTrainer.load(path, generator, discriminator)
    with pytest.raises(SafeFileError, match="does not exist"):
        GANTrainer.load(tmp_path / "none.zip", generator, discriminator)
