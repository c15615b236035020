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
    """Review progress of a folder: images whose caption is marked as reviewed, and those that are left."""

    reviewed: list[Path]
    left: list[Path]

    def __str__(self) -> str:
        return f"{len(self.reviewed)} of {len(self.reviewed) + len(self.left)} reviewed"


def review_status(folder: Path) -> Review:
    """Return the review progress of a folder; raises InputError if the folder does not exist."""
    manifest = Manifest.of(folder)
    reviewed: list[Path] = []
    left: list[Path] = []
    for image in find_images(folder):
        (reviewed if manifest.sha256_of(image) in manifest.marks.reviewed else left).append(image)
    return Review(reviewed=reviewed, left=left)


def mark_reviewed(folder: Path, images: Sequence[Path], *, reviewed: bool = True) -> Review:
    """Mark images of a folder, given by path or by name within it, as reviewed or as not reviewed.

    Raises InputError for an image that is not in the folder.
    """
    known = {image.resolve(): image for image in find_images(folder)}
    chosen = []
    for image in images:
        found = known.get(image.resolve()) or known.get((folder / image).resolve())
        if found is None:
            raise InputError(
                f"{image} is not an image in {folder}.", "Give the path of one of its images.", code="no_image"
            )
        chosen.append(found)
    manifest = Manifest.of(folder)
    manifest.with_reviewed(map(manifest.sha256_of, chosen), reviewed=reviewed).save_marks(records_folder(folder))
    return review_status(folder)
