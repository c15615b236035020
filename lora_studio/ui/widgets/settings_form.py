"""A form made from the settings' declarations in config.py, and read back by name.

Numbers are text boxes: a browser's number box will not take 5e-4, and text that is no number should get an error that
names the setting. Whether a text can be read is for the settings' own model to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Generic, TypeVar, cast, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from lora_studio.errors import ConfigError, validation_message
from lora_studio.settings.declare import Group, Settings
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.formatting import format_value
from lora_studio.ui.widgets.html import html

FIELD_WIDTH = 210
RESET_LENGTH = 24
Model = TypeVar("Model", bound=Settings)


@dataclass(frozen=True)
class Spec:
    """One setting as its declaration tells it."""

    name: str
    label: str
    why: str
    group: Group
    simple: bool
    default: Any
    choices: tuple[str, ...] = ()
    is_flag: bool = False
    is_lines: bool = False
    is_row: bool = False
    master: str = ""
    master_values: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: type[Settings], name: str) -> Spec:
        """Read the declaration of `model.name`, made with `config.setting`."""
        declared = model.model_fields[name]
        extra = cast("dict[str, Any]", declared.json_schema_extra)
        kind = declared.annotation
        is_enum = isinstance(kind, type) and issubclass(kind, Enum)
        unit = f", {extra['unit']}" if extra["unit"] else ""
        master, _, values = extra["only_with"].partition("=")
        return cls(
            name=name,
            label=f"{extra['label']}{unit}",
            why=declared.description or "",
            group=Group(extra["group"]),
            simple=extra["simple"],
            default=declared.get_default(call_default_factory=True),
            choices=tuple(str(item.value) for item in cast("type[Enum]", kind)) if is_enum else (),
            is_flag=kind is bool,
            is_lines=kind is not None and str in get_args(kind),
            is_row=get_origin(kind) is list and str not in get_args(kind),
            master=master,
            master_values=tuple(values.split("|")) if values else (),
        )

    def shows(self, master: Any, content: Any) -> bool:
        """Whether to show it: where it does something, or was changed. `master` is what it depends on holds."""
        return self.changed(content) or self._applies(master)

    def _applies(self, master: Any) -> bool:
        if self.master_values:
            return str(master) in self.master_values
        if not isinstance(master, str):
            return bool(master)
        try:
            return float(master) != 0
        except ValueError:
            return master.strip() != ""

    def shown(self, value: Any) -> Any:
        """A setting's value as its component holds it; the model reads it back to the same value."""
        if self.is_flag:
            return bool(value)
        if self.is_lines:
            return "\n".join(value)
        if self.is_row:
            return ", ".join(map(format_value, value))
        return "" if value is None else str(value) if isinstance(value, str) else format_value(value)

    @property
    def default_text(self) -> str:
        """The default as people write it; empty where there is none."""
        if self.default is PydanticUndefined:
            return ""
        return str(self.shown(self.default)) if self.is_row else format_value(self.default)

    def given(self, content: Any) -> Any:
        """A component's content as the settings' model takes it."""
        if isinstance(content, str):
            content = content.strip()
            if content == "" and not self.is_lines and self.default != "":
                return None
        return content

    def changed(self, content: Any) -> bool:
        """Whether a component's content says something else than the default."""
        if self.default is PydanticUndefined:
            return False
        given = self.given(content)
        if isinstance(given, str) and isinstance(self.default, int | float):
            try:
                return float(given) != float(self.default)
            except ValueError:
                return True
        return bool(given != self.given(self.shown(self.default)))

    def info(self, content: Any, problem: str = "") -> str:
        """The line below the label: what is wrong, else the reason; of a changed value also the default."""
        if problem:
            return problem
        return f"Default: {self.default_text}. {self.why}" if self.changed(content) else self.why

    def classes(self, content: Any, problem: str = "") -> list[str]:
        """CSS classes that mark a changed value and a wrong one."""
        return ["field", *["changed"] * self.changed(content), *["wrong"] * bool(problem)]


