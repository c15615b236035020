"""Checkpoints of other programs are found where they are, described by their headers, and cached."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from lora_studio.models import found
from lora_studio.models.found import FOLDERS_VARIABLE, HUB_CACHE, Model, catalogue_models, find_models
from lora_studio.models.locate import SDXL_CONFIG, SDXL_KEY
from lora_studio.workspace.project import Home

SDXL = {SDXL_KEY: torch.zeros(1)}
FLUX = {"double_blocks.0.weight": torch.zeros(1)}
LORA = {"lora_unet_down.lora_down.weight": torch.zeros(1)}


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user without any program or cached model."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "user"))
    monkeypatch.delenv(FOLDERS_VARIABLE, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "user"


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def places(models: list[Model]) -> dict[str, str]:
    return {model.name: model.place for model in models if not model.problem}


@pytest.mark.parametrize(
    ("folder", "program"),
    [
        ("stable-diffusion-webui/models/Stable-diffusion/anime", "AUTOMATIC1111"),
        ("ai/stable-diffusion-webui-forge/models/Stable-diffusion", "Forge"),
        ("ComfyUI/models/checkpoints/sdxl", "ComfyUI"),
        ("Documents/ComfyUI/models/checkpoints", "ComfyUI"),
        ("kohya_ss/models", "kohya_ss"),
    ],
)
def test_usual_install_folders_are_looked_through(user: Path, home: Home, folder: str, program: str) -> None:
    file = write(user / folder / "mine.safetensors", SDXL)
    [model] = find_models(home)
    assert (model.name, model.place, model.base, model.path) == ("mine.safetensors", program, str(file), file)
    assert model.problem == ""


def test_a_v_prediction_file_is_described(user: Path, home: Home) -> None:
    markers = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    write(user / "kohya_ss/models/noob.safetensors", SDXL | markers)
    [model] = find_models(home)
    assert (model.prediction_type, model.zero_terminal_snr) == ("v_prediction", True)


def test_comfyuis_extra_folders_are_looked_through(user: Path, home: Home) -> None:
    write(user / "disk/models/a/one.safetensors", SDXL)
    write(user / "disk/models/b/two.safetensors", SDXL)
    install = user / "ComfyUI"
    install.mkdir()
    lines = ["a111:", f"  base_path: {user / 'disk'}", "  checkpoints: |", "    models/a", "    models/b", "broken: 3"]
    (install / "extra_model_paths.yaml").write_text("\n".join(lines), "utf-8")
    assert places(find_models(home)) == {"one.safetensors": "ComfyUI", "two.safetensors": "ComfyUI"}
    (install / "extra_model_paths.yaml").write_text("a: [", "utf-8")
    assert find_models(home) == []


def test_folders_of_the_user_are_looked_through(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "here/one.safetensors", SDXL)
    write(tmp_path / "there/models/Stable-diffusion/two.safetensors", SDXL)
    write(home.models / "three.safetensors", SDXL)
    monkeypatch.setenv(FOLDERS_VARIABLE, str(tmp_path / "here"))
    home.model_folders.write_text(f"{tmp_path / 'there'}\n{tmp_path / 'missing'}\n", "utf-8")
    assert set(places(find_models(home))) == {"one.safetensors", "two.safetensors", "three.safetensors"}


def test_files_that_cannot_be_used_say_what_they_are(user: Path, home: Home) -> None:
    folder = user / "ComfyUI/models/checkpoints"
    write(folder / "flux.safetensors", FLUX)
    write(folder / "lora.safetensors", LORA)
    (folder / "old.ckpt").write_bytes(b"x")
    whole = write(folder / "cut.safetensors", SDXL).read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-2])
    problems = {model.name: model.problem for model in find_models(home)}
    assert "a FLUX model" in problems["flux.safetensors"]
    assert "a LoRA" in problems["lora.safetensors"]
    assert "pickle" in problems["old.ckpt"]
    assert "cannot be read" in problems["cut.safetensors"]


def test_a_file_in_two_places_is_listed_once(user: Path, home: Home) -> None:
    file = write(user / "ComfyUI/models/checkpoints/a.safetensors", SDXL)
    (user / "kohya_ss").mkdir()
    (user / "kohya_ss/models").symlink_to(file.parent, target_is_directory=True)
    assert len(find_models(home)) == 1


def test_headers_are_read_once(user: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(user / "kohya_ss/models/a.safetensors", SDXL)
    before = find_models(home)
    read: list[Path] = []
    original = found._read
    monkeypatch.setattr(found, "_read", lambda path, *stamp: read.append(path) or original(path, *stamp))
    assert find_models(home) == before
    assert read == []
    write(file, FLUX)
    os.utime(file, ns=(1, 1))
    assert find_models(home)[0].problem
    assert read == [file]


def cached(tmp_path: Path, repo: str, *, complete: bool) -> None:
    """Write a repository of the Hub's cache with SDXL's configuration, and empty weights if it is `complete`."""
    storage = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = storage / "snapshots" / ("a" * 40)
    shutil.copytree(SDXL_CONFIG, snapshot)
    (snapshot / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}', "utf-8")
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text("a" * 40, "utf-8")
    (storage / "blobs").mkdir()
    for part in ("unet", "text_encoder", "text_encoder_2", "vae") if complete else ("unet",):
        save_file({}, snapshot / part / "model.fp16.safetensors")


def test_the_hubs_cache_is_looked_through(tmp_path: Path, home: Home) -> None:
    cached(tmp_path, "someone/mix", complete=True)
    cached(tmp_path, "someone/partial", complete=False)
    cached(tmp_path, "SG161222/RealVisXL_V5.0", complete=True)
    cached(tmp_path, "Lykon/dreamshaper-xl-1-0", complete=False)
    assert places(find_models(home)) == {"someone/mix": HUB_CACHE}
    here = {model.name for model in catalogue_models(home) if model.place}
    assert here == {"RealVisXL V5.0", "embedded"}
