"""Events of the fold "Release" of the Test tab: a folder and a zip are written, and uploaded if asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from lora_studio.errors import InputError, StudioError
from lora_studio.sharing.facts import Picture, read_facts
from lora_studio.sharing.folder import ReleaseResult, build_release
from lora_studio.sharing.options import ReleaseOptions
from lora_studio.ui.context import Studio
from lora_studio.ui.roles import Role, allowed
from lora_studio.ui.server import Mode
from lora_studio.ui.state.lora_files import lora_choices, selected_loras
from lora_studio.ui.state.lora_tools import start_recorded
from lora_studio.ui.sweep import release_view
from lora_studio.ui.sweep.release_layout import AS_BASE, ReleaseLayout
from lora_studio.ui.tab_events import PageValues, TabEvents
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import error_card
from lora_studio.ui.widgets.thumbnails import copy_for_download
from lora_studio.workspace.project import Project
from lora_studio.workspace.tool_run import UPLOAD_FILE, Tool, ToolRun, ToolState, read_tool_run

MAX_PICTURES = 12


@dataclass(frozen=True)
class ReleasePage:
    """The fold as an event's values describe it. `preview` is the path of the chosen picture, `folder` a release's."""

    project: Project
    lora: str
    preview: str
    folder: str
    options: dict[str, object]
    repo: str
    private: bool


@dataclass(frozen=True)
class ReleaseState:
    """What to show: `pictures` after a change of the LoRA, `result` after a release was made, `upload` its upload."""

    project: Project
    pictures: list[Picture] | None = None
    preview: str = ""
    result: ReleaseResult | None = None
    upload: ToolRun | None = None


class Release:
    """Event handlers of the fold."""

    def __init__(self, studio: Studio, layout: ReleaseLayout) -> None:
        self.studio = studio
        self.layout = layout

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """The components that `render` updates."""
        layout = self.layout
        shown = [layout.lora, layout.pictures, layout.preview, layout.result, layout.download, layout.folder]
        return [*shown, layout.upload.group, layout.upload.result, layout.timer]

    def wire(self) -> None:
        """Register the events."""
        layout, studio = self.layout, self.studio
        inputs = [studio.project, *layout.inputs]
        events = TabEvents(
            inputs, self.outputs, self.read, self.render, self.show_error, layout.result, studio.with_progress
        )
        chosen = [layout.pictures, layout.preview]
        events.on(layout.lora.change, self.choose_lora, outputs=chosen, ignored_error="no_lora")
        events.on(layout.pictures.click, self.choose_preview, sends="pick", outputs=chosen)
        events.on(layout.make.click, self.make)
        if studio.mode is Mode.LOCAL:
            events.on(layout.upload.start.click, self.upload, outputs=[layout.upload.result, layout.timer])
        events.on_tick(
            layout.timer.tick, self.tick, outputs=[layout.upload.result, layout.timer], trigger_mode="always_last"
        )

    def read(self, values: PageValues) -> ReleasePage:
        """Return the fold's content; raises InputError if no project is selected."""
        layout = self.layout
        licence = _text(values[layout.license])
        return ReleasePage(
            project=self.studio.find_project(values[self.studio.project]),
            lora=_text(values[layout.lora]),
            preview=_text(values[layout.preview]),
            folder=_text(values[layout.folder]),
            options={
                "name": _text(values[layout.name]),
                "strength": values[layout.strength],
                "description": _text(values[layout.description]),
                "license": None if licence in ("", AS_BASE) else licence,
                "strip_tags": bool(values[layout.strip_tags]),
                "adult": bool(values[layout.adult]),
            },
            repo=_text(values[layout.upload.repo]),
            private=bool(values[layout.upload.private]),
        )

    def render(self, state: ReleaseState) -> Updates:
        """Return the updates that show a state."""
        layout = self.layout
        updates: Updates = {}
        if state.pictures is not None:
            shown = release_view.pictures(state.pictures, state.preview, self.studio.home)
            updates |= {layout.pictures: shown, layout.preview: state.preview}
        if state.result is not None:
            copy = copy_for_download(layout.download, state.result.zip)
            updates |= {
                layout.result: release_view.made(state.result),
                layout.download: gr.DownloadButton(value=copy, visible=True),
                layout.folder: str(state.result.folder.relative_to(state.project.path)),
                layout.upload.group: gr.Column(visible=True),
                layout.upload.result: "",
            }
        if state.upload is not None:
            updates |= self._upload_updates(state.upload)
        return updates

    def refresh(self, project: Project) -> Updates:
        """Show the pictures of a project's first LoRA, and a running upload again."""
        layout = self.layout
        updates: Updates = {
            layout.result: "",
            layout.download: gr.DownloadButton(visible=False),
            layout.folder: "",
            layout.upload.group: gr.Column(visible=False),
            layout.upload.result: "",
            layout.timer: gr.Timer(active=False),
        }
        first = next(iter(lora_choices(project).values()), None)
        pictures = _pictures(first.path) if first else []
        updates |= self.render(ReleaseState(project, pictures, _first(pictures)))
        upload = read_tool_run(project.path / UPLOAD_FILE)
        if upload is not None and upload.state is ToolState.RUNNING:
            updates |= {layout.upload.group: gr.Column(visible=True), **self._upload_updates(upload)}
        return updates

    def choices(self, project: Project) -> Updates:
        """Offer the LoRAs of a project; the first one is selected."""
        options = [(choice.label, choice.id) for choice in lora_choices(project).values()]
        return {self.layout.lora: gr.update(choices=options, value=options[0][1] if options else None)}

    @allowed(Role.GUEST)
    def choose_lora(self, page: ReleasePage) -> ReleaseState:
        """Show the pictures of another LoRA."""
        pictures = _pictures(self._lora(page))
        return ReleaseState(page.project, pictures, _first(pictures))

    @allowed(Role.GUEST)
    def choose_preview(self, page: ReleasePage, pick: object) -> ReleaseState:
        """Choose the picture that programs show beside the file."""
        pictures = _pictures(self._lora(page))
        return ReleaseState(page.project, pictures, _known(pictures, str(pick)))

    def make(self, page: ReleasePage) -> ReleaseState:
        """Write the folder and the zip."""
        lora = self._lora(page)
        preview = _known(_pictures(lora), page.preview)
        result = build_release(lora, ReleaseOptions.parse({**page.options, "preview": preview or None}))
        return ReleaseState(page.project, result=result)

    def upload(self, page: ReleasePage) -> ReleaseState:
        """Start the upload in a process of its own. Wired only while the studio is local."""
        folder = (page.project.path / page.folder).resolve()
        is_release = folder.parent.name == "release" and folder.is_relative_to(page.project.path.resolve())
        if not page.folder or not is_release or not folder.is_dir():
            raise InputError("There is no release to upload.", "Make the release first.", code="no_release")
        arguments = {"folder": str(folder), "repo": page.repo, "private": page.private}
        run = start_recorded(page.project.path / UPLOAD_FILE, Tool.UPLOAD, arguments, ["upload"])
        return ReleaseState(page.project, upload=run)

    @allowed(Role.GUEST)
    def tick(self, page: ReleasePage) -> ReleaseState:
        """Show whether the upload has ended."""
        return ReleaseState(page.project, upload=read_tool_run(page.project.path / UPLOAD_FILE))

    def show_error(self, error: StudioError) -> Updates:
        """Show why nothing was written or uploaded."""
        place = self.layout.upload.result if error.code in ("no_release", "busy") else self.layout.result
        return {place: error_card(error)}

    def _upload_updates(self, run: ToolRun) -> Updates:
        is_running = run.state is ToolState.RUNNING
        return {
            self.layout.upload.result: release_view.upload(run),
            self.layout.timer: gr.Timer(active=is_running),
        }

    def _lora(self, page: ReleasePage) -> Path:
        return selected_loras(page.project, [page.lora] if page.lora else [])[0]


def _pictures(lora: Path) -> list[Picture]:
    """Return the pictures to choose the preview from, those of tests first."""
    return [picture for picture in read_facts(lora).pictures if picture.strength][:MAX_PICTURES]


def _first(pictures: list[Picture]) -> str:
    return str(pictures[0].path) if pictures else ""


def _known(pictures: list[Picture], path: str) -> str:
    """Return the path if it is one of the pictures, else that of the first."""
    return path if any(str(picture.path) == path for picture in pictures) else _first(pictures)


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""
