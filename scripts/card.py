"""Agent cards: `README.md` beside an agent, by the conventions of model cards, from the JSON files of its run.

`card.json` keeps what the run's other files lack: the data, as they were trained on, and what `rlsmooth evaluate` has
measured since. A card has no time, no path and no name of a user or machine in it: the same run gives the same card.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.scripts.run_folder import read_json, write_json
from rlsmooth.untrusted import read_regular

CARD, FACTS = "README.md", "card.json"
MARK = "<!-- What you write below this line is kept. -->"
START = "---\nlibrary_name: rlsmooth\n"
PLACES = ("log_folder", "resume", "tensorboard_log")
"""Options that name places of this machine, and mean nothing elsewhere."""
HOW = ("device", "num_threads", "progress", "verbose")
"""Options that say how a run was made, and not what it is."""
NAMES = ("env", "data", "policy", "source")
"""Options whose values may have a slash and be no path."""
PAIRS = ("env_kwargs", "eval_env_kwargs", "hyperparams")
PLACE = re.compile(r"(~|\.{1,2}|[A-Za-z]:)?[/\\]|~$|\.{1,2}$")
INSIDE = re.compile(r"(?<![\w.])(~\w*|[A-Za-z]:)?[/\\][^\s'\"(),\[\]]+")
CALIBRATION = {
    "accuracy": "accuracy",
    "nll": "negative log-likelihood, nats",
    "nll_hard": "negative log-likelihood, nats",
    "brier": "Brier score",
    "ece": "expected calibration error (ECE)",
    "adaptive_ece": "adaptive ECE",
    "classwise_ece": "class-wise ECE",
    "confidence_gap": "confidence minus accuracy",
}
ENTROPY = {
    "policy_entropy": "policy entropy, nats",
    "entropy_frac": "share of the largest entropy",
    "entropy_frac_min": "the same of the lowest state",
    "kl_uniform": "KL(uniform‖policy), nats",
}
RETURNS = {"mean_reward": "return", "mean_reward_sampled": "return, sampled actions"}
TASKS = {
    "imitation-learning": ("bc", "bco", "dagger", "gail", "airl"),
    "reinforcement-learning": ("ppo", "a2c", "maskable-ppo", "recurrent-ppo", "record"),
    "tabular-classification": ("classify", "self-train", "federated"),
    "other": ("gan",),
}
USES = {
    "imitation-learning": "Acts in {subject} as the demonstrations do: for studies of smoothed targets, and as a start "
    "for reinforcement learning (`rlsmooth ppo --from-bc`).",
    "reinforcement-learning": "Acts in {subject}: for studies of policies that keep exploring, and as an expert whose "
    "episodes are recorded (`rlsmooth record`).",
    "tabular-classification": "Classifies samples like those of {subject}: for studies of smoothed targets.",
    "other": "Draws samples like those of {subject}: for studies of one-sided smoothing.",
}
OTHER_SEEDS = "Another seed gives other numbers; `rlsmooth plot` compares runs of several."
LIMITS = f"""- Measured on what is named above alone: elsewhere, nothing is known.
- {{seed}} {OTHER_SEEDS}
- Not for decisions about people, nor for machines that can hurt somebody, without tests of your own."""
NOT_MEASURED = "Not measured: `rlsmooth evaluate --demonstrations` measures a cloned agent's, and renews this card."
FILES = """Zips of JSON and safetensors without pickles or code: `rlsmooth evaluate -i .` plays an agent,
`rlsmooth.agents.load_agent` and `rlsmooth.training.Classifier.load` read them in Python."""
Rows = list[tuple[str, str]]


def write_card(folder: Path, config: Mapping[str, Any] | None = None, **facts: Any) -> None:
    """Write the card of a run's folder, or renew it; say so on stderr, and no more, if that can't be done.

    Args:
        folder: with the run's `config.json` and, if it has ended, `report.json`.
        config: in place of `config.json`.
        facts: entries of `card.json` to add or replace; of a dict, its own entries.
    """
    try:
        known = read_json(folder / FACTS) if (folder / FACTS).exists() else {}
        for name, value in facts.items():
            known[name] = {**(known.get(name) or {}), **value} if isinstance(value, dict) else value
        path = folder / CARD
        old = read_regular(path).decode() if path.exists() else ""
        if old and not old.startswith(START):
            raise ValueError(f"{str(path)!r} is no card of rlsmooth, and is left as it is")
        if "command_line" not in known and (folder / "command.txt").exists():
            known["command_line"] = shareable_command(read_regular(folder / "command.txt").decode())
        report = read_json(folder / "report.json") if (folder / "report.json").exists() else {}
        config = read_json(folder / "config.json") if config is None else config
        text = card_text(config, report, known) + old.partition(MARK)[2]
        write_json(folder / FACTS, known)
        write_bytes_atomically(path, text.encode())
    except Exception as error:  # a card is no reason to lose a run's results
        print(f"No agent card was written: {error}", file=sys.stderr)


def describe_used_data(command: str, args: Any) -> list[dict[str, Any]]:
    """Name, SHA-256 and sizes of the demonstrations, or of the file of samples, that a run was trained on."""
    from rlsmooth.data.shipped import describe_data
    from rlsmooth.scripts.arguments import SHIPPED

    given: Any = getattr(args, "demonstrations", None)
    if given is None and command in ("bc", "bco", "gail", "airl"):
        given = SHIPPED.get(args.env)
    names = [given] if isinstance(given, str) else list(given or ())
    data = getattr(args, "data", None)
    names += [data] if data is not None and Path(data).suffix == ".npz" else []
    found = []
    for name in names:
        try:
            found.append(describe_data(name))
        except Exception:  # a run that was resumed on another machine
            found.append({"name": shareable(name)})
    return found


def shareable(value: Any, name: str = "") -> Any:
    """Settings without the places of this machine: of each path its last part is left.

    Args:
        value: of JSON.
        name: of the setting.

    Examples:
        >>> shareable({"demonstrations": "/home/me/a.npz", "env": "ALE/Pong-v5", "env_kwargs": ["a=/b/c", "n=3"]})
        {'demonstrations': 'a.npz', 'env': 'ALE/Pong-v5', 'env_kwargs': ['a=c', 'n=3']}
        >>> shareable({"eval_env_kwargs": ["a:/b/c"], "env_wrapper": ["m.W:{folder: /b/c}"]})
        {'eval_env_kwargs': ['a:c'], 'env_wrapper': ['m.W:{folder: c}']}
    """
    if isinstance(value, dict):
        return {key: shareable(part, key) for key, part in value.items() if key not in PLACES}
    if isinstance(value, list):
        return [shareable(part, name) for part in value]
    if not isinstance(value, str):
        return value
    found = re.match(r"\w+[=:]\s*", value) if name in PAIRS else None
    head = found[0] if found else ""
    tail = value.removeprefix(head)
    if PLACE.match(tail) or (name not in (*NAMES, *PAIRS, "env_wrapper") and re.search(r"[/\\]", tail)):
        return head + _last(tail)
    return head + INSIDE.sub(lambda place: _last(place[0]), tail)


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def shareable_command(line: str) -> str:
    """A command's line without the options and the parts of paths that mean nothing elsewhere.

    Examples:
        >>> shareable_command("rlsmooth bc --env A-v0 --demonstrations /home/me/a.npz --log-folder /tmp/x --seed 1")
        'rlsmooth bc --env A-v0 --demonstrations a.npz --seed 1'
    """
    kept, option = [], ""
    for word in shlex.split(line):
        if word.startswith("--"):
            option = word.removeprefix("--").removeprefix("no-").replace("-", "_")
        if option not in (*PLACES, *HOW):
            kept.append(word if word.startswith("--") else shareable(word, option))
    return shlex.join(kept)


# ---- the text


def card_text(config: Mapping[str, Any], report: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The card of a run, down to the mark.

    Args:
        config: the run's `config.json`.
        report: its `report.json`; empty: it has none.
        known: the entries of `card.json`: `command_line`, `data`, `evaluations`.
    """
    import yaml  # not needed by commands that only copy a card

    command, settings = str(config["command"]), shareable({**config["arguments"], **config.get("hyperparameters", {})})
    settings = {name: value for name, value in settings.items() if name not in HOW}
    subject = _plain_words(settings.get("env") or settings.get("data") or settings.get("case"))
    task = next((name for name, commands in TASKS.items() if command in commands), "other")
    summary = {name: value for name, value in report.get("summary", {}).items() if "per_second" not in name}
    evaluations: Mapping[str, Any] = known.get("evaluations") or {}
    measured = _joined(summary, evaluations)
    versions = [(name, str(value)) for name, value in config.get("versions", {}).items()]
    seed = f"One training run, of seed {settings['seed']}." if "seed" in settings else "One training run."
    sections = {
        "Command": f"```console\n{_plain_words(known.get('command_line') or f'rlsmooth {command}')}\n```",
        "Data": _data(task, subject, report, known),
        "Settings": f"```yaml\n{yaml.safe_dump(settings, allow_unicode=True)}```",
        "Results": _results(summary, evaluations, settings.get("eval_episodes"), seed),
        "Calibration": _calibration(measured, report, evaluations),
        "Entropy": _table(_named(ENTROPY, measured)) or "Not measured.",
        "Intended use": USES[task].format(subject=subject),
        "Limits": LIMITS.format(seed=seed),
        "Files": FILES,
        "Versions": _table(versions),
    }
    body = "".join(f"\n## {title}\n\n{text.rstrip()}\n" for title, text in sections.items() if text)
    front = {"tags": [task, "label-smoothing", command, subject]}
    front |= _model_index(f"{command}-{subject}", task, subject, summary, evaluations)
    words = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"{START}{words}---\n\n# {subject} by `rlsmooth {command}`\n{body}\n{MARK}"


