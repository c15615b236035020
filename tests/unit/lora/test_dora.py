"""DoRA: gradients, magnitudes along both axes, and the weights that other programs compute from the files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from lora_studio.lora.dora import DoraMagnitude, init_dora_magnitude
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.inject import inject, layer_tensors
from lora_studio.lora.layers import find_target_layers
from lora_studio.lora.save import save_lora
from lora_studio.lora.shapes import DimAlpha, DoraAxis
from lora_studio.sampling.adapter import apply_lora
from lora_studio.settings.choices import NetworkType
from tests.support.networks import add_random_adapters, eval_pipeline, recipe_of, unet_output, write_lora

DIM, ALPHA = 2, 3.0
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1), (2, 4, 6, 6)),
    "1x1": (lambda: nn.Conv2d(4, 5, 1, bias=False), (2, 4, 3, 3)),
}


def dora_layer(base: nn.Module, axis: DoraAxis, *, random: bool = True, dropout: float = 0.0) -> nn.Module:
    """Return the base layer as a DoRA, with random factors and magnitudes if `random`."""
    parent = nn.Sequential(base.requires_grad_(False))
    inject(parent, NetworkType.DORA, {"0": DimAlpha(DIM, ALPHA)}, "default", dropout=dropout)
    init_dora_magnitude(parent[0], "default", axis)
    if random:
        with torch.no_grad():
            for weight in layer_tensors(parent[0]).values():
                weight += 0.3 * torch.randn(weight.shape, dtype=weight.dtype)
    return parent[0]


def merged_weight(weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor, axis: DoraAxis) -> Tensor:
    """Return m / ||W + D|| (W + D), where the norm is a constant (Liu et al. 2024, sections 4.1 and 4.3)."""
    whole = weight + ALPHA / DIM * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    sides = [side for side in range(weight.dim()) if side != axis]
    norms = whole.detach().square().sum(sides, keepdim=True).sqrt()
    return magnitude.view(norms.shape) / norms * whole


def apply_base(base: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(base, nn.Conv2d):
        return functional.conv2d(x, weight, base.bias, base.stride, base.padding)
    return functional.linear(x, weight, base.bias)


@pytest.mark.parametrize("axis", DoraAxis)
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_equal_those_of_the_merged_weight(kind: str, axis: DoraAxis) -> None:
    torch.manual_seed(1)
    make, shape = LAYERS[kind]
    base = make().double()
    layer = dora_layer(base, axis)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parts = list(layer_tensors(layer).values())
    assert {part.dtype for part in parts} == {torch.float64}
    found = layer(x)
    expected = apply_base(base, merged_weight(base.weight, *parts, axis), x)
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-13)
    gradient = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, [x, *parts], gradient),
        torch.autograd.grad(expected, [x, *parts], gradient),
        atol=1e-13,
        rtol=1e-13,
    )


@pytest.mark.parametrize("axis", DoraAxis)
@pytest.mark.parametrize("kind", LAYERS)
def test_an_untrained_dora_changes_nothing(kind: str, axis: DoraAxis) -> None:
    torch.manual_seed(1)
    make, shape = LAYERS[kind]
    base = make()
    with torch.no_grad():
        base.weight.select(axis, 1).zero_()  # its norm is 0
    x = torch.randn(shape)
    found = dora_layer(base, axis, random=False)(x)
    torch.testing.assert_close(found, base(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("axis", DoraAxis)
def test_norms_on_a_half_precision_base_are_fp32(axis: DoraAxis) -> None:
    """bfloat16 rounds a norm by up to 0.4 %, more than a magnitude changes in many steps."""
    torch.manual_seed(1)
    base = nn.Linear(64, 48).bfloat16()
    down, up = torch.randn(DIM, 64) / 8, torch.randn(48, DIM) / 8
    magnitude = DoraMagnitude(base.weight, axis)
    with torch.autocast("cpu", torch.bfloat16):
        factors = magnitude.factors(base.weight, down, up, ALPHA / DIM)
    exact = (base.weight.float() + ALPHA / DIM * up @ down).norm(dim=1 - axis)
    torch.testing.assert_close(magnitude.weight / factors, exact, atol=0, rtol=1e-5)
    assert factors.dtype == torch.float32


@pytest.mark.parametrize("kind", LAYERS)
def test_computes_shapes_on_the_meta_device(kind: str) -> None:
    make, shape = LAYERS[kind]
    with torch.device("meta"):
        layer = dora_layer(make(), DoraAxis.INPUT)
        found = layer(torch.empty(shape))
    assert (found.shape, found.device.type) == (layer.get_base_layer()(torch.empty(shape, device="meta")).shape, "meta")


@pytest.mark.parametrize("axis", DoraAxis)
def test_dropout_is_on_the_inputs_of_the_change(axis: DoraAxis) -> None:
    torch.manual_seed(1)
    base = nn.Linear(6, 5)
    layer = dora_layer(base, axis, dropout=0.5)
    merged = merged_weight(base.weight, *layer_tensors(layer).values(), axis)
    x = torch.randn(7, 6)
    torch.manual_seed(2)
    dropped = functional.dropout(x, 0.5)
    torch.manual_seed(2)
    found = layer(x)
    torch.testing.assert_close(found, base(x) + functional.linear(dropped, merged - base.weight))
    assert not torch.allclose(found, functional.linear(x, merged, base.bias))


# Each program's change of a weight W at strength 1, from D = up @ down without alpha / dim, alpha / dim and dora_scale.


def input_norms(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (weight.dim() - 2))


def a1111(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    whole = weight + scale * product
    return whole * (magnitude / input_norms(whole)) - weight


def a1111_scaled_late(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """A1111 1.9 and several forks: alpha / dim is multiplied last."""
    whole = weight + product
    return scale * (whole * (magnitude / input_norms(whole)) - weight)


def comfyui(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """ComfyUI and Forge: norms of the outputs would be W's, not those of W + D."""
    whole = weight + scale * product
    per_output = magnitude.shape[0] == weight.shape[0]
    norms = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1)) if per_output else input_norms(whole)
    return whole * (magnitude / norms) - weight


