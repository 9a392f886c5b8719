"""The engine of training runs: what its services do, the words in which they refuse, and fingerprints of data."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlsmooth.targets import uniform
from rlsmooth.training import SafeFileError
from rlsmooth.training.divergence import FiniteWatch, TrainingDivergedError
from rlsmooth.training.run import (
    EventLog,
    Progress,
    RunFolder,
    Stopwatch,
    append_values,
    check_folder_given,
    check_given,
    check_given_again,
    check_no_missing,
    check_num_envs,
    check_same_arguments,
    delete_temporary_files,
    fingerprint,
    learning_rate_of,
    log_line,
    open_progress_bar,
    set_learning_rate,
    spread_evenly,
)
from support import read_events, recorded


def folder(path: Path) -> RunFolder:
    return RunFolder(path, name="scratch_dir", unit="round", resume="DAgger.resume")


def save(path: Path, *steps: int) -> None:
    for step in steps:
        folder(path).save(step, {}, {"net": {"w": torch.zeros(1)}})


# ---- progress
def test_progress_falls_from_1_to_0_in_each_call() -> None:
    progress = Progress()
    assert (progress.remaining, progress.is_over) == (1.0, True)
    for first in (0, 4):
        progress.begin(4, "total_steps")
        assert (progress.start, progress.end, progress.total) == (first, first + 4, 4)
        seen = []
        while not progress.is_over:
            seen.append(progress.remaining)
            progress.step += 1
        assert seen == [1.0, 0.75, 0.5, 0.25]
        assert progress.remaining == 0.0


def test_progress_over_all_steps_is_that_of_stable_baselines3() -> None:
    progress = Progress(step=6, start=6)
    progress.begin(4, "total_batches")
    assert progress.remaining == 1.0
    assert progress.remaining_of_all == 1 - 6 / 10
    assert Progress().remaining_of_all == 1.0


def test_a_resumed_call_has_the_total_it_had() -> None:
    progress = Progress(step=7, start=5, end=14)
    progress.begin(9, "total_steps", is_resumed=True)
    assert (progress.step, progress.start, progress.end) == (7, 5, 14)
    with pytest.raises(ValueError, match=r"was for total_steps=9, not 12: schedules depend on it.*in another call"):
        progress.begin(12, "total_steps", is_resumed=True)


def test_a_stopwatch_leaves_out_pauses() -> None:
    watch = Stopwatch()
    assert watch.seconds > 0
    with watch.paused():
        time.sleep(0.05)
    assert watch.seconds < 0.05
    time.sleep(0.02)
    assert watch.seconds > 0.02
    watch.restart()
    assert watch.seconds < 0.02


# ---- the folder
def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run = folder(tmp_path / "new")
    run.check_free()
    assert run.path.is_dir()
    save(run.path, 2, 5)
    message = r"^scratch_dir='.*new' holds another run's checkpoints \(round 5\): resume that run by DAgger\.resume, "
    for own_up_to in (None, 0, 4):
        with pytest.raises(ValueError, match=message):
            run.check_free(own_up_to)
        with pytest.raises(ValueError, match=message):
            run.begin(resume=False, own_up_to=own_up_to)
    run.check_free(5)
    assert run.begin(resume=False, own_up_to=5) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"scratch_dir=.*can't be written to"):
        folder(tmp_path / "file").check_free()


def test_a_checkpoint_has_the_state_of_execution_and_generators(tmp_path: Path) -> None:
    run = folder(tmp_path)
    assert run.latest() is None
    assert run.begin(resume=True) is None  # killed before the first: it starts at the beginning
    run.save(1, {"a": [1]}, {"net": {}})
    run.save(2, {"a": [2]}, {"net": {}}, keeps_rng=False, keep=1)
    assert run.steps() == [2]
    left, kept = tmp_path / ".checkpoint_3.zip.abcd1234.tmp", tmp_path / ".notes.tmp"
    left.touch()
    kept.touch()
    found = run.begin(resume=True)  # deletes what killed saves left
    assert (left.exists(), kept.exists()) == (False, True)
    assert (found.step, sorted(found.config), sorted(found.tensors)) == (2, ["a", "execution"], ["net"])
    run.save(3, {}, {})
    found = run.latest()
    assert torch.equal(found.tensors["rng"]["torch"], torch.get_rng_state())


def test_a_run_that_will_not_repeat_warns(tmp_path: Path) -> None:
    save(tmp_path, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(RuntimeWarning, match="bit for bit: num_threads was"):
            folder(tmp_path).latest()
    finally:
        torch.set_num_threads(threads)


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    run = folder(tmp_path / "none")
    with pytest.raises(ValueError, match=r"^scratch_dir='.*none' holds no run to resume: resume\.zip is missing"):
        run.check_resumable()
    assert not run.path.exists()
    run.path.mkdir()
    (run.path / "model.zip").write_text("")
    run.check_resumable("model.zip")
    save(run.path, 1)
    (run.path / "checkpoint_1.zip").write_text("")
    with pytest.raises(SafeFileError, match="No checkpoint in"):
        run.latest()


def test_only_temporary_files_of_our_own_saves_are_deleted(tmp_path: Path) -> None:
    ours = [".resume.zip.abcd1234.tmp", ".checkpoint_12.zip.ab_d12x9.tmp", ".initial.npz.abcd1234.tmp"]
    theirs = [".draft.tmp", ".notes.zip.abcd1234.tmp", "checkpoint_1.zip", ".checkpoint_1.zip.abc.tmp"]
    for name in (*ours, *theirs):
        (tmp_path / name).write_text("")
    (tmp_path / ".resume.zip.folder12.tmp").mkdir()
    folder(tmp_path).delete_leftovers(r"initial\.npz")
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, ".resume.zip.folder12.tmp"}
    delete_temporary_files(tmp_path, r"notes\.zip")
    assert not (tmp_path / ".notes.zip.abcd1234.tmp").exists()


# ---- what a run needs, and what a resumed one must have as it was
def test_what_is_missing_or_other_than_it_was_is_named() -> None:
    check_given("data", 0, "GANTrainer")
    with pytest.raises(ValueError, match=r"^data is None, so there is nothing to learn from: give it to GANTrainer\("):
        check_given("data", None, "GANTrainer")
    check_folder_given("kept", resume=True)
    with pytest.raises(ValueError, match=r"^resume=True needs the run's checkpoint_folder: name the one that it was"):
        check_folder_given(None, resume=True)
    check_no_missing([])
    with pytest.raises(ValueError, match=r"^a, b was a callable, which no file can hold: .*objects=\{'a': \.\.\."):
        check_no_missing(["a", "b"])
    with pytest.raises(ValueError, match=r"^a was a callable, which no file can hold: build a new model\.$"):
        check_no_missing(["a"], "build a new model")
    check_given_again({"x": "1", "y": None}, {"x": "1", "y": None}, "runs/a")
    with pytest.raises(ValueError, match=r"^y: these are not those that the run in 'runs/a' was started with\.$"):
        check_given_again({"x": "1", "y": None}, {"x": "1", "y": "2"}, Path("runs/a"))
    check_num_envs(2, 2)
    with pytest.raises(ValueError, match=r"^env has 3 environments, the run had 2: build as many\.$"):
        check_num_envs(2, 3)


def test_other_arguments_are_named() -> None:
    check_same_arguments({"a": [1, 2], "b": None}, {"a": [1, 2], "b": None}, "run")
    with pytest.raises(ValueError, match=r"^b=4 was 8 in the run in 'run': .*started with \(differing: b, c\)\.$"):
        check_same_arguments({"a": 1, "b": 8, "c": 1}, {"a": 1, "b": 4}, "run")
    with pytest.raises(ValueError, match=r"^b=None was None in the run"):  # older runs had no such argument
        check_same_arguments({"a": 1}, {"a": 1, "b": None}, "run")


def test_fingerprints_tell_data_apart() -> None:
    data = torch.arange(6.0).reshape(2, 3)
    same = (data.clone(), data.numpy(), data.T.contiguous().T, np.asfortranarray(data.numpy()))
    assert len({fingerprint("data", kept) for kept in (data, *same)}) == 1
    others = (data + 1, data.double())
    assert len({fingerprint("data", kept) for kept in (data, *others)}) == 3
    assert fingerprint("a", data) != fingerprint("b", data)
    assert fingerprint(torch.zeros(0), torch.tensor(1.5)) == fingerprint(np.float32(1.5).reshape(()))


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (7, 3), (2**25 + 1, 4)])
def test_places_are_spread_from_the_first_to_the_last(count: int, most: int) -> None:
    places = spread_evenly(count, most)
    assert len(places) == min(count, most)
    assert (int(places[0]), int(places[-1])) == (0, count - 1)
    assert bool((places.diff() > 0).all())


# ---- divergence
def minibatch(*values: Tensor) -> tuple[Tensor, list[Tensor]]:
    return torch.arange(10) * 2, [torch.ones(10, 3, dtype=torch.int64), *values]


def test_a_short_last_interval_is_averaged_over_a_whole_one() -> None:
    watch, resumed = FiniteWatch(nn.Linear(1, 1)), FiniteWatch(nn.Linear(1, 1))
    losses = torch.arange(12.0)
    for loss in losses[:4]:
        watch.add(loss)
    assert float(watch.mean_loss()) == 1.5  # the first interval has none before it
    watch.clear()
    for loss in losses[4:8]:
        watch.add(loss)
    assert float(watch.mean_loss()) == 5.5
    watch.clear()
    watch.add(losses[8])
    assert float(watch.mean_loss()) == float(losses[5:9].mean())
    resumed.restore(watch.tensors())
    assert (resumed.restored, len(resumed.losses)) == (1, 1)
    for loss in losses[9:11]:
        watch.add(loss)
        resumed.add(loss)
    assert torch.equal(watch.mean_loss(), resumed.mean_loss())
    resumed.check(11, None, rate=0.1)
    for one in (watch, resumed):
        one.restart()
        one.add(losses[11])
        assert float(one.mean_loss()) == 11.0


def test_a_short_minibatch_weighs_less_in_the_mean_loss() -> None:
    watch, resumed = FiniteWatch(nn.Linear(1, 1)), FiniteWatch(nn.Linear(1, 1))
    rng = np.random.default_rng(0)
    each, counts = rng.exponential(size=8), [64, 64, 3, 64, 64, 3, 64, 1]
    for place in range(6):
        watch.add(torch.tensor(each[place]), samples=counts[place])
        if place == 2:
            assert float(watch.mean_loss()) == pytest.approx(np.average(each[:3], weights=counts[:3]), rel=1e-12)
    watch.clear()
    resumed.restore(watch.tensors())
    for one in (watch, resumed):
        for place in (6, 7):
            one.add(torch.tensor(each[place]), samples=counts[place])
        assert float(one.mean_loss()) == pytest.approx(np.average(each[2:], weights=counts[2:]), rel=1e-12)
    losses = torch.tensor([1.0, 2.0])  # as earlier versions wrote them
    resumed.restore({"losses": losses})
    assert float(resumed.mean_loss()) == 1.5
    for bad in ([1.0], [1.0, torch.nan], [0.0, 1.0], [1.0, torch.inf]):
        with pytest.raises(ValueError, match="numbers of samples"):
            resumed.restore({"losses": losses, "losses_samples": torch.tensor(bad)})


def test_the_watch_names_the_first_step_and_its_minibatch() -> None:
    watch = FiniteWatch(nn.Linear(1, 1), losses_per_step=2, data="training data", model="model")
    watch.check(0, None, rate=0.1)
    for loss in (1.0, 2.0):
        watch.add(torch.tensor(loss), torch.tensor(loss))
    assert float(watch.mean_loss()) == 1.5
    watch.check(2, None, rate=0.1)
    watch.add(torch.tensor(1.0), torch.tensor(3.0))
    watch.add(torch.tensor(1.0), torch.tensor(torch.inf))
    watch.add(torch.tensor(torch.nan), torch.tensor(torch.nan))
    asked = []
    with pytest.raises(TrainingDivergedError) as found:
        watch.check(5, lambda step: asked.append(step) or minibatch(), rate=0.1, checkpoint_folder=Path("kept"))
    assert asked == [4]
    assert found.value.step == 4
    assert found.value.rows.tolist() == list(range(0, 20, 2))
    assert str(found.value) == (
        "Training stopped at step 4: the loss is inf. Its minibatch (samples 0, 2, 4, 6, 8, 10, 12, 14, ... "
        "(10 samples) of the training data) is finite, so the model diverged: lower learning_rate (it was 0.1), or set "
        "max_grad_norm. The model in memory is spoilt; the last good checkpoint stays in 'kept'."
    )
    watch.clear()
    watch.check(5, None, rate=0.1)


def test_samples_that_were_spoilt_are_named_alone() -> None:
    watch = FiniteWatch(nn.Linear(1, 1), data="demonstrations", model="policy")
    watch.add(torch.tensor(torch.nan))
    weights, inputs = torch.ones(10), torch.ones(10, 2)
    weights[3], inputs[5, 1] = math.nan, math.inf
    message = "the loss is nan. Samples 6, 10 of the demonstrations hold NaN or infinity: they were changed after"
    with pytest.raises(TrainingDivergedError, match=message) as found:
        watch.check(1, lambda step: minibatch(weights, inputs), rate=0.1)
    assert found.value.rows.tolist() == [6, 10]


def test_parameters_and_drawn_minibatches_are_watched_too() -> None:
    net = nn.Linear(1, 1)
    watch = FiniteWatch(nn.Linear(1, 1), net, model="discriminator", learning_rate="disc_learning_rate", can_clip=False)
    watch.add(torch.tensor(1.0))
    with torch.no_grad():
        net.weight.fill_(torch.nan)
    message = (
        r"step 3: the parameters are not finite after it\. Its minibatch was drawn: either that was not finite, or the "
        r"discriminator diverged: lower disc_learning_rate \(it was 0\.01\)\. The discriminator in memory is spoilt\.$"
    )
    with pytest.raises(FloatingPointError, match=message) as found:
        watch.check(3, None, rate=0.01)
    assert isinstance(found.value, TrainingDivergedError)
    assert len(found.value.rows) == 0


# ---- events
def test_values_go_to_tensorboard_the_caller_and_the_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    for first, resumed_at in ((0, None), (2, 2)):
        note: Any = lambda step, values: seen.append((step, dict(values)))  # noqa: E731
        with EventLog(tmp_path, resumed_at=resumed_at, on_log=note, bar=(5, first, "step")) as log:
            for step in range(first + 1, first + 4):
                log.write("gan", {"loss": step / 2}, step)
                log.advance()
    assert seen[0] == (1, {"gan/loss": 0.5})
    assert [step for step, _ in seen] == [1, 2, 3, 3, 4, 5]
    assert [event.step for event in read_events(tmp_path).Scalars("gan/loss")] == [1, 2, 3, 4, 5]
    assert "5/5" in capsys.readouterr().err


def test_nothing_is_shown_or_written_where_nobody_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog()
    log.write("gan", {"loss": 1.0}, 1)
    log.advance(3)
    log.close()
    assert log.writer is None
    with open_progress_bar(3, 0, "round", shown=False) as bar:
        bar.set_postfix_str("acting")
        bar.update(1)
    assert capsys.readouterr().err == ""


def test_histories_and_lines() -> None:
    history: dict[str, list[float]] = {}
    append_values(history, {"step": 1.0, "loss": 0.5})
    append_values(history, {"step": 2.0, "loss": 0.25})
    assert history == {"step": [1.0, 2.0], "loss": [0.5, 0.25]}
    assert log_line("step 2", {"loss": 0.25, "a": 1.0}, ("a", "loss", "b")) == "step 2: a 1.0000, loss 0.2500"


def test_learning_rates_are_set_in_every_group() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert learning_rate_of(optimizer) == 0.25


# ---- fingerprints


MOST = 4096


def described(values: Tensor) -> tuple[str, Tensor]:
    return f"{values.dtype} {tuple(values.shape)}", values


@pytest.mark.parametrize(
    ("count", "full", "digest"),
    [
        (30, False, "43c678fbe2c1daf57054aa61468dea7fb78252430c256202b298ae263285eeda"),
        (30, True, "33ec519b01285c4f4cd9563f30fd620a107e5199804eab1a76346810176c044d"),
        (10007, False, "d796bc92025408333ce9c875c7d4110e3894a35faef8737357eb6300c13c8077"),
        (10007, True, "eb5d868b1eedc346795d1e79ce6ac775cfff915fd4d32899201d5f695c6f1549"),
    ],
)
def test_demonstrations_keep_their_fingerprint(count: int, full: bool, digest: str) -> None:
    steps = np.arange(count)
    features = np.stack([steps / 8, -steps], axis=1).astype(np.float32)
    box = spaces.Box(-np.inf, np.inf, (2,))
    seen, space = features, box
    more: dict[str, Any] = {"weights": steps / 4, "action_masks": np.ones((count, 3), bool)} if full else {}
    if full:
        seen, space = {"b": features, "a": steps % 4}, spaces.Dict([("b", box), ("a", spaces.Discrete(4))])
    data = recorded(seen, steps % 3 + 5, space, spaces.Discrete(3, start=5), [count // 3, count], **more)
    # Cut off, not rounded as elsewhere: these places are part of every checkpoint of a cloning agent.
    batch = data[np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(np.int64))]
    observations = batch.observations if isinstance(batch.observations, dict) else {"": batch.observations}
    fields = {f"observations.{key}": value for key, value in sorted(observations.items())}
    fields |= {"actions": batch.actions, "action_masks": batch.action_masks, "weights": batch.weights}
    parts = [
        part
        for name, value in fields.items()
        if value is not None
        for part in (f"{name} {value.dtype} {value.shape}", value)
    ]
    head = f"{count} {data.observation_space} {data.action_space}"
    assert fingerprint(head, data.episode_ends, *parts) == digest


@pytest.mark.parametrize(
    ("count", "full", "digest"),
    [
        (30, False, "ef618f1bfda33cdba93f7beec09eefb2371036425693edbdbe7009a3e8d1fa50"),
        (30, True, "02683d35059261affc43950d77a492bad017007f52a3f927c704ecfe18da3607"),
        (10007, False, "bd1a4daf24a7b6f2c9d4f62bb906a801ab41670f6e07b246065850694b6bdf1c"),
        (10007, True, "d562183da0a93bea79f904084ef82c336de80d575a1ee100829a6a16c601fcf4"),
    ],
)
def test_labelled_samples_keep_their_fingerprint(count: int, full: bool, digest: str) -> None:
    steps = torch.arange(count)
    inputs, labels = torch.stack([steps / 8, -steps], 1).float(), steps % 3
    few = spread_evenly(count, MOST)
    parts = [*described(labels)]
    if full:  # training and validation samples, with weights, masks and targets
        sampled = (inputs[few], torch.ones(len(few), 3, dtype=torch.bool), uniform(labels[few], 3, 0.1).dense())
        parts += [part for values in ((steps / 4).double(), *sampled) for part in described(values)]
        parts += parts
    else:
        parts += described(inputs[few])
    assert fingerprint(repr(["a", "b", "c"]), *parts) == digest


@pytest.mark.parametrize(
    ("count", "dtype", "digest"),
    [
        (30, torch.float32, "0d7db14e63297304b30f6bd84a386edc4c6591df346ce48cac51c38ffdbd2ba1"),
        (30, torch.bfloat16, "5610304190a04f415ce61d9b8ba43b00be3f808541a092d214da75969edc9431"),
        (10007, torch.float32, "f6e19b573fa14c209f1cb9791d0bfbca55531fcd5160c0a97ef2d09cfecb465f"),
        (10007, torch.bfloat16, "5414fb24fe480b21a7a510440712890c37db8356fb2d4b4a1d33b010d47f53a0"),
    ],
)
def test_the_samples_of_a_gan_keep_their_fingerprint(count: int, dtype: torch.dtype, digest: str) -> None:
    steps = torch.arange(count)
    data = torch.stack([steps / 8, -steps], 1).to(dtype)
    head, _ = described(data)
    assert fingerprint(head, data[spread_evenly(count, MOST)]) == digest
