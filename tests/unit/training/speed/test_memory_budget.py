"""The activation memory budget: what is measured on a GPU, and what is checkpointed before a measurement."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_studio.lora.inject import add_adapters
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.models.text_encoding import encode_tokens
from lora_studio.planning.memory import GIB, SDXL
from lora_studio.training.optim.flat_params import FlatParameters
from lora_studio.training.optim.optimizers import parameter_groups, parameter_layout
from lora_studio.training.speed import memory_budget
from lora_studio.training.speed.memory_budget import (
    RESERVED_SHARE,
    StepMemory,
    checkpoint_text_encoders,
    fit_recomputed_blocks,
    make_block_checkpointing,
    measure_step_memory,
)
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home
from tests.support.events import ignore
from tests.support.live_memory import saved_bytes
from tests.support.tiny_sdxl import make_pipeline
from tests.support.training_runs import make_images, make_job, recipe_of, start

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


@pytest.fixture(scope="module")
def text_run(training_inputs: Path) -> Trainer:
    """A run that trains UNet and text encoders, before its first step."""
    images = make_images(training_inputs / "two", [(64, 64)] * 2)
    job = make_job(training_inputs / "base", images, text_encoder_lr=1e-3, max_token_length=225)
    return start(job, training_inputs / "text run", Home(training_inputs / "home"))


@pytest.mark.slow
def test_the_text_encoders_activations_are_in_the_budget(text_run: Trainer) -> None:
    trainer, checkpointing = text_run, text_run.block_checkpointing
    encoders = trainer.base.text_encoders
    batch = trainer.collator.collate(0, trainer.collator.largest_batch(), 0, 2)
    tensors = [tensor for encoder in encoders for tensor in (*encoder.parameters(), *encoder.buffers())]

    def saved(kept: bool) -> tuple[int, int]:
        """Return the bytes saved outside and inside of UNet blocks."""
        checkpoint_text_encoders(encoders, not kept, preserve_rng_state=False)
        outside, costs = checkpointing.measure(lambda: trainer.batch_loss(batch), [*trainer.weights.flat, *tensors])
        return outside, sum(cost.saved_bytes for cost in costs)

    recomputed, unet_bytes = saved(kept=False)
    text_bytes = saved(kept=True)[0] - recomputed
    assert text_bytes > 3 * 2 * 2**10
    for spare, unet, texts in (
        (unet_bytes + text_bytes, False, False),
        (unet_bytes + text_bytes - 1, False, True),
        (0, True, True),
    ):
        memory = StepMemory(usable=GIB + spare, peak=GIB)
        fit_recomputed_blocks(
            checkpointing,
            encoders,
            lambda: trainer.batch_loss(batch),
            lambda memory=memory: memory,
            trainer.weights,
            ignore,
        )
        assert bool(checkpointing.recomputed) is unet
        assert all(encoder.is_gradient_checkpointing is texts for encoder in encoders)


def text_encoder_gib(layers: tuple[int, int], recomputed: bool, unet: Any, **settings: Any) -> float:
    """Return what SDXL's text encoders would save of one caption in bf16 with these numbers of layers."""
    with torch.device("meta"):
        encoders = [
            kind(CLIPTextConfig.from_pretrained(SDXL_CONFIG / name, num_hidden_layers=count))
            for kind, name, count in (
                (CLIPTextModel, "text_encoder", layers[0]),
                (CLIPTextModelWithProjection, "text_encoder_2", layers[1]),
            )
        ]
        for encoder in encoders:
            encoder.to(torch.bfloat16).requires_grad_(False).train()
        recipe = recipe_of(unet_lr=0, text_encoder_lr=1e-4, network_dim=32, **settings)
        adapters = add_adapters(unet, encoders, recipe)
        weights = FlatParameters(parameter_groups(adapters, recipe), parameter_layout(recipe), adapters, torch.bfloat16)
        tokens = torch.zeros(2, 1, 1, 77, dtype=torch.long)
    checkpoint_text_encoders(encoders, recomputed, preserve_rng_state=False)
    ignored = [*weights.flat, *weights.half_copies, *(tensor for encoder in encoders for tensor in encoder.buffers())]
    ignored += [weight for encoder in encoders for weight in encoder.parameters()]
    return saved_bytes(lambda: encode_tokens(encoders, tokens, 2), ignored) / GIB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "planned"),
    [({}, SDXL.fused_text_activations), ({"network_dropout": 0.1}, SDXL.text_activations)],
    ids=["fused layers", "plain layers"],
)
def test_activations_of_sdxls_text_encoders_are_as_planned(
    settings: dict[str, Any], planned: float, tmp_path: Path
) -> None:
    """They grow in proportion to the layers, of which SDXL's have 12 and 32."""
    unet = make_pipeline(tmp_path, layers=1).unet.requires_grad_(False)

    def measured(recomputed: bool) -> float:
        base, one, two = (text_encoder_gib(layers, recomputed, unet, **settings) for layers in ((2, 2), (3, 2), (2, 3)))
        return base + 10 * (one - base) + 30 * (two - base)

    kept = measured(recomputed=False)
    assert kept == pytest.approx(planned, rel=0.02)
    # in the backward pass a layer is computed again, and the UNet's layers add to the gradient of the embeddings
    assert measured(recomputed=True) + kept / 44 < SDXL.checkpointed_text_activations < kept / 4
