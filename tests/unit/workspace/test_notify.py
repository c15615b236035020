"""Notifications of jobs that have ended: the command and the webhook of notify.toml."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lora_studio.workspace.notify import EndedJob, notify

WRITE = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open('seen.json', 'w'))"


@pytest.fixture
def job(tmp_path: Path) -> EndedJob:
    return EndedJob("001-ink; rm -rf", "done", tmp_path, seconds=600)


def settings(folder: Path, text: str) -> Path:
    file = folder / "notify.toml"
    file.write_text(text, "utf-8")
    return file


def test_the_command_runs_without_a_shell_or_secrets(job: EndedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    command = json.dumps([sys.executable, "-c", WRITE, "{run}: {status}"])
    assert notify(settings(job.path, f"command = {command}"), job) == []
    arguments, environment = json.loads((job.path / "seen.json").read_text("utf-8"))
    assert arguments == ["001-ink; rm -rf: done"]
    assert environment["LORA_STUDIO_RUN"] == job.run
    assert environment["LORA_STUDIO_PATH"] == str(job.path)
    assert "HF_TOKEN" not in environment


def test_short_jobs_and_a_home_without_settings_notify_no_one(job: EndedJob) -> None:
    assert notify(job.path / "missing.toml", job) == []
    file = settings(job.path, 'command = ["/nonexistent"]\nmin_minutes = 11')
    assert notify(file, job) == []


@pytest.mark.parametrize(
    "text",
    ['command = ["/nonexistent"]', "command = 3", "broken", 'url = "file:///etc/passwd"', 'url = "http://127.0.0.1:9"'],
)
def test_what_fails_is_returned(job: EndedJob, text: str) -> None:
    [problem] = notify(settings(job.path, text), job)
    assert "notify.toml" in problem


def test_the_exit_status_of_a_failed_command_is_returned(job: EndedJob) -> None:
    command = json.dumps([sys.executable, "-c", "import sys; sys.exit('no display')"])
    [problem] = notify(settings(job.path, f"command = {command}"), job)
    assert "exit status 1" in problem
    assert "no display" in problem


@pytest.fixture
def hook() -> Iterator[tuple[str, list[bytes]]]:
    """A webhook: its URL, and the bodies that it received."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_webhook_gets_name_status_and_path(job: EndedJob, hook: tuple[str, list[bytes]]) -> None:
    url, received = hook
    assert notify(settings(job.path, f'url = "{url}"'), job) == []
    assert [json.loads(body) for body in received] == [{"run": job.run, "status": "done", "path": str(job.path)}]
