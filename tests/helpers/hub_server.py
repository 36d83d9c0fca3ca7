"""A hub on loopback: repositories in memory, behind the requests to the Hugging Face hub of our tests."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from diffusers.loaders import lora_base
from huggingface_hub import constants, hf_api

TOKEN = "hf_canary4d1b7e"


@dataclass
class Hub:
    """The state of the server."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of each repository, by path."""
    private: set[str] = field(default_factory=set)

    def commit(self, name: str) -> str:
        """Commit of a repository's present files."""
        files = self.repositories[name]
        return hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    """Replies to one request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def _reply(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self._has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            self._reply(200, {"errors": [], "warnings": []})
        elif self.command == "POST" and not self._has_token:
            self._reply(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.startswith("/api/models/"):
            owner, repository, *rest = path.removeprefix("/api/models/").split("/")
            self._api(f"{owner}/{repository}", rest[0] if rest else "info", body)
        else:
            owner, repository, _, _, file = path[1:].split("/", 4)
            self._file(f"{owner}/{repository}", file)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        about = {"url": f"{self.hub.address}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            self._reply(409, about | {"error": "You already created this model repo"})
            return
        self.hub.repositories[name] = {}
        if wanted.get("visibility") == "private":
            self.hub.private.add(name)
        self._reply(200, about)

    def _api(self, name: str, action: str, body: bytes) -> None:
        if not self._is_visible(name):
            return
        files = self.hub.repositories[name]
        if action == "preupload":
            wanted = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in wanted]
            self._reply(200, {"files": modes})
        elif action == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            added = [line["value"] for line in lines if line["key"] == "file"]
            files.update({each["path"]: base64.b64decode(each["content"]) for each in added})
            url = f"{self.hub.address}/{name}/commit/{self.hub.commit(name)}"
            self._reply(200, {"success": True, "commitOid": self.hub.commit(name), "commitUrl": url})
        elif action == "tree":
            self._reply(200, [_entry(file, content) for file, content in files.items()])
        else:  # info of the repository, or of a revision
            about = {"_id": "1", "id": name, "modelId": name, "sha": self.hub.commit(name), "private": False}
            self._reply(200, about | {"siblings": [{"rfilename": file} for file in files], "tags": []})

    def _file(self, name: str, file: str) -> None:
        if not self._is_visible(name):
            return
        content = self.hub.repositories[name].get(file)
        if content is None:
            self._reply(404, b"Entry not found", X_Error_Code="EntryNotFound")
            return
        self._reply(200, content, ETag=f'"{_oid(content)}"', X_Repo_Commit=self.hub.commit(name))

    def _is_visible(self, name: str) -> bool:
        if name in self.hub.repositories and (self._has_token or name not in self.hub.private):
            return True
        self._reply(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return False

    do_GET = do_POST = do_HEAD = _handle  # noqa: N815  http.server's names

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing to the tests' output."""


def _entry(file: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": file, "size": len(content), "oid": _oid(content)}


def _oid(content: bytes) -> str:
    """Name of a file's content in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty hub on a free port of loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub_of_this_process(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Serve an empty hub, and make it the one of this process's client, with a token and this cache."""
    with hub_server() as started:
        for name, value in {
            "ENDPOINT": started.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": started.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(cache),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", started.address)  # of functions such as model_info
        monkeypatch.setattr(lora_base, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield started
    huggingface_hub.close_session()
