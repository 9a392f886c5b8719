"""Publish an agent, its card and its report in a repository of a hub, through `huggingface_hub` (extra `hub`).

rlsmooth push logs/bc/CartPole-v1_1 me/cartpole-bc
rlsmooth push logs/ppo/CartPole-v1_1/best_agent.zip me/cartpole-ppo --private

The token is that of `HF_TOKEN` or of `hf auth login`; `HF_ENDPOINT` names another hub.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from rlsmooth.scripts.card import CARD, FACTS, START, shareable
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.run_folder import read_json, refuse_several
from rlsmooth.untrusted import read_regular

ABOUT = (CARD, FACTS, "config.json", "report.json")
AGENT = re.compile(r"\w[\w.-]*\.zip")


@dataclasses.dataclass(frozen=True)
class Args:
    """Publish a saved agent of ours: its file, card, report and settings, and nothing else."""

    agent: Annotated[Path, tyro.conf.Positional]
    """A run's folder, of which all agents and networks are published, or one agent's file."""
    repo_id: Annotated[str, tyro.conf.Positional]
    """The repository, as name/repository; it is made if it is not there."""
    private: bool = False
    """Make a repository that only you see."""


def main(args: Args) -> str:
    """Publish, and return the address of the commit.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: the hub can't be reached, or refuses.
        ValueError: there is no agent, no token, or a repository that others see in place of a private one.
    """
    files = published_files(args.agent)
    hub, api = open_hub()
    if hub.get_token() is None:
        raise ValueError("there is no token: set HF_TOKEN, or log in by `hf auth login`.")
    print(f"To be published in {args.repo_id}{' (private)' if args.private else ''}:")
    for name, content in files.items():
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        print(f"  {name:24}{size:>14,} bytes")
    api.create_repo(args.repo_id, private=args.private or None, exist_ok=True)
    if args.private and not api.model_info(args.repo_id).private:
        raise ValueError(f"repo_id={args.repo_id!r} is there and is public: name another, or leave out --private.")
    adds = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
    commit = api.create_commit(args.repo_id, adds, commit_message=f"Publish {', '.join(files)}")
    print(f"published: {commit.commit_url}")
    return str(commit.commit_url)


def open_hub() -> tuple[Any, Any]:
    """The module `huggingface_hub`, and its client of the hub that `HF_ENDPOINT` names.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ImportError('a hub needs huggingface_hub: pip install "rlsmooth[hub]".') from error
    return hub, hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def published_files(path: Path) -> dict[str, Path | bytes]:
    """What is published of a run's folder or of an agent's file, by name: files as they are, or cleaned JSON.

    Raises:
        ValueError: there is no agent of ours.
    """
    from rlsmooth.scripts.loading import is_agent_file  # imports torch

    refuse_several(path)
    folder = path if path.is_dir() else path.parent
    found = sorted(path.glob("*.zip")) if path.is_dir() else [path]
    files: dict[str, Path | bytes] = {file.name: file for file in found if file.is_file() and is_agent_file(file)}
    odd = [file.name for file in found if file.name not in files or not AGENT.fullmatch(file.name)]
    if odd or not files:
        what = f"{', '.join(odd)}: no agent or network of ours" if odd else "no .zip of an agent"
        raise ValueError(f"agent={str(path)!r} has {what}; SB3's zips are pickles, which are not published.")
    card = folder / CARD
    has_card = card.is_file() and read_regular(card).decode().startswith(START)
    is_run = has_card or (folder / "config.json").is_file()  # else what lies beside the agent is not its own
    files |= {name: _cleaned(folder / name) for name in ABOUT if is_run and (folder / name).is_file()}
    links = [name for name in files if (folder / name).is_symlink()]
    if links:  # through which a stranger's folder could publish a file of this machine
        raise ValueError(f"{', '.join(links)} in {str(folder)!r} is a link: put the file itself there.")
    return files


def _cleaned(path: Path) -> bytes:
    """A file's bytes; of settings without the places of this machine."""
    if path.name in (CARD, FACTS):
        return read_regular(path)
    value = read_json(path)
    for part in {"arguments", "settings", "hyperparameters", "source"} & value.keys():
        value[part] = shareable(value[part], part)
    return f"{json.dumps(value, indent=2)}\n".encode()


if __name__ == "__main__":
    sys.exit(run_command("push", Args, main))
