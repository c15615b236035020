"""The command `models`: list the base models of the catalogue and of this machine, and download one."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from lora_studio import api
from lora_studio.cli.console import HomeOption, Json, err_console, out_console, print_json
from lora_studio.cli.progress import JobProgress
from lora_studio.models.catalogue import BASES
from lora_studio.models.found import Model
from lora_studio.workspace.project import Home

models_app = typer.Typer(
    help="List the base models of the catalogue and of this machine, or download one.", rich_markup_mode=None
)


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Also list files that cannot be used, with the reason.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """List the base models of the catalogue, and those found on this machine."""
    if context.invoked_subcommand is not None:
        return
    listed = [model for model in api.list_models(home=Home.locate(home)) if every or not model.problem]
    if as_json:
        print_json([_record(model) for model in listed])
        return
    table = Table("name", "where", "prediction", "good for", box=None, pad_edge=False)
    for model in listed:
        known = BASES.get(model.name)
        good_for = model.problem or (known.good_for if known else str(model.path))
        table.add_row(model.name, model.location, "" if model.problem else model.prediction_type, good_for)
    out_console.print(table)


@models_app.command()
def download(
    base: Annotated[str, typer.Argument(metavar="NAME", help="A name from the catalogue, or a Hub repository.")],
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Download a base model; Ctrl+C stops, and the same command continues."""
    with JobProgress(err_console) as bar:
        result = api.download_model(base, home=Home.locate(home), on_event=bar)
    if as_json:
        print_json(result)
    elif result.stopped:
        out_console.print("Stopped. The same command continues.")
    else:
        out_console.print(f"{base}: {result.path}", soft_wrap=True, highlight=False, markup=False)


def _record(model: Model) -> dict[str, object]:
    known = BASES.get(model.name)
    return (known.as_dict() if known else {}) | model.model_dump(mode="json")
