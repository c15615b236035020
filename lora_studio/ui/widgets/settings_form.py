"""A form made from the declarations of settings, which is parsed back by name.

Numbers are text boxes: a browser's number box does not accept 5e-4, and an error for text that is not a number should
name the setting. The settings model parses the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError

from lora_studio.errors import ConfigError, validation_message
from lora_studio.settings.declare import Settings
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.setting_spec import SettingSpec

FIELD_WIDTH = 210  # px
MAX_RESET_LABEL = 24  # characters
MAX_INPUT_SHOWN = 60  # characters
Model = TypeVar("Model", bound=Settings)
Field = gr.Checkbox | gr.Dropdown | gr.Textbox


@dataclass(frozen=True)
class SettingsForm(Generic[Model]):
    """Fields for settings of a model, by the settings' names."""

    model: type[Model]
    specs: Mapping[str, SettingSpec]
    components: Mapping[str, Field]
    resets: Mapping[str, gr.Button]

    @property
    def inputs(self) -> set[Component]:
        """All components, as the set of an event's inputs; the handler passes its data to `parse`."""
        return set(self.components.values())

    @property
    def outputs(self) -> list[Component]:
        """All components that `fill` and `mark_errors` update."""
        return list(self.components.values())

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings' defaults, without the settings that have none."""
        return {name: spec.default for name, spec in self.specs.items() if spec.has_default}

    @property
    def edit_events(self) -> list[Any]:
        """The events by which a user changes the form, for `gr.on`."""
        return [
            *(edit_event(component) for component in self.components.values()),
            *(reset.click for reset in self.resets.values()),
        ]

    def merged(self, other: SettingsForm[Model]) -> SettingsForm[Model]:
        """Return a form with the fields of both."""
        return SettingsForm(
            self.model,
            {**self.specs, **other.specs},
            {**self.components, **other.components},
            {**self.resets, **other.resets},
        )

    def fill(self, values: Mapping[str, Any]) -> Updates:
        """Set fields to values of settings; other fields keep their content."""
        contents = self.contents(values)
        return {
            self.components[name]: self._update(name, content, with_value=True) | self._visibility(name, contents)
            for name, content in contents.items()
        }

    def contents(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the fields contain after `fill` with these values."""
        return {name: spec.to_component(values[name]) for name, spec in self.specs.items() if name in values}

    def read(self, data: Mapping[Component, Any]) -> dict[str, Any]:
        """Return the contents of the fields, as the user typed them, by the settings' names."""
        return {name: data[component] for name, component in self.components.items()}

    def parse(self, contents: Mapping[str, Any], **more: object) -> Model:
        """Return the settings that the fields contain, completed by `more`.

        Raises ConfigError that names every wrong setting by its label.
        """
        return self.parse_values(self._values(contents) | more)

    def parse_values(self, values: Mapping[str, Any]) -> Model:
        """Return settings with these values; raises ConfigError that names every wrong setting by its label."""
        try:
            return self.model.model_validate(values)
        except ValidationError as error:
            lines = [self._problem_line(name, text) for name, text in _problems(error).items()]
            raise ConfigError(lines, "Correct the marked fields.") from error

    def mark_errors(self, contents: Mapping[str, Any]) -> Updates:
        """Mark changed and wrong fields."""
        try:
            self.model.model_validate(self._values(contents))
            problems: dict[str, str] = {}
        except ValidationError as error:
            problems = _problems(error)
        return {
            component: self._update(name, contents[name], problems.get(name, ""))
            for name, component in self.components.items()
        }

    def wire(self) -> None:
        """Register the events of the fields: validation, reset, and visibility of dependent settings."""
        self.wire_dependents()
        for name, component in self.components.items():
            edit_event(component)(partial(self.validate_field, name), component, component, **NO_PROGRESS)
            if name in self.resets:
                self.resets[name].click(partial(self.reset_field, name), None, component, **NO_PROGRESS)

    def wire_dependents(self) -> None:
        """Register the events that show and hide dependent settings."""
        for name, component in self.components.items():
            if dependents := [self.components[spec.name] for spec in self._dependents(name)]:
                component.change(
                    partial(self.update_dependents, name), [component, *dependents], dependents, **NO_PROGRESS
                )

    def update_dependents(self, name: str, content: Any, *contents: Any) -> Any:
        """Show or hide the settings that depend on `name`; `contents` are those of their fields."""
        updates = [
            gr.update(visible=spec.is_visible(content, own))
            for spec, own in zip(self._dependents(name), contents, strict=True)
        ]
        return updates[0] if len(updates) == 1 else updates

    def validate_field(self, name: str, content: Any) -> Any:
        """Mark a field as changed or wrong after an edit."""
        return self._update(name, content, self.field_problem(name, content))

    def field_problem(self, name: str, content: Any) -> str:
        """Return what is wrong with a field's content; empty if it is valid."""
        try:
            self.model.__pydantic_validator__.validate_assignment(
                self.model.model_construct(), name, self.specs[name].from_component(content)
            )
        except ValidationError as error:
            return _problems(error).get(name, "")
        return ""

    def reset_field(self, name: str) -> Any:
        """Set a field to its default."""
        spec = self.specs[name]
        return self._update(name, spec.to_component(spec.default), with_value=True)

    def _dependents(self, name: str) -> list[SettingSpec]:
        return [spec for spec in self.specs.values() if spec.depends_on == name]

    def _visibility(self, name: str, contents: Mapping[str, Any]) -> dict[str, Any]:
        """Return `visible` for a field's update; empty if `contents` lacks the setting that it depends on."""
        spec = self.specs[name]
        if spec.depends_on not in contents:
            return {}
        return {"visible": spec.is_visible(contents[spec.depends_on], contents[name])}

    def _values(self, contents: Mapping[str, Any]) -> dict[str, Any]:
        """Return input for the model by name. An empty field is None where the setting allows that, else an error."""
        return {name: self.specs[name].from_component(content) for name, content in contents.items()}

    def _update(self, name: str, content: Any, problem: str = "", *, with_value: bool = False) -> Any:
        return field_update(self.specs[name], content, problem, with_value=with_value)

    def _problem_line(self, name: str, problem: str) -> str:
        if name in self.specs:
            return f"{self.specs[name].title} ({name}): {problem}"
        return f"{name}: {problem}" if name else problem


def build_fields(
    model: type[Model], names: Iterable[str], prefix: str, *, reset_label: str = ""
) -> SettingsForm[Model]:
    """Create fields for the named settings of `model`, side by side. Call `wire` on the complete form.

    Without a `reset_label`, the reset buttons name the default.
    """
    specs = {name: SettingSpec.of(model, name) for name in names}
    components: dict[str, Field] = {}
    resets: dict[str, gr.Button] = {}
    with gr.Row(elem_classes="fields"):
        for name, spec in specs.items():
            dependency = SettingSpec.of(model, spec.depends_on).default if spec.depends_on else None
            visible = not spec.depends_on or spec.is_visible(dependency, spec.to_component(spec.default))
            components[name], reset = _component(spec, prefix, visible, reset_label)
            if reset is not None:
                resets[name] = reset
    return SettingsForm(model, specs, components, resets)


def field_update(spec: SettingSpec, content: Any, problem: str = "", *, with_value: bool) -> Any:
    """Return the update of a field: the marks of its content and, if `with_value`, the content."""
    changes: dict[str, Any] = {"info": spec.info(content, problem), "elem_classes": spec.classes(content, problem)}
    return gr.update(value=content, **changes) if with_value else gr.update(**changes)


def _component(spec: SettingSpec, prefix: str, visible: bool, reset_label: str) -> tuple[Field, gr.Button | None]:
    """Return the field of a setting, and its reset button if the setting has a default.

    The elem_id is `prefix-name`.
    """
    content: Any = spec.to_component(spec.default) if spec.has_default else ""
    label = f"Reset to {spec.reference_text}"
    label = reset_label or (label if len(label) <= MAX_RESET_LABEL else "Reset to default")
    reset = gr.Button(label, size="sm", render=False) if spec.has_default else None
    common: dict[str, Any] = {
        "label": spec.label,
        "info": spec.info(content),
        "elem_classes": spec.classes(content),
        "elem_id": f"{prefix}-{spec.name}",
        "min_width": FIELD_WIDTH,
        "buttons": [reset] if reset else None,
        "interactive": True,
        "visible": visible,
    }
    component: Field
    if spec.is_flag:
        component = gr.Checkbox(content, **common)
    elif spec.choices:
        component = gr.Dropdown(list(spec.choices), value=content, **common)
    elif spec.is_lines:
        component = gr.Textbox(content, lines=3, max_lines=8, **common)
    else:
        component = gr.Textbox(content, max_lines=1, placeholder="empty" if spec.default is None else "", **common)
    return component, reset


def edit_event(component: Field) -> Any:
    """Return the event by which a user changes a field."""
    return component.blur if isinstance(component, gr.Textbox) else component.input


def _problems(error: ValidationError) -> dict[str, str]:
    """Return one problem per setting; a problem of several settings together has the empty name."""
    found: dict[str, str] = {}
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        text = validation_message(item)
        found.setdefault(name, f"{text} (given: {_without_markdown(item.get('input'))})" if name else text)
    return found


def _without_markdown(given: object) -> str:
    """Return the wrong input without the characters that gradio's help texts interpret as Markdown."""
    shown = "" if given is None else re.sub(r"[\\`*_<>\[\]()]", " ", str(given))[:MAX_INPUT_SHOWN].strip()
    return shown or "nothing"
