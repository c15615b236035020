"""Passes as graphs: when they are made and dropped, that they change no number, and that no failure is felt."""

from __future__ import annotations

import dataclasses
import math
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.training import step as step_module
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.distributed import RankGroup
from lora_studio.training.loop import restore, save
from lora_studio.training.resume_state import ResumeState, load_state
from lora_studio.training.run import Run
from lora_studio.training.speed import cuda_graph_policy as graphing
from lora_studio.training.speed.cuda_graph_policy import (
    GUESSED_COST,
    GUESSED_RATIO,
    LEAST_GAIN,
    PROBES,
    SAMPLING_ROOM,
    Replays,
    blank,
    expected_ratio,
    fill,
    key_of,
    pays,
)
from lora_studio.training.step import batches_left, cuda_graphs_for, train_step
from lora_studio.workspace.project import Home
from tests.support.graph_double import Recorder
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import Events, make_images, make_job, of, same, start

SECONDS = st.floats(1e-3, 10)
RATIOS = st.floats(0.01, 2)


@given(left=st.integers(0, 10**5), seconds=SECONDS, ratio=RATIOS, cost=st.floats(0, 100))
def test_a_graph_is_made_only_if_the_run_gets_shorter(left: int, seconds: float, ratio: float, cost: float) -> None:
    with_graph, without = cost + left * seconds * ratio, left * seconds
    if pays(left, seconds, ratio, cost):
        assert with_graph < without
        assert ratio < 1
    elif ratio < 1 - LEAST_GAIN:
        assert with_graph >= without * (1 - 1e-9)


@given(known=st.lists(st.tuples(st.integers(1, 100), RATIOS)), size=st.integers(1, 100))
def test_what_did_not_help_small_batches_is_not_tried_with_larger_ones(
    known: list[tuple[int, float]], size: int
) -> None:
    smaller = [ratio for other, ratio in known if other <= size]
    assert expected_ratio(size, known) == (max(smaller) if smaller else GUESSED_RATIO)


def batch_of(count: int = 1, height: int = 4, value: float = 1.0, **more: torch.Tensor) -> BatchTensors:
    latents = value * torch.arange(count * 4.0 * height * 4).reshape(count, 4, height, 4)
    ones = torch.ones(count)
    return BatchTensors(latents, latents + 1, ones.long(), ones.long().expand(6, count).T, ones, **more)


def test_batches_share_a_graph_if_they_differ_by_numbers_alone() -> None:
    key = key_of(batch_of())
    assert key_of(blank(batch_of(), torch.device("cpu"))) == key
    others = [
        batch_of(2),
        batch_of(height=8),
        batch_of(masks=torch.ones(1, 1, 4, 4)),
        batch_of().to(torch.device("cpu")),
    ]
    assert [key_of(other) == key for other in others] == [False, False, False, True]
    half = BatchTensors(**{name: value.half() for name, value in batch_of().tensors.items()})
    assert key_of(half) != key


def test_a_batch_is_copied_to_where_the_recorded_one_lay() -> None:
    place = blank(batch_of(2), torch.device("cpu"))
    places = {name: value.data_ptr() for name, value in place.tensors.items()}
    assert not any(value.any() for value in place.tensors.values())
    fill(place, batch_of(2))
    assert same(place.tensors, batch_of(2).tensors)
    assert {name: value.data_ptr() for name, value in place.tensors.items()} == places


