"""`python -m lora_studio presets ...`: list presets, and rename, export and import the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_studio.cli.console import HomeOption, Json, out_console, print_json
from lora_studio.planning.presets import (
    export_preset,
    import_preset,
    list_presets,
    load_preset,
    own_presets,
    rename_preset,
)
from lora_studio.workspace.project import Home

presets_app = typer.Typer(rich_markup_mode=None)


@presets_app.callback(invoke_without_command=True)
def presets(context: typer.Context, home: HomeOption = None, as_json: Json = False) -> None:
    """List the presets, your own first, and the settings they change; or rename, export and import your own."""
    place = context.obj = Home.locate(home)
    if context.invoked_subcommand is not None:
        return
    known = {name: load_preset(name, place) for name in [*own_presets(place), *list_presets()]}
    if as_json:
        print_json(known)
        return
    for name, values in known.items():
        _print(f"{name}: {', '.join(f'{key}={value}' for key, value in values.items())}")


@presets_app.command("rename")
def rename(context: typer.Context, name: str, new_name: str) -> None:
    """Rename one of your own presets."""
    _print(f"Renamed to {rename_preset(context.obj, name, new_name).stem}.")


@presets_app.command("export")
def export(
    context: typer.Context,
    name: str,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new .toml file, or a folder.")],
) -> None:
    """Copy a preset to a TOML file."""
    _print(f"Written to {export_preset(context.obj, name, target)}.")


@presets_app.command("import")
def import_command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .toml file with recipe settings.")],
    name: Annotated[str, typer.Option("--name", help="Name of the preset (default: that of the file).")] = "",
) -> None:
    """Add a TOML file to your own presets; those in the trash are restored with it."""
    _print(f"Imported as {import_preset(context.obj, file, name).stem}.")


def _print(line: str) -> None:
    out_console.print(line, soft_wrap=True, highlight=False, markup=False)
