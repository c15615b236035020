"""CUDA graphs of forward and backward, one per batch shape, captured where that shortens the run.

Forward and backward of SDXL launch some 6,800 kernels, and at batch size 1 a fast GPU finishes each before the CPU has
launched the next. A CUDA graph contains all of them and is launched once. It replays what was captured, on the same
memory: a batch is copied into the graph's static input tensors, and the losses appear in its static output.

The first batches of each shape are timed. A graph is captured if the time that it should save over the rest of the run
exceeds the time of the capture. It must give the same gradients as the eager computation on the same batch, and is
released if it is not faster. Any failure ends the use of graphs, never the run, and leaves no partial gradient behind.
Everything that needs CUDA is in the `CudaGraphCapturer`; the rest runs on any device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lora_studio.events import PhaseEvent, Report, WarningEvent
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.speed.cuda_graph_capture import CapturedGraph, CudaGraphCapturer
from lora_studio.training.speed.gradient_pass import GradientPass

TIMED_BATCHES = 3  # batches per shape that are timed, eager and replayed; the first one of each is a warm-up
MIN_GAIN = 0.03  # share of the eager time that a graph must save to be kept
DEFAULT_RATIO = 0.7  # replay time / eager time, before any replay is measured
DEFAULT_CAPTURE_COST = 8  # time of a capture in eager batches, before any capture is measured
MAX_GRAPHS = 16
TOLERANCE = 0.01  # relative difference between replayed and eager gradients; kernels with atomics differ by less
COMPARED_CHUNK = 2**24  # elements that are compared at once
SAMPLING_BYTES = 4 * 2**30  # peak memory of sampling at 1024 px: SDXL's VAE in fp32, and decoding with it as a whole

ShapeKey = tuple[tuple[str, torch.Size, torch.dtype], ...]


class CudaGraphError(RuntimeError):
    """A CUDA graph failed and left partial gradients. Graphs are disabled: the step is to be retried without them."""


@dataclass(frozen=True)
class BatchGraph:
    """A captured forward and backward, with the static tensors from which it reads its batch."""

    batch: BatchTensors
    captured: CapturedGraph

    def replay(self, batch: BatchTensors) -> Tensor:
        """Accumulate the gradients of another batch; return its losses [B], which the next replay overwrites."""
        copy_batch(self.batch, batch)
        self.captured.replay()
        return self.captured.output


@dataclass
class ShapeTimings:
    """The graph of one batch shape, if there is one, and the seconds per batch measured so far.

    `elements` is the number of latent elements of a batch. `eager_times` and `replay_times` are in seconds; `pending`
    are measurements that the GPU has not finished. With `decided` set, no further graph is captured or released.
    """

    elements: int
    eager_times: list[float] = field(default_factory=list)
    replay_times: list[float] = field(default_factory=list)
    pending: list[tuple[list[float], torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    graph: BatchGraph | None = None
    decided: bool = False

    @property
    def times(self) -> list[float]:
        """The list that the next batch's time belongs to."""
        return self.eager_times if self.graph is None else self.replay_times

    @property
    def needs_timing(self) -> bool:
        """True if the next batch of this shape is to be timed."""
        return len(self.times) + len(self.pending) < TIMED_BATCHES

    def collect(self) -> None:
        """Store the times that the GPU has finished measuring."""
        while self.pending and self.pending[0][2].query():
            times, begin, end = self.pending.pop(0)
            times.append(begin.elapsed_time(end) / 1000)

    @property
    def eager_seconds(self) -> float | None:
        """The time of a batch without a graph; None until it is measured."""
        return min(self.eager_times[1:]) if len(self.eager_times) >= TIMED_BATCHES else None

    @property
    def ratio(self) -> float | None:
        """Replay time / eager time; None until both are measured."""
        if len(self.replay_times) < TIMED_BATCHES:
            return None
        return min(self.replay_times[1:]) / min(self.eager_times[1:])


def is_worthwhile(batches_left: int, eager_seconds: float, ratio: float, cost: float) -> bool:
    """Return True if a graph saves more time over the batches left than its capture costs (s)."""
    return ratio <= 1 - MIN_GAIN and batches_left * eager_seconds * (1 - ratio) > cost


def expected_ratio(elements: int, known: Sequence[tuple[int, float]]) -> float:
    """Estimate replay time / eager time for a batch from measured (elements, ratio) pairs of other shapes.

    The larger a batch, the more its arithmetic dominates, which no graph makes faster: if a graph did not help a
    smaller batch, it will not help a larger one.
    """
    return max((ratio for other, ratio in known if other <= elements), default=DEFAULT_RATIO)


