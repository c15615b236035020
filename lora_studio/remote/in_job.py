"""Train inside a job of Hugging Face Jobs: print each event as a line of JSON, upload what was saved.

The lines have a number in `n`, so that a reader that starts again at the beginning of the log skips what it has.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from lora_studio.api.jobs import execute_job
from lora_studio.errors import InputError, StudioError
from lora_studio.events import CheckpointEvent, Event, SampleEvent, WarningEvent
from lora_studio.remote.inputs import JOB_FILE, with_input_paths
from lora_studio.remote.outputs import LIST_FILE, OUTPUTS, OutputList, all_files, saved_files
from lora_studio.settings.job_specs import TrainJob, job_from_toml
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass
class EventPrinter:
    """Prints numbered events on stdout."""

    printed: int = 0
    lock: Lock = field(default_factory=Lock)

    def __call__(self, event: Event) -> None:
        """Print an event at once."""
        with self.lock:
            self.printed += 1
            sys.stdout.write(json.dumps(event.record() | {"n": self.printed}) + "\n")
            sys.stdout.flush()


@dataclass
class Uploads:
    """Uploads checkpoints and samples in a thread while the training continues, one upload at a time."""

    api: HfApi
    repo: str
    run: Path
    print_event: EventPrinter
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    running: Future[None] | None = None
    uploaded: set[Path] = field(default_factory=set)

    def start(self) -> None:
        """Upload what was saved, unless an upload is running; its files come with the next."""
        if self.running is None or self.running.done():
            self.running = self.pool.submit(self._upload_saved)

    def finish(self, result: dict[str, object] | None) -> None:
        """Wait for a running upload, then upload all files of the run with its result. Raises what the Hub raises."""
        self.pool.shutdown()
        self._commit(all_files(self.run), result)

    def _upload_saved(self) -> None:
        try:
            self._commit(saved_files(self.run), None)
        except Exception as error:  # the next upload has these files, too
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = f"Saved files could not be uploaded yet: {reason}"
            self.print_event(WarningEvent(code="jobs_upload", message=message, why="The next save uploads them."))

    def _commit(self, paths: list[Path], result: dict[str, object] | None) -> None:
        from huggingface_hub import CommitOperationAdd

        new = [path for path in paths if path not in self.uploaded or path not in saved_files(self.run)]
        listed = OutputList.of(self.run, paths, result).model_dump_json(indent=1).encode()
        added: list[tuple[str, Path | bytes]] = [(path.relative_to(self.run).as_posix(), path) for path in new]
        operations = [CommitOperationAdd(f"{OUTPUTS}/{name}", item) for name, item in [*added, (LIST_FILE, listed)]]
        self.api.create_commit(self.repo, operations, repo_type="dataset", commit_message="Upload the files of the run")
        self.uploaded.update(new)


def train_in_job(inputs: Path, repo: str, run: Path) -> None:
    """Train the uploaded job in `run` and upload its files to `repo`, also after a failure. Raises StudioError."""
    from huggingface_hub import HfApi

    job = job_from_toml((inputs / JOB_FILE).read_text("utf-8"), JOB_FILE)
    if not isinstance(job, TrainJob):
        raise InputError(f"{JOB_FILE} is a {job.kind} job.", "Give a training job.", code="job_kind")
    folder = JobFolder.create(run, with_input_paths(job, inputs.resolve()))
    print_event = EventPrinter()
    uploads = Uploads(HfApi(), repo, run, print_event)

    def listen(event: Event) -> None:
        print_event(event)
        if isinstance(event, CheckpointEvent | SampleEvent):
            uploads.start()

    result: dict[str, object] | None = None
    try:
        done = execute_job(folder, Home.locate(run.parent / "home"), listen)
        result = done.model_dump(mode="json")
        result["lora"] = Path(done.lora).relative_to(run).as_posix() if done.lora else None
    except StudioError:
        uploads.finish(None)
        raise
    uploads.finish(result)
