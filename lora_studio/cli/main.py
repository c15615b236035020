"""`python -m lora_studio`: one command per stage, which calls the same functions as the tabs.

With `--json` a command prints one JSON document on stdout and nothing else there; messages and progress bars go to
stderr. Exit status: 0, 2 for wrong input, 1 for a failure.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_studio import __version__, api
from lora_studio.cli.captions import caption_app
from lora_studio.cli.console import (
    Folder,
    HomeOption,
    Json,
    err_console,
    out_console,
    print_json,
    print_lines,
    print_markdown,
)
from lora_studio.cli.crops import crops
from lora_studio.cli.hf_jobs import Place, hf_job, hf_jobs_settings, print_cost
from lora_studio.cli.lora import lora_app
from lora_studio.cli.make import make
from lora_studio.cli.models import models_app
from lora_studio.cli.options import field_help, field_options
from lora_studio.cli.plan import plan
from lora_studio.cli.presets import presets_app
from lora_studio.cli.progress import JobProgress, progress_bar
from lora_studio.cli.queue import queue, queue_variants
from lora_studio.cli.recipe_options import FromOption, KindOption, PresetOption, SetOption, VaryOption, import_from
from lora_studio.cli.release import release
from lora_studio.cli.runs import runs
from lora_studio.cli.scan_table import print_scan
from lora_studio.cli.sweep import check_kind, sweep
from lora_studio.dataset.tagging.cache import cached_features
from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.planning.plan import NEW_PROJECT
from lora_studio.planning.presets import load_preset
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.hf_jobs import HfJobsSettings
from lora_studio.settings.job_specs import AnyJob, TagJob, TrainJob, job_from_toml
from lora_studio.settings.recipe import Recipe, apply_overrides
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from lora_studio.workspace.remote_run import is_remote

if TYPE_CHECKING:
    from lora_studio.dataset.tagging.stage import TagResult
    from lora_studio.interop.files import ImportedSettings
    from lora_studio.training.train import TrainResult

app = typer.Typer(
    help="Curate, tag, plan, train and test SDXL LoRAs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(caption_app, name="caption")
app.add_typer(presets_app, name="presets")
app.add_typer(models_app, name="models")
app.add_typer(lora_app, name="lora")


def main() -> None:
    """Run a command; print a StudioError as two lines on stderr and exit with its status."""
    try:
        app()
    except StudioError as error:
        err_console.print(f"[red]Error:[/red] {_escape(error.message)}", soft_wrap=True, highlight=False)
        if error.remedy:
            err_console.print(_escape(error.remedy), soft_wrap=True, highlight=False)
        sys.exit(error.exit_status)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for all results; created if missing.")] = Path("demo"),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Train only N steps.")] = None,
    home: HomeOption = None,
) -> None:
    """Run the whole workflow on the embedded small model and the example images, without a GPU or a download."""
    from lora_studio.example import run_demo

    with JobProgress(err_console) as bar:
        result = run_demo(out, home=Home.locate(home), steps=steps, on_event=bar, on_stage=bar.stage)
    for line in result.lines():
        out_console.print(line, soft_wrap=True, highlight=False, markup=False)


app.command()(make)
app.command()(plan)


@app.command()
def scan(
    folder: Folder,
    names: Annotated[bool, typer.Option("--names", help="List the images of each kind by name.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Find broken, flawed, small and duplicate images, and similar ones once they are tagged. Changes nothing."""
    with progress_bar(err_console, "Scanning") as progress:
        report = api.scan(folder, on_progress=progress, features_of=partial(cached_features, Home.locate(home)))
    if as_json:
        print_json(report)
        return
    print_scan(report, with_names=names)


