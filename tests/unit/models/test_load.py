"""Base models and VAEs are loaded from folders and single files; what is not one for SDXL is an error."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from lora_studio.errors import InputError
from lora_studio.models.load import Base, load_base, load_vae
from lora_studio.models.locate import resolve_base
from lora_studio.models.samplers import make_scheduler
from lora_studio.settings.choices import Sampler
from lora_studio.workspace.project import Home
from tests.support.tiny_sdxl import make_pipeline, save_tiny_sdxl
from tests.support.training_runs import same


def load(name: str | Path, home: Home, dtype: torch.dtype = torch.float32) -> Base:
    return load_base(resolve_base(str(name), home), dtype=dtype)


def test_a_single_file_loads_the_same_model_as_the_folder(
    base: Path, single: Path, home: Home, tiny_config: None
) -> None:
    folder, file = load(base, home), load(single, home)
    assert same(file.unet.state_dict(), folder.unet.state_dict())
    assert same(file.vae.state_dict(), folder.vae.state_dict())
    for first, second in zip(file.text_encoders, folder.text_encoders, strict=True):
        assert same(first.state_dict(), second.state_dict())
    assert file.noise_scheduler.betas.tolist() == folder.noise_scheduler.betas.tolist()
    assert not any(parameter.requires_grad for parameter in file.unet.parameters())
    assert file.hash != folder.hash


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_both_transformers_versions_load(prefix: str, base: Path, home: Home, tmp_path: Path) -> None:
    """transformers 4 writes `text_model.` before the names of the first text encoder's weights, version 5 does not."""
    shutil.copytree(base, tmp_path / "base")
    file = tmp_path / "base" / "text_encoder" / "model.safetensors"
    weights = {name.removeprefix("text_model."): weight for name, weight in load_file(file).items()}
    save_file({prefix + name: weight for name, weight in weights.items()}, file, {"format": "pt"})
    found = load(tmp_path / "base", home).text_encoders[0].state_dict()
    assert same({name.removeprefix("text_model."): weight for name, weight in found.items()}, weights)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2", "vae"])
def test_a_folder_that_lacks_weights_is_an_error(part: str, base: Path, home: Home, tmp_path: Path) -> None:
    """They would start at random without a word. The error names the first three, and counts them."""
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    file = next((folder / part).glob("*.safetensors"))
    weights = load_file(file)
    lost = [name for name in sorted(weights) if name.endswith(".bias")][:4]
    save_file({name: weight for name, weight in weights.items() if name not in lost}, file, {"format": "pt"})
    with pytest.raises(InputError) as caught:
        load(folder, home)
    assert caught.value.code == "base_broken"
    assert caught.value.remedy
    named = [name.removeprefix("text_model.") in caught.value.message for name in lost]
    assert named == [True, True, True, False]
    assert f"{part} lacks 4 tensors" in caught.value.message
    if part == "vae":
        with pytest.raises(InputError, match="lacks 4 tensors") as caught:
            load_vae(str(folder / part))
        assert caught.value.code == "vae"


def test_the_vae_stays_fp32_in_half_precision(single: Path, base: Path, home: Home, tiny_config: None) -> None:
    for name in (single, base):
        half = load(name, home, torch.bfloat16)
        assert {half.unet.dtype, *(encoder.dtype for encoder in half.text_encoders)} == {torch.bfloat16}
        assert half.vae.dtype == torch.float32


def test_text_encoders_run_no_kernels_of_the_hub(single: Path, base: Path, home: Home, tiny_config: None) -> None:
    for name in (single, base):
        assert not any(encoder.use_kernels for encoder in load(name, home).text_encoders)


def test_reads_the_prediction_type_of_a_folders_scheduler(tmp_path: Path, home: Home) -> None:
    folder = save_tiny_sdxl(tmp_path / "v", prediction_type="v_prediction", layers=1)
    loaded = load(folder, home)
    assert loaded.prediction_type == "v_prediction"
    assert make_scheduler(loaded, Sampler.EULER).config["prediction_type"] == "v_prediction"
    assert loaded.native_resolution == 64
    assert not loaded.zero_terminal_snr
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    config["rescale_betas_zero_snr"] = True
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config), "utf-8")
    loaded = load(folder, home)
    assert loaded.zero_terminal_snr
    assert float(loaded.noise_scheduler.alphas_cumprod[-1]) == pytest.approx(0, abs=1e-6)
    sampler: Any = make_scheduler(loaded, Sampler.EULER)
    sampler.set_timesteps(10)
    assert float(sampler.timesteps[0]) == 999  # pure noise


