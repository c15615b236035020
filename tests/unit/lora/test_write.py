"""LoRA files have the names, shapes and hashes that other programs expect, and work in diffusers."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_studio.errors import DiskFullError
from lora_studio.lora.inject import add_adapters, layer_tensors
from lora_studio.lora.layers import block_names, find_target_layers
from lora_studio.lora.names import kohya_name, to_stability_path
from lora_studio.lora.save import model_hashes, save_lora
from lora_studio.lora.shapes import layer_dim_alpha, tensor_shapes
from lora_studio.lora.write import lora_tensors
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.models.pipeline import TextEmbeddings, generate_image, make_pipeline
from lora_studio.settings.recipe import Recipe
from lora_studio.training.lora_file import save_lora_file
from lora_studio.training.progress import Progress
from lora_studio.training.reporting.network_metadata import build_network_metadata
from lora_studio.training.samples import encode_prompt
from lora_studio.training.trainer import Trainer
from tests.support.kohya_lora import sgm_name
from tests.support.networks import (
    add_random_adapters,
    eval_pipeline,
    metadata_of,
    recipe_of,
    run_with_random_lora,
    write_lora,
)
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import same

KOHYA = Path(__file__).parents[2] / "data" / "kohya_sdxl_rank32.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("base"), layers=1)


@pytest.fixture(scope="module")
def trainer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return run_with_random_lora(base, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def file(trainer: Trainer) -> Path:
    path = trainer.folder / "ink.safetensors"
    save_lora_file(trainer, Progress(step=2), path, 2)
    return path


@pytest.mark.slow
def test_names_and_shapes_of_sdxl_are_kohyas() -> None:
    """`kohya_sdxl_rank32.json` lists the name and shape of every tensor that sd-scripts writes at rank 32."""

    def config(part: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((SDXL_CONFIG / part / "config.json").read_text("utf-8"))
        return values

    recipe = Recipe(network_dim=32, network_alpha=16)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config("unet"))
        first = CLIPTextModel(CLIPTextConfig(**config("text_encoder")))
        second = CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder_2")))
        targets = find_target_layers(unet, [first, second])
    expected = {
        target.kohya_name: tensor_shapes(recipe, target.layer, 32)
        for target in targets
        if layer_dim_alpha(recipe, target.layer)
    }
    adapters = add_adapters(unet, [first, second], recipe)
    blocks = block_names(unet)
    names: dict[str, list[int]] = {}
    for model, path, layer in adapters.layers:
        name = kohya_name(model, path, to_stability_path(path, blocks) if model == "unet" else "")
        shapes = {part: tuple(weight.shape) for part, weight in layer_tensors(layer).items()}
        assert shapes == expected[name]
        names |= {f"{name}.{part}": list(shape) for part, shape in shapes.items()} | {f"{name}.alpha": []}
    assert names == json.loads(KOHYA.read_text("utf-8"))
    assert len(names) == 3 * (722 + 72 + 192)


def test_names_of_a_base_with_one_layer_per_block(trainer: Trainer) -> None:
    tensors = lora_tensors(trainer.adapters, trainer.base.unet, torch.float16)
    unet = {name for name in tensors if name.startswith("lora_unet_")}
    # with one layer per block, Stability's numbers differ from SDXL's: 1, 3, 5 down and 0 to 5 up
    assert {name.split("_transformer")[0].split("_proj")[0] for name in unet} == {
        "lora_unet_input_blocks_3_1",
        "lora_unet_input_blocks_5_1",
        "lora_unet_middle_block_1",
        "lora_unet_output_blocks_0_1",
        "lora_unet_output_blocks_1_1",
        "lora_unet_output_blocks_2_1",
        "lora_unet_output_blocks_3_1",
    }
    for number in (1, 2):
        assert f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in tensors
    assert {weight.dtype for weight in tensors.values()} == {torch.float16}
    assert {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")} == {2.0}


def test_unet_names_agree_with_a_separate_implementation(tiny_base: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    adapters = add_adapters(unet, [], Recipe(network_dim=1, network_alpha=1))
    tensors = lora_tensors(adapters, unet, torch.float32)
    for _, path, layer in adapters.layers:
        key = f"lora_unet_{sgm_name(path)}.lora_up.weight"
        assert torch.equal(tensors[key], layer.lora_B["default"].weight)


@pytest.mark.slow
def test_diffusers_generates_the_same_image_bit_for_bit(trainer: Trainer, file: Path, base: Path) -> None:
    """Compare the adapters in memory with the file loaded by a new diffusers pipeline."""
    settings: dict[str, Any] = {"seed": 5, "steps": 2, "guidance": 3.0, "width": 64, "height": 64}
    for module in (trainer.base.unet, *trainer.base.text_encoders):
        module.eval()
    with torch.no_grad():
        text = encode_prompt("inkstamp, round", trainer)
        mine = generate_image(make_pipeline(trainer.base), text, text.zeros(), **settings)
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        hidden, _, pooled, _ = pipe.encode_prompt("inkstamp, round", do_classifier_free_guidance=False)
        text = TextEmbeddings(hidden, pooled)
        return np.array(generate_image(pipe, text, text.zeros(), **settings))

    with torch.no_grad():
        without = draw()
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
        theirs = draw()
    assert mine is not None
    assert np.array_equal(np.array(mine), theirs)
    assert not np.array_equal(theirs, without)


def test_a_run_in_half_precision_writes_fp16(trainer: Trainer, tmp_path: Path) -> None:
    half = replace(trainer, dtype=torch.bfloat16)
    save_lora_file(half, Progress(step=2), tmp_path / "half.safetensors", 1)
    assert {weight.dtype for weight in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}


def test_hashes_are_those_of_kohya_and_a1111(file: Path) -> None:
    content = file.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    found = metadata_of(file)
    assert found["sshs_model_hash"] == hashlib.sha256(content[8 + header :]).hexdigest()
    big = {"x.lora_up.weight": torch.arange(600_000, dtype=torch.float32)}
    hashes = model_hashes(big, {"ss_seed": "1", "modelspec.title": "a"})
    assert hashes == model_hashes(big, {"ss_seed": "1", "modelspec.title": "another"})
    window = save(big, {"ss_seed": "1"})[0x100000:0x110000]
    assert hashes["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]


def test_a_failed_write_keeps_the_previous_file(
    trainer: Trainer, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tensors = lora_tensors(trainer.adapters, trainer.base.unet, torch.float32)
    path = tmp_path / "ink.safetensors"
    save_lora(path, tensors, {"ss_seed": "1"})
    before = path.read_bytes()
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        real(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError):
        save_lora(path, {name: weight + 1 for name, weight in tensors.items()}, {"ss_seed": "2"})
    with pytest.raises(DiskFullError):
        save_lora(tmp_path / "new.safetensors", tensors, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["ink.safetensors"]
    assert same(load_file(path), tensors)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLPipeline:
    return eval_pipeline(tmp_path_factory.mktemp("tokenizers"))


def test_diffusers_gives_every_layer_its_own_scale(bare: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    """Compare W + dW of each layer, whose alphas differ, after load_lora_weights."""
    recipe, ours, theirs = recipe_of("rsLoRA blocks"), copy.deepcopy(bare), copy.deepcopy(bare)
    adapters = add_random_adapters(ours, recipe)
    write_lora(tmp_path / "x.safetensors", ours, adapters, recipe)
    theirs.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    scales = {layer.scaling["default"] for _, _, layer in adapters.layers}
    assert len(scales) > 1
    for model, path, layer in adapters.layers:
        other = {"unet": theirs.unet, "te1": theirs.text_encoder, "te2": theirs.text_encoder_2}[model]
        loaded = other.get_submodule(path)
        assert torch.equal(loaded.get_base_layer().weight, layer.get_base_layer().weight)
        torch.testing.assert_close(
            loaded.get_delta_weight(loaded.active_adapters[0]), layer.get_delta_weight("default"), atol=1e-6, rtol=1e-6
        )


def test_half_precision_files_keep_the_exact_scale(bare: StableDiffusionXLPipeline) -> None:
    """fp16 cannot represent the alpha of a rank-stabilised LoRA; the up matrix is multiplied by the rounding error."""
    other = copy.deepcopy(bare)
    adapters = add_random_adapters(other, recipe_of("LoRA", network_dim=7, network_alpha=3, rank_stabilized=True))
    tensors = lora_tensors(adapters, other.unet, torch.float16)
    name, layer = "lora_unet_middle_block_1_proj_in", other.unet.mid_block.attentions[0].proj_in
    up, down = (tensors[f"{name}.lora_{part}.weight"].float() for part in ("up", "down"))
    kept = float(tensors[f"{name}.alpha"]) / 7 * up @ down
    exact = 3 / 7**0.5 * layer.lora_B["default"].weight.detach() @ layer.lora_A["default"].weight.detach()
    assert float(tensors[f"{name}.alpha"]) != 3 * 7**0.5
    torch.testing.assert_close(kept, exact, atol=2e-3 * float(exact.abs().max()), rtol=0)


def test_a_full_matrix_lokr_has_lycoris_layout(tmp_path: Path) -> None:
    pipe = eval_pipeline(tmp_path / "tokenizers")
    recipe = recipe_of("LoKr full")
    found = load_file(write_lora(tmp_path / "x.safetensors", pipe, add_random_adapters(pipe, recipe), recipe))
    assert {name.partition(".")[2] for name in found} == {"lokr_w1", "lokr_w2", "alpha"}
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert {tensor.dim() for name, tensor in found.items() if name.endswith("lokr_w2")} == {2, 4}
    arguments = build_network_metadata(recipe)["ss_network_args"]
    assert (arguments["algo"], arguments["full_matrix"]) == ("lokr", "True")


def test_a_tucker_lokr_has_lycoris_layout(tmp_path: Path) -> None:
    pipe = eval_pipeline(tmp_path / "tokenizers")
    recipe = recipe_of("LoKr tucker")
    found = load_file(write_lora(tmp_path / "x.safetensors", pipe, add_random_adapters(pipe, recipe), recipe))
    cores = [name for name in found if name.endswith("lokr_t2")]
    assert cores
    for name in cores:
        rank, other, *kernel = found[name].shape
        left, right = (found[name.replace("lokr_t2", part)] for part in ("lokr_w2_a", "lokr_w2_b"))
        assert (rank, other, kernel) == (left.shape[0], right.shape[0], [3, 3])
    assert build_network_metadata(recipe)["ss_network_args"]["use_tucker"] == "True"


@pytest.mark.parametrize(
    ("given", "run", "dtype"),
    [
        ("auto", torch.float32, torch.float32),
        ("auto", torch.bfloat16, torch.float16),
        ("fp16", torch.float32, torch.float16),
        ("bf16", torch.float32, torch.bfloat16),
        ("float", torch.bfloat16, torch.float32),  # sd-scripts' name
    ],
)
def test_a_file_has_the_data_type_that_the_recipe_asks_for(
    trainer: Trainer, tmp_path: Path, given: str, run: torch.dtype, dtype: torch.dtype
) -> None:
    recipe = Recipe.parse({**trainer.recipe.model_dump(), "save_precision": given})
    job = trainer.job.model_copy(update={"recipe": recipe})
    save_lora_file(replace(trainer, job=job, dtype=run), Progress(step=1), tmp_path / "x.safetensors", 1)
    found, exact = load_file(tmp_path / "x.safetensors"), trainer.adapters.state()
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    up = next(name for name in exact if name.startswith("te1/") and name.endswith("/B"))
    name = kohya_name("te1", up.split("/")[1])
    assert torch.equal(found[f"{name}.lora_up.weight"], exact[up].to(dtype))
