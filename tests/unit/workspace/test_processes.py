"""A detached process gets its environment and log, and is independent of the one that starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lora_studio.workspace.processes import creation_flags, start_detached

SHOW = "import json, os; print(json.dumps([os.getcwd(), os.environ.get('SHOWN'), os.environ.get('HIDDEN')]))"


def test_a_process_gets_its_folder_and_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN", "secret")
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = start_detached([sys.executable, "-c", SHOW], file, tmp_path, {"SHOWN": "yes"})
    assert process.wait(60) == 0
    assert json.loads(log.read_bytes()) == [str(tmp_path), "yes", None]


def test_a_worker_on_windows_has_a_console_of_its_own() -> None:
    """Else Windows ends it when the console of the app is closed, and sends it the app's Ctrl+C."""
    assert creation_flags("win32") == 0x08000200
    assert creation_flags("linux") == creation_flags("darwin") == 0
