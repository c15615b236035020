"""What the trainer sees of a dataset: order, conditioning, numbers of steps, and what is kept in the caches."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_studio.dataset.buckets import Placement
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import scan
from lora_studio.errors import JobError, StopRequested
from lora_studio.planning.plan import plan
from lora_studio.training.data.augment import all_augmentations
from lora_studio.training.data.cache import LatentCache, TextCache, weights_hash
from lora_studio.training.data.dataset import TrainItem, epoch_steps, read_dataset
from lora_studio.workspace.project import Home
from tests.support.tiny_sdxl import make_pipeline
from tests.support.training_runs import RECIPE, make_images, recipe_of

SIZES = [(64, 64), (96, 64), (64, 96), (64, 64), (200, 100), (64, 64), (70, 66)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_pipeline(tmp_path_factory.mktemp("tokenizers"))


def test_size_conditioning_is_the_original_the_crop_and_the_bucket() -> None:
    """SDXL wants heights before widths and tops before lefts; the original is the file's own size."""
    item = TrainItem(Path("a.png"), "0", (900, 1000), Placement((832, 960), (864, 960), (16, 0)), "", True, 1, "images")
    assert item.time_ids == (1000, 900, 0, 16, 960, 832)


def test_the_crop_that_is_cut_is_the_crop_that_is_told(tmp_path: Path, parts: Any) -> None:
    """A picture whose pixels hold their own position: what the VAE gets begins at the crop's offset.

    The VAE goes to the device for that, and back whatever happens.
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


def test_an_epoch_shows_every_image_as_often_as_it_is_repeated(tmp_path: Path) -> None:
    make_images(tmp_path / "data" / "3_often", SIZES[:4])
    make_images(tmp_path / "data" / "1_seldom", SIZES)
    recipe = recipe_of(batch_size=2, gradient_accumulation_steps=2)
    dataset = read_dataset(tmp_path / "data", recipe)
    steps = epoch_steps(dataset, recipe, 0)
    seen = Counter(item.path for step in steps for batch in step for item in batch)
    assert seen == {item.path: item.repeats for item in dataset.items}
    assert {item.repeats for item in dataset.items} == {1, 3}
    for step in steps:
        for batch in step:
            assert len({item.placement.bucket for item in batch}) == 1
            assert len(batch) <= 2
    assert [len(step) for step in steps[:-1]] == [2] * (len(steps) - 1)


def test_epochs_are_shuffled_by_the_seed_alone(tmp_path: Path) -> None:
    make_images(tmp_path, [(64, 64)] * 8)
    dataset = read_dataset(tmp_path, recipe_of())

    def order(seed: int, epoch: int) -> list[str]:
        steps = epoch_steps(dataset, recipe_of(seed=seed, batch_size=1), epoch)
        return [item.path.name for step in steps for batch in step for item in batch]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(1, 0)), tuple(order(1, 1)), tuple(order(2, 0))}) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 3, "gradient_accumulation_steps": 2},
        {"repeats": 4, "batch_size": 4, "epochs": 3},
        {"max_train_steps": 5, "epochs": 4},
        {"enable_bucket": False, "batch_size": 2},
        {"bucket_no_upscale": False, "min_bucket_reso": 64, "batch_size": 2},
    ],
)
def test_the_trainer_takes_as_many_steps_as_were_planned(tmp_path: Path, changes: dict[str, Any]) -> None:
    make_images(tmp_path / "data" / "2_some", SIZES[2:])
    make_images(tmp_path / "data" / "1_rest", SIZES)
    recipe = recipe_of(**changes)
    dataset = read_dataset(tmp_path / "data", recipe)
    counts = dataset.step_count(recipe)
    planned = plan(tmp_path / "data", base="embedded", overrides=RECIPE | {"repeats": None} | changes).steps
    assert counts == planned
    steps = epoch_steps(dataset, recipe, 1)
    assert len(steps) == counts.steps_per_epoch
    assert sum(map(len, steps)) == counts.batches_per_epoch
    assert sum(len(batch) for step in steps for batch in step) == counts.samples_per_epoch


def test_captions_come_from_the_files_or_the_trigger_word_or_the_folder(tmp_path: Path) -> None:
    make_images(tmp_path / "5_red fox", [(64, 64), (64, 64)])
    (tmp_path / "5_red fox" / "1.txt").unlink()
    recipe = recipe_of()
    assert [item.caption for item in read_dataset(tmp_path, recipe, "ohwx").items] == ["inkstamp, thing 0", "ohwx"]
    items = read_dataset(tmp_path, recipe).items
    assert [(item.caption, item.has_caption, item.repeats) for item in items] == [
        ("inkstamp, thing 0", True, 5),
        ("red fox", False, 5),
    ]


def test_images_beside_the_folders_that_are_read_are_told(tmp_path: Path) -> None:
    make_images(tmp_path / "2_some", [(64, 64)])
    make_images(tmp_path, [(64, 64)] * 2)
    dataset = read_dataset(tmp_path, recipe_of())
    assert [item.path.parent.name for item in dataset.items] == ["2_some"]
    assert dataset.outside_sets == [tmp_path / "0.png", tmp_path / "1.png"]


def fill(cache: LatentCache, folder: Path, vae: Any) -> int:
    items = read_dataset(folder, recipe_of()).items
    return cache.fill(items, vae, should_stop=lambda: False, on_progress=lambda done, total: None)


def test_latents_are_kept_by_content(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 64), (32, 64)])
    cache = LatentCache(tmp_path / "cache", weights_hash(parts.vae))
    assert fill(cache, tmp_path / "data", parts.vae) == 2
    assert fill(cache, tmp_path / "data", parts.vae) == 0
    (tmp_path / "data" / "0.png").rename(tmp_path / "data" / "renamed.png")
    assert fill(cache, tmp_path / "data", parts.vae) == 0
    stamp = (tmp_path / "data" / "1.png").stat()
    Image.new("RGB", (32, 64), "red").save(tmp_path / "data" / "1.png")
    os.utime(tmp_path / "data" / "1.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert fill(cache, tmp_path / "data", parts.vae) == 1
    red = cache.load(read_dataset(tmp_path / "data", recipe_of()).items[0])[0]
    pixels = torch.full((1, 3, 64, 32), -1.0)
    pixels[:, 0] = 1
    with torch.no_grad():
        assert torch.equal(red, parts.vae.encode(pixels).latent_dist.mean[0].half().float())


def test_another_size_or_vae_is_encoded_anew(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(96, 96)])
    cache = LatentCache(tmp_path / "cache", weights_hash(parts.vae))
    fill(cache, tmp_path / "data", parts.vae)
    small, large = (read_dataset(tmp_path / "data", recipe_of(resolution=side)).items[0] for side in (64, 96))
    assert cache.file(small).exists()
    assert cache.file(large) != cache.file(small)
    assert LatentCache(tmp_path / "cache", "another").file(small) != cache.file(small)


@pytest.mark.parametrize("left", [0, 7, 60, -1], ids=["nothing", "half a length", "half a header", "all but a byte"])
def test_a_torn_cache_file_is_made_anew(tmp_path: Path, parts: Any, left: int) -> None:
    make_images(tmp_path / "data", [(64, 64)])
    cache = LatentCache(tmp_path / "cache", "x")
    fill(cache, tmp_path / "data", parts.vae)
    item = read_dataset(tmp_path / "data", recipe_of()).items[0]
    whole = cache.file(item).read_bytes()
    cache.file(item).write_bytes(whole[:left])
    with pytest.raises(JobError, match=r"cached of 0\.png is gone or damaged"):
        cache.load(item)
    assert fill(cache, tmp_path / "data", parts.vae) == 1
    assert cache.file(item).read_bytes() == whole


def test_a_vae_that_breaks_names_the_image(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 64)])
    broken = make_pipeline(tmp_path / "tokenizers").vae
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    cache = LatentCache(tmp_path / "cache", "x")
    with pytest.raises(JobError, match=r"0\.png") as caught:
        fill(cache, tmp_path / "data", broken)
    assert caught.value.code == "latent_nan"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_texts_are_kept_by_caption_encoders_and_clip_skip(tmp_path: Path, parts: Any) -> None:
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


def test_filling_stops_when_asked(tmp_path: Path, parts: Any) -> None:
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


def fill_views(cache: LatentCache, folder: Path, recipe: Any, vae: Any) -> int:
    items = [view for item in read_dataset(folder, recipe).items for view in all_augmentations(item, recipe)]
    return cache.fill(items, vae, should_stop=lambda: False, on_progress=lambda done, total: None)


def test_mirrored_and_cut_latents_are_kept_on_their_own(tmp_path: Path, parts: Any) -> None:
    """Each is the VAE's answer to the picture mirrored or cut by hand; what was there is not encoded again."""
    make_images(tmp_path / "data", [(96, 64)])
    cache = LatentCache(tmp_path / "cache", weights_hash(parts.vae))
    plain = recipe_of(enable_bucket=False)
    assert fill_views(cache, tmp_path / "data", plain, parts.vae) == 1
    both = recipe_of(enable_bucket=False, flip_aug=True)
    assert fill_views(cache, tmp_path / "data", both, parts.vae) == 1
    cropped = recipe_of(enable_bucket=False, flip_aug=True, random_crop=True)
    (item,) = read_dataset(tmp_path / "data", cropped).items
    views = all_augmentations(item, cropped)
    fresh = {view.placement.crop for view in views} - {item.placement.crop}
    assert fill_views(cache, tmp_path / "data", cropped, parts.vae) == 2 * len(fresh)
    assert fill_views(cache, tmp_path / "data", cropped, parts.vae) == 0
    image = Image.open(tmp_path / "data" / "0.png").convert("RGB")
    for view in views:
        left, top = view.placement.crop
        shown = np.array(image)[top : top + 64, left : left + 64]
        pixels = torch.from_numpy(shown[:, ::-1].copy() if view.flipped else shown).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = parts.vae.encode(pixels / 127.5 - 1).latent_dist.mean[0]
        assert torch.equal(cache.load(view)[0], expected.half().float())


