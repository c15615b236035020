"""Several processes that train one LoRA together, one a GPU.

Each holds the whole base and the whole LoRA, and computes the gradients of its share of every batch. The sums are added
up before a step, so all take the same one: N processes with batch B do what one process does with batch N * B. The
launcher (accelerate's, or torchrun) tells each its number in the environment. Number 0 leads: it alone tells events and
writes files, and its word counts where one must decide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lora_studio.errors import JobError, StopRequested, StudioError
from lora_studio.settings.job_specs import TrainJob

PATIENCE = timedelta(days=7)  # the leader may wait for its turn on the GPU; a process that dies is noticed at once
CHUNK = 2**24  # weights whose gradients are added up in one message: 64 MiB

T = TypeVar("T")


class PeerFailed(RuntimeError):
    """Another process ran out of memory; the message is that process's."""


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from number `rank` of `size`; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and tells events."""
        return self.rank == 0

    def share(self, values: Sequence[T]) -> tuple[int, Sequence[T]]:
        """This process's part of a batch, and the place of its first value in it; parts differ by one at most."""
        start, end = (len(values) * number // self.size for number in (self.rank, self.rank + 1))
        return start, values[start:end]

    def decide(self, value: bool) -> bool:
        """The leader's value, on all processes."""
        if self.size == 1:
            return value
        word = torch.tensor([value], dtype=torch.uint8)
        with _noticing_loss():
            dist.broadcast(word, 0)
        return bool(word)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave this block only when all have: what one raises ends it for all.

        The process that failed raises its own error, the others a JobError with its words (PeerFailed if it ran out of
        memory, StopRequested if it was stopped).
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        if self.size > 1 and self._any(own is not None):
            told: list[tuple[str, str, str, str] | None] = [None] * self.size
            with _noticing_loss():
                dist.all_gather_object(told, _words(own))
            if own is None:
                number, words = next((number, words) for number, words in enumerate(told, 1) if words is not None)
                raise _error_of(f"Process {number} of {self.size}", *words)
        if own is not None:
            raise own

    def add_up(self, values: Sequence[Tensor]) -> None:
        """Replace contiguous tensors by their sums over all processes."""
        if self.size == 1:
            return
        for value in values:
            for part in value.view(-1).split(CHUNK):
                with _noticing_loss():
                    dist.all_reduce(part)

    def _any(self, value: bool) -> bool:
        found = torch.tensor([value], dtype=torch.uint8)
        with _noticing_loss():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)


ALONE = Team()


def join() -> Team:
    """Meet the other processes of this run, each on a GPU of its own; alone if nobody started several."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if gpus and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    return Team(dist.get_rank(), size)


def leave(team: Team) -> None:
    """Part from the other processes at the end of a run that went well."""
    if team.size > 1:
        dist.destroy_process_group()


def process_problems(job: TrainJob) -> list[str]:
    """What does not fit between the job's number of processes, those that were started, and the GPUs."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    gpus = torch.cuda.device_count()
    wanted = max(job.num_processes, here)
    if gpus and wanted > gpus:
        return [f"num_processes is {wanted}, but this machine has {gpus} GPUs. Set it to {gpus}."]
    if job.num_processes > 1 and here == 1:
        return [
            f"num_processes is {job.num_processes}, but this process was started alone. Start the job folder with "
            f"accelerate launch --num_processes {job.num_processes} -m lora_studio worker FOLDER, or set it to 1."
        ]
    return []


def whole_batches(job: TrainJob, team: Team) -> TrainJob:
    """The job as one process would do it: with the batch of all processes together."""
    recipe = job.recipe.model_copy(update={"batch_size": job.recipe.batch_size * team.size})
    return job.model_copy(update={"recipe": recipe})


def _words(error: Exception | None) -> tuple[str, str, str, str] | None:
    """An error as (kind, message, remedy, code)."""
    match error:
        case None:
            return None
        case StopRequested():
            return "stopped", "", "", ""
        case StudioError():
            return "known", error.message, error.remedy, error.code
        case MemoryError() | torch.OutOfMemoryError():
            return "memory", f"out of memory: {error}", "", ""
    return "other", f"{type(error).__name__}: {error}", "", "unexpected"


def _error_of(who: str, kind: str, message: str, remedy: str, code: str) -> Exception:
    match kind:
        case "stopped":
            return StopRequested()
        case "memory":
            return PeerFailed(f"{who}: {message}")
        case "known":
            return JobError(f"{who}: {message}", remedy, code=code)
    return JobError(f"{who}: {message}.", "The log has its traceback. Resume goes on from the last step.", code=code)


@contextmanager
def _noticing_loss() -> Iterator[None]:
    """Turn what the libraries raise when a process is gone into an error with a remedy."""
    try:
        yield
    except RuntimeError as error:
        raise JobError(
            f"Another process of this run ended without a word ({str(error).splitlines()[0][:120]}).",
            "It was killed, or the machine ran out of memory. Resume goes on from the last step.",
            code="process_lost",
        ) from error
