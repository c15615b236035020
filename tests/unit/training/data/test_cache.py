"""What is kept of images and captions: how exactly, under which name, and when it is made again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lora_studio.dataset.buckets import Placement
from lora_studio.dataset.images.masks import MaskSource
from lora_studio.training.data import cache
from lora_studio.training.data.cache import LatentCache, TextCache, encoders_hash, to_16_bit, weights_hash
from lora_studio.training.data.dataset import TrainItem
from tests.support.tiny_sdxl import make_pipeline

LARGE = 2.0**100


@given(values=st.lists(st.floats(-65504, 65504, width=32) | st.floats(-LARGE, LARGE, width=32), min_size=1, max_size=8))
def test_sixteen_bits_are_as_exact_as_they_say(values: list[float]) -> None:
    """A half of the last of 11 bits in fp16, of 8 where bf16 is needed, and nothing becomes infinite."""
    exact = torch.tensor(values)
    kept = to_16_bit(exact)
    fits = float(exact.abs().max()) <= 65504
    assert kept.dtype == (torch.float16 if fits else torch.bfloat16)
    error, size = (exact.double() - kept.double()).abs(), exact.double().abs()
    assert bool((error <= size * 2.0 ** (-11 if fits else -8) + 2.0**-25).all())
    assert torch.equal(to_16_bit(kept), kept)


def test_what_has_sixteen_bits_already_is_kept_as_it_is() -> None:
    value = torch.tensor([1e-30, 3.0], dtype=torch.bfloat16)
    assert torch.equal(to_16_bit(value), value)
    assert to_16_bit(value).dtype == torch.bfloat16


PLACE = Placement((96, 64), (64, 64), (16, 0))
ITEM = TrainItem(Path("a.png"), "0" * 64, (192, 128), PLACE, "a cat", True, 1, "images")
MASKED = replace(ITEM, mask=MaskSource(Path("m.png"), "1" * 64, alpha=False))


def latents(item: TrainItem = ITEM, vae: str = "vae", half: torch.dtype | None = None) -> Path:
    return LatentCache(Path(), vae, half).file(item)


def mask(item: TrainItem = MASKED) -> Path:
    return LatentCache(Path(), "vae").mask_file(item)


def text(caption: str = "a cat", encoders: str = "encoders", clip_skip: int = 2, length: int = 75) -> Path:
    return TextCache(Path(), encoders, clip_skip, length).file(caption)


def placed(item: TrainItem, **changes: Any) -> TrainItem:
    return replace(item, placement=replace(item.placement, **changes))


CHANGES: dict[str, Callable[[], Path]] = {
    "image": lambda: latents(replace(ITEM, sha256="2" * 64)),
    "crop": lambda: latents(placed(ITEM, crop=(15, 0))),
    "scaling": lambda: latents(placed(ITEM, scaled=(100, 64))),
    "resolution": lambda: latents(placed(ITEM, bucket=(32, 64))),
    "mirrored": lambda: latents(replace(ITEM, flipped=True)),
    "colours": lambda: latents(replace(MASKED, mask=MaskSource(Path("a.png"), "0" * 64, alpha=True))),
    "VAE": lambda: latents(vae="another"),
    "fp16": lambda: latents(half=torch.float16),
    "bf16": lambda: latents(half=torch.bfloat16),
    "mask": lambda: mask(replace(MASKED, mask=MaskSource(Path("m.png"), "2" * 64, alpha=False))),
    "mask crop": lambda: mask(placed(MASKED, crop=(15, 0))),
    "mask resolution": lambda: mask(placed(MASKED, bucket=(32, 64))),
    "mask of transparency": lambda: mask(replace(MASKED, mask=MaskSource(Path("m.png"), "1" * 64, alpha=True))),
    "caption": lambda: text("a cat "),
    "encoders": lambda: text(encoders="another"),
    "clip skip": lambda: text(clip_skip=1),
    "tokens": lambda: text(length=150),
}


def test_all_that_changes_what_is_kept_changes_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: make() for name, make in CHANGES.items()}
    files |= {"latents": latents(), "a mask": mask(), "text": text()}
    monkeypatch.setattr(cache, "VERSION", "another")
    files |= {f"{name} of another version": make() for name, make in (("l", latents), ("m", mask), ("t", text))}
    by_file: dict[Path, list[str]] = {}
    for name, file in files.items():
        by_file.setdefault(file, []).append(name)
    assert [names for names in by_file.values() if len(names) > 1] == []


def test_names_captions_and_sets_of_images_do_not_matter_to_their_latents() -> None:
    other = replace(ITEM, path=Path("b.png"), caption="a dog", repeats=3, folder="other", prior=True)
    assert latents(other) == latents(MASKED) == latents()
    assert mask(replace(MASKED, flipped=True)) == mask()  # mirrored when it is read


def test_models_that_answer_otherwise_have_another_hash(tmp_path: Path) -> None:
    """Not only by their weights: activations have none, and tokenizers of the same encoders differ in how they pad."""
    pipe = make_pipeline(tmp_path, layers=1)
    encoders, tokenizers = [pipe.text_encoder, pipe.text_encoder_2], [pipe.tokenizer, pipe.tokenizer_2]
    hashes = [weights_hash(pipe.vae), encoders_hash(encoders, tokenizers), encoders_hash(encoders[::-1], tokenizers)]
    tokenizers[1].pad_token = "!" if tokenizers[1].pad_token != "!" else tokenizers[1].eos_token
    hashes.append(encoders_hash(encoders, tokenizers))
    assert hashes[-1] == encoders_hash(copy.deepcopy(encoders), tokenizers)
    for model, activation in ((pipe.vae, "nonlinearity"), (encoders[0], "activation_fn")):
        place = next(name for name, _ in model.named_modules() if name.endswith(activation))
        model.set_submodule(place, nn.Tanh())
    hashes += [weights_hash(pipe.vae), encoders_hash(encoders, tokenizers)]
    with torch.no_grad():
        next(encoders[0].parameters())[0] += 1
    hashes.append(encoders_hash(encoders, tokenizers))
    assert len(set(hashes)) == len(hashes)
