"""The options of `train` for Hugging Face Jobs, and the command that trains inside a job."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lora_studio.cli.console import err_console
from lora_studio.errors import InputError
from lora_studio.remote.service import BILLING, JobsService
from lora_studio.settings.hf_jobs import HfJobsSettings


class Place(StrEnum):
    """Where a training runs."""

    HERE = "here"
    HF_JOBS = "hf-jobs"


def hf_jobs_settings(
    place: Place, flavor: str | None, timeout: str | None, *, has_other: bool
) -> HfJobsSettings | None:
    """Return the settings of a training on Hugging Face Jobs, None for one here. Raises InputError, ConfigError."""
    given = {name: value for name, value in (("flavor", flavor), ("timeout", timeout)) if value is not None}
    if place is Place.HERE:
        if given:
            raise InputError(f"--{next(iter(given))} needs --on hf-jobs.", "Give both, or neither.", code="usage")
        return None
    if has_other:
        raise InputError("--on hf-jobs excludes --resume and --vary.", "Give one of them.", code="usage")
    return HfJobsSettings.parse(given)


def print_cost(settings: HfJobsSettings) -> None:
    """Print the price of a job to stderr; raise InputError if the service has no such flavor."""
    hardware = {item.flavor: item for item in JobsService.connect().hardware()}
    if settings.flavor not in hardware:
        raise InputError(
            f"flavor {settings.flavor!r} is unknown.", f"Use one of {', '.join(hardware)}.", code="jobs_flavor"
        )
    price = hardware[settings.flavor].usd_per_hour
    text = f"Hugging Face Jobs ({hardware[settings.flavor].label}) costs your account there"
    if price is not None:
        most = price * settings.timeout_seconds / 3600
        text += f" ${price:.2f} per hour, at most ${most:.2f} with --timeout {settings.timeout}"
    else:
        text += " money"
    err_console.print(f"{text}. {BILLING}", soft_wrap=True, highlight=False, markup=False)


def hf_job(
    inputs: Annotated[Path, typer.Argument(metavar="INPUTS")],
    repo: Annotated[str, typer.Argument(metavar="REPO")],
    run: Annotated[Path, typer.Argument(metavar="RUN")],
) -> None:
    """Train inside a job of Hugging Face Jobs; the studio starts this."""
    from lora_studio.remote.in_job import train_in_job

    train_in_job(inputs, repo, run)
