"""Docs, README, examples and docstrings tell the truth: their Python runs, their commands, links and files exist."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from html import unescape as html_entities
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from rlsmooth.agents import BC
from rlsmooth.data import cartpole_v1
from rlsmooth.scripts.main import COMMANDS
from support import REPOSITORY, product_files

README = REPOSITORY / "README.md"
PAGES = [*sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "CONTRIBUTING.md", README]
COMMAND_PAGE = REPOSITORY / "docs" / "commands.md"
TABLES = ("architecture.md", "claims.md", "imitation-tests.md", "README.md")  # pages that have tests of their own
NO_PYTHON = (*TABLES, "commands.md", "install.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.stem == "from-imitation" else ())  # five seconds
        for page in PAGES
        if page.name not in NO_PYTHON
    ],
    ids=lambda page: page.stem,
)
def test_the_python_of_a_page_runs_as_one_program(page: Path, programs: Any, tmp_path: Path) -> None:
    program = "\n".join(blocks(page, "python"))
    assert program
    finished = programs.run(program, tmp_path, warnings_are_errors=True)
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_commands_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = re.findall(r"\brlsmooth ([a-z][a-z0-9-]*)\b", "\n".join(blocks(page, "console")))
    assert [name for name in commands if name not in COMMANDS] == []
    assert page != COMMAND_PAGE or {*commands} >= {"bc", "record", "evaluate", "plot"}
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links or page != README
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_page_on_installing_has_every_extra() -> None:
    section = (REPOSITORY / "docs" / "install.md").read_text(encoding="utf-8").split("## Extras")[1].split("\n## ")[0]
    shown = re.findall(r"`([a-z]+)`", "".join(line.split("|")[1] for line in section.splitlines() if line[:1] == "|"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(shown) == sorted(project["optional-dependencies"])


# ---- README
README_BLOCK = re.compile(r"(?P<not_run><!-- not run: .+? -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


FILES_PAGE = (REPOSITORY / "docs" / "files.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text(encoding="utf-8")


def readme_blocks(readme: str, language: str) -> list[tuple[str, bool]]:
    """List (code, whether it runs) of the fenced blocks. `<!-- not run: why -->` on the line above leaves one out."""
    found = [match for match in README_BLOCK.finditer(readme) if match["language"] == language]
    return [(match["code"], match["not_run"] is None) for match in found]


@pytest.mark.timeout(600)
def test_the_python_blocks_run_as_programs_of_another_project(readme: str, wheel_programs: Any, tmp_path: Path) -> None:
    saves, loads = "\n".join(code for code, _ in readme_blocks(FILES_PAGE, "python")), loading()
    found = [*readme_blocks(readme, "python"), (saves, True), *((code, True) for code in loads)]
    assert sum(runs for _, runs in found) >= 3
    for code, runs in found:
        compile(code, "block", "exec")
        if runs:
            finished = wheel_programs.run(code, tmp_path)  # what one saves, later ones load
            assert finished.returncode == 0, f"{code}\n{finished.stderr}"
            assert "Warning" not in finished.stderr, f"{code}\n{finished.stderr}"


def loading() -> list[str]:
    """The blocks that load a saved agent, and nothing else."""
    return [code for code, _ in readme_blocks(FILES_PAGE, "python") if "BC.load(" in code]


def test_an_agent_is_loaded_and_acts_in_three_lines() -> None:
    assert min(len([line for line in code.splitlines() if line.strip()]) for code in loading()) == 3


def test_the_first_example_has_about_ten_lines(readme: str) -> None:
    code, runs = readme_blocks(readme, "python")[0]
    assert runs
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_every_make_target_exists(readme: str, repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```console\n.*?```|`[^`\n]+`", readme, re.DOTALL))
    targets = set(re.findall(r"\bmake ([a-z][a-z-]*)", code))
    assert targets >= {"train", "test"}
    assert [name for name in sorted(targets) if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


# ---- from-imitation.md: imitation's side, and the folder that imitation wrote
FROM_IMITATION = (REPOSITORY / "docs" / "from-imitation.md").read_text(encoding="utf-8")
IMITATION_BLOCK = re.compile(r"^```python(?: (imitation|rollouts))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def imitation_blocks(kind: str) -> list[str]:
    return [code for found, code in IMITATION_BLOCK.findall(FROM_IMITATION) if found == kind]


def write_folder(folder: Path) -> None:
    """Two episodes as imitation's `serialize.save` writes them: types and flags as in a folder that it really wrote."""
    pa = pytest.importorskip("pyarrow")
    data = cartpole_v1().select_episodes([0, 1])
    parts = [data[start:end] for start, end in zip(data.episode_starts, data.episode_ends, strict=True)]
    columns = {
        "obs": [[*np.asarray(part.observations), np.asarray(part.next_observations)[-1]] for part in parts],
        "acts": [part.actions for part in parts],
        "infos": [["{}"] * len(part) for part in parts],
        "terminal": [True, True],  # although the time limit ended them
        "rews": [part.rewards for part in parts],
    }
    schema = pa.schema(
        {
            "obs": pa.list_(pa.list_(pa.float32())),
            "acts": pa.list_(pa.int64()),
            "infos": pa.list_(pa.string()),
            "terminal": pa.bool_(),
            "rews": pa.list_(pa.float64()),
        }
    )
    folder.mkdir()
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), schema) as writer:
        writer.write_table(pa.table(columns, schema=schema))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_format_type": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def test_ours_stands_beside_each_of_theirs() -> None:
    theirs = imitation_blocks("imitation")
    assert len(theirs) == 10
    for code in theirs:
        assert code.startswith("# imitation\n")
        compile(code, "block", "exec")
    sections = FROM_IMITATION.split("\n## ")[1:]
    numbered = [section for section in sections if re.match(r"\d+\. ", section)]
    assert len(numbered) == 10
    for section in numbered:
        assert [kind for kind, _ in IMITATION_BLOCK.findall(section)][:2] == ["imitation", ""], section.splitlines()[0]