@app.command()
def curate(
    folder: Folder,
    apply: Annotated[bool, typer.Option("--apply", help="Set the proposed images aside (nothing is deleted).")] = False,
    restore: Annotated[bool, typer.Option("--restore", help="Move all set-aside images back.")] = False,
    wrap: Annotated[
        str, typer.Option(metavar="NAME", help="First move images outside the set folders into one, like 10_saria.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Show, apply or undo what a scan proposes."""
    if apply and restore:
        raise InputError("--apply and --restore exclude each other.", "Give one of the two.", code="usage")
    if wrap:
        wrapped = api.wrap_images(folder, wrap)
        err_console.print(f"Moved {len(wrapped)} images to {wrapped[0].parent}.", soft_wrap=True, highlight=False)
    with progress_bar(err_console, "Scanning") as progress:
        report = api.curate(folder, apply=apply, restore=restore, on_progress=progress)
    if as_json:
        print_json(report)
        return
    for line in report.lines():
        out_console.print(line, soft_wrap=True, highlight=False, markup=False)


app.command()(crops)


@app.command()
@field_options(
    TagJob,
    {
        "dataset": "DIR",
        "threshold": "--threshold",
        "character_threshold": "--character-threshold",
        "trigger_word": "--trigger",
        "existing": "--existing",
        "exclude_tags": "--exclude",
        "only_tags": "--only",
        "prompt": "--prompt",
        "max_caption_tokens": "--max-caption-tokens",
        "compare": "--compare",
    },
)
def tag(
    tagger: Annotated[list[str], typer.Option(help=field_help(TagJob, "tagger"))],
    home: HomeOption = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Write a caption for every image."""
    result: TagResult = _run(TagJob.parse({"tagger": tagger, **given}), home)
    if as_json:
        print_json(result)
        return
    for compared in result.compared:
        print_lines(f"{compared.tagger}: {compared.text}")
    if result.compared:
        return
    if result.stopped:
        out_console.print("Stopped. Run the same command again for the images without a caption.")
    out_console.print(f"{result.tagged} tagged, {result.skipped} unchanged, {len(result.failed)} failed.")
    for failure in result.failed:
        out_console.print(f"{failure.path}: {failure.message}", soft_wrap=True, highlight=False, markup=False)


@app.command()
@field_options(
    TrainJob,
    {
        "dataset": "--dataset",
        "base": "--base",
        "name": "--name",
        "trigger_word": "--trigger",
        "vae": "--vae",
        "network_weights": "--network-weights",
        "regularization": "--regularization",
        "num_processes": "--num-processes",
    },
    required=False,
)
def train(
    job_file: Annotated[
        Path | None, typer.Argument(metavar="[JOB.toml]", help="A job file, or the job.toml of a run.")
    ] = None,
    source: FromOption = None,
    kind: KindOption = NEW_PROJECT.kind,
    preset: PresetOption = None,
    settings: SetOption = None,
    vary: VaryOption = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: a numbered one in the home).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")] = False,
    more_epochs: Annotated[
        int | None, typer.Option(min=1, help="With --resume: train this many epochs more, as a new run beside it.")
    ] = None,
    where: Annotated[
        Place, typer.Option("--on", help="Where to train: here, or hf-jobs (experimental; costs money).")
    ] = Place.HERE,
    flavor: Annotated[str | None, typer.Option(help=field_help(HfJobsSettings, "flavor"))] = None,
    timeout: Annotated[str | None, typer.Option(help=field_help(HfJobsSettings, "timeout"))] = None,
    home: HomeOption = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Train a LoRA; Ctrl+C stops and saves, and --resume continues.

    With --resume, --dataset and other paths say where files are that have moved since the run began.

    With --on hf-jobs it trains on Hugging Face Jobs, paid by your account there, and --resume follows that job again.
    This is experimental: it was not run on the service yet.

    With --vary it trains nothing itself: the runs go into the queue, and --out is the folder for theirs.

    Without a JOB.toml or --from, the recipe is planned for the images, the base and this machine, as `plan` does.
    """
    result: TrainResult
    hf_jobs = hf_jobs_settings(where, flavor, timeout, has_other=bool(resume or vary))
    if resume and vary:
        raise InputError("--resume and --vary exclude each other.", "Give one of the two.", code="usage")
    if resume:
        folder = out or (job_file.parent if job_file else None)
        if folder is None:
            raise InputError("--resume needs the folder of a run.", "Give --out RUN or RUN/job.toml.", code="usage")
        check_kind(folder, TrainJob)
        with JobProgress(err_console) as bar:
            if more_epochs is None:
                result = api.resume(folder, moved=given, home=Home.locate(home), on_event=bar)
            else:
                place = Home.locate(home)
                result = api.continue_training(folder, more_epochs=more_epochs, home=place, on_event=bar)
    elif more_epochs is not None:
        raise InputError("--more-epochs needs --resume.", "Give --resume --out RUN --more-epochs N.", code="usage")
    else:
        presets = load_preset(preset, Home.locate(home)) if preset else {}
        job = _train_job(job_file, import_from(source), given, presets, settings or [])
        if job_file is None and source is None:
            job = _planned(job, kind, Home.locate(home))
        if vary:
            queue_variants(job, vary, out=out, home=Home.locate(home), as_json=as_json)
            return
        if hf_jobs is None:
            result = _run(job, home, out)
        else:
            print_cost(hf_jobs)
            result = _run(job, home, out, hf_jobs)
    if as_json:
        print_json(result)
        return
    if result.automatic_stop:
        out_console.print(result.automatic_stop.message, soft_wrap=True, highlight=False, markup=False)
    if result.stopped:
        then = f"Continue with: train --resume --out {result.run}"
        if is_remote(result.run):
            then = JobFolder(result.run).stopped_remedy()
        out_console.print(f"Stopped at step {result.steps}. {then}")
    if result.lora:
        out_console.print(f"LoRA: {result.lora}", soft_wrap=True, highlight=False)
    if result.verdict:
        out_console.print(f"{result.verdict.title}. {result.verdict.evidence} {result.verdict.next_step}", markup=False)


@app.command()
def sample(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that is training.")]) -> None:
    """Ask a training that is running to draw its sample prompts after the current step."""
    api.request_samples(run)
    out_console.print(f"The samples will be in {run / 'samples'}.", soft_wrap=True, highlight=False, markup=False)


@app.command()
def save(run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that is training.")]) -> None:
    """Ask a training that is running to save its LoRA and its state after the current step."""
    api.request_save(run)
    out_console.print(f"The LoRA will be in {run / 'checkpoints'}.", soft_wrap=True, highlight=False, markup=False)


app.command()(sweep)
app.command()(runs)
app.command()(queue)
app.command()(release)


@app.command()
def doctor(home: HomeOption = None, as_json: Json = False) -> None:
    """Check libraries, GPU, driver, memory and disk, and try each optimizer and precision; for bug reports.

    On a GPU it also compares what runs use to be fast with the plain computation, and times both.

    Exit status 1 if something that the studio needs does not work.
    """
    err_console.print("Trying each optimizer and precision, which takes about half a minute, on a GPU a minute more.")
    report = api.doctor(Home.locate(home))
    if as_json:
        print_json(report)
    else:
        print_lines(*report.lines())
    raise typer.Exit(0 if report.ok else 1)


@app.command(hidden=True)
def upload(file: Annotated[Path, typer.Argument(metavar="UPLOAD.json")]) -> None:
    """Upload the release that a file describes and write its result there; the studio starts this."""
    from lora_studio.sharing.upload import run_upload

    raise typer.Exit(0 if run_upload(file) else 1)


app.command(hidden=True)(hf_job)


@app.command(hidden=True)
def worker(
    folder: Annotated[Path, typer.Argument(metavar="JOB")],
    home: HomeOption = None,
    resume: Annotated[bool, typer.Option("--resume")] = False,
) -> None:
    """Run the job of a job folder; the studio starts this."""
    from lora_studio.worker import run_detached

    raise typer.Exit(run_detached(folder, Home.locate(home), resume=resume))


def _run(job: AnyJob, home: Path | None, out: Path | None = None, hf_jobs: HfJobsSettings | None = None) -> Any:
    """Run a job with a progress bar on stderr and return its result."""
    with JobProgress(err_console) as bar:
        return api.run_job(job, out=out, home=Home.locate(home), on_event=bar, hf_jobs=hf_jobs)


def _planned(job: TrainJob, kind: LoraKind, home: Home) -> TrainJob:
    """Return the job with the planned recipe around the settings that it changes, and print the plan to stderr."""
    planned = api.plan_on_this_machine(job, kind, home)
    print_markdown(planned.describe(), err_console)
    return job.model_copy(update={"recipe": planned.recipe})


def _train_job(
    job_file: Path | None,
    imported: ImportedSettings | None,
    given: dict[str, Any],
    preset: dict[str, Any],
    settings: list[str],
) -> TrainJob:
    """Build the job from a job file or imported settings; then apply the given fields, the preset and each --set."""
    values: dict[str, Any] = {"recipe": {}}
    if job_file is not None and imported is not None:
        raise InputError("JOB.toml and --from exclude each other.", "Give one of the two.", code="usage")
    if imported is not None:
        values = {**imported.job, "recipe": imported.recipe}
    if job_file is not None:
        if not job_file.is_file():
            raise InputError(f"The job file {job_file} does not exist.", "Give a .toml file.", code="no_job")
        job = _read_job(job_file)
        if not isinstance(job, TrainJob):
            raise InputError(f"{job_file} is a {job.kind} job.", "Give a training job.", code="job_kind")
        values = job.model_dump(exclude_none=True)
        if JobFolder.is_job_file(job_file):
            values["parent"] = job_file.parent.resolve()
    if "dataset" in given:  # other images than those of the subsets
        values.pop("subsets", None)
    values |= given
    if missing := [f"--{name}" for name in ("dataset", "base") if name not in values]:
        raise ConfigError([f"{option} is missing" for option in missing], "Give it, or a JOB.toml.")
    recipe = Recipe.parse(values["recipe"]).non_defaults() | preset
    values["recipe"] = apply_overrides(recipe, settings)
    return TrainJob.parse(values)


def _read_job(file: Path) -> AnyJob:
    """Read a job file; paths in the job.toml of a run are found even if its project has moved."""
    if JobFolder.is_job_file(file):
        return JobFolder(file.parent).job()
    return job_from_toml(file.read_text("utf-8"), str(file))


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
