"""Prepares the pages of the documentation's site, which mkdocs then builds.

python docs/build.py FOLDER

Pages are copied to the folder. Links that leave `docs/` lead to copies: Markdown as it is, other files as listings.
Tutorials are scripts whose cells become text and code. The page of results lists all of them. The reference has a page
for each module that a public package exports names of, or for each of its classes, so that no page is too long.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
PACKAGES = {
    "targets": "Targets",
    "losses": "Losses",
    "data": "Data",
    "envs": "Environments",
    "training": "Trainers",
    "agents": "Agents",
    "audits": "Audits",
    "integrations": "Integrations",
}
LANGUAGES = {".py": "python", ".yml": "yaml", ".toml": "toml", ".json": "json"}
CLASSES_A_PAGE = 2
RESULTS = {"scripts/studies/results": "Studies", "scripts/bench/results": "Benchmarks"}
TOP = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def package_folder(name: str) -> Path:
    """The folder of a package; some lie at the top of the tree."""
    return (ROOT / "rlsmooth" / name).resolve()


def public_names(package: str) -> dict[str, list[str]]:
    """The names in a package's `__all__`, by the module that defines them; read, not imported."""
    folder = package_folder(package)
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    homes: dict[str, str] = {}
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            homes |= {alias.asname or alias.name: node.module for alias in node.names}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = [ast.literal_eval(element) for element in getattr(node.value, "elts", [])]
    if not names:  # modules that are imported one by one
        for path in sorted(folder.glob("[!_]*.py")):
            module = f"rlsmooth.{package}.{path.stem}"
            parts = ast.parse(path.read_text(encoding="utf-8")).body
            own = [part.name for part in parts if isinstance(part, (ast.ClassDef, ast.FunctionDef))]
            homes |= {name: module for name in own if not name.startswith("_")}
        names = list(homes)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(homes.get(name, f"rlsmooth.{package}"), []).append(name)
    return found


def write_reference(folder: Path) -> None:
    """Write the pages of the reference, and its table of contents."""
    contents = ["# Reference", "", "Every public name, by package and module.", ""]
    for package, title in PACKAGES.items():
        contents += [f"## {title}: `rlsmooth.{package}`", ""]
        for module, names in sorted(public_names(package).items()):
            classes = [name for name in names if name[0].isupper() and not name.isupper()]
            alone = classes if len(classes) > CLASSES_A_PAGE else []  # their inherited members make long pages
            pages = [[name] for name in alone] + [[name for name in names if name not in alone]]
            links = []
            for shown in filter(None, pages):
                page = folder / (f"{module}.{shown[0]}.md" if shown[0] in alone else f"{module}.md")
                lines = [
                    "[Reference](index.md)",
                    "",
                    f"# `{page.stem}`",
                    "",
                    *(f"::: {module}.{name}\n" for name in shown),
                ]
                page.parent.mkdir(parents=True, exist_ok=True)
                page.write_text("\n".join(lines), encoding="utf-8")
                links += [f"[`{name}`]({page.name}#{module}.{name})" for name in shown]
            contents.append(f"- `{module}`: " + ", ".join(links))
        contents.append("")
    (folder / "index.md").write_text("\n".join(contents), encoding="utf-8")


def write_results(site: Path) -> None:
    """Write the page that lists the pages of results, with their headings and what makes them."""
    lines = [
        "# Results",
        "",
        "All numbers of this site come from these pages. Each was written by a program, which it names.",
        "",
    ]
    for folder, title in RESULTS.items():
        lines += [f"## {title}", ""]
        for path in sorted((ROOT / folder).glob("*.md")):
            heading = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            link = os.path.relpath(place_of(path, site), site)
            lines.append(f"- [{heading}]({link}) (`{path.stem}`)")
        lines.append("")
    (site / "results.md").write_text("\n".join(lines), encoding="utf-8")


def cells(script: str) -> str:
    """The Markdown of a script whose cells begin with `# %%`, or with `# %% [markdown]` where they are text."""
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def copied(source: Path, goal: Path, site: Path) -> None:
    """Copy a page, and what it links to outside the documentation."""
    text = source.read_text(encoding="utf-8")
    text = cells(text) if source.suffix == ".py" else text
    if source.parent.name == "results":
        text = f"[Results]({os.path.relpath(site / 'results.md', goal.parent)})\n\n{text}"

    def follow(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        target = (source.parent / link).resolve()
        if "://" in link or link.startswith("mailto:") or not target.exists():
            return match[0]
        return (
            f"{before}{os.path.relpath(place_of(target, site), goal.parent)}{after if target.suffix == '.md' else ')'}"
        )

    goal.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"^```(\w+) \w+$", r"```\1", LINK.sub(follow, text), flags=re.MULTILINE)  # a second word is for tests
    goal.write_text(CONSOLE.sub(commands, text), encoding="utf-8")


def commands(block: re.Match[str]) -> str:
    """A block of commands without their prompts, so that it can be copied."""
    return f"```bash\n{re.sub(r'^[$] ', '', block[1], flags=re.MULTILINE)}```"


def place_of(target: Path, site: Path) -> Path:
    """Where a file is in the site's pages; one that is outside the documentation is copied there first."""
    docs = ROOT / "docs"
    if target.is_relative_to(docs):
        inside = target.relative_to(docs)
        if target.is_dir() and (target / "README.md").exists():
            return site / inside / "README.md"
        if target.parent.name == "tutorials" and target.suffix == ".py":
            return site / inside.with_suffix(".md")
        if target.suffix != ".py":
            return site / inside
    inside = target.relative_to(ROOT)
    if str(inside) == "README.md":
        return site / "index.md"
    if str(inside) in TOP:
        return site / TOP[str(inside)]
    if target.suffix == ".png":
        goal = site / "source" / inside
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(target, goal)
        return goal
    goal = site / "source" / (inside if target.suffix == ".md" else inside.with_name(f"{inside.name}.md"))
    if goal.exists():
        return goal
    goal.parent.mkdir(parents=True, exist_ok=True)
    goal.touch()  # pages may link to each other
    if target.suffix == ".md":
        copied(target, goal, site)
    elif target.is_dir():
        names = sorted(
            path.name + "/" * path.is_dir() for path in target.iterdir() if not path.name.startswith(("_", "."))
        )
        goal.write_text(f"# `{inside}/`\n\n" + "\n".join(f"- `{name}`" for name in names), encoding="utf-8")
    else:
        language = LANGUAGES.get(target.suffix, "text")
        content = target.read_text(encoding="utf-8")
        shown = content if len(content) < 100_000 else content[:2_000] + "\n..."
        goal.write_text(f"# `{inside}`\n\n````{language}\n{shown}\n````\n", encoding="utf-8")
    return goal


def build(site: Path) -> None:
    """Write all pages to an empty folder."""
    shutil.rmtree(site, ignore_errors=True)
    for path in sorted((ROOT / "docs").rglob("*")):
        goal = site / path.relative_to(ROOT / "docs")
        if path.suffix == ".md":
            copied(path, goal, site)
        elif path.parent.name == "tutorials" and path.suffix == ".py":
            copied(path, goal.with_suffix(".md"), site)
        elif path.suffix in (".png", ".svg", ".css"):
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, goal)
    for name, page in TOP.items():
        copied(ROOT / name, site / page, site)
    write_results(site)
    write_reference(site / "reference")


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
