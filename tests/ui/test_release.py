"""The fold "Release" of the Test tab: pictures, the folder and its zip, errors, and the upload."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.sharing import upload as upload_module
from lora_studio.sharing.upload import run_upload
from lora_studio.ui.server import Mode
from lora_studio.ui.state import lora_tools
from lora_studio.ui.sweep.release import Release
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.tool_run import UPLOAD_FILE
from tests.support.application import Running
from tests.support.interface import Interface, error_code
from tests.support.jobs import make_project, make_run
from tests.support.ledger_runs import make_ledger_run


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home)


@pytest.fixture
def run(project: Project) -> JobFolder:
    return make_ledger_run(project, samples=16)


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect the commands of uploads; no process is started."""
    commands: list[list[str]] = []

    class Process:
        pid = 1

        def wait(self) -> int:
            return 0

    def start(command: list[str], log: Any, folder: Path, environment: dict[str, str]) -> Process:
        commands.append(command)
        return Process()

    monkeypatch.setattr(lora_tools, "start_detached", start)
    monkeypatch.setattr(lora_tools.threading.Thread, "start", lambda thread: None)
    return commands


def test_a_release_is_written_and_offered_as_a_zip(run: JobFolder, interface: Interface) -> None:
    shown = interface.open_project("ink")
    assert shown["release_pictures"].count("data-pick") == 8
    shown = interface.call(Release.make, release_name="Ink stamp", release_strength=0.8, release_license="cc-by-4.0")
    folder = run.path / "release" / "Ink-stamp"
    assert str(folder) in shown["release_result"]
    assert json.loads((folder / "Ink-stamp.json").read_text("utf-8"))["preferred weight"] == 0.8
    assert "license: cc-by-4.0" in (folder / "README.md").read_text("utf-8")
    assert Path(shown["release_download"]["value"]).name == "Ink-stamp.zip"


def test_the_chosen_picture_is_the_preview(run: JobFolder, interface: Interface) -> None:
    interface.open_project("ink")
    chosen = run.path / "samples" / "2-1.png"
    shown = interface.call(Release.choose_preview, pick=str(chosen))
    assert shown["release_pictures"].count('aria-pressed="true"') == 1
    interface.call(Release.make)
    assert (run.path / "release" / "ink" / "ink.preview.png").read_bytes() == chosen.read_bytes()


def test_a_picture_that_is_not_the_loras_is_not_copied(run: JobFolder, interface: Interface, tmp_path: Path) -> None:
    other = tmp_path / "private.png"
    other.write_bytes((run.path / "samples" / "1-0.png").read_bytes() + b"secret")
    interface.open_project("ink")
    interface.call(Release.choose_preview, pick=str(other))
    interface.call(Release.make)
    assert b"secret" not in (run.path / "release" / "ink" / "ink.preview.png").read_bytes()


@pytest.mark.parametrize(
    ("given", "code"),
    [({"release_lora": "gone.safetensors"}, "no_lora"), ({"release_strength": 9}, "config")],
)
def test_wrong_input_is_named(run: JobFolder, interface: Interface, given: dict[str, Any], code: str) -> None:
    interface.open_project("ink")
    shown = interface.call(Release.make, **given)
    assert error_code(shown["release_result"]) == code
    assert not (run.path / "release").exists()


def test_an_upload_runs_in_a_process_and_its_address_is_shown(
    run: JobFolder,
    project: Project,
    interface: Interface,
    uploads: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interface.open_project("ink")
    interface.call(Release.make)
    shown = interface.call(Release.upload, release_repo="ann/ink")
    assert "ann/ink" in shown["release_uploaded"]
    file = project.path / UPLOAD_FILE
    assert uploads[0][-2:] == ["upload", str(file.resolve())]
    sent: list[tuple[Path, str, bool]] = []

    def upload(folder: Path, repo: str, *, private: bool) -> str:
        sent.append((folder, repo, private))
        return "https://hub/ann/ink"

    monkeypatch.setattr(upload_module, "upload_release", upload)
    assert run_upload(file)
    assert sent == [(run.path / "release" / "ink", "ann/ink", True)]
    assert 'href="https://hub/ann/ink"' in interface.call(Release.tick)["release_uploaded"]


def test_without_a_release_nothing_is_uploaded(run: JobFolder, interface: Interface, uploads: list[list[str]]) -> None:
    interface.open_project("ink")
    assert error_code(interface.call(Release.upload, release_repo="ann/ink")["release_uploaded"]) == "no_release"
    assert not uploads


def test_a_shared_studio_uploads_nothing(run: JobFolder, home: Home) -> None:
    shared = Interface(home, Mode.SHARED)
    handlers = {function.name for function in shared.blocks.fns.values()}
    assert "make" in handlers
    assert "upload" not in handlers
    shared.blocks.close(verbose=False)


@pytest.mark.slow
def test_a_release_is_made_in_the_browser_and_downloaded(
    running: Running, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    make_run(make_project(running.home, "shared ink"))
    page = open_page()
    page.get_by_role("tab", name="Test").click()
    page.locator("#test-release").get_by_text("Release", exact=True).click()
    page.locator("#release-name textarea, #release-name input").first.fill("Stamp")
    page.locator("#release-make").click()
    page.locator("#release-result").get_by_text("The release is written").wait_for()
    page.locator("#release-result").get_by_text("Text for Civitai").click()
    page.locator("#release-result details[open]").get_by_role("button", name="Copy").click()
    page.locator("#release-result details[open]").get_by_text("Copied").wait_for()
    with page.expect_download() as download:
        page.locator("#release-download").click()
    assert download.value.suggested_filename == "Stamp.zip"
    assert Path(download.value.path()).stat().st_size > 1000
