"""A small stand-in for the Hugging Face hub: repositories with branches of commits, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """``commits``: sha -> file -> content; ``branches``: (repository, branch) -> sha; ``asked``: every request so far."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        content = self.commits.get(self.branches.get((repo, branch), ""), {}) | files
        sha = hashlib.sha1(repr((repo, branch, len(self.commits))).encode()).hexdigest()
        self.commits[sha], self.branches[repo, branch] = content, sha
        return sha


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None: ...

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def say(self, content: Any, status: int = 200) -> None:
        self.answer(json.dumps(content).encode(), status, Content_Type="application/json")

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = unquote(self.path.partition("?")[0])
        if found := re.fullmatch(r"/api/models/(\w+/[\w-]+)/revision/(.+)", path):
            sha = self.server.branches.get((found[1], found[2]), found[2])
            if sha not in self.server.commits:
                missing = {"X_Error_Code": "RevisionNotFound", "X_Error_Message": f"no {found[2]}"}
                return self.answer(b"{}", 404, **missing)
            return self.say({"id": found[1], "modelId": found[1], "sha": sha, "tags": [], "private": False})
        if found := re.fullmatch(r"/api/models/\w+/[\w-]+/tree/(\w+)", path):
            files = self.server.commits[found[1]].items()
            return self.say([{"type": "file", "path": name, "size": len(text), "oid": name} for name, text in files])
        if found := re.fullmatch(r"/\w+/[\w-]+/resolve/(\w+)/(.+)", path):
            content = self.server.commits[found[1]][found[2]]
            return self.answer(content, X_Repo_Commit=found[1], ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        return self.say({"error": f"no {path}"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        text = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = unquote(self.path.partition("?")[0])
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.say({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(text)
            return self.say({"url": f"{self.server.url}/{asked['organization']}/{asked['name']}"})
        if path == "/api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if re.fullmatch(r"/api/models/.+/branch/.+", path):
            return self.say({})
        if re.fullmatch(r"/api/models/.+/preupload/.+", path):
            names = [file["path"] for file in json.loads(text)["files"]]
            return self.say({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        found = re.fullmatch(r"/api/models/(\w+/[\w-]+)/commit/(.+)", path)
        assert found, path
        lines = [json.loads(line) for line in text.splitlines() if line]
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
        sha = self.server.commit(found[1], found[2], files)
        return self.say({"commitUrl": f"{self.server.url}/{found[1]}/commit/{sha}", "commitOid": sha, "success": True})


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
