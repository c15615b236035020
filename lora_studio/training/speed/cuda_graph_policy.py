"""Passes of a step as graphs that a GPU takes as one, where that makes the run shorter.

A pass (forward, backward, gathering the gradients) of SDXL launches some 6,800 operations, and at batch 1 a fast GPU
has done each before it hears of the next. A CUDA graph holds them all and is launched once. It repeats what was
recorded, on the same memory: a batch is copied to where the recorded one lay, and the losses lie where those lay.

The first passes of each shape of batch are timed. A graph is made if what it should save over the rest of the run is
more than it costs to make; it must give what the pass itself gives for the same batch, and is let go if it is no
faster. Whatever goes wrong ends the graphs, never the run, and leaves no part of a gradient behind. What the device
does is a `Recorder`'s; everything else here runs on any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.speed.cuda_graph_capture import CudaRecorder, Recording
from lora_studio.workspace.job_folder import Report

PROBES = 3  # passes of a shape that are timed, with a graph and without; the first of them warms up
LEAST_GAIN = 0.03  # share of a pass that a graph must save to be kept
GUESSED_RATIO = 0.7  # a replay over a pass, where none was measured yet
GUESSED_COST = 8  # passes that making a graph takes, where none was made yet
MOST_GRAPHS = 16
TOLERANCE = 0.01  # relative difference between a replay and the pass itself; kernels with atomics differ by less
CHUNK = 2**24  # numbers that are compared at once
SAMPLING_ROOM = 10 * 2**30  # bytes that drawing samples takes at most: SDXL's VAE in fp32 at 1024 px, untiled

Pass = Callable[[BatchTensors, Tensor], Tensor]
Key = tuple[tuple[str, torch.Size, torch.dtype], ...]


@dataclass(frozen=True)
class Graph:
    """A recorded pass, and where it reads its batch and the number of samples of the step."""

    batch: BatchTensors
    samples: Tensor
    recording: Recording

    def replay(self, batch: BatchTensors, samples: Tensor) -> Tensor:
        """The losses [B] of another batch, which the next replay overwrites; its gradients are gathered."""
        fill(self.batch, batch)
        self.samples.copy_(samples, non_blocking=True)
        self.recording.replay()
        return self.recording.result


@dataclass
class Shape:
    """Batches of one shape: `size` numbers of latents each, and the seconds of their passes with and without a graph.

    Of `settled` ones nothing more is to be decided.
    """

    size: int
    plain: list[float] = field(default_factory=list)
    replays: list[float] = field(default_factory=list)
    running: list[tuple[list[float], torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    graph: Graph | None = None
    settled: bool = False

    @property
    def probing(self) -> bool:
        """Whether passes like the next one still are to be timed."""
        times = self.plain if self.graph is None else self.replays
        return len(times) + len(self.running) < PROBES

    def read(self) -> None:
        """Take the times of the passes that the device has done."""
        while self.running and self.running[0][2].query():
            times, begin, end = self.running.pop(0)
            times.append(begin.elapsed_time(end) / 1000)

    @property
    def seconds(self) -> float | None:
        """What a pass without a graph takes; None while that is not known."""
        return min(self.plain[1:]) if len(self.plain) >= PROBES else None

    @property
    def ratio(self) -> float | None:
        """A replay's time over that of the pass; None while that is not known."""
        return min(self.replays[1:]) / min(self.plain[1:]) if len(self.replays) >= PROBES else None


def pays(left: int, seconds: float, ratio: float, cost: float) -> bool:
    """Whether a graph that makes passes of so many `seconds` `ratio` times as long saves more than its `cost` (s)."""
    return ratio <= 1 - LEAST_GAIN and left * seconds * (1 - ratio) > cost


def expected_ratio(size: int, known: Sequence[tuple[int, float]]) -> float:
    """What a replay of batches of this size should take of a pass, from the sizes and ratios that were measured.

    The larger a batch, the more the arithmetic counts, which no graph makes faster: one that was of no use for a
    smaller batch is of none for a larger one.
    """
    return max((ratio for other, ratio in known if other <= size), default=GUESSED_RATIO)


