"""What can be done with the shown run: stop, resume, sample, save, continue for more epochs, restart smaller."""

from __future__ import annotations

from typing import NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.api import request_samples, request_save
from lora_studio.errors import InputError
from lora_studio.planning.memory import next_saving
from lora_studio.planning.memory_ladder import smaller_job
from lora_studio.plurals import format_count
from lora_studio.training.continuation import continue_run, epochs_of
from lora_studio.ui.context import Studio
from lora_studio.ui.state.run_history import RunView
from lora_studio.ui.train.state import RunReader, TrainPage, TrainState
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import TableRow, heading, hint, html, table
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.run_queue import RunQueue

DEFAULT_MORE_EPOCHS = 5
MAX_LISTED = 6


class ControlFields(NamedTuple):
    """The components; each panel is visible only where it applies."""

    restart: gr.Column
    restart_button: gr.Button
    restart_note: gr.HTML
    more: gr.Column
    epochs: gr.Number
    continue_button: gr.Button
    more_note: gr.HTML


class RestartFields(NamedTuple):
    """The panel that restarts a run that ran out of memory."""

    column: gr.Column
    button: gr.Button
    note: gr.HTML


def build_restart_fields() -> RestartFields:
    """Create the panel, hidden."""
    with gr.Column(visible=False) as column:
        button = gr.Button("Restart with less memory", variant="primary", elem_id="train-restart")
        note = html(elem_id="train-restart-note")
    return RestartFields(column, button, note)


def build_control_fields(restart: RestartFields) -> ControlFields:
    """Create the panel for more epochs, hidden."""
    with gr.Column(visible=False) as more:
        with gr.Row(elem_classes="more-epochs"):
            epochs = gr.Number(
                DEFAULT_MORE_EPOCHS,
                label="More epochs",
                precision=0,
                minimum=1,
                min_width=110,
                scale=1,
                elem_id="train-more-epochs",
            )
            continue_button = gr.Button("Continue for more epochs", scale=2, min_width=200, elem_id="train-continue")
        more_note = html(elem_id="train-continue-note")
    return ControlFields(*restart, more, epochs, continue_button, more_note)


def hidden_controls(fields: ControlFields) -> Updates:
    """Return the updates that hide all panels, as in the form of a new run."""
    return {fields.restart: gr.Column(visible=False), fields.more: gr.Column(visible=False)}


def controls_of(fields: ControlFields, run: RunView) -> Updates:
    """Return the updates that show what can be done with a run."""
    updates = hidden_controls(fields)
    if run.is_active:
        return updates
    epochs = epochs_of(run.folder)
    if epochs is not None and run.status.state in (JobState.DONE, JobState.STOPPED):
        updates[fields.more] = gr.Column(visible=True)
        updates[fields.more_note] = hint(_schedule_note(run, epochs))
    saving = next_saving(run.job.recipe) if run.status.code == "out_of_memory" else None
    if saving is not None and run.status.state is JobState.FAILED:
        updates[fields.restart] = gr.Column(visible=True)
        updates[fields.restart_button] = gr.Button(f"New run: {saving.advice[0].lower()}{saving.advice[1:]}")
        kept = " A step keeps its images: they are accumulated." if saving.setting == "batch_size" else ""
        updates[fields.restart_note] = hint(f"It starts from the beginning with this one change. {saving.why}{kept}")
    return updates


def checkpoint_list(run: RunView) -> Markup:
    """Return the run's latest checkpoints that exist, those saved by hand marked; nothing before the first."""
    files = [path for name in reversed(run.history.checkpoints) if (path := run.folder.path / name).is_file()]
    by_hand = {True: " · saved by hand", False: ""}
    rows = [TableRow([f"{path.name}{by_hand[path.stem.endswith('-saved')]}"]) for path in files[:MAX_LISTED]]
    if not rows:
        return Markup("")
    more = f"The latest {MAX_LISTED} of {len(files)}. " if len(files) > MAX_LISTED else ""
    hint_text = f"{more}Test lists them all. What Save now wrote is never deleted."
    return heading("Checkpoints", hint_text) + table(["File"], rows, label="Checkpoints")


def _schedule_note(run: RunView, epochs: int) -> str:
    """Return where a continued run begins, and with which learning rate."""
    recipe = run.job.recipe
    begins = f"A new run continues after {format_count(epochs, 'epoch')}, with the optimizer's state; this one stays."
    if recipe.lr_scheduler_type or "constant" in recipe.lr_scheduler.value or recipe.lr_scheduler.value == "adafactor":
        return f"{begins} The learning rate continues as it is."
    schedule = recipe.schedule_name.replace("_", " ")
    return (
        f"{begins} The {schedule} schedule is planned again over the new steps: the rate rises within the first tenth "
        "of them from where it is to half the recipe's rate, if it is lower, and falls until the last step."
    )


class RunControl:
    """The handlers of these components, and of the buttons for a run."""

    def __init__(self, studio: Studio, reader: RunReader) -> None:
        self.studio = studio
        self.reader = reader

    def stop_training(self, page: TrainPage) -> TrainState:
        """Request that the run stops after the current step and saves its state; a waiting one leaves the queue."""
        run = self.reader.shown(page)
        if run.status.state is JobState.WAITING:
            RunQueue(self.studio.home).cancel(run.folder)
        else:
            run.folder.request_stop()
        return self._show(page, run.folder.name)

    def resume_training(self, page: TrainPage) -> TrainState:
        """Continue from the last saved state, after the runs that wait already."""
        run = self.reader.shown(page)
        self.studio.jobs.enqueue_resume(run.folder)
        return self._show(page, run.folder.name, is_job_started=True)

    def sample_now(self, page: TrainPage) -> TrainState:
        """Request samples after the current step."""
        run = self.reader.shown(page)
        request_samples(run.folder.path)
        return self._show(page, run.folder.name)

    def save_now(self, page: TrainPage) -> TrainState:
        """Request a checkpoint and a resume state after the current step."""
        run = self.reader.shown(page)
        request_save(run.folder.path)
        return self._show(page, run.folder.name)

    def continue_run(self, page: TrainPage, more_epochs: float | None) -> TrainState:
        """Start a run that trains the shown one for more epochs."""
        run = self.reader.shown(page)
        if not more_epochs or int(more_epochs) != more_epochs:
            raise InputError(
                f"More epochs is {more_epochs or 'empty'}, expected a whole number.",
                "Use for example 5.",
                code="epochs",
            )
        target = page.project.new_run_dir(run.job.name)
        try:
            continued = continue_run(run.folder, target, int(more_epochs))
        except InputError:
            target.rmdir()
            raise
        self.studio.jobs.enqueue_resume(continued)
        return self._show(page, continued.name, is_job_started=True)

    def restart_smaller(self, page: TrainPage) -> TrainState:
        """Start the shown run again with the next rung of the memory ladder."""
        run = self.reader.shown(page)
        job = smaller_job(run.job)[0].model_copy(update={"parent": run.folder.path})
        folder = self.studio.jobs.enqueue(page.project.new_run_dir(job.name), job)
        return self._show(page, folder.name, is_job_started=True)

    def _show(self, page: TrainPage, name: str, *, is_job_started: bool = False) -> TrainState:
        listed = self.reader.run_list(page.project, name)
        return TrainState(self.reader.run(page.project, name), listed, is_job_started=is_job_started)
