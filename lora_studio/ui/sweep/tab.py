"""Test: did it work? What to test on the left; the grid, its measures and how to read them on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from lora_studio import guide
from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.lora.header import read_lora_header
from lora_studio.sampling.cells import SweepPlan
from lora_studio.settings.job_specs import SweepJob, TrainJob
from lora_studio.ui.context import Page, Studio, TabName, guarded, with_project
from lora_studio.ui.server import Mode
from lora_studio.ui.state.lora_files import Choice, add_lora, chosen_loras, lora_choices
from lora_studio.ui.state.sweep_view import SweepView, sweep_named
from lora_studio.ui.sweep import view as test_view
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import empty_state, error_card, heading, html, pickable
from lora_studio.ui.widgets.settings_form import SettingsForm, build_fields
from lora_studio.ui.widgets.thumbnails import copy_to_save
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Project, ProjectInfo

SIMPLE = ("prompts", "strengths")
FOLDED = ("seed", "steps", "guidance", "width", "height", "trigger_word", "negative_prompt")
LOG_LINES = 40


class Buttons(NamedTuple):
    """What can be done; only what applies is visible."""

    start: gr.Button
    stop: gr.Button
    resume: gr.Button
    again: gr.Button


class Question(NamedTuple):
    """What to test, on the left."""

    loras: gr.Dropdown
    bases: gr.Dropdown
    count: gr.HTML


class Frame(NamedTuple):
    """The parts of the tab: `empty` stands in the place of `work` and both sides while there is no LoRA."""

    notice: gr.HTML
    empty: gr.Column
    work: gr.Column
    question_side: gr.Column
    answer_side: gr.Column
    title: gr.HTML
    figures: gr.HTML


class Elsewhere(NamedTuple):
    """The way for LoRA files that the studio did not make. A path is asked for only where the studio is local."""

    upload: gr.UploadButton
    path: gr.Textbox
    add: gr.Button


class Answer(NamedTuple):
    """What came of it, on the right."""

    state: gr.HTML
    large: gr.HTML
    grid: gr.HTML
    download: gr.DownloadButton
    reading: gr.Column
    measures: gr.HTML
    sweeps: gr.HTML
    log_fold: gr.Accordion
    log: gr.HTML


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and wire its events."""
    notice = html(elem_id="test-notice")
    empty = empty_state(
        "No LoRA to test yet",
        "Train one first: its final file and that of every epoch can be compared here, at any strength. "
        "Or bring a LoRA that you have.",
        ["Open Train"],
        visible=False,
    )
    with gr.Column() as work:
        with gr.Row(elem_classes="title-row"):
            with gr.Column(scale=3, min_width=300):
                title = html(elem_id="test-title")
            with gr.Column(scale=2, min_width=320), gr.Row(elem_classes="actions"):
                buttons = Buttons(
                    gr.Button("Make the grid", variant="primary", elem_id="test-start"),
                    gr.Button("Stop and keep", elem_id="test-stop", visible=False),
                    gr.Button("Resume", elem_id="test-resume", visible=False),
                    gr.Button("Copy its settings", elem_id="test-again", visible=False),
                )
        figures = html(elem_id="test-tiles")
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=2, min_width=300):
            with gr.Column() as question_side:
                question, form = _question()
            elsewhere = _elsewhere(local=studio.mode is Mode.LOCAL)
        with gr.Column(scale=5, min_width=340) as answer_side:
            answer = _answer()
    frame = Frame(notice, empty.group, work, question_side, answer_side, title, figures)
    return SweepTab(studio, frame, buttons, question, form, elsewhere, answer).wire(tab, empty.buttons[0])


def _question() -> tuple[Question, SettingsForm[SweepJob]]:
    with gr.Group(elem_classes="answers"):
        loras = gr.Dropdown(
            [],
            multiselect=True,
            max_choices=20,
            label="LoRAs",
            info="A run's final file, or one of its epochs: the best is often not the last.",
            elem_id="test-loras",
        )
        bases = gr.Dropdown(
            list(guide.BASES),
            multiselect=True,
            max_choices=8,
            allow_custom_value=True,
            label="Base models",
            info="The one it was trained on; the guide also tries others of the same family.",
            elem_id="test-bases",
        )
        form = build_fields(SweepJob, SIMPLE, "test")
    with gr.Accordion("Seed, steps, size and more", open=False):
        rest = build_fields(SweepJob, FOLDED, "test")
    form = form.joined(rest)
    form.wire()
    return Question(loras, bases, html(elem_id="test-count")), form


