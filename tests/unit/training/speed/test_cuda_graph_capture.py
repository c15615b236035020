"""CUDA graph capture against a fake torch.cuda: streams, memory, and the state after a failed capture."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_studio.training.speed import cuda_graph_capture
from lora_studio.training.speed.cuda_graph_capture import CudaGraphCapturer, find_capturer

DEVICE = torch.device("cuda")


class FakeCuda:
    """The used part of torch.cuda, on one GPU of 100 bytes; `calls` are the calls in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.mode = 0
        self.stream_now: Any = SimpleNamespace(name="main", device_index=0, wait_stream=self.wait_stream("main"))
        self.reserved, self.allocated, self.peak = 40, 10, 35
        self.pools = 0
        self.capture_ended = False
        torch_cuda = SimpleNamespace(
            Stream=lambda device: SimpleNamespace(name="side", device_index=0, wait_stream=self.wait_stream("side")),
            Event=lambda enable_timing: SimpleNamespace(record=lambda: self.calls.append("event")),
            CUDAGraph=lambda: SimpleNamespace(
                replay=lambda: self.calls.append("replay"), reset=lambda: self.calls.append("reset")
            ),
            graph=self.graph,
            graph_pool_handle=self.new_pool,
            stream=self.stream,
            current_stream=lambda device: self.stream_now,
            synchronize=lambda device: self.calls.append("synchronize"),
            empty_cache=lambda: self.calls.append("empty"),
            memory_reserved=lambda device: self.reserved,
            memory_allocated=lambda device: self.allocated,
            max_memory_allocated=lambda device: self.peak,
            mem_get_info=lambda device: (100 - self.reserved, 100),
            get_sync_debug_mode=lambda: self.mode,
            set_sync_debug_mode=self.set_mode,
        )
        low = SimpleNamespace(
            _cuda_endAllocateToPool=self.end, _cuda_releasePool=lambda *which: self.calls.append("release")
        )
        self.torch = SimpleNamespace(cuda=torch_cuda, _C=low, version=SimpleNamespace(hip=None), device=torch.device)

    def wait_stream(self, name: str) -> Any:
        return lambda other: self.calls.append(f"{name} waits for {other.name}")

    def new_pool(self) -> tuple[int, int]:
        self.pools += 1
        return 0, self.pools

    def set_mode(self, mode: Any) -> None:
        self.mode = mode

    @contextmanager
    def stream(self, stream: Any) -> Any:
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.stream_now = before

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Any:
        """Behave like torch: stay on the stream and leave the pool open if a capture cannot be ended."""
        assert (stream.name, capture_error_mode) == ("side", "thread_local")
        self.calls.append(f"capture into {pool[1]}")
        self.stream_now = stream
        yield
        self.reserved += 20

    def end(self, index: int, pool: tuple[int, int]) -> None:
        self.calls.append("end")
        if self.capture_ended:
            raise RuntimeError("not capturing to this pool")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeCuda()
    monkeypatch.setattr(cuda_graph_capture, "torch", cuda.torch)
    monkeypatch.setattr(cuda_graph_capture, "_failed_captures", [])
    return cuda


def failing() -> torch.Tensor:
    raise RuntimeError("no")


def test_warm_up_runs_on_the_capture_stream_and_forbids_synchronising(cuda: FakeCuda) -> None:
    capturer, seen = CudaGraphCapturer(DEVICE), []

    def work() -> torch.Tensor:
        seen.append((cuda.stream_now.name, cuda.mode))
        return torch.ones(1)

    capturer.warm_up(work)
    assert seen == [("side", "error")]
    assert (cuda.stream_now.name, cuda.mode) == ("main", 0)
    assert cuda.calls == ["side waits for main", "main waits for side"]
    with pytest.raises(RuntimeError):
        capturer.warm_up(failing)
    assert (cuda.stream_now.name, cuda.mode) == ("main", 0)


def test_graphs_share_a_memory_pool_until_the_last_is_released(cuda: FakeCuda) -> None:
    capturer = find_capturer(DEVICE)
    assert capturer is not None
    assert (capturer.free_bytes(), capturer.peak_batch_bytes()) == (90, 25)
    first = capturer.capture(lambda: torch.ones(1))
    second = capturer.capture(lambda: torch.ones(1))
    first.replay()
    assert capturer.free_bytes() == 50  # the 40 bytes of the pool are not available to other tensors
    capturer.release([first])
    capturer.release([second])
    third = capturer.capture(lambda: torch.ones(1))
    assert torch.equal(third.output, torch.ones(1))
    assert [call for call in cuda.calls if call.startswith("capture")] == ["capture into 1"] * 2 + ["capture into 2"]
    assert cuda.calls[:3] == ["synchronize", "empty", "capture into 1"]
    assert cuda.calls.count("reset") == 2
    assert cuda.stream_now.name == "main"


@pytest.mark.parametrize("ended", [False, True], ids=["left open", "ended by torch"])
def test_a_failed_capture_restores_the_stream_and_the_allocator(cuda: FakeCuda, ended: bool) -> None:
    capturer = CudaGraphCapturer(DEVICE)
    cuda.capture_ended = ended
    with pytest.raises(RuntimeError, match="no"):
        capturer.capture(failing)
    assert cuda.stream_now.name == "main"
    assert cuda.calls[-1] == ("reset" if ended else "release")
    # nothing is captured any more in a process whose allocator still refers to the failed graph
    assert (find_capturer(DEVICE) is None) is not ended


def test_no_capture_without_cuda_or_on_rocm(cuda: FakeCuda) -> None:
    assert find_capturer(torch.device("cpu")) is None
    cuda.torch.version.hip = "6.2"
    assert find_capturer(DEVICE) is None


def test_events_are_recorded_with_timing(cuda: FakeCuda) -> None:
    CudaGraphCapturer(DEVICE).record_event()
    assert cuda.calls == ["event"]