def _calibration(measured: Mapping[str, Any], report: Mapping[str, Any], evaluations: Mapping[str, Any]) -> str:
    table = _table(_named(CALIBRATION, measured))
    on = [found["on"] for found in evaluations.values() if found.get("on")] or [report.get("measured_on")]
    return table + (f"\nOn {_plain_words(on[-1])}." if on[-1] else "") if table else NOT_MEASURED


def _joined(summary: Mapping[str, Any], evaluations: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers by name: of the run's end, and of the last evaluation on top."""
    columns = [column for found in evaluations.values() for column in reversed(found["columns"].values())]
    return {name: value for part in (summary, *columns) for name, value in part.items()}


def _model_index(
    name: str, task: str, subject: str, summary: Mapping[str, Any], evaluations: Mapping[str, Any]
) -> dict[str, Any]:
    """The results as hubs read them: of evaluations, or where there are none of the run's end."""
    ways = [
        (file, _returned(found["columns"]) | found["columns"].get("demonstrations", {}))
        for file, found in evaluations.items()
    ] or [(subject, summary)]
    results = []
    for dataset, numbers in ways:
        metrics = [
            {"type": metric, "value": _rounded(numbers[metric]), "name": words}
            for metric, words in {**RETURNS, **CALIBRATION}.items()
            if _is_number(numbers.get(metric))
        ]
        if metrics:
            about = {"task": {"type": task, "name": task}, "dataset": {"type": subject, "name": dataset}}
            results.append({**about, "metrics": metrics})
    return {"model-index": [{"name": name, "results": results}]} if results else {}


def _data(task: str, subject: str, report: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    rows = []
    for found in known.get("data", ()):
        sizes = ", ".join(f"{value:,} {name}" for name, value in found.items() if isinstance(value, int))
        rows += [(found["name"], sizes)] + [("SHA-256", f"`{found['sha256']}`")] * ("sha256" in found)
    rows += [(name, str(size)) for name, size in report.get("data", {}).items()]
    rows += [(name, str(report[name])) for name in ("demonstrated", "watched", "expert") if report.get(name)]
    source = shareable(str(report.get("source", "")), "source")
    if not rows and not source:
        source = f"What was met in {subject}." if task.endswith("learning") else f"Drawn as {subject} says."
    return f"{_table(rows)}\n{source}".strip()


def _results(summary: Mapping[str, Any], evaluations: Mapping[str, Any], episodes: Any, seed: str) -> str:
    rows = _return_rows("at the end of training", summary, episodes)
    for name, found in evaluations.items():
        rows += _return_rows(f"{name}, seed {found['seed']}", _returned(found["columns"]), found["episodes"])
    named = {**RETURNS, **CALIBRATION, **ENTROPY}
    rest = [(name, f"{value:.6g}") for name, value in summary.items() if name not in named and _is_number(value)]
    note = f"{seed} Intervals are of the mean over the episodes of this one agent (Student's t, 95 %). {OTHER_SEEDS}"
    return "\n".join([*([_table(rows), note, ""] if rows else [seed, ""]), _table(rest)])


def _returned(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation, by the names that a run's summary has."""
    sampled = {f"{name}_sampled": value for name, value in columns.get("sampled", {}).items()}
    return {**columns.get("deterministic", {}), **sampled}


def _return_rows(where: str, numbers: Mapping[str, Any], episodes: Any) -> Rows:
    """A row for each way of playing: mean, standard deviation, and the interval of the mean."""
    from rlsmooth.audits.intervals import student_quantile

    rows: Rows = []
    for name, words in RETURNS.items():
        spread = numbers.get(name.replace("mean", "std"))
        if not _is_number(numbers.get(name)):
            continue
        mean = float(numbers[name])
        text = f"{mean:.6g}"
        if _is_number(spread) and isinstance(episodes, int) and episodes > 1:
            half = student_quantile(0.95, episodes - 1) * float(spread) / math.sqrt(episodes - 1)
            text += f" ± {spread:.6g} in {episodes} episodes [{mean - half:.6g}, {mean + half:.6g}]"
        rows.append((f"{words}, {where}", text))
    return rows


def _named(names: Mapping[str, str], numbers: Mapping[str, Any]) -> Rows:
    return [(words, f"{numbers[name]:.6g}") for name, words in names.items() if _is_number(numbers.get(name))]


def _table(rows: Rows) -> str:
    lines = [f"| {_plain_words(name)} | {_plain_words(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines, ""]) if rows else ""


def _plain_words(value: Any) -> str:
    """Text that stays within its cell."""
    return re.sub(r"[|\r\n]+", " ", str(value))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