@dataclass(frozen=True)
class SettingsForm(Generic[Model]):
    """Components for settings of a model, by the settings' names."""

    model: type[Model]
    specs: Mapping[str, Spec]
    components: Mapping[str, Component]
    resets: Mapping[str, gr.Button]

    @property
    def inputs(self) -> set[Component]:
        """All components, to be given to an event as a set; the handler passes its data to `parse`."""
        return set(self.components.values())

    @property
    def outputs(self) -> list[Component]:
        """All components that `fill` and `mark_errors` change."""
        return list(self.components.values())

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings' defaults; those without one are left out."""
        return {name: spec.default for name, spec in self.specs.items() if spec.default is not PydanticUndefined}

    @property
    def edits(self) -> list[Any]:
        """The events by which a user changes the form, for `gr.on`."""
        return [_edit_event(component) for component in self.components.values()] + [
            reset.click for reset in self.resets.values()
        ]

    def joined(self, other: SettingsForm[Model]) -> SettingsForm[Model]:
        """Both forms as one."""
        return SettingsForm(
            self.model,
            {**self.specs, **other.specs},
            {**self.components, **other.components},
            {**self.resets, **other.resets},
        )

    def fill(self, values: Mapping[str, Any]) -> Updates:
        """Show values of settings; those that are not given stay as they are."""
        shown = {name: spec.shown(values[name]) for name, spec in self.specs.items() if name in values}
        return {
            self.components[name]: self._update(name, content, with_value=True) | self._seen(name, shown)
            for name, content in shown.items()
        }

    def parse(self, data: Mapping[Component, Any], **more: Any) -> Model:
        """The settings that the form holds, and `more` that it does not.

        Raises ConfigError that names every wrong setting by its label.
        """
        try:
            return self.model.model_validate(self._values(data) | more)
        except ValidationError as error:
            problems = _problems(error)
            lines = [
                f"{self.specs[name].label} ({name}): {text}"
                if name in self.specs
                else f"{name}: {text}".removeprefix(": ")
                for name, text in problems.items()
            ]
            raise ConfigError(lines, "Correct it in the form; the marked fields say what fits.") from error

    def mark_errors(self, data: Mapping[Component, Any]) -> Updates:
        """Mark what was changed and what is wrong, at the fields themselves."""
        try:
            self.model.model_validate(self._values(data))
            problems: dict[str, str] = {}
        except ValidationError as error:
            problems = _problems(error)
        return {
            component: self._update(name, data[component], problems.get(name, ""))
            for name, component in self.components.items()
        }

    def wire(self) -> None:
        """Marks while a user edits, the reset buttons, and which settings are shown."""
        for name, component in self.components.items():
            if followers := [self.components[spec.name] for spec in self.specs.values() if spec.master == name]:
                component.change(
                    partial(self._follow, name),
                    [component, *followers],
                    followers,
                    **NO_PROGRESS,
                    api_visibility="private",
                )
            _edit_event(component)(
                partial(self._edited, name),
                component,
                component,
                **NO_PROGRESS,
                api_visibility="private",
            )
            if name in self.resets:
                self.resets[name].click(
                    partial(self._reset, name), None, component, **NO_PROGRESS, api_visibility="private"
                )

    def _follow(self, master: str, content: Any, *contents: Any) -> Any:
        followers = [spec for spec in self.specs.values() if spec.master == master]
        updates = [gr.update(visible=spec.shows(content, own)) for spec, own in zip(followers, contents, strict=True)]
        return updates[0] if len(updates) == 1 else updates

    def _seen(self, name: str, contents: Mapping[str, Any]) -> dict[str, Any]:
        """Whether a component is visible, as a part of its update; empty where `contents` do not tell."""
        spec = self.specs[name]
        if spec.master not in contents:
            return {}
        return {"visible": spec.shows(contents[spec.master], contents[name])}

    def _values(self, data: Mapping[Component, Any]) -> dict[str, Any]:
        """Contents by name. An empty box means "not set" where a setting has that, else it is an error."""
        return {name: self.specs[name].given(data[component]) for name, component in self.components.items()}

    def _edited(self, name: str, content: Any) -> Any:
        try:
            self.model.__pydantic_validator__.validate_assignment(
                self.model.model_construct(), name, self.specs[name].given(content)
            )
            problem = ""
        except ValidationError as error:
            problem = _problems(error).get(name, "")
        return self._update(name, content, problem)

    def _reset(self, name: str) -> Any:
        spec = self.specs[name]
        return self._update(name, spec.shown(spec.default), with_value=True)

    def _update(self, name: str, content: Any, problem: str = "", *, with_value: bool = False) -> Any:
        spec = self.specs[name]
        changes = {"info": spec.info(content, problem), "elem_classes": spec.classes(content, problem)}
        return gr.update(value=content, **changes) if with_value else gr.update(**changes)


