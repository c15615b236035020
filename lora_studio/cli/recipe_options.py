"""Options of `plan` and `train` that set the recipe: a preset, single settings, and another program's file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio import api
from lora_studio.cli.console import err_console
from lora_studio.settings.choices import LoraKind

if TYPE_CHECKING:
    from lora_studio.interop.files import ImportedSettings

FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="Import settings: a .json of kohya_ss, a .toml of sd-scripts, or a LoRA with training metadata.",
    ),
]
PresetOption = Annotated[str | None, typer.Option("--preset", help="A preset by name, or a .toml file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the recipe; can be repeated.")
]
VaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="KEY=A,B,...",
        help="Values of a setting: a run for each goes into the queue. Given twice: for each combination of both.",
    ),
]
KindOption = Annotated[LoraKind, typer.Option("--kind", help="What the LoRA is for.")]


def import_from(source: Path | None) -> ImportedSettings | None:
    """Read the settings of another program's file, if one is given, and print what was not carried over to stderr."""
    if source is None:
        return None
    imported = api.import_settings(source)
    report_left_out(f"Settings of {source} ({imported.source}).", imported.lines())
    return imported


def report_left_out(title: str, lines: list[str]) -> None:
    """Print a title and what was not carried over to stderr."""
    err_console.print(f"{title}{' Not carried over:' if lines else ''}", soft_wrap=True, highlight=False, markup=False)
    for line in lines:
        err_console.print(f"- {line}", soft_wrap=True, highlight=False, markup=False)