def _elsewhere(*, local: bool) -> Elsewhere:
    with gr.Accordion("A LoRA from elsewhere", open=False):
        html('<p class="hint">A .safetensors file for SDXL. It is checked, and copied into the project.</p>')
        upload = gr.UploadButton(
            "Upload a LoRA file", file_types=[".safetensors"], file_count="single", elem_id="test-upload"
        )
        path = gr.Textbox(
            label="Or its path on this computer",
            info="Only while nobody else can reach the studio.",
            max_lines=1,
            elem_id="test-path",
            visible=local,
        )
        add = gr.Button("Add this file", elem_id="test-add", visible=local)
    return Elsewhere(upload, path, add)


def _answer() -> Answer:
    state = html(elem_id="test-state")
    large = pickable(elem_id="test-large")
    grid = pickable(elem_id="test-grid")
    download = gr.DownloadButton("Download the grid as a picture", elem_id="test-download", visible=False)
    with gr.Column(visible=False) as reading:
        html(test_view.reading())
        with gr.Accordion("How to read the grid", open=False):
            html(test_view.how_to_read())
    measures = html(elem_id="test-measures")
    with gr.Accordion("Log", open=False, visible=False) as log_fold:
        log = html(elem_id="test-log")
    sweeps = pickable(elem_id="test-sweeps")
    return Answer(state, large, grid, download, reading, measures, sweeps, log_fold, log)


