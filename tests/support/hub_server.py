"""A local server that speaks as much of the Hub's protocol as a download needs, and fails where a test wants it to."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "c" * 40
LARGE_SUFFIX = ".safetensors"  # files that are in LFS


@dataclass
class HubServer:
    """Repositories by name, each with the contents of its files by path.

    `gated` names repositories that ask for terms to be accepted. After `cut_after` bytes of large files the server
    breaks every connection, until it is None. `bytes_per_second` slows them down. `ranges` collects the first byte of
    every request for a large file; `received` are the bytes of these that were sent.
    """

    repos: dict[str, dict[str, bytes]]
    url: str = ""
    gated: set[str] = field(default_factory=set)
    cut_after: int | None = None
    bytes_per_second: float | None = None
    ranges: list[int] = field(default_factory=list)
    sent: int = 0

    @classmethod
    def of_folders(cls, **folders: Path) -> HubServer:
        """Return a server with the files of folders; `a__b` is the repository a/b."""
        return cls(
            {
                name.replace("__", "/"): {
                    path.relative_to(folder).as_posix(): path.read_bytes()
                    for path in sorted(folder.rglob("*"))
                    if path.is_file()
                }
                for name, folder in folders.items()
            }
        )

    def listing(self, repo: str) -> list[dict[str, object]]:
        """Return the files of a repository as the Hub lists them in a tree."""
        found = []
        for path, content in self.repos[repo].items():
            entry: dict[str, object] = {"type": "file", "path": path, "oid": _git_id(content), "size": len(content)}
            if path.endswith(LARGE_SUFFIX):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            found.append(entry)
        return found

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        """Serve in a thread."""
        with serve_in_thread(_handler(self)) as self.url:
            yield self

    def use_here(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Let huggingface_hub of this process use this server, with an empty cache."""
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the environment variables that let another process use this server."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def serve_in_thread(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests on a free port in a thread; the value is the server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            is_api = parts[:2] == ["api", "models"]
            repo = "/".join(parts[2:4] if is_api else parts[:2])
            if repo not in hub.repos:
                self.refuse(404, "RepoNotFound")
            elif is_api and parts[4:5] == ["tree"]:
                self.send_json(hub.listing(repo))
            elif is_api:
                self.send_json(_model_info(hub, repo))
            elif repo in hub.gated:
                self.refuse(403, "GatedRepo")
            elif (path := "/".join(parts[4:])) in hub.repos[repo]:
                self.send_file(hub.repos[repo][path], path, with_body=with_body)
            else:
                self.refuse(404, "EntryNotFound")

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, content: bytes, path: str, *, with_body: bool) -> None:
            is_large = path.endswith(LARGE_SUFFIX)
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if self.headers.get("Range") else 200)
            etag = hashlib.sha256(content).hexdigest() if is_large else _git_id(content)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content) - first))
            if self.headers.get("Range"):
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if with_body and is_large:
                hub.ranges.append(first)
                self.send_large(content[first:])
            elif with_body:
                self.wfile.write(content)

        def send_large(self, content: bytes) -> None:
            block = 1 << 14
            for start in range(0, len(content), block):
                if hub.cut_after is not None and hub.sent >= hub.cut_after:
                    self.close_connection = True
                    return
                part = content[start : start + block]
                try:
                    self.wfile.write(part)
                except OSError:
                    self.close_connection = True
                    return
                hub.sent += len(part)
                if hub.bytes_per_second:
                    time.sleep(len(part) / hub.bytes_per_second)

    return Handler


def _model_info(hub: HubServer, repo: str) -> dict[str, object]:
    siblings = []
    for entry in hub.listing(repo):
        sibling: dict[str, object] = {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
        if isinstance(lfs := entry.get("lfs"), dict):
            sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        siblings.append(sibling)
    return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
