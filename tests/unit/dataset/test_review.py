"""Captions that are marked as reviewed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio.dataset.review import mark_reviewed, review_status
from lora_studio.errors import InputError


@pytest.fixture
def folder(image_folder: Callable[..., Path]) -> Path:
    """Three images, of which none is reviewed."""
    return image_folder(3)


def reviewed(folder: Path) -> list[str]:
    return [image.name for image in review_status(folder).reviewed]


def test_images_are_marked_by_path_or_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(review_status(folder)) == "0 of 3 reviewed"
    monkeypatch.chdir(folder.parent)
    status = mark_reviewed(folder, [Path("picture 0.png"), Path(folder.name, "picture 2.png")])
    assert [image.name for image in status.reviewed] == ["picture 0.png", "picture 2.png"]
    assert [image.name for image in status.left] == ["picture 1.png"]
    mark_reviewed(folder, [folder / "picture 0.png"], reviewed=False)
    assert reviewed(folder) == ["picture 2.png"]


def test_a_mark_follows_the_content_of_its_image(folder: Path) -> None:
    mark_reviewed(folder, [folder / "picture 0.png"])
    for suffix in ("png", "txt"):
        (folder / f"picture 0.{suffix}").rename(folder / f"renamed.{suffix}")
    assert reviewed(folder) == ["renamed.png"]
    (folder / "renamed.png").write_bytes((folder / "picture 1.png").read_bytes())
    assert reviewed(folder) == []


def test_an_image_whose_caption_has_changed_is_no_longer_reviewed(folder: Path) -> None:
    mark_reviewed(folder, [folder / "picture 0.png", folder / "picture 1.png"])
    (folder / "picture 0.txt").write_text("another caption", "utf-8")
    assert reviewed(folder) == ["picture 1.png"]


def test_an_image_elsewhere_is_an_error_and_marks_nothing(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        mark_reviewed(folder, [folder / "picture 0.png", Path("../other.png")])
    assert caught.value.code == "no_image"
    assert reviewed(folder) == []
