"""The Plan tab: questions on the left, and the recipe that follows from the answers, with reasons, on the right."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from lora_studio import guide
from lora_studio.dataset.images.sets import project_images
from lora_studio.dataset.training_images import read_images
from lora_studio.device import find_gpu
from lora_studio.errors import InputError
from lora_studio.planning.plan import Plan
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.plan_numbers import PlanNumbers, check_plan_number
from lora_studio.ui.context import NEW_RUN, Page, Studio, TabName, guarded, requires_project
from lora_studio.ui.plan.view import guide_notes, recipe_table
from lora_studio.ui.state.project_plan import EXPECTED_IMAGES, plan_project
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import Tone, card, empty_card, html
from lora_studio.ui.widgets.plan_summary import caution_cards, plan_tiles
from lora_studio.ui.widgets.setting_spec import SettingSpec
from lora_studio.workspace.project import Project, ProjectInfo

DATASET_CODES = frozenset(
    {"few_images", "small_images", "mixed_resolution", "bucket_waste", "unreadable", "captions_missing"}
)

IMAGES, VRAM, HOURS = (SettingSpec.of(PlanNumbers, name) for name in ("images", "vram_gib", "hours"))


class Answers(NamedTuple):
    """The questions on the left."""

    kind: gr.Radio
    base: gr.Dropdown
    trigger_word: gr.Textbox
    images: gr.Number
    vram_gib: gr.Number
    hours: gr.Number


class Result(NamedTuple):
    """The recipe on the right, with what belongs to it."""

    notice: gr.HTML
    use: gr.Button
    to_dataset: gr.Button
    tiles: gr.HTML
    recipe: gr.HTML
    cautions: gr.HTML
    guide: gr.HTML


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and wire its events."""
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=2, min_width=300):
            answers = _answers()
        with gr.Column(scale=5, min_width=340):
            result = _result()
    return PlanTab(studio, answers, result).wire(tab)


def _answers() -> Answers:
    gpu = find_gpu()
    found = f"Found: {gpu.name}, {gpu.vram_gib:g} GiB." if gpu else f"No GPU was found here. {VRAM.why}"
    with gr.Group(elem_classes="answers"):
        return Answers(
            kind=gr.Radio(
                [(kind.value.capitalize(), kind.value) for kind in LoraKind],
                label="What are you making?",
                info="Sets the network, the repeats and the sample prompts.",
                elem_id="plan-kind",
            ),
            base=gr.Dropdown(
                list(guide.BASES),
                allow_custom_value=True,
                label="Base model",
                info="Choose one, or type a Hub repository, a folder or a .safetensors file.",
                elem_id="plan-base",
            ),
            trigger_word=gr.Textbox(
                label="Trigger word",
                info="Unique and easy to type, for example saria_zelda.",
                max_lines=1,
                elem_id="plan-trigger",
            ),
            images=gr.Number(EXPECTED_IMAGES, label=IMAGES.label, info=IMAGES.why, precision=0, elem_id="plan-images"),
            vram_gib=gr.Number(None, label=VRAM.label, info=found, elem_id="plan-vram"),
            hours=gr.Number(None, label=HOURS.label, info=HOURS.why, elem_id="plan-hours"),
        )


def _result() -> Result:
    notice = html(elem_id="plan-notice")
    with gr.Row(elem_classes="actions"):
        use = gr.Button("Use this recipe", variant="primary", scale=2, elem_id="plan-use")
        to_dataset = gr.Button("Open the dataset", scale=1)
    summary = html(elem_id="plan-tiles")
    cautions = html(elem_id="plan-cautions")
    recipe = html(elem_id="plan-recipe")
    with gr.Accordion("What the guide says", open=False):
        advice = html(guide_notes())
    return Result(notice, use, to_dataset, summary, recipe, cautions, advice)


