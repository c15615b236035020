"""The command `plan`: settings and steps of a training with their reasons; measured, exported or written as a job."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lora_studio import api
from lora_studio.cli.console import HomeOption, Json, err_console, out_console, print_json, print_markdown
from lora_studio.cli.options import field_help, field_options
from lora_studio.cli.progress import JobProgress
from lora_studio.cli.recipe_options import (
    FromOption,
    KindOption,
    PresetOption,
    SetOption,
    import_from,
    report_left_out,
)
from lora_studio.device import device_to_plan_for
from lora_studio.errors import InputError
from lora_studio.files import write_text
from lora_studio.planning.plan import NEW_PROJECT, read_inputs
from lora_studio.planning.planned_run import Plan
from lora_studio.planning.presets import load_preset
from lora_studio.planning.timing import describe_range
from lora_studio.planning.what_if import Variable, WhatIfRow, what_if, what_if_summary
from lora_studio.settings.job_specs import TrainJob, job_to_toml
from lora_studio.settings.recipe import Recipe, apply_overrides
from lora_studio.settings.subsets import Subset
from lora_studio.workspace.project import Home


@field_options(
    Recipe,
    {"epochs": "--epochs", "batch_size": "--batch", "repeats": "--repeats", "resolution": "--resolution"},
    show_defaults=False,
)
def plan(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help=field_help(TrainJob, "dataset"))] = None,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Number of images, without a folder.")] = None,
    kind: KindOption = NEW_PROJECT.kind,
    base: Annotated[str, typer.Option(help=field_help(TrainJob, "base"))] = NEW_PROJECT.base,
    vram: Annotated[float | None, typer.Option("--vram", min=1, help="GPU memory in GiB.")] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="Limit of the time.")] = None,
    trigger: Annotated[str, typer.Option(help=field_help(TrainJob, "trigger_word"))] = NEW_PROJECT.trigger_word,
    regularization: Annotated[Path | None, typer.Option(help=field_help(TrainJob, "regularization"))] = None,
    source: FromOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Train a few steps first, to measure time and memory on this machine."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="JOB.toml", help="Write the plan as a job for `train JOB.toml`.")
    ] = None,
    variable: Annotated[
        Variable | None,
        typer.Option("--what-if", help="Also show steps, time, memory and file size over values of one variable."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write the plan as a .toml for kohya's sd-scripts.")
    ] = None,
    home: HomeOption = None,
    as_json: Json = False,
    **overrides: Any,
) -> None:
    """Plan the settings and steps of a training, with the reasons."""
    imported = import_from(source)
    subsets: list[Subset] = []
    if imported is not None and folder is None and images is None and "dataset" in imported.job:
        folder = Path(imported.job["dataset"])
        subsets = [Subset.parse(subset) for subset in imported.job.get("subsets", [])]
    if imported is not None and base == NEW_PROJECT.base:
        base = imported.job.get("base", base)
        trigger = trigger or imported.job.get("trigger_word", "")
    if (folder is None) == (images is None):
        raise InputError("plan needs either a folder or --images N.", "Give one of them.", code="usage")
    job: dict[str, Any] = {"base": base, "trigger_word": trigger, "regularization": regularization, "subsets": subsets}
    values = {**(imported.recipe if imported else {}), **(load_preset(preset, Home.locate(home)) if preset else {})}
    read = partial(
        read_inputs,
        folder if folder is not None else images or 0,
        kind=kind,
        vram_gib=vram,
        hours=hours,
        overrides=apply_overrides(values, settings or []) | overrides,
        home=Home.locate(home),
        device=device_to_plan_for() if vram is None or measure else None,
        **job,
    )
    inputs = read()
    result = inputs.plan()
    if measure:
        dataset = _needed_folder(folder, "--measure")
        with JobProgress(err_console) as bar:
            api.measure(dataset, recipe=result.recipe, home=Home.locate(home), on_event=bar, **job)
        inputs = read()
        result = inputs.plan()
    if out is not None:
        planned = TrainJob.parse({"dataset": _needed_folder(folder, "--out"), "recipe": result.recipe, **job})
        write_text(out, job_to_toml(planned.with_absolute_paths()))
    if export is not None:
        job |= {"prediction_type": result.prediction_type, "total_steps": result.steps.total_steps}
        name = imported.job.get("name", TrainJob.defaults().name) if imported else TrainJob.defaults().name
        exported = api.export_settings(result.recipe, export, dataset=folder, name=name, **job)
        report_left_out(f"Written to {exported.file}.", exported.lines())
    rows = what_if(inputs, variable) if variable is not None else []
    if as_json:
        print_json(result.summary() | ({"what_if": what_if_summary(variable, rows)} if variable else {}))
        return
    print_markdown(result.describe())
    if variable is not None:
        out_console.print(_what_if_table(variable, rows, result))


def _needed_folder(folder: Path | None, option: str) -> Path:
    if folder is None:
        raise InputError(f"{option} needs a folder of images.", "Give one instead of --images.", code="usage")
    return folder


def _what_if_table(variable: Variable, rows: Sequence[WhatIfRow], planned: Plan) -> Table:
    is_estimated = variable is Variable.VRAM_GIB or not planned.on_cpu  # that of a CPU is not
    memory = ["GPU memory"] if is_estimated else []
    table = Table(variable.value, "steps", "time", *memory, "file size", "", box=None, pad_edge=False)
    for row in rows:
        least = f", at least {row.min_vram_gib:.1f}" if row.min_vram_gib < row.vram_gib else ""
        marks = ["the plan"] * row.is_current + ["does not fit"] * (row.fits is False)
        table.add_row(
            f"{row.value:g}",
            f"{row.total_steps:,}",
            describe_range(row.seconds),
            *([f"{row.vram_gib:.1f} GiB{least}"] if memory else []),
            f"{row.lora_mib:.0f} MiB",
            ", ".join(marks),
        )
    return table
