"""The review of a dataset's captions: which images are marked as reviewed in marks.json, and which are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.marks import change_marks, load_marks
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
        done = manifest.marks.is_reviewed(manifest.sha256_of(image), read_caption(image))
        (reviewed if done else left).append(image)
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
    captions = {manifest.sha256_of(image): read_caption(image) for image in chosen}
    if reviewed:
        change_marks(records_folder(folder), lambda marks: marks.with_reviewed(captions.items()))
    else:
        change_marks(records_folder(folder), lambda marks: marks.without_reviewed(captions))
    return review_status(folder)


def record_reviewed_captions(folder: Path) -> None:
    """Let the marks of an earlier version, which hold for any caption, hold for the present captions of a folder only.

    To be called before captions are changed. Raises DiskFullError or InputError.
    """
    marks = load_marks(records_folder(folder))
    unrecorded = marks.reviewed - marks.reviewed_captions.keys()
    if not unrecorded:
        return
    manifest = Manifest.of(folder)
    hashes = ((manifest.sha256_of(image), image) for image in find_images(folder))
    captions = [(sha256, read_caption(image)) for sha256, image in hashes if sha256 in unrecorded]
    if captions:
        change_marks(records_folder(folder), lambda marks: marks.with_reviewed(captions))
