"""The caches of latents, masks and text embeddings: precision, cache keys, and when files are written again."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lora_studio.dataset.buckets import Placement
from lora_studio.dataset.images.masks import MaskSource
from lora_studio.errors import ConfigError, JobError, StopRequested
from lora_studio.training.data import cache as cache_module
from lora_studio.training.data.augment import all_augmentations
from lora_studio.training.data.cache import LatentCache, TextCache, encoders_hash, to_16_bit, weights_hash
from lora_studio.training.data.dataset import TrainItem, read_dataset
from tests.support.tiny_sdxl import make_pipeline
from tests.support.training_runs import make_images, recipe_of

LARGE = 2.0**100


@given(values=st.lists(st.floats(-65504, 65504, width=32) | st.floats(-LARGE, LARGE, width=32), min_size=1, max_size=8))
def test_16_bits_round_by_at_most_half_a_unit_in_the_last_place(values: list[float]) -> None:
    """The mantissa has 11 bits in fp16, 8 in bf16, which is used where fp16 would overflow."""
    exact = torch.tensor(values)
    kept = to_16_bit(exact)
    fits = float(exact.abs().max()) <= 65504
    assert kept.dtype == (torch.float16 if fits else torch.bfloat16)
    error, size = (exact.double() - kept.double()).abs(), exact.double().abs()
    assert bool((error <= size * 2.0 ** (-11 if fits else -8) + 2.0**-25).all())
    assert torch.equal(to_16_bit(kept), kept)


def test_16_bit_tensors_are_stored_unchanged() -> None:
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


def test_everything_that_changes_the_content_changes_the_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: file() for name, file in CHANGES.items()}
    files |= {"latents": latents(), "a mask": mask(), "text": text()}
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "TOKENIZATION_VERSION", "1")
        files["text of another tokenization"] = text()
        assert latents() == files["latents"]
    monkeypatch.setattr(cache_module, "CACHE_VERSION", "another")
    files |= {f"{name} of another version": file() for name, file in (("l", latents), ("m", mask), ("t", text))}
    by_file: dict[Path, list[str]] = {}
    for name, file in files.items():
        by_file.setdefault(file, []).append(name)
    assert [names for names in by_file.values() if len(names) > 1] == []


def test_file_names_captions_and_sets_do_not_change_the_cache_key_of_latents() -> None:
    other = replace(ITEM, path=Path("b.png"), caption="a dog", repeats=3, folder="other", prior=True)
    assert latents(other) == latents(MASKED) == latents()
    assert mask(replace(MASKED, flipped=True)) == mask()  # flipped when it is loaded


def test_models_with_other_outputs_have_another_hash(tmp_path: Path) -> None:
    """Also without a difference in weights: activations have none, and tokenizers differ in their padding."""
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


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"))


def test_the_encoded_crop_is_that_of_the_size_conditioning(tmp_path: Path) -> None:
    """The pixels of the image are their own positions: what the VAE gets begins at the crop's offset.

    The VAE is moved to the device, and back even after an error.
    """
    pixels = np.zeros((64, 200, 3), np.uint8)
    pixels[:, :, 0] = np.arange(200)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    dataset = read_dataset(tmp_path, recipe_of())
    item = dataset.items[0]
    seen: list[torch.Tensor] = []
    moves: list[str] = []

    class Vae:
        device, dtype = torch.device("cpu"), torch.float32

        def to(self, device: torch.device) -> None:
            moves.append(device.type)

        def encode(self, batch: torch.Tensor) -> Any:
            seen.append(batch)
            raise StopRequested

    cache = LatentCache(tmp_path / "cache", "x")
    with pytest.raises(StopRequested):
        cache.fill(
            dataset.items,
            Vae(),  # type: ignore[arg-type]
            device=torch.device("meta"),
            should_stop=lambda: False,
            on_progress=lambda done, total: None,
        )
    assert moves == ["meta", "cpu"]
    height, width, top, left, target_height, target_width = item.time_ids
    assert (height, width) == (64, 200)
    assert seen[0].shape == (1, 3, target_height, target_width)
    scaled_width = item.placement.scaled[0]
    assert left == (scaled_width - target_width) // 2
    assert top == 0
    columns = (seen[0][0, 0, 0] + 1) * 127.5
    for column in (5, target_width // 2, target_width - 6):
        assert float(columns[column]) == pytest.approx((left + column + 0.5) * 200 / scaled_width - 0.5, abs=2)


def fill(cache: LatentCache, folder: Path, vae: Any) -> int:
    items = read_dataset(folder, recipe_of()).items
    return cache.fill(items, vae, should_stop=lambda: False, on_progress=lambda done, total: None)


def test_latents_are_cached_by_content(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 64), (32, 64)])
    cache = LatentCache(tmp_path / "cache", weights_hash(parts.vae))
    assert fill(cache, tmp_path / "data", parts.vae) == 2
    assert fill(cache, tmp_path / "data", parts.vae) == 0
    (tmp_path / "data" / "0.png").rename(tmp_path / "data" / "renamed.png")
    assert fill(cache, tmp_path / "data", parts.vae) == 0
    status = (tmp_path / "data" / "1.png").stat()
    Image.new("RGB", (32, 64), "red").save(tmp_path / "data" / "1.png")
    os.utime(tmp_path / "data" / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fill(cache, tmp_path / "data", parts.vae) == 1
    red = cache.load(read_dataset(tmp_path / "data", recipe_of()).items[0])[0]
    pixels = torch.full((1, 3, 64, 32), -1.0)
    pixels[:, 0] = 1
    with torch.no_grad():
        assert torch.equal(red, parts.vae.encode(pixels).latent_dist.mean[0].half().float())


def test_another_resolution_or_vae_has_another_cache_file(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(96, 96)])
    cache = LatentCache(tmp_path / "cache", weights_hash(parts.vae))
    fill(cache, tmp_path / "data", parts.vae)
    small, large = (read_dataset(tmp_path / "data", recipe_of(resolution=side)).items[0] for side in (64, 96))
    assert cache.file(small).exists()
    assert cache.file(large) != cache.file(small)
    assert LatentCache(tmp_path / "cache", "another").file(small) != cache.file(small)


@pytest.mark.parametrize("left", [0, 7, 60, -1], ids=["nothing", "half a length", "half a header", "all but a byte"])
def test_a_truncated_cache_file_is_encoded_again(tmp_path: Path, parts: Any, left: int) -> None:
    make_images(tmp_path / "data", [(64, 64)])
    cache = LatentCache(tmp_path / "cache", "x")
    fill(cache, tmp_path / "data", parts.vae)
    item = read_dataset(tmp_path / "data", recipe_of()).items[0]
    whole = cache.file(item).read_bytes()
    cache.file(item).write_bytes(whole[:left])
    with pytest.raises(JobError, match=r"0\.png") as caught:
        cache.load(item)
    assert caught.value.code == "cache_gone"
    assert fill(cache, tmp_path / "data", parts.vae) == 1
    assert cache.file(item).read_bytes() == whole


def test_nan_from_the_vae_is_an_error_that_names_the_image(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 64)])
    broken = make_pipeline(tmp_path / "tokenizers").vae
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    cache = LatentCache(tmp_path / "cache", "x")
    with pytest.raises(JobError, match=r"0\.png") as caught:
        fill(cache, tmp_path / "data", broken)
    assert caught.value.code == "latent_nan"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_text_embeddings_are_cached_by_caption_encoders_and_clip_skip(tmp_path: Path, parts: Any) -> None:
    encoders, tokenizers = [parts.text_encoder, parts.text_encoder_2], [parts.tokenizer, parts.tokenizer_2]
    encoders = [encoder.eval() for encoder in encoders]

    def fill_texts(cache: TextCache, captions: list[str]) -> int:
        return cache.fill(
            captions, encoders, tokenizers, should_stop=lambda: False, on_progress=lambda done, total: None
        )

    cache = TextCache(tmp_path, weights_hash(*encoders), 2)
    assert fill_texts(cache, ["a cat", "a dog", "a cat"]) == 2
    assert fill_texts(cache, ["a cat", "a bird"]) == 1
    assert fill_texts(TextCache(tmp_path, weights_hash(*encoders), 1), ["a cat"]) == 1
    assert fill_texts(TextCache(tmp_path, "another", 2), ["a cat"]) == 1
    hidden, pooled = cache.load(["a cat"], torch.float32)
    with torch.no_grad():
        expected = parts.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=False)
    assert torch.equal(hidden, expected[0].half().float())
    assert torch.equal(pooled, expected[2].half().float())


def test_filling_the_cache_ends_after_a_stop_request(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 64)] * 3)
    cache = LatentCache(tmp_path / "cache", "x")
    done: list[int] = []
    with pytest.raises(StopRequested):
        cache.fill(
            read_dataset(tmp_path / "data", recipe_of()).items,
            parts.vae,
            should_stop=lambda: len(done) == 2,
            on_progress=lambda number, total: done.append(number),
        )
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def fill_augmentations(cache: LatentCache, folder: Path, recipe: Any, vae: Any) -> int:
    items = [crop for item in read_dataset(folder, recipe).items for crop in all_augmentations(item, recipe)]
    return cache.fill(items, vae, should_stop=lambda: False, on_progress=lambda done, total: None)


def test_flips_and_crops_are_cached_separately(tmp_path: Path, parts: Any) -> None:
    """Each equals the VAE's encoding of the image flipped or cropped by hand; cached ones are not encoded again."""
    make_images(tmp_path / "data", [(96, 64)])
    cache = LatentCache(tmp_path / "cache", weights_hash(parts.vae))
    plain = recipe_of(enable_bucket=False)
    assert fill_augmentations(cache, tmp_path / "data", plain, parts.vae) == 1
    both = recipe_of(enable_bucket=False, flip_aug=True)
    assert fill_augmentations(cache, tmp_path / "data", both, parts.vae) == 1
    cropped = recipe_of(enable_bucket=False, flip_aug=True, random_crop=True)
    (item,) = read_dataset(tmp_path / "data", cropped).items
    views = all_augmentations(item, cropped)
    fresh = {view.placement.crop for view in views} - {item.placement.crop}
    assert fill_augmentations(cache, tmp_path / "data", cropped, parts.vae) == 2 * len(fresh)
    assert fill_augmentations(cache, tmp_path / "data", cropped, parts.vae) == 0
    image = Image.open(tmp_path / "data" / "0.png").convert("RGB")
    for view in views:
        left, top = view.placement.crop
        shown = np.array(image)[top : top + 64, left : left + 64]
        pixels = torch.from_numpy(shown[:, ::-1].copy() if view.flipped else shown).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = parts.vae.encode(pixels / 127.5 - 1).latent_dist.mean[0]
        assert torch.equal(cache.load(view)[0], expected.half().float())


