"""The Test tab: LoRAs, bases and settings on the left; the grid of images with its measures on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio import guide
from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.lora.header import read_lora_header
from lora_studio.sampling.cells import SweepPlan
from lora_studio.settings.job_specs import SweepJob, TrainJob
from lora_studio.ui.context import Page, Studio, TabName, guarded, requires_project
from lora_studio.ui.server import Mode
from lora_studio.ui.state.lora_files import LoraChoice, import_lora, lora_choices, selected_loras
from lora_studio.ui.state.sweep_view import SweepView, sweep_named
from lora_studio.ui.sweep import view as sweep_view
from lora_studio.ui.sweep.layout import SweepLayout, build_layout
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import error_card, heading
from lora_studio.ui.widgets.job_status import log
from lora_studio.ui.widgets.thumbnails import copy_for_download
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Project, ProjectInfo

LOG_LINES = 40


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and register its events."""
    layout = build_layout(local=studio.mode is Mode.LOCAL)
    return SweepTab(studio, layout).wire(tab)


class SweepTab:
    """Event handlers of the Test tab."""

    def __init__(self, studio: Studio, layout: SweepLayout) -> None:
        self.studio = studio
        self.panels = layout.panels
        self.open_train = layout.open_train
        self.buttons = layout.buttons
        self.settings = layout.settings
        self.form = layout.form
        self.lora_import = layout.lora_import
        self.results = layout.results
        self.sweep = gr.State("")  # name of the shown test
        self.cell = gr.State("")  # file name of the enlarged cell
        self.signature = gr.State("")  # see _signature
        self.filled_for = gr.State("")  # see _form_key

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events."""
        studio, buttons, results = self.studio, self.buttons, self.results
        shown = [*self.panels, *buttons, *results, self.sweep, self.cell, self.signature, studio.timer]
        form = [*self.settings, *self.form.outputs, self.filled_for]
        selected = {studio.project, self.sweep}
        contents = {studio.project, self.settings.loras, self.settings.bases, *self.form.inputs}
        form_events = [self.settings.loras.change, self.settings.bases.change, *self.form.edit_events]

        def on(event: Any, handler: Any, inputs: Any, outputs: Any, **options: Any) -> None:
            event(guarded(self.panels.notice, handler), inputs, outputs, **studio.with_progress, **options)

        on(buttons.start.click, self.start_sweep, contents, [*shown, *form])
        on(buttons.stop.click, self.stop_sweep, selected, shown)
        on(buttons.resume.click, self.resume_sweep, selected, shown)
        on(buttons.reuse_settings.click, self.reuse_settings, selected, [self.panels.notice, *form])
        on(results.sweeps.click, self.select_sweep, [studio.project], shown)
        images = [results.large, results.grid, self.cell, self.panels.notice]
        for place in (results.grid, results.large):
            on(place.click, self.select_cell, [studio.project, self.sweep], images, scroll_to_output=True)
        on(self.lora_import.upload.upload, self.upload_lora, [studio.project, self.lora_import.upload], [*shown, *form])
        if studio.mode is Mode.LOCAL:
            gr.on(
                [self.lora_import.import_path.click, self.lora_import.path.submit],
                guarded(self.panels.notice, self.add_lora_path),
                {studio.project, self.lora_import.path},
                [*shown, *form, self.lora_import.path],
                **studio.with_progress,
            )
        state = {studio.run, self.sweep, self.filled_for, *contents}
        on(tab.select, self.tab_selected, state, [*shown, *form])
        self.open_train.click(lambda: studio.goto(TabName.TRAIN), None, [studio.tabs], **NO_PROGRESS)
        gr.on(
            form_events,
            self.update_cell_count,
            contents,
            [self.settings.cell_count],
            **NO_PROGRESS,
            trigger_mode="always_last",
        )
        studio.timer.tick(
            self.tick,
            [studio.project, self.sweep, self.cell, self.signature],
            shown,
            **NO_PROGRESS,
            queue=False,
            trigger_mode="always_last",
        )
        return Page(self.refresh, [*shown, *form])

    def refresh(self, project: Project) -> Updates:
        """Show a project: its latest test, and the form with the settings of its latest run."""
        filled = self.form.fill(self.form.defaults) | self._form_content(project, _target(project, None))
        return filled | self._tab_updates(project, self._default_sweep(project))

    @requires_project
    def tab_selected(self, data: dict[Any, Any]) -> Updates:
        """Update the tab when it is opened. The form keeps its content, unless Train showed another run since."""
        project = self.studio.find_project(data[self.studio.project])
        target = _target(project, data[self.studio.run])
        if data[self.filled_for] != _form_key(project, target):
            filled = self._form_content(project, target)
        else:
            filled = self._lora_choices(project, data[self.settings.loras])
        names = {folder.name for folder in project.sweeps()}
        sweep = data[self.sweep]
        return filled | self._tab_updates(project, sweep if sweep in names else self._default_sweep(project))

    def start_sweep(self, data: dict[Any, Any]) -> Updates:
        """Write the job and start its worker process."""
        project = self.studio.find_project(data[self.studio.project])
        loras = selected_loras(project, data[self.settings.loras])
        for path in loras:
            read_lora_header(path)
        try:
            job = self._job(loras, data)
        except ConfigError as error:
            return {self.panels.notice: error_card(error)} | self.form.mark_errors(data)
        folder = self.studio.jobs.start(project.new_sweep_dir(), job)
        return self._tab_updates(project, folder.name) | self.studio.start_polling()

    def stop_sweep(self, data: dict[Any, Any]) -> Updates:
        """Request that the test stops after the current image; finished images are kept."""
        project, name = self._selected_sweep(data)
        sweep_named(project, name).request_stop()
        return self._tab_updates(project, name)

    def resume_sweep(self, data: dict[Any, Any]) -> Updates:
        """Draw the missing images."""
        project, name = self._selected_sweep(data)
        folder = sweep_named(project, name)
        if folder.status().state.is_active:
            raise InputError(f"Test {name} is already running.", "Wait for it, or stop it first.", code="busy")
        self.studio.jobs.resume(folder)
        return self._tab_updates(project, name) | self.studio.start_polling()

    def reuse_settings(self, data: dict[Any, Any]) -> Updates:
        """Fill the form with the settings of the shown test."""
        project, name = self._selected_sweep(data)
        job = SweepView.load(sweep_named(project, name)).job
        ids = [choice.id for choice in lora_choices(project).values() if choice.path in job.loras]
        return {
            **self._lora_choices(project, ids),
            **self.form.fill(dict(job)),
            self.settings.bases: job.bases,
            self.settings.cell_count: self._cell_count(job),
        }

    def select_sweep(self, project_name: str, event: gr.EventData) -> Updates:
        """Show another test."""
        project = self.studio.find_project(project_name)
        return self._tab_updates(project, sweep_named(project, str(event.pick)).name)

    def select_cell(self, project_name: str, sweep: str, event: gr.EventData) -> Updates:
        """Enlarge an image, or close it."""
        view = SweepView.load(sweep_named(self.studio.find_project(project_name), sweep))
        name = "" if event.pick == sweep_view.CLOSE else view.file_name(view.drawn_cell(event.pick))
        return self._image_updates(view, name)

    def upload_lora(self, project_name: str, file: str | None) -> Updates:
        """Import an uploaded LoRA file."""
        project = self.studio.find_project(project_name)
        if not file:
            raise InputError("No file was uploaded.", "Select a .safetensors file.", code="no_file")
        return self._imported_updates(project, Path(file))

    def add_lora_path(self, data: dict[Any, Any]) -> Updates:
        """Import a LoRA file of this computer. Wired only while the studio is local."""
        project = self.studio.find_project(data[self.studio.project])
        text = (data[self.lora_import.path] or "").strip().strip("\"'")
        if not text:
            raise InputError("The path is empty.", "Enter the path of a .safetensors file.", code="no_file")
        return self._imported_updates(project, Path(text).expanduser()) | {self.lora_import.path: ""}

    def update_cell_count(self, data: dict[Any, Any]) -> Any:
        """Update the number of images after an edit. A wrong value is marked at its field by the form itself."""
        try:
            project = self.studio.find_project(data[self.studio.project])
            loras = selected_loras(project, data[self.settings.loras])
            return {self.settings.cell_count: self._cell_count(self._job(loras, data))}
        except StudioError:
            return {self.settings.cell_count: ""}

    def tick(self, project_name: str, sweep: str, cell: str, signature: str) -> Any:
        """Show what changed; called by the timer while a job is active."""
        try:
            project = self.studio.find_project(project_name)
            if self._signature(project, sweep) == signature:
                return gr.skip()
            return self._tab_updates(project, sweep, cell)
        except StudioError:
            return gr.skip()

    def _selected_sweep(self, data: dict[Any, Any]) -> tuple[Project, str]:
        project = self.studio.find_project(data[self.studio.project])
        return project, data[self.sweep] or self._default_sweep(project)

    def _job(self, loras: list[Path], data: dict[Any, Any]) -> SweepJob:
        bases = [base.strip() for base in data[self.settings.bases] or [] if isinstance(base, str) and base.strip()]
        if not bases:
            raise InputError("No base model is selected.", "Select one under Base models.", code="no_base")
        return self.form.parse(data, loras=loras, bases=bases)

    def _imported_updates(self, project: Project, file: Path) -> Updates:
        imported = import_lora(project, file)
        return self._lora_choices(project, [imported]) | self._tab_updates(project, self._default_sweep(project))

    def _default_sweep(self, project: Project) -> str:
        sweeps = project.sweeps()
        active = [folder.name for folder in sweeps if folder.status().state.is_active]
        return active[0] if active else sweeps[-1].name if sweeps else ""

    def _form_content(self, project: Project, target: LoraChoice | None) -> Updates:
        """Fill the form with a LoRA and its run's base, sample prompts and trigger word."""
        info = project.info()
        job = target.run.job() if target and target.run else None
        run = job if isinstance(job, TrainJob) else None
        recipe = run.recipe if run else info.recipe
        values = {
            "prompts": recipe.sample_prompts if recipe else _guide_prompts(info),
            "trigger_word": "" if target and read_lora_header(target.path).trigger_word else info.trigger_word,
        }
        return {
            **self._lora_choices(project, [target.id] if target else []),
            **self.form.fill(values),
            self.settings.bases: [run.base if run else info.base],
            self.filled_for: _form_key(project, target),
        }

    def _lora_choices(self, project: Project, selected: object) -> Updates:
        choices = lora_choices(project)
        kept = [given for given in selected if given in choices] if isinstance(selected, list) else []
        options = [(choice.label, choice.id) for choice in choices.values()]
        return {self.settings.loras: gr.update(choices=options, value=kept)}

    def _cell_count(self, job: SweepJob) -> str:
        return sweep_view.cell_count(SweepPlan(job, [read_lora_header(path) for path in job.loras]))

    def _tab_updates(self, project: Project, sweep: str, cell: str = "") -> Updates:
        """Return the updates that show a test; without one, a placeholder. The form is not updated."""
        panels, results = self.panels, self.results
        any_lora = bool(lora_choices(project)) or bool(sweep)
        common = {
            panels.notice: "",
            panels.empty: gr.Column(visible=not any_lora),
            panels.work: gr.Column(visible=any_lora),
            panels.settings_side: gr.Column(visible=any_lora),
            panels.results_side: gr.Column(visible=any_lora),
            self.sweep: sweep,
            self.signature: self._signature(project, sweep),
            results.sweeps: self._sweeps_table(project, sweep),
        }
        return common | (self._sweep_updates(project, sweep, cell) if sweep else self._placeholder_updates())

    def _placeholder_updates(self) -> Updates:
        panels, results = self.panels, self.results
        return {
            panels.title: heading("New test", "Choose settings on the left, then make the grid."),
            panels.tiles: "",
            **self._button_updates(),
            results.state: "",
            results.large: "",
            results.grid: sweep_view.empty_grid(),
            results.download: gr.DownloadButton(visible=False),
            results.advice: gr.Column(visible=True),
            results.measures: "",
            results.log_fold: gr.Accordion(visible=False),
            self.cell: "",
        }

    def _sweep_updates(self, project: Project, sweep: str, cell: str) -> Updates:
        panels, results = self.panels, self.results
        folder = sweep_named(project, sweep)
        view = SweepView.load(folder)
        failed = view.status.state is JobState.FAILED
        return {
            panels.title: sweep_view.title(view),
            panels.tiles: sweep_view.sweep_tiles(view),
            **self._button_updates(
                stop=view.is_active,
                stopping=folder.stop_requested(),
                resume=view.status.state in (JobState.STOPPED, JobState.FAILED, JobState.CREATED),
                reuse_settings=True,
            ),
            results.state: sweep_view.state_cards(view),
            **self._image_updates(view, cell if cell in view.drawn else ""),
            results.download: self._download(view),
            results.advice: gr.Column(visible=True),
            results.measures: sweep_view.measures_table(view),
            results.log_fold: gr.Accordion(visible=failed, open=failed),
            results.log: log(folder.log_tail(LOG_LINES)) if failed else "",
        }

    def _image_updates(self, view: SweepView, cell: str) -> Updates:
        home = self.studio.home
        return {
            self.results.large: sweep_view.large(view, home, cell),
            self.results.grid: sweep_view.grid(view, home, cell),
            self.cell: cell,
        }

    def _download(self, view: SweepView) -> Any:
        if view.is_active or view.grid is None:
            return gr.DownloadButton(visible=False)
        return gr.DownloadButton(value=copy_for_download(self.results.download, view.grid), visible=True)

    def _button_updates(
        self, *, stop: bool = False, stopping: bool = False, resume: bool = False, reuse_settings: bool = False
    ) -> Updates:
        buttons = self.buttons
        return {
            buttons.stop: gr.Button(
                "Stopping after this image" if stopping else "Stop and save", interactive=not stopping, visible=stop
            ),
            buttons.resume: gr.Button(visible=resume),
            buttons.reuse_settings: gr.Button(visible=reuse_settings),
        }

    def _sweeps_table(self, project: Project, selected: str) -> str:
        views = []
        for folder in project.sweeps():
            try:
                views.append(SweepView.load(folder))
            except InputError:
                continue
        return sweep_view.sweeps_table(views, selected)

    def _signature(self, project: Project, sweep: str) -> str:
        """Return a text that changes whenever the page must be updated."""
        parts = [project.name, sweep]
        for folder in project.sweeps():
            status = folder.status()
            detail = f"{status.updated_at}:{folder.stop_requested()}" if folder.name == sweep else ""
            parts.append(f"{folder.name}:{status.state}:{detail}")
        return "|".join(parts)


def _guide_prompts(info: ProjectInfo) -> list[str]:
    """Return the guide's prompts for the project's kind, in the style of its base model."""
    base = guide.find_base(info.base)
    prompts = guide.KINDS[info.kind.value].prompts
    return [base.prompt(text) if base else text for text in prompts]


def _target(project: Project, run: str | None) -> LoraChoice | None:
    """Return the LoRA that is most likely to be tested: that of the run shown in Train, else the latest."""
    choices = list(lora_choices(project).values())
    return next(
        (choice for choice in choices if run and choice.run and choice.run.name == run), next(iter(choices), None)
    )


def _form_key(project: Project, target: LoraChoice | None) -> str:
    """Return a text that changes when the form must be filled again: for another run, and at the end of the run."""
    if target is None or target.run is None:
        return project.name
    return f"{project.name}:{target.run.name}:{target.is_final}"