class Toy:
    """A pass of one trained number, whose gradient is the mean of the latents, with graphs by a recorder."""

    def __init__(self, recorder: Recorder, left: int = 1000) -> None:
        self.recorder, self.left = recorder, left
        self.gradients = [torch.zeros(1)]
        self.events: Events = []
        self.horizons: list[bool] = []
        self.replays = Replays(self.one_pass, recorder, self, self.passes_left, self.report)
        self.taken = 0

    def report(self, event: str, /, **values: Any) -> None:
        self.events.append((event, values))

    def passes_left(self, batch: BatchTensors, this_epoch: bool) -> int:
        return self.left // 100 if this_epoch else self.left

    def zero_gradients(self) -> None:
        self.gradients[0].zero_()

    def one_pass(self, batch: BatchTensors, samples: torch.Tensor) -> torch.Tensor:
        self.recorder.now += self.recorder.pass_seconds
        losses = batch.noisy.mean((1, 2, 3))
        self.gradients[0] += losses.sum() / samples
        return losses

    def step(self, *shapes: tuple[int, int]) -> None:
        """A step over batches of these counts and heights, which must give what plain passes give."""
        self.taken += 1
        batches = [batch_of(count, height, self.taken + number) for number, (count, height) in enumerate(shapes)]
        samples = torch.tensor(float(sum(count for count, _ in shapes)))
        self.zero_gradients()
        self.replays.consider(batches, samples)
        assert not self.gradients[0]
        expected = torch.zeros(1)
        for batch in batches:
            losses = batch.noisy.mean((1, 2, 3))
            expected += losses.sum() / samples
            assert torch.equal(self.replays.take(batch, samples), losses)
        assert torch.equal(self.gradients[0], expected)

    def steps(self, count: int, *shapes: tuple[int, int]) -> Toy:
        for _ in range(count):
            self.step(*shapes)
        return self

    @property
    def phases(self) -> list[str]:
        return [values["message"] for values in of(self.events, "phase")]


SMALL, LARGE = (1, 4), (2, 4)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a graph takes 4 seconds."""
    ticks = count(0, 4)
    monkeypatch.setattr(graphing, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


def test_a_shape_gets_a_graph_once_it_was_timed() -> None:
    toy = Toy(Recorder()).steps(PROBES, SMALL)
    assert not toy.recorder.held
    toy.steps(PROBES + 1, SMALL)
    assert len(toy.recorder.held) == 1
    assert toy.phases == ["Batches of 1 with latents of 4 x 4 take 0.500 s a pass as a CUDA graph instead of 1.000 s"]
    toy.steps(PROBES + 1, LARGE, SMALL)
    assert len(toy.recorder.held) == 2
    assert not of(toy.events, "warning")


def test_none_is_made_that_the_rest_of_the_run_does_not_pay_for() -> None:
    worth = math.ceil(GUESSED_COST / (1 - GUESSED_RATIO))
    assert not Toy(Recorder(), left=worth - 1).steps(9, SMALL).recorder.held
    assert Toy(Recorder(), left=worth + 1).steps(9, SMALL).recorder.held
    # what the first one gained and took is known: 0.5 s a pass, 4 s
    toy = Toy(Recorder()).steps(9, SMALL)
    toy.left = 7
    assert len(toy.steps(9, LARGE).recorder.held) == 1
    toy.left = 9
    assert len(toy.steps(9, LARGE).recorder.held) == 2


def test_a_graph_that_is_no_faster_goes_and_larger_batches_get_none() -> None:
    toy = Toy(Recorder(replay_seconds=0.98)).steps(2 * PROBES + 1, SMALL).steps(9, SMALL, LARGE)
    assert not toy.recorder.held
    assert toy.recorder.calls == {"rehearse": 1, "record": 1, "replay": 1 + PROBES}
    [said] = toy.phases
    assert said.endswith("are no faster as a CUDA graph (0.980 s a pass, 1.000 s without) and go on without")


FAILURES = [
    pytest.param({"failing": {"rehearse": (1, RuntimeError("it waits.\nmore"))}}, "it waits", id="waits"),
    pytest.param({"failing": {"record": (1, torch.OutOfMemoryError("no memory"))}}, "no memory", id="no memory"),
    pytest.param({"failing": {"record": (2, AssertionError())}}, "AssertionError", id="second shape"),
    pytest.param({"failing": {"replay": (1, RuntimeError("launch failed"))}}, "launch failed", id="trial"),
    pytest.param({"wrong": True}, "a graph gives other gradients than the pass, by 100.0 %", id="wrong"),
]


@pytest.mark.parametrize(("options", "said"), FAILURES)
def test_what_fails_while_a_graph_is_made_ends_them_all(options: dict[str, Any], said: str) -> None:
    toy = Toy(Recorder(**options)).steps(9, SMALL, LARGE)
    assert not toy.recorder.held
    assert max(toy.recorder.calls.values()) <= 4
    [warning] = of(toy.events, "warning")
    assert warning["code"] == "cuda_graphs"
    assert warning["message"] == f"CUDA graphs are off: {said}. The run goes on without them."


def test_a_batch_that_is_not_finite_tells_nothing_about_a_graph() -> None:
    toy = Toy(Recorder()).steps(PROBES, SMALL)
    toy.replays.consider([batch_of(*SMALL, math.nan)], torch.tensor(1.0))
    assert not toy.recorder.calls.get("record")
    assert toy.steps(1, SMALL).recorder.held
    assert not of(toy.events, "warning")


def test_graphs_give_way_to_samples_and_come_back_if_an_epoch_pays() -> None:
    toy = Toy(Recorder()).steps(9, SMALL)
    toy.replays.make_room()
    assert toy.recorder.held
    toy.recorder.room = SAMPLING_ROOM - 1
    toy.replays.make_room()
    assert not toy.recorder.held
    assert toy.steps(9, SMALL).recorder.held
    toy.left = 700  # 7 in this epoch, which save 3.5 s and cost 4
    toy.replays.make_room()
    assert not toy.steps(9, SMALL).recorder.held


def test_no_graph_where_memory_is_short_and_no_more_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(Recorder(room=1)).steps(9, SMALL)
    assert not toy.recorder.calls
    assert toy.phases == ["Batches of 1 with latents of 4 x 4 go on without a CUDA graph: no memory is left for it"]
    monkeypatch.setattr(graphing, "MOST_GRAPHS", 1)
    assert len(Toy(Recorder()).steps(9, SMALL, LARGE).recorder.held) == 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images in two buckets, and a base of one small block a level."""
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64), (32, 64), (64, 64)])
    save_tiny_sdxl(folder / "base", layers=1, channels=(16, 16, 16), depths=(1, 1, 1))
    return folder


