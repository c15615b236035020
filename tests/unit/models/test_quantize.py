"""Quantized bases: error, size, and training of adapters on them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.inject import add_adapters
from lora_studio.models.quantize import QuantizedLinear, check_quantization, quantize
from lora_studio.planning.memory import QUANTIZED_BYTES
from lora_studio.settings.choices import BasePrecision
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Home
from tests.support.events import of
from tests.support.tiny_sdxl import make_pipeline, save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, train_into

CPU = torch.device("cpu")
PACKED = (BasePrecision.INT8, BasePrecision.NF4)
NEAR = {BasePrecision.INT8: 0.0075, BasePrecision.NF4: 0.1}  # relative RMS error


def packed_layer(kind: BasePrecision, inputs: int, outputs: int, **more: Any) -> tuple[QuantizedLinear, nn.Linear]:
    source = nn.Linear(inputs, outputs, **more)
    return QuantizedLinear(source, kind, torch.float32, CPU), source


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> UNet2DConditionModel:
    unet = make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1).unet
    return unet.requires_grad_(False)


def output(unet: nn.Module) -> Tensor:
    source = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 4, 8, 8, generator=source), torch.randn(1, 77, 40, generator=source)
    added = {"text_embeds": torch.ones(1, 24), "time_ids": torch.ones(1, 6)}
    result: Tensor = unet(latents, 300, text, added_cond_kwargs=added).sample
    return result


@pytest.mark.parametrize("kind", PACKED)
@settings(max_examples=30)
@given(inputs=st.integers(1, 45), outputs=st.integers(2, 40), spread=st.sampled_from([1e-4, 0.03, 30.0]))
def test_dequantized_weights_are_close_for_any_shape(
    kind: BasePrecision, inputs: int, outputs: int, spread: float
) -> None:
    source = nn.Linear(2 * inputs, outputs)
    torch.nn.init.normal_(source.weight, std=spread)
    layer = QuantizedLinear(source, kind, torch.float32, CPU)
    assert layer.weight.shape == source.weight.shape
    steps = layer.scales.repeat_interleave(128 if kind is BasePrecision.INT8 else 64)[: source.weight.numel()]
    widest = {BasePrecision.INT8: 1 / 127, BasePrecision.NF4: 0.304}[kind]  # largest distance of two levels
    error = (layer.weight - source.weight).abs().flatten()
    assert (error <= steps * widest / 2 * 1.02).all()


@pytest.mark.parametrize("kind", PACKED)
def test_quantization_error_and_size_of_normal_weights(kind: BasePrecision) -> None:
    torch.manual_seed(0)
    layer, source = packed_layer(kind, 640, 256, bias=False)
    torch.nn.init.normal_(source.weight, std=0.02)
    layer = QuantizedLinear(source, kind, torch.bfloat16, CPU)
    assert layer.weight.dtype == torch.bfloat16
    lost = (layer.weight.float() - source.weight).norm() / source.weight.norm()
    assert NEAR[kind] / 2 < lost < NEAR[kind]
    sizes = sum(buffer.nbytes for name, buffer in layer.named_buffers() if name != "code")
    assert sizes / source.weight.numel() == pytest.approx(QUANTIZED_BYTES[kind])
    assert layer.code.nbytes <= 1024
    assert not list(layer.parameters())


@pytest.mark.parametrize("kind", PACKED)
def test_the_gradient_is_that_of_the_dequantized_weight_and_no_copy_is_saved(kind: BasePrecision) -> None:
    layer, _ = packed_layer(kind, 48, 24)
    plain = nn.Linear(48, 24)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        plain.bias.copy_(layer.bias)
    rows = torch.randn(2, 5, 48)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    found = []
    for module in (layer, plain):
        entry = rows.clone().requires_grad_(True)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = module(entry)
        (result**2).sum().backward()
        found.append((result, entry.grad, max(kept, default=0)))
    torch.testing.assert_close(found[0][:2], found[1][:2])
    assert found[1][2] == 48 * 24
    assert found[0][2] == 0


def test_only_the_transformer_blocks_of_the_unet_are_quantized(bare: UNet2DConditionModel) -> None:
    unet = copy.deepcopy(bare)
    linears = [
        name
        for path, block in unet.named_modules()
        if isinstance(block, BasicTransformerBlock)
        for name in (f"{path}.{inner}" for inner, module in block.named_modules() if type(module) is nn.Linear)
    ]
    before = output(unet)
    assert quantize(unet, BasePrecision.FULL, torch.float32, CPU) == 0
    assert torch.equal(output(unet), before)
    assert quantize(unet, BasePrecision.INT8, torch.float32, CPU) == len(linears) > 50
    assert [name for name, module in unet.named_modules() if isinstance(module, QuantizedLinear)] == linears
    after = output(unet)
    assert 0 < (after - before).norm() / before.norm() < 0.02
    meta = copy.deepcopy(unet).to("meta")
    assert {tensor.device.type for tensor in (*meta.buffers(), *meta.parameters())} == {"meta"}
    assert output(copy.deepcopy(unet).train()).equal(after)


@pytest.mark.parametrize("network", ["LoRA", "DoRA", "LoHa", "LoKr"])
def test_adapters_train_as_on_the_dequantized_weights(network: str, bare: UNet2DConditionModel) -> None:
    recipe = Recipe.parse({"network_type": network, "network_dim": 4, "network_alpha": 2, "text_encoder_lr": 0})
    packed = copy.deepcopy(bare)
    quantize(packed, BasePrecision.NF4, torch.float32, CPU)
    whole = copy.deepcopy(bare)
    for name, module in packed.named_modules():
        if isinstance(module, QuantizedLinear):
            whole.get_submodule(name).weight.data = module.weight
    results = []
    for unet in (packed, whole):
        adapters = add_adapters(unet, [], recipe)
        result = output(unet)
        (result**2).sum().backward()
        gradients = [weight.grad for weight in adapters.parameters("unet")]
        assert all(gradient is not None for gradient in gradients)
        results.append([result, *gradients])
        assert all(weight.dtype == torch.float32 for weight in adapters.parameters("unet"))
    assert max(float(gradient.abs().max()) for gradient in results[0][1:]) > 0
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.slow
def test_a_run_on_quantized_weights_writes_a_file_that_loads(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", [(64, 64), (32, 64)])
    base = save_tiny_sdxl(tmp_path / "base", layers=1)
    job = make_job(
        base,
        images,
        base_precision="nf4",
        mixed_precision="bf16",
        gradient_checkpointing=True,
        sample_every_n_epochs=1,
        sample_steps=1,
        max_train_steps=2,
    )
    result, events = train_into(job, tmp_path / "run", Home(tmp_path / "home"))
    assert result.lora is not None
    assert all(0 < values["loss"] < 10 for values in of(events, "step"))
    assert of(events, "sample")
    lora = read_lora_header(result.lora)
    assert lora.metadata["ss_base_precision"] == "nf4"
    with safe_open(result.lora, "pt") as file:
        ups = [file.get_tensor(name) for name in file.keys() if name.endswith("lora_up.weight")]  # noqa: SIM118
    assert len(ups) == len(lora.modules)
    assert sum(bool(up.any()) for up in ups) > 0.9 * len(ups)


def test_missing_bitsandbytes_is_an_error_that_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    check_quantization(BasePrecision.INT8, CPU)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_quantization(BasePrecision.FULL, CPU)
    with pytest.raises(InputError, match="base_precision is nf4") as caught:
        check_quantization(BasePrecision.NF4, CPU)
    assert caught.value.code == "base_precision"
    assert "pip install bitsandbytes" in caught.value.remedy