class PlanTab:
    """Event handlers of the Plan tab."""

    def __init__(self, studio: Studio, answers: Answers, result: Result) -> None:
        self.studio = studio
        self.answers = answers
        self.result = result

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events. Every answer is saved, and the plan updated, at once."""
        answers, result = self.answers, self.result
        outputs = [*answers, *result]
        listeners = [
            answers.kind.input,
            answers.base.input,
            *(
                event
                for box in (answers.trigger_word, answers.images, answers.vram_gib, answers.hours)
                for event in (box.blur, box.submit)
            ),
        ]
        gr.on(
            listeners,
            guarded(result.notice, self.update_plan),
            {self.studio.project, *answers},
            outputs,
            **self.studio.with_progress,
            trigger_mode="always_last",
        )
        result.use.click(
            guarded(result.notice, self.use_recipe),
            {self.studio.project, *answers},
            [*outputs, self.studio.tabs, self.studio.run],
            **self.studio.with_progress,
        )
        result.to_dataset.click(lambda: self.studio.goto(TabName.DATASET), None, [self.studio.tabs], **NO_PROGRESS)
        tab.select(
            guarded(result.notice, self.tab_selected),
            {self.studio.project, *answers},
            outputs,
            **self.studio.with_progress,
        )
        return Page(self.refresh, outputs)

    def refresh(self, project: Project) -> Updates:
        """Show a project's answers and its plan."""
        info = project.info()
        gpu = find_gpu()
        vram = info.vram_gib if info.vram_gib is not None else (gpu.vram_gib if gpu else None)
        shown = {
            self.answers.kind: info.kind.value,
            self.answers.base: _base_box(info.base),
            self.answers.trigger_word: info.trigger_word,
            self.answers.images: _images_box(project, expected=EXPECTED_IMAGES),
            self.answers.vram_gib: vram,
            self.answers.hours: None,
        }
        try:
            return shown | self._plan_updates(plan_project(project, info, vram_gib=vram))
        except InputError as error:
            return shown | self._error_updates(error)

    @requires_project
    def tab_selected(self, data: dict[Any, Any]) -> Updates:
        """Update the number of images, the trigger word that an import may have set, and the plan."""
        project = self.studio.find_project(data[self.studio.project])
        changed = {self.answers.trigger_word: project.info().trigger_word}
        images = {self.answers.images: _images_box(project)}
        return changed | images | self.update_plan({**data, **changed})

    def update_plan(self, data: dict[Any, Any]) -> Updates:
        """Save the answers and update the plan."""
        project = self.studio.find_project(data[self.studio.project])
        info = self._save(project, data)
        about = {self.answers.base: gr.update(info=_about_base(info.base))}
        return about | self._plan_updates(self._plan(project, info, data))

    def use_recipe(self, data: dict[Any, Any]) -> Updates:
        """Save the recipe and open it in Train."""
        project = self.studio.find_project(data[self.studio.project])
        info = self._save(project, data)
        plan = self._plan(project, info, data)
        project.save_info(info.model_copy(update={"recipe": plan.recipe}))
        return self._plan_updates(plan) | self.studio.goto(TabName.TRAIN) | {self.studio.run: NEW_RUN}

    def _save(self, project: Project, data: dict[Any, Any]) -> ProjectInfo:
        check_plan_number("vram_gib", data[self.answers.vram_gib])
        old = project.info()
        new = ProjectInfo.parse(
            old.model_dump()
            | {
                "kind": data[self.answers.kind] or old.kind,
                "base": (data[self.answers.base] or "").strip(),
                "trigger_word": (data[self.answers.trigger_word] or "").strip(),
                "vram_gib": data[self.answers.vram_gib],
            }
        )
        if new != old:
            project.save_info(new)
        return new

    def _plan(self, project: Project, info: ProjectInfo, data: dict[Any, Any]) -> Plan:
        """Plan with the answers in the form; raises InputError for a number out of its bounds."""
        images = data[self.answers.images]
        return plan_project(
            project,
            info,
            expected_images=EXPECTED_IMAGES if images is None else images,
            vram_gib=info.vram_gib,
            hours=data[self.answers.hours],
        )

    def _plan_updates(self, plan: Plan) -> Updates:
        result = self.result
        has_dataset_warning = bool(DATASET_CODES & {caution.code for caution in plan.warnings})
        return {
            result.notice: "",
            result.use: gr.Button(interactive=True),
            result.to_dataset: gr.Button("Check the dataset" if has_dataset_warning else "Open the dataset"),
            result.tiles: plan_tiles(plan),
            result.recipe: recipe_table(plan),
            result.cautions: caution_cards(plan),
        }

    def _error_updates(self, error: InputError) -> Updates:
        result = self.result
        return {
            result.notice: card("No plan yet", error.message, error.remedy, Tone.ERROR),
            result.use: gr.Button(interactive=False),
            result.tiles: "",
            result.recipe: empty_card("The recipe will appear here", "Correct the answers on the left."),
            result.cautions: "",
        }


def _base_box(base: str) -> Any:
    known = guide.find_base(base)
    return gr.update(value=known.name if known else base, info=_about_base(base))


def _about_base(base: str) -> str:
    known = guide.find_base(base)
    return f"Good for {known.good_for}. {known.why}" if known else "Custom model: assumed to be SDXL."


def _images_box(project: Project, *, expected: int | None = None) -> Any:
    """Return the update of the field: the number of images that can be trained on, without any images `expected`.

    Without `expected`, the field keeps what the user typed.
    """
    if project_images(project):
        return gr.update(
            value=read_images(project.dataset_dir).total,
            info="Counted in the dataset, with their sizes.",
            interactive=False,
        )
    typed: dict[str, Any] = {} if expected is None else {"value": expected}
    return gr.update(info=f"{IMAGES.why} The dataset is empty.", interactive=True, **typed)