def lycoris(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """LyCORIS and OneTrainer, by the shape of dora_scale."""
    whole = weight + scale * product
    axis = 1 if magnitude.shape[0] == 1 else 0
    sides = [side for side in range(weight.dim()) if side != axis]
    return whole * (magnitude / whole.square().sum(sides, keepdim=True).sqrt()) - weight


PROGRAMS = (a1111, a1111_scaled_late, comfyui, lycoris)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    return eval_pipeline(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def trained(bare: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A file with random weights in all layers, and the UNet's output with the adapters in memory."""
    pipe, recipe = copy.deepcopy(bare), recipe_of("DoRA")
    adapters = add_random_adapters(pipe, recipe)
    path = write_lora(tmp_path_factory.mktemp("file") / "x.safetensors", pipe, adapters, recipe)
    return path, unet_output(pipe)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_program_computes_the_trained_weights(
    program: Callable[..., Tensor], bare: StableDiffusionXLPipeline, trained: tuple[Path, Tensor]
) -> None:
    path, expected = trained
    parts = load_file(path)
    pipe = copy.deepcopy(bare)
    models = {"unet": pipe.unet, "te1": pipe.text_encoder, "te2": pipe.text_encoder_2}
    targets = find_target_layers(pipe.unet, [pipe.text_encoder, pipe.text_encoder_2])
    for target in targets:
        name = target.kohya_name
        weight = models[target.model].get_parameter(f"{target.path}.weight").data
        down, up = parts[f"{name}.lora_down.weight"], parts[f"{name}.lora_up.weight"]
        assert parts[f"{name}.dora_scale"].shape == (1, weight.shape[1], *[1] * (weight.dim() - 2))
        product = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
        scale = float(parts[f"{name}.alpha"]) / len(down)
        weight += program(weight.clone(), product, scale, parts[f"{name}.dora_scale"])
    assert (expected - unet_output(bare)).abs().max() > 0.1
    torch.testing.assert_close(unet_output(pipe), expected, atol=1e-5, rtol=1e-5)


def test_reads_magnitudes_per_input_beside_diffusers_names(
    bare: StableDiffusionXLPipeline, trained: tuple[Path, Tensor], tmp_path: Path
) -> None:
    """OneTrainer writes dora_scale [1, in, ...] beside the names of diffusers' and peft's format."""
    path, expected = trained
    parts = load_file(path)
    prefixes = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    pipe = copy.deepcopy(bare)
    renamed = {
        f"{prefixes[target.model]}.{target.path}.{ends.get(part, part)}": parts[f"{target.kohya_name}.{part}"]
        for target in find_target_layers(pipe.unet, [pipe.text_encoder, pipe.text_encoder_2])
        for part in ("lora_down.weight", "lora_up.weight", "dora_scale")
    }
    save_lora(tmp_path / "x.safetensors", renamed, {})
    with apply_lora(pipe, read_lora_header(tmp_path / "x.safetensors")):
        torch.testing.assert_close(unet_output(pipe), expected, atol=1e-5, rtol=1e-5)