def begin(shared: Path, **recipe: Any) -> Run:
    job = make_job(shared / "base", shared / "images", **{"batch_size": 1, "epochs": 100} | recipe)
    return start(job, shared / str(job.recipe.mixed_precision), Home(shared / "home"))


@pytest.fixture(scope="module")
def accumulating(shared: Path) -> tuple[Run, ResumeState, list[list[float]], dict[str, torch.Tensor]]:
    """A run of two batches a step, its state before the first, and the losses and weights of 14 plain steps."""
    run = begin(shared, gradient_accumulation_steps=2)
    before = state_of(run)
    return run, before, take(run, 14), run.adapters.state()


def state_of(run: Run) -> ResumeState:
    save(run)
    state = load_state(run.folder / "checkpoints" / "state", on_damage=lambda message: None)
    assert state is not None
    return state


def take(run: Run, steps: int) -> list[list[float]]:
    """Take steps; the losses of their samples, bit for bit."""
    losses = []
    for _ in range(steps):
        step = train_step(run)
        run.step += 1
        step.read()
        losses.append(step.losses)
    return losses


def give_graphs(run: Run, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Events:
    """Let a run make graphs; returns what it is going to tell."""
    events: Events = []
    monkeypatch.setattr(step_module, "find_recorder", lambda device: recorder)
    run.replays = cuda_graphs_for(run, lambda event, **values: events.append((event, values)))
    assert run.replays is not None
    one_pass = run.replays._pass

    def timed(batch: BatchTensors, samples: torch.Tensor) -> torch.Tensor:
        recorder.now += recorder.pass_seconds
        return one_pass(batch, samples)

    run.replays._pass = timed
    return events


def test_a_run_is_the_same_with_graphs_over_two_shapes_and_a_resume(
    accumulating: tuple[Run, ResumeState, list[list[float]], dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before, losses, weights = accumulating
    restore(run, before)
    recorders = Recorder(), Recorder()
    give_graphs(run, recorders[0], monkeypatch)
    assert take(run, 8) == losses[:8]
    assert len(recorders[0].held) == 2
    middle = state_of(run)
    take(run, 1)
    restore(run, middle)
    events = give_graphs(run, recorders[1], monkeypatch)
    assert take(run, 6) == losses[8:]
    assert same(run.adapters.state(), weights)
    assert all(recorder.calls["replay"] > 3 for recorder in recorders)
    assert not of(events, "warning")


@pytest.mark.parametrize("after", [False, True], ids=["at once", "after its gradients"])
def test_a_step_whose_graph_fails_is_done_again_without(
    accumulating: tuple[Run, ResumeState, list[list[float]], dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    run, before, losses, weights = accumulating
    restore(run, before)
    recorder = Recorder()
    events = give_graphs(run, recorder, monkeypatch)
    replay, done = graphing.Graph.replay, 0

    def breaking(graph: graphing.Graph, batch: BatchTensors, samples: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += 1
        if done < 6:
            return replay(graph, batch, samples)
        if after:
            replay(graph, batch, samples)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphing.Graph, "replay", breaking)
    assert take(run, 14) == losses
    assert done == 6
    assert same(run.adapters.state(), weights)
    assert not recorder.held
    assert len(of(events, "warning")) == 1


def test_graphs_in_half_precision_with_text_encoders_and_checkpointing(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphing, "PROBES", 2)
    epoch = {"batch_size": 2, "gradient_accumulation_steps": 2}  # both shapes in each step
    run = begin(shared, mixed_precision="bf16", text_encoder_lr=1e-3, gradient_checkpointing="on", **epoch)
    before = state_of(run)
    losses, weights = take(run, 3), run.adapters.state()
    restore(run, before)
    recorder = Recorder()
    give_graphs(run, recorder, monkeypatch)
    assert take(run, 3) == losses
    assert same(run.adapters.state(), weights)
    assert recorder.calls["replay"] == 4


def test_an_error_without_a_graph_is_raised(
    accumulating: tuple[Run, ResumeState, list[list[float]], dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, *_ = accumulating
    events = give_graphs(run, Recorder(), monkeypatch)
    monkeypatch.setattr(run.base.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="broken"):
        train_step(run)
    assert not events


def broken(*arguments: Any, **named: Any) -> None:
    raise RuntimeError("broken")


def test_what_no_graph_could_repeat_gets_none(
    accumulating: tuple[Run, ResumeState, list[list[float]], dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, weights beside the fused layers' (as a DoRA's), a scaled loss, several processes; and a CPU."""
    run, *_ = accumulating
    assert cuda_graphs_for(run, print) is None
    monkeypatch.setattr(step_module, "find_recorder", lambda device: Recorder())
    assert cuda_graphs_for(run, print) is not None
    dropout = run.job.model_copy(update={"recipe": run.job.recipe.model_copy(update={"network_dropout": 0.1})})
    others = [
        {"job": dropout},
        {"weights": SimpleNamespace(all_fused=False)},
        {"scaler": SimpleNamespace(is_enabled=lambda: True)},
        {"ranks": RankGroup(0, 2)},
    ]
    for other in others:
        assert cuda_graphs_for(dataclasses.replace(run, **other), print) is None


def test_passes_that_are_left_are_counted_by_shape(
    accumulating: tuple[Run, ResumeState, list[list[float]], dict[str, torch.Tensor]],
) -> None:
    run, *_ = accumulating  # 2 of 64 x 64 px and 1 of 32 x 64 in an epoch of 2 steps; 100 epochs
    left = batches_left(run)
    shapes = [(1, 8, 8), (1, 8, 4), (2, 8, 8)]
    batches = [BatchTensors(*[torch.zeros(count, 4, height, width)] * 5) for count, height, width in shapes]
    run.step = 0
    assert [left(batch, False) for batch in batches] == [200, 100, 0]
    run.step = 197
    assert [left(batch, False) for batch in batches] == [3, 2, 0]
    assert [left(batch, True) for batch in batches] == [1, 0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_a_run_with_graphs_gives_what_one_without_gives(shared: Path, precision: str) -> None:
    run = begin(shared, mixed_precision=precision, gradient_accumulation_steps=2)
    before = state_of(run)
    losses = take(run, 14)
    restore(run, before)
    events: Events = []
    run.replays = cuda_graphs_for(run, lambda event, **values: events.append((event, values)))
    assert run.replays is not None
    run.replays._worth = lambda shape, batch: shape.seconds is not None and not shape.replays
    again = take(run, 14)
    assert of(events, "phase")
    assert not of(events, "warning")
    for one, two in zip(again, losses, strict=True):
        assert one == pytest.approx(two, rel=0.02)
