"""A local server with the Hub's dataset repositories and Hugging Face Jobs, which runs the command of a job here."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.hub_server import serve_in_thread

COMMIT = "e" * 40
TERMINAL = ("COMPLETED", "CANCELED", "ERROR")
# Installs the wheel without a network, on top of this environment's libraries, and runs python from there.
UV = """#!{python}
import os, subprocess, sys
given = sys.argv[1:]
assert given[0] == "run", given
command = given[given.index("python") + 1 :]
environment = dict(os.environ)
wheels = [word for word in given if word.endswith(".whl")]
if wheels:
    target = os.path.join(os.getcwd(), "installed")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, *wheels]
    subprocess.run(install, check=True)
    environment["PYTHONPATH"] = target
sys.exit(subprocess.run([sys.executable, *command], env=environment).returncode)
"""


@dataclass
class Job:
    """A job: the body of the request that started it, its log and its stage."""

    id: str
    spec: dict[str, Any]
    stage: str = "RUNNING"
    message: str | None = None
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None


@dataclass
class HfJobsServer:
    """Repositories and jobs of the user `ann`. `script` replaces the run of a job; `refuse` is the status of starts."""

    folder: Path
    token: str = "hf_secretsecretsecret"
    url: str = ""
    refuse: int | None = None
    executes: bool = True
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    cuts: int = 0  # log streams that break after their first line

    @contextmanager
    def running(self) -> Iterator[HfJobsServer]:
        """Serve in a thread; ends the processes of jobs."""
        (self.folder / "bin").mkdir(parents=True)
        (self.folder / "bin" / "uv").write_text(UV.replace("{python}", sys.executable), "utf-8")
        (self.folder / "bin" / "uv").chmod(0o755)
        with serve_in_thread(_handler(self)) as self.url:
            try:
                yield self
            finally:
                for job in self.jobs.values():
                    if job.process is not None and job.process.poll() is None:
                        job.process.kill()

    def start(self, spec: dict[str, Any]) -> Job:
        """Start a job."""
        job = Job(f"{len(self.jobs):024x}", spec)
        self.jobs[job.id] = job
        if self.executes:
            threading.Thread(target=self._run, args=(job,), daemon=True).start()
        return job

    def _run(self, job: Job) -> None:
        work = self.folder / job.id
        work.mkdir()
        kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")}
        environment = kept | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(work / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
        }
        job.process = subprocess.Popen(
            job.spec["command"],
            cwd=work,
            env=environment | job.spec["environment"] | job.spec["secrets"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert job.process.stdout is not None
        for line in job.process.stdout:
            job.lines.append(line.rstrip("\n"))
        status = job.process.wait()
        if job.stage == "RUNNING":
            job.stage = "ERROR" if status else "COMPLETED"

    def info(self, job: Job) -> dict[str, Any]:
        """Return a job as the service describes it."""
        return {
            "id": job.id,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "owner": {"id": "1", "name": "ann", "type": "user"},
            "status": {"stage": job.stage, "message": job.message},
            "flavor": job.spec["flavor"],
            "command": job.spec["command"],
            "labels": job.spec.get("labels"),
        }


def _handler(hub: HfJobsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            hub.objects[self.path.rpartition("/")[2]] = self.body()
            self.respond(200, {})

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def allowed(self) -> bool:
            if self.headers.get("Authorization") == f"Bearer {hub.token}":
                return True
            self.respond(401, {"error": "Invalid username or password."})
            return False

        def do_GET(self) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if not self.allowed():
                return
            if parts[:2] == ["api", "whoami-v2"]:
                self.respond(200, {"name": "ann", "type": "user"})
            elif parts == ["api", "jobs", "hardware"]:
                gpu = {"type": "gpu", "model": "A10G", "quantity": "1", "vram": "24 GB", "manufacturer": "Nvidia"}
                price = {"unitCostMicroUSD": 25000, "unitCostUSD": 0.025, "unitLabel": "minute"}
                large = {"name": "a10g-large", "prettyName": "Nvidia A10G - large", "cpu": "12 vCPU", "ram": "46 GB"}
                self.respond(200, [{**large, **price, "accelerator": gpu}])
            elif parts[:2] == ["api", "jobs"] and len(parts) == 3:
                wanted = unquote(urlsplit(self.path).query)
                found = [
                    hub.info(job)
                    for job in hub.jobs.values()
                    if all(f"{k}={v}" in wanted for k, v in job.spec["labels"].items() if k != "name")
                ]
                self.respond(200, found)
            elif parts[:2] == ["api", "jobs"] and parts[4:] == ["logs"]:
                self.stream(hub.jobs[parts[3]])
            elif parts[:2] == ["api", "jobs"]:
                self.respond(200, hub.info(hub.jobs[parts[3]]))
            elif parts[:2] == ["api", "datasets"]:
                repo = "/".join(parts[2:4])
                siblings = [{"rfilename": name} for name in hub.repos[repo]]
                tree = [
                    {"type": "file", "path": name, "oid": "1" * 40, "size": len(content)}
                    for name, content in hub.repos[repo].items()
                ]
                listing = tree if parts[4:5] == ["tree"] else {"id": repo, "sha": COMMIT, "siblings": siblings}
                self.respond(200, listing)
            else:
                self.send_file("/".join(parts[1:3]), "/".join(parts[5:]))

        def send_file(self, repo: str, path: str) -> None:
            content = hub.repos.get(repo, {}).get(path)
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if content is not None and self.command == "GET":
                self.wfile.write(content)

        def stream(self, job: Job) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.close_connection = True
            sent = 0
            while True:
                ended = job.stage in TERMINAL
                for line in job.lines[sent:]:
                    value = json.dumps({"data": line, "timestamp": "2026-01-01T00:00:00.000Z"})
                    self.wfile.write(f"data: {value}\n\n".encode())
                    sent += 1
                    if hub.cuts:
                        hub.cuts -= 1
                        return
                self.wfile.flush()
                if ended and sent == len(job.lines):
                    return
                time.sleep(0.05)

        def do_POST(self) -> None:
            body, path = self.body(), urlsplit(self.path).path
            parts = path.strip("/").split("/")
            if not self.allowed():
                return
            if path == "/api/repos/create":
                values = json.loads(body)
                repo = f"{values.get('organization') or 'ann'}/{values['name']}"
                hub.repos.setdefault(repo, {})
                if values.get("private") or values.get("visibility") == "private":
                    hub.private.add(repo)
                self.respond(200, {"url": f"{hub.url}/datasets/{repo}"})
            elif path == "/api/validate-yaml":
                self.respond(200, {"errors": [], "warnings": []})
            elif "/preupload/" in path:
                modes = [
                    {"path": item["path"], "uploadMode": _mode(item["path"]), "shouldIgnore": False}
                    for item in json.loads(body)["files"]
                ]
                self.respond(200, {"files": modes})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**entry, "actions": {"upload": {"href": f"{hub.url}/objects/{entry['oid']}"}}}
                    for entry in json.loads(body)["objects"]
                ]
                self.respond(200, {"transfer": "basic", "objects": objects})
            elif "/commit/" in path:
                self.commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines() if line.strip()])
            elif parts[:2] == ["api", "jobs"] and parts[4:] == ["cancel"]:
                job = hub.jobs[parts[3]]
                job.stage = "CANCELED"
                if job.process is not None:
                    job.process.kill()
                self.respond(200, {})
            elif parts[:2] == ["api", "jobs"] and hub.refuse:
                self.respond(hub.refuse, {"error": "Payment required to use jobs"})
            elif parts[:2] == ["api", "jobs"]:
                self.respond(200, hub.info(hub.start(json.loads(body))))
            else:
                self.respond(404, {"error": f"{path} is unknown"})

        def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.repos[repo][value["path"]] = hub.objects[value["oid"]]
            self.respond(200, {"commitUrl": f"{hub.url}/datasets/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

        def respond(self, status: int, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".png", ".webp", ".whl")) else "regular"
