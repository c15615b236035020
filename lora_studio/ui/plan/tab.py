"""The Plan tab: questions on the left, and the recipe that follows from the answers, with reasons, on the right."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import gradio as gr

from lora_studio.dataset.images.sets import project_images
from lora_studio.errors import InputError, StudioError
from lora_studio.planning.trigger import propose_triggers
from lora_studio.planning.what_if import Variable
from lora_studio.settings.job_specs import DownloadJob
from lora_studio.ui.context import Page, Studio, TabName
from lora_studio.ui.plan.first_test import start_first_test
from lora_studio.ui.plan.layout import Answers, PlanLayout, build_layout
from lora_studio.ui.plan.make_all import MakeAll
from lora_studio.ui.plan.measurement import latest_measurement, start_measurement
from lora_studio.ui.plan.render import PlanRenderer
from lora_studio.ui.plan.state import PlanPage, PlanState, jobs_signature
from lora_studio.ui.plan.view import ALL_BACK, guide_notes
from lora_studio.ui.roles import Role, allowed
from lora_studio.ui.server import Mode
from lora_studio.ui.state.base_models import list_choices
from lora_studio.ui.state.first_tests import latest_first_test
from lora_studio.ui.state.shared_paths import check_shared_model
from lora_studio.ui.tab_events import PageValues, TabEvents
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import error_card
from lora_studio.workspace.project import Project


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and register its events."""
    return PlanTab(studio, build_layout(guide_notes())).wire(tab)


