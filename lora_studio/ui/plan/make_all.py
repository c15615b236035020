"""The part of Plan that does all of it: its button, and the stages with how far each is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.errors import StudioError
from lora_studio.ui.context import Studio, TabName
from lora_studio.ui.roles import Role, allowed
from lora_studio.ui.state.making import current_status, start_making, stop_making
from lora_studio.ui.tab_events import PageValues, TabEvents
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.formatting import format_duration
from lora_studio.ui.widgets.html import error_card, html, render
from lora_studio.workflow.record import MakeRecord, Stage, StageState, read_record
from lora_studio.workspace.job_folder import JobStatus
from lora_studio.workspace.project import Project

TICK_SECONDS = 2.0
TITLES = {
    Stage.CURATE: "Find duplicates and unreadable images",
    Stage.TAG: "Caption the images",
    Stage.REVIEW: "Look at duplicates and captions",
    Stage.TRAIN: "Train the planned recipe",
    Stage.TEST: "Test the best checkpoint at several strengths",
    Stage.RELEASE: "Write the release",
}
STATES = {
    StageState.WAITING: "to do",
    StageState.STARTING: "starting",
    StageState.RUNNING: "running",
    StageState.DONE: "done",
    StageState.STOPPED: "waits",
    StageState.FAILED: "failed",
}


class MakeAllLayout(NamedTuple):
    """The components. Only the buttons that apply are visible."""

    start: gr.Button
    confirmed: gr.Checkbox
    proceed: gr.Button
    stop: gr.Button
    again: gr.Button
    to_dataset: gr.Button
    to_test: gr.Button
    stages: gr.HTML
    timer: gr.Timer


def build_make_all() -> MakeAllLayout:
    """Create the components."""
    with gr.Row(elem_classes="actions"):
        start = gr.Button("Do all of it", size="sm", scale=0, min_width=160, elem_id="plan-all")
        confirmed = gr.Checkbox(
            label="Without waiting for me",
            info="Sets proposed duplicates aside, and trains on the captions as they are tagged.",
            elem_id="plan-all-confirmed",
        )
    stages = html(elem_id="plan-all-stages")
    with gr.Row(elem_classes="actions"):
        proceed = gr.Button(
            "Continue", variant="primary", size="sm", scale=0, visible=False, elem_id="plan-all-continue"
        )
        to_dataset = gr.Button("Open the dataset", size="sm", scale=0, visible=False, elem_id="plan-all-dataset")
        to_test = gr.Button("Open the test", size="sm", scale=0, visible=False, elem_id="plan-all-test")
        stop = gr.Button("Stop", size="sm", scale=0, visible=False, elem_id="plan-all-stop")
        again = gr.Button("Start over", size="sm", scale=0, visible=False, elem_id="plan-all-again")
    timer = gr.Timer(TICK_SECONDS, active=False)
    return MakeAllLayout(start, confirmed, proceed, stop, again, to_dataset, to_test, stages, timer)


@dataclass(frozen=True)
class MakeAllPage:
    """A project, and whether its stages run without waiting."""

    project: Project
    confirmed: bool


@dataclass(frozen=True)
class MakeAllState:
    """The stages of a project; `is_started` says that they have just been started."""

    project: Project
    is_started: bool = False


class MakeAll:
    """Event handlers of the part."""

    def __init__(self, studio: Studio, layout: MakeAllLayout) -> None:
        self.studio = studio
        self.layout = layout

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """The components that `render` updates."""
        return [*self.layout, self.studio.timer]

    def wire(self) -> None:
        """Register the events."""
        layout, studio = self.layout, self.studio
        events = TabEvents(
            [studio.project, layout.confirmed],
            self.outputs,
            self.read,
            self.render,
            self.show_error,
            layout.stages,
            studio.with_progress,
        )
        events.on(layout.start.click, self.start)
        events.on(layout.proceed.click, self.proceed)
        events.on(layout.again.click, self.start_over)
        events.on(layout.stop.click, self.stop)
        events.on_tick(layout.timer.tick, self.tick, outputs=self.outputs, trigger_mode="always_last")
        layout.to_dataset.click(studio.opens(TabName.DATASET), None, [studio.tabs], **NO_PROGRESS)
        layout.to_test.click(studio.opens(TabName.TEST), None, [studio.tabs], **NO_PROGRESS)

    def read(self, values: PageValues) -> MakeAllPage:
        """Return the page; raises InputError if no project is selected."""
        project = self.studio.find_project(values[self.studio.project])
        return MakeAllPage(project, bool(values[self.layout.confirmed]))

    def render(self, state: MakeAllState) -> Updates:
        """Return the updates that show the stages."""
        layout, record = self.layout, read_record(state.project)
        is_active, end = record.current is not None, record.ended_at
        updates: Updates = {
            layout.start: gr.Button(visible=not record.stages),
            layout.confirmed: gr.Checkbox(visible=not record.stages or end is not None),
            layout.proceed: gr.Button(visible=end is not None),
            layout.stop: gr.Button(visible=is_active),
            layout.again: gr.Button(visible=bool(record.stages) and not is_active),
            layout.to_dataset: gr.Button(visible=end is Stage.REVIEW),
            layout.to_test: gr.Button(visible=record.is_done(Stage.TEST)),
            layout.stages: stage_list(record, current_status(state.project, record)) if record.stages else "",
            layout.timer: gr.Timer(active=is_active),
        }
        return updates | (self.studio.start_polling() if state.is_started else {})

    def refresh(self, project: Project) -> Updates:
        """Show the stages of a project."""
        return self.render(MakeAllState(project))

    def start(self, page: MakeAllPage) -> MakeAllState:
        """Start the stages."""
        start_making(page.project, self.studio.home, confirmed=page.confirmed)
        return MakeAllState(page.project, is_started=True)

    def proceed(self, page: MakeAllPage) -> MakeAllState:
        """Continue with the stage that waits, was stopped or has failed."""
        return self.start(page)

    def start_over(self, page: MakeAllPage) -> MakeAllState:
        """Begin with the first stage; earlier runs and tests stay."""
        start_making(page.project, self.studio.home, confirmed=page.confirmed, again=True)
        return MakeAllState(page.project, is_started=True)

    def stop(self, page: MakeAllPage) -> MakeAllState:
        """Request that the running stage stops."""
        stop_making(page.project)
        return MakeAllState(page.project)

    @allowed(Role.GUEST)
    def tick(self, page: MakeAllPage) -> MakeAllState:
        """Show how far the stages are."""
        return MakeAllState(page.project, is_started=read_record(page.project).current is not None)

    def show_error(self, error: StudioError) -> Updates:
        """Show why nothing was started."""
        return {self.layout.stages: error_card(error)}


def stage_list(record: MakeRecord, status: JobStatus | None) -> Markup:
    """Return the stages with their states; the running one with its progress."""
    rows = []
    for stage, title in TITLES.items():
        found = record.stage(stage)
        text, percent = found.text, None
        if stage is record.current and status is not None:
            left = f", {format_duration(status.seconds_left)} left" if status.seconds_left is not None else ""
            count = f": {status.done:,} of {status.total:,}{left}" if status.total else ""
            text, percent = f"{status.message}{count}", 100 * status.done / status.total if status.total else None
        elif stage is record.current:
            text = ""
        rows.append(
            {
                "title": title,
                "state": found.state.value,
                "label": STATES[found.state],
                "text": " ".join(part for part in (text, found.remedy) if part),
                "percent": percent,
            }
        )
    return render("plan/make_all.html", stages=rows)
