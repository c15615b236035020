"""Encoding images in half precision: close to fp32, and repeated in fp32 where it overflows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from lora_studio.dataset.images.decode import read_image
from lora_studio.training.data.cache import LatentCache, encode_image
from lora_studio.training.data.dataset import read_dataset
from tests.support.tiny_sdxl import make_pipeline
from tests.support.training_runs import make_images, recipe_of, same


@pytest.fixture
def vae(tmp_path: Path) -> AutoencoderKL:
    return make_pipeline(tmp_path / "tokenizers").vae.requires_grad_(False).eval()


def make_latents(folder: Path, cache: Path, vae: AutoencoderKL, half: torch.dtype | None) -> dict[str, torch.Tensor]:
    latents = LatentCache(cache, "x", half)
    items = read_dataset(folder, recipe_of()).items
    latents.fill(items, vae, should_stop=lambda: False, on_progress=lambda done, total: None)
    return {item.path.name: torch.stack(latents.load(item)) for item in items}


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_latents_are_close_to_fp32(tmp_path: Path, vae: AutoencoderKL, half: torch.dtype) -> None:
    images = make_images(tmp_path / "images", [(64, 64), (32, 64)])
    exact = make_latents(images, tmp_path / "fp32", vae, None)
    close = make_latents(images, tmp_path / "half", vae, half)
    for name, latents in exact.items():
        assert close[name].dtype == torch.float32
        assert not torch.equal(close[name], latents)
        assert torch.allclose(close[name], latents, atol=0.002 if half == torch.float16 else 0.02)


def test_images_that_overflow_in_fp16_are_encoded_in_fp32(
    tmp_path: Path, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL's own VAE overflows: its activations exceed 65,504 before they are normalised."""
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 1e6
    images = make_images(tmp_path / "images", [(64, 64)] * 3)
    item = read_dataset(images, recipe_of()).items[0]
    mean, _ = encode_image(vae, read_image(item.path), item, torch.float16)
    assert not mean.isfinite().all()
    exact = make_latents(images, tmp_path / "fp32", vae, None)
    assert all(latents.isfinite().all() for latents in exact.values())

    autocast: list[bool] = []
    encode = vae.encode

    def counted(pixels: torch.Tensor) -> Any:
        autocast.append(torch.is_autocast_enabled("cpu"))
        return encode(pixels)

    monkeypatch.setattr(vae, "encode", counted)
    assert same(make_latents(images, tmp_path / "half", vae, torch.float16), exact)
    assert autocast == [True, False] * 3
