"""The review of a dataset's captions: which images are marked as reviewed in marks.json, and which are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.manifest import Manifest
from lora_studio.errors import InputError
from lora_studio.workspace.project import records_folder


class Review(BaseModel):
    """How far the review of a folder is: the images whose caption was read, and those that are left."""

    reviewed: list[Path]
    left: list[Path]

    def __str__(self) -> str:
        return f"{len(self.reviewed)} of {len(self.reviewed) + len(self.left)} reviewed"


def review_status(folder: Path) -> Review:
    """How far the review of a folder is; raises InputError without such a folder."""
    manifest = Manifest.of(folder)
    reviewed: list[Path] = []
    left: list[Path] = []
    for image in find_images(folder):
        (reviewed if manifest.sha256_of(image) in manifest.marks.reviewed else left).append(image)
    return Review(reviewed=reviewed, left=left)


def mark_reviewed(folder: Path, images: Sequence[Path], *, reviewed: bool = True) -> Review:
    """Tick images of a folder (by path, or by name within it), or untick them.

    Raises InputError for an image that is not in it.
    """
    known = {image.resolve(): image for image in find_images(folder)}
    chosen = []
    for image in images:
        found = known.get(image.resolve()) or known.get((folder / image).resolve())
        if found is None:
            raise InputError(f"{image} is no image of {folder}.", "Give the path of one of them.", code="no_image")
        chosen.append(found)
    manifest = Manifest.of(folder)
    manifest.with_reviewed(map(manifest.sha256_of, chosen), reviewed=reviewed).save_marks(records_folder(folder))
    return review_status(folder)