def test_masks_are_cached_and_follow_an_edited_mask_file(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 64), (64, 64)])
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).save(tmp_path / "data" / "0-masklabel.png")
    recipe = recipe_of(masked_loss="files", flip_aug=True)
    cache = LatentCache(tmp_path / "cache", weights_hash(parts.vae))
    fill_augmentations(cache, tmp_path / "data", recipe, parts.vae)
    first, second = read_dataset(tmp_path / "data", recipe).items
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    assert torch.equal(cache.load_mask(first), left)
    assert torch.equal(cache.load_mask(replace(first, flipped=True)), left.flip(-1))
    assert torch.equal(cache.load_mask(second), torch.ones(1, 8, 8))
    Image.fromarray(half.T.copy()).save(tmp_path / "data" / "0-masklabel.png")
    assert fill_augmentations(cache, tmp_path / "data", recipe, parts.vae) == 0
    edited = read_dataset(tmp_path / "data", recipe)
    assert torch.equal(cache.load_mask(edited.items[0]), left.transpose(1, 2))


def test_an_image_that_changes_during_preparation_is_an_error(tmp_path: Path, parts: Any) -> None:
    """Its latents would be cached under the hash of its old content."""
    make_images(tmp_path / "data", [(64, 64), (64, 64)])
    cache = LatentCache(tmp_path / "cache", "x")
    items = read_dataset(tmp_path / "data", recipe_of()).items
    Image.new("RGB", (64, 64), "red").save(tmp_path / "data" / "0.png")
    with pytest.raises(JobError, match=r"0\.png") as caught:
        cache.fill(items, parts.vae, should_stop=lambda: False, on_progress=lambda done, total: None)
    assert caught.value.code == "image_changed"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("gone", [False, True])
