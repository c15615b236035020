"""Options of commands, derived from the fields of a settings model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lora_studio.settings.declare import CommaSeparated, Settings

Command = Callable[..., None]


def field_options(
    model: type[Settings],
    flags: Mapping[str, str | tuple[str, ...]],
    *,
    required: bool = True,
    show_defaults: bool = True,
) -> Callable[[Command], Command]:
    """Add an option to a command for each field in `flags`; type, bounds, default and help are the field's.

    `flags` maps a field to its option (`--base`), to several spellings of it, or to the name of a positional argument
    (`DIR`). The command gets the
    values that the user gave as keyword arguments with the fields' names; the model has the defaults of the others.
    If a job file can set them instead, none is `required`; if a plan chooses them, hide the model's defaults.
    """

    def decorate(command: Command) -> Command:
        parameters = [
            _parameter(name, model.model_fields[name], flag, required, show_defaults) for name, flag in flags.items()
        ]
        for own in inspect.signature(command, eval_str=True).parameters.values():
            if own.kind is not Parameter.VAR_KEYWORD:
                parameters.append(own.replace(kind=Parameter.KEYWORD_ONLY))
        parameters.sort(key=lambda parameter: parameter.default is not Parameter.empty)  # required ones first

        @wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            given = {name: value for name, value in values.items() if name not in flags or _is_given(context, name)}
            command(**given)

        context = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
        run.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        return run

    return decorate


def field_help(model: type[Settings], name: str) -> str:
    """Return the help of an option: the field's description, after its label in forms if it has one."""
    return _help(model.model_fields[name])


def _parameter(
    name: str, field: FieldInfo, flag: str | tuple[str, ...], required: bool, show_default: bool
) -> Parameter:
    """Return the parameter from which typer builds the option; a list is one text with commas, or repeated options."""
    kind: Any = field.annotation
    default: Any = Parameter.empty if field.is_required() else field.default
    info: Any
    if CommaSeparated in field.metadata:
        kind, default = str, ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in field.default)
    if get_origin(kind) is list and issubclass(get_args(kind)[0], BaseModel):
        kind = list[str]  # which the model parses
    if not show_default or (field.is_required() and not required):
        kind, default = kind | None, None
    spellings = (flag,) if isinstance(flag, str) else flag
    if spellings[0].startswith("-"):
        repeated = " Can be repeated." if get_origin(kind) is list else ""
        info = typer.Option(*spellings, help=f"{_help(field)}{repeated}", **_bounds(field))
    else:
        info = typer.Argument(metavar=spellings[0], help=_help(field))
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _help(field: FieldInfo) -> str:
    if not isinstance(form := field.json_schema_extra, dict):
        return field.description or ""
    label, _, _ = str(form["label"]).partition(",")  # the rest is for text boxes: "Prompts, one per line"
    return f"{label}{f' ({unit})' if (unit := form['unit']) else ''}. {field.description}"


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """Return the inclusive bounds of a field under typer's names."""
    typer_names = {"ge": "min", "le": "max"}
    return {
        typer_names[bound]: getattr(constraint, bound)
        for constraint in field.metadata
        for bound in typer_names
        if hasattr(constraint, bound)
    }


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