class SweepTab:
    """Event handlers of the Test tab."""

    def __init__(
        self,
        studio: Studio,
        frame: Frame,
        buttons: Buttons,
        question: Question,
        form: SettingsForm[SweepJob],
        elsewhere: Elsewhere,
        answer: Answer,
    ) -> None:
        self.studio = studio
        self.frame = frame
        self.buttons = buttons
        self.question = question
        self.form = form
        self.elsewhere = elsewhere
        self.answer = answer
        self.sweep = gr.State("")  # the name of the test that is shown
        self.cell = gr.State("")  # the name of its picture that is shown large
        self.seen = gr.State("")
        self.filled_for = gr.State("")  # see _stamp

    def wire(self, tab: gr.Tab, to_train: gr.Button) -> Page:
        """Register the events."""
        studio, buttons, answer = self.studio, self.buttons, self.answer
        shown = [*self.frame, *buttons, *answer, self.sweep, self.cell, self.seen, studio.timer]
        asked = [self.question.loras, self.question.bases, self.question.count, *self.form.outputs, self.filled_for]
        chosen = {studio.project, self.sweep}
        contents = {studio.project, self.question.loras, self.question.bases, *self.form.inputs}
        form_events = [self.question.loras.change, self.question.bases.change, *self.form.edits]

        def on(event: Any, handler: Any, inputs: Any, outputs: Any, **options: Any) -> None:
            event(guarded(self.frame.notice, handler), inputs, outputs, **studio.with_progress, **options)

        on(buttons.start.click, self.start_sweep, contents, [*shown, *asked])
        on(buttons.stop.click, self.stop_sweep, chosen, shown)
        on(buttons.resume.click, self.resume_sweep, chosen, shown)
        on(buttons.again.click, self.reuse_settings, chosen, [self.frame.notice, *asked])
        on(answer.sweeps.click, self.select_sweep, [studio.project], shown)
        pictures = [answer.large, answer.grid, self.cell, self.frame.notice]
        for place in (answer.grid, answer.large):
            on(place.click, self.select_cell, [studio.project, self.sweep], pictures, scroll_to_output=True)
        on(self.elsewhere.upload.upload, self.upload_lora, [studio.project, self.elsewhere.upload], [*shown, *asked])
        if studio.mode is Mode.LOCAL:
            added = {studio.project, self.elsewhere.path}
            gr.on(
                [self.elsewhere.add.click, self.elsewhere.path.submit],
                guarded(self.frame.notice, self.add_lora_path),
                added,
                [*shown, *asked, self.elsewhere.path],
                **studio.with_progress,
            )
        state = {studio.run, self.sweep, self.filled_for, *contents}
        on(tab.select, self.tab_selected, state, [*shown, *asked])
        to_train.click(lambda: studio.goto(TabName.TRAIN), None, [studio.tabs], **NO_PROGRESS)
        gr.on(
            form_events,
            self.update_cell_count,
            contents,
            [self.question.count],
            **NO_PROGRESS,
            trigger_mode="always_last",
        )
        studio.timer.tick(
            self.tick,
            [studio.project, self.sweep, self.cell, self.seen],
            shown,
            **NO_PROGRESS,
            queue=False,
            trigger_mode="always_last",
        )
        return Page(self.refresh, [*shown, *asked])

    def refresh(self, project: Project) -> Updates:
        """Show a project: the latest test, and the form filled from the latest run."""
        asked = self.form.fill(self.form.defaults) | self._fill(project, _target(project, None))
        return asked | self._show(project, self._default_sweep(project))

    @with_project
    def tab_selected(self, data: dict[Any, Any]) -> Updates:
        """The tab was opened: what was typed stays, unless another run was looked at in Train meanwhile."""
        project = self.studio.find_project(data[self.studio.project])
        target = _target(project, data[self.studio.run])
        if data[self.filled_for] != _stamp(project, target):
            asked = self._fill(project, target)
        else:
            asked = self._choices(project, data[self.question.loras])
        names = {folder.name for folder in project.sweeps()}
        sweep = data[self.sweep]
        return asked | self._show(project, sweep if sweep in names else self._default_sweep(project))

    def start_sweep(self, data: dict[Any, Any]) -> Updates:
        """Write the job and start its worker process."""
        project = self.studio.find_project(data[self.studio.project])
        loras = chosen_loras(project, data[self.question.loras])
        for path in loras:
            read_lora_header(path)
        try:
            job = self._job(loras, data)
        except ConfigError as error:
            return {self.frame.notice: error_card(error)} | self.form.mark_errors(data)
        folder = self.studio.jobs.start(project.new_sweep_dir(), job)
        return self._show(project, folder.name) | self.studio.start_polling()

    def stop_sweep(self, data: dict[Any, Any]) -> Updates:
        """Ask the sweep to end; the pictures that are there stay."""
        project, name = self._chosen(data)
        sweep_named(project, name).request_stop()
        return self._show(project, name)

    def resume_sweep(self, data: dict[Any, Any]) -> Updates:
        """Draw what is missing."""
        project, name = self._chosen(data)
        folder = sweep_named(project, name)
        if folder.status().state.is_active:
            raise InputError(f"Test {name} is at work already.", "Wait for it, or stop it first.", code="busy")
        self.studio.jobs.resume(folder)
        return self._show(project, name) | self.studio.start_polling()

    def reuse_settings(self, data: dict[Any, Any]) -> Updates:
        """Fill the form with what the shown test was asked."""
        project, name = self._chosen(data)
        job = SweepView.of(sweep_named(project, name)).job
        ids = [choice.id for choice in lora_choices(project).values() if choice.path in job.loras]
        return {
            **self._choices(project, ids),
            **self.form.fill(dict(job)),
            self.question.bases: job.bases,
            self.question.count: self._count(job),
        }

    def select_sweep(self, project_name: str, event: gr.EventData) -> Updates:
        """Look at another test."""
        project = self.studio.find_project(project_name)
        return self._show(project, sweep_named(project, str(event.pick)).name)

    def select_cell(self, project_name: str, sweep: str, event: gr.EventData) -> Updates:
        """Show one picture large, or no more."""
        view = SweepView.of(sweep_named(self.studio.find_project(project_name), sweep))
        name = "" if event.pick == test_view.CLOSE else view.name(view.cell(event.pick))
        return self._pictures(view, name)

    def upload_lora(self, project_name: str, file: str | None) -> Updates:
        """A LoRA file was uploaded."""
        project = self.studio.find_project(project_name)
        if not file:
            raise InputError("No file came in.", "Choose a .safetensors file.", code="no_file")
        return self._added(project, Path(file))

    def add_lora_path(self, data: dict[Any, Any]) -> Updates:
        """A file of this computer was named; only while nobody else can reach the studio."""
        project = self.studio.find_project(data[self.studio.project])
        text = (data[self.elsewhere.path] or "").strip().strip("\"'")
        if not text:
            raise InputError("No path was given.", "Write the path of a .safetensors file.", code="no_file")
        return self._added(project, Path(text).expanduser()) | {self.elsewhere.path: ""}

    def update_cell_count(self, data: dict[Any, Any]) -> Any:
        """The form changed: how many pictures it would make. What is wrong is marked at its field."""
        try:
            project = self.studio.find_project(data[self.studio.project])
            return {self.question.count: self._count(self._job(chosen_loras(project, data[self.question.loras]), data))}
        except StudioError:
            return {self.question.count: ""}

    def tick(self, project_name: str, sweep: str, cell: str, seen: str) -> Any:
        """Show what is new; called while a job is at work."""
        try:
            project = self.studio.find_project(project_name)
            if self._signature(project, sweep) == seen:
                return gr.skip()
            return self._show(project, sweep, cell)
        except StudioError:
            return gr.skip()

    def _chosen(self, data: dict[Any, Any]) -> tuple[Project, str]:
        project = self.studio.find_project(data[self.studio.project])
        return project, data[self.sweep] or self._default_sweep(project)

    def _job(self, loras: list[Path], data: dict[Any, Any]) -> SweepJob:
        bases = [base.strip() for base in data[self.question.bases] or [] if isinstance(base, str) and base.strip()]
        if not bases:
            raise ConfigError(["No base model is chosen."], "Choose one under Base models.")
        return self.form.parse(data, loras=loras, bases=bases)

    def _added(self, project: Project, file: Path) -> Updates:
        added = add_lora(project, file)
        return self._choices(project, [added]) | self._show(project, self._default_sweep(project))

    def _default_sweep(self, project: Project) -> str:
        sweeps = project.sweeps()
        active = [folder.name for folder in sweeps if folder.status().state.is_active]
        return active[0] if active else sweeps[-1].name if sweeps else ""

    def _fill(self, project: Project, target: Choice | None) -> Updates:
        """Ask for a LoRA as its run would: its base, its sample prompts, its trigger word."""
        info = project.info()
        job = target.run.job() if target and target.run else None
        run = job if isinstance(job, TrainJob) else None
        recipe = run.recipe if run else info.recipe
        values = {
            "prompts": recipe.sample_prompts if recipe else _guide_prompts(info),
            "trigger_word": "" if target and read_lora_header(target.path).trigger_word else info.trigger_word,
        }
        return {
            **self._choices(project, [target.id] if target else []),
            **self.form.fill(values),
            self.question.bases: [run.base if run else info.base],
            self.filled_for: _stamp(project, target),
        }

    def _choices(self, project: Project, chosen: object) -> Updates:
        choices = lora_choices(project)
        kept = [given for given in chosen if given in choices] if isinstance(chosen, list) else []
        options = [(choice.label, choice.id) for choice in choices.values()]
        return {self.question.loras: gr.update(choices=options, value=kept)}

    def _count(self, job: SweepJob) -> str:
        plan = SweepPlan(job, [read_lora_header(path) for path in job.loras])
        return test_view.count(plan)

    def _show(self, project: Project, sweep: str, cell: str = "") -> Updates:
        """The whole tab but the form; `sweep` may be empty."""
        frame, answer = self.frame, self.answer
        any_lora = bool(lora_choices(project)) or bool(sweep)
        common = {
            frame.notice: "",
            frame.empty: gr.Column(visible=not any_lora),
            frame.work: gr.Column(visible=any_lora),
            frame.question_side: gr.Column(visible=any_lora),
            frame.answer_side: gr.Column(visible=any_lora),
            self.sweep: sweep,
            self.seen: self._signature(project, sweep),
            answer.sweeps: self._sweeps(project, sweep),
        }
        return common | (self._show_sweep(project, sweep, cell) if sweep else self._show_promise())

    def _show_promise(self) -> Updates:
        frame, answer = self.frame, self.answer
        return {
            frame.title: heading("New test", "Choose on the left, then make the grid."),
            frame.figures: "",
            **self._buttons(),
            answer.state: "",
            answer.large: "",
            answer.grid: test_view.promise(),
            answer.download: gr.DownloadButton(visible=False),
            answer.reading: gr.Column(visible=True),
            answer.measures: "",
            answer.log_fold: gr.Accordion(visible=False),
            self.cell: "",
        }

    def _show_sweep(self, project: Project, sweep: str, cell: str) -> Updates:
        frame, answer = self.frame, self.answer
        folder = sweep_named(project, sweep)
        view = SweepView.of(folder)
        failed = view.status.state is JobState.FAILED
        return {
            frame.title: test_view.title(view),
            frame.figures: test_view.sweep_tiles(view),
            **self._buttons(
                stop=view.alive,
                stopping=folder.stop_requested(),
                resume=view.status.state in (JobState.STOPPED, JobState.FAILED, JobState.CREATED),
                again=True,
            ),
            answer.state: test_view.state_card(view),
            **self._pictures(view, cell if cell in view.drawn else ""),
            answer.download: self._download(view),
            answer.reading: gr.Column(visible=True),
            answer.measures: test_view.measures(view),
            answer.log_fold: gr.Accordion(visible=failed, open=failed),
            answer.log: test_view.log(folder.log_tail(LOG_LINES)) if failed else "",
        }

    def _pictures(self, view: SweepView, cell: str) -> Updates:
        home = self.studio.home
        return {
            self.answer.large: test_view.large(view, home, cell),
            self.answer.grid: test_view.grid(view, home, cell),
            self.cell: cell,
        }

    def _download(self, view: SweepView) -> Any:
        if view.alive or view.grid is None:
            return gr.DownloadButton(visible=False)
        return gr.DownloadButton(value=copy_to_save(self.answer.download, view.grid), visible=True)

    def _buttons(
        self, *, stop: bool = False, stopping: bool = False, resume: bool = False, again: bool = False
    ) -> Updates:
        buttons = self.buttons
        return {
            buttons.stop: gr.Button(
                "Stopping" if stopping else "Stop and keep", interactive=not stopping, visible=stop
            ),
            buttons.resume: gr.Button(visible=resume),
            buttons.again: gr.Button(visible=again),
        }

    def _sweeps(self, project: Project, shown: str) -> Any:
        views = []
        for folder in project.sweeps():
            try:
                views.append(SweepView.of(folder))
            except InputError:
                continue
        return test_view.sweeps_table(views, shown)

    def _signature(self, project: Project, sweep: str) -> str:
        """Changes whenever there is something new to show."""
        parts = [project.name, sweep]
        for folder in project.sweeps():
            status = folder.status()
            detail = f"{status.updated_at}:{folder.stop_requested()}" if folder.name == sweep else ""
            parts.append(f"{folder.name}:{status.state}:{detail}")
        return "|".join(parts)


def _guide_prompts(info: ProjectInfo) -> list[str]:
    """The guide's prompts for the project's kind, written as its base likes them."""
    base = guide.find_base(info.base)
    prompts = guide.KINDS[info.kind.value].prompts
    return [base.prompt(text) if base else text for text in prompts]


def _target(project: Project, run: str | None) -> Choice | None:
    """What is most likely to be tested: the LoRA of the run that Train shows, else the latest."""
    choices = list(lora_choices(project).values())
    return next(
        (choice for choice in choices if run and choice.run and choice.run.name == run), next(iter(choices), None)
    )


def _stamp(project: Project, target: Choice | None) -> str:
    """What the form was filled for: it is filled again for another run, and for the end of the same."""
    if target is None or target.run is None:
        return project.name
    return f"{project.name}:{target.run.name}:{target.final}"
