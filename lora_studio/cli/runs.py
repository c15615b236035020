"""The command `runs`: the ledger of all training runs, and the comparison of two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lora_studio.cli.console import HomeOption, Json, out_console, print_json, print_lines
from lora_studio.errors import InputError
from lora_studio.ledger.compare import Comparison, compare, find_run
from lora_studio.ledger.records import RunRecord, find_records
from lora_studio.ledger.table import TEXT_COLUMNS, row, text_cells, to_csv, to_markdown
from lora_studio.workspace.project import Home

PIPE_WIDTH = 200  # characters per line where the output is not a terminal


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="A project or a folder of runs (default: the project that you are in)."),
    ] = None,
    compared: Annotated[
        tuple[str, str] | None,
        typer.Option("--compare", metavar="A B", help="Compare two runs, by name, number or PROJECT/NAME."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="The runs of all projects of the home.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with all columns.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """List the training runs: what each changed, its fixed-noise loss, verdict, stars and notes."""
    if sum((as_json, csv, markdown)) > 1 or (compared and (csv or markdown)):
        raise InputError("These options exclude each other.", "Give one of --json, --csv, --markdown.", code="usage")
    records = find_records(folder, everything=everything, home=Home.locate(home))
    if compared is not None:
        _print_comparison(compare([find_run(records, name) for name in compared]), as_json=as_json)
    elif as_json:
        print_json([row(record) for record in records])
    elif csv or markdown:
        typer.echo(to_csv(records) if csv else to_markdown(records), nl=False)
    else:
        _print_records(records)


def _print_records(records: list[RunRecord]) -> None:
    _print_table([list(TEXT_COLUMNS), *(text_cells(record) for record in records)])


def _print_comparison(result: Comparison, *, as_json: bool) -> None:
    if as_json:
        print_json(result.summary())
        return
    _print_table(result.lines())
    if not result.is_fair:
        print_lines(
            "The fixed-noise losses are of different images, captions, bases or objectives: do not compare them."
        )


def _print_table(lines: list[list[str]]) -> None:
    table = Table(*lines[0], box=None, pad_edge=False)
    for line in lines[1:]:
        table.add_row(*(cell.replace("[", r"\[") for cell in line))
    console = out_console if out_console.is_terminal else Console(width=PIPE_WIDTH)
    console.print(table, highlight=False)
