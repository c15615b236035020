"""The command `queue`: the runs that wait for their turn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_studio.api import enqueue_jobs
from lora_studio.cli.console import HomeOption, Json, err_console, out_console, print_json
from lora_studio.planning.variants import Axis, variant_jobs
from lora_studio.settings.job_specs import TrainJob
from lora_studio.worker import start_next
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from lora_studio.workspace.run_queue import RunQueue


def queue(
    cancel: Annotated[Path | None, typer.Option(metavar="RUN", help="Remove this run from the queue.")] = None,
    first: Annotated[Path | None, typer.Option(metavar="RUN", help="Move this run to the front.")] = None,
    start: Annotated[bool, typer.Option("--start", help="Start the first run, unless a job is active.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """List the runs that wait in the queue, in their order; the studio starts one after the other."""
    waiting = RunQueue(Home.locate(home))
    if cancel is not None:
        waiting.cancel(JobFolder(cancel))
    if first is not None:
        waiting.move(waiting.key(JobFolder(first)), -len(waiting.runs()))
    if start and (started := start_next(waiting.home, wait=True)) is not None:
        err_console.print(f"Started {started.path}.", soft_wrap=True, highlight=False, markup=False)
    found = [{"run": str(run.folder.path), "resume": run.resume} for run in waiting.runs()]
    if as_json:
        print_json(found)
        return
    for place, run in enumerate(found, start=1):
        out_console.print(f"{place}. {run['run']}", soft_wrap=True, highlight=False, markup=False)
    if not found:
        out_console.print("No run waits in the queue.")


def queue_variants(job: TrainJob, vary: list[str], *, out: Path | None, home: Home, as_json: bool) -> None:
    """Put a run for each combination of the values in `--vary` into the queue, and print their folders."""
    folders = enqueue_jobs(variant_jobs(job, [Axis.parse(text) for text in vary]), out=out, home=home)
    if as_json:
        print_json([{"run": str(folder)} for folder in folders])
        return
    for folder in folders:
        out_console.print(str(folder), soft_wrap=True, highlight=False, markup=False)
    out_console.print(f"{len(folders)} runs are in the queue, which `queue` lists; they train one after the other.")
