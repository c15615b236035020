"""The LoRA file: names, shapes, hashes and metadata that other programs expect, and the same picture in diffusers."""

from __future__ import annotations

import errno
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_studio.errors import DiskFullError
from lora_studio.lora.inject import add_adapters, layer_tensors
from lora_studio.lora.layers import block_names, find_target_layers, kohya_name, to_stability_path
from lora_studio.lora.shapes import layer_dim_alpha, tensor_shapes
from lora_studio.lora.write import lora_tensors, model_hashes, save_lora
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.models.pipeline import TextEmbeddings, generate_image, make_pipeline
from lora_studio.settings.recipe import Recipe
from lora_studio.training.loop import save_lora_file
from lora_studio.training.reporting.lora_metadata import build_lora_metadata
from lora_studio.training.run import Run
from lora_studio.workspace.project import Home
from tests.support.kohya_lora import sgm_name
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same, start

KOHYA = Path(__file__).parents[2] / "data" / "kohya_sdxl_rank32.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("base"), layers=1)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on three adapted models, whose LoRA does something: B is not zero."""
    folder = tmp_path_factory.mktemp("run")
    images = make_images(folder / "images" / "2_ink stamp", [(64, 64), (64, 64)])
    run = start(make_job(base, images.parent, text_encoder_lr=1e-4), folder, Home(folder / "home"))
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, _, layer in run.adapters.layers:
            weight = layer.lora_B["default"].weight
            weight.copy_(0.2 * torch.randn(weight.shape, generator=source))
    run.step = 2
    return run


@pytest.fixture(scope="module")
def file(run: Run) -> Path:
    path = run.folder / "ink.safetensors"
    save_lora_file(run, path, 2)
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as content:
        return dict(content.metadata())


def test_names_and_shapes_of_real_sdxl_are_kohyas() -> None:
    """`kohya_sdxl_rank32.json` lists name and shape of every tensor that sd-scripts writes at rank 32."""

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


def test_the_small_models_names_follow_the_same_rules(run: Run) -> None:
    tensors = lora_tensors(run.adapters, run.base.unet, torch.float16)
    unet = {name for name in tensors if name.startswith("lora_unet_")}
    # with one layer a block, Stability's numbers differ from those of SDXL: 1, 3, 5 down and 0 to 5 up
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


def test_sdxl_names_agree_with_a_rule_written_by_hand(tiny_base: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    adapters = add_adapters(unet, [], Recipe(network_dim=1, network_alpha=1))
    tensors = lora_tensors(adapters, unet, torch.float32)
    for _, path, layer in adapters.layers:
        key = f"lora_unet_{sgm_name(path)}.lora_up.weight"
        assert torch.equal(tensors[key], layer.lora_B["default"].weight)


def test_diffusers_draws_the_same_picture_bit_for_bit(run: Run, file: Path, base: Path) -> None:
    """The adapters in memory against the file, which a fresh pipeline of diffusers loads by itself."""
    settings: dict[str, Any] = {"seed": 5, "steps": 2, "guidance": 3.0, "width": 64, "height": 64}
    for module in (run.base.unet, *run.base.text_encoders):
        module.eval()
    with torch.no_grad():
        text = run.encode(["inkstamp, round"])
        mine = generate_image(make_pipeline(run.base), text, text.zeros(), **settings)
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


def test_a_run_in_half_precision_writes_fp16(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "dtype", torch.bfloat16)
    save_lora_file(run, tmp_path / "half.safetensors", 1)
    assert {weight.dtype for weight in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}


def test_metadata_says_how_it_was_made(run: Run, file: Path) -> None:
    found = metadata_of(file)
    expected = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_unet_lr": "0.001",
        "ss_text_encoder_lr": "0.0001",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01,fused=True)",
        "ss_output_name": "ink",
        "ss_resolution": "(64, 64)",
        "ss_num_train_images": "4",
        "ss_num_batches_per_epoch": "2",
        "ss_max_train_steps": "4",
        "ss_epoch": "2",
        "ss_steps": "2",
        "ss_seed": "42",
        "ss_lr_scheduler": "cosine",
        "ss_loss_type": "l2",
        "ss_huber_c": "None",
        "ss_min_snr_gamma": "5.0",
        "ss_debiased_estimation": "False",
        "ss_multires_noise_iterations": "None",
        "ss_zero_terminal_snr": "False",
        "ss_clip_skip": "2",
        "ss_mixed_precision": "no",
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": "ink",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "inkstamp",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert json.loads(found["ss_tag_frequency"]) == {"2_ink stamp": {"inkstamp": 2, "thing 0": 1, "thing 1": 1}}
    assert json.loads(found["ss_dataset_dirs"]) == {"2_ink stamp": {"n_repeats": 2, "img_count": 2}}
    assert json.loads(found["ss_bucket_info"]) == {"buckets": {"0": {"resolution": [64, 64], "count": 4}}}
    assert found["ss_new_sd_model_hash"] == run.base.hash
    assert not any(str(run.folder) in value for value in found.values())


def test_metadata_names_objective_and_optimizer_as_they_were(run: Run) -> None:
    recipe = {
        "optimizer": "Prodigy",
        "optimizer_args": "d_coef=2 betas=0.9,0.99",
        "lr_scheduler": "rex",
        "lr_warmup_steps": 0.25,
        "loss_type": "smooth_l1",
        "huber_c": 0.2,
        "huber_schedule": "exponential",
        "debiased_estimation_loss": True,
        "multires_noise_iterations": 6,
        "noise_offset": 0,
        "ema_decay": 0.9,
        "max_timestep": 800,
    }
    job = run.job.model_copy(update={"recipe": Recipe.parse(recipe)})
    found = build_lora_metadata(job, run.dataset, run.counts, run.base, precision="fp32", started=1.0, epoch=1, step=2)
    expected = {
        "ss_optimizer": "prodigyopt.prodigy.Prodigy(weight_decay=0.01,decouple=True,use_bias_correction=True,"
        "safeguard_warmup=True,d_coef=2,betas=(0.9, 0.99))",
        "ss_optimizer_args": "d_coef=2 betas=0.9,0.99",
        "ss_lr_scheduler": "rex",
        "ss_lr_warmup_steps": "1",  # a quarter of four
        "ss_loss_type": "smooth_l1",
        "ss_huber_c": "0.2",
        "ss_huber_schedule": "exponential",
        "ss_debiased_estimation": "True",
        "ss_multires_noise_iterations": "6",
        "ss_multires_noise_discount": "0.3",
        "ss_noise_offset": "None",
        "ss_ema_decay": "0.9",
        "modelspec.timestep_range": "0,800",
    }
    assert {name: found.get(name) for name in expected} == expected


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


def test_a_failed_write_leaves_the_file_before(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tensors = lora_tensors(run.adapters, run.base.unet, torch.float32)
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