class PlanTab:
    """Event handlers of the Plan tab."""

    def __init__(self, studio: Studio, layout: PlanLayout) -> None:
        self.studio = studio
        self.layout = layout
        self.render = PlanRenderer(studio, layout).render
        self.make_all = MakeAll(studio, layout.make_all)

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events. Every answer is saved, and the plan updated, at once."""
        studio, (answers, base, result, share, what_if, first_test, _, trigger_help, shown) = self.studio, self.layout
        inputs = [studio.project, *answers, what_if.variable, what_if.is_open, shown]
        panels = [*answers, *base, *result, *share, *first_test, what_if.plots, what_if.is_open, trigger_help, shown]
        outputs = [*panels, studio.tabs, studio.run, studio.timer, studio.taken_back]
        events = TabEvents(
            inputs, outputs, self.read, self.render, self.show_error, result.notice, studio.with_progress
        )
        boxes = (answers.trigger_word, answers.images, answers.vram_gib, answers.hours)
        edits = [answers.kind.input, answers.base.input, *(event for box in boxes for event in (box.blur, box.submit))]
        events.on(partial(gr.on, edits), self.update_plan, trigger_mode="always_last")
        events.on(trigger_help.click, self.pick_trigger, sends="pick")
        events.on(result.train.click, self.open_train)
        events.on(result.changes.click, self.take_back, sends="pick")
        events.on(result.recipe.click, self.take_back, sends="pick")
        events.on(share.draw.click, self.draw_picture, outputs=[*share, result.notice])
        plots = [what_if.plots, what_if.is_open, result.notice]
        events.on(what_if.fold.expand, self.show_what_if, what_if.variable, outputs=plots)
        events.on(what_if.variable.input, self.show_what_if, what_if.variable, outputs=plots)
        what_if.fold.collapse(lambda: ("", False), None, [what_if.plots, what_if.is_open], **NO_PROGRESS)
        events.on(result.measure.click, self.measure_time)
        events.on(result.stop.click, self.stop_measuring)
        events.on(base.download.click, self.download_base)
        events.on(base.stop.click, self.stop_download)
        events.on(first_test.start.click, self.test_first)
        events.on(first_test.stop.click, self.stop_first_test)
        events.on_tick(studio.timer.tick, self.tick, outputs=outputs, trigger_mode="always_last")
        events.on(tab.select, self.tab_selected, ignored_error="no_project")
        result.to_dataset.click(studio.opens(TabName.DATASET), None, [studio.tabs], **NO_PROGRESS)
        self.make_all.wire()
        return Page(self.refresh, list(dict.fromkeys([*outputs, what_if.fold, *self.make_all.outputs])))

    def read(self, values: PageValues) -> PlanPage:
        """Return the answers in the form; raises InputError for a number out of its bounds, or without a project."""
        project = self.studio.find_project(values[self.studio.project])
        saved, counted = project.info(), bool(project_images(project))
        answers = self.layout.answers.read(values, saved, counted=counted)
        if self.studio.mode is not Mode.LOCAL and answers.base != saved.base:
            check_shared_model(answers.base, self.studio.home)
        what_if = self.layout.what_if
        variable = Variable(values[what_if.variable]) if values[what_if.is_open] else None
        return PlanPage(project, saved, answers, values[self.layout.signature], variable)

    def show_error(self, error: StudioError) -> Updates:
        """Show why a handler did nothing."""
        return {self.layout.result.notice: error_card(error)}

    def refresh(self, project: Project) -> Updates:
        """Show a project's answers and its plan, with the fold "What if" closed."""
        fold = {self.layout.what_if.fold: gr.Accordion(open=False)}
        shown = self.render(self._with_models(PlanState.load(project, filled=Answers._fields)))
        return shown | fold | self.make_all.refresh(project)

    def tab_selected(self, page: PlanPage) -> PlanState:
        """Update the number of images, the trigger word that an import may have set, and the plan."""
        page.save(page.answers.model_copy(update={"trigger_word": page.saved.trigger_word}))
        return self._with_models(page.load(filled=["trigger_word"]))

    def update_plan(self, page: PlanPage) -> PlanState:
        """Save the answers and update the plan."""
        page.save(page.answers)
        return page.load()

    def pick_trigger(self, page: PlanPage, pick: object) -> PlanState:
        """Use one of the proposed trigger words."""
        if pick not in propose_triggers(page.project.name):
            raise InputError(f"{pick!r} is not among the proposals.", "Click one of them.", code="trigger")
        page.save(page.answers.model_copy(update={"trigger_word": str(pick)}))
        return page.load(filled=["trigger_word"])

    def take_back(self, page: PlanPage, pick: object) -> PlanState:
        """Set one or all of the settings that were changed in Train back to the plan's values."""
        names = [name for name in page.saved.recipe if pick in (name, ALL_BACK)]
        kept = {name: value for name, value in page.saved.recipe.items() if name not in names}
        page.save(page.answers.model_copy(update={"recipe": kept}))
        return replace(page.load(), taken_back=names)

    @allowed(Role.GUEST)
    def show_what_if(self, page: PlanPage, variable: str) -> PlanState:
        """Show the plan over the values of a variable."""
        return PlanState.load(page.project, variable=Variable(variable))

    @allowed(Role.GUEST)
    def draw_picture(self, page: PlanPage) -> PlanState:
        """Draw the plan as a picture."""
        return replace(page.load(), draws=True)

    def measure_time(self, page: PlanPage) -> PlanState:
        """Save the answers, and start a few steps of the next run to measure their time."""
        run = self.update_plan(page).next_run
        if run.recipe is None:
            raise run.error or InputError("There is no plan yet.", "Correct the answers on the left.", code="no_plan")
        start_measurement(self.studio.jobs, page.project, run.recipe)
        return replace(page.load(), is_job_started=True)

    def stop_measuring(self, page: PlanPage) -> PlanState:
        """Request that the measurement stops after the current step."""
        if (folder := latest_measurement(page.project)) is not None:
            folder.request_stop()
        return page.load()

    def download_base(self, page: PlanPage) -> PlanState:
        """Save the answers, and start or continue the download of the base."""
        base = self.update_plan(page).base
        if not base.can_download or base.download is None:
            message = f"{base.name} is on this machine, or is being downloaded."
            raise InputError(message, "Choose another base.", code="no_download")
        if base.download.exists:
            self.studio.jobs.resume(base.download)
        else:
            self.studio.jobs.start(base.download.path, DownloadJob(base=base.name))
        return replace(page.load(), is_job_started=True)

    def stop_download(self, page: PlanPage) -> PlanState:
        """Request that the download stops; what it received is kept."""
        state = page.load()
        if state.base.download is not None and state.base.is_downloading:
            state.base.download.request_stop()
        return state

    def test_first(self, page: PlanPage) -> PlanState:
        """Save the answers, and start drawing what the bare base makes of the next run's sample prompts."""
        run = self.update_plan(page).next_run
        if run.recipe is None:
            raise run.error or InputError("There is no plan yet.", "Correct the answers on the left.", code="no_plan")
        start_first_test(self.studio.jobs, page.project, run.recipe)
        return replace(page.load(), is_job_started=True)

    def stop_first_test(self, page: PlanPage) -> PlanState:
        """Request that the test of the bare base stops; finished images are kept."""
        if (folder := latest_first_test(page.project)) is not None:
            folder.request_stop()
        return page.load()

    @allowed(Role.GUEST)
    def tick(self, page: PlanPage) -> PlanState | None:
        """Show how far the jobs of the tab are, and what came of them; called while a job is active."""
        if jobs_signature(page.project) == page.signature:
            return None
        state = page.load()
        return state if state.base.is_downloading else self._with_models(state)

    def _with_models(self, state: PlanState) -> PlanState:
        """Return a state that also offers the base models that are on this machine now."""
        return replace(state, models=list_choices(self.studio.home, local=self.studio.mode is Mode.LOCAL))

    def open_train(self, page: PlanPage) -> PlanState:
        """Save the answers and open the form of the next run."""
        return replace(self.update_plan(page), opens_train=True)
