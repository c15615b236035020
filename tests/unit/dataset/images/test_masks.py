"""Masks: where they come from, and that they are scaled and cropped like their image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_studio.dataset.buckets import place
from lora_studio.dataset.images.decode import decode, find_images
from lora_studio.dataset.images.masks import MaskSource, alpha_mask, decode_mask_file, mask_file
from lora_studio.dataset.training_images import read_images
from lora_studio.errors import InputError
from lora_studio.settings.choices import MaskedLoss
from lora_studio.training.data.cache import latent_mask
from lora_studio.training.data.dataset import TrainItem


def draw_image(path: Path, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path)
    return path


def source_of(path: Path, kind: MaskedLoss) -> MaskSource | None:
    (image,) = (image for image in read_images(path.parent, hash_all=True).images if image.path == path)
    return image.mask(kind)


@pytest.mark.parametrize("name", ["cat-masklabel.png", "mask/cat.png", "mask/cat.webp"])
def test_finds_mask_files_and_does_not_take_them_for_images(tmp_path: Path, name: str) -> None:
    image = draw_image(tmp_path / "cat.png")
    mask = tmp_path / name
    mask.parent.mkdir(exist_ok=True)
    Image.new("L", (32, 24), 255).save(mask)
    assert find_images(tmp_path) == [image]
    assert mask_file(image) == mask
    found = source_of(image, MaskedLoss.FILES)
    assert found is not None
    assert (found.path, found.alpha) == (mask, False)
    assert decode_mask_file(mask).getextrema() == (255, 255)
    assert source_of(image, MaskedLoss.OFF) is None
    assert source_of(image, MaskedLoss.ALPHA) is None


def test_refuses_a_mask_of_another_shape_and_a_damaged_one(tmp_path: Path) -> None:
    image = draw_image(tmp_path / "cat.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "cat-masklabel.png")
    with pytest.raises(InputError, match="64 x 64 px") as caught:
        source_of(image, MaskedLoss.FILES)
    assert caught.value.code == "mask_shape"
    (tmp_path / "cat-masklabel.png").write_text("not an image", "utf-8")
    with pytest.raises(InputError, match=r"cat-masklabel\.png") as caught:
        source_of(image, MaskedLoss.FILES)
    assert caught.value.code == "mask"


def test_alpha_is_the_mask_and_leaves_the_colours_as_they_are(tmp_path: Path) -> None:
    """Alpha is rotated like the image, and colours where it is 0 are those of the file, not white."""
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, :20, 3] = 255
    file = tmp_path / "cut.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    Image.fromarray(rgba).save(file, exif=exif)
    found = source_of(file, MaskedLoss.ALPHA)
    assert found is not None
    assert found.alpha
    mask = alpha_mask(decode(file, with_alpha=True))
    assert mask.size == (40, 60)
    assert np.array_equal(np.array(mask), np.rot90(rgba[..., 3], -1))
    kept = decode(file, with_alpha=True).image
    assert np.array(kept).reshape(-1, 3).min(axis=0).tolist() == [200, 0, 0]
    assert np.array(decode(file).image).max() == 255
    assert source_of(draw_image(tmp_path / "whole.png"), MaskedLoss.ALPHA) is None


@settings(max_examples=25, deadline=None)
@given(width=st.integers(64, 300), height=st.integers(64, 300), flipped=st.booleans())
def test_a_mask_is_scaled_and_cropped_like_its_image(width: int, height: int, flipped: bool) -> None:
    """Compare a mask that is a ramp with the ramp at the centre of each latent's pixels."""
    ramp = np.tile(np.linspace(0, 255, width, dtype=np.float32), (height, 1))
    spot = place(width, height, resolution=128, bucket_reso_steps=32)
    item = TrainItem(Path("a.png"), "0", (width, height), spot, "", True, 1, "x", flipped=flipped)
    found = latent_mask(Image.fromarray(ramp.astype(np.uint8)), item)
    columns, rows = spot.bucket[0] // 8, spot.bucket[1] // 8
    assert found.shape == (1, rows, columns)
    middles = (spot.crop[0] + 8 * np.arange(columns) + 4) / spot.scaled[0] * width - 0.5
    expected = np.clip(middles / (width - 1), 0, 1)
    assert torch.allclose(found[0, rows // 2], torch.tensor(expected, dtype=torch.float32), atol=0.02)
