"""`release` writes a folder to share, and uploads it if asked to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from lora_studio.cli import release as command
from lora_studio.cli.main import app
from lora_studio.sharing.upload import upload_release
from lora_studio.workspace.project import Home
from tests.support.hub_uploads import HubUploads
from tests.support.jobs import make_project, make_run


def test_release_prints_the_folder_and_what_is_in_it(tmp_path: Path) -> None:
    run = make_run(make_project(Home(tmp_path / "home")))
    done = CliRunner().invoke(app, ["release", str(run.path), "--name", "Ink stamp", "--strength", "0.9", "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert Path(printed["folder"]) == run.path / "release" / "Ink-stamp"
    assert printed["strength"] == 0.9
    assert (Path(printed["folder"]) / "Ink-stamp.safetensors").is_file()


def test_release_uploads_a_private_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(make_project(Home(tmp_path / "home")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with HubUploads().running() as hub:

        def upload(folder: Path, repo: str, *, private: bool) -> str:
            return upload_release(folder, repo, private=private, token=hub.token, endpoint=hub.url)

        monkeypatch.setattr(command, "upload_release", upload)
        done = CliRunner().invoke(app, ["release", str(run.path), "--upload", "ann/ink"])
    assert done.exit_code == 0, done.output
    assert "ink.safetensors" in hub.repos["ann/ink"]
    assert hub.private == {"ann/ink"}
    assert f"{hub.url}/ann/ink" in done.stdout
