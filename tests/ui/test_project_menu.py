"""The project menu: notes, sizes, a project as a zip, caches, and the start page."""

from __future__ import annotations

from pathlib import Path

from lora_studio.ui.app import AppFrame
from lora_studio.ui.project_menu import ProjectMenu
from lora_studio.workspace.project import Home
from tests.support.interface import Interface, error_code
from tests.support.jobs import make_project, make_run, running_status


def test_notes_and_sizes_of_a_project_are_shown_and_saved(home: Home, interface: Interface) -> None:
    project = make_project(home)
    interface.open_project("ink")
    shown = interface.call(ProjectMenu.toggle)
    assert "images" in shown["project_sizes"]
    interface.call(ProjectMenu.save_notes, project_notes="Sketches of 2024")
    assert project.info().notes == "Sketches of 2024"
    assert interface.call(ProjectMenu.toggle) != {}
    assert interface.call(ProjectMenu.toggle)["project_notes"]["value"] == "Sketches of 2024"


def test_a_project_is_exported_imported_and_opened_from_the_start_page(home: Home, interface: Interface) -> None:
    project = make_project(home)
    interface.open_project("ink")
    shown = interface.call(ProjectMenu.export)
    assert str(home.path / "exports" / "ink.zip") in shown["project_result"]
    assert Path(shown["project_download"]["value"]).name == "ink.zip"
    shown = interface.call(AppFrame.open_zip, welcome_import=str(home.path / "exports" / "ink.zip"))
    assert shown["project"] == "ink 2"
    assert home.project("ink 2").info() == project.info()
    (home.cache / "latents").mkdir(parents=True)
    (home.cache / "latents" / "a").write_bytes(b"x" * 3_000_000)
    assert "2.9 MiB freed" in interface.call(ProjectMenu.clean_caches)["project_result"]
    shown = interface.call(AppFrame.show_start_page)
    assert "RAM" in shown["welcome_machine"]
    assert 'data-pick="ink"' in shown["welcome_recent"]
    assert shown["project"] == ""
    assert interface.call(AppFrame.select_project, project_list="ink 2")["welcome"] == {"visible": False}
    interface.call(AppFrame.show_start_page)
    shown = interface.call(AppFrame.open_recent, pick="ink")
    assert (shown["project"], shown["welcome"]) == ("ink", {"visible": False})
    make_run(project, final=False, **running_status())
    assert error_code(interface.call(ProjectMenu.export)["frame_notice"]) == "busy"
