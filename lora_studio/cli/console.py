"""Consoles, options and output functions that the commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markdown import Markdown

out_console = Console()
err_console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The studio's home (default: $LORA_STUDIO_HOME or ~/lora-studio).")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images, or of N_name folders with images.")]


def print_json(value: Any) -> None:
    """Print a value, or a model, as one JSON document on stdout."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_markdown(text: str, console: Console = out_console) -> None:
    """Print Markdown: formatted in a terminal, as it is into a file or another program."""
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def print_lines(*lines: str) -> None:
    """Print lines of text on stdout without wrapping or markup."""
    for line in lines:
        out_console.print(line, soft_wrap=True, highlight=False, markup=False)
