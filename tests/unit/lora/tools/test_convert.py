"""Conversion between kohya's and diffusers' naming changes no weight, and diffusers itself loads the result."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_studio.errors import InputError
from lora_studio.lora.header import read_lora_header
from lora_studio.lora.names import sdxl_layer_names
from lora_studio.lora.tools.convert import convert_lora
from lora_studio.sampling.adapter import apply_lora
from tests.support.kohya_lora import make_lora, save_lora
from tests.support.lora_layers import CONV, LINEAR, NORM, TEXT, random_layer, write_layers
from tests.support.networks import metadata_of, unet_output
from tests.support.tiny_sdxl import make_pipeline
from tests.support.training_runs import same

NAMES = [kohya for *_, kohya in sdxl_layer_names() if "norm" not in kohya and "in_layers_0" not in kohya]


@settings(max_examples=25)
@given(
    layers=st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True),
    alphas=st.lists(st.sampled_from([0.5, 1.0, 4.0, 3.0]), min_size=6, max_size=6),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    norms=st.booleans(),
)
def test_to_diffusers_and_back_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, layers: list[str], alphas: list[float], dtype: torch.dtype, norms: bool
) -> None:
    folder, content = tmp_path_factory.mktemp("there"), {}
    for number, layer in enumerate(layers):
        parts, _ = random_layer("lora", seed=number, rank=number + 1)
        parts["alpha"] = torch.tensor(alphas[number])
        if norms:
            parts["dora_scale"] = torch.rand(12, 1)
        content[layer] = {name: tensor.to(dtype) for name, tensor in parts.items()}
    source = write_layers(folder / "x.safetensors", content, ss_network_dim="4")
    there = convert_lora(source, folder / "y.safetensors", "diffusers")
    assert all(name.startswith(("unet.", "text_encoder")) for name in load_file(there.out))
    back = convert_lora(there.out, folder / "z.safetensors", "kohya")
    assert there.layers == back.layers == len(layers)
    before, after = load_file(source), load_file(back.out)
    assert same(before, after)
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    assert metadata_of(back.out)["ss_network_dim"] == "4"


@pytest.mark.slow
def test_diffusers_loads_a_converted_file_with_the_same_effect(tmp_path: Path) -> None:
    bare = make_pipeline(tmp_path / "tokenizers")
    for model in (bare.unet, bare.text_encoder, bare.text_encoder_2):
        model.eval()
    tensors, _ = make_lora(bare, ranks=(2, 4), alpha=2.0)
    source = save_lora(tensors, tmp_path / "x.safetensors")
    out = convert_lora(source, tmp_path / "y.safetensors", "diffusers").out
    before = unet_output(bare)
    for path in (source, out):
        with apply_lora(bare, read_lora_header(path)) as adapter:
            assert adapter.missing == []
            expected = unet_output(bare)
    assert (expected - before).abs().max() > 0.05
    theirs = copy.deepcopy(bare)
    theirs.load_lora_weights(str(tmp_path), weight_name=out.name)
    torch.testing.assert_close(unet_output(theirs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("layer", "parts", "code"),
    [
        (LINEAR, random_layer("loha")[0], "convert_type"),
        (NORM, {"w_norm": torch.ones(4)}, "convert_type"),
        (CONV, random_layer("lora", kernel=3)[0] | {"diff_b": torch.ones(12)}, "convert_type"),
        (TEXT, random_layer("lora")[0] | {"dora_scale": torch.ones(1, 8)}, "convert_dora"),
    ],
)
def test_what_diffusers_does_not_have_is_refused(tmp_path: Path, layer: str, parts: dict, code: str) -> None:
    source = write_layers(tmp_path / "x.safetensors", {layer: parts})
    with pytest.raises(InputError) as caught:
        convert_lora(source, tmp_path / "y.safetensors", "diffusers")
    assert caught.value.code == code
    assert layer in caught.value.message or code == "convert_dora"
    assert not (tmp_path / "y.safetensors").exists()


def test_other_types_in_peft_names_become_kohyas(tmp_path: Path) -> None:
    parts, _ = random_layer("lokr")
    source = write_layers(tmp_path / "x.safetensors", {"base_model.model.down_blocks.1.attentions.0.proj_in": parts})
    out = convert_lora(source, tmp_path / "y.safetensors", "kohya").out
    assert same(load_file(out), {f"{LINEAR}.{part}": tensor for part, tensor in parts.items()})


def test_names_of_the_embedded_bases_structure_are_found(tmp_path: Path) -> None:
    layer = "lora_unet_input_blocks_3_1_proj_in"  # in SDXL, input_blocks.3 is a downsampler
    source = write_layers(tmp_path / "x.safetensors", {layer: random_layer("lora")[0]})
    out = convert_lora(source, tmp_path / "y.safetensors", "diffusers").out
    assert "unet.down_blocks.1.attentions.0.proj_in.lora_A.weight" in load_file(out)
