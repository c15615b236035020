"""CUDA graphs: when they are captured and released, that they change no number, and that no failure ends a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.speed import cuda_graph_policy
from lora_studio.training.speed.cuda_graph_policy import (
    DEFAULT_CAPTURE_COST,
    DEFAULT_RATIO,
    MIN_GAIN,
    SAMPLING_BYTES,
    TIMED_BATCHES,
    CudaGraphPass,
    copy_batch,
    expected_ratio,
    is_worthwhile,
    shape_key,
    zeros_like_batch,
)
from tests.support.events import Events, append_to, of
from tests.support.graph_double import FakeCapturer
from tests.support.training_runs import same

SECONDS = st.floats(1e-3, 10)
RATIOS = st.floats(0.01, 2)


@given(left=st.integers(0, 10**5), seconds=SECONDS, ratio=RATIOS, cost=st.floats(0, 100))
def test_a_graph_is_captured_only_if_that_shortens_the_run(
    left: int, seconds: float, ratio: float, cost: float
) -> None:
    with_graph, without = cost + left * seconds * ratio, left * seconds
    if is_worthwhile(left, seconds, ratio, cost):
        assert with_graph < without
        assert ratio < 1
    elif ratio < 1 - MIN_GAIN:
        assert with_graph >= without * (1 - 1e-9)


@given(known=st.lists(st.tuples(st.integers(1, 100), RATIOS)), elements=st.integers(1, 100))
def test_the_expected_ratio_is_that_of_the_slowest_smaller_batch(known: list[tuple[int, float]], elements: int) -> None:
    smaller = [ratio for other, ratio in known if other <= elements]
    assert expected_ratio(elements, known) == (max(smaller) if smaller else DEFAULT_RATIO)


def batch_of(count: int = 1, height: int = 4, value: float = 1.0, **more: torch.Tensor) -> BatchTensors:
    latents = value * torch.arange(count * 4.0 * height * 4).reshape(count, 4, height, 4)
    ones = torch.ones(count)
    return BatchTensors(
        latents, latents + 1, ones.long(), ones.long().expand(6, count).T, ones, torch.tensor(3.0), **more
    )


def test_batches_of_equal_shapes_and_dtypes_share_a_graph() -> None:
    key = shape_key(batch_of())
    assert shape_key(zeros_like_batch(batch_of(), torch.device("cpu"))) == key
    others = [
        batch_of(2),
        batch_of(height=8),
        batch_of(masks=torch.ones(1, 1, 4, 4)),
        batch_of().to(torch.device("cpu")),
    ]
    assert [shape_key(other) == key for other in others] == [False, False, False, True]
    half = BatchTensors(**{name: value.half() for name, value in batch_of().tensors.items()})
    assert shape_key(half) != key


def test_copying_a_batch_keeps_the_memory_of_the_target() -> None:
    target = zeros_like_batch(batch_of(2), torch.device("cpu"))
    addresses = {name: value.data_ptr() for name, value in target.tensors.items()}
    assert not any(value.any() for value in target.tensors.values())
    copy_batch(target, batch_of(2))
    assert same(target.tensors, batch_of(2).tensors)
    assert {name: value.data_ptr() for name, value in target.tensors.items()} == addresses


@dataclass
class EagerToy:
    """A gradient pass whose losses are the means of the latents, and whose gradient is their mean."""

    toy: ToyTraining

    def __call__(self, batch: BatchTensors) -> torch.Tensor:
        self.toy.capturer.now += self.toy.capturer.eager_seconds
        losses = batch.noisy.mean((1, 2, 3))
        self.toy.gradients[0] += losses.sum() / batch.sample_count
        return losses

    def free_for_sampling(self) -> None:
        pass


class ToyTraining:
    """Training of one weight whose gradient is the mean of the latents, with graphs by a fake capturer."""

    def __init__(self, capturer: FakeCapturer, left: int = 1000) -> None:
        self.capturer, self.left = capturer, left
        self.gradients = [torch.zeros(1)]
        self.events: Events = []
        weights: Any = self
        device: Any = capturer
        self.gradient_pass = CudaGraphPass(EagerToy(self), device, weights, self.batches_left, append_to(self.events))
        self.step_count = 0

    def batches_left(self, batch: BatchTensors, this_epoch: bool) -> int:
        return self.left // 100 if this_epoch else self.left

    def zero_gradients(self) -> None:
        self.gradients[0].zero_()

    def step(self, *shapes: tuple[int, int]) -> None:
        """Take a step over batches of these counts and heights; losses and gradients must be those without graphs."""
        self.step_count += 1
        batches = [batch_of(count, height, self.step_count + number) for number, (count, height) in enumerate(shapes)]
        self.zero_gradients()
        expected = torch.zeros(1)
        for batch in batches:
            losses = batch.noisy.mean((1, 2, 3))
            expected += losses.sum() / batch.sample_count
            assert torch.equal(self.gradient_pass(batch), losses)
        assert torch.equal(self.gradients[0], expected)

    def steps(self, count: int, *shapes: tuple[int, int]) -> ToyTraining:
        for _ in range(count):
            self.step(*shapes)
        return self

    @property
    def phases(self) -> list[str]:
        return [values["message"] for values in of(self.events, "phase")]


SMALL, LARGE = (1, 4), (2, 4)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each capture take 4 seconds."""
    ticks = count(0, 4)
    monkeypatch.setattr(cuda_graph_policy, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


def test_a_shape_gets_a_graph_after_it_is_timed() -> None:
    toy = ToyTraining(FakeCapturer()).steps(TIMED_BATCHES, SMALL)
    assert not toy.capturer.held
    toy.steps(TIMED_BATCHES + 1, SMALL)
    assert len(toy.capturer.held) == 1
    (message,) = toy.phases
    assert message.startswith("Batches of 1 with latents of 4 x 4 take 0.500 s per batch")
    toy.steps(TIMED_BATCHES + 1, LARGE, SMALL)
    assert len(toy.capturer.held) == 2
    assert not of(toy.events, "warning")


def test_no_graph_is_captured_if_too_few_batches_are_left() -> None:
    enough = math.ceil(DEFAULT_CAPTURE_COST / (1 - DEFAULT_RATIO))
    assert not ToyTraining(FakeCapturer(), left=enough - 1).steps(9, SMALL).capturer.held
    assert ToyTraining(FakeCapturer(), left=enough + 1).steps(9, SMALL).capturer.held
    # the gain and the cost of the first graph are measured: 0.5 s per batch, 4 s
    toy = ToyTraining(FakeCapturer()).steps(9, SMALL)
    toy.left = 7
    assert len(toy.steps(9, LARGE).capturer.held) == 1
    toy.left = 9
    assert len(toy.steps(9, LARGE).capturer.held) == 2


def test_a_graph_that_is_not_faster_is_released_and_larger_batches_get_none() -> None:
    toy = ToyTraining(FakeCapturer(replay_seconds=0.98)).steps(2 * TIMED_BATCHES + 1, SMALL).steps(9, SMALL, LARGE)
    assert not toy.capturer.held
    assert toy.capturer.calls == {"warm_up": 1, "capture": 1, "replay": 1 + TIMED_BATCHES}
    (message,) = toy.phases
    assert "0.980 s per batch, 1.000 s without" in message


FAILURES = [
    pytest.param({"failing": {"warm_up": (1, RuntimeError("it waits.\nmore"))}}, ": it waits.", id="synchronises"),
    pytest.param({"failing": {"capture": (1, torch.OutOfMemoryError("no memory"))}}, ": no memory.", id="no memory"),
    pytest.param({"failing": {"capture": (2, AssertionError())}}, ": AssertionError.", id="second shape"),
    pytest.param({"failing": {"replay": (1, RuntimeError("launch failed"))}}, ": launch failed.", id="verification"),
    pytest.param({"wrong": True}, "gradients differ by 100.0 %", id="wrong gradients"),
]


@pytest.mark.parametrize(("options", "part"), FAILURES)
def test_a_failed_capture_disables_all_graphs(options: dict[str, Any], part: str) -> None:
    toy = ToyTraining(FakeCapturer(**options)).steps(9, SMALL, LARGE)
    assert not toy.capturer.held
    assert max(toy.capturer.calls.values()) <= 4
    (warning,) = of(toy.events, "warning")
    assert warning["code"] == "cuda_graphs"
    assert part in warning["message"]


def test_a_batch_whose_gradients_are_not_finite_does_not_verify_a_graph() -> None:
    toy = ToyTraining(FakeCapturer()).steps(TIMED_BATCHES, SMALL)
    toy.zero_gradients()
    toy.gradient_pass(batch_of(*SMALL, math.nan))
    assert not toy.capturer.calls.get("capture")
    assert toy.steps(1, SMALL).capturer.held
    assert not of(toy.events, "warning")


def test_graphs_are_released_for_sampling_and_captured_again_if_an_epoch_is_long_enough() -> None:
    toy = ToyTraining(FakeCapturer()).steps(9, SMALL)
    toy.gradient_pass.free_for_sampling()
    assert toy.capturer.held
    toy.capturer.available = SAMPLING_BYTES - 1
    toy.gradient_pass.free_for_sampling()
    assert not toy.capturer.held
    assert toy.steps(9, SMALL).capturer.held
    toy.left = 700  # 7 in this epoch, which save 3.5 s and cost 4
    toy.gradient_pass.free_for_sampling()
    assert not toy.steps(9, SMALL).capturer.held


def test_no_graph_is_captured_without_enough_memory() -> None:
    toy = ToyTraining(FakeCapturer(available=1)).steps(9, SMALL)
    assert not toy.capturer.calls
    (message,) = toy.phases
    assert "not enough memory" in message


def test_the_number_of_graphs_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph_policy, "MAX_GRAPHS", 1)
    assert len(ToyTraining(FakeCapturer()).steps(9, SMALL, LARGE).capturer.held) == 1