def test_masks_are_kept_beside_the_latents(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 64), (64, 64)])
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).save(tmp_path / "data" / "0-masklabel.png")
    recipe = recipe_of(masked_loss="files", flip_aug=True)
    cache = LatentCache(tmp_path / "cache", weights_hash(parts.vae))
    fill_views(cache, tmp_path / "data", recipe, parts.vae)
    first, second = read_dataset(tmp_path / "data", recipe).items
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    assert torch.equal(cache.load_mask(first), left)
    assert torch.equal(cache.load_mask(replace(first, flipped=True)), left.flip(-1))
    assert torch.equal(cache.load_mask(second), torch.ones(1, 8, 8))
    Image.fromarray(half.T.copy()).save(tmp_path / "data" / "0-masklabel.png")
    assert fill_views(cache, tmp_path / "data", recipe, parts.vae) == 0
    edited = read_dataset(tmp_path / "data", recipe)
    assert torch.equal(cache.load_mask(edited.items[0]), left.transpose(1, 2))


def test_an_image_that_changes_while_it_is_read_is_named(tmp_path: Path, parts: Any) -> None:
    """Its latents would be kept under the content that it no longer has."""
    make_images(tmp_path / "data", [(64, 64), (64, 64)])
    cache = LatentCache(tmp_path / "cache", "x")
    items = read_dataset(tmp_path / "data", recipe_of()).items
    Image.new("RGB", (64, 64), "red").save(tmp_path / "data" / "0.png")
    with pytest.raises(JobError, match=r"'0\.png' was changed while the run was being prepared") as caught:
        cache.fill(items, parts.vae, should_stop=lambda: False, on_progress=lambda done, total: None)
    assert caught.value.code == "image_changed"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_is_gone_from_the_cache_is_told(tmp_path: Path, parts: Any) -> None:
    make_images(tmp_path / "data", [(64, 64)])
    cache = LatentCache(tmp_path / "cache", "x")
    fill(cache, tmp_path / "data", parts.vae)
    (item,) = read_dataset(tmp_path / "data", recipe_of()).items
    cache.file(item).unlink()
    with pytest.raises(JobError, match=r"cached of 0\.png is gone") as caught:
        cache.load(item)
    assert "Resume" in caught.value.remedy
    assert caught.value.code == "cache_gone"


