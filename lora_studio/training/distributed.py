"""Data-parallel training of one LoRA: several processes, one GPU each.

Each process holds the whole base and the whole LoRA and computes the gradients of its shard of every batch. Gradients
are all-reduced (summed) before the optimizer step, so that all ranks take the same step: N processes with batch size B
do what one process does with batch size N * B. The launcher (accelerate's, or torchrun) sets rank and world size in
the environment. Rank 0 is the main process: it alone reports events and writes files, and its flags are broadcast.
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

from lora_studio.errors import JobError, PeerOutOfMemoryError, StopRequested, StudioError
from lora_studio.settings.job_specs import TrainJob

# The main process may wait long for its turn on the GPU; a process that dies is noticed at once, not by this timeout.
COLLECTIVE_TIMEOUT = timedelta(days=7)
REDUCE_CHUNK = 2**24  # gradients per all-reduce: 64 MiB in fp32

T = TypeVar("T")


@dataclass(frozen=True)
class RankGroup:
    """The processes of a run as rank `rank` of `world_size` sees them; a single process by default."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the main process, which writes files and reports events."""
        return self.rank == 0

    def shard(self, values: Sequence[T]) -> tuple[int, Sequence[T]]:
        """Return the index of this rank's first value and its shard; shard lengths differ by one at most."""
        start, end = (len(values) * number // self.world_size for number in (self.rank, self.rank + 1))
        return start, values[start:end]

    def broadcast_flag(self, value: bool) -> bool:
        """Return the main process's value on every rank."""
        if self.world_size == 1:
            return value
        flag = torch.tensor([value], dtype=torch.uint8)
        with _lost_process_errors():
            dist.broadcast(flag, 0)
        return bool(flag)

    @contextmanager
    def sync_errors(self) -> Iterator[None]:
        """Wait at the end of the block for all ranks, and raise on every rank if one of them failed.

        The failing rank raises its own error. The others raise a JobError with its message, PeerOutOfMemoryError if it
        ran out of memory, or StopRequested if it was stopped.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        if self.world_size > 1 and self._any_rank(own is not None):
            errors: list[tuple[str, str, str, str] | None] = [None] * self.world_size
            with _lost_process_errors():
                dist.all_gather_object(errors, _encode_error(own))
            if own is None:
                number, encoded = next((number, error) for number, error in enumerate(errors, 1) if error is not None)
                raise _decode_error(f"Process {number} of {self.world_size}", *encoded)
        if own is not None:
            raise own

    def all_reduce(self, values: Sequence[Tensor]) -> None:
        """Replace contiguous tensors by their sums over all ranks."""
        if self.world_size == 1:
            return
        for value in values:
            for part in value.view(-1).split(REDUCE_CHUNK):
                with _lost_process_errors():
                    dist.all_reduce(part)

    def allocate_buffers(self, device: torch.device) -> None:
        """Let NCCL allocate its buffers on a GPU, 0.3 to 1 GiB, which it does at the first all-reduce there."""
        self.all_reduce([torch.zeros(1, device=device)])

    def all_agree(self, value: bool) -> bool:
        """Return True if the value is True on every rank."""
        return value if self.world_size == 1 else not self._any_rank(not value)

    def _any_rank(self, value: bool) -> bool:
        found = torch.tensor([value], dtype=torch.uint8)
        with _lost_process_errors():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)


SINGLE_PROCESS = RankGroup()


def init_rank_group() -> RankGroup:
    """Initialise torch.distributed, one GPU per process; return SINGLE_PROCESS if no launcher started several."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return SINGLE_PROCESS
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % gpus)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if gpus and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    return RankGroup(dist.get_rank(), world_size)


def destroy_rank_group(ranks: RankGroup) -> None:
    """Shut down torch.distributed at the end of a successful run."""
    if ranks.world_size > 1:
        dist.destroy_process_group()


def process_count_errors(job: TrainJob) -> list[str]:
    """Return an error message if the job's num_processes differs from the processes started or exceeds the GPUs."""
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


def _encode_error(error: Exception | None) -> tuple[str, str, str, str] | None:
    """Return an error as (kind, message, remedy, code), which can be sent to other ranks."""
    match error:
        case None:
            return None
        case StopRequested():
            return "stopped", "", "", ""
        case StudioError():
            return "studio", error.message, error.remedy, error.code
        case MemoryError() | torch.OutOfMemoryError():
            return "memory", f"out of memory: {error}", "", ""
    return "other", f"{type(error).__name__}: {error}", "", "unexpected"


def _decode_error(process: str, kind: str, message: str, remedy: str, code: str) -> Exception:
    match kind:
        case "stopped":
            return StopRequested()
        case "memory":
            return PeerOutOfMemoryError(f"{process}: {message}")
        case "studio":
            return JobError(f"{process}: {message}", remedy, code=code)
    return JobError(
        f"{process}: {message}.", "The log has its traceback. Resume continues from the last step.", code=code
    )


@contextmanager
def _lost_process_errors() -> Iterator[None]:
    """Turn what torch.distributed raises when a process is gone into a JobError with a remedy."""
    try:
        yield
    except RuntimeError as error:
        raise JobError(
            f"Another process of this run ended unexpectedly ({str(error).splitlines()[0][:120]}).",
            "It was killed, or the machine ran out of memory. Resume continues from the last step.",
            code="process_lost",
        ) from error
