"""How a setting's declaration becomes a form field: label, help text, allowed content, and when it is shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, cast, get_args, get_origin

from pydantic_core import PydanticUndefined

from lora_studio.settings.declare import Group, Settings, setting_label
from lora_studio.settings.values import format_value


@dataclass(frozen=True)
class SettingSpec:
    """One declared setting.

    A value that differs from `reference` counts as changed. Help texts call that the default or, if `planned`, the
    plan.
    `depends_on` names the setting without which this one has no effect: that one must be set, or have one of
    `depends_on_values` if there are any.
    """

    name: str
    title: str
    label: str
    why: str
    group: Group
    simple: bool
    default: Any
    reference: Any
    planned: bool = False
    choices: tuple[str, ...] = ()
    is_flag: bool = False
    is_lines: bool = False
    is_number_list: bool = False
    depends_on: str = ""
    depends_on_values: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: type[Settings], name: str) -> SettingSpec:
        """Read the declaration of `model.name`, made with `declare.setting`."""
        declared = model.model_fields[name]
        extra = cast("dict[str, Any]", declared.json_schema_extra)
        kind = declared.annotation
        is_enum = isinstance(kind, type) and issubclass(kind, Enum)
        depends_on, _, values = extra["only_with"].partition("=")
        default = declared.get_default(call_default_factory=True)
        return cls(
            name=name,
            title=extra["label"],
            label=setting_label(model, name),
            why=declared.description or "",
            group=Group(extra["group"]),
            simple=extra["simple"],
            default=default,
            reference=default,
            choices=tuple(str(item.value) for item in cast("type[Enum]", kind)) if is_enum else (),
            is_flag=kind is bool,
            is_lines=kind is not None and str in get_args(kind),
            is_number_list=get_origin(kind) is list and str not in get_args(kind),
            depends_on=depends_on,
            depends_on_values=tuple(values.split("|")) if values else (),
        )

    def compared_with_plan(self, value: Any) -> SettingSpec:
        """Return the setting with the plan's value as its reference."""
        return replace(self, reference=value, planned=True)

    @property
    def has_default(self) -> bool:
        """False for a setting that must be given."""
        return self.default is not PydanticUndefined

    @property
    def reference_text(self) -> str:
        """The reference in its usual notation; empty where there is none."""
        if not self.has_default:
            return ""
        return str(self.to_component(self.reference)) if self.is_number_list else format_value(self.reference)

    @property
    def search_text(self) -> str:
        """Everything that the settings search looks through, in lower case."""
        return f"{self.name} {self.name.replace('_', ' ')} {self.label} {self.group} {self.why}".lower()

    def is_visible(self, dependency: Any, content: Any) -> bool:
        """Return whether to show the field: if it has an effect, or was changed.

        `dependency` and `content` are what the fields of `depends_on` and of this setting contain.
        """
        return self.is_changed(content) or self._has_effect(dependency)

    def _has_effect(self, dependency: Any) -> bool:
        if self.depends_on_values:
            return str(dependency) in self.depends_on_values
        if not isinstance(dependency, str):
            return bool(dependency)
        try:
            return float(dependency) != 0
        except ValueError:
            return dependency.strip() != ""

    def to_component(self, value: Any) -> Any:
        """Return a value as the content of its component; the settings model parses it to the same value."""
        if self.is_flag:
            return bool(value)
        if self.is_lines:
            return "\n".join(value)
        if self.is_number_list:
            return ", ".join(map(format_value, value))
        return "" if value is None else str(value) if isinstance(value, str) else format_value(value)

    def from_component(self, content: Any) -> Any:
        """Return a component's content as input for the settings model."""
        if isinstance(content, str):
            content = content.strip()
            if content == "" and not self.is_lines and self.default != "":
                return None
        return content

    def is_changed(self, content: Any) -> bool:
        """Return whether a component's content differs from the reference."""
        if not self.has_default:
            return False
        given = self.from_component(content)
        if isinstance(given, str) and isinstance(self.reference, int | float):
            try:
                return float(given) != float(self.reference)
            except ValueError:
                return True
        return bool(given != self.from_component(self.to_component(self.reference)))

    def info(self, content: Any, problem: str = "") -> str:
        """Return the help text: the problem if there is one, else the reason, behind a changed value's reference."""
        if problem or not self.is_changed(content):
            return problem or self.why
        return f"{'Plan' if self.planned else 'Default'}: {self.reference_text}. {self.why}"

    def classes(self, content: Any, problem: str = "") -> list[str]:
        """Return CSS classes that mark a changed value and a wrong one."""
        return ["field", *["changed"] * self.is_changed(content), *["wrong"] * bool(problem)]
