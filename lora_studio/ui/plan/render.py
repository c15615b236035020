"""The Plan tab's state as updates of its components."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from lora_studio.models.catalogue import find_base
from lora_studio.planning.project_plan import available_vram_gib
from lora_studio.ui.context import NEW_RUN, Studio, TabName
from lora_studio.ui.plan import view
from lora_studio.ui.plan.layout import IMAGES, Answers, BasePanel, PlanLayout, Result
from lora_studio.ui.plan.share import share_updates
from lora_studio.ui.plan.state import PlanState
from lora_studio.ui.plan.what_if import what_if_updates
from lora_studio.ui.state.base_models import base_choices
from lora_studio.ui.state.first_tests import before_training
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import empty_card, error_card
from lora_studio.ui.widgets.plan_summary import caution_cards, plan_tiles

DATASET_CODES = frozenset(
    {"few_images", "small_images", "mixed_resolution", "bucket_waste", "unreadable", "captions_missing"}
    | {"trigger_not_in_captions"}
)


@dataclass(frozen=True)
class PlanRenderer:
    """Renders states for the components of a layout."""

    studio: Studio
    layout: PlanLayout

    def render(self, state: PlanState) -> Updates:
        """Return the updates that show a state."""
        updates = _answer_updates(self.layout.answers, state) | _result_updates(self.layout.result, state)
        updates |= _base_updates(self.layout.base, state) | self._first_test_updates(state)
        updates[self.layout.trigger_help] = view.trigger_help(state.planned)
        updates[self.layout.signature] = state.signature
        plan = state.planned.plan
        updates |= share_updates(self.layout.share, plan, state.planned.project.name, draws=state.draws)
        updates |= what_if_updates(self.layout.what_if, plan, state.sweep)
        if state.taken_back:
            updates[self.studio.taken_back] = [*state.taken_back]
        if state.is_job_started:
            updates |= self.studio.start_polling()
        if state.opens_train:
            updates |= {self.studio.run: NEW_RUN} | self.studio.goto(TabName.TRAIN)
        return updates

    def _first_test_updates(self, state: PlanState) -> Updates:
        panel, test = self.layout.first_test, state.first_test
        is_testing = test is not None and test.is_active
        has_recipe = state.next_run.recipe is not None
        return {
            panel.start: gr.Button(visible=not is_testing, interactive=has_recipe and state.base.is_here),
            panel.stop: gr.Button(visible=is_testing),
            panel.images: view.first_test_state(test) + before_training(test, self.studio.home),
        }


def _base_updates(panel: BasePanel, state: PlanState) -> Updates:
    base = state.base
    updates: Updates = {
        panel.facts: view.base_facts(base),
        panel.download: gr.Button(view.download_label(base), visible=base.can_download),
        panel.stop: gr.Button(visible=base.is_downloading),
    }
    if state.models is not None:
        updates[panel.models] = view.models_list(state.models, state.planned.project.home)
    return updates


def _answer_updates(answers: Answers, state: PlanState) -> Updates:
    info = state.planned.info
    known = find_base(info.base)
    about = f"Good for {known.good_for}. {known.why}" if known else ""
    if known is None and state.planned.plan is not None:
        about = state.planned.plan.base_about or "A repository of the Hub that was not looked at yet."
    counted = "Counted in the dataset, with their sizes."
    updates: Updates = {
        answers.base: gr.update(info=about)
        | ({"choices": base_choices(state.models)} if state.models is not None else {}),
        answers.images: gr.update(
            interactive=state.images is None,
            info=f"{IMAGES.why} The dataset is empty." if state.images is None else counted,
        ),
    }
    contents = {
        "kind": info.kind.value,
        "base": known.name if known else info.base,
        "trigger_word": info.trigger_word,
        "images": info.expected_images if state.images is None else state.images,
        "vram_gib": available_vram_gib(info),
        "hours": info.hours,
    }
    filled = {*state.filled, *([] if state.images is None else ["images"]), *([] if state.models is None else ["base"])}
    for name in filled:
        component = getattr(answers, name)
        updates[component] = gr.update(value=contents[name]) | updates.get(component, {})
    return updates


def _result_updates(result: Result, state: PlanState) -> Updates:
    plan, error = state.planned.plan, state.planned.error
    codes = {caution.code for caution in plan.warnings} if plan else set()
    status = state.measured.status() if state.measured else None
    is_measuring = status is not None and status.state.is_active
    return {
        result.measure: gr.Button(visible=not is_measuring, interactive=plan is not None and state.images is not None),
        result.stop: gr.Button(visible=is_measuring),
        result.measurement: view.measurement(status) if status else "",
        result.notice: error_card(error, "No plan yet") if error else "",
        result.train: gr.Button(interactive=plan is not None),
        result.to_dataset: gr.Button("Check the dataset" if codes & DATASET_CODES else "Open the dataset"),
        result.tiles: plan_tiles(plan) if plan else "",
        result.changes: view.changes_note(state.next_run) if plan else "",
        result.cautions: caution_cards(plan, with_guide=True) if plan else "",
        result.memory: view.memory_table(plan) if plan else "",
        result.recipe: view.recipe_table(plan, state.next_run)
        if plan
        else empty_card("The recipe will appear here", "Correct the answers on the left."),
    }