def test_code_in_a_folder_does_not_run(base: Path, tmp_path: Path, home: Home) -> None:
    """Neither that of a pipeline, which diffusers imports by the name in model_index.json, nor that of a component."""
    folder = shutil.copytree(base, tmp_path / "coded")
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\nclass Evil: pass\n"
    for name in ("pipeline.py", "unet/evil.py", "unet/modeling.py", "evil.py"):
        (folder / name).write_text(code, "utf-8")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index |= {"_class_name": ["pipeline", "Evil"], "unet": ["evil", "Evil"]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    config = json.loads((folder / "text_encoder" / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config), "utf-8")
    with suppress(InputError):
        load(folder, home)
    assert not canary.exists()
    exec(compile(code, "evil.py", "exec"))
    assert canary.exists()


def test_a_folder_of_pickles_is_an_error(base: Path, tmp_path: Path, home: Home) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(base, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(InputError, match="unet") as caught:
        load(folder, home)
    assert caught.value.code == "base_broken"


def test_files_that_are_not_sdxl_bases_have_their_own_codes(tmp_path: Path, home: Home, tiny_config: None) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file({"cond_stage_model.transformer.x": torch.zeros(1)}, tmp_path / "sd15.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, code in (
        ("lora.safetensors", "base_lora"),
        ("sd15.safetensors", "base_kind"),
        ("torn.safetensors", "base_broken"),
        ("notes.txt", "base_format"),
        ("empty", "base_layout"),
    ):
        with pytest.raises(InputError) as caught:
            load(tmp_path / name, home)
        assert caught.value.code == code
        assert name in caught.value.message
        assert caught.value.remedy


@pytest.mark.parametrize("lost", ["output_blocks", "embedders.0.transformer", "resblocks.1", "decoder.conv_out"])
def test_an_incomplete_single_file_is_an_error(
    lost: str, single: Path, tmp_path: Path, home: Home, tiny_config: None
) -> None:
    tensors = load_file(single)
    kept = {name: weight for name, weight in tensors.items() if lost not in name or name.endswith("embedding.weight")}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load(tmp_path / "part.safetensors", home)
    assert caught.value.code == "base_broken"


def test_replaces_the_vae_and_rejects_files_that_are_not_sdxl_vaes(tmp_path: Path, base: Path, home: Home) -> None:
    other = make_pipeline(tmp_path / "tokenizers", seed=9).vae
    other.save_pretrained(tmp_path / "vae")
    loaded = load_base(resolve_base(str(base), home), dtype=torch.float32, vae=str(tmp_path / "vae"))
    assert same(loaded.vae.state_dict(), other.state_dict())
    (tmp_path / "bin").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.bin"):
        (tmp_path / "bin" / name).write_text("{}")
    (tmp_path / "there.ckpt").write_bytes(b"\x80\x04.")
    make_pipeline(tmp_path / "tokenizers").vae.save_pretrained(tmp_path / "flux")
    config = json.loads((tmp_path / "flux" / "config.json").read_text("utf-8"))
    AutoencoderKL.from_config(config | {"latent_channels": 16}).save_pretrained(tmp_path / "flux")
    for wrong, word in (
        ("nothing", "no VAE"),
        ("tokenizers", "not a VAE folder"),
        ("bin", "not a VAE folder"),
        ("vae.pt", "pickled"),
        ("there.ckpt", "pickled"),
        ("flux", "16 latent channels"),
    ):
        with pytest.raises(InputError, match=word) as caught:
            load_vae(str(tmp_path / wrong))
        assert caught.value.remedy


def test_loads_a_vae_from_a_single_file(
    base: Path, tmp_path: Path, home: Home, tiny_config: None, single: Path
) -> None:
    weights = {name: weight for name, weight in load_file(single).items() if name.startswith("first_stage_model.")}
    save_file(weights, tmp_path / "whole names.safetensors")
    save_file(
        {name.removeprefix("first_stage_model."): weight for name, weight in weights.items()},
        tmp_path / "b.safetensors",
    )
    for name in ("whole names", "b"):
        assert same(load_vae(str(tmp_path / f"{name}.safetensors")).state_dict(), load(base, home).vae.state_dict())
