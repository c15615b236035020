"""The layers of SDXL that can have an adapter, and their names in kohya's files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lora_studio.demo import base_path
from lora_studio.lora.layers import TargetLayer, find_target_layers
from lora_studio.lora.shapes import layer_dim_alpha
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.planning.memory import EMBEDDED, SDXL, Architecture
from lora_studio.settings.blocks import BLOCKS
from lora_studio.settings.recipe import Recipe


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
def test_the_planned_layers_are_those_of_the_model(folder: Path, shape: Architecture) -> None:
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
def test_number_of_trained_layers_of_sdxl(sdxl: list[TargetLayer], layers: str, counts: dict[str, int]) -> None:
    recipe = Recipe.parse({"train_layers": layers})
    assert Counter(target.model for target in sdxl if layer_dim_alpha(recipe, target.layer)) == counts


def test_layers_outside_the_transformers_have_stabilitys_names(sdxl: list[TargetLayer]) -> None:
    """In `input_blocks` resnets are at .0, in `output_blocks` upsamplers are at .2."""
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


def test_kohya_names_are_unique(sdxl: list[TargetLayer]) -> None:
    assert len({target.kohya_name for target in sdxl}) == len(
        {target.path.replace(".", "_") + target.model for target in sdxl}
    )
    assert all(target.layer.block in BLOCKS for target in sdxl if target.model == "unet")
