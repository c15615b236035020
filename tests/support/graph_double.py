"""A fake CUDA graph capturer for the CPU: a replay runs the captured work again on the same tensors, in fake time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_studio.training.speed.cuda_graph_capture import CapturedGraph


@dataclass(frozen=True)
class FakeEvent:
    """A point in the capturer's time."""

    seconds: float

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.seconds - self.seconds) * 1000


@dataclass
class FakeGraph:
    """Work that a `FakeCapturer` has captured."""

    capturer: FakeCapturer
    work: Callable[[], Tensor]
    output: Tensor

    def replay(self) -> None:
        self.capturer.count("replay")
        begin = self.capturer.now
        for _ in range(1 + self.capturer.wrong):
            self.output.copy_(self.work())
        self.capturer.now = begin + self.capturer.replay_seconds

    def reset(self) -> None:
        self.capturer.held.remove(self)


@dataclass
class FakeCapturer:
    """Counts calls and holds graphs; each replay takes `replay_seconds`.

    Eager batches have to add `eager_seconds` to `now` themselves. `failing` maps methods to the call (counted from 1)
    and the error that it raises. With `wrong`, replays do the work twice.
    """

    eager_seconds: float = 1.0
    replay_seconds: float = 0.5
    available: int = 10**12
    wrong: bool = False
    failing: dict[str, tuple[int, Exception]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    held: list[FakeGraph] = field(default_factory=list)
    now: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        call, error = self.failing.get(name, (0, None))
        if error is not None and self.calls[name] == call:
            raise error

    def record_event(self) -> FakeEvent:
        return FakeEvent(self.now)

    def warm_up(self, work: Callable[[], Tensor]) -> None:
        work()
        self.count("warm_up")

    def capture(self, work: Callable[[], Tensor]) -> CapturedGraph:
        graph = FakeGraph(self, work, work().clone())
        self.count("capture")
        self.held.append(graph)
        return CapturedGraph(graph, graph.output)

    def release(self, graphs: Sequence[CapturedGraph]) -> None:
        for captured in graphs:
            captured.graph.reset()

    def free_bytes(self) -> int:
        return self.available

    def peak_batch_bytes(self) -> int:
        return 10**9
