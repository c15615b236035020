"""The extension of captions: one choice per dataset, which everything follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import lora_studio
from lora_studio import api
from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.extension import suffixes_in
from lora_studio.dataset.captions.text import caption_file, read_caption, write_caption
from lora_studio.dataset.curate import curate
from lora_studio.dataset.ingest.importers import import_paths
from lora_studio.dataset.training_images import read_images
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home, ProjectInfo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset with two sets of captions."""
    images = tmp_path / "data" / "10_cat"
    images.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (600, 600), (90 * number, 40, 200 - 60 * number)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"first {number}")
        (images / f"{number}.txt2").write_text(f"second {number}")
    return images.parent


def captions(folder: Path) -> list[str | None]:
    return [read_caption(image) for image in sorted(folder.rglob("*.png"))]


def test_a_folder_uses_txt_until_another_extension_is_chosen(folder: Path) -> None:
    assert captions(folder) == ["first 0", "first 1", "first 2"]
    lora_studio.set_caption_extension(folder, "txt2")
    assert suffixes_in(folder / "10_cat") == (".txt2",)
    assert captions(folder) == ["second 0", "second 1", "second 2"]
    assert [image.caption for image in read_images(folder).images] == captions(folder)
    lora_studio.set_caption_extension(folder, "")
    assert captions(folder) == ["first 0", "first 1", "first 2"]


def test_edits_statistics_and_undo_use_the_chosen_captions(folder: Path) -> None:
    lora_studio.set_caption_extension(folder, ".txt2")
    api.edit_captions(folder, edits.add("new"))
    assert captions(folder) == ["second 0, new", "second 1, new", "second 2, new"]
    assert {count.tag: count.images for count in api.summarize_captions(folder).tags}["new"] == 3
    assert (folder / "10_cat" / "0.txt").read_text() == "first 0"
    api.undo_caption_edit(folder)
    assert captions(folder) == ["second 0", "second 1", "second 2"]


def test_a_new_caption_gets_the_extension(folder: Path) -> None:
    lora_studio.set_caption_extension(folder, ".new")
    image = folder / "10_cat" / "0.png"
    assert read_caption(image) is None
    assert write_caption(image, "a cat") == caption_file(image) == image.with_suffix(".new")


def test_curation_moves_both_sets_of_captions(folder: Path) -> None:
    lora_studio.set_caption_extension(folder, ".txt2")
    image = folder / "10_cat" / "1.png"
    (folder / "10_cat" / "1 again.png").write_bytes(image.read_bytes())
    (folder / "10_cat" / "1 again.txt2").write_text("x")
    rejected = curate(folder, apply=True)
    (moved,) = rejected.rejected
    assert not list((folder / "10_cat").glob(f"{moved.stem}.txt*"))
    curate(folder, restore=True)
    assert captions(folder)[0] == "second 0"


def test_a_project_uses_the_setting_of_its_recipe(tmp_path: Path, folder: Path) -> None:
    project = Home(tmp_path / "home").create_project("cat", ProjectInfo(recipe={"caption_extension": ".txt2"}))
    import_paths([folder], project.images_dir)
    assert sorted(path.name for path in project.images_dir.glob("0.*")) == ["0.png", "0.txt2"]
    assert captions(project.dataset_dir) == ["second 0", "second 1", "second 2"]
    lora_studio.set_caption_extension(project.dataset_dir, "")
    assert project.info().recipe == {}
    assert captions(project.dataset_dir) == [None, None, None]


def test_a_damaged_record_means_the_default(folder: Path) -> None:
    for content in ("{", "[]", '{"caption_extension": "../x"}', '{"caption_extension": 3}'):
        (folder / "captions.json").write_text(content)
        assert suffixes_in(folder / "10_cat")[0] == ".txt"


@pytest.mark.parametrize("extension", [".png", "a/b", "*"])
def test_extensions_that_cannot_be_used(folder: Path, extension: str) -> None:
    with pytest.raises(InputError):
        lora_studio.set_caption_extension(folder, extension)
    assert suffixes_in(folder)[0] == ".txt"
