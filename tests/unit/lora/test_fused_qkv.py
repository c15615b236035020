"""Fused query, key and value projections: the results of separate layers, in no additional memory."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from lora_studio.lora.fused_linear import FusedLoraLinear
from lora_studio.lora.fused_qkv import fuse_projections
from lora_studio.lora.inject import add_adapters
from lora_studio.models.quantize import quantize
from lora_studio.settings.choices import BasePrecision
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.flat_params import FlatParameters, ParameterLayout
from lora_studio.training.optim.optimizers import parameter_groups
from lora_studio.training.speed.attention import PlainAttention, use_plain_attention
from tests.support.tiny_sdxl import make_pipeline

RECIPE = {"network_dim": 4, "network_alpha": 2, "text_encoder_lr": 0.0}


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> UNet2DConditionModel:
    found: UNet2DConditionModel = make_pipeline(tmp_path_factory.mktemp("tokenizers"), layers=1).unet
    return found


def with_fused_adapters(
    unet: UNet2DConditionModel,
    dtype: torch.dtype = torch.float32,
    base: BasePrecision = BasePrecision.FULL,
    **recipe: Any,
) -> tuple[UNet2DConditionModel, FlatParameters]:
    """Return a copy of the UNet with randomly initialised fused adapters, and their flat parameters."""
    chosen = Recipe.parse(RECIPE | recipe)
    unet = deepcopy(unet).to(dtype).requires_grad_(False)
    quantize(unet, base, dtype, torch.device("cpu"))
    adapters = add_adapters(unet, [], chosen)
    weights = FlatParameters(parameter_groups(adapters, chosen), ParameterLayout.FLAT, adapters, dtype)
    with torch.no_grad():
        for flat in weights.flat:
            flat.copy_(torch.randn(flat.shape, generator=torch.Generator().manual_seed(5)) / 5)
    weights.sync_half_copies()
    return unet, weights


def layers(unet: UNet2DConditionModel, kind: str, count: int = 3) -> list[FusedLoraLinear]:
    """Return the last `count` of query, key and value of the first self- (attn1) or cross-attention (attn2)."""
    attn: Any = next(module for name, module in unet.named_modules() if name.endswith(kind))
    return [attn.to_q, attn.to_k, attn.to_v][3 - count :]


@pytest.mark.parametrize(("kind", "count"), [("attn1", 3), ("attn2", 2)])
@pytest.mark.parametrize("requires_grad", [True, False], ids=["input requires grad", "input is fixed"])
@pytest.mark.parametrize(
    ("dtype", "close"),
    [
        (torch.float32, 1e-5),
        (torch.bfloat16, 0.02),
        pytest.param(torch.float16, 0.002, marks=pytest.mark.slow),
    ],
)
def test_output_and_gradients_are_those_of_separate_layers(
    unet: UNet2DConditionModel, kind: str, count: int, requires_grad: bool, dtype: torch.dtype, close: float
) -> None:
    """The input is fp32, as a norm returns it under autocast; outputs have different factors in the loss."""
    results: list[list[Tensor]] = []
    for fused in (False, True):
        model, weights = with_fused_adapters(unet, dtype)
        parts = layers(model, kind, count)
        projections = fuse_projections(parts)
        assert projections
        x = torch.randn((2, 5, parts[0].in_features), generator=torch.Generator().manual_seed(6)).requires_grad_(
            requires_grad
        )
        outputs = projections(x) if fused else tuple(part(x) for part in parts)
        sum((number * output.float().sin()).sum() for number, output in enumerate(outputs, 1)).backward()
        weights.accumulate_gradients()
        results.append([*outputs, *weights.gradients, *([x.grad] if x.grad is not None else [])])
    assert len(results[0]) == count + 1 + requires_grad
    for separate, fused_result in zip(*results, strict=True):
        assert fused_result.dtype == separate.dtype
        assert separate.abs().max() > 0.1
        assert (fused_result - separate).norm() <= close * separate.norm()


def test_projections_of_several_parameter_groups_are_fused(unet: UNet2DConditionModel) -> None:
    model, weights = with_fused_adapters(unet, loraplus_lr_ratio=4, down_lr_weight="cosine+.2")
    assert len(weights.flat) > 2
    assert fuse_projections(layers(model, "attn1"))
    assert fuse_projections(layers(model, "attn2", 2))


def test_fused_weights_take_no_additional_memory(unet: UNet2DConditionModel) -> None:
    model, _ = with_fused_adapters(unet)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    projections = fuse_projections(layers(model, "attn1"))
    assert projections
    parts = [layer.get_base_layer().weight for layer in layers(model, "attn1")]
    assert {part.untyped_storage().data_ptr() for part in parts} == {projections.weight.untyped_storage().data_ptr()}
    assert projections.weight.untyped_storage().nbytes() == sum(part.nbytes for part in parts)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def other_scale(parts: list[FusedLoraLinear]) -> None:
    fused_lora = parts[1].fused_lora
    assert fused_lora
    parts[1].scaling["default"] *= 2
    parts[1].fuse(fused_lora.a, fused_lora.b, fused_lora.grad_buffers)


def other_storage(parts: list[FusedLoraLinear]) -> None:
    fused_lora = parts[1].fused_lora
    assert fused_lora
    parts[1].fuse(fused_lora.a.detach().clone().requires_grad_(), fused_lora.b, fused_lora.grad_buffers)


def with_bias(parts: list[FusedLoraLinear]) -> None:
    base = parts[1].get_base_layer()
    base.bias = nn.Parameter(torch.ones(base.out_features), requires_grad=False)


@pytest.mark.parametrize("change", [other_scale, other_storage, with_bias])
def test_layers_of_different_scale_storage_or_bias_are_not_fused(unet: UNet2DConditionModel, change: Any) -> None:
    model, _ = with_fused_adapters(unet)
    parts = layers(model, "attn1")
    change(parts)
    assert fuse_projections(parts) is None


@pytest.mark.parametrize(
    "options",
    [{"network_type": "DoRA"}, {"network_dropout": 0.1}, {"network_type": "LoHa"}, {"base": BasePrecision.INT8}],
    ids=["DoRA", "dropout", "LoHa", "int8"],
)
def test_only_plain_loras_on_plain_layers_are_fused(unet: UNet2DConditionModel, options: dict[str, Any]) -> None:
    if "base" in options:
        pytest.importorskip("bitsandbytes")
    model, _ = with_fused_adapters(unet, **options)
    assert fuse_projections(layers(model, "attn1")) is None


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_attention_with_a_disabled_adapter_computes_through_peft(unet: UNet2DConditionModel, kind: str) -> None:
    model, _ = with_fused_adapters(unet)
    plain = deepcopy(model)
    use_plain_attention(model)
    results = []
    for each in (model, plain):
        attn: Any = next(module for name, module in each.named_modules() if name.endswith(kind))
        assert isinstance(attn, Attention)
        attn.to_v.enable_adapters(enabled=False)
        source = torch.Generator().manual_seed(7)
        x = torch.randn((1, 6, attn.to_q.in_features), generator=source)
        text = torch.randn((1, 4, attn.to_k.in_features), generator=source) if kind == "attn2" else None
        results.append(attn(x, text))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_every_attention_of_a_unet_is_fused(unet: UNet2DConditionModel) -> None:
    model, _ = with_fused_adapters(unet)
    use_plain_attention(model)
    processors = [module.processor for module in model.modules() if isinstance(module, Attention)]
    assert {
        len(one.projections.layers) for one in processors if isinstance(one, PlainAttention) and one.projections
    } == {2, 3}
    assert all(isinstance(one, PlainAttention) and one.projections for one in processors)
