"""What planning needs to know about a folder of images: how many, how large, how often each is shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from lora_studio.config import Recipe
from lora_studio.dataset.buckets import place_for
from lora_studio.dataset.captions import existing_caption
from lora_studio.dataset.images import ORIENTATION_TAG, SUFFIXES, find_images
from lora_studio.errors import InputError
from lora_studio.project import image_sets

Size = tuple[int, int]
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose upright image has its sides exchanged


@dataclass
class ImageCounts:
    """Sizes of upright images (width, height) by the repeats that their folder's name asks for.

    `sizes[repeats]` lists images; `unreadable` and `without_caption` are file names.
    """

    sizes: dict[int, list[Size]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    without_caption: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of readable images."""
        return sum(len(sizes) for sizes in self.sizes.values())

    def all_sizes(self) -> list[Size]:
        """Every image's size."""
        return [size for sizes in self.sizes.values() for size in sizes]

    def buckets(self, recipe: Recipe) -> Counter[Size]:
        """Images times repeats in each bucket, with the recipe's repeats where it sets them."""
        counts: Counter[Size] = Counter()
        for repeats, sizes in self.sizes.items():
            for width, height in sizes:
                counts[place_for(recipe, width, height).bucket] += recipe.repeats or repeats
        return counts


def assumed(images: int, side: int) -> ImageCounts:
    """A number of square images of `side` px, as if they had been looked at."""
    return ImageCounts({1: [(side, side)] * images})


def look_at(folder: Path) -> ImageCounts:
    """Read the headers of all images of a dataset; raises InputError if the folder is missing or holds none."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}.", "Give a folder with images.", code="no_folder")
    counts = ImageCounts()
    for image_set in image_sets(folder):
        for path in find_images(image_set.path):
            stat = path.stat()
            size = _upright_size(path, stat.st_mtime_ns, stat.st_size)
            if size is None:
                counts.unreadable.append(path.name)
                continue
            counts.sizes.setdefault(image_set.repeats, []).append(size)
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
        with Image.open(path, formats=list(SUFFIXES)) as image:
            width, height = image.size
            sideways = image.getexif().get(ORIENTATION_TAG) in SIDEWAYS
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return (height, width) if sideways else (width, height)
