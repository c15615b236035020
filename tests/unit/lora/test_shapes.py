"""Dim, alpha, factors and parameter counts of the layers that a recipe trains."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lokr.layer import factorization

from lora_studio.lora.shapes import Layer, LayerRole, layer_dim_alpha, lokr_factors, tensor_shapes
from lora_studio.planning.memory import SDXL, estimate_vram_parts, lora_weights
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.settings.recipe import Recipe


def test_dim_and_alpha_follow_the_recipe() -> None:
    wide, conv = (
        Layer("unet", LayerRole.ATTENTION, "in4", 640, 640),
        Layer("unet", LayerRole.CONVOLUTION, "in4", 640, 320, 3),
    )
    plain = Recipe(network_dim=16, network_alpha=8)
    assert layer_dim_alpha(plain, wide) == (16, 8)
    assert layer_dim_alpha(plain, conv) is None
    assert layer_dim_alpha(Recipe.parse({"network_dim": 16, "network_alpha": 8, "network_type": "LoCon"}), conv) == (
        16,
        8,
    )
    locon = Recipe.parse({"network_dim": 16, "network_alpha": 8, "network_type": "LoCon", "conv_dim": 4})
    assert (layer_dim_alpha(locon, wide), layer_dim_alpha(locon, conv)) == ((16, 8), (4, 2))
    blocks = Recipe(network_dim=16, network_alpha=8, block_dims="in4=4, in5=0")
    assert layer_dim_alpha(blocks, wide) == (4, 8)  # as in kohya's block_dims, alpha stays
    assert layer_dim_alpha(blocks, Layer("unet", LayerRole.ATTENTION, "in5", 640, 640)) is None
    assert layer_dim_alpha(blocks, Layer("te1", LayerRole.ATTENTION, "", 768, 768)) == (16, 8)
    stable = Recipe(network_dim=16, network_alpha=8, rank_stabilized=True)
    assert layer_dim_alpha(stable, wide) == (16, 32)  # 32 / 16 = 8 / sqrt(16)
    assert layer_dim_alpha(Recipe(unet_lr=0), wide) is None


@given(size=st.integers(1, 12_000), factor=st.just(-1) | st.integers(1, 64))
def test_lokr_factors_are_pefts(size: int, factor: int) -> None:
    assert lokr_factors(size, factor) == factorization(size, factor)


def test_parameter_counts_of_all_network_types_on_sdxl() -> None:
    base: dict[str, Any] = {"network_dim": 8, "network_alpha": 4, "text_encoder_lr": 0}
    lora = lora_weights(Recipe.parse(base))
    assert lora == 8 * 2_659_840
    assert lora_weights(Recipe.parse(base | {"network_type": "LoHa"})) == 2 * lora
    trained = [(layer, count) for layer, count in SDXL.layers.items() if layer_dim_alpha(Recipe.parse(base), layer)]
    dora = base | {"network_type": "DoRA"}
    assert lora_weights(Recipe.parse(dora)) == lora + sum(layer.inputs * count for layer, count in trained)
    per_output = Recipe.parse(dora | {"save_format": "diffusers"})
    assert lora_weights(per_output) == lora + sum(layer.outputs * count for layer, count in trained)
    assert lora_weights(Recipe.parse(base | {"network_type": "LoKr"})) < lora / 8
    halves = Recipe.parse(base | {"network_type": "LoHa", "gradient_checkpointing": False, "mixed_precision": "bf16"})
    products = estimate_vram_parts(halves)["Adapter products"]
    assert products == pytest.approx(2 * 0.87 * 2_567_463_684 / 2**30, rel=0.02)  # 87 % of the UNet is linear
    saved = halves.model_copy(update={"gradient_checkpointing": GradientCheckpointing.ON})
    assert estimate_vram_parts(saved)["Adapter products"] < products / 5
    assert "Adapter products" not in estimate_vram_parts(Recipe.parse(base))


def test_a_lokr_of_dim_10000_has_its_large_matrix_whole_in_every_layer_of_sdxl() -> None:
    """LyCORIS' full matrix: `lokr_w1` and `lokr_w2` alone, never scaled; alpha must fit in a file's 16 bits."""
    values = {"network_type": "LoKr", "train_layers": "all", "lokr_factor": 6, "conv_dim": 10_000}
    recipe = Recipe.parse(values | {"network_dim": 10_000, "network_alpha": 1})
    assert recipe.is_full_matrix
    for layer in SDXL.layers:
        dims = layer_dim_alpha(recipe, layer)
        assert dims is not None
        assert dims.alpha == dims.dim < 2**15
        for dim in (dims.dim, 10_000):
            shapes = tensor_shapes(recipe, layer, dim)
            assert shapes.keys() == {"lokr_w1", "lokr_w2"}
            (rows, columns), (more_rows, more_columns, *_) = shapes["lokr_w1"], shapes["lokr_w2"]
            assert (rows * more_rows, columns * more_columns) == (layer.outputs, layer.inputs)
            assert rows <= 6 >= columns
