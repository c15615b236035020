"""Events of the fold "LoRA files" of the Test tab: a tool's process is started, and its progress and result shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr

from lora_studio.errors import InputError, StudioError
from lora_studio.lora.header import METADATA_FIELDS, read_header
from lora_studio.lora.tools.reports import Naming
from lora_studio.ui.context import Studio
from lora_studio.ui.roles import Role, allowed, is_owner
from lora_studio.ui.server import Mode
from lora_studio.ui.state.lora_files import lora_choices, selected_loras
from lora_studio.ui.state.lora_tools import ToolForm, current_tool_run, start_tool
from lora_studio.ui.sweep import tool_view
from lora_studio.ui.sweep.tool_layout import LABELS, ToolLayout, visible_options
from lora_studio.ui.tab_events import PageValues, TabEvents
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import error_card
from lora_studio.ui.widgets.thumbnails import copy_for_download
from lora_studio.workspace.project import Project
from lora_studio.workspace.tool_run import Tool, ToolRun, ToolState


@dataclass(frozen=True)
class ToolPage:
    """The fold as an event's values describe it; files are looked up when a tool starts."""

    project: Project
    tool: Tool
    lora: str
    path: str
    others: list[str]
    form: ToolForm


@dataclass(frozen=True)
class ToolPanel:
    """What to show: the state of the project's latest run; `fields` and `tool` after a change of the form."""

    project: Project
    run: ToolRun | None = None
    tool: Tool | None = None
    fields: dict[str, str] | None = None


