"""The optimizer step with CUDA graphs, and how it copes with too little GPU memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_studio.planning.memory import GIB
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training import build
from lora_studio.training.build import batches_left, fit_gpu_memory, with_cuda_graphs
from lora_studio.training.data.batch import BatchTensors
from lora_studio.training.distributed import RankGroup
from lora_studio.training.loop import step_retry
from lora_studio.training.progress import Progress
from lora_studio.training.resume import capture_state, restore_state
from lora_studio.training.resume_state import ResumeState
from lora_studio.training.speed import cuda_graph_policy
from lora_studio.training.speed.cuda_graph_policy import BatchGraph, CudaGraphPass
from lora_studio.training.speed.gradient_pass import EagerPass
from lora_studio.training.speed.memory_budget import StepMemory
from lora_studio.training.step import train_step
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home
from tests.support.events import Events, append_to, ignore, of
from tests.support.graph_double import FakeCapturer
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same, start

Accumulating = tuple[Trainer, ResumeState, list[list[float]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images in two buckets, and a base with one small block per level."""
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64), (32, 64), (64, 64)])
    save_tiny_sdxl(folder / "base", layers=1, channels=(16, 16, 16), depths=(1, 1, 1))
    return folder


def begin(shared: Path, **recipe: Any) -> Trainer:
    job = make_job(shared / "base", shared / "images", **{"batch_size": 1, "epochs": 100, "cuda_graphs": True} | recipe)
    return start(job, shared / str(job.recipe.mixed_precision), Home(shared / "home"))


@pytest.fixture(scope="module")
def accumulating(shared: Path) -> Accumulating:
    """A run of two batches per step, its first state, and the losses and weights of 14 steps without graphs."""
    trainer = begin(shared, gradient_accumulation_steps=2)
    before = state_of(trainer)
    return trainer, before, take_steps(trainer, range(14)), trainer.adapters.state()


def state_of(trainer: Trainer) -> ResumeState:
    """Return a copy of the weights and of the optimizer's state."""
    return copy.deepcopy(capture_state(trainer, Progress(), 0))


def take_steps(trainer: Trainer, steps: Iterable[int]) -> list[list[float]]:
    """Take steps; return the losses of their samples, bit for bit."""
    losses = []
    for step in steps:
        result = train_step(trainer, step, step_retry(trainer, ignore))
        result.read()
        losses.append(result.losses)
    return losses


def with_fake_graphs(
    trainer: Trainer, capturer: FakeCapturer, monkeypatch: pytest.MonkeyPatch
) -> tuple[Trainer, Events]:
    """Return the trainer with graphs by a fake capturer, and the list that their events go to."""
    events: Events = []

    class TimedPass(EagerPass):
        def __call__(self, batch: BatchTensors) -> torch.Tensor:
            capturer.now += capturer.eager_seconds
            return super().__call__(batch)

    monkeypatch.setattr(build, "find_capturer", lambda device: capturer)
    eager = TimedPass(trainer.batch_loss, trainer.weights, trainer.scaler)
    changed = with_cuda_graphs(replace(trainer, gradient_pass=eager), Progress(), append_to(events))
    assert isinstance(changed.gradient_pass, CudaGraphPass)
    return changed, events


