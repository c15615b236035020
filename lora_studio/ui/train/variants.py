"""Several variants of the form as runs of the queue: a grid over one or two settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.planning.project_plan import NextRun
from lora_studio.planning.variants import MAX_VARIANTS, Axis, Variant, variants
from lora_studio.plurals import format_count
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.widgets.formatting import format_duration
from lora_studio.ui.widgets.html import card, hint, html
from lora_studio.ui.widgets.setting_spec import SettingSpec

NAMES_SHOWN = 6


class VariantFields(NamedTuple):
    """The components: two settings with their values."""

    first: gr.Dropdown
    first_values: gr.Textbox
    second: gr.Dropdown
    second_values: gr.Textbox
    summary: gr.HTML
    enqueue: gr.Button


def build_variant_fields() -> VariantFields:
    """Create the components in a fold of their own."""
    choices = [(SettingSpec.of(Recipe, name).label, name) for name in Recipe.model_fields if _can_vary(name)]
    with gr.Accordion("Several variants", open=False, elem_id="train-variants"):
        html(hint(f"One run for each combination, at most {MAX_VARIANTS}. All else stays as it is in the form."))
        with gr.Row(elem_classes="fields"):
            first = gr.Dropdown(choices, value=None, label="Setting", elem_id="train-variant-1")
            first_values = _values_field("train-values-1", "5e-4, 2e-4, 1e-4")
            second = gr.Dropdown(choices, value=None, label="Second setting, optional", elem_id="train-variant-2")
            second_values = _values_field("train-values-2", "16, 32")
        summary = html(elem_id="train-variants-summary")
        enqueue = gr.Button("Add the variants to the queue", elem_id="train-variants-add")
    return VariantFields(first, first_values, second, second_values, summary, enqueue)


def _values_field(elem_id: str, example: str) -> gr.Textbox:
    return gr.Textbox(label="Values, separated by commas", placeholder=example, max_lines=1, elem_id=elem_id)


def _can_vary(name: str) -> bool:
    spec = SettingSpec.of(Recipe, name)
    return not (spec.is_lines or spec.is_number_list)


def variants_of_form(recipe: Recipe, *given: str | None) -> list[Variant]:
    """Return the variants that the fields describe: two pairs of setting and values. Raises ConfigError."""
    return variants(recipe, axes_of_form(*given))


def axes_of_form(*given: str | None) -> list[Axis]:
    """Return the settings and values in the fields: two pairs of setting and values."""
    pairs = zip(given[::2], given[1::2], strict=True)
    return [Axis.of(name, values or "") for name, values in pairs if name]


def variants_summary(found: Sequence[Variant], figures: Callable[[Recipe], NextRun]) -> Markup:
    """Return the number of runs, their time in all, and their names."""
    names = [variant.name for variant in found[:NAMES_SHOWN]] + ["..."] * (len(found) > NAMES_SHOWN)
    plans = [figures(variant.recipe).figures for variant in found]
    seconds = [plan.seconds for plan in plans if plan is not None]
    time = "their time is not known"
    if len(seconds) == len(found):
        low, high = (sum(getattr(item, bound) for item in seconds) for bound in ("low", "high"))
        time = f"{format_duration(low)} to {format_duration(high)} in all"
    return card(f"{format_count(len(found), 'run')}, {time}", ", ".join(names))
