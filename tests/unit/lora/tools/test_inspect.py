"""What a file is, its networks, ranks, metadata and norms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_studio.errors import InputError
from lora_studio.lora.tools.inspect import inspect_file
from tests.support.lora_layers import CONV, LINEAR, NORM, TEXT, random_layer, write_layers


def test_describes_networks_ranks_tags_and_norms(tmp_path: Path) -> None:
    layers = {LINEAR: random_layer("lora"), CONV: random_layer("loha", kernel=3), TEXT: random_layer("full")}
    parts = {layer: tensors for layer, (tensors, _) in layers.items()} | {NORM: {"w_norm": torch.ones(3)}}
    frequency = {"10_a": {"cat": 3, "dog": 1}, "5_b": {"dog": 4}}
    path = write_layers(
        tmp_path / "x.safetensors",
        parts,
        ss_tag_frequency=json.dumps(frequency),
        ss_network_dim="4",
        **{"modelspec.title": "Ink", "modelspec.trigger_phrase": "inkstamp_hc"},
    )
    report = inspect_file(path)
    assert report.problem == ""
    assert report.networks == {"LoRA": 1, "LoHa": 1, "full": 1, "norm": 1}
    assert report.fields == {"title": "Ink", "trigger": "inkstamp_hc"}
    assert report.tags == {"dog": 5, "cat": 3}
    assert report.training == {"ss_network_dim": "4"}
    assert {part.model: part.layers for part in report.parts} == {"unet": 3, "te1": 1}
    unet = next(part for part in report.parts if part.model == "unet")
    assert (unet.ranks, unet.alphas) == ({4: 2}, {"3": 2})
    norms = {row.block: row.norm for row in report.norms}
    assert list(norms) == ["te1", "in1", "in4"]
    for block, layer in (("te1", TEXT), ("in1", CONV), ("in4", LINEAR)):
        assert norms[block] == pytest.approx(float(layers[layer][1].norm()), rel=1e-4)
    assert report.bytes == path.stat().st_size
    assert report.parameters == sum(tensor.numel() for tensors in parts.values() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["conditioner.embedders.1.model.text_projection"], "SDXL checkpoint"),
        (["double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["clip_l", "clip_g"], "embedding"),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"], "Stable Diffusion 1"),
        ([f"{LINEAR}.oft_blocks"], "OFT"),
        (["weights"], "unknown"),
    ],
)
def test_other_files_are_described_with_the_reason_why_they_are_not_a_lora(
    tmp_path: Path, names: list[str], kind: str
) -> None:
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    report = inspect_file(tmp_path / "x.safetensors")
    assert kind in report.kind
    assert report.problem
    assert (report.tensors, report.dtypes) == (len(names), {"F32": len(names)})


def test_a_file_with_nan_is_described_with_its_problem(tmp_path: Path) -> None:
    parts = {"lora_down.weight": torch.full((2, 3), torch.nan), "lora_up.weight": torch.ones(3, 2)}
    report = inspect_file(write_layers(tmp_path / "x.safetensors", {LINEAR: parts}))
    assert "NaN" in report.problem
    assert report.kind == "a LoRA for SDXL"


def test_damaged_metadata_is_no_obstacle(tmp_path: Path) -> None:
    path = write_layers(
        tmp_path / "x.safetensors", {LINEAR: random_layer("lora")[0]}, ss_tag_frequency='{"a": 1, "b": {"c": "d"}}'
    )
    assert inspect_file(path).tags == {}


def test_missing_and_pickled_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x04.")
    for name, code in (("gone.safetensors", "lora_missing"), ("x.pt", "lora_file")):
        with pytest.raises(InputError) as caught:
            inspect_file(tmp_path / name)
        assert caught.value.code == code