def test_a_folder_of_imitations_is_read(tmp_path: Path, programs: Any) -> None:
    write_folder(tmp_path / "rollouts")
    (code,) = imitation_blocks("rollouts")
    check = "assert read.num_episodes == 2 and read.truncations.sum() == 2 and not read.terminations.any()\n"
    program = f"from rlsmooth.data import Demonstrations\n{code}{check}"
    finished = programs.run(program, tmp_path, warnings_are_errors=True)
    assert finished.returncode == 0, finished.stderr
    assert "2 episodes, 1000 transitions, return 500.0" in finished.stdout


# ---- imitation-tests.md: its tests exist, none is left out, and its numbers are those of its rows
TESTS = REPOSITORY / "tests" / "imitation"
IMITATION_TESTS = (REPOSITORY / "docs" / "imitation-tests.md").read_text(encoding="utf-8")
FILES = {
    "test_bc.py": ("`algorithms/test_bc.py`", 9),
    "test_dagger.py": ("`algorithms/test_dagger.py`", 15),
    "test_adversarial.py": ("`algorithms/test_adversarial.py`", 10),
    "test_base.py": ("`algorithms/test_base.py`", 4),
    "test_rewards.py": ("`rewards/`", 31),
}
"""Ours: theirs, and how many tests they had."""
RESULTS = ("passes", "differs", "not here")


class Row(NamedTuple):
    theirs: str
    behaviour: str
    ours: list[str]
    result: str


def rows_of(name: str) -> list[Row]:
    """The rows of the section that names the file."""
    (section,) = [part for part in IMITATION_TESTS.split("\n## ")[1:] if f"../tests/imitation/{name}" in part]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert all(len(row) == 4 for row in cells), cells
    return [
        Row(theirs, behaviour, re.findall(r"`(\w+)`", ours), result) for theirs, behaviour, ours, result in cells[2:]
    ]


def functions(name: str) -> set[str]:
    tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("name", FILES)
def test_every_test_that_is_named_exists_and_every_test_is_named(name: str) -> None:
    assert {ours for row in rows_of(name) for ours in row.ours} == functions(name)


@pytest.mark.parametrize("name", FILES)
def test_each_of_theirs_has_one_row_with_a_behaviour_and_a_result(name: str) -> None:
    rows = rows_of(name)
    assert len({row.theirs for row in rows}) == len(rows) == FILES[name][1]
    for row in rows:
        assert re.fullmatch(r"`test_\w+`", row.theirs), row
        assert len(row.behaviour) > 10, row
        (kind,) = [result for result in RESULTS if row.result.startswith(result)]
        assert bool(row.ours) == (kind != "not here"), row
        assert kind == "passes" or len(row.result) > len(f"{kind}: ") + 10, row  # it says why


@pytest.mark.parametrize("name", FILES)
def test_the_numbers_are_those_of_the_rows(name: str) -> None:
    theirs, total = FILES[name]
    counts = [sum(row.result.startswith(result) for row in rows_of(name)) for result in RESULTS]
    assert f"| {theirs} | {total} | {' | '.join(map(str, counts))} |" in IMITATION_TESTS
    assert f"each of the {sum(count for _, count in FILES.values())} in" in IMITATION_TESTS


