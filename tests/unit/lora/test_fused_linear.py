"""The fused LoRA layer has the outputs and gradients of peft's layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from lora_studio.lora.fused_linear import FusedLora, FusedLoraLinear, _FusedLoraProduct

INPUTS, OUTPUTS, RANK = 12, 20, 3


def layer(*, fused: bool, bias: bool = True, dtype: torch.dtype = torch.float32, **config: Any) -> Linear:
    """Return peft's LoRA layer or the fused one, with the same non-zero weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=bias)).requires_grad_(False)
    chosen = LoraConfig(r=RANK, lora_alpha=5, target_modules=["0"], init_lora_weights=False, **config)
    if fused:
        chosen._register_custom_module({nn.Linear: FusedLoraLinear})
    inject_adapter_in_model(chosen, model)
    found: Linear = model.to(dtype)[0]
    if isinstance(found, FusedLoraLinear) and found.is_fusable():
        a, b = factors(found)
        found.fuse(a, b, (torch.zeros_like(a), torch.zeros_like(b)))
    return found


def factors(module: Linear) -> tuple[nn.Parameter, nn.Parameter]:
    return module.lora_A["default"].weight, module.lora_B["default"].weight


def output_and_gradients(module: Linear, x: Tensor) -> list[Tensor]:
    """Return the layer's output y, and the gradients of sum(sin(y)) for x, A and B."""
    x = x.clone().requires_grad_()
    y = module(x)
    y.float().sin().sum().backward()
    assert x.grad is not None
    if isinstance(module, FusedLoraLinear):
        assert module.fused_lora
        return [y, x.grad, *module.fused_lora.grad_buffers]
    return [y, x.grad, *(weight.grad for weight in factors(module) if weight.grad is not None)]


@pytest.mark.parametrize("shape", [(7, INPUTS), (2, 5, INPUTS)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_pefts_layer(shape: tuple[int, ...], bias: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = layer(fused=True, bias=bias), layer(fused=False, bias=bias)
    for actual, reference in zip(output_and_gradients(ours, x), output_and_gradients(theirs, x), strict=True):
        torch.testing.assert_close(actual, reference, atol=1e-6, rtol=1e-5)


def test_gradients_are_those_of_autograd() -> None:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=source)

    source = torch.Generator().manual_seed(3)
    x, a, b = (values.requires_grad_() for values in (random(2, 4, 5), random(3, 5), random(6, 3)))
    base = nn.Linear(5, 6).double().requires_grad_(False)
    fused_lora = FusedLora(base, a, b, 0.7, (random(3, 5), random(6, 3)))
    before = [buffer.clone() for buffer in fused_lora.grad_buffers]
    grad = random(2, 4, 6)
    [for_x] = torch.autograd.grad(_FusedLoraProduct.apply(x, None, fused_lora), x, grad)
    expected = torch.autograd.grad(base(x) + 0.7 * (x @ a.T) @ b.T, (x, a, b), grad)
    added = [buffer - old for buffer, old in zip(fused_lora.grad_buffers, before, strict=True)]
    for actual, reference in zip([for_x, *added], expected, strict=True):
        torch.testing.assert_close(actual, reference, atol=1e-12, rtol=1e-12)


def test_weights_get_gradients_if_the_input_requires_none() -> None:
    x = torch.randn((7, INPUTS), generator=torch.Generator().manual_seed(2))
    ours, theirs = layer(fused=True), layer(fused=False)
    ours(x).sin().sum().backward()
    for actual, reference in zip(ours.fused_lora.grad_buffers, output_and_gradients(theirs, x)[2:], strict=True):
        torch.testing.assert_close(actual, reference, atol=1e-6, rtol=1e-5)


def test_computes_in_half_precision_under_autocast() -> None:
    x = torch.randn((7, INPUTS), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        actual, reference = (
            output_and_gradients(layer(fused=fused, dtype=torch.bfloat16), x) for fused in (True, False)
        )
    assert actual[0].dtype == reference[0].dtype == torch.bfloat16
    for one, two in zip(actual, reference, strict=True):
        torch.testing.assert_close(one, two, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        ({"lora_dropout": 0.5}, lambda module: None),
        ({"use_dora": True}, lambda module: None),
        ({"lora_bias": True}, lambda module: None),
        ({}, lambda module: module.enable_adapters(enabled=False)),
        ({}, lambda module: module.merge()),
    ],
    ids=["dropout", "DoRA", "bias", "disabled", "merged"],
)
def test_layers_that_cannot_be_fused_compute_through_peft(config: dict[str, Any], change: Any) -> None:
    x = torch.randn((7, INPUTS), generator=torch.Generator().manual_seed(2))
    ours, theirs = layer(fused=True, **config), layer(fused=False, **config)
    for module in (ours, theirs):
        change(module)
    torch.manual_seed(1)
    expected = theirs(x)
    torch.manual_seed(1)
    assert torch.equal(ours(x), expected)