def shape_key(batch: BatchTensors) -> ShapeKey:
    """Return the names, shapes and dtypes that batches must share to use the same graph."""
    return tuple((name, value.shape, value.dtype) for name, value in batch.tensors.items())


def zeros_like_batch(batch: BatchTensors, device: torch.device) -> BatchTensors:
    """Return a batch of zeros of the same shape, newly allocated on the device."""
    return replace(batch, **{name: torch.zeros_like(value, device=device) for name, value in batch.tensors.items()})


def copy_batch(target: BatchTensors, source: BatchTensors) -> None:
    """Copy a batch into the tensors of another one of the same shape; the copy does not block."""
    for name, value in source.tensors.items():
        target.tensors[name].copy_(value, non_blocking=True)


class CudaGraphPass:
    """A gradient pass that replays a CUDA graph for the batch shapes for which one is worthwhile.

    `eager` is the pass that is captured, and that other batches get; it accumulates gradients in `weights`.
    `batches_left` returns how many batches of a batch's shape are still to come: in the run, or in this epoch alone if
    its second argument is True. `report` gets an event for each decision.
    """

    def __init__(
        self,
        eager: GradientPass,
        capturer: CudaGraphCapturer,
        weights: FlatParameters,
        batches_left: Callable[[BatchTensors, bool], int],
        report: Report,
    ) -> None:
        self._eager, self._capturer, self._weights = eager, capturer, weights
        self._batches_left, self._report = batches_left, report
        self._shapes: dict[ShapeKey, ShapeTimings] = {}
        self._enabled = True
        self._capture_seconds: float | None = None  # of the last capture
        self._released_for_sampling = False  # graphs do not survive the epoch: sampling needs their memory

    @property
    def graphs(self) -> list[BatchGraph]:
        """All graphs that exist now."""
        return [shape.graph for shape in self._shapes.values() if shape.graph is not None]

    def __call__(self, batch: BatchTensors) -> Tensor:
        """Add the gradients of a batch to those of the step; return its losses [B], valid until the next call.

        Captures or releases the graph of the batch's shape first, as the times of earlier batches suggest. Raises
        CudaGraphError if a graph fails.
        """
        if not self._enabled:
            return self._eager(batch)
        shape = self._shapes.setdefault(shape_key(batch), ShapeTimings(batch.noisy.numel()))
        shape.collect()
        if not shape.decided:
            self._decide(shape, batch)
        try:
            begin = self._capturer.record_event() if shape.needs_timing else None
            losses = self._eager(batch) if shape.graph is None else shape.graph.replay(batch)
            if begin is not None:
                shape.pending.append((shape.times, begin, self._capturer.record_event()))
            return losses
        except RuntimeError as error:
            if not self.graphs:
                raise
            self._disable(error)
            raise CudaGraphError(str(error)) from error

    def free_for_sampling(self) -> None:
        """Release all graphs if sampling needs their memory; they are captured again where that is worthwhile."""
        if self.graphs and self._capturer.free_bytes() < SAMPLING_BYTES:
            self._released_for_sampling = True
            self._release_all()

    def _decide(self, shape: ShapeTimings, batch: BatchTensors) -> None:
        """Capture a graph of this shape if it is worthwhile, or keep or release a graph whose replays are timed."""
        if shape.graph is None and self._should_capture(shape, batch):
            self._capture(shape, batch)
        elif shape.graph is not None and shape.ratio is not None:
            self._keep_or_release(shape, batch)

    def _should_capture(self, shape: ShapeTimings, batch: BatchTensors) -> bool:
        """Return True if a graph of this shape would shorten the run."""
        seconds = shape.eager_seconds
        if seconds is None or len(self.graphs) >= MAX_GRAPHS:
            return False
        known = [(other.elements, other.ratio) for other in self._shapes.values() if other.ratio is not None]
        ratio = shape.ratio if shape.ratio is not None else expected_ratio(shape.elements, known)
        cost = DEFAULT_CAPTURE_COST * seconds if self._capture_seconds is None else self._capture_seconds
        return is_worthwhile(self._batches_left(batch, self._released_for_sampling), seconds, ratio, cost)

    def _keep_or_release(self, shape: ShapeTimings, batch: BatchTensors) -> None:
        """Keep a timed graph or release it, and report which."""
        assert shape.graph is not None
        assert shape.ratio is not None
        kept = shape.ratio <= 1 - MIN_GAIN
        eager, replayed = (f"{min(times[1:]):.3f} s" for times in (shape.eager_times, shape.replay_times))
        shape.decided = True
        outcome = f"take {replayed} per batch with a CUDA graph instead of {eager}"
        if not kept:
            graph, shape.graph = shape.graph, None
            self._capturer.release([graph.captured])
            outcome = f"continue without a CUDA graph, which is not faster ({replayed} per batch, {eager} without)"
        self._report(PhaseEvent(message=f"{_shape_name(batch)} {outcome}"))

    def _capture(self, shape: ShapeTimings, batch: BatchTensors) -> None:
        """Capture the graph of a shape, and keep it if it gives the same gradients as the eager computation.

        The gradients that the step has accumulated so far are the same afterwards.
        """
        began = time.perf_counter()
        accumulated = [gradient.to("cpu", copy=True) for gradient in self._weights.gradients]
        try:
            # batches of other shapes need their eager memory beside the graph
            if self._capturer.free_bytes() < self._capturer.peak_batch_bytes() * min(2, len(self._shapes)):
                shape.decided = True
                message = f"{_shape_name(batch)} continue without a CUDA graph: there is not enough memory for it"
                self._report(PhaseEvent(message=message))
                return
            shape.graph = self._captured_and_verified(batch)
        except Exception as error:
            self._disable(error)
        finally:
            self._weights.zero_gradients()
            for gradient, value in zip(self._weights.gradients, accumulated, strict=True):
                gradient.copy_(value)
        if shape.graph is not None:
            shape.replay_times.clear()
            self._capture_seconds = time.perf_counter() - began

    def _captured_and_verified(self, batch: BatchTensors) -> BatchGraph | None:
        """Capture the graph of a batch's shape and verify it; return None if this batch's gradients are not finite.

        It is captured on zeros and verified on the batch, which shows that a replay reads all of its inputs. Two eager
        computations show by how much equal computations differ. Raises RuntimeError if the capture fails or the
        gradients differ.
        """
        weights, capturer = self._weights, self._capturer
        static_batch = zeros_like_batch(batch, capturer.device)
        copy_batch(static_batch, batch)
        work = partial(self._eager, static_batch)
        weights.zero_gradients()
        losses = work().to("cpu", copy=True)
        gradients = [gradient.to("cpu", copy=True) for gradient in weights.gradients]
        weights.zero_gradients()
        capturer.warm_up(work)
        noise = _relative_differences(weights.gradients, gradients)
        if not torch.tensor([*losses, *noise]).isfinite().all():
            return None
        for value in static_batch.tensors.values():
            value.zero_()
        graph = BatchGraph(static_batch, capturer.capture(work))
        try:
            weights.zero_gradients()
            replayed = graph.replay(batch)
            found = _relative_differences([replayed, *weights.gradients], [losses, *gradients])
            if not all(one <= max(TOLERANCE, 4 * two) for one, two in zip(found, [0.0, *noise], strict=True)):
                raise RuntimeError(f"replayed and eager gradients differ by {100 * max(found):.1f} %")
        except BaseException:
            capturer.release([graph.captured])
            raise
        return graph

    def _disable(self, error: Exception) -> None:
        """Release all graphs, capture no more in this run, and report why."""
        self._enabled = False
        self._release_all()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        message = f"CUDA graphs are off: {reason}. The run continues without them."
        self._report(WarningEvent(code="cuda_graphs", message=message))

    def _release_all(self) -> None:
        captured = [graph.captured for graph in self.graphs]
        for shape in self._shapes.values():
            shape.graph, shape.decided, shape.pending = None, False, []
        self._capturer.release(captured)


def _shape_name(batch: BatchTensors) -> str:
    count, _, height, width = batch.noisy.shape
    return f"Batches of {count} with latents of {width} x {height}"


def _relative_differences(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Return the relative L2 difference of each pair of tensors [N]; those of `expected` are on the CPU."""
    result = []
    for one, two in zip(found, expected, strict=True):
        squares = torch.zeros(2, dtype=torch.float64)
        for part, other in zip(one.split(COMPARED_CHUNK), two.split(COMPARED_CHUNK), strict=True):
            difference = part - other.to(part.device)
            squares += torch.stack([difference.norm().cpu(), other.norm()]).double().square()
        result.append(float((squares[0] / squares[1].clamp(min=torch.finfo(torch.float64).tiny)).sqrt()))
    return result
