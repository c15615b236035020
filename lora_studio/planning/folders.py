"""What planning needs to know about a folder of images: how many, how large, how often each is shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from lora_studio.dataset.buckets import place_for
from lora_studio.dataset.captions import existing_caption
from lora_studio.dataset.held_out import held_out, how_many, known_copies
from lora_studio.dataset.images import ORIENTATION_TAG, file_sha256, formats, images_in
from lora_studio.dataset.manifest import stamp_of
from lora_studio.errors import InputError
from lora_studio.planning.steps import balanced_repeats
from lora_studio.project import image_sets
from lora_studio.recipe import Recipe

Size = tuple[int, int]
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose upright image has its sides exchanged


@dataclass(frozen=True)
class Counted:
    """An image's upright size (width, height), the repeats that its folder's name asks for, and its file, if any."""

    size: Size
    repeats: int
    path: Path | None = None


@dataclass
class ImageCounts:
    """The readable images of a folder in the trainer's order; `unreadable` and `without_caption` are file names."""

    images: list[Counted] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    without_caption: list[str] = field(default_factory=list)
    folder: Path | None = None

    @property
    def total(self) -> int:
        """Number of readable images."""
        return len(self.images)

    @property
    def all_repeats(self) -> list[int]:
        """Every image's repeats."""
        return [image.repeats for image in self.images]

    def all_sizes(self) -> list[Size]:
        """Every image's size."""
        return [image.size for image in self.images]

    def buckets(self, recipe: Recipe, regularization: ImageCounts | None = None) -> Counter[Size]:
        """Images times repeats in each bucket, without those held out, with the recipe's repeats where it sets them.

        Images of `regularization` are balanced against them.
        """
        counts: Counter[Size] = Counter()
        for image in self._trained(recipe):
            counts[place_for(recipe, *image.size).bucket] += recipe.repeats or image.repeats
        if regularization is not None:
            balanced = balanced_repeats(regularization.all_repeats, counts.total())
            for image, repeats in zip(regularization.images, balanced, strict=True):
                if repeats:
                    counts[place_for(recipe, *image.size).bucket] += repeats
        return counts

    def _trained(self, recipe: Recipe) -> list[Counted]:
        share = recipe.validation_split
        files = [image.path for image in self.images if image.path is not None]
        if not share or self.folder is None:
            return self.images[: self.total - how_many(self.total, share)]
        hashes = [(path, _sha256(path, *stamp_of(path))) for path in files]
        chosen = held_out(hashes, known_copies(self.folder), share=share, seed=recipe.seed)
        return [image for image in self.images if image.path not in chosen]


def assumed(images: int, side: int) -> ImageCounts:
    """A number of square images of `side` px, as if they had been looked at."""
    return ImageCounts([Counted((side, side), 1)] * images)


def look_at(folder: Path) -> ImageCounts:
    """Read the headers of all images of a dataset; raises InputError if the folder is missing or holds none."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}.", "Give a folder with images.", code="no_folder")
    counts = ImageCounts(folder=folder)
    for image_set in image_sets(folder):
        for path in images_in(image_set.path):
            size = _upright_size(path, *stamp_of(path))
            if size is None:
                counts.unreadable.append(path.name)
                continue
            counts.images.append(Counted(size, image_set.repeats, path))
            if existing_caption(path) is None:
                counts.without_caption.append(path.name)
    if not counts.total:
        raise InputError(f"{folder} holds no readable images.", "Put images into it.", code="no_images")
    return counts


@lru_cache(maxsize=100_000)
def _upright_size(path: Path, changed: int, length: int) -> Size | None:
    """Width and height from the header, EXIF orientation honoured; None if there is no readable header.

    Remembered while time of change (ns) and length (bytes) of the file stay the same: a form plans at every change.
    """
    try:
        with Image.open(path, formats=formats()) as image:
            width, height = image.size
            sideways = image.getexif().get(ORIENTATION_TAG) in SIDEWAYS
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return (height, width) if sideways else (width, height)


@lru_cache(maxsize=100_000)
def _sha256(path: Path, changed: int, length: int) -> str:
    """The hash of a file's content, remembered like its size."""
    return file_sha256(path)
