"""Which layers a recipe trains, and how many weights that makes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lokr.layer import factorization
from transformers import CLIPTextConfig, CLIPTextModel

from lora_studio.demo import base_path
from lora_studio.lora.inject import add_adapters, layer_tensors
from lora_studio.lora.layers import TargetLayer, find_target_layers
from lora_studio.lora.shapes import Layer, LayerRole, layer_dim_alpha, lokr_factors, tensor_shapes
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.planning.memory import EMBEDDED, SDXL, Architecture, estimate_vram_parts, lora_weights
from lora_studio.settings.block_dims import BLOCKS
from lora_studio.settings.choices import GradientCheckpointing
from lora_studio.settings.recipe import Recipe
from lora_studio.training.reporting.network_metadata import build_network_metadata
from tests.support.tiny_sdxl import make_pipeline


@pytest.fixture(scope="module")
def sdxl() -> list[TargetLayer]:
    return target_layers_of(SDXL_CONFIG)


def target_layers_of(folder: Path) -> list[TargetLayer]:
    def config(part: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((folder / part / "config.json").read_text("utf-8"))
        return values

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config("unet"))
        encoders = [CLIPTextModel(CLIPTextConfig(**config(part))) for part in ("text_encoder", "text_encoder_2")]
    return find_target_layers(unet, encoders)


@pytest.mark.parametrize(("folder", "shape"), [(SDXL_CONFIG, SDXL), (base_path(), EMBEDDED)], ids=["SDXL", "embedded"])
def test_the_layers_that_plans_count_with_are_the_models(folder: Path, shape: Architecture) -> None:
    assert Counter(target.layer for target in target_layers_of(folder)) == shape.layers


@pytest.mark.parametrize(
    ("layers", "counts"),
    [
        ("attention", {"unet": 70 * 8, "te1": 48, "te2": 128}),
        ("attention_ff", {"unet": 722, "te1": 72, "te2": 192}),
        # 17 resnets have a linear layer each, 11 of them a 1x1 convolution too
        ("linear", {"unet": 722 + 17 + 11, "te1": 72, "te2": 192}),
        ("all", {"unet": 722 + 17 + 11 + 2 * 17 + 2 + 2, "te1": 72, "te2": 192}),
    ],
)
def test_how_many_layers_of_sdxl_are_trained(sdxl: list[TargetLayer], layers: str, counts: dict[str, int]) -> None:
    recipe = Recipe.parse({"train_layers": layers})
    assert Counter(target.model for target in sdxl if layer_dim_alpha(recipe, target.layer)) == counts


def test_convolutions_have_the_names_of_stabilitys_code(sdxl: list[TargetLayer]) -> None:
    """Of the layers outside the transformers: `input_blocks` has resnets at .0, `output_blocks` upsamplers at .2."""
    names = {target.kohya_name for target in sdxl if ".attentions." not in target.path and target.model == "unet"}
    expected = set()
    resnets = [f"input_blocks_{number}_0" for number in (1, 2, 4, 5, 7, 8)]
    resnets += ["middle_block_0", "middle_block_2", *(f"output_blocks_{number}_0" for number in range(9))]
    for resnet in resnets:
        expected |= {f"lora_unet_{resnet}_{layer}" for layer in ("in_layers_2", "out_layers_3", "emb_layers_1")}
    wider = ["input_blocks_4_0", "input_blocks_7_0", *(f"output_blocks_{number}_0" for number in range(9))]
    expected |= {f"lora_unet_{resnet}_skip_connection" for resnet in wider}
    expected |= {f"lora_unet_input_blocks_{number}_0_op" for number in (3, 6)}
    expected |= {f"lora_unet_output_blocks_{number}_2_conv" for number in (2, 5)}
    assert names == expected
    paths = {target.kohya_name: target.path for target in sdxl}
    assert paths["lora_unet_input_blocks_6_0_op"] == "down_blocks.1.downsamplers.0.conv"
    assert paths["lora_unet_output_blocks_5_2_conv"] == "up_blocks.1.upsamplers.0.conv"
    assert paths["lora_unet_input_blocks_4_0_skip_connection"] == "down_blocks.1.resnets.0.conv_shortcut"
    assert paths["lora_unet_output_blocks_8_0_emb_layers_1"] == "up_blocks.2.resnets.2.time_emb_proj"


def test_every_name_belongs_to_one_layer(sdxl: list[TargetLayer]) -> None:
    assert len({target.kohya_name for target in sdxl}) == len(
        {target.path.replace(".", "_") + target.model for target in sdxl}
    )
    assert all(target.layer.block in BLOCKS for target in sdxl if target.model == "unet")


NETWORKS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoCon": {"network_type": "LoCon", "conv_dim": 3, "conv_alpha": 1},
    "DoRA": {"network_type": "DoRA", "train_layers": "all"},
    "LoHa": {"network_type": "LoHa", "train_layers": "all"},
    "LoKr": {"network_type": "LoKr", "train_layers": "all", "network_dim": 1},
    "LoKr whole": {"network_type": "LoKr", "network_dim": 64, "lokr_factor": 4},
    "blocks": {"block_dims": "in=2, mid1=6, out0=0", "rank_stabilized": True},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_peft_makes_the_tensors_that_are_counted(network: str, tmp_path: Path) -> None:
    pipe = make_pipeline(tmp_path, layers=1)
    recipe = Recipe.parse({"network_dim": 4, "network_alpha": 2} | NETWORKS[network])
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    targets = {(target.model, target.path): target.layer for target in find_target_layers(pipe.unet, encoders)}
    expected = {
        target: layer_dim_alpha(recipe, layer) for target, layer in targets.items() if layer_dim_alpha(recipe, layer)
    }
    adapters = add_adapters(pipe.unet, encoders, recipe)
    assert {(model, path) for model, path, _ in adapters.layers} == set(expected)
    for model, path, layer in adapters.layers:
        size = expected[model, path]
        assert size is not None
        assert layer.scaling["default"] == pytest.approx(size.alpha / size.dim)
        shapes = tensor_shapes(recipe, targets[model, path], size.dim)
        made = {name: tensor.shape.numel() for name, tensor in layer_tensors(layer).items()}
        assert made == {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        assert all(tensor.dtype == torch.float32 and tensor.requires_grad for tensor in layer_tensors(layer).values())


def test_sizes_follow_the_recipe() -> None:
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
def test_lokr_cuts_sides_as_peft_does(size: int, factor: int) -> None:
    assert lokr_factors(size, factor) == factorization(size, factor)


def test_weights_of_all_types_on_sdxl() -> None:
    base: dict[str, Any] = {"network_dim": 8, "network_alpha": 4, "text_encoder_lr": 0}
    lora = lora_weights(Recipe.parse(base))
    assert lora == 8 * 2_659_840
    assert lora_weights(Recipe.parse(base | {"network_type": "LoHa"})) == 2 * lora
    rows = sum(
        layer.outputs * count for layer, count in SDXL.layers.items() if layer_dim_alpha(Recipe.parse(base), layer)
    )
    assert lora_weights(Recipe.parse(base | {"network_type": "DoRA"})) == lora + rows
    assert lora_weights(Recipe.parse(base | {"network_type": "LoKr"})) < lora / 8
    halves = Recipe.parse(base | {"network_type": "LoHa", "gradient_checkpointing": False, "mixed_precision": "bf16"})
    products = estimate_vram_parts(halves)["Adapter products"]
    assert products == pytest.approx(2 * 0.87 * 2_567_463_684 / 2**30, rel=0.02)  # 87 % of the UNet is linear
    saved = halves.model_copy(update={"gradient_checkpointing": GradientCheckpointing.ON})
    assert estimate_vram_parts(saved)["Adapter products"] < products / 5
    assert "Adapter products" not in estimate_vram_parts(Recipe.parse(base))


@pytest.mark.parametrize(
    ("values", "module", "arguments"),
    [
        ({}, "networks.lora", {}),
        ({"network_type": "LoCon", "conv_dim": 8}, "networks.lora", {"conv_dim": "8", "conv_alpha": "4"}),
        ({"block_dims": "mid=8"}, "networks.lora", {"block_dims": "0," + "32," * 9 + "8,8,8," + "32," * 9 + "0"}),
        (
            {"network_type": "DoRA"},
            "lycoris.kohya",
            {"algo": "locon", "preset": "attn-mlp", "dora_wd": "True", "wd_on_output": "True"},
        ),
        ({"network_type": "LoKr"}, "lycoris.kohya", {"algo": "lokr", "preset": "attn-mlp", "factor": "-1"}),
        (
            {"network_type": "LoHa", "train_layers": "all", "rank_stabilized": True},
            "lycoris.kohya",
            {"algo": "loha", "preset": "full", "conv_dim": "32", "conv_alpha": "16", "rs_lora": "True"},
        ),
        ({"train_layers": "attention"}, "lycoris.kohya", {"algo": "locon", "preset": "attn-only"}),
    ],
)
def test_metadata_names_the_network_as_sd_scripts_would(
    values: dict[str, Any], module: str, arguments: dict[str, str]
) -> None:
    found = build_network_metadata(Recipe.parse(values))
    assert (found["ss_network_module"], found["ss_network_args"]) == (module, arguments)
