"""A LoRA extracted from a finetuned checkpoint, merged into the base, gives the finetune within the reported error."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from lora_studio.errors import InputError
from lora_studio.lora.tools.extract import extract_lora
from lora_studio.workspace.project import Home
from tests.support.lora_layers import read_deltas
from tests.support.original_layout import save_single_file
from tests.support.tiny_sdxl import make_pipeline

# Finetuned layers: the model, the path, and kohya's name.
LAYERS = (
    ("unet", "down_blocks.1.attentions.0.proj_in", "lora_unet_input_blocks_4_1_proj_in"),
    ("unet", "up_blocks.0.resnets.0.conv1", "lora_unet_output_blocks_0_0_in_layers_2"),
    ("unet", "conv_in", "lora_unet_input_blocks_0_0"),
    ("text_encoder", "encoder.layers.1.mlp.fc1", "lora_te1_text_model_encoder_layers_1_mlp_fc1"),
    (
        "text_encoder_2",
        "text_model.encoder.layers.1.self_attn.k_proj",
        "lora_te2_text_model_encoder_layers_1_self_attn_k_proj",
    ),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def tuned(base: StableDiffusionXLPipeline) -> StableDiffusionXLPipeline:
    finetuned = copy.deepcopy(base)
    source = torch.Generator().manual_seed(1)
    for model, path, _ in LAYERS:
        weight = getattr(finetuned, model).get_submodule(path).weight
        weight.data += 0.1 * torch.randn(weight.shape, generator=source)
    finetuned.unet.conv_norm_out.bias.data += 1
    return finetuned


def save(pipe: StableDiffusionXLPipeline, path: Path, layout: str) -> str:
    if layout == "file":
        return str(save_single_file(pipe, path.with_suffix(".safetensors")))
    pipe.save_pretrained(path, safe_serialization=True)
    return str(path)


@pytest.mark.parametrize(("first", "second"), [("file", "file"), ("folder", "file")])
def test_extract_then_merge_gives_the_finetune_within_the_reported_error(
    first: str,
    second: str,
    base: StableDiffusionXLPipeline,
    tuned: StableDiffusionXLPipeline,
    home: Home,
    tmp_path: Path,
) -> None:
    paths = save(tuned, tmp_path / "tuned", first), save(base, tmp_path / "base", second)
    reports = {
        rank: extract_lora(paths[0], tmp_path / f"{rank}.safetensors", base=paths[1], rank=rank, dtype="float32")
        for rank in (4, 999)
    }
    assert reports[999].error < 1e-6
    assert reports[4].error > 0.1
    for report in reports.values():
        deltas = read_deltas(report.out)
        assert set(deltas) == {name for *_, name in LAYERS}
        lost = whole = 0.0
        for model, path, name in LAYERS:
            before, after = (getattr(pipe, model).get_submodule(path).weight.detach() for pipe in (base, tuned))
            merged = before + deltas[name].view(before.shape)
            own = float((after - merged).norm() / (after - before).norm())
            assert own == pytest.approx(next(row.error for row in report.layers if row.layer == name), abs=1e-4)
            lost, whole = lost + float((after - merged).norm()) ** 2, whole + float((after - before).norm()) ** 2
        assert (lost / whole) ** 0.5 == pytest.approx(report.error, abs=1e-4)
        assert report.left_out == ["1 changed norms and biases"]
    kernels = {name: tensor.shape[2:] for name, tensor in load_file(reports[4].out).items()}
    assert kernels["lora_unet_output_blocks_0_0_in_layers_2.lora_down.weight"] == (3, 3)


def test_names_are_those_of_the_checkpoints_own_structure(home: Home, tmp_path: Path) -> None:
    small = make_pipeline(tmp_path / "tokenizers", layers=1)
    path = save(small, tmp_path / "base", "folder")
    small.unet.down_blocks[1].attentions[0].proj_in.weight.data += 1
    report = extract_lora(save(small, tmp_path / "tuned", "folder"), tmp_path / "x.safetensors", base=path, rank=4)
    assert [row.layer for row in report.layers] == ["lora_unet_input_blocks_3_1_proj_in"]
    assert report.error < 1e-6


def test_rounding_to_half_precision_is_not_a_change(
    base: StableDiffusionXLPipeline, home: Home, tmp_path: Path
) -> None:
    whole = save(base, tmp_path / "base", "file")
    half = save(copy.deepcopy(base).to(torch.float16), tmp_path / "half", "file")
    with pytest.raises(InputError) as caught:
        extract_lora(half, tmp_path / "x.safetensors", base=whole, rank=4)
    assert caught.value.code == "extract_equal"
    assert not (tmp_path / "x.safetensors").exists()


def test_another_structure_or_a_lora_is_refused(base: StableDiffusionXLPipeline, home: Home, tmp_path: Path) -> None:
    wide = make_pipeline(tmp_path / "tokenizers", channels=(16, 32, 64))
    paths = [save(pipe, tmp_path / name, "file") for pipe, name in ((base, "base"), (wide, "wide"))]
    with pytest.raises(InputError) as caught:
        extract_lora(paths[1], tmp_path / "x.safetensors", base=paths[0], rank=4)
    assert caught.value.code == "extract_base"
    lora = Path(__file__).parents[3] / "data" / "kohya_tiny_sdxl_lora.safetensors"
    with pytest.raises(InputError) as caught:
        extract_lora(str(lora), tmp_path / "x.safetensors", base=paths[0], rank=4)
    assert caught.value.code == "base_lora"
