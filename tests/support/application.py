"""`python app.py` in its own process, for the browser tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lora_studio.workspace.project import Home

ROOT = Path(__file__).parents[2]
START_SECONDS = 60
STOP_SECONDS = 10


@dataclass(frozen=True)
class Running:
    """An application that responds at `url`; its output is in `log`."""

    url: str
    home: Home
    process: subprocess.Popen[bytes]
    log: Path


def start_app(
    folder: Path,
    *arguments: str,
    home: Home | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = START_SECONDS,
) -> Running:
    """Start `python app.py` on a free port; `folder` gets its home and its temporary directory.

    `environment` has variables besides this process' own.
    """
    home = home or Home(folder / "home")
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    port = free_port()
    log = folder / "app.log"
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO_", "SPACE_"))}
    variables |= {"TMPDIR": str(temporary), "LORA_STUDIO_HOME": str(home.path), "PYTHONUNBUFFERED": "1"}
    variables |= environment or {}
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), "--home", str(home.path), *arguments],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/"
    while not _responds(url):
        if process.poll() is not None or time.monotonic() - started > timeout:
            stop_app(process)
            pytest.fail(f"app.py did not start:\n{log.read_text('utf-8', errors='replace')}")
        time.sleep(0.05)
    return Running(url, home, process, log)


def stop_app(process: subprocess.Popen[bytes]) -> None:
    """Stop an application and the workers that it started."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    for child in family:
        child.terminate()
    psutil.wait_procs(family, timeout=STOP_SECONDS)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in family:
        if child.is_running():
            child.kill()


def free_port() -> int:
    """Return a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
