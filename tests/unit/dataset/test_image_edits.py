"""Rotations and crops of images: they can be undone exactly, and the original is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from lora_studio.dataset.buckets import Focus
from lora_studio.dataset.image_edits import ORIGINALS, ImageEdit, edit_image, edits_of, undo_image_edit
from lora_studio.dataset.images.decode import decode, file_sha256, find_images
from lora_studio.dataset.marks import Marks, load_marks, save_marks
from lora_studio.errors import InputError
from lora_studio.workspace.project import Home, Project

LEFT_HALF = ImageEdit(crop=(0, 0, 0.5, 1))
CLOCKWISE = ImageEdit(rotate=90)


@pytest.fixture
def project(home: Home) -> Project:
    return home.create_project("ink")


def save(path: Path, **options: object) -> Path:
    """Save an image with its columns red, its rows green, 400 x 200 px."""
    x, y = np.meshgrid(np.linspace(0, 255, 400), np.linspace(0, 255, 200))
    Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "a.bmp", "png.jpg"])
def test_edits_are_undone_one_by_one_to_the_original_bytes(project: Project, name: str) -> None:
    image = save(project.images_dir / name, format="PNG" if name == "png.jpg" else None)
    original = image.read_bytes()
    edit_image(project.dataset_dir, image, CLOCKWISE)
    turned = decode(image)
    assert turned.size == (200, 400)
    assert turned.format == ("PNG" if name.startswith("png") else turned.format)
    top_left = turned.image.getpixel((0, 0))
    assert top_left[1] > 240 > 20 > top_left[0], "the lower left corner has become the upper left one"
    edit_image(project.dataset_dir, image, LEFT_HALF)
    assert decode(image).size == (100, 400)
    assert edits_of(project.dataset_dir, image) == [CLOCKWISE, LEFT_HALF]
    assert len([file for file in (project.path / ORIGINALS).iterdir() if file.suffix != ".json"]) == 1
    undo_image_edit(project.dataset_dir, image)
    assert np.abs(np.array(decode(image).image, int) - np.array(turned.image, int)).max() == 0
    undo_image_edit(project.dataset_dir, image)
    assert image.read_bytes() == original
    assert edits_of(project.dataset_dir, image) == []
    with pytest.raises(InputError) as caught:
        undo_image_edit(project.dataset_dir, image)
    assert caught.value.code == "no_image_edit"


def test_all_edits_are_undone_at_once_and_the_image_is_the_only_one_of_the_dataset(project: Project) -> None:
    image = save(project.images_dir / "a.png")
    original = image.read_bytes()
    for _ in range(3):
        edit_image(project.dataset_dir, image, CLOCKWISE)
    assert find_images(project.dataset_dir) == [image]
    undo_image_edit(project.dataset_dir, image, all_edits=True)
    assert image.read_bytes() == original


def test_transparency_and_masks_are_edited_with_the_image(project: Project) -> None:
    image, mask = project.images_dir / "a.png", project.images_dir / "a-masklabel.png"
    picture = Image.new("RGBA", (200, 100), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (100, 0, 200, 100))
    picture.save(image)
    mask_image = Image.new("L", (100, 50), 255)
    mask_image.paste(0, (50, 0, 100, 50))
    mask_image.save(mask)
    before = mask.read_bytes()
    edit_image(project.dataset_dir, image, ImageEdit(crop=(0.5, 0, 1, 1)))
    assert Image.open(image).convert("RGBA").getextrema()[3] == (0, 0)
    assert Image.open(mask).size == (50, 50)
    assert Image.open(mask).convert("L").getextrema() == (0, 0)
    undo_image_edit(project.dataset_dir, image)
    assert mask.read_bytes() == before


def test_marks_and_the_focus_point_stay_with_the_image(project: Project) -> None:
    image = save(project.images_dir / "a.png")
    old = file_sha256(image)
    marks = Marks(kept=frozenset({old}), focus={old: Focus(0.1, 0.2)}).with_reviewed([(old, "ink")])
    save_marks(project.path, marks)
    edit_image(project.dataset_dir, image, CLOCKWISE)
    new, found = file_sha256(image), load_marks(project.path)
    assert new in found.kept
    assert found.is_reviewed(new, "ink")
    assert found.focus[new] == pytest.approx((0.8, 0.1))
    edit_image(project.dataset_dir, image, LEFT_HALF)
    assert file_sha256(image) not in load_marks(project.path).focus
    undo_image_edit(project.dataset_dir, image, all_edits=True)
    assert load_marks(project.path).focus[old] == (0.1, 0.2)


@given(x=st.floats(0, 1), y=st.floats(0, 1), turns=st.lists(st.sampled_from([90, 180, 270]), max_size=4))
def test_a_point_moves_with_the_turns(x: float, y: float, turns: list[int]) -> None:
    focus = Focus(x, y)
    for turn in (*turns, *(360 - turn for turn in reversed(turns))):
        moved = ImageEdit(rotate=turn).move(focus)
        assert moved is not None
        focus = moved
    assert focus == pytest.approx((x, y))


def test_an_image_that_another_program_changed_is_a_new_original(project: Project) -> None:
    image = save(project.images_dir / "a.png")
    edit_image(project.dataset_dir, image, CLOCKWISE)
    Image.new("RGB", (300, 100), "blue").save(image)
    changed = image.read_bytes()
    assert edits_of(project.dataset_dir, image) == []
    edit_image(project.dataset_dir, image, LEFT_HALF)
    assert decode(image).size == (150, 100)
    undo_image_edit(project.dataset_dir, image)
    assert image.read_bytes() == changed
    assert any(decode(file).size == (400, 200) for file in (project.path / ORIGINALS).glob("*.png"))


def test_what_cannot_be_edited_stays_as_it_is(project: Project) -> None:
    image = save(project.images_dir / "a.gif")
    before = image.read_bytes()
    with pytest.raises(InputError) as caught:
        edit_image(project.dataset_dir, image, CLOCKWISE)
    assert caught.value.code == "edit_format"
    assert image.read_bytes() == before
    small = save(project.images_dir / "b.png")
    with pytest.raises(InputError) as caught:
        edit_image(project.dataset_dir, small, ImageEdit(crop=(0, 0, 0.1, 0.1)))
    assert caught.value.code == "crop_small"
    assert decode(small).size == (400, 200)


@pytest.mark.parametrize(
    "box", [(0.5, 0, 0.5, 1), (0.6, 0, 0.5, 1), (-0.1, 0, 1, 1), (0, 0, 1, 1.1), (float("nan"), 0, 1, 1)]
)
def test_a_box_outside_of_the_image_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValidationError):
        ImageEdit(crop=box)
