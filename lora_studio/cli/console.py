"""What the commands share: where they print, and the options that several of them have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console

out_console = Console()
err_console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The studio's home (default: $LORA_STUDIO_HOME or ~/lora-studio).")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images, or with N_name folders of them.")]


def print_json(value: Any) -> None:
    """Print a value, or a model, as one JSON document on stdout."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_lines(*lines: str) -> None:
    """Print lines of text as they are, for people."""
    for line in lines:
        out_console.print(line, soft_wrap=True, highlight=False, markup=False)
