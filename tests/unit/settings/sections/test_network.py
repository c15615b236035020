"""Settings of the network that contradict each other or are out of range."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lora_studio.errors import ConfigError
from lora_studio.settings.recipe import Recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_dims": "in9=8"}, "in0 to in8"),
        ({"block_dims": "in5-4=8"}, "in0 to in8"),
        ({"block_dims": "down=8"}, "'down=8' is not a block"),
        ({"block_dims": "8,8,8"}, "there are 3 numbers"),
        ({"block_dims": "mid=513"}, "above 512"),
        ({"conv_dim": 8}, "conv_dim is 8, but no convolution is trained"),
        ({"conv_alpha": 8}, "conv_alpha is 8, but no convolution"),
        ({"network_type": "LoCon", "train_layers": "attention"}, "Set train_layers to all"),
        ({"lokr_factor": 8}, "lokr_factor is 8, but network_type is LoRA"),
        ({"lokr_factor": 0, "network_type": "LoKr"}, "lokr_factor is 0"),
        ({"save_format": "diffusers", "network_type": "LoHa"}, "Set save_format to kohya"),
        ({"network_dropout": 1}, "less than or equal to 0.9"),
        ({"network_dim": 100_000}, "network_dim is 100000, which LoKr alone can have"),
        ({"network_type": "LoCon", "conv_dim": 513}, "conv_dim is 513"),
        ({"network_type": "LoKr", "network_dropout": 0.1, "rank_dropout": 0.2}, "the same for LoKr"),
        ({"network_type": "LoCon", "use_tucker": True}, "use_tucker is on"),
        ({"dim_from_weights": True, "block_dims": "mid=8"}, "but block_dims is set too"),
        ({"dim_from_weights": True, "rank_stabilized": True}, "but rank_stabilized is set too"),
        ({"network_dim": 0}, "greater than or equal to 1"),
    ],
)
def test_invalid_networks_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe.parse(values)
