"""The runner of the studies: runs that are kept, resumed and ended, and where results go."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from killing import assert_ended, children
from rlsmooth.scripts.studies.runner import Args, Job, results_folder, run_jobs
from support import assert_raises

NAMES = ("bc_to_ppo", "benchmark", "cartpole", "collapse", "deep_sea", "exploration", "gap_coverage")


@pytest.mark.slow
def test_a_failed_run_keeps_what_is_done(tmp_path: Path) -> None:
    # dict(settings) is the settings again, and fails on those that are no mapping.
    jobs = [Job("good", {"number": 1}), Job("bad", 7)]  # type: ignore[arg-type]
    assert_raises(TypeError, "not iterable", run_jobs, jobs, dict, folder=tmp_path, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["good.json"]
    written = (tmp_path / "good.json").stat().st_mtime_ns
    assert run_jobs([jobs[0], Job("other", {"number": 2})], dict, folder=tmp_path, workers=1) == [
        {"number": 1},
        {"number": 2},
    ]
    assert (tmp_path / "good.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_the_processes_of_a_killed_study_end(tmp_path: Path) -> None:
    jobs = "[Job(str(number), 10 ** 6) for number in range(2)]"
    code = "import time; from pathlib import Path; from rlsmooth.scripts.studies.runner import Job, run_jobs\n"
    code += f"if __name__ == '__main__': run_jobs({jobs}, time.sleep, folder=Path('runs'), workers=2)"
    (tmp_path / "study.py").write_text(code)
    process = subprocess.Popen([sys.executable, "-P", "study.py"], cwd=tmp_path, stdout=subprocess.PIPE)
    while len(pids := [pid for pid, _ in children(process)]) < 3:  # one sees to the others' semaphores
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert_ended(pids)


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    run_jobs([Job("one", {"seeds": (1, 2)})], dict, folder=tmp_path, workers=1)
    assert run_jobs([Job("one", {"seeds": (1, 2)})], dict, folder=tmp_path, workers=1) == [{"seeds": [1, 2]}]
    with pytest.raises(ValueError, match=r"one\.json' was made by other settings: remove it"):
        run_jobs([Job("one", {"seeds": (1, 3)})], dict, folder=tmp_path, workers=1)


@pytest.mark.parametrize("name", NAMES)
def test_small_versions_write_nothing_among_the_results(name: str, repository: Path) -> None:
    runs, results = results_folder(Args(small=True), name)
    assert results == runs == Path(f"logs/studies/{name}-small")
    assert results_folder(Args(), name)[1].resolve() == (repository / "scripts" / "studies" / "results").resolve()


@pytest.mark.parametrize("name", NAMES)
def test_each_study_has_a_make_target(name: str, repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    target = f"study-{name.replace('_', '-')}"
    assert re.search(rf"^{target}: .*##.*\n\t.* -m rlsmooth\.scripts\.studies\.{name} ", makefile, flags=re.MULTILINE)
    assert re.search(rf"^\.PHONY:.* {target}\b", makefile, flags=re.MULTILINE)
