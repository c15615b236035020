"""Cached contents equal those on disk after every kind of change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio.dataset.captions.extension import set_caption_extension
from lora_studio.dataset.marks import save_marks
from lora_studio.example import EXAMPLE_IMAGES
from lora_studio.planning.project_plan import load_plan
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.ui.dataset.contents import Contents
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.captioned_images import CAPTIONS, TRIGGER, add_captioned_images

CHANGES: dict[str, Callable[[Project], object]] = {
    "a caption of the same length": lambda project: edit(project, "key.txt", "key", "kez"),
    "the caption again": lambda project: edit(project, "key.txt", "kez", "key"),
    "a caption removed": lambda project: (project.images_dir / "key.txt").unlink(),
    "a .caption file added": lambda project: (project.images_dir / "key.caption").write_text("old"),
    "marked as reviewed": lambda project: mark_first(project, "reviewed"),
    "its caption changed": lambda project: edit(project, "guitar.txt", "guitar", "lute"),
    "its caption restored": lambda project: edit(project, "guitar.txt", "lute", "guitar"),
    "unmarked": lambda project: mark_first(project, "unreviewed"),
    "marked as kept": lambda project: mark_first(project, "kept"),
    "the trigger word": lambda project: project.save_info(ProjectInfo(trigger_word="ink")),
    "another extension of captions": lambda project: set_caption_extension(project.dataset_dir, ".txt2"),
    "a caption with it": lambda project: (project.images_dir / "key.txt2").write_text("a key"),
    "that caption changed": lambda project: (project.images_dir / "key.txt2").write_text("a big key"),
    "the usual extension again": lambda project: set_caption_extension(project.dataset_dir, ""),
    "an image added": lambda project: shutil.copy(EXAMPLE_IMAGES / "owl.png", project.images_dir),
    "an image removed": lambda project: (project.images_dir / "umbrella.png").unlink(),
    "a set added": lambda project: (project.images_dir.parent / "2_more").mkdir(),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("studio") / "home")


@pytest.fixture(scope="module")
def original(home: Home) -> Project:
    return add_captioned_images(home.create_project("original", ProjectInfo(trigger_word=TRIGGER)))


def edit(project: Project, name: str, old: str, new: str) -> None:
    file = project.images_dir / name
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")


def mark_first(project: Project, mark: str) -> None:
    """Mark the first image of a project, as another program would."""
    contents = Contents.of(project)
    info = contents.items[0].info
    assert info is not None
    marks = contents.manifest.marks
    if mark == "kept":
        marks = marks.with_kept([info.sha256])
    elif mark == "reviewed":
        marks = marks.with_reviewed([(info.sha256, contents.items[0].caption)])
    else:
        marks = marks.without_reviewed([info.sha256])
    save_marks(project.path, marks)


def statistics(contents: Contents) -> tuple[object, ...]:
    """Return all statistics, whether they are computed already or not."""
    return (
        contents.images.indices,
        contents.images.sizes,
        contents.images.unscanned,
        contents.images.trained.images,
        contents.images.split,
        contents.captions.tag_table,
        [finding.as_dict() for finding in contents.captions.findings],
        contents.captions.without_trigger,
        contents.bucketing.buckets,
        contents.bucketing.recipe,
    )


def test_cached_contents_equal_those_on_disk(home: Home, original: Project) -> None:
    project = home.duplicate_project(original.name, "changing")
    for what, change in CHANGES.items():
        before = Contents.of(project)
        statistics(before)
        change(project)
        now, loaded = Contents.of(project), Contents.load(project)
        assert (now.items, now.trigger, now.manifest) == (loaded.items, loaded.trigger, loaded.manifest), what
        assert statistics(now) == statistics(loaded), what
        assert Contents.of(project) is now
        if what == "marked as reviewed":
            assert now.items[1] is before.items[1]
            assert now.captions is before.captions


def test_buckets_have_the_images_that_the_recipe_trains_on(home: Home, original: Project) -> None:
    project = home.duplicate_project(original.name, "bucketed")
    shutil.copy(EXAMPLE_IMAGES / "owl.png", project.dataset_dir / "outside of the sets.png")
    recipe = Recipe(resolution=512, validation_split=0.3, repeats=3, batch_size=1)
    project.save_info(project.info().model_copy(update={"recipe": recipe.non_defaults()}))
    contents = Contents.of(project)
    (run,) = contents.images.trained.split(recipe).validation
    shown = {image.path for bucket in contents.bucketing.buckets for image in bucket.images}
    assert shown == {path for path in project.images_dir.glob("*.png") if path != run.image.path}
    assert sum(bucket.samples for bucket in contents.bucketing.buckets) == 3 * len(shown)
    assert contents.images.trained.outside_sets == [project.dataset_dir / "outside of the sets.png"]


def test_buckets_have_the_repeats_of_subsets(home: Home, original: Project) -> None:
    project = home.duplicate_project(original.name, "subsets")
    recipe = Recipe(repeats=3, batch_size=1)
    subset = Subset(image_dir=Path(project.images_dir.name), num_repeats=5)
    project.save_info(project.info().model_copy(update={"recipe": recipe.non_defaults(), "subsets": [subset]}))
    buckets, planned = Contents.of(project).bucketing.buckets, load_plan(project).plan
    assert planned is not None
    assert sum(bucket.samples for bucket in buckets) == 5 * sum(len(bucket.images) for bucket in buckets) > 0
    assert sum(bucket.samples for bucket in buckets) == planned.steps.samples_per_epoch


def test_after_change_reads_only_the_changed_images(home: Home, original: Project) -> None:
    project = home.duplicate_project(original.name, "moved")
    for file in project.images_dir.glob("*.txt"):
        os.utime(file, (1, 1))  # files that changed within the last second are compared in any case
    contents = Contents.of(project)
    image = contents.items[0].path
    moved = [path.rename(project.path / path.name) for path in (image, image.with_suffix(".txt"))]
    edit(project, "key.txt", "key", "lock")  # by another program
    left = contents.after_change([image])
    assert [item.caption for item in left.items] == [CAPTIONS["key.png"], CAPTIONS["umbrella.png"]]
    reloaded = Contents.of(project)
    assert [item.caption for item in reloaded.items] == [f"{TRIGGER}, lock, ink", CAPTIONS["umbrella.png"]]
    for path in moved:
        path.rename(image.parent / path.name)
    back = reloaded.after_change([image])
    assert back.items == Contents.load(project).items
    assert back.items[1] is reloaded.items[0]
