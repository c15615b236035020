"""A fake CUDA graph recorder for the CPU: replays repeat the recorded work on the same tensors, in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_studio.training.speed.cuda_graph_capture import Recording


@dataclass(frozen=True)
class Mark:
    """A point in the recorder's simulated time."""

    seconds: float

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Mark) -> float:
        return (end.seconds - self.seconds) * 1000


@dataclass
class Graph:
    """Work that a `Recorder` recorded."""

    recorder: Recorder
    work: Callable[[], Tensor]
    result: Tensor

    def replay(self) -> None:
        self.recorder.count("replay")
        begin = self.recorder.now
        for _ in range(1 + self.recorder.wrong):
            self.result.copy_(self.work())
        self.recorder.now = begin + self.recorder.replay_seconds

    def reset(self) -> None:
        self.recorder.held.remove(self)


@dataclass
class Recorder:
    """Replays take `replay_seconds` each; the work of an eager pass has to add `pass_seconds` to `now` itself.

    `failing` maps names of methods to the call (counted from 1) that raises and to its error. If `wrong`, replays do
    the work one time too many.
    """

    pass_seconds: float = 1.0
    replay_seconds: float = 0.5
    room: int = 10**12
    wrong: bool = False
    failing: dict[str, tuple[int, Exception]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    held: list[Graph] = field(default_factory=list)
    now: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        call, error = self.failing.get(name, (0, None))
        if error is not None and self.calls[name] == call:
            raise error

    def mark(self) -> Mark:
        return Mark(self.now)

    def rehearse(self, work: Callable[[], Tensor]) -> None:
        work()
        self.count("rehearse")

    def record(self, work: Callable[[], Tensor]) -> Recording:
        graph = Graph(self, work, work().clone())
        self.count("record")
        self.held.append(graph)
        return Recording(graph, graph.result)

    def forget(self, recordings: Sequence[Recording]) -> None:
        for recording in recordings:
            recording.graph.reset()

    def free(self) -> int:
        return self.room

    def wanted(self) -> int:
        return 10**9
