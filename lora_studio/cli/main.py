"""`python -m lora_studio`: one command per stage, which calls the same functions as the tabs.

With `--json` a command prints one JSON document on stdout and nothing else there; messages and progress bars go to
stderr. Exit status: 0, 2 for wrong input, 1 for a failure.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lora_studio import __version__, api, guide
from lora_studio.cli.captions import caption_app
from lora_studio.cli.console import Folder, HomeOption, Json, err_console, out_console, print_json
from lora_studio.cli.progress import JobProgress, progress_bar
from lora_studio.dataset.tagging.cache import cached_features
from lora_studio.errors import ConfigError, InputError, StudioError
from lora_studio.planning.presets import list_presets, load_preset
from lora_studio.settings.choices import ExistingCaptions, LoraKind
from lora_studio.settings.job_specs import TrainJob, job_from_toml
from lora_studio.settings.recipe import Recipe, apply_overrides
from lora_studio.workspace.project import Home

app = typer.Typer(
    help="Curate, tag, plan, train and test SDXL LoRAs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(caption_app, name="caption")


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


@app.command()
def plan(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Folder of images.")] = None,
    images: Annotated[int | None, typer.Option("--images", min=1, help="Number of images, without a folder.")] = None,
    kind: Annotated[LoraKind, typer.Option(help="What the LoRA is for.")] = LoraKind.CHARACTER,
    base: Annotated[str, typer.Option(help="Base model: a name, Hub repository, folder or file.")] = "SDXL 1.0",
    vram: Annotated[float | None, typer.Option("--vram", min=1, help="GPU memory in GiB.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1)] = None,
    repeats: Annotated[int | None, typer.Option(min=1)] = None,
    resolution: Annotated[int | None, typer.Option(min=64)] = None,
    trigger: Annotated[str, typer.Option(help="Trigger word.")] = "",
    regularization: Annotated[Path | None, typer.Option(help="Folder of regularisation images.")] = None,
    as_json: Json = False,
) -> None:
    """Plan the settings and steps of a training, with the reasons."""
    if (folder is None) == (images is None):
        raise InputError("plan needs either a folder or --images N.", "Give one of them.", code="usage")
    overrides = {"epochs": epochs, "batch_size": batch, "repeats": repeats, "resolution": resolution}
    result = api.plan(
        folder if folder is not None else images or 0,
        kind=kind,
        base=base,
        vram_gib=vram,
        trigger_word=trigger,
        overrides={name: value for name, value in overrides.items() if value is not None},
        regularization=regularization,
    )
    if as_json:
        print_json(result.summary())
        return
    table = Table("setting", "value", "why", box=None, pad_edge=False)
    for reason in result.reasons:
        table.add_row(reason.setting, str(reason.value), reason.why)
    out_console.print(table)
    out_console.print(result.describe(), highlight=False, markup=False)
    for warning in result.warnings:
        out_console.print(f"- {warning.message} {warning.why}", highlight=False, markup=False)


@app.command()
def scan(folder: Folder, home: HomeOption = None, as_json: Json = False) -> None:
    """Find broken, flawed, small and duplicate images, and similar ones once they are tagged. Changes nothing."""
    with progress_bar(err_console, "Scanning") as progress:
        report = api.scan(folder, on_progress=progress, features_of=partial(cached_features, Home.locate(home)))
    if as_json:
        print_json(report)
        return
    for image in report.images:
        for issue in image.issues:
            out_console.print(f"{image.path}: {issue.message}", soft_wrap=True, highlight=False, markup=False)
    for group in report.duplicate_groups:
        out_console.print(f"{group.kind}: keep {group.keep}", soft_wrap=True, highlight=False, markup=False)
        for path in group.reject:
            verb = "check" if group.kind == "similar" else "set aside"
            out_console.print(f"    {verb} {path}", soft_wrap=True, highlight=False, markup=False)
    if report.diversity:
        out_console.print(f"Diversity {report.diversity.figure} of 100: {report.diversity.words}.")
        for pair in report.diversity.pairs:
            line = f"    similarity {pair.likeness:.2f}: {pair.first.name} and {pair.second.name}"
            out_console.print(line, soft_wrap=True, highlight=False, markup=False)
    for issue in report.summary.issues:
        out_console.print(issue.message, soft_wrap=True, highlight=False, markup=False)
    out_console.print(
        f"{len(report.images)} images, {report.summary.duplicates} duplicates, "
        f"{sum(bool(image.issues) for image in report.images)} with something to check."
    )


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


@app.command()
def tag(
    folder: Folder,
    tagger: Annotated[
        list[str], typer.Option(help="wd14, blip, demo, a Hub repository or a folder; several are combined.")
    ],
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Minimum confidence of a tag.")] = None,
    character_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum confidence of a character's name.")
    ] = None,
    trigger: Annotated[str, typer.Option(help="Put first in every caption, never repeated.")] = "",
    existing: Annotated[
        ExistingCaptions, typer.Option(help="What to do with existing captions.")
    ] = ExistingCaptions.IGNORE,
    exclude: Annotated[str, typer.Option(help="Whole tags to leave out, separated by commas.")] = "",
    only: Annotated[str, typer.Option(help="The only tags to write, separated by commas.")] = "",
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Write a caption for every image."""
    with JobProgress(err_console) as bar:
        result = api.tag(
            folder,
            tagger=tagger,
            threshold=threshold,
            character_threshold=character_threshold,
            trigger_word=trigger,
            existing=existing,
            exclude_tags=exclude.split(","),
            only_tags=[tag for tag in only.split(",") if tag.strip()],
            home=Home.locate(home),
            on_event=bar,
        )
    if as_json:
        print_json(result)
        return
    if result.stopped:
        out_console.print("Stopped. Run the same command again for the images without a caption.")
    out_console.print(f"{result.tagged} tagged, {result.skipped} unchanged, {len(result.failed)} failed.")
    for failure in result.failed:
        out_console.print(f"{failure.path}: {failure.message}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def train(
    job_file: Annotated[
        Path | None, typer.Argument(metavar="[JOB.toml]", help="A job file, or the job.toml of a run.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Folder of images and captions.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model: a name, Hub repository, folder or file.")] = None,
    name: Annotated[str, typer.Option(help="File name of the LoRA.")] = "lora",
    trigger: Annotated[str, typer.Option(help="Trigger word.")] = "",
    preset: Annotated[str | None, typer.Option(help="A preset by name, or a .toml file.")] = None,
    vae: Annotated[str | None, typer.Option(help="Another VAE: Hub repository, folder or .safetensors.")] = None,
    network_weights: Annotated[Path | None, typer.Option(help="A LoRA file to start from.")] = None,
    regularization: Annotated[Path | None, typer.Option(help="Folder of regularisation images.")] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs, each with a batch of its own.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the recipe; can be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: a numbered one in the home).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Train a LoRA; Ctrl+C stops and saves, and --resume continues."""
    located = Home.locate(home)
    if resume:
        folder = out or (job_file.parent if job_file else None)
        if folder is None:
            raise InputError("--resume needs the folder of a run.", "Give --out RUN or RUN/job.toml.", code="usage")
        with JobProgress(err_console) as bar:
            result = api.resume(folder, home=located, on_event=bar)
    else:
        files = {"vae": vae, "network_weights": network_weights, "regularization": regularization}
        job = _train_job(job_file, dataset, base, name, trigger, preset, settings or [], files)
        with JobProgress(err_console) as bar:
            result = api.train(
                job.dataset,
                base=job.base,
                name=job.name,
                trigger_word=job.trigger_word,
                recipe=job.recipe,
                vae=job.vae,
                network_weights=job.network_weights,
                regularization=job.regularization,
                num_processes=num_processes or job.num_processes,
                out=out,
                home=located,
                on_event=bar,
            )
    if as_json:
        print_json(result)
        return
    if result.stopped:
        out_console.print(f"Stopped at step {result.steps}. Continue with: train --resume --out {result.run}")
    else:
        out_console.print(f"LoRA: {result.lora}", soft_wrap=True, highlight=False)
    if result.verdict:
        out_console.print(f"{result.verdict.title}. {result.verdict.evidence} {result.verdict.next_step}", markup=False)


@app.command()
def sweep(
    loras: Annotated[list[Path], typer.Argument(metavar="LORA...", help="LoRA files.")],
    base: Annotated[list[str], typer.Option(help="Base model; can be repeated.")],
    prompt: Annotated[list[str], typer.Option(help="Prompt; can be repeated. {trigger} is the trigger word.")],
    strengths: Annotated[str, typer.Option(help="Strengths, separated by commas.")] = "0,0.7,0.8,0.9,1.0,1.1,1.2",
    seed: Annotated[int, typer.Option(min=0)] = 42,
    steps: Annotated[int, typer.Option(min=1, max=200, help="Sampling steps.")] = 25,
    guidance: Annotated[float, typer.Option(min=0, max=30, help="CFG scale.")] = 6.0,
    negative: Annotated[str, typer.Option(help="Negative prompt.")] = "",
    trigger: Annotated[str, typer.Option(help="Trigger word (default: from the LoRA).")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep (default: a numbered one in the home).")] = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Test LoRAs at several strengths with one seed, as one labelled grid."""
    with JobProgress(err_console) as bar:
        result = api.sweep(
            loras,
            bases=base,
            prompts=prompt,
            strengths=strengths,
            seed=seed,
            steps=steps,
            guidance=guidance,
            negative_prompt=negative,
            trigger_word=trigger,
            out=out,
            home=Home.locate(home),
            on_event=bar,
        )
    if as_json:
        print_json(result)
        return
    out_console.print(f"Grid: {result.grid}", soft_wrap=True, highlight=False)


