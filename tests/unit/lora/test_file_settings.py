"""The settings that a LoRA file was trained with, from its shapes and alphas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_studio.errors import ConfigError, InputError
from lora_studio.lora.file_settings import check_file_settings, different_settings, file_overrides, settings_of_file
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe

ATTENTION = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
FEED_FORWARD = "lora_unet_input_blocks_4_1_transformer_blocks_0_ff_net_2"
CONVOLUTION = "lora_unet_input_blocks_4_0_in_layers_2"


def write(path: Path, layers: Mapping[str, Mapping[str, Sequence[int]]], **alphas: float) -> Path:
    """Write a file with tensors of these shapes; alphas by layer."""
    tensors = {f"{layer}.{part}": np.zeros(shape) for layer, parts in layers.items() for part, shape in parts.items()}
    save_file({**tensors, **{f"{layer}.alpha": np.array(alpha) for layer, alpha in alphas.items()}}, path)
    return path


def plain(dim: int, kernel: Sequence[int] = ()) -> dict[str, list[int]]:
    ones = [1] * len(kernel)
    return {"lora_down.weight": [dim, 8, *kernel], "lora_up.weight": [8, dim, *ones]}


def job(path: Path, **recipe: Any) -> TrainJob:
    values = {"dataset": path.parent, "base": "x", "network_weights": path, "recipe": recipe}
    return TrainJob.parse(values)


def test_a_plain_lora(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.safetensors",
        {ATTENTION: plain(12), FEED_FORWARD: plain(12)},
        **{ATTENTION: 6.0, FEED_FORWARD: 6.0},
    )
    found = settings_of_file(path)
    expected = {"network_type": "LoRA", "train_layers": "attention_ff", "network_dim": 12, "network_alpha": 6.0}
    assert expected.items() <= found.items()
    assert Recipe.parse(found).network_dim == 12
    alone = settings_of_file(write(tmp_path / "b.safetensors", {ATTENTION: plain(4)}))
    assert (alone["train_layers"], alone["network_alpha"]) == ("attention", 4.0)


def test_a_locon_has_dims_of_its_own_for_convolutions(tmp_path: Path) -> None:
    layers = {ATTENTION: plain(16), CONVOLUTION: plain(4, (3, 3))}
    path = write(tmp_path / "a.safetensors", layers, **{ATTENTION: 8.0, CONVOLUTION: 1.0})
    found = settings_of_file(path)
    assert (found["network_type"], found["conv_dim"], found["conv_alpha"]) == ("LoCon", 4, 1.0)
    assert not different_settings(path, Recipe.parse(found))


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ({"hada_w1_a": [8, 4], "hada_w1_b": [4, 8], "hada_w2_a": [8, 4], "hada_w2_b": [4, 8]}, "LoHa"),
        ({"lokr_w1": [2, 2], "lokr_w2_a": [4, 2], "lokr_w2_b": [2, 4]}, "LoKr"),
        ({**plain(4), "dora_scale": [1, 8]}, "DoRA"),
    ],
)
def test_other_network_types(tmp_path: Path, parts: dict[str, list[int]], kind: str) -> None:
    found = settings_of_file(write(tmp_path / "a.safetensors", {ATTENTION: parts}))
    assert found["network_type"] == kind
    assert found["dim_from_weights"] is (kind == "LoKr")


def test_layers_of_different_dims_are_taken_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {ATTENTION: plain(8), FEED_FORWARD: plain(4)})
    found = settings_of_file(path)
    assert found["dim_from_weights"]
    assert "network_dim" not in found
    check_file_settings(job(path, **found))


def test_a_contradicting_recipe_is_refused_with_each_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {ATTENTION: plain(16), CONVOLUTION: plain(4, (3, 3))})
    with pytest.raises(ConfigError) as caught:
        check_file_settings(job(path, network_dim=32))
    assert [problem.split()[0] for problem in caught.value.problems] == ["network_type", "network_dim", "conv_dim"]
    check_file_settings(job(path, network_type="LoCon", network_dim=16, conv_dim=4))
    check_file_settings(job(path, network_type="LoCon", dim_from_weights=True))
    with pytest.raises(InputError):
        check_file_settings(job(tmp_path / "missing.safetensors"))


def test_a_plan_takes_what_the_recipe_was_not_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {ATTENTION: plain(16)})
    assert file_overrides(job(path, network_alpha=3.0)).keys() >= {"network_type", "network_dim"}
    assert "network_alpha" not in file_overrides(job(path, network_alpha=3.0))
    assert file_overrides(job(path, dim_from_weights=True)) == {}


@pytest.mark.parametrize("parts", [{"diff": [8, 8]}, {"w_norm": [8]}, plain(4) | {"diff_b": [8]}])
def test_a_file_that_changes_whole_weights_norms_or_biases_cannot_be_continued(tmp_path: Path, parts: Any) -> None:
    path = write(tmp_path / "a.safetensors", {ATTENTION: parts})
    with pytest.raises(InputError) as caught:
        settings_of_file(path)
    assert caught.value.code == "network_weights"