def test_a_regularisation_set_is_balanced_and_has_no_trigger_word(tmp_path: Path) -> None:
    make_images(tmp_path / "data" / "3_ohwx", [(64, 64), (96, 64)])
    make_images(tmp_path / "prior" / "1_woman", [(64, 64)] * 4)
    (tmp_path / "prior" / "1_woman" / "1.txt").unlink()
    dataset = read_dataset(tmp_path / "data", recipe_of(), "ohwx", regularization=tmp_path / "prior")
    assert [item.repeats for item in dataset.regularization] == [2, 2, 1, 1]
    assert dataset.regularization[1].caption == "woman"
    assert all(item.prior for item in dataset.regularization)
    assert not any(item.prior for item in dataset.items)
    seen = Counter(item.path for step in epoch_steps(dataset, recipe_of(), 0) for batch in step for item in batch)
    assert seen == {item.path: item.repeats for item in dataset.epoch_items}
    assert sum(seen.values()) == 12


@pytest.mark.parametrize("changes", [{}, {"repeats": 3, "batch_size": 3}, {"validation_split": 0.0}])
def test_the_plan_counts_regularisation_and_held_out_images(tmp_path: Path, changes: dict[str, Any]) -> None:
    make_images(tmp_path / "data" / "2_some", SIZES)
    make_images(tmp_path / "data" / "1_rest", [(128, 64)] * 4)  # the first two are copies of no others
    make_images(tmp_path / "prior", SIZES[3:])
    given = {"validation_split": 0.25} | changes
    dataset = read_dataset(tmp_path / "data", recipe_of(**given), regularization=tmp_path / "prior")
    planned = plan(
        tmp_path / "data",
        base="embedded",
        overrides=RECIPE | {"repeats": None} | given,
        regularization=tmp_path / "prior",
    )
    assert dataset.step_count(recipe_of(**given)) == planned.steps
    assert len(dataset.validation_items) == (3 if given["validation_split"] else 0)
    assert not {item.path for item in dataset.validation_items} & {item.path for item in dataset.epoch_items}
    assert sum(item.repeats for item in dataset.regularization) == sum(item.repeats for item in dataset.items)


def test_copies_that_a_scan_found_are_held_out_together(tmp_path: Path) -> None:
    project = Home(tmp_path).create_project("a")
    make_images(project.dataset_dir / "1_a", [(64, 64)] * 8)
    images = sorted((project.dataset_dir / "1_a").glob("*.png"))
    for copy in (1, 2, 3):
        picture = Image.open(images[0])
        picture.putpixel((0, 0), (copy, 0, 0))
        picture.save(images[copy])
    report = scan(project.dataset_dir)
    (group,) = report.duplicate_groups
    copies = {group.keep, *group.reject}
    assert len(copies) > 2
    stamps = scan_stamps(images)
    Manifest.of_scan(project.dataset_dir, report, stamps).save_scan(project.path)
    for folder in (project.dataset_dir, project.dataset_dir / "1_a"):
        for seed in range(6):
            dataset = read_dataset(folder, recipe_of(validation_split=0.25, seed=seed))
            both = {item.path for item in dataset.validation_items} & copies
            assert both in (set(), copies)