def key_of(batch: BatchTensors) -> Key:
    """What batches must have in common to share a graph: everything but the numbers."""
    return tuple((name, value.shape, value.dtype) for name, value in batch.tensors.items())


def blank(batch: BatchTensors, device: torch.device) -> BatchTensors:
    """A batch of zeros of the same shape, in memory of its own on the device."""
    return replace(batch, **{name: torch.zeros_like(value, device=device) for name, value in batch.tensors.items()})


def fill(place: BatchTensors, batch: BatchTensors) -> None:
    """Copy a batch to where another of the same shape lies; nobody waits for the copy."""
    for name, value in batch.tensors.items():
        place.tensors[name].copy_(value, non_blocking=True)


class Replays:
    """Does passes by graphs where that pays, and otherwise plainly.

    `one_pass` gives the losses [B] of a batch that is on the device, and gathers its gradients in `weights`. `left`
    says how many passes like that of a batch are to come, in the run or in this epoch alone. `report` is told what was
    decided.
    """

    def __init__(
        self,
        one_pass: Pass,
        recorder: CudaRecorder,
        weights: FlatParameters,
        left: Callable[[BatchTensors, bool], int],
        report: Report,
    ) -> None:
        self._pass, self._recorder, self._weights, self._left, self._report = one_pass, recorder, weights, left, report
        self._shapes: dict[Key, Shape] = {}
        self._on = True
        self._cost: float | None = None  # seconds that making the last graph took
        self._crowded = False  # graphs have to go whenever samples are drawn

    @property
    def graphs(self) -> list[Graph]:
        """Those that are held now."""
        return [shape.graph for shape in self._shapes.values() if shape.graph is not None]

    def consider(self, batches: Sequence[BatchTensors], samples: Tensor) -> None:
        """Make or drop the graphs of these batches as their times say. No gradient may be gathered yet; none is after.

        `samples` [] is the number of samples of the step that the batches are of.
        """
        for batch in batches:
            shape = self._shape(batch)
            shape.read()
            if not self._on or shape.settled:
                continue
            if shape.graph is None and self._worth(shape, batch):
                self._make(shape, batch, samples)
            elif shape.graph is not None and shape.ratio is not None:
                self._judge(shape, batch)

    def take(self, batch: BatchTensors, samples: Tensor) -> Tensor:
        """The losses [B] of a batch, good until the next pass; its gradients are gathered.

        What fails with a graph raises RuntimeError; see `give_up`.
        """
        if not self._on:
            return self._pass(batch.to(self._recorder.device), samples)
        shape = self._shape(batch)
        begin = self._recorder.mark() if shape.probing else None
        if shape.graph is None:
            losses = self._pass(batch.to(self._recorder.device), samples)
        else:
            losses = shape.graph.replay(batch, samples)
        if begin is not None:
            times = shape.plain if shape.graph is None else shape.replays
            shape.running.append((times, begin, self._recorder.mark()))
        return losses

    def give_up(self, error: RuntimeError) -> bool:
        """End the graphs, since passes have failed; whether there were any, so that it may go well without."""
        held = bool(self.graphs)
        if held:
            self._end(error)
        return held

    def make_room(self) -> None:
        """Let all graphs go if drawing samples needs their memory; they are made anew where that pays."""
        if self.graphs and self._recorder.free() < SAMPLING_ROOM:
            self._crowded = True
            self._forget_all()

    def _shape(self, batch: BatchTensors) -> Shape:
        return self._shapes.setdefault(key_of(batch), Shape(batch.noisy.numel()))

    def _worth(self, shape: Shape, batch: BatchTensors) -> bool:
        """Whether to make a graph for a shape."""
        seconds = shape.seconds
        if seconds is None or len(self.graphs) >= MOST_GRAPHS:
            return False
        known = [(other.size, other.ratio) for other in self._shapes.values() if other.ratio is not None]
        ratio = shape.ratio if shape.ratio is not None else expected_ratio(shape.size, known)
        cost = GUESSED_COST * seconds if self._cost is None else self._cost
        return pays(self._left(batch, self._crowded), seconds, ratio, cost)

    def _judge(self, shape: Shape, batch: BatchTensors) -> None:
        """Keep a graph that was timed, or drop it; say which once."""
        assert shape.graph is not None
        assert shape.ratio is not None
        kept = shape.ratio <= 1 - LEAST_GAIN
        before, after = (f"{min(times[1:]):.3f} s" for times in (shape.plain, shape.replays))
        shape.settled = True
        if not kept:
            graph, shape.graph = shape.graph, None
            self._recorder.forget([graph.recording])
        words = f"take {after} a pass as a CUDA graph instead of {before}"
        if not kept:
            words = f"are no faster as a CUDA graph ({after} a pass, {before} without) and go on without"
        self._report("phase", message=f"{_described(batch)} {words}")

    def _make(self, shape: Shape, batch: BatchTensors, samples: Tensor) -> None:
        """Make the graph of a shape, and keep it if it gives what the pass gives."""
        began = time.perf_counter()
        try:
            # passes of other shapes need theirs beside it
            if self._recorder.free() < self._recorder.wanted() * min(2, len(self._shapes)):
                shape.settled = True
                self._report(
                    "phase", message=f"{_described(batch)} go on without a CUDA graph: no memory is left for it"
                )
                return
            shape.graph = self._recorded(batch, samples)
        except Exception as error:
            self._end(error)
        finally:
            self._weights.zero_gradients()
        if shape.graph is not None:
            shape.replays.clear()
            self._cost = time.perf_counter() - began

    def _recorded(self, batch: BatchTensors, samples: Tensor) -> Graph | None:
        """The graph of a batch's shape; None if this batch cannot tell whether it is right.

        It is recorded on zeros and tried on the batch, which shows that all it needs is read when it is replayed. Two
        plain passes show by how much equal passes differ. Raises RuntimeError if it cannot be made or is wrong.
        """
        weights, recorder = self._weights, self._recorder
        own, count = blank(batch, recorder.device), samples.clone()
        fill(own, batch)
        work = partial(self._pass, own, count)
        weights.zero_gradients()
        losses = work().to("cpu", copy=True)
        kept = [gradient.to("cpu", copy=True) for gradient in weights.gradients]
        weights.zero_gradients()
        recorder.rehearse(work)
        noise = _differences(weights.gradients, kept)
        if not torch.tensor([*losses, *noise]).isfinite().all():
            return None
        for value in own.tensors.values():
            value.zero_()
        graph = Graph(own, count, recorder.record(work))
        try:
            weights.zero_gradients()
            found = _differences([graph.replay(batch, samples), *weights.gradients], [losses, *kept])
            if not all(one <= max(TOLERANCE, 4 * two) for one, two in zip(found, [0.0, *noise], strict=True)):
                raise RuntimeError(f"a graph gives other gradients than the pass, by {100 * max(found):.1f} %")
        except BaseException:
            recorder.forget([graph.recording])
            raise
        return graph

    def _end(self, error: Exception) -> None:
        """No more graphs in this run."""
        self._on = False
        self._forget_all()
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        message = f"CUDA graphs are off: {said}. The run goes on without them."
        self._report("warning", code="cuda_graphs", message=message)

    def _forget_all(self) -> None:
        recordings = [graph.recording for graph in self.graphs]
        for shape in self._shapes.values():
            shape.graph, shape.settled, shape.running = None, False, []
        self._recorder.forget(recordings)


def _described(batch: BatchTensors) -> str:
    count, _, height, width = batch.noisy.shape
    return f"Batches of {count} with latents of {width} x {height}"


def _differences(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """The relative difference of each pair of tensors [N], the second of which is on the CPU."""
    result = []
    for one, two in zip(found, expected, strict=True):
        squares = torch.zeros(2, dtype=torch.float64)
        for part, other in zip(one.split(CHUNK), two.split(CHUNK), strict=True):
            difference = part - other.to(part.device)
            squares += torch.stack([difference.norm().cpu(), other.norm()]).double().square()
        result.append(float((squares[0] / squares[1].clamp(min=torch.finfo(torch.float64).tiny)).sqrt()))
    return result
