"""Fetch an agent that `rlsmooth push` has published, with its card and report, into a new folder.

rlsmooth pull me/cartpole-bc agents/cartpole
rlsmooth evaluate -i agents/cartpole

Only files of the kinds that `push` writes are fetched, and none is opened.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from rlsmooth.checks import check_writable_folder
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.push import ABOUT, AGENT, open_hub


@dataclasses.dataclass(frozen=True)
class Args:
    """Fetch an agent from a repository of a hub."""

    repo_id: Annotated[str, tyro.conf.Positional]
    """The repository, as name/repository."""
    folder: Annotated[Path, tyro.conf.Positional]
    """Where its files go: a folder that is empty, or not there yet."""
    revision: str | None = None
    """The branch, tag or commit. Default: the newest commit."""


def main(args: Args) -> Path:
    """Fetch, and return the folder.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: the hub can't be reached, or refuses.
        ValueError: the folder is not empty or can't be written to, or there is no agent in the repository.
    """
    folder = args.folder.expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder={str(args.folder)!r} holds something already: name a new one.")
    _, api = open_hub()
    found = api.model_info(args.repo_id, revision=args.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in found.siblings}
    wanted = {name: size for name, size in sizes.items() if name in ABOUT or AGENT.fullmatch(name)}
    if not any(AGENT.fullmatch(name) for name in wanted):
        has = ", ".join(sizes) or "no files"
        raise ValueError(f"repo_id={args.repo_id!r} has no agent of rlsmooth: it has {has}.")
    for name, size in wanted.items():
        print(f"  {name:24}{size:>14,} bytes")
    if len(sizes) > len(wanted):
        print(f"left out: {len(sizes) - len(wanted)} of other kinds")
    parent = check_writable_folder("folder", folder.parent)
    total = sum(wanted.values())
    if total > shutil.disk_usage(parent).free:
        raise ValueError(f"folder={str(args.folder)!r} has no place for {total:,} bytes: name another disk.")
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        for name in wanted:
            file = api.hf_hub_download(args.repo_id, name, revision=found.sha, local_dir=Path(temporary) / "fetched")
            shutil.move(file, whole / name)
        if folder.exists():
            folder.rmdir()
        whole.rename(folder)
    print(f"fetched {args.repo_id} at {found.sha} into {folder}. Play it: rlsmooth evaluate -i {folder}")
    return folder


if __name__ == "__main__":
    sys.exit(run_command("pull", Args, main))
