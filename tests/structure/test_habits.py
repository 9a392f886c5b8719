"""CONTRIBUTING, architecture.md, hooks, workflow, templates and CITATION.cff agree with the code and the pins."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlsmooth.agents import BC
from rlsmooth.data import cartpole_v1
from support import REPOSITORY, calls_of_own_files

ARCHITECTURE = (REPOSITORY / "docs" / "architecture.md").read_text("utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
GITHUB = sorted((REPOSITORY / ".github").rglob("*.*"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
WALK = re.findall(r"^\| +(\d+) \| `([\w/.]+)` \| `([\w.]+)` \|", ARCHITECTURE, re.MULTILINE)
BEFORE_TRAINING = 3  # steps of the command


def read_yaml(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text("utf-8"))


# ---- hooks and workflow
def test_the_hooks_have_the_versions_of_the_constraints() -> None:
    pins = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy", "codespell"}
    dependencies = [line for hook in hooks for line in hook["additional_dependencies"]]
    assert len(dependencies) == len(hooks)
    assert [line for line in dependencies if line not in pins] == []
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    for command in ("ruff check", "ruff format", "mypy --strict", "codespell"):
        assert any(hook["entry"].startswith(command) for hook in hooks)
        assert f"-m {command}" in makefile


def test_the_workflow_runs_the_checks_on_every_python() -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    assert {"run": ".ci/run"} in jobs["all"]["steps"]
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert jobs["all"]["strategy"]["matrix"]["python"] == classifiers
    runs = [step["run"] for step in jobs["ranges"]["steps"] if "run" in step]
    assert runs[0] == "make test-oldest"
    assert "constraint" not in runs[1]


@pytest.mark.parametrize("path", [*GITHUB, REPOSITORY / ".pre-commit-config.yaml"], ids=lambda path: path.name)
def test_no_host_and_no_path_of_a_machine_is_named(path: Path) -> None:
    text = path.read_text("utf-8")
    assert re.findall(r"https?://|(?<![\w.])/(?:home|root|tmp|work|opt|usr)/", text) == []


def test_the_templates_of_issues_are_forms() -> None:
    forms = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.name for form in forms] == ["bug.yml", "feature.yml"]
    for form in forms:
        content = yaml.safe_load(form.read_text("utf-8"))
        assert content.keys() >= {"name", "description", "body"}
        assert all(field["type"] in ("checkboxes", "textarea") for field in content["body"])
        assert len({field["id"] for field in content["body"]}) == len(content["body"])
        assert all(field["attributes"]["label"] for field in content["body"])


def test_the_citation_is_of_this_version() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "version"}
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert all(author.keys() <= {"name", "family-names", "given-names", "orcid"} for author in citation["authors"])


# ---- CONTRIBUTING.md
def test_the_make_targets_of_contributing_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"`make ([a-z-]+)", CONTRIBUTING))
    assert targets >= {"test", "lint", "types", "wheel-check"}
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def test_each_worked_example_is_short() -> None:
    sections = {section.splitlines()[0]: section for section in CONTRIBUTING.split("\n## ")[1:]}
    for name in ("Add a target", "Add a trainer", "Add a command"):
        first = re.findall(r"^```python\n(.*?)^```$", sections[name], re.DOTALL | re.MULTILINE)[0]
        assert len([line for line in first.splitlines() if line.strip()]) <= 35


# ---- architecture.md
@pytest.mark.parametrize(
    "page", ["docs/architecture.md", "CONTRIBUTING.md", "docs/commands.md"], ids=lambda name: Path(name).stem
)
def test_every_file_that_is_named_exists(page: str) -> None:
    text = (REPOSITORY / page).read_text("utf-8")
    tops = "rlsmooth|agents|envs|scripts|tests|docs"
    named = {name for name in re.findall(rf"`((?:{tops})/[\w/.]*)`", text) if not name.startswith("docs/examples")}
    assert named
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_the_drawing_has_every_package() -> None:
    (drawing,) = re.findall(r"^```mermaid\n(.*?)^```$", ARCHITECTURE, re.DOTALL | re.MULTILINE)
    packages = {path.parent.name for path in REPOSITORY.glob("rlsmooth/*/__init__.py")}
    rooms = {path.parent.name for path in REPOSITORY.glob("agents/*/__init__.py")}
    assert len(packages) >= 8
    assert [name for name in sorted(packages | rooms) if f"{name}/" not in drawing] == []


def test_every_function_of_the_walk_exists() -> None:
    assert [int(number) for number, _, _ in WALK] == list(range(1, len(WALK) + 1))
    for _, file, name in WALK:
        dotted = file.removesuffix(".py").replace("/", ".").removeprefix("rlsmooth.")
        value = importlib.import_module(f"rlsmooth.{dotted}")
        for part in name.split("."):
            value = getattr(value, part)


@pytest.mark.usefixtures("quick_paths")  # the page walks the quick way
def test_a_label_takes_the_walk_of_the_page() -> None:
    with calls_of_own_files() as calls:
        BC("MlpPolicy", None, cartpole_v1(), smoothing="lin_0.1", seed=0, device="cpu").learn(total_batches=1)
    remaining = iter([(file, name.removesuffix(".__init__")) for file, name in calls])
    for _, file, name in WALK[BEFORE_TRAINING:]:
        assert (file, name) in remaining, f"{file}: {name} is not called after the step before it"
