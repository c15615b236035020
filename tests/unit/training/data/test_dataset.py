"""The training dataset: size conditioning, captions, batches, steps, regularisation and validation images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_studio.dataset.buckets import Placement
from lora_studio.dataset.manifest import Manifest, scan_stamps
from lora_studio.dataset.scan import scan
from lora_studio.errors import InputError
from lora_studio.settings.subsets import Subset
from lora_studio.training.data.augment import all_augmentations, augment
from lora_studio.training.data.dataset import TrainItem, epoch_steps, read_dataset
from lora_studio.workspace.project import Home
from tests.support.training_runs import make_images, recipe_of

SIZES = [(64, 64), (96, 64), (64, 96), (64, 64), (200, 100), (64, 64), (70, 66)]


def test_size_conditioning_is_the_original_the_crop_and_the_bucket() -> None:
    """Heights come before widths and tops before lefts; the original size is that of the file."""
    item = TrainItem(Path("a.png"), "0", (900, 1000), Placement((832, 960), (864, 960), (16, 0)), "", True, 1, "images")
    assert item.time_ids == (1000, 900, 0, 16, 960, 832)


def test_an_epoch_contains_every_image_as_often_as_its_repeats(tmp_path: Path) -> None:
    make_images(tmp_path / "data" / "3_often", SIZES[:4])
    make_images(tmp_path / "data" / "1_rarely", SIZES)
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
def test_an_epoch_has_the_counted_steps(tmp_path: Path, changes: dict[str, Any]) -> None:
    make_images(tmp_path / "data" / "2_some", SIZES[2:])
    make_images(tmp_path / "data" / "1_rest", SIZES)
    recipe = recipe_of(**changes)
    dataset = read_dataset(tmp_path / "data", recipe)
    counts = dataset.step_count(recipe)
    steps = epoch_steps(dataset, recipe, 1)
    assert len(steps) == counts.steps_per_epoch
    assert sum(map(len, steps)) == counts.batches_per_epoch
    assert sum(len(batch) for step in steps for batch in step) == counts.samples_per_epoch


def test_missing_captions_are_replaced_by_the_trigger_word_or_the_folder_name(tmp_path: Path) -> None:
    make_images(tmp_path / "5_red fox", [(64, 64), (64, 64)])
    (tmp_path / "5_red fox" / "1.txt").unlink()
    recipe = recipe_of()
    assert [item.caption for item in read_dataset(tmp_path, recipe, "ohwx").items] == ["inkstamp, thing 0", "ohwx"]
    items = read_dataset(tmp_path, recipe).items
    assert [(item.caption, item.has_caption, item.repeats) for item in items] == [
        ("inkstamp, thing 0", True, 5),
        ("red fox", False, 5),
    ]


def test_lists_images_outside_set_folders(tmp_path: Path) -> None:
    make_images(tmp_path / "2_some", [(64, 64)])
    make_images(tmp_path, [(64, 64)] * 2)
    dataset = read_dataset(tmp_path, recipe_of())
    assert [item.path.parent.name for item in dataset.items] == ["2_some"]
    assert dataset.outside_sets == [tmp_path / "0.png", tmp_path / "1.png"]


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


def test_duplicates_of_a_scan_stay_on_one_side_of_the_validation_split(tmp_path: Path) -> None:
    project = Home(tmp_path).create_project("a")
    make_images(project.dataset_dir / "1_a", [(64, 64)] * 8)
    images = sorted((project.dataset_dir / "1_a").glob("*.png"))
    for copy in (1, 2, 3):
        picture = Image.open(images[0])
        picture.putpixel((0, 0), (copy, 0, 0))
        picture.save(images[copy])
    report = scan(project.dataset_dir)
    (group,) = report.duplicate_groups
    duplicates = {group.keep, *group.reject}
    assert len(duplicates) > 2
    stamps = scan_stamps(images)
    Manifest.of_scan(project.dataset_dir, report, stamps).save_scan(project.path)
    for folder in (project.dataset_dir, project.dataset_dir / "1_a"):
        for seed in range(6):
            dataset = read_dataset(folder, recipe_of(validation_split=0.25, seed=seed))
            both = {item.path for item in dataset.validation_items} & duplicates
            assert both in (set(), duplicates)


def test_training_and_regularisation_captions_have_the_recipes_extension(tmp_path: Path) -> None:
    folders = [make_images(tmp_path / name / "1_set", [(64, 64)] * 2) for name in ("own", "prior")]
    for folder in folders:
        (folder / "1.txt2").write_text("other", "utf-8")
    recipe = recipe_of(caption_extension=".txt2")
    dataset = read_dataset(tmp_path / "own", recipe, "inkstamp", regularization=tmp_path / "prior")
    assert [(item.caption, item.has_caption) for item in dataset.items] == [("inkstamp", False), ("other", True)]
    assert [item.caption for item in dataset.regularization] == ["set", "other"]


def test_subsets_have_repeats_and_settings_of_their_own(tmp_path: Path) -> None:
    cats, dogs, prior = (make_images(tmp_path / name, [(64, 64), (64, 64)]) for name in ("10_cats", "dogs", "prior"))
    (cats / "1.txt").unlink()
    (dogs / "0.tags").write_text("brown, dog")
    subsets = [
        Subset(image_dir=cats, num_repeats=3, class_tokens="a cat", settings={"flip_aug": True}),
        Subset(image_dir=dogs, settings={"caption_extension": ".tags", "caption_prefix": "photo,"}),
        Subset(image_dir=prior, is_reg=True, class_tokens="animal"),
    ]
    recipe = recipe_of(keep_tokens=1, repeats=7)
    dataset = read_dataset(tmp_path, recipe, "ohwx", subsets=subsets)
    assert [(item.path.parent.name, item.repeats, item.caption) for item in dataset.items] == [
        ("10_cats", 3, "inkstamp, thing 0"),
        ("10_cats", 3, "a cat"),
        ("dogs", 1, "photo, brown, dog"),
        ("dogs", 1, "photo, ohwx"),
    ]
    assert sum(item.repeats for item in dataset.regularization) == 8
    first, last = dataset.items[0], dataset.items[-1]
    assert [len(all_augmentations(item, recipe)) for item in (first, last)] == [2, 1]
    assert {augment(first, recipe, step, 0).flipped for step in range(20)} == {False, True}
    assert {augment(last, recipe, step, 0).flipped for step in range(20)} == {False}
    assert first.settings is not None
    assert (first.settings.keep_tokens, first.settings.flip_aug, recipe.flip_aug) == (1, True, False)


def test_a_subset_without_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_dataset(tmp_path, recipe_of(), subsets=[Subset(image_dir=tmp_path / "gone")])
    assert caught.value.code == "no_folder"