@pytest.mark.slow
def test_graphs_change_no_bit_over_two_shapes_and_a_resume(
    accumulating: Accumulating, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, before, losses, weights = accumulating
    restore_state(trainer, before)
    capturers = FakeCapturer(), FakeCapturer()
    first, _ = with_fake_graphs(trainer, capturers[0], monkeypatch)
    assert take_steps(first, range(8)) == losses[:8]
    assert len(capturers[0].held) == 2
    middle = state_of(trainer)
    take_steps(first, [8])
    restore_state(trainer, middle)
    second, events = with_fake_graphs(trainer, capturers[1], monkeypatch)
    assert take_steps(second, range(8, 14)) == losses[8:]
    assert same(trainer.adapters.state(), weights)
    assert all(capturer.calls["replay"] > 3 for capturer in capturers)
    assert not of(events, "warning")


@pytest.mark.parametrize("late", [False, True], ids=["before its gradients", "after its gradients"])
def test_a_step_whose_graph_fails_is_retried_without_graphs(
    accumulating: Accumulating, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    trainer, before, losses, weights = accumulating
    restore_state(trainer, before)
    capturer = FakeCapturer()
    graphed, events = with_fake_graphs(trainer, capturer, monkeypatch)
    replay, count = BatchGraph.replay, 0

    def failing(graph: BatchGraph, batch: BatchTensors) -> torch.Tensor:
        nonlocal count
        count += 1
        if count < 6:
            return replay(graph, batch)
        if late:
            replay(graph, batch)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BatchGraph, "replay", failing)
    assert take_steps(graphed, range(14)) == losses
    assert count == 6
    assert same(trainer.adapters.state(), weights)
    assert not capturer.held
    assert [values["code"] for values in of(events, "warning")] == ["cuda_graphs"]


@pytest.mark.slow
def test_graphs_change_no_bit_in_bf16_with_text_encoders_and_checkpointing(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph_policy, "TIMED_BATCHES", 2)
    both_shapes = {"batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = begin(shared, mixed_precision="bf16", text_encoder_lr=1e-3, gradient_checkpointing="on", **both_shapes)
    before = state_of(trainer)
    losses, weights = take_steps(trainer, range(3)), trainer.adapters.state()
    restore_state(trainer, before)
    capturer = FakeCapturer()
    graphed, _ = with_fake_graphs(trainer, capturer, monkeypatch)
    assert take_steps(graphed, range(3)) == losses
    assert same(trainer.adapters.state(), weights)
    assert capturer.calls["replay"] == 4


def test_an_error_that_is_not_a_graphs_is_raised(accumulating: Accumulating, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, *_ = accumulating
    graphed, events = with_fake_graphs(trainer, FakeCapturer(), monkeypatch)
    monkeypatch.setattr(trainer.base.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="broken"):
        train_step(graphed, 0)
    assert not events


def broken(*arguments: Any, **named: Any) -> None:
    raise RuntimeError("broken")


def test_no_graphs_where_a_replay_could_be_wrong(accumulating: Accumulating, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU; with dropout, weights outside the fused layers (DoRA), a scaled loss, several ranks; or not set."""
    trainer, *_ = accumulating

    def graphs(changed: Trainer) -> bool:
        return isinstance(with_cuda_graphs(changed, Progress(), ignore).gradient_pass, CudaGraphPass)

    def with_recipe(**changes: Any) -> TrainJob:
        return trainer.job.model_copy(update={"recipe": trainer.recipe.model_copy(update=changes)})

    assert not graphs(trainer)
    monkeypatch.setattr(build, "find_capturer", lambda device: FakeCapturer())
    assert graphs(trainer)
    others: list[dict[str, Any]] = [
        {"job": with_recipe(cuda_graphs=False)},
        {"job": with_recipe(network_dropout=0.1)},
        {"weights": SimpleNamespace(all_fused=False)},
        {"scaler": SimpleNamespace(is_enabled=lambda: True)},
        {"ranks": RankGroup(0, 2)},
    ]
    for other in others:
        assert not graphs(replace(trainer, **other))


def test_batches_left_are_counted_by_shape(accumulating: Accumulating) -> None:
    trainer, *_ = accumulating  # 2 of 64 x 64 px and 1 of 32 x 64 in an epoch of 2 steps; 100 epochs
    progress = Progress()
    left = batches_left(trainer, progress)
    shapes = [(1, 8, 8), (1, 8, 4), (2, 8, 8)]
    batches = [BatchTensors(*[torch.zeros(count, 4, height, width)] * 6) for count, height, width in shapes]
    assert [left(batch, False) for batch in batches] == [200, 100, 0]
    progress.step = 197
    assert [left(batch, False) for batch in batches] == [3, 2, 0]
    assert [left(batch, True) for batch in batches] == [1, 0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_graphs_give_nearly_the_same_losses(
    shared: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = begin(shared, mixed_precision=precision, gradient_accumulation_steps=2)
    before = state_of(trainer)
    losses = take_steps(trainer, range(14))
    restore_state(trainer, before)
    events: Events = []
    monkeypatch.setattr(cuda_graph_policy, "is_worthwhile", lambda *estimate: True)
    graphed = with_cuda_graphs(trainer, Progress(), append_to(events))
    assert isinstance(graphed.gradient_pass, CudaGraphPass)
    again = take_steps(graphed, range(14))
    assert of(events, "phase")
    assert not of(events, "warning")
    for one, two in zip(again, losses, strict=True):
        assert one == pytest.approx(two, rel=0.02)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("run")
    base = save_tiny_sdxl(folder / "base", layers=1)
    images = make_images(folder / "images", [(64, 64), (32, 64), (64, 64)])
    job = make_job(base, images, gradient_checkpointing="auto")
    return start(job, folder / "run", Home(folder / "home"))


@pytest.fixture
def auto_run(prepared: Trainer) -> Iterator[Trainer]:
    """A run with gradient checkpointing `auto`, ready for its first step; a test's changes are undone afterwards."""
    weights = {name: weight.clone() for name, weight in prepared.adapters.state().items()}
    optimizer = copy.deepcopy(prepared.optimizer.state_dict())
    yield prepared
    prepared.adapters.load_state(weights)
    prepared.optimizer.load_state_dict(optimizer)
    prepared.block_checkpointing.recompute_only([])
    prepared.recipe.gradient_checkpointing = GradientCheckpointing.AUTO


def test_auto_recomputes_no_block_on_a_cpu_and_only_as_many_as_a_gpu_needs(
    auto_run: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointing = auto_run.block_checkpointing
    assert not checkpointing.recomputed
    before = {name: weight.clone() for name, weight in auto_run.adapters.state().items()}
    assert [item.placement.bucket for item in auto_run.collator.largest_batch()] == [(64, 64)] * 2
    counts = []
    for spare in (0, 2**20, 2**40):
        events, memory = Events(), StepMemory(usable=8 * GIB + spare, peak=8 * GIB)
        monkeypatch.setattr(build, "measure_step_memory", lambda *given, memory=memory: memory)
        fit_gpu_memory(auto_run, append_to(events))
        counts.append(len(checkpointing.recomputed))
        assert f"{counts[-1]} of 21 UNet blocks" in events[-1][1]["message"]
    assert counts[0] > counts[1] >= counts[2] == 0
    assert same(auto_run.adapters.state(), before)


def test_the_buffers_of_several_gpus_are_allocated_before_memory_is_measured(
    auto_run: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def measure(*given: Any) -> StepMemory:
        calls.append("measure")
        return StepMemory(usable=8 * GIB, peak=8 * GIB)

    monkeypatch.setattr(RankGroup, "all_reduce", lambda self, values: calls.append(f"all-reduce {len(values)}"))
    monkeypatch.setattr(build, "measure_step_memory", measure)
    fit_gpu_memory(replace(auto_run, ranks=RankGroup(0, 2)), ignore)
    assert calls == ["all-reduce 1", "measure"]


def test_memory_is_not_measured_unless_checkpointing_is_auto(auto_run: Trainer) -> None:
    auto_run.recipe.gradient_checkpointing = GradientCheckpointing.ON
    events = Events()
    fit_gpu_memory(auto_run, append_to(events))
    assert not events


def test_all_blocks_are_recomputed_if_memory_runs_out_while_it_is_measured(
    auto_run: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*given: Any) -> StepMemory:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(build, "measure_step_memory", out_of_memory)
    events = Events()
    fit_gpu_memory(auto_run, append_to(events))
    assert [values["code"] for _, values in events if "code" in values] == ["measure_out_of_memory"]
    assert len(auto_run.block_checkpointing.recomputed) == 21
    train_step(auto_run, 0)


def test_out_of_memory_retries_the_step_with_more_blocks_recomputed(
    auto_run: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {name: weight.clone() for name, weight in auto_run.adapters.state().items()}
    optimizer = copy.deepcopy(auto_run.optimizer.state_dict())
    train_step(auto_run, 0)
    expected = {name: weight.clone() for name, weight in auto_run.adapters.state().items()}
    auto_run.adapters.load_state(weights)
    auto_run.optimizer.load_state_dict(optimizer)
    eager, events = auto_run.gradient_pass, Events()

    def short_of_memory(batch: BatchTensors) -> torch.Tensor:
        losses = eager(batch)
        if len(auto_run.block_checkpointing.recomputed) < 15:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses

    limited = replace(auto_run, gradient_pass=short_of_memory)
    train_step(limited, 0, step_retry(limited, append_to(events)))
    assert [values["code"] for _, values in events] == ["memory_short"] * 2
    assert "16 of 21" in events[-1][1]["message"]
    assert same(auto_run.adapters.state(), expected)


def test_out_of_memory_is_raised_when_no_block_is_left_to_recompute(
    auto_run: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(batch: BatchTensors) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    failing = replace(auto_run, gradient_pass=out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        train_step(failing, 0, step_retry(failing, ignore))
    assert len(auto_run.block_checkpointing.recomputed) == 21
    auto_run.block_checkpointing.recompute_only([])
    auto_run.recipe.gradient_checkpointing = GradientCheckpointing.OFF
    with pytest.raises(torch.OutOfMemoryError):
        train_step(failing, 0, step_retry(failing, ignore))
    assert not auto_run.block_checkpointing.recomputed
