"""`rlsmooth push` and `pull` against a hub on this machine that talks to the hubs' own client."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from commands import assert_refused
from rlsmooth.scripts.card import write_card
from rlsmooth.scripts.figures.kinds import load_reports
from rlsmooth.scripts.main import main

pytest.importorskip("huggingface_hub", minversion="1.0")
FROZEN = next(folder / "frozen" for folder in Path(__file__).parents if (folder / "frozen").is_dir())
SHA = "0123456789" * 4
PLACE = "/home/jane/x.npz"


class Hub(BaseHTTPRequestHandler):
    """One repository: its files, and what the client asked for."""

    files: dict[str, bytes]
    asked: list[tuple[str, str, str | None]]
    private: bool

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def answer(self, value: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, body.decode(), self.headers.get("Authorization")))
        address = f"http://{self.headers['Host']}/me/agent"
        if self.path == "/api/repos/create":
            self.answer({"url": address})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        else:
            assert self.path == "/api/models/me/agent/commit/main"
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{address}/commit/{SHA}", "commitOid": SHA})

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append((self.path, "", self.headers.get("Authorization")))
        if path.startswith("/api/models/me/agent"):
            files = [{"rfilename": name, "size": len(raw)} for name, raw in self.files.items()]
            self.answer({"id": "me/agent", "sha": SHA, "private": self.private, "siblings": files})
        elif path.startswith(f"/me/agent/resolve/{SHA}/"):
            raw = self.files[path.rpartition(f"{SHA}/")[2]]
            self.answer(raw, {"ETag": f'"{hashlib.sha1(raw).hexdigest()}"', "X-Repo-Commit": SHA})
        else:
            self.answer({"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET  # noqa: N815  the name is the library's


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    class Own(Hub):
        files, asked, private = {}, [], False

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield Own
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a BC run that was made with files of Jane's."""
    folder = Path(shutil.copytree(FROZEN / "reports" / "bc", tmp_path / "run"))
    shutil.copy(FROZEN / "files" / "bc_masks" / "agent.zip", folder)
    (folder / "events.out.tfevents.1").write_bytes(b"x")
    (folder / "checkpoints").mkdir()
    shutil.copy(FROZEN / "files" / "bc_masks" / "agent.zip", folder / "checkpoints" / "checkpoint_1.zip")
    for name, part in (("config.json", "arguments"), ("report.json", "settings")):
        value = json.loads((folder / name).read_text())
        value[part] |= {"demonstrations": PLACE, "log_folder": "/home/jane/logs"}
        (folder / name).write_text(json.dumps(value))
    write_card(folder, command_line="rlsmooth bc")
    return folder


def test_what_was_pushed_is_pulled(run: Path, hub: type[Hub], tmp_path: Path, capsys: Any) -> None:
    assert main(["push", str(run), "me/agent"]) == 0
    listed, _, done = capsys.readouterr().out.partition("published:")
    assert "me/agent/commit" in done
    assert set(hub.files) == {"agent.zip", "README.md", "card.json", "config.json", "report.json"}
    for name, raw in hub.files.items():
        assert f"  {name:24}{len(raw):>14,} bytes" in listed
        assert b"jane" not in raw
    assert {token for _, _, token in hub.asked if token} == {"Bearer secret"}
    hub.files |= {"evil.py": b"", "sub/agent.zip": b"", "../up.zip": b"", ".hidden.zip": b"", "weights.pkl": b""}
    folder = tmp_path / "new" / "agent"
    folder.parent.mkdir()
    assert main(["pull", "me/agent", str(folder), "--revision", "v1"]) == 0
    assert "/api/models/me/agent/revision/v1?blobs=true" in [path for path, _, _ in hub.asked]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: raw for name, raw in hub.files.items() if name in (*PUBLISHED, "agent.zip")
    }
    assert list(folder.parent.iterdir()) == [folder]
    assert "left out: 5 of other kinds" in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["arguments"]["demonstrations"] == "x.npz"
    assert load_reports([folder])[0].summary == load_reports([run])[0].summary
    assert main(["pull", "me/agent", str(folder)]) == 2
    assert "holds something already" in capsys.readouterr().err


PUBLISHED = ("README.md", "card.json", "config.json", "report.json")


def test_one_agent_is_pushed_with_its_card(run: Path, hub: type[Hub]) -> None:
    shutil.copy(run / "agent.zip", run / "best_agent.zip")
    assert main(["push", str(run / "best_agent.zip"), "me/agent"]) == 0
    assert set(hub.files) == {"best_agent.zip", *PUBLISHED}
    hub.files.clear()
    for name in PUBLISHED:
        (run / name).unlink()
    (run / "README.md").write_text("# Somebody else's")
    assert main(["push", str(run / "best_agent.zip"), "me/agent"]) == 0
    assert set(hub.files) == {"best_agent.zip"}


def test_nothing_is_published_where_others_see_it_against_the_wish(run: Path, hub: type[Hub], capsys: Any) -> None:
    assert main(["push", str(run), "me/agent", "--private"]) == 2
    assert "is there and is public" in capsys.readouterr().err
    assert not hub.files
    hub.private = True
    assert main(["push", str(run), "me/agent", "--private"]) == 0
    assert [json.loads(body)["visibility"] for path, body, _ in hub.asked if path.endswith("create")] == ["private"] * 2


def test_what_can_not_be_pushed_or_pulled_is_one_clear_line(
    run: Path, hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "pickled.zip").write_bytes(b"PK")
    for words, message in (
        (["push", str(tmp_path), "me/agent"], "pickled.zip: no agent or network of ours"),
        (["push", str(run / "checkpoints" / "none"), "me/agent"], "none: no agent or network of ours"),
        (["pull", "me/agent", str(tmp_path / "new")], "has no agent of rlsmooth: it has no files"),
        (["pull", "me/other", str(tmp_path / "new")], "404"),
        (["pull", "me/agent", str(run / "config.json")], "holds something already"),
        (["push", str(run), "no/such/name"], "no/such/name"),
    ):
        assert_refused(message, words, capsys)
    (run / "card.json").rename(tmp_path / "private.json")
    (run / "card.json").symlink_to(tmp_path / "private.json")
    assert_refused("card.json in", ["push", str(run), "me/agent"], capsys)
    (run / "card.json").unlink()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert_refused("set HF_TOKEN", ["push", str(run), "me/agent"], capsys)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_refused('pip install "rlsmooth[hub]"', ["push", str(run), "me/agent"], capsys)
    assert not hub.files
