"""The record of a training on Hugging Face Jobs: remote.json in its job folder.

A job folder with this file is not trained on this computer: its worker process follows the job of the service.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from lora_studio.errors import InputError
from lora_studio.files import write_text

REMOTE_FILE = "remote.json"


class RemoteRun(BaseModel):
    """Where a run trains, and how far it was followed.

    `repo` is the private dataset repository with inputs and outputs, `key` the label by which the job is found again.
    `events` is the number of the last event that was read from the log of the job; events.jsonl had `log_bytes` then.
    """

    flavor: str
    timeout: str
    key: str
    namespace: str = ""
    repo: str = ""
    job_id: str = ""
    url: str = ""
    events: int = 0
    log_bytes: int | None = None

    @classmethod
    def read(cls, folder: Path) -> RemoteRun:
        """Read the record of a job folder; raise InputError if it is missing or damaged."""
        try:
            return cls.model_validate_json((folder / REMOTE_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(
                f"{folder / REMOTE_FILE} cannot be read: {error}",
                "Restore it from a backup, or start a new run. The job is at https://huggingface.co/settings/jobs.",
                code="remote_record",
            ) from error

    def write(self, folder: Path) -> None:
        """Write the record atomically."""
        write_text(folder / REMOTE_FILE, self.model_dump_json(indent=1) + "\n")


def is_remote(folder: Path) -> bool:
    """Return whether the job of a folder trains on Hugging Face Jobs."""
    return (folder / REMOTE_FILE).is_file()
