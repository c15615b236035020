"""The network's metadata in a LoRA file, as sd-scripts writes it."""

from __future__ import annotations

from typing import Any

import pytest

from lora_studio.settings.recipe import Recipe
from lora_studio.training.reporting.network_metadata import build_network_metadata


@pytest.mark.parametrize(
    ("values", "module", "arguments"),
    [
        ({}, "networks.lora", {}),
        ({"network_type": "LoCon", "conv_dim": 8}, "networks.lora", {"conv_dim": "8", "conv_alpha": "4"}),
        ({"block_dims": "mid=8"}, "networks.lora", {"block_dims": "0," + "32," * 9 + "8,8,8," + "32," * 9 + "0"}),
        (
            {"network_type": "DoRA"},
            "lycoris.kohya",
            {"algo": "locon", "preset": "attn-mlp", "dora_wd": "True", "wd_on_output": "False"},
        ),
        ({"network_type": "LoKr"}, "lycoris.kohya", {"algo": "lokr", "preset": "attn-mlp", "factor": "-1"}),
        (
            {"network_type": "LoHa", "train_layers": "all", "rank_stabilized": True},
            "lycoris.kohya",
            {"algo": "loha", "preset": "full", "conv_dim": "32", "conv_alpha": "16", "rs_lora": "True"},
        ),
        (
            {"up_lr_weight": "zeros+.5", "mid_lr_weight": "mid0=2", "loraplus_unet_lr_ratio": 16},
            "networks.lora",
            {"loraplus_unet_lr_ratio": "16", "mid_lr_weight": "2,1,1", "up_lr_weight": ",".join(["0.5"] * 9)},
        ),
        ({"train_layers": "attention"}, "lycoris.kohya", {"algo": "locon", "preset": "attn-only"}),
    ],
)
def test_metadata_of_the_network_is_as_sd_scripts_writes_it(
    values: dict[str, Any], module: str, arguments: dict[str, str]
) -> None:
    found = build_network_metadata(Recipe.parse(values))
    assert (found["ss_network_module"], found["ss_network_args"]) == (module, arguments)
