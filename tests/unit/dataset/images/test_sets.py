"""Set folders: safe names, and moving loose images into a set."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_studio.dataset.images.sets import set_name, wrap_images
from lora_studio.errors import InputError
from lora_studio.workspace.project import image_sets


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@given(st.text(max_size=80))
def test_a_safe_set_name_stays_the_same(text: str) -> None:
    name = set_name(f"7_{text}")
    assert name is None or set_name(name) == name
    assert not name or not set("/\\:\0") & set(name)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Two captioned images with masks, nothing else."""
    for path in ("a.png", "b.jpg", "mask/a.png", "b-masklabel.png"):
        draw(tmp_path / path)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.caption").write_text("two")
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_moves_images_with_captions_and_masks_into_a_set(flat: Path) -> None:
    assert wrap_images(flat, "saria") == [flat / "10_saria" / "a.png", flat / "10_saria" / "b.jpg"]
    wrapped = ["a.png", "a.txt", "b-masklabel.png", "b.caption", "b.jpg", "mask/a.png"]
    assert names(flat) == [*(f"10_saria/{name}" for name in wrapped), "notes.txt"]
    (found,) = image_sets(flat)
    assert (found.repeats, found.concept) == (10, "saria")


def test_moves_images_into_an_existing_set(flat: Path) -> None:
    draw(flat / "5_cat" / "c.png")
    wrap_images(flat, "5_cat")
    assert len(list((flat / "5_cat").glob("*.[pj][np]g"))) == 4  # one of them a mask


def test_moves_nothing_if_the_set_has_a_file_of_the_same_name(flat: Path) -> None:
    draw(flat / "5_cat" / "b.jpg")
    before = names(flat)
    with pytest.raises(InputError, match=r"b\.jpg") as caught:
        wrap_images(flat, "5_cat")
    assert caught.value.code == "taken"
    assert names(flat) == before


def test_an_interrupted_move_can_be_repeated(flat: Path) -> None:
    (flat / "10_saria").mkdir()
    (flat / "a.txt").rename(flat / "10_saria" / "a.txt")
    wrap_images(flat, "10_saria")
    assert (flat / "10_saria" / "a.txt").read_text() == "one"
    assert names(flat)[-1] == "notes.txt"


@pytest.mark.parametrize("name", ["", "  ", "0_cat", "501_cat"])
def test_refuses_a_bad_set_name(flat: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        wrap_images(flat, name)
    assert caught.value.code == "set_name"


def test_refuses_a_folder_without_loose_images(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        wrap_images(tmp_path, "10_cat")
    assert caught.value.code == "loose"
