"""The recipe form: marks, search, and settings without effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest

from lora_studio.errors import ConfigError
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.widgets.settings_form import RecipeForm, build_form


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


def test_the_form_is_parsed_back_to_the_recipe(form: RecipeForm) -> None:
    assert form.parse(contents(form)) == Recipe()
    assert form.parse(contents(form, unet_lr="3e-4", repeats="")).unet_lr == 3e-4


def test_wrong_values_are_named_with_their_setting(form: RecipeForm) -> None:
    data = contents(form, unet_lr="abc", batch_size="0")
    with pytest.raises(ConfigError) as raised:
        form.parse(data)
    assert len(raised.value.problems) == 2
    assert "(unet_lr): " in raised.value.problems[0] + raised.value.problems[1]
    marks = {name: form.mark_errors(data)[component]["elem_classes"] for name, component in form.components.items()}
    assert {name for name, classes in marks.items() if "wrong" in classes} == {"unet_lr", "batch_size"}


def test_a_field_is_validated_after_an_edit(form: RecipeForm) -> None:
    update = form.validate_field("unet_lr", "fast")
    assert "(given: fast)" in update["info"]
    assert "wrong" in update["elem_classes"]
    assert "changed" in form.validate_field("unet_lr", "1e-3")["elem_classes"]
    assert form.validate_field("unet_lr", "0.0005")["elem_classes"] == ["field"]
    assert form.reset_field("unet_lr")["value"] == "5e-4"


def test_help_texts_contain_no_markdown_of_the_user(form: RecipeForm) -> None:
    assert "given:  a  b " in form.validate_field("unet_lr", "[a](b)")["info"]


def test_settings_without_effect_are_hidden_unless_searched(form: RecipeForm) -> None:
    def found(text: str) -> dict[str, bool]:
        updates = form.search_settings(contents(form) | {form.search: text})
        return {name: updates[component]["visible"] for name, component in form.components.items()}

    assert not form.components["lr_scheduler_num_cycles"].visible
    assert form.update_dependents("lr_scheduler", "cosine_with_restarts", "3", "1")[0]["visible"]
    assert [update["visible"] for update in form.update_dependents("lr_scheduler", "cosine", "5", "1")] == [True, False]
    assert not found("")["lr_scheduler_num_cycles"]
    assert found("")["min_bucket_reso"]
    assert found("restarts")["lr_scheduler_num_cycles"]
    assert not found("restarts")["min_bucket_reso"]
    assert not any(found("no such setting").values())
    filled = form.fill(dict(Recipe(lr_scheduler="cosine_with_restarts", enable_bucket=False)))
    assert filled[form.components["lr_scheduler_num_cycles"]]["visible"]
    assert not filled[form.components["min_bucket_reso"]]["visible"]
