"""The recipe form: marks, search, and settings without effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest

from lora_studio.errors import ConfigError
from lora_studio.settings.choices import Optimizer
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.widgets.recipe_form import RecipeContents, RecipeForm, build_form


@pytest.fixture
def form() -> Iterator[RecipeForm]:
    with gr.Blocks() as blocks:
        built = build_form()
    yield built
    blocks.close(verbose=False)


def contents(form: RecipeForm, **changes: Any) -> dict[Any, Any]:
    """Return the contents of a form with default settings and these changes."""
    values = {component: getattr(component, "value", None) for component in form.inputs}
    return values | {form.components[name]: content for name, content in changes.items()}


def read(form: RecipeForm, **changes: Any) -> RecipeContents:
    return RecipeContents(Recipe(), form.read(contents(form, **changes)), {})


def test_the_form_is_parsed_back_to_the_recipe(form: RecipeForm) -> None:
    assert form.recipe(read(form)) == Recipe()
    assert form.recipe(read(form, unet_lr="3e-4", repeats="")) == Recipe(unet_lr=3e-4)
    assert form.recipe(read(form, unet_lr="3e-4", epochs="4").with_values({"epochs": 7, "optimizer": "Prodigy"})) == (
        Recipe(unet_lr=3e-4, epochs=7, optimizer=Optimizer.PRODIGY)
    )


def test_wrong_values_are_named_with_their_setting(form: RecipeForm) -> None:
    wrong = read(form, unet_lr="abc", batch_size="0")
    with pytest.raises(ConfigError) as raised:
        form.recipe(wrong)
    assert len(raised.value.problems) == 2
    assert "(unet_lr): " in raised.value.problems[0] + raised.value.problems[1]
    marks = {name: form.show(wrong)[component]["elem_classes"] for name, component in form.components.items()}
    assert {name for name, classes in marks.items() if "wrong" in classes} == {"unet_lr", "batch_size"}


def test_a_field_is_validated_after_an_edit(form: RecipeForm) -> None:
    planned = Recipe(unet_lr=1e-3)
    update = form.mark_field("unet_lr", "fast", planned)
    assert "(given: fast)" in update["info"]
    assert "wrong" in update["elem_classes"]
    assert "changed" in form.mark_field("unet_lr", "5e-4", planned)["elem_classes"]
    assert form.mark_field("unet_lr", "0.001", planned)["elem_classes"] == ["field"]
    update, resets = form.take_planned("unet_lr", planned, 3)
    assert (update["value"], update["elem_classes"], resets) == ("0.001", ["field"], 4)


def test_fields_follow_another_plan_except_those_that_the_user_changed(form: RecipeForm) -> None:
    typed = read(form, network_dim="77", unet_lr="half typed")
    planned = Recipe(network_dim=64, epochs=3)
    shown = form.show(form.follow(typed, planned, planned.model_dump()))
    dim, rate, epochs = (shown[form.components[name]] for name in ("network_dim", "unet_lr", "epochs"))
    assert ("value" in dim, "changed" in dim["elem_classes"], "Plan: 64" in dim["info"]) == (False, True, True)
    assert ("value" in rate, "wrong" in rate["elem_classes"]) == (False, True)
    assert (epochs["value"], epochs["elem_classes"]) == ("3", ["field"])
    assert shown[form.planned] == planned


def test_help_texts_contain_no_markdown_of_the_user(form: RecipeForm) -> None:
    assert "(given: a  b)" in form.mark_field("unet_lr", "[a](b)", Recipe())["info"]


def test_settings_without_effect_are_hidden_unless_searched(form: RecipeForm) -> None:
    def found(text: str) -> dict[str, bool]:
        updates = form.search_settings(contents(form) | {form.search: text})
        return {name: updates[component]["visible"] for name, component in form.components.items()}

    assert not form.components["lr_scheduler_num_cycles"].visible
    assert form.update_dependents("lr_scheduler", "cosine_with_restarts", "3", "1", "0")[0]["visible"]
    cycles, power, minimum = form.update_dependents("lr_scheduler", "cosine", "5", "1", "0")
    assert (cycles["visible"], power["visible"], minimum["visible"]) == (True, False, True)
    assert not found("")["lr_scheduler_num_cycles"]
    assert found("")["min_bucket_reso"]
    assert found("restarts")["lr_scheduler_num_cycles"]
    assert not found("restarts")["min_bucket_reso"]
    assert not any(found("no such setting").values())
    other = {"lr_scheduler": "cosine_with_restarts", "enable_bucket": False}
    filled = form.show(read(form).with_values(other))
    assert filled[form.components["lr_scheduler_num_cycles"]]["visible"]
    assert not filled[form.components["min_bucket_reso"]]["visible"]