# ---- the example projects run where only the wheel is installed
@pytest.fixture(scope="module")
def agent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    agent = BC("MlpPolicy", None, cartpole_v1(), smoothing=0.1, seed=0, device="cpu")
    agent.learn(total_epochs=3)
    return agent.save(tmp_path_factory.mktemp("agent") / "agent.zip")


@pytest.mark.parametrize(
    ("example", "pattern"),
    [
        ("act_with_agent", r"return (\d+)"),
        pytest.param("ppo_from_agent", r"return before (\d+), after (\d+)", marks=pytest.mark.slow),
    ],
)
def test_an_example_runs_with_the_wheel_alone(
    example: str, pattern: str, agent_file: Path, repository: Path, wheel_programs: Any, tmp_path: Path
) -> None:
    program = (repository / "docs" / "examples" / example / "main.py").read_text(encoding="utf-8")
    shutil.copy(agent_file, tmp_path / "mine.zip")
    finished = wheel_programs.run(program, tmp_path, "mine.zip")
    assert finished.returncode == 0, finished.stderr
    match = re.search(pattern, finished.stdout)
    assert match is not None, finished.stdout
    # A warm start that copied nothing would leave PPO's return near 20.
    assert all(float(number) >= 150 for number in match.groups()), finished.stdout


# ---- docstrings; pytest's own --doctest-modules would collect the linked folders twice
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
ABSENT = {
    f"rlsmooth.integrations.{name}" for name, its in {"rllib": "ray", "flower": "flwr"}.items() if not find_spec(its)
}
MODULES = [name for name in product_files() if ".bench" not in name and name not in ABSENT]  # benchmarks import others


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)  # an example may save a file
    result = doctest.testmod(module, optionflags=OPTIONS)
    assert result.failed == 0, capsys.readouterr().out


def test_the_two_libraries_have_examples() -> None:
    tests = [
        test
        for name in MODULES
        if name.startswith(("rlsmooth.losses", "rlsmooth.targets"))
        for test in doctest.DocTestFinder().find(importlib.import_module(name))
    ]
    assert sum(bool(test.examples) for test in tests) >= 20


@pytest.mark.parametrize("package", ["agents", "audits", "data", "envs", "losses", "targets", "training"])
def test_the_docstring_of_a_package_names_modules_that_exist(package: str) -> None:
    module = importlib.import_module(f"rlsmooth.{package}")
    folder = Path(str(module.__file__)).parent
    named = re.findall(r"`([a-z_]+)`", module.__doc__ or "")
    assert not [name for name in named if not (hasattr(module, name) or (folder / f"{name}.py").is_file())]


# ---- policies.md: which option, as the study measured
def test_the_guide_to_exploration_has_the_numbers_of_the_study() -> None:
    def table(page: str, first: str) -> dict[str, dict[str, str]]:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        lines = text[text.index(f"| {first}") :].split("\n\n")[0].splitlines()
        rows = [[cell.strip().replace("**", "") for cell in line.strip("|").split("|")] for line in lines]
        return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}

    guide = table("docs/policies.md", "less plain PPO's steps")
    study = table("scripts/studies/results/exploration.md", "sooner?")
    arms = {"`target_entropy_frac`": "target", "`smoothing`": "KL to uniform", "`ent_coef`": "ent_coef"}
    for option, arm in {**arms, "`min_entropy_frac` alone": "guarantee"}.items():
        assert guide[option].items() <= study[f"{arm}, less PPO"].items(), option
    assert len(guide) == 4


