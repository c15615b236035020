"""CUDA graph capture: warm-up, capture, memory and timing on one GPU. `cuda_graph_policy` decides what to capture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# Graphs whose capture failed. torch's allocator may still ask them which memory is theirs, so they must be kept alive;
# nothing else is captured in this process afterwards.
_failed_captures: list[torch.cuda.CUDAGraph] = []


@dataclass(frozen=True)
class CapturedGraph:
    """A captured CUDA graph and its output tensor, which is in the graph's own memory pool."""

    graph: torch.cuda.CUDAGraph
    output: Tensor

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self.graph.replay()


class CudaGraphCapturer:
    """Captures CUDA graphs on one GPU; they share a memory pool, since only one replays at a time.

    All methods except `record_event` may wait for the GPU and raise RuntimeError.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Warm-up and capture share a stream: cuBLAS allocates a workspace per stream, and it must exist before capture.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graph_count = 0
        self._pool_bytes = 0

    def record_event(self) -> torch.cuda.Event:
        """Record a timing event on the current stream and return it."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def warm_up(self, work: Callable[[], Tensor]) -> None:
        """Run `work` on the capture stream. Raises RuntimeError if it synchronises, which cannot be captured."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), _error_on_sync():
            work()
        current.wait_stream(self._stream)

    def capture(self, work: Callable[[], Tensor]) -> CapturedGraph:
        """Capture `work` without running it, and return the graph. Raises RuntimeError if the capture fails."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.device)
        try:
            # The outer context restores the stream even if the inner one cannot end the capture.
            # thread_local: other threads may use the GPU meanwhile, as prefetching does with page-locked memory.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                output = work()
        except BaseException:
            self._abort_capture(graph)
            raise
        self._graph_count += 1
        self._pool_bytes += max(0, torch.cuda.memory_reserved(self.device) - before)
        return CapturedGraph(graph, output)

    def release(self, graphs: Sequence[CapturedGraph]) -> None:
        """Free graphs after the GPU has finished with them; the pool's memory is freed with its last graph."""
        torch.cuda.synchronize(self.device)
        for captured in graphs:
            captured.graph.reset()
        self._graph_count -= len(graphs)
        if not self._graph_count:  # torch accepts no further graphs in a pool that has become empty
            self._pool, self._pool_bytes = torch.cuda.graph_pool_handle(), 0
        torch.cuda.empty_cache()

    def free_bytes(self) -> int:
        """Return the bytes available to new tensors: free on the GPU, or cached by torch outside the graphs' pool."""
        free, _ = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + max(0, cached - self._pool_bytes)

    def peak_batch_bytes(self) -> int:
        """Return the peak bytes that a batch took so far, beyond what is allocated between batches."""
        return torch.cuda.max_memory_allocated(self.device) - torch.cuda.memory_allocated(self.device)

    def _abort_capture(self, graph: torch.cuda.CUDAGraph) -> None:
        """Stop the allocator from routing memory to a graph whose capture failed."""
        index = self._stream.device_index
        try:
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)
        except RuntimeError:  # torch ended the capture properly
            graph.reset()
        except AttributeError:  # these private names differ in another version of torch
            _failed_captures.append(graph)
        else:
            _failed_captures.append(graph)


def find_capturer(device: torch.device) -> CudaGraphCapturer | None:
    """Return a capturer for a CUDA device; None for other devices, or after a failed capture in this process."""
    if device.type != "cuda" or torch.version.hip is not None or _failed_captures:
        return None
    return CudaGraphCapturer(device)


@contextmanager
def _error_on_sync() -> Iterator[None]:
    """Raise RuntimeError where torch would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
