"""A LoHa of a convolution with Tucker cores: its product, and gradients that are those of this product."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_studio.lora.deltas import tucker_product
from lora_studio.lora.inject import inject, layer_tensors
from lora_studio.lora.shapes import DimAlpha
from lora_studio.lora.tucker import TuckerLohaConv2d
from lora_studio.settings.choices import NetworkType


def make_layer(rank_dropout: float = 0.0) -> tuple[nn.Module, TuckerLohaConv2d]:
    """Return a model of one convolution with 6 inputs and 5 outputs, and its layer of rank 3 with random factors."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1))
    dims = {"0": DimAlpha(3, 1.5)}
    inject(model, NetworkType.LOHA, dims, "default", tucker=True, rank_dropout=rank_dropout)
    layer = model[0]
    assert isinstance(layer, TuckerLohaConv2d)
    with torch.no_grad():
        for factor in layer_tensors(layer).values():
            factor.normal_()
    return model, layer


def kernel_of(factors: dict[str, torch.Tensor]) -> torch.Tensor:
    first, second = (
        tucker_product(*(factors[f"hada_{name}"] for name in (f"t{side}", f"w{side}_a", f"w{side}_b"))) for side in "12"
    )
    return 0.5 * first * second


def test_the_product_is_core_times_matrices() -> None:
    core, left, right = torch.randn(2, 3, 4, 4), torch.randn(2, 5), torch.randn(3, 6)
    expected = torch.zeros(5, 6, 4, 4)
    for i in range(2):
        for j in range(3):
            expected += core[i, j] * left[i].view(-1, 1, 1, 1) * right[j].view(1, -1, 1, 1)
    torch.testing.assert_close(tucker_product(core, left, right), expected)


def test_output_and_gradients_are_those_of_the_product() -> None:
    model, layer = make_layer()
    factors = layer_tensors(layer)
    assert factors["hada_t1"].shape == (3, 3, 3, 3)
    x = torch.randn(2, 6, 4, 4)
    copies = {name: factor.detach().double().requires_grad_() for name, factor in factors.items()}
    base = layer.get_base_layer()
    expected = nn.functional.conv2d(x.double(), base.weight.double() + kernel_of(copies), base.bias.double(), padding=1)
    result = model(x)
    torch.testing.assert_close(result, expected.float(), atol=1e-4, rtol=1e-4)
    result.square().sum().backward()
    expected.square().sum().backward()
    for name, factor in factors.items():
        torch.testing.assert_close(factor.grad, copies[name].grad.float(), atol=1e-2, rtol=1e-4, msg=name)


def test_in_half_precision_gradients_are_fp32_and_close() -> None:
    model, layer = make_layer()
    x = torch.randn(2, 6, 4, 4)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(x).float().square().mean()
        model.zero_grad()
        loss.backward()
        found.append([factor.grad for factor in layer_tensors(layer).values()])
    for exact, half in zip(*found, strict=True):
        assert half.dtype == torch.float32
        assert float((half - exact).norm() / exact.norm()) < 0.05


def test_rank_dropout_drops_rows_and_keeps_their_mean() -> None:
    model, layer = make_layer(rank_dropout=0.5)
    whole = layer.get_delta_weight("default")
    dropped = layer.get_delta_weight("default", apply_rank_dropout=True)
    factors = (dropped / whole).flatten(1)
    assert torch.allclose(factors, factors[:, :1].expand_as(factors))
    rows = factors[:, 0]
    assert {round(float(row), 4) for row in rows} == {0.0, round(len(rows) / int((rows > 0).sum()), 4)}
    model.train()
    x = torch.ones(1, 6, 4, 4)
    assert len({float(model(x).sum()) for _ in range(8)}) > 1
    model.eval()
    assert float(model(x).sum()) == pytest.approx(float(model(x).sum()))
