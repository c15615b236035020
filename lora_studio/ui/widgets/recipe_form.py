"""The form of a recipe: every setting, marked where it differs from the plan, with a search over all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component

from lora_studio.settings.declare import Group
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import hint, html
from lora_studio.ui.widgets.setting_spec import SettingSpec
from lora_studio.ui.widgets.settings_form import SettingsForm, build_fields, edit_event, field_update


@dataclass(frozen=True)
class RecipeContents:
    """What the fields contain: `typed`, which stays as the user typed it, and `values` that the fields are set to.

    Both are by the settings' names. Fields are marked where they differ from the `planned` recipe.
    """

    planned: Recipe
    typed: Mapping[str, Any]
    values: Mapping[str, Any]

    def with_values(self, values: Mapping[str, Any]) -> RecipeContents:
        """Return the contents with some settings set to other values."""
        kept = {name: content for name, content in self.typed.items() if name not in values}
        return replace(self, typed=kept, values={**self.values, **values})


@dataclass(frozen=True)
class RecipeForm(SettingsForm[Recipe]):
    """The fields of a recipe: the simple ones first, the rest folded by group, with a search over all.

    `planned` is the recipe that fields are compared with, the same as that of the contents shown last. `reset_count`
    changes after a button at a changed field has set it to the plan's value: the event data of these buttons does not
    say which of them was clicked, so each has a handler of its own.
    """

    folds: Mapping[Group, gr.Accordion]
    search: gr.Textbox
    no_match: gr.HTML
    planned: gr.State
    reset_count: gr.State

    @property
    def edit_events(self) -> list[Any]:
        """The events after which the form contains something else by an act of the user on a field."""
        return [*(edit_event(component) for component in self.components.values()), self.reset_count.change]

    def wire(self) -> None:
        """Register the events of the fields and of the search."""
        self.wire_dependents()
        for name, component in self.components.items():
            mark, back = partial(self.mark_field, name), partial(self.take_planned, name)
            edit_event(component)(mark, [component, self.planned], component, **NO_PROGRESS)
            taken = self.resets[name].click(
                back, [self.planned, self.reset_count], [component, self.reset_count], **NO_PROGRESS
            )
            # The field lost the focus to the button, and the mark for what it contained may arrive last.
            taken.then(mark, [component, self.planned], component, **NO_PROGRESS)
        self.search.change(  # gradio's `input` event lacks Backspace and pasting
            self.search_settings,
            {self.search, *self.inputs},
            [*self.components.values(), *self.folds.values(), self.no_match],
            **NO_PROGRESS,
            trigger_mode="always_last",
        )

    def recipe(self, contents: RecipeContents) -> Recipe:
        """Return the recipe in the form; raises ConfigError that names every wrong setting by its label."""
        return self.parse(contents.typed, **contents.values)

    def follow(self, contents: RecipeContents, planned: Recipe, values: Mapping[str, Any]) -> RecipeContents:
        """Return the contents for another plan: what the user changed stays, all other fields are set to `values`."""
        untouched = {
            name: values[name]
            for name, content in contents.typed.items()
            if not self._spec(name, contents.planned).is_changed(content)
        }
        return replace(contents.with_values(untouched), planned=planned)

    def show(self, contents: RecipeContents) -> Updates:
        """Set fields to their values, and mark changed and wrong ones."""
        texts = {name: self.specs[name].to_component(value) for name, value in contents.values.items()}
        texts_of_all = {**contents.typed, **texts}
        updates: Updates = {self.planned: contents.planned}
        for name, content in texts_of_all.items():
            spec, problem = self._spec(name, contents.planned), self.field_problem(name, content)
            update = field_update(spec, content, problem, with_value=name in texts)
            updates[self.components[name]] = update | self._visibility(name, texts_of_all)
        return updates

    def mark_field(self, name: str, content: Any, planned: Recipe) -> Any:
        """Mark a field as changed or wrong after an edit."""
        return field_update(self._spec(name, planned), content, self.field_problem(name, content), with_value=False)

    def take_planned(self, name: str, planned: Recipe, resets: int) -> Any:
        """Set a field to the plan's value."""
        spec = self._spec(name, planned)
        return field_update(spec, spec.to_component(spec.reference), with_value=True), resets + 1

    def search_settings(self, data: Mapping[Component, Any]) -> Updates:
        """Show the settings that contain all words, even those without effect now; without words, those with effect."""
        words = data[self.search].lower().split()
        contents = {name: data[component] for name, component in self.components.items()}
        hits = {
            name
            for name, spec in self.specs.items()
            if all(word in spec.search_text for word in words)
            and (words or not spec.depends_on or spec.is_visible(contents[spec.depends_on], contents[name]))
        }
        updates: Updates = {component: gr.update(visible=name in hits) for name, component in self.components.items()}
        for group, fold in self.folds.items():
            inside = any(spec.group is group and not spec.simple and spec.name in hits for spec in self.specs.values())
            updates[fold] = gr.Accordion(visible=inside, open=bool(words) and inside)
        updates[self.no_match] = "" if hits else hint("No setting matches.")
        return updates

    def _spec(self, name: str, planned: Recipe) -> SettingSpec:
        return self.specs[name].compared_with_plan(getattr(planned, name))


def build_form() -> RecipeForm:
    """Create the form: at most seven settings at once, the rest folded by group."""
    specs = {name: SettingSpec.of(Recipe, name) for name in Recipe.model_fields}
    reset_label = "Back to the plan"
    simple = [name for name, spec in specs.items() if spec.simple]
    form = build_fields(Recipe, simple, "recipe", reset_label=reset_label)
    search = gr.Textbox(
        placeholder="Search settings: snr, bucket, memory",
        show_label=False,
        label="Search settings",
        max_lines=1,
        elem_id="recipe-search",
    )
    no_match = html()
    folds: dict[Group, gr.Accordion] = {}
    for group in Group:
        folded = [name for name, spec in specs.items() if spec.group is group and not spec.simple]
        if folded:
            with gr.Accordion(group.value, open=False) as folds[group]:
                form = form.merged(build_fields(Recipe, folded, "recipe", reset_label=reset_label))
    states = gr.State(Recipe()), gr.State(0)
    whole = RecipeForm(Recipe, form.specs, form.components, form.resets, folds, search, no_match, *states)
    whole.wire()
    return whole
