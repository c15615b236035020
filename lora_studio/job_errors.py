"""What libraries raise while a job runs, as errors with a remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_studio.device import gpu_error, is_out_of_memory
from lora_studio.errors import JobError, OutOfMemoryError, StudioError, disk_errors
from lora_studio.planning.memory import saving_advice
from lora_studio.settings.job_specs import AnyJob, DownloadJob, SweepJob, TagJob, TrainJob
from lora_studio.versions import incompatible_libraries_error
from lora_studio.workspace.job_folder import RESUME_REMEDIES


@contextmanager
def library_errors(job: AnyJob) -> Iterator[None]:
    """Raise StudioErrors with a remedy for what libraries raise: out of memory, unusable GPU, full disk, bad files."""
    try:
        yield
    except StudioError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError("Out of memory.", _memory_remedy(job), code="out_of_memory") from error
        if (unusable := gpu_error(error)) is not None:
            raise unusable from error
        if isinstance(error, ImportError):
            raise incompatible_libraries_error(error) from error
        if isinstance(error, FileNotFoundError):
            raise JobError(
                f"A file that the job needs is missing: {error.filename or error}.",
                f"Put it back. {RESUME_REMEDIES[job.kind]} Files in the studio's cache folder are rebuilt.",
                code="file_vanished",
            ) from error
        if _is_damaged_file(error):
            raise JobError(
                f"A file that the job needs is damaged: {error}.",
                f"{RESUME_REMEDIES[job.kind]} Damaged files in the studio's cache folder are rebuilt.",
                code="file_damaged",
            ) from error
        if isinstance(error, OSError):
            with disk_errors(Path(error.filename or "a file")):
                raise
        raise


def _memory_remedy(job: AnyJob) -> str:
    """Return what to do after a job ran out of memory."""
    match job:
        case TrainJob():
            return saving_advice(job.recipe)
        case SweepJob():
            return "Set a smaller width and height, and close other programs that use the GPU."
        case TagJob():
            return "Close other programs that use the GPU."
        case DownloadJob():
            return "Close other programs."


def _is_damaged_file(error: Exception) -> bool:
    """Return True if the error says that a safetensors file could not be read."""
    safetensors = sys.modules.get("safetensors")
    return safetensors is not None and isinstance(error, safetensors.SafetensorError)
