"""Flat parameters: every optimizer's steps and all gradients are those of separate weights."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_studio.lora.fused_linear import FusedLoraLinear
from lora_studio.lora.inject import Adapters, add_adapters
from lora_studio.settings.choices import Optimizer
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.flat_params import FlatParameters, ParameterLayout
from lora_studio.training.optim.optimizers import make_optimizer, parameter_groups, parameter_layout
from lora_studio.training.speed.attention import use_plain_attention
from lora_studio.training.step import train_step
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home
from tests.support.networks import in_tiers
from tests.support.tiny_sdxl import make_pipeline, save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, start

NETWORK = {"network_dim": 4, "network_alpha": 2, "unet_lr": 1e-2, "text_encoder_lr": 0.0, "weight_decay": 0.01}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(Optimizer))
def test_every_optimizer_takes_the_same_steps_as_on_separate_weights(parts: Any, name: Optimizer) -> None:
    """Gradients are random: every optimizer must take the same steps with them in either layout."""
    free = (Optimizer.PRODIGY, Optimizer.PRODIGY_PLUS, Optimizer.DADAPT_ADAM)
    rate = 1.0 if name in free else 1e-2
    recipe = Recipe.parse(NETWORK | {"optimizer": name, "unet_lr": rate})
    ends = []
    for is_flat in (False, True):
        adapters = add_adapters(deepcopy(parts.unet), [], recipe)
        groups = parameter_groups(adapters, recipe)
        leaves = adapters.parameters("unet")
        weights = FlatParameters(groups, parameter_layout(recipe), adapters, torch.float32) if is_flat else None
        optimizer = make_optimizer(recipe, weights.groups if weights else groups)
        for step in range(3):
            source = torch.Generator().manual_seed(step)
            for leaf in leaves:
                leaf.grad = torch.randn(leaf.shape, generator=source)
            if weights:
                weights.zero_gradients()
                fill_grad_buffers(adapters)
                weights.accumulate_gradients()
            optimizer.step()
        ends.append(adapters.state())
    for weight, other in zip(ends[0].values(), ends[1].values(), strict=True):
        if "8bit" in name.value:  # blocks of 256 values share a scale; small matrices have fp32 states if separate
            assert (weight - other).abs().mean() < 1e-3
        else:
            torch.testing.assert_close(weight, other, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", in_tiers(Optimizer, fast=("Adafactor", "AdamW", "Prodigy")))
def test_every_optimizer_leaves_frozen_groups_as_they_are(parts: Any, name: Optimizer) -> None:
    free = (Optimizer.PRODIGY, Optimizer.PRODIGY_PLUS, Optimizer.DADAPT_ADAM)
    rate = 1.0 if name in free else 1e-2
    changes = {"optimizer": name, "unet_lr": rate, "text_encoder_lr": rate, "weight_decay": 0.1}
    recipe = Recipe.parse(NETWORK | changes)
    adapters = add_adapters(deepcopy(parts.unet), [deepcopy(parts.text_encoder)], recipe)
    weights = FlatParameters(parameter_groups(adapters, recipe), parameter_layout(recipe), adapters, torch.float32)
    optimizer = make_optimizer(recipe, weights.groups)
    ends = []
    for step in range(6):
        if step == 3:
            weights.freeze("text_encoder")
        source = torch.Generator().manual_seed(step)
        for gradient in weights.gradients:
            gradient.copy_(torch.randn(gradient.shape, generator=source))
        optimizer.step()
        ends.append({name: weight.clone() for name, weight in adapters.state().items()})
    for model in ("unet", "te1"):
        moved = [
            {name for name in after if name.startswith(model) and not torch.equal(before[name], after[name])}
            for before, after in pairwise(ends)
        ]
        is_frozen = [not names for names in moved]
        assert is_frozen == [False, False, *[model == "te1"] * 3]


def fill_grad_buffers(adapters: Adapters) -> None:
    """Move the gradients of the weights into the gradient buffers of the fused layers."""
    for _, _, layer in adapters.layers:
        for weight, buffer in zip(
            (layer.lora_A["default"].weight, layer.lora_B["default"].weight), layer.fused_lora.grad_buffers, strict=True
        ):
            buffer += weight.grad
            weight.grad = None


@pytest.mark.parametrize("network", ["LoRA", "DoRA"])
def test_accumulated_gradients_are_those_of_pefts_layers(parts: Any, network: str) -> None:
    """Accumulate two micro-batches, then reset the gradients and take another one."""

    def backward(unet: UNet2DConditionModel, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        noisy, text = (torch.randn(shape, generator=source) for shape in ((1, 4, 8, 8), (1, 7, 40)))
        added = {"text_embeds": torch.randn(1, 24, generator=source), "time_ids": torch.ones(1, 6)}
        unet(noisy, 5, text, added_cond_kwargs=added).sample.sin().sum().backward()

    recipe = Recipe.parse(NETWORK | {"network_type": network})
    plain, ours = deepcopy(parts.unet), deepcopy(parts.unet)
    theirs, adapters = (add_adapters(unet, [], recipe) for unet in (plain, ours))
    for adapter in (theirs, adapters):
        with torch.no_grad():
            for number, weight in enumerate(adapter.parameters("unet")):
                weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) / 10
    weights = FlatParameters(parameter_groups(adapters, recipe), ParameterLayout.FLAT, adapters, torch.float32)
    use_plain_attention(ours)
    for seeds in ([1, 2], [3]):
        weights.zero_gradients()
        for weight in theirs.parameters("unet"):
            weight.grad = None
        for seed in seeds:
            backward(plain, seed)
            backward(ours, seed)
            weights.accumulate_gradients()
        expected = {name: weight.grad for name, weight in zip(theirs.state(), theirs.parameters("unet"), strict=True)}
        assert not any(weight.grad is not None for weight in adapters.parameters("unet"))
        [flat], [gradient] = weights.flat, weights.gradients
        for name, weight in zip(adapters.state(), adapters.parameters("unet"), strict=True):
            start = (weight.data_ptr() - flat.data_ptr()) // 4
            found = gradient[start : start + weight.numel()].view_as(weight)
            torch.testing.assert_close(found, expected[name], atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64)] * 4)
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


@pytest.fixture
def trainer(shared: Path, tmp_path: Path) -> Trainer:
    job = make_job(shared / "base", shared / "images", mixed_precision="bf16", unet_lr=1e-5)
    return start(job, tmp_path, Home(shared / "home"))


def test_small_steps_are_kept_in_fp32_weights(trainer: Trainer) -> None:
    """Layers compute with bf16 copies, which an update of 1e-5 rarely changes; the fp32 weights keep every update."""
    assert trainer.weights.half_only
    layers = [module for module in trainer.base.unet.modules() if isinstance(module, FusedLoraLinear)]
    before = {name: weight.clone() for name, weight in trainer.adapters.state().items()}
    for step in range(3):
        assert train_step(trainer, step).read() is not None
    moved = [
        (weight - before[name]).abs().max() for name, weight in trainer.adapters.state().items() if name[-1] == "A"
    ]
    assert all(0 < float(change) < 1e-4 for change in moved)
    for module in layers:
        for copy, weight in zip(
            (module.fused_lora.a, module.fused_lora.b), (module.lora_A, module.lora_B), strict=True
        ):
            assert torch.equal(copy, weight["default"].weight.bfloat16())
