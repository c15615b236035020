"""CUDA's part of graphs against a stand-in for torch.cuda: streams, memory, and what a broken recording leaves."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_studio.training.speed import cuda_graph_capture as cuda_graphs
from lora_studio.training.speed.cuda_graph_capture import CudaRecorder, find_recorder

DEVICE = torch.device("cuda")


class Cuda:
    """What of torch.cuda is used, on one GPU of 100 bytes; `did` is what was asked of it, in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.mode = 0
        self.stream_now: Any = SimpleNamespace(name="main", device_index=0, wait_stream=self.waits("main"))
        self.reserved, self.allocated, self.peak = 40, 10, 35
        self.pools = 0
        self.breaks: Exception | None = None
        self.ended = False
        torch_cuda = SimpleNamespace(
            Stream=lambda device: SimpleNamespace(name="side", device_index=0, wait_stream=self.waits("side")),
            Event=lambda enable_timing: SimpleNamespace(record=lambda: self.did.append("event")),
            CUDAGraph=lambda: SimpleNamespace(
                replay=lambda: self.did.append("replay"), reset=lambda: self.did.append("reset")
            ),
            graph=self.graph,
            graph_pool_handle=self.new_pool,
            stream=self.stream,
            current_stream=lambda device: self.stream_now,
            synchronize=lambda device: self.did.append("synchronize"),
            empty_cache=lambda: self.did.append("empty"),
            memory_reserved=lambda device: self.reserved,
            memory_allocated=lambda device: self.allocated,
            max_memory_allocated=lambda device: self.peak,
            mem_get_info=lambda device: (100 - self.reserved, 100),
            get_sync_debug_mode=lambda: self.mode,
            set_sync_debug_mode=self.set_mode,
        )
        low = SimpleNamespace(
            _cuda_endAllocateToPool=self.end, _cuda_releasePool=lambda *which: self.did.append("release")
        )
        self.torch = SimpleNamespace(cuda=torch_cuda, _C=low, version=SimpleNamespace(hip=None), device=torch.device)

    def waits(self, name: str) -> Any:
        return lambda other: self.did.append(f"{name} waits for {other.name}")

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
        """As torch's, which stays on its stream and leaves the pool open where a recording cannot be ended."""
        assert (stream.name, capture_error_mode) == ("side", "thread_local")
        self.did.append(f"record into {pool[1]}")
        self.stream_now = stream
        yield
        self.reserved += 20

    def end(self, index: int, pool: tuple[int, int]) -> None:
        self.did.append("end")
        if self.ended:
            raise RuntimeError("not recording to this pool")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    monkeypatch.setattr(cuda_graphs, "torch", cuda.torch)
    monkeypatch.setattr(cuda_graphs, "_broken", [])
    return cuda


def broken() -> torch.Tensor:
    raise RuntimeError("no")


def test_a_rehearsal_is_beside_the_main_stream_and_may_not_wait(cuda: Cuda) -> None:
    recorder, seen = CudaRecorder(DEVICE), []

    def work() -> torch.Tensor:
        seen.append((cuda.stream_now.name, cuda.mode))
        return torch.ones(1)

    recorder.rehearse(work)
    assert seen == [("side", "error")]
    assert (cuda.stream_now.name, cuda.mode) == ("main", 0)
    assert cuda.did == ["side waits for main", "main waits for side"]
    with pytest.raises(RuntimeError):
        recorder.rehearse(broken)
    assert (cuda.stream_now.name, cuda.mode) == ("main", 0)


def test_recordings_share_a_pool_until_all_are_gone(cuda: Cuda) -> None:
    recorder = find_recorder(DEVICE)
    assert recorder is not None
    assert (recorder.free(), recorder.wanted()) == (90, 25)
    first = recorder.record(lambda: torch.ones(1))
    second = recorder.record(lambda: torch.ones(1))
    first.replay()
    assert recorder.free() == 50  # the pool's 40 are no one else's
    recorder.forget([first])
    recorder.forget([second])
    third = recorder.record(lambda: torch.ones(1))
    assert torch.equal(third.result, torch.ones(1))
    assert [what for what in cuda.did if what.startswith("record")] == ["record into 1"] * 2 + ["record into 2"]
    assert cuda.did[:3] == ["synchronize", "empty", "record into 1"]
    assert cuda.did.count("reset") == 2
    assert cuda.stream_now.name == "main"


@pytest.mark.parametrize("ended", [False, True], ids=["left open", "ended in order"])
def test_a_recording_that_breaks_off_leaves_the_main_stream_and_the_allocator_in_order(cuda: Cuda, ended: bool) -> None:
    recorder = CudaRecorder(DEVICE)
    cuda.ended = ended
    with pytest.raises(RuntimeError, match="no"):
        recorder.record(broken)
    assert cuda.stream_now.name == "main"
    assert cuda.did[-1] == ("reset" if ended else "release")
    # nothing is recorded in this process any more where torch's allocator was left with the broken graph
    assert (find_recorder(DEVICE) is None) is not ended


def test_nothing_else_can_record(cuda: Cuda) -> None:
    assert find_recorder(torch.device("cpu")) is None
    cuda.torch.version.hip = "6.2"
    assert find_recorder(DEVICE) is None


def test_a_mark_is_an_event_with_a_time(cuda: Cuda) -> None:
    CudaRecorder(DEVICE).mark()
    assert cuda.did == ["event"]