@app.command()
def models(as_json: Json = False) -> None:
    """List the base models of the catalogue."""
    if as_json:
        print_json([{"name": name, **model.as_dict()} for name, model in guide.BASES.items()])
        return
    table = Table("name", "good for", "prediction", "why", box=None, pad_edge=False)
    for name, model in guide.BASES.items():
        table.add_row(name, model.good_for, model.prediction_type, model.why)
    out_console.print(table)


@app.command()
def presets(as_json: Json = False) -> None:
    """List the presets and the settings they change."""
    known = list_presets()
    if as_json:
        print_json({name: load_preset(name) for name in known})
        return
    for name in known:
        changes = ", ".join(f"{key}={value}" for key, value in load_preset(name).items())
        out_console.print(f"{name}: {changes}", soft_wrap=True, highlight=False, markup=False)


@app.command(hidden=True)
def worker(
    folder: Annotated[Path, typer.Argument(metavar="JOB")],
    home: HomeOption = None,
    resume: Annotated[bool, typer.Option("--resume")] = False,
) -> None:
    """Run the job of a job folder; the studio starts this."""
    from lora_studio.worker import run_detached

    raise typer.Exit(run_detached(folder, Home.locate(home), resume=resume))


def _train_job(
    job_file: Path | None,
    dataset: Path | None,
    base: str | None,
    name: str,
    trigger: str,
    preset: str | None,
    settings: list[str],
    files: Mapping[str, Any],
) -> TrainJob:
    """Build the job from a job file, or from dataset and base; then apply the files, the preset and each --set."""
    values: dict[str, Any]
    if job_file is not None:
        if not job_file.is_file():
            raise InputError(f"The job file {job_file} does not exist.", "Give a .toml file.", code="no_job")
        job = job_from_toml(job_file.read_text("utf-8"), str(job_file))
        if not isinstance(job, TrainJob):
            raise InputError(f"{job_file} is a {job.kind} job.", "Give a training job.", code="job_kind")
        values = job.model_dump(exclude_none=True)
    else:
        missing = [f"--{option}" for option, value in (("dataset", dataset), ("base", base)) if value is None]
        if missing:
            raise ConfigError([f"{option} is missing" for option in missing], "Give it, or a JOB.toml.")
        values = {"dataset": dataset, "base": base, "name": name, "trigger_word": trigger, "recipe": {}}
    values |= {name: value for name, value in files.items() if value is not None}
    recipe = Recipe.parse(values["recipe"]).non_defaults()
    recipe |= load_preset(preset) if preset else {}
    values["recipe"] = apply_overrides(recipe, settings)
    return TrainJob.parse(values)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
