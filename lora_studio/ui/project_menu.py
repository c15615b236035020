"""The project menu: a panel below the header for all that is done with whole projects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from lora_studio.errors import InputError
from lora_studio.example import unused_name
from lora_studio.sharing.project_zip import export_project, import_project, read_contents
from lora_studio.ui.context import Studio, guarded
from lora_studio.ui.server import Mode
from lora_studio.ui.state.shared_paths import check_shared_job
from lora_studio.ui.widgets.choices import checked_by_handlers
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.formatting import format_size
from lora_studio.ui.widgets.html import hint, html
from lora_studio.ui.widgets.thumbnails import copy_for_download
from lora_studio.workspace.disk_usage import ProjectSize, cache_size, clean_cache
from lora_studio.workspace.job_folder import slugify
from lora_studio.workspace.project import Home, Project


class Menu(NamedTuple):
    """The components of the menu. `result` shows what was exported or freed."""

    panel: gr.Column
    is_open: gr.State
    name: gr.Textbox
    new: gr.Button
    rename: gr.Button
    duplicate: gr.Button
    delete: gr.Button
    notes: gr.Textbox
    sizes: gr.HTML
    export: gr.Button
    download: gr.DownloadButton
    upload: gr.UploadButton
    start_page: gr.Button
    clean: gr.Button
    result: gr.HTML
    trash_row: gr.Row
    trash: gr.Dropdown
    restore: gr.Button


def build_menu() -> Menu:
    """Create the components, hidden."""
    with gr.Column(visible=False, elem_classes="project-menu") as panel:
        with gr.Row(elem_classes="menu-row"):
            name = gr.Textbox(
                label="Name",
                info="For a new project, a copy, or renaming.",
                scale=3,
                max_lines=1,
                elem_id="project-name",
            )
            new = gr.Button("New project", min_width=110)
            rename = gr.Button("Rename", min_width=90)
            duplicate = gr.Button("Duplicate", min_width=90)
            delete = gr.Button("Delete to trash", min_width=120)
        notes = gr.Textbox(
            label="Notes on this project",
            info="Where the images are from, what you want to try. Saved when you leave the box.",
            lines=2,
            max_lines=8,
            elem_id="project-notes",
        )
        sizes = html(elem_id="project-sizes")
        with gr.Row(elem_classes="menu-row"):
            export = gr.Button("Export as a zip", min_width=130, elem_id="project-export")
            upload = gr.UploadButton(
                "Open an exported project",
                file_types=[".zip"],
                file_count="single",
                min_width=180,
                elem_id="project-import",
            )
            clean = gr.Button("Clean caches", min_width=130, elem_id="project-clean")
            start_page = gr.Button("Start page", min_width=110, elem_id="project-start-page")
        result = html(elem_id="project-result")
        download = gr.DownloadButton("Download the zip", visible=False, elem_id="project-download")
        with gr.Row(visible=False, elem_classes="menu-row") as trash_row:
            trash = checked_by_handlers(
                gr.Dropdown(
                    [],
                    value=None,
                    label="Trash",
                    info="Deleted projects, latest first.",
                    scale=3,
                    elem_id="project-trash",
                )
            )
            restore = gr.Button("Restore", min_width=110)
    actions = (name, new, rename, duplicate, delete, notes, sizes, export, download, upload, start_page, clean, result)
    return Menu(panel, gr.State(False), *actions, trash_row, trash, restore)


class ProjectMenu:
    """Event handlers of the menu that show no other project."""

    def __init__(self, studio: Studio, menu: Menu, notice: gr.HTML) -> None:
        self.studio = studio
        self.home = studio.home
        self.menu = menu
        self.notice = notice

    def wire(self, menu_button: gr.Button) -> None:
        """Register the events."""
        menu, studio = self.menu, self.studio
        shown = [menu.panel, menu.is_open, menu.notes, menu.sizes, menu.clean, menu.result, menu.download]
        outputs = [self.notice, *shown]

        def on(event: Callable[..., object], handler: Callable[..., Updates], inputs: list[object]) -> None:
            event(guarded(self.notice, handler), inputs, outputs, **studio.with_progress)

        on(menu_button.click, self.toggle, [studio.project, menu.is_open])
        on(menu.notes.blur, self.save_notes, [studio.project, menu.notes])
        on(menu.export.click, self.export, [studio.project])
        on(menu.clean.click, self.clean_caches, [studio.project])

    def toggle(self, name: str, is_open: bool) -> Updates:
        """Open the menu with the notes and sizes of the selected project, or close it."""
        menu = self.menu
        shown: Updates = {menu.panel: gr.Column(visible=not is_open), menu.is_open: not is_open}
        if is_open:
            return shown
        project = self.studio.find_project(name) if name else None
        closed: Updates = {menu.result: "", menu.download: gr.DownloadButton(visible=False)}
        notes = gr.Textbox(project.info().notes if project else "", visible=project is not None)
        return {**shown, **closed, menu.notes: notes, **self._sizes(project)}

    def save_notes(self, name: str, text: str | None) -> Updates:
        """Save the notes on the project."""
        project = self.studio.find_project(name)
        if project.info().notes != (text or ""):
            project.change_info(notes=text or "")
        return {}

    def export(self, name: str) -> Updates:
        """Write the project into one zip in the home, and offer it for download."""
        menu, project = self.menu, self.studio.find_project(name)
        file = export_project(project, self.home.path / "exports" / f"{slugify(project.name)}.zip")
        text = f"{project.name} is exported, {format_size(file.stat().st_size)}: {file}"
        return {
            menu.result: hint(text),
            menu.download: gr.DownloadButton(value=copy_for_download(menu.download, file), visible=True),
        }

    def clean_caches(self, name: str) -> Updates:
        """Delete the caches of all projects."""
        freed = clean_cache(self.home)
        project = self.studio.find_project(name) if name else None
        return {self.menu.result: hint(f"{format_size(freed)} freed."), **self._sizes(project)}

    def import_zip(self, file: str | None) -> Project:
        """Create a project from an uploaded zip, and return it."""
        if not file:
            raise InputError("No file was uploaded.", "Select a zip that Export as a zip made.", code="no_file")
        return import_uploaded(self.home, Path(file), is_local=self.studio.mode is Mode.LOCAL)

    def _sizes(self, project: Project | None) -> Updates:
        menu, cached = self.menu, cache_size(self.home)
        return {
            menu.sizes: hint(sizes_text(project)) if project else "",
            menu.clean: gr.Button(f"Clean caches ({format_size(cached)})", interactive=cached > 0),
        }


def sizes_text(project: Project) -> str:
    """Return what a project takes on the disk, by what takes it."""
    size = ProjectSize.of(project)
    parts = {"images": size.images, "runs": size.runs, "tests": size.tests}
    detail = ", ".join(f"{name} {format_size(part)}" for name, part in parts.items() if part)
    return f"Size on disk: {format_size(size.total)}" + (f" ({detail})." if detail else ".")


def import_uploaded(home: Home, file: Path, *, is_local: bool) -> Project:
    """Create a project from a zip, under its own name or one like it.

    Unless the studio `is_local`, no run in it may read files of this computer.
    """
    name = unused_name(home, read_contents(file).name)
    if is_local:
        return import_project(home, file, name)
    return import_project(home, file, name, check_job=partial(check_shared_job, home=home))
