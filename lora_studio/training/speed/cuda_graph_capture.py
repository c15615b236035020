"""CUDA's part in `graphs`: recording a pass, timing without waiting, and what memory there is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Recordings that broke off. torch's allocator may still ask them which memory is theirs, so they must not go; and no
# other recording is begun beside them.
_broken: list[torch.cuda.CUDAGraph] = []


@dataclass(frozen=True)
class Recording:
    """Recorded work, and the tensor that it gives, which lies in the graphs' own memory."""

    graph: torch.cuda.CUDAGraph
    result: Tensor

    def replay(self) -> None:
        """Launch it on the current stream."""
        self.graph.replay()


class CudaRecorder:
    """Records work on one GPU, whose recordings share their memory: they are replayed one after the other.

    All but `mark` may wait for the GPU and raise RuntimeError.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # cuBLAS has a workspace for each stream: that of rehearsals and recordings is one, so it is there beforehand
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._held = 0
        self._pool_bytes = 0

    def mark(self) -> torch.cuda.Event:
        """Mark where the queue of the current stream ends."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def rehearse(self, work: Callable[[], Tensor]) -> None:
        """Do work on the stream of recordings; raises RuntimeError if it waits for the GPU, which no recording can."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), _no_waiting():
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """Record work; nothing of it is done meanwhile. Raises RuntimeError if that fails."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.device)
        try:
            # the outer context puts the stream back even where the inner one cannot end the recording;
            # thread_local: other threads may go on, as that which makes batches in page-locked memory
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                result = work()
        except BaseException:
            self._clear_away(graph)
            raise
        self._held += 1
        self._pool_bytes += max(0, torch.cuda.memory_reserved(self.device) - before)
        return Recording(graph, result)

    def forget(self, recordings: Sequence[Recording]) -> None:
        """Let recordings go when the GPU is done with them; their memory goes with the last of them."""
        torch.cuda.synchronize(self.device)
        for recording in recordings:
            recording.graph.reset()
        self._held -= len(recordings)
        if not self._held:  # torch takes no more recordings into a pool that all have left
            self._pool, self._pool_bytes = torch.cuda.graph_pool_handle(), 0
        torch.cuda.empty_cache()

    def free(self) -> int:
        """Bytes that new tensors may take: what no program has, and what torch keeps for such."""
        free, _ = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + max(0, kept - self._pool_bytes)

    def wanted(self) -> int:
        """Bytes that a pass took at most beside what is held now."""
        return torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_allocated(self.device)

    def _clear_away(self, graph: torch.cuda.CUDAGraph) -> None:
        """Stop the allocator from taking memory for a recording that broke off."""
        index = self._stream.device_index
        try:
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)
        except RuntimeError:  # torch has ended the recording in order
            graph.reset()
        except AttributeError:  # another version of torch, with other names
            _broken.append(graph)
        else:
            _broken.append(graph)


def find_recorder(device: torch.device) -> CudaRecorder | None:
    """What records on a device; None where nothing can, or where a recording broke off in this process."""
    if device.type != "cuda" or torch.version.hip is not None or _broken:
        return None
    return CudaRecorder(device)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise RuntimeError where torch would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