def test_damage_during_preparation_is_reported_as_a_change(tmp_path: Path, parts: Any, gone: bool) -> None:
    make_images(tmp_path / "data", [(64, 64), (64, 64)])
    items = read_dataset(tmp_path / "data", recipe_of()).items
    if gone:
        items[0].path.unlink()
    else:
        items[0].path.write_text("no picture", "utf-8")
    with pytest.raises(JobError, match=r"0\.png") as caught:
        LatentCache(tmp_path / "cache", "x").fill(
            items, parts.vae, should_stop=lambda: False, on_progress=lambda done, total: None
        )
    assert caught.value.code == "image_changed"


def test_an_image_of_another_size_than_it_was_placed_for_is_damaged(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 96)])
    (item,) = read_dataset(tmp_path / "data", recipe_of()).items
    cache = LatentCache(tmp_path / "cache", "x")
    with pytest.raises(ConfigError, match=r"0\.png"):
        cache.fill(
            [replace(item, size=(96, 64))], parts.vae, should_stop=lambda: False, on_progress=lambda done, total: None
        )


def test_all_damaged_files_are_reported_at_once(tmp_path: Path, parts: Any) -> None:
    """Their headers are intact, so that only decoding finds the damage. Nothing is encoded after the first one."""
    make_images(tmp_path / "data", [(64, 64)] * 9)
    Image.new("L", (64, 64)).save(tmp_path / "data" / "0-masklabel.png")
    truncated = [
        tmp_path / "data" / "0-masklabel.png",
        *(tmp_path / "data" / f"{number}.png" for number in range(2, 8)),
    ]
    for path in truncated:
        path.write_bytes(path.read_bytes()[:-40])
    recipe = recipe_of(masked_loss="files")
    cache = LatentCache(tmp_path / "cache", "x")
    with pytest.raises(ConfigError) as caught:
        fill_augmentations(cache, tmp_path / "data", recipe, parts.vae)
    for path, problem in zip(truncated[:5], caught.value.problems[:5], strict=True):
        assert path.name in problem
    assert "2 more images" in caught.value.problems[5]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    for path in truncated:
        path.unlink()
    assert fill_augmentations(cache, tmp_path / "data", recipe, parts.vae) == 3


def test_a_missing_cache_file_is_an_error_that_can_be_resumed(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 64)])
    cache = LatentCache(tmp_path / "cache", "x")
    fill(cache, tmp_path / "data", parts.vae)
    (item,) = read_dataset(tmp_path / "data", recipe_of()).items
    cache.file(item).unlink()
    with pytest.raises(JobError, match=r"0\.png") as caught:
        cache.load(item)
    assert "Resume" in caught.value.remedy
    assert caught.value.code == "cache_gone"
