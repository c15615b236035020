"""Layers with one input as one: the numbers of the layers by themselves, in the memory that they have anyway."""

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


def settled(
    unet: UNet2DConditionModel,
    dtype: torch.dtype = torch.float32,
    base: BasePrecision = BasePrecision.FULL,
    **recipe: Any,
) -> tuple[UNet2DConditionModel, FlatParameters]:
    """A copy of the UNet with adapters whose weights are random, and these weights in one piece."""
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
    """The last `count` of query, key and value of the first attention of a kind: to itself, or to the text."""
    attn: Any = next(module for name, module in unet.named_modules() if name.endswith(kind))
    return [attn.to_q, attn.to_k, attn.to_v][3 - count :]


@pytest.mark.parametrize(("kind", "count"), [("attn1", 3), ("attn2", 2)])
@pytest.mark.parametrize("learns", [True, False], ids=["input learns", "input is fixed"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.002)])
def test_joined_layers_give_what_they_give_by_themselves(
    unet: UNet2DConditionModel, kind: str, count: int, learns: bool, dtype: torch.dtype, close: float
) -> None:
    """For an input in fp32, as a norm gives it under autocast; the answers weigh differently in the gradients."""
    results: list[list[Tensor]] = []
    for together in (False, True):
        model, weights = settled(unet, dtype)
        parts = layers(model, kind, count)
        projections = fuse_projections(parts)
        assert projections
        x = torch.randn((2, 5, parts[0].in_features), generator=torch.Generator().manual_seed(6)).requires_grad_(learns)
        answers = projections(x) if together else tuple(part(x) for part in parts)
        sum((number * answer.float().sin()).sum() for number, answer in enumerate(answers, 1)).backward()
        weights.accumulate_gradients()
        results.append([*answers, *weights.gradients, *([x.grad] if x.grad is not None else [])])
    assert len(results[0]) == count + 1 + learns
    for apart, one in zip(*results, strict=True):
        assert one.dtype == apart.dtype
        assert apart.abs().max() > 0.1
        assert (one - apart).norm() <= close * apart.norm()


def test_joined_weights_take_no_more_memory(unet: UNet2DConditionModel) -> None:
    model, _ = settled(unet)
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


def elsewhere(parts: list[FusedLoraLinear]) -> None:
    fused_lora = parts[1].fused_lora
    assert fused_lora
    parts[1].fuse(fused_lora.a.detach().clone().requires_grad_(), fused_lora.b, fused_lora.grad_buffers)


def with_bias(parts: list[FusedLoraLinear]) -> None:
    base = parts[1].get_base_layer()
    base.bias = nn.Parameter(torch.ones(base.out_features), requires_grad=False)


@pytest.mark.parametrize("change", [other_scale, elsewhere, with_bias])
def test_layers_that_are_not_alike_stay_apart(unet: UNet2DConditionModel, change: Any) -> None:
    model, _ = settled(unet)
    parts = layers(model, "attn1")
    change(parts)
    assert fuse_projections(parts) is None


@pytest.mark.parametrize(
    "options",
    [{"network_type": "DoRA"}, {"network_dropout": 0.1}, {"network_type": "LoHa"}, {"base": BasePrecision.INT8}],
    ids=["DoRA", "dropout", "LoHa", "int8"],
)
def test_what_is_not_a_plain_lora_on_a_plain_layer_stays_apart(
    unet: UNet2DConditionModel, options: dict[str, Any]
) -> None:
    if "base" in options:
        pytest.importorskip("bitsandbytes")
    model, _ = settled(unet, **options)
    assert fuse_projections(layers(model, "attn1")) is None


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_attention_with_a_layer_switched_off_is_pefts(unet: UNet2DConditionModel, kind: str) -> None:
    model, _ = settled(unet)
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


def test_every_attention_of_a_settled_unet_is_joined(unet: UNet2DConditionModel) -> None:
    model, _ = settled(unet)
    use_plain_attention(model)
    processors = [module.processor for module in model.modules() if isinstance(module, Attention)]
    assert {
        len(one.projections.layers) for one in processors if isinstance(one, PlainAttention) and one.projections
    } == {2, 3}
    assert all(isinstance(one, PlainAttention) and one.projections for one in processors)
