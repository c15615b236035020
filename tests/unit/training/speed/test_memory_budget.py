"""The activation memory budget: what is measured on a GPU, and what is checkpointed before a measurement."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_studio.training.speed import memory_budget
from lora_studio.training.speed.memory_budget import RESERVED_SHARE, make_block_checkpointing, measure_step_memory
from tests.support.tiny_sdxl import make_pipeline
from tests.support.training_runs import recipe_of

CUDA = torch.device("cuda")


@pytest.mark.parametrize("has_state", [False, True], ids=["before the first step", "with optimizer state"])
def test_the_step_memory_is_the_peak_and_an_estimate_of_missing_optimizer_state(
    monkeypatch: pytest.MonkeyPatch, has_state: bool
) -> None:
    calls: list[str] = []
    for name, value in (
        ("empty_cache", None),
        ("reset_peak_memory_stats", None),
        ("max_memory_allocated", 1000),
        ("mem_get_info", (600, 2000)),
        ("memory_reserved", 400),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *device, name=name, value=value: calls.append(name) or value)
    monkeypatch.setattr(memory_budget, "optimizer_bytes", lambda recipe, parameters: 10 * parameters)
    weight = torch.nn.Parameter(torch.ones(3))
    weights: Any = SimpleNamespace(flat=[weight], zero_gradients=lambda: calls.append("zero_gradients"))
    optimizer: Any = SimpleNamespace(state={weight: {}} if has_state else {})
    memory = measure_step_memory(lambda: weight * 2, weights, optimizer, recipe_of(), CUDA)
    assert memory.peak == 1000 + (0 if has_state else 30)
    assert memory.usable == pytest.approx(1000 * (1 - RESERVED_SHARE))
    assert torch.equal(weight.grad, torch.full((3,), 2.0))
    assert calls.index("zero_gradients") < calls.index("max_memory_allocated")


@pytest.mark.parametrize(
    ("chosen", "device", "recomputed"),
    [("on", "cpu", True), ("off", "cuda", False), ("auto", "cpu", False), ("auto", "cuda", True)],
)
def test_auto_recomputes_all_blocks_on_a_gpu_until_memory_is_measured(
    tmp_path: Path, chosen: str, device: str, recomputed: bool
) -> None:
    pipe = make_pipeline(tmp_path, layers=1)
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    base: Any = SimpleNamespace(unet=pipe.unet, text_encoders=encoders)
    checkpointing = make_block_checkpointing(base, recipe_of(gradient_checkpointing=chosen), torch.device(device))
    assert checkpointing.recomputed == (set(checkpointing.blocks) if recomputed else set())
    assert pipe.unet.is_gradient_checkpointing is recomputed
    assert all(encoder.is_gradient_checkpointing is recomputed for encoder in encoders)
