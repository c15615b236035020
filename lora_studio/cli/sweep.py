"""`sweep`: test LoRAs as a labelled grid, and resume a stopped one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_studio import api
from lora_studio.cli.console import HomeOption, Json, err_console, out_console, print_json
from lora_studio.cli.options import field_options
from lora_studio.cli.progress import JobProgress
from lora_studio.errors import ConfigError, InputError
from lora_studio.settings.job_specs import SweepJob, TrainJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home

if TYPE_CHECKING:
    from lora_studio.sampling.sweep import SweepResult

NEEDED = {"bases": "--base", "prompts": "--prompt"}


@field_options(
    SweepJob,
    {
        "loras": "LORA...",
        "bases": "--base",
        "prompts": "--prompt",
        "strengths": "--strengths",
        "seeds": ("--seeds", "--seed"),
        "sampler": "--sampler",
        "steps": "--steps",
        "guidance": "--guidance",
        "width": "--width",
        "height": "--height",
        "clip_skip": "--clip-skip",
        "with_loras": "--with",
        "text_encoder_strength": "--text-encoder-strength",
        "negative_prompt": "--negative",
        "quality_tags": "--quality-tags",
        "trigger_word": "--trigger",
        "feature_model": "--feature-model",
        "rows": "--rows",
        "columns": "--columns",
    },
    required=False,
)
def sweep(
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep (default: a numbered one in the home).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Draw the missing images of the sweep in --out.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Test LoRAs at several strengths with equal seeds, as one labelled grid; Ctrl+C stops, and --resume continues."""
    if resume:
        folder = sweep_to_resume(out, given)
        with JobProgress(err_console) as bar:
            result: SweepResult = api.resume(folder.path, home=Home.locate(home), on_event=bar)
    else:
        if missing := [f"{option} is missing" for name, option in NEEDED.items() if name not in given]:
            raise ConfigError(missing, "Give it, or --resume --out SWEEP.")
        with JobProgress(err_console) as bar:
            result = api.run_job(SweepJob.parse(given), out=out, home=Home.locate(home), on_event=bar)
    if as_json:
        print_json(result)
        return
    if result.stopped:
        line = "Stopped. Draw the missing images with: sweep --resume --out FOLDER"
        where = result.cells[0].path.parents[1] if result.cells else out
        out_console.print(line.replace("FOLDER", str(where or "FOLDER")), soft_wrap=True, highlight=False, markup=False)
    out_console.print(f"Grid: {result.grid or 'none yet'}", soft_wrap=True, highlight=False, markup=False)


def sweep_to_resume(out: Path | None, given: dict[str, Any]) -> JobFolder:
    """Return the sweep to resume; raise InputError if there is none, or if settings were given."""
    if out is None:
        raise InputError("--resume needs the folder of a sweep.", "Give --out SWEEP.", code="usage")
    if given:
        message = f"--resume draws what the sweep in {out} was made for; it does not take {', '.join(sorted(given))}."
        raise InputError(message, "Leave them out, or start another sweep: images that exist are copied.", code="usage")
    return check_kind(out, SweepJob)


def check_kind(folder: Path, kind: type[SweepJob] | type[TrainJob]) -> JobFolder:
    """Return a job folder; raise InputError that names the right command if its job is of another kind."""
    job = JobFolder(folder).job()
    if not isinstance(job, kind):
        command = f"{job.kind} --resume --out {folder}" if isinstance(job, SweepJob | TrainJob) else f"{job.kind} again"
        raise InputError(f"{folder} is a {job.kind} job.", f"Continue it with: {command}.", code="job_kind")
    return JobFolder(folder)
