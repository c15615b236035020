"""The Plan tab: questions on the left, and the recipe that follows from the answers, with reasons, on the right."""

from __future__ import annotations

import gradio as gr

from lora_studio.dataset.images.sets import project_images
from lora_studio.ui.context import NEW_RUN, Page, Studio, TabName, guarded, requires_project
from lora_studio.ui.plan.layout import Answers, PlanLayout, build_layout
from lora_studio.ui.plan.render import render
from lora_studio.ui.plan.state import PlanState
from lora_studio.ui.plan.view import guide_notes
from lora_studio.ui.tab_events import PageValues
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.workspace.project import Project


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and wire its events."""
    return PlanTab(studio, build_layout(guide_notes())).wire(tab)


class PlanTab:
    """Event handlers of the Plan tab."""

    def __init__(self, studio: Studio, layout: PlanLayout) -> None:
        self.studio = studio
        self.layout = layout

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events. Every answer is saved, and the plan updated, at once."""
        studio, (answers, result) = self.studio, self.layout
        outputs = [*answers, *result]
        inputs: set[gr.blocks.Block] = {studio.project, *answers}
        boxes = (answers.trigger_word, answers.images, answers.vram_gib, answers.hours)
        left = [event for box in boxes for event in (box.blur, box.submit)]
        gr.on(
            [answers.kind.input, answers.base.input, *left],
            guarded(result.notice, self.update_plan),
            inputs,
            outputs,
            **studio.with_progress,
            trigger_mode="always_last",
        )
        result.train.click(
            guarded(result.notice, self.open_train),
            inputs,
            [*outputs, studio.tabs, studio.run],
            **studio.with_progress,
        )
        result.to_dataset.click(lambda: studio.goto(TabName.DATASET), None, [studio.tabs], **NO_PROGRESS)
        tab.select(guarded(result.notice, self.tab_selected), inputs, outputs, **studio.with_progress)
        return Page(self.refresh, outputs)

    def refresh(self, project: Project) -> Updates:
        """Show a project's answers and its plan."""
        return render(self.layout, PlanState.load(project, filled=Answers._fields))

    @requires_project
    def tab_selected(self, data: PageValues) -> Updates:
        """Update the number of images, the trigger word that an import may have set, and the plan."""
        project = self.studio.find_project(data[self.studio.project])
        trigger_word = self.layout.answers.trigger_word
        self._save({**data, trigger_word: project.info().trigger_word})
        return render(self.layout, PlanState.load(project, filled=["trigger_word"]))

    def update_plan(self, data: PageValues) -> Updates:
        """Save the answers and update the plan."""
        return render(self.layout, PlanState.load(self._save(data)))

    def open_train(self, data: PageValues) -> Updates:
        """Save the answers and open the form of a new run."""
        return self.update_plan(data) | self.studio.goto(TabName.TRAIN) | {self.studio.run: NEW_RUN}

    def _save(self, data: PageValues) -> Project:
        """Save the answers in the form; raises InputError for a number out of its bounds."""
        project = self.studio.find_project(data[self.studio.project])
        old = project.info()
        new = self.layout.answers.read(data, old, counted=bool(project_images(project)))
        if new != old:
            project.save_info(new)
        return project
