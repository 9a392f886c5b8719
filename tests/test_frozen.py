"""Files, checkpoints and reports of version 0.1.0 are read as on the day they were written, and its runs resumed.

The files are made by `tests/frozen/make.py`, which also says how each is read. They are never written again: if one can
no longer be read, the code is wrong.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rlsmooth.agents.smoothed import entropy
from support import mostly_slow

FOLDER = Path(__file__).resolve().parent / "frozen"
FILES = FOLDER / "files"


def load_make() -> ModuleType:
    """`tests/frozen/make.py` as a module."""
    spec = importlib.util.spec_from_file_location("frozen_make", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for dataclasses
    spec.loader.exec_module(module)
    return module


make: Any = load_make()

# On another machine the last bits differ, which resumed runs warn of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The resumed run will not repeat the saved one bit for bit"),
    pytest.mark.usefixtures(
        "quick_paths"
    ),  # by which the losses were computed then; the plain ones round in another way
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """How sums are split over threads decides about their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MEASURED = {"history", "evaluations", "metrics", "curves", "summary", "seen"}
"""In the names of what was logged, which may be computed in another way, up to rounding."""


WEIGHTED = "bc_masks bc_callables bc_early_stopping classifier run_bc_masks run_bc_early_stopping run_classifier"
CHANGED = {
    **dict.fromkeys([*WEIGHTED.split(), "run_self_training"], r"(?!kept|answers)"),
    "command_classify": r"curves\.classifier/loss",
    "command_airl": r"curves\.train/(policy_entropy|entropy_frac|kl_)",
    **dict.fromkeys(("gan", "run_gan"), r"(trained/)?(average\..*running|evaluations\.mean)"),
}
"""What is computed otherwise since version 0.1.0, by case. Weights are divided by the mean weight of the data set, and
no longer by the minibatch's; mean losses weigh a minibatch by its samples; the averaged generator has averaged running
statistics, and a row's entropy is that of the policy after its update. Of the first there are
`..._unweighted` cases, which are the same to the bit."""


ROUNDED = {
    *("bco", "run_bco", "bc_masks_unweighted", "run_bc_masks_unweighted", "run_classifier_unweighted"),
    *("bc_soft_targets", "bc_multi_discrete", "run_bc_multi_discrete"),
}
"""Their targets are written out, the mass of such a target is summed in float64 now, and their loss is torch's own: the
last bit differs."""


def assert_same(found: dict[str, torch.Tensor], name: str, *, computed: bool = True, part: str = "") -> None:
    """Compare with what was stored: bit for bit if nothing was computed, or where the machine is the one of then.

    Elsewhere sums are taken in another order. Their last bits differ, and training makes such a difference larger.
    """
    expected, machine = make.expected(name)
    expected = {key: value for key, value in expected.items() if key.startswith(part)}
    assert expected
    assert expected.keys() <= found.keys()  # what is measured since then does not concern an old run
    is_exact = not computed or machine == make.machine()
    for key, stored in expected.items():
        tensor = found[key]
        if name in CHANGED and re.match(CHANGED[name], key):
            assert (tensor.dtype, tensor.ndim) == (stored.dtype, stored.ndim), key
            continue
        assert (tensor.dtype, tensor.shape) == (stored.dtype, stored.shape), key
        if name == "run_gan" and key.startswith("history."):  # its last, short interval is averaged over a whole one
            tensor, stored = tensor[:-1], stored[:-1]
        bits = is_exact and name not in ROUNDED
        if not tensor.is_floating_point() or (bits and MEASURED.isdisjoint(re.split("[./]", key))):
            assert torch.equal(tensor, stored), key
        else:
            rtol, atol = (1e-6, 1e-6) if is_exact else (1e-3, 1e-4)
            torch.testing.assert_close(tensor, stored, rtol=rtol, atol=atol, msg=lambda text, key=key: f"{key}: {text}")


def test_every_case_is_there() -> None:
    assert {path.name for path in FILES.iterdir()} == {*make.FILES, *make.RUNS, *make.COMMANDS}
    assert sum(path.stat().st_size for path in FILES.rglob("*") if path.is_file()) < 3_500_000


@pytest.mark.parametrize("name", make.FILES)
def test_a_file_holds_what_it_held(name: str) -> None:
    """Its content is the same, gives the same answers, and is trained further as it was then."""
    found = make.file_state(make.FILES[name], FILES / name)
    kept = {key: tensor for key, tensor in found.items() if key.startswith("kept/")}
    assert_same(kept, name, computed=False, part="kept/")
    assert_same(found, name)


@pytest.mark.parametrize("name", make.RUNS)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(FILES / name / "checkpoints", folder)
    assert_same(make.RUNS[name].state(make.RUNS[name].resume(folder)), name)


@pytest.mark.parametrize("name", make.RUNS)
def test_a_run_ends_as_it_did(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "MOVED", 0.0)  # new runs move the set-point of an entropy target, those of then don't
    assert_same(make.RUNS[name].state(make.RUNS[name].start(None)), name)


FAST = ("command_bc", "command_gail", "command_ppo")


@pytest.mark.parametrize("name", mostly_slow(make.COMMANDS, *FAST))
def test_the_report_of_a_command_is_drawn(name: str, tmp_path: Path) -> None:
    assert make.commands.plot_command(FILES / name / "finished", tmp_path)


@pytest.mark.parametrize("name", mostly_slow(make.COMMANDS, *FAST))
def test_a_command_resumes_with_the_arguments_of_then(name: str, tmp_path: Path) -> None:
    """From its last checkpoint, or from the beginning where only its arguments are kept."""
    unfinished = FILES / name / "unfinished"
    kept = unfinished if unfinished.is_dir() else FILES / name / "finished"
    assert_same(make.commands.resume_command(make.COMMANDS[name], kept, tmp_path), name)
