"""A local server that accepts uploads as the Hub does: repositories, LFS objects and commits, for one token."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.support.hub_server import serve_in_thread

COMMIT = "d" * 40
LARGE_SUFFIXES = (".safetensors", ".png")  # files that are uploaded as LFS objects


@dataclass
class HubUploads:
    """Repositories of the user `owner` by name, with the files of their last commit; `private` names the hidden ones.

    Requests need `token`. With `refuse`, commits are answered with that status.
    """

    token: str = "hf_secret"
    owner: str = "ann"
    url: str = ""
    refuse: int | None = None
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[HubUploads]:
        """Serve in a thread."""
        with serve_in_thread(_handler(self)) as self.url:
            yield self

    def create(self, values: dict[str, Any]) -> tuple[int, object]:
        """Create a repository of the owner; 409 if it exists, 403 for another user's."""
        owner = values.get("organization") or self.owner
        repo = f"{owner}/{values['name']}"
        if owner != self.owner:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.repos[repo] = {}
        if values.get("private") or values.get("visibility") == "private":
            self.private.add(repo)
        return 200, {"url": f"{self.url}/{repo}"}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, object]:
        """Apply a commit: small files are in it, large ones refer to objects that were uploaded before."""
        if self.refuse:
            return self.refuse, {"error": "refused"}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.objects[value["oid"]]
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}


def _handler(hub: HubUploads) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_PUT(self) -> None:
            hub.objects[self.path.rpartition("/")[2]] = self.body()
            self.respond(200, {})

        def do_GET(self) -> None:
            repo = "/".join(urlsplit(self.path).path.split("/")[3:5])
            known = {"id": repo, "sha": COMMIT, "siblings": []}
            self.respond(*((200, known) if repo in hub.repos else (404, {"error": "Repository not found"})))

        def do_POST(self) -> None:
            body, path = self.body(), urlsplit(self.path).path
            if path == "/api/validate-yaml":
                self.respond(200, {"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.respond(401, {"error": "Invalid username or password."})
            elif path == "/api/repos/create":
                self.respond(*hub.create(json.loads(body)))
            elif "/preupload/" in path:
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.respond(200, {"files": modes})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**entry, "actions": {"upload": {"href": f"{hub.url}/objects/{entry['oid']}"}}}
                    for entry in json.loads(body)["objects"]
                ]
                self.respond(200, {"transfer": "basic", "objects": objects})
            elif "/commit/" in path:
                repo = "/".join(path.split("/")[3:5])
                self.respond(*hub.commit(repo, [json.loads(line) for line in body.splitlines() if line.strip()]))
            else:
                self.respond(404, {"error": f"{path} is unknown"})

        def respond(self, status: int, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler
