"""The command `make`: all stages, from a folder of images to a release."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_studio.cli.console import HomeOption, Json, err_console, print_json, print_lines
from lora_studio.cli.progress import JobProgress
from lora_studio.cli.recipe_options import PresetOption, SetOption
from lora_studio.planning.presets import load_preset
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.recipe import apply_overrides
from lora_studio.workflow.make import make as make_all
from lora_studio.workflow.record import Stage
from lora_studio.workspace.project import Home


def make(
    images: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of images, or a project's folder.")],
    trigger: Annotated[str, typer.Option("--trigger", help="Trigger word.")] = "",
    base: Annotated[str, typer.Option("--base", help="Base model: a name, a Hub repository, a folder or a file.")] = "",
    kind: Annotated[LoraKind | None, typer.Option("--kind", help="What the images show.")] = None,
    name: Annotated[str, typer.Option("--name", help="Name of the project (default: the folder's).")] = "",
    hours: Annotated[float | None, typer.Option("--hours", min=0.01, help="The longest time to train.")] = None,
    tagger: Annotated[str, typer.Option("--tagger", help="Tagger (default: the one that suits the base).")] = "",
    preset: PresetOption = None,
    settings: SetOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Set proposed duplicates aside, and do not wait for a look at the captions.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Begin with the first stage; earlier runs stay.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Make a LoRA of a folder of images: curate, tag, plan, train, test, release. The same command continues.

    The first call stops after tagging, unless --yes is given: look at the proposed duplicates and the captions, in the
    browser or in the project's folder, then give the command again.
    """
    place = Home.locate(home)
    with JobProgress(err_console) as bar:
        result = make_all(
            images,
            trigger_word=trigger,
            base=base,
            kind=kind or "",
            name=name,
            hours=hours,
            overrides=apply_overrides(load_preset(preset, place) if preset else {}, settings or []),
            tagger=tagger,
            yes=yes,
            again=again,
            home=place,
            on_event=bar,
            on_stage=bar.stage,
        )
    if as_json:
        print_json(result)
        return
    print_lines(f"Project: {result.project}")
    if result.stopped_at is not None:
        print_lines(result.message, "The same command continues.")
        if result.stopped_at is Stage.REVIEW:
            print_lines(f"python -m lora_studio caption {result.project / 'dataset'} review")
        return
    print_lines(f"LoRA: {result.lora}", f"Grid: {result.grid}", f"Release: {result.release}", f"Zip: {result.zip}")
