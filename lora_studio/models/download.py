"""The download of a base model as a job: bytes and time left, stopped and resumed, compared with checksums."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from lora_studio.errors import StopRequested
from lora_studio.events import DownloadEvent, PhaseEvent, Report
from lora_studio.hub_files import Transfer
from lora_studio.models.locate import fetch_base, read_base_config, resolve_base
from lora_studio.settings.job_specs import DownloadJob
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home

REPORT_SECONDS = 1.0  # between two events


class DownloadResult(BaseModel):
    """The result of a download: the base's local folder or file; None if it was stopped."""

    path: Path | None = None
    stopped: bool = False


def download_base(
    job: DownloadJob,
    folder: JobFolder,
    *,
    home: Home,
    report: Report,
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> DownloadResult:
    """Download a base model into the Hub's cache, unless it is there. What an earlier attempt received is kept.

    Raises InputError if there is no such base, if it is not an SDXL or cannot be reached, DiskFullError, and JobError
    if a file was damaged on its way.
    """
    try:
        source = fetch_base(
            resolve_base(job.base, home),
            on_progress=lambda message: report(PhaseEvent(message=message)),
            report=_EventReport(report),
            should_stop=should_stop,
        )
    except StopRequested:
        return DownloadResult(stopped=True)
    read_base_config(source)
    return DownloadResult(path=Path(source.location))


class _EventReport:
    """Reports a transfer at its start, its end, and once per second in between."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.reported = 0.0
        self.was_checking = False

    def __call__(self, transfer: Transfer) -> None:
        now = time.monotonic()
        is_news = transfer.is_checking != self.was_checking or transfer.done == transfer.total
        if not is_news and now - self.reported < REPORT_SECONDS:
            return
        self.reported, self.was_checking = now, transfer.is_checking
        left = transfer.seconds_left
        self.report(
            DownloadEvent(
                done=transfer.done,
                total=transfer.total,
                seconds_left=None if left is None else round(left, 1),
                message="Comparing checksums" if transfer.is_checking else "Downloading",
            )
        )
