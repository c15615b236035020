"""The norms of weight deltas equal those of the deltas that peft computes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from lora_studio.lora.inject import ADAPTER_NAME
from lora_studio.lora.norms import model_norms
from tests.support.networks import add_random_adapters, eval_pipeline, in_tiers, recipe_of

NETWORKS = ["LoCon", "DoRA", "LoHa", "LoHa tucker", "LoKr", "LoKr whole", "rsLoRA blocks"]


@pytest.mark.parametrize("network", in_tiers(NETWORKS, fast=("LoCon", "LoHa", "LoKr")))
def test_norms_are_those_of_all_weight_deltas_of_a_model(network: str, tmp_path: Path) -> None:
    pipe = eval_pipeline(tmp_path)
    adapters = add_random_adapters(pipe, recipe_of(network, text_encoder_lr=1e-4))
    expected: dict[str, float] = defaultdict(float)
    for model, _, layer in adapters.layers:
        expected[model] += float(layer.get_delta_weight(ADAPTER_NAME).detach().double().square().sum())
    norms = model_norms(adapters)
    assert norms.keys() == {"unet", "te1", "te2"}
    assert norms == pytest.approx({model: square**0.5 for model, square in expected.items()}, rel=1e-4)