class LoraTools:
    """Event handlers of the fold."""

    def __init__(self, studio: Studio, layout: ToolLayout, loras: gr.Dropdown) -> None:
        """Take the fold's components, and the tab's list of LoRAs, in which new files appear."""
        self.studio = studio
        self.layout = layout
        self.loras = loras

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """The components that `render` updates."""
        layout = self.layout
        lists = [self.loras, layout.lora, layout.others]
        return [*layout.options, *layout.fields.values(), layout.result, layout.download, layout.timer, *lists]

    def wire(self) -> None:
        """Register the events."""
        layout, studio = self.layout, self.studio
        inputs = [studio.project, *layout.inputs]
        events = TabEvents(
            inputs, self.outputs, self.read, self.render, self.show_error, layout.result, studio.with_progress
        )
        events.on(layout.tool.change, self.choose_tool, outputs=[*layout.options, *layout.fields.values()])
        events.on(layout.lora.change, self.choose_tool, outputs=[*layout.options, *layout.fields.values()])
        events.on(layout.run.click, self.run_tool)
        events.on_tick(layout.timer.tick, self.tick, outputs=self.outputs, trigger_mode="always_last")

    def read(self, values: PageValues) -> ToolPage:
        """Return the fold's content; raises InputError if no project is selected or a value has another type."""
        layout = self.layout
        tool = LABELS.get(str(values[layout.tool]))
        if tool is None:
            raise InputError(f"There is no tool {values[layout.tool]!r}.", "Select one from the list.", code="tool")
        others = values[layout.others]
        rank, keep = values[layout.rank], values[layout.keep]
        form = ToolForm(
            tool=tool,
            weights=_text(values[layout.weights]),
            rank=int(rank) if isinstance(rank, int | float) and rank else None,
            keep=float(keep) if isinstance(keep, int | float) and keep else None,
            naming=Naming(values[layout.naming]) if values[layout.naming] in list(Naming) else Naming.KOHYA,
            finetuned=_text(values[layout.finetuned]),
            base=_text(values[layout.base]),
            changes={name: _text(values[field]) for name, field in layout.fields.items()},
            name=_text(values[layout.name]),
        )
        return ToolPage(
            project=self.studio.find_project(values[self.studio.project]),
            tool=tool,
            lora=_text(values[layout.lora]),
            path=_text(values[layout.path]).strip("\"'") if self.studio.mode is Mode.LOCAL else "",
            others=[str(other) for other in others] if isinstance(others, list) else [],
            form=form,
        )

    def render(self, panel: ToolPanel) -> Updates:
        """Return the updates that show a state."""
        layout = self.layout
        updates: Updates = {}
        if panel.tool is not None:
            shown = visible_options(panel.tool)
            updates |= {
                group: gr.Column(visible=name in shown)
                for name, group in zip(layout.options._fields, layout.options, strict=True)
            }
            given = panel.fields or {}
            return updates | {field: given[name] for name, field in layout.fields.items() if name in given}
        return self._run_updates(panel.project, panel.run)

    def refresh(self, project: Project) -> Updates:
        """Show the latest run of a project."""
        return self._run_updates(project, current_tool_run(project))

    def choices(self, project: Project) -> Updates:
        """Offer the LoRAs of a project; the first one is selected."""
        options = [(choice.label, choice.id) for choice in lora_choices(project).values()]
        return {
            self.layout.lora: gr.update(choices=options, value=options[0][1] if options else None),
            self.layout.others: gr.update(choices=options, value=[]),
        }

    @allowed(Role.GUEST)
    def choose_tool(self, page: ToolPage) -> ToolPanel:
        """Show the options of a tool; the metadata's fields are filled from the selected file."""
        fields = None
        if page.tool is Tool.METADATA and (page.lora or page.path):
            try:
                fields = _metadata_fields(self._source(page))
            except StudioError:
                fields = None
        return ToolPanel(page.project, tool=page.tool, fields=fields)

    def run_tool(self, page: ToolPage) -> ToolPanel:
        """Start the tool. Paths of this computer and checkpoints are used only while the studio is local."""
        form = page.form
        if page.tool is Tool.EXTRACT:
            if self.studio.mode is not Mode.LOCAL:
                message = "Checkpoints can only be read on the studio's own computer."
                raise InputError(message, "Start the studio without sharing.", code="local")
        else:
            others = selected_loras(page.project, page.others) if page.tool is Tool.MERGE and page.others else []
            form = replace(form, source=self._source(page), others=others)
        return ToolPanel(page.project, start_tool(page.project, form, self.studio.home))

    @allowed(Role.GUEST)
    def tick(self, page: ToolPage) -> ToolPanel:
        """Show the progress of the running tool."""
        return ToolPanel(page.project, current_tool_run(page.project))

    def show_error(self, error: StudioError) -> Updates:
        """Show why a tool did not start."""
        return {self.layout.result: error_card(error)}

    def _source(self, page: ToolPage) -> Path:
        if page.path:
            return Path(page.path).expanduser()
        return selected_loras(page.project, [page.lora] if page.lora else [])[0]

    def _run_updates(self, project: Project, run: ToolRun | None) -> Updates:
        layout = self.layout
        is_running = run is not None and run.state is ToolState.RUNNING
        updates: Updates = {
            layout.result: tool_view.tool_run(run) if run is not None else "",
            layout.timer: gr.Timer(active=is_running),
            layout.download: gr.DownloadButton(visible=False),
        }
        out = Path(run.arguments.get("out", "")) if run is not None and run.state is ToolState.DONE else None
        if out is not None and is_owner() and out.parent == project.loras_dir and out.is_file():
            copy = copy_for_download(layout.download, out)
            updates[layout.download] = gr.DownloadButton(value=copy, visible=True)
        if not is_running:
            options = [(choice.label, choice.id) for choice in lora_choices(project).values()]
            updates |= {component: gr.update(choices=options) for component in (self.loras, layout.lora, layout.others)}
        return updates


def _metadata_fields(path: Path) -> dict[str, str]:
    """Return the editable fields of a file's metadata, empty ones included."""
    metadata = read_header(path)[0].get("__metadata__", {})
    values = metadata if isinstance(metadata, dict) else {}
    return {name: str(values.get(key, "")) for name, key in METADATA_FIELDS.items()}


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""
