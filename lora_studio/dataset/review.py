"""Which captions somebody read: a tick an image, by its content, kept in dataset.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel

from lora_studio.dataset.held_out import MANIFEST
from lora_studio.dataset.images import file_sha256, find_images
from lora_studio.dataset.manifest import Manifest
from lora_studio.errors import InputError
from lora_studio.project import records_folder


class Review(BaseModel):
    """How far the review of a folder is: the images whose caption was read, and those that are left."""

    reviewed: list[Path]
    left: list[Path]

    def __str__(self) -> str:
        return f"{len(self.reviewed)} of {len(self.reviewed) + len(self.left)} reviewed"


def review_of(folder: Path) -> Review:
    """How far the review of a folder is; raises InputError without such a folder."""
    manifest = _manifest(folder)
    reviewed: list[Path] = []
    left: list[Path] = []
    for image, sha256 in _hashed(manifest, find_images(folder)):
        (reviewed if sha256 in manifest.reviewed else left).append(image)
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
    manifest = _manifest(folder)
    hashes = [sha256 for _, sha256 in _hashed(manifest, chosen)]
    manifest.review(hashes, reviewed=reviewed).save(records_folder(folder) / MANIFEST)
    return review_of(folder)


def image_hashes(folder: Path, images: Iterable[Path]) -> list[tuple[Path, str]]:
    """Images of a folder with their SHA-256: from its manifest where it knows them, else from their bytes."""
    return list(_hashed(_manifest(folder), images))


def _manifest(folder: Path) -> Manifest:
    records = records_folder(folder)
    dataset = folder if records == folder.resolve() else records / "dataset"
    return Manifest.load(records / MANIFEST, dataset)


def _hashed(manifest: Manifest, images: Iterable[Path]) -> Iterable[tuple[Path, str]]:
    for image in images:
        info = manifest.infos.get(image) or manifest.infos.get(image.resolve())
        yield image, info.sha256 if info else file_sha256(image)