@dataclass(frozen=True)
class RecipeForm(SettingsForm[Recipe]):
    """The recipe's components, the simple ones first, the rest in folds by group with a search over all."""

    folds: Mapping[Group, gr.Accordion]
    search: gr.Textbox
    nothing_found: gr.HTML

    def wire(self) -> None:
        """Marks, reset buttons, and the search."""
        super().wire()
        found = [*self.outputs, *self.folds.values(), self.nothing_found]
        self.search.input(self._find, {self.search, *self.inputs}, found, **NO_PROGRESS, api_visibility="private")

    def _find(self, data: Mapping[Component, Any]) -> Updates:
        """Show what has all the words, though it may do nothing yet; without words, what does something."""
        words = data[self.search].lower().split()
        contents = {name: data[component] for name, component in self.components.items()}
        hits = {
            name
            for name, spec in self.specs.items()
            if all(word in _haystack(spec) for word in words)
            and (words or not spec.master or spec.shows(contents[spec.master], contents[name]))
        }
        updates: Updates = {component: gr.update(visible=name in hits) for name, component in self.components.items()}
        for group, fold in self.folds.items():
            inside = any(spec.group is group and not spec.simple and spec.name in hits for spec in self.specs.values())
            updates[fold] = gr.Accordion(visible=inside, open=bool(words) and inside)
        updates[self.nothing_found] = "" if hits else "<p class='hint'>No setting has these words.</p>"
        return updates


def build_fields(model: type[Model], names: Iterable[str], prefix: str) -> SettingsForm[Model]:
    """Components of the named settings of `model`, side by side; `wire` is still to be called."""
    specs = {name: Spec.of(model, name) for name in names}
    components: dict[str, Component] = {}
    resets: dict[str, gr.Button] = {}
    with gr.Row(elem_classes="fields"):
        for name, spec in specs.items():
            visible = not spec.master or spec.shows(Spec.of(model, spec.master).default, spec.shown(spec.default))
            components[name], reset = _component(spec, prefix, visible)
            if reset is not None:
                resets[name] = reset
    return SettingsForm(model, specs, components, resets)


def build_form() -> RecipeForm:
    """Build the form of a recipe: at most seven settings at once, the rest folded by group."""
    specs = {name: Spec.of(Recipe, name) for name in Recipe.model_fields}
    form = build_fields(Recipe, [name for name, spec in specs.items() if spec.simple], "recipe")
    search = gr.Textbox(
        placeholder="Find a setting: snr, bucket, memory", show_label=False, label="Find a setting", max_lines=1
    )
    nothing_found = html()
    folds: dict[Group, gr.Accordion] = {}
    for group in Group:
        folded = [name for name, spec in specs.items() if spec.group is group and not spec.simple]
        if folded:
            with gr.Accordion(group.value, open=False) as folds[group]:
                form = form.joined(build_fields(Recipe, folded, "recipe"))
    whole = RecipeForm(Recipe, form.specs, form.components, form.resets, folds, search, nothing_found)
    whole.wire()
    return whole


def _component(spec: Spec, prefix: str, visible: bool) -> tuple[Component, gr.Button | None]:
    """The component of a setting, and its button "Back to the default" where there is one.

    Its elem_id is `prefix` and the setting's name.
    """
    has_default = spec.default is not PydanticUndefined
    shown = spec.shown(spec.default) if has_default else ""
    back = f"Back to {spec.default_text}"
    reset = (
        gr.Button(back if len(back) <= RESET_LENGTH else "Back to default", size="sm", render=False)
        if has_default
        else None
    )
    common: dict[str, Any] = {
        "label": spec.label,
        "info": spec.info(shown),
        "elem_classes": spec.classes(shown),
        "elem_id": f"{prefix}-{spec.name}",
        "min_width": FIELD_WIDTH,
        "buttons": [reset] if reset else None,
        "interactive": True,
        "visible": visible,
    }
    component: Component
    if spec.is_flag:
        component = gr.Checkbox(shown, **common)
    elif spec.choices:
        component = gr.Dropdown(list(spec.choices), value=shown, **common)
    elif spec.is_lines:
        component = gr.Textbox(shown, lines=3, max_lines=8, **common)
    else:
        component = gr.Textbox(shown, max_lines=1, placeholder="empty" if spec.default is None else "", **common)
    return component, reset


def _edit_event(component: Component) -> Any:
    return component.blur if isinstance(component, gr.Textbox) else component.input


def _haystack(spec: Spec) -> str:
    return f"{spec.name} {spec.name.replace('_', ' ')} {spec.label} {spec.group} {spec.why}".lower()


def _problems(error: ValidationError) -> dict[str, str]:
    """What is wrong, by setting; what concerns several settings stands under the empty name."""
    found: dict[str, str] = {}
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        text = validation_message(item)
        found.setdefault(name, f"{text} (given: {_plain(item.get('input'))})" if name else text)
    return found


def _plain(given: object) -> str:
    """What was given, without the signs that gradio's info lines take for Markdown."""
    return "nothing" if given is None else re.sub(r"[\\`*_<>\[\]()]", " ", str(given))[:60]
