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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from lora_studio.events import Event
from lora_studio.remote.outputs import OutputFile, OutputList
from tests.support.hub_server import serve_in_thread

COMMIT = "e" * 40
TERMINAL = ("COMPLETED", "CANCELED", "ERROR")


def _hardware(name: str, title: str, cents: int, model: str = "", vram: str = "", count: int = 1) -> dict[str, Any]:
    """Return a kind of machine as the service lists it; `cents` is its price per hour."""
    gpu = {"type": "gpu", "model": model, "quantity": str(count), "vram": vram, "manufacturer": "Nvidia"}
    price = {"unitCostMicroUSD": round(cents * 1e4 / 60), "unitCostUSD": cents / 6000, "unitLabel": "minute"}
    machine = {"name": name, "prettyName": title, "cpu": "12 vCPU", "ram": "46 GB"}
    return {**machine, **price, "accelerator": gpu if model else None}


HARDWARE = [
    _hardware("cpu-basic", "CPU Basic", 1),
    _hardware("t4-small", "Nvidia T4 - small", 60, "T4", "16 GB"),
    _hardware("a10g-large", "Nvidia A10G - large", 150, "A10G", "24 GB"),
    _hardware("a10g-largex2", "2x Nvidia A10G - large", 300, "A10G", "48 GB", 2),
    _hardware("a100-large", "Nvidia A100 - large", 250, "A100", "80 GB"),
]
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
    running_seconds: int | None = None
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    @property
    def repo(self) -> str:
        """The repository with the inputs and outputs of the job."""
        return str(self.spec["command"][-1])

    def print_event(self, event: Event) -> None:
        """Add an event to the log, as the studio in the job prints it."""
        number = sum('"n":' in line for line in self.lines) + 1
        self.lines.append(json.dumps(event.record() | {"n": number}))


@dataclass
class HfJobsServer:
    """Repositories and jobs of the user `ann`.

    `script` replaces the command of a job; without one, and with `executes`, the command runs in a process. `refuse` is
    the status of the answer to the start of a job, `refuse_repo` to the creation of a repository. `failures` is how
    many requests for a job or its log are answered with 503, `cuts` how many log streams break after their first line,
    `cut_downloads` how many downloads of outputs break in the middle.
    """

    folder: Path
    token: str = "hf_secretsecretsecret"
    role: str = "write"
    url: str = ""
    refuse: int | None = None
    refuse_repo: int | None = None
    executes: bool = True
    script: Callable[[HfJobsServer, Job], None] | None = None
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    failures: int = 0
    cuts: int = 0
    cut_downloads: int = 0

    def use_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let huggingface_hub of this process use this server, with its token."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", self.token)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that let another process use this server, with its token."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": self.token}

    def upload_outputs(self, job: Job, files: Mapping[str, bytes], result: dict[str, object] | None = None) -> None:
        """Put files of a run into the repository of a job, as the studio in the job does."""
        listed = [OutputFile(path=path, size=len(item), sha256=_digest(item)) for path, item in files.items()]
        content = OutputList(files=listed, result=result).model_dump_json().encode()
        stored = self.repos.setdefault(job.repo, {})
        stored.update({f"outputs/{path}": item for path, item in files.items()} | {"outputs/outputs.json": content})

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
        if self.script is not None:
            self.script(self, job)
            return
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
            "durations": {"runningSecs": job.running_seconds},
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
                access = {"role": hub.role, "displayName": "studio"}
                self.respond(200, {"name": "ann", "type": "user", "auth": {"accessToken": access}})
            elif parts == ["api", "jobs", "hardware"]:
                self.respond(200, HARDWARE)
            elif parts[:2] == ["api", "jobs"] and len(parts) == 3:
                wanted = unquote(urlsplit(self.path).query)
                found = [
                    hub.info(job)
                    for job in hub.jobs.values()
                    if all(f"{k}={v}" in wanted for k, v in job.spec["labels"].items() if k != "name")
                ]
                self.respond(200, found)
            elif parts[:2] == ["api", "jobs"] and hub.failures:
                hub.failures -= 1
                self.respond(503, {"error": "Service unavailable"})
            elif parts[:2] == ["api", "jobs"] and parts[4:] == ["logs"]:
                self.stream(hub.jobs[parts[3]])
            elif parts[:2] == ["api", "jobs"]:
                self.respond(200, hub.info(hub.jobs[parts[3]]))
            elif parts[:2] == ["api", "datasets"] and "/".join(parts[2:4]) not in hub.repos:
                self.respond(404, {"error": "Repository not found"})
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
                self.send_header("ETag", f'"{_digest(content)}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if content is not None and self.command == "GET":
                if hub.cut_downloads and path.startswith("outputs/") and not path.endswith("outputs.json"):
                    hub.cut_downloads -= 1
                    self.close_connection = True
                    content = content[: len(content) // 2]
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
            if path == "/api/repos/create" and hub.refuse_repo:
                self.respond(hub.refuse_repo, {"error": "You don't have the rights to create a dataset"})
            elif path == "/api/repos/create":
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".png", ".webp", ".whl")) else "regular"