# ---- the site, and the tutorials
def site_tools(name: str) -> Any:
    """A script of `docs/`."""
    spec = spec_from_file_location(name, REPOSITORY / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference(tmp_path: Path) -> None:
    build = site_tools("build")
    build.build(tmp_path)
    text = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "reference").glob("rlsmooth.*.md"))
    shown = set(re.findall(r"^::: (rlsmooth\.\S+)$", text, re.MULTILINE))
    for package in set(build.PACKAGES) - {"integrations"}:
        module = importlib.import_module(f"rlsmooth.{package}")
        assert set(module.__all__) <= {name.rpartition(".")[2] for name in shown}
    pages = re.findall(r"[:-] ([\w/-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert [page for page in pages if not (tmp_path / page).exists()] == []
    left_out = {path.name for path in (REPOSITORY / "docs").glob("*.md")} - set(pages)
    assert left_out == set()
    results = (tmp_path / "results.md").read_text(encoding="utf-8")
    for path in REPOSITORY.glob("scripts/*/results/*.md"):
        assert f"(source/{path.relative_to(REPOSITORY)})" in results


TUTORIALS = site_tools("draw").SCRIPTS
SAYS = {  # what a script prints, where its text has the number
    "audit": ("skilled -0.041, slips +0.032; difference +0.072", "skilled +0.006, slips -0.006"),
    "entropy_panels": (),
    "noisy_demonstrations": ("illegal moves 0.13 ", "most probable 0.85", "most probable 0.94", "sampled 0.78 "),
    "pseudo_labels": ("hard                 test accuracy 0.846", "smoothed by 0.1      test accuracy 0.927", "0.831"),
    "taxonomy": ("to relatives 0.86", "to relatives 0.55", "to relatives 0.91"),
    "warm_start": (
        "from_bc                        first  105  lowest   89  last  500",
        "first   98  lowest   87  last  500",
    ),
}


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_has_a_figure_that_is_small(name: str) -> None:
    figure = REPOSITORY / "docs" / "images" / f"{name}.png"
    assert figure.stat().st_size < 120_000
    place = TUTORIALS[name].read_text(encoding="utf-8") + (REPOSITORY / "docs/tensorboard.md").read_text(
        encoding="utf-8"
    )
    assert f"images/{name}.png)" in place
    compile(TUTORIALS[name].read_text(encoding="utf-8"), name, "exec")


def is_said(words: str, printed: str) -> bool:
    """Whether it is printed, with numbers within 0.002 or 1 %: on other processors training rounds in another way."""
    number = r"[+-]?\d+(?:\.\d+)?"
    stored = [float(one) for one in re.findall(number, words)]
    pattern = re.sub(r"(\\ )+", r"\\s+", number.join(re.escape(part) for part in re.split(number, words)))
    found = ([float(one) for one in re.findall(number, text)] for text in re.findall(pattern, printed))
    return any(one == pytest.approx(stored, rel=0.01, abs=0.002) for one in found)


def test_numbers_are_said_within_rounding() -> None:
    assert is_said("hard   accuracy 0.846, slips -0.041", "a hard  accuracy 0.841, slips -0.040 b")
    assert not is_said("hard accuracy 0.846", "hard accuracy 0.826, soft accuracy 0.846")
    assert not is_said("skilled +0.006", "skilled -0.006")


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs_in_two_minutes(name: str, programs: Any, tmp_path: Path) -> None:
    program = f"import runpy, sys\nsys.argv[1:] = [{str(tmp_path)!r}, {name!r}]\n"
    program += f"runpy.run_path({str(REPOSITORY / 'docs' / 'draw.py')!r}, run_name='__main__')"
    finished = programs.run(program, tmp_path, warnings_are_errors=True)
    assert finished.returncode == 0, finished.stderr
    assert [words for words in SAYS[name] if not is_said(words, finished.stdout)] == [], finished.stdout
    assert int(re.findall(r"(\d+) s$", finished.stdout)[-1]) < 120
    drawn, kept = (folder / f"{name}.png" for folder in (tmp_path, REPOSITORY / "docs" / "images"))
    assert abs(drawn.stat().st_size / kept.stat().st_size - 1) < 0.2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_link_of_the_built_site_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    site_tools("build").build(tmp_path / "docs")
    settings = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    for name, value in (("docs_dir", tmp_path / "docs"), ("site_dir", tmp_path / "site"), ("paths", f"[{REPOSITORY}]")):
        settings = re.sub(rf"(?m)^( *){name}: .*$", rf"\g<1>{name}: {value}", settings)
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(tmp_path / "mkdocs.yml")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    text = {page: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', html)) for page, html in text.items()}
    broken = []
    for page, html in text.items():
        for link in set(re.findall(r'\b(?:href|src)="([^"]+)"', html)):
            place, _, anchor = html_entities(link).partition("#")
            goal = (page.parent / place.partition("?")[0]).resolve() if place else page
            if "://" not in link and not link.startswith(("mailto:", "data:", "/")) and page.name != "404.html":
                goal = goal / "index.html" if goal.is_dir() else goal
                if not goal.exists() or (
                    anchor and goal in anchors and anchor not in anchors[goal] and anchor[:2] != "__"
                ):
                    broken.append((page.name, link))
    assert broken == []
    reference = [page for page in text if page.parent.name == "reference"]
    assert max(page.stat().st_size for page in reference) < 150_000
