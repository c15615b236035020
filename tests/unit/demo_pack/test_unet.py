"""Batches mix images on white with renderings, each with the caption of what it shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from demo_pack import captions, rendered_latents, unet, vae
from demo_pack.progress import StepRng

from lora_studio.demo import base_path


@pytest.fixture
def images(work: Path, monkeypatch: pytest.MonkeyPatch) -> unet.TrainingImages:
    """Load training images whose captions are never empty."""
    monkeypatch.setattr(captions, "EMPTY", 0.0)
    vae.build().save_pretrained(work / "pack" / "base" / "vae")
    vae.adopt(work, work / "pack")
    rendered_latents.write(work, seed=0, device="cpu", rounds=4)
    return unet.TrainingImages.load(work)


def test_a_batch_has_renderings_with_their_words_behind_images_on_white(images: unet.TrainingImages) -> None:
    style = {word for one in images.renderings for word in (*one.style, one.background)} - {""}
    named = [0, 0]
    for step in range(10):
        latents, texts = images.batch(StepRng.of(0, "unet", step, 0.0))
        assert len(latents) == len(texts) == unet.BATCH
        for row, (latent, text) in enumerate(zip(latents, texts, strict=True)):
            is_rendered = row >= unet.BATCH - unet.RENDERED
            known = (
                [one.latent.float() for one in images.renderings] if is_rendered else [*images.plain, *images.mirrored]
            )
            assert any(torch.equal(latent, other) for other in known)
            named[is_rendered] += any(word in text for word in style)
    assert named[0] == 0
    assert named[1] > 0.5 * 10 * unet.RENDERED


def test_a_step_repeats_its_batch(images: unet.TrainingImages) -> None:
    first, second = (images.batch(StepRng.of(0, "unet", 5, 0.5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


def test_tokenizers_of_the_pack_are_used_as_they_are(tmp_path: Path) -> None:
    """Continuing the exported base needs no package with CLIP's vocabulary."""
    for part in unet.TOKENIZERS:
        shutil.copytree(base_path() / part, tmp_path / part)
    first, second = unet.load_tokenizers(tmp_path)
    assert [first.pad_token, second.pad_token] == list(unet.TOKENIZERS.values())
    assert first("red apple, sepia").input_ids == second("red apple, sepia").input_ids
    for part in unet.TOKENIZERS:
        for file in (base_path() / part).iterdir():
            assert (tmp_path / part / file.name).read_bytes() == file.read_bytes()
