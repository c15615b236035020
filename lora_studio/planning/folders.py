"""Counts of a dataset's images for planning: their number, sizes, repeats and buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_studio.dataset.buckets import Size, place_for
from lora_studio.dataset.captions.text import captioned_stems
from lora_studio.dataset.images.decode import images_in
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.validation_split import choose_validation_images, validation_count
from lora_studio.errors import InputError
from lora_studio.planning.steps import balanced_repeats
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import image_sets


@dataclass(frozen=True)
class CountedImage:
    """A readable image: its size (width, height) after EXIF rotation, its folder's repeats, and its file.

    Assumed images have no file; `count` of them are one object.
    """

    size: Size
    repeats: int
    path: Path | None = None
    count: int = 1


@dataclass
class ImageCounts:
    """The readable images of a dataset in the trainer's order; `unreadable` and `without_caption` are file names.

    `manifest` has the last scan of the folder; it is None for assumed images.
    """

    images: list[CountedImage] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    without_caption: list[str] = field(default_factory=list)
    manifest: Manifest | None = None

    @property
    def total(self) -> int:
        """The number of readable images."""
        return sum(image.count for image in self.images)

    @property
    def mean_repeats(self) -> float:
        """The average of the images' repeats."""
        return sum(image.repeats * image.count for image in self.images) / self.total

    @property
    def has_mixed_repeats(self) -> bool:
        """True if the folders' repeats differ."""
        return len({image.repeats for image in self.images}) > 1

    def all_sizes(self) -> list[Size]:
        """Return the size (width, height) of each image."""
        return [image.size for image in self.images]

    def buckets(self, recipe: Recipe) -> Counter[Size]:
        """Count samples per bucket without the validation split; the recipe's repeats override the folders'."""
        return _in_buckets(recipe, ((image, recipe.repeats or image.repeats) for image in self._training_split(recipe)))

    def balanced_buckets(self, recipe: Recipe, samples: int) -> Counter[Size]:
        """Count these regularisation images per bucket, repeated to balance `samples` training samples per epoch."""
        own = [image.repeats for image in self.images]
        return _in_buckets(recipe, zip(self.images, balanced_repeats(own, samples), strict=True))

    def _training_split(self, recipe: Recipe) -> list[CountedImage]:
        share = recipe.validation_split
        if not share:
            return self.images
        if self.manifest is None:
            return [replace(image, count=image.count - validation_count(image.count, share)) for image in self.images]
        files = [image.path for image in self.images if image.path is not None]
        hashes = [(path, self.manifest.sha256_of(path)) for path in files]
        chosen = choose_validation_images(hashes, self.manifest.duplicates, share=share, seed=recipe.seed)
        return [image for image in self.images if image.path not in chosen]


def square_images(images: int, side: int) -> ImageCounts:
    """Return counts of assumed square images of `side` px, for a plan without a folder."""
    return ImageCounts([CountedImage((side, side), repeats=1, count=images)])


def _in_buckets(recipe: Recipe, images: Iterable[tuple[CountedImage, int]]) -> Counter[Size]:
    """Count the samples per bucket of images with their repeats."""
    by_size: Counter[Size] = Counter()
    for image, repeats in images:
        by_size[image.size] += repeats * image.count
    counts: Counter[Size] = Counter()
    for size, samples in by_size.items():
        if samples:
            counts[place_for(recipe, *size).bucket] += samples
    return counts


def count_images(folder: Path) -> ImageCounts:
    """Count the images of a dataset, with sizes from its last scan or, where that is out of date, from file headers.

    Raises InputError if the folder is missing or has no readable images.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}.", "Give a folder with images.", code="no_folder")
    manifest = Manifest.of(folder)
    counts = ImageCounts(manifest=manifest)
    for image_set in image_sets(folder):
        captioned = captioned_stems(image_set.path)
        for path in images_in(image_set.path):
            size = manifest.size_of(path)
            if size is None:
                counts.unreadable.append(path.name)
                continue
            counts.images.append(CountedImage(size, image_set.repeats, path))
            if path.stem not in captioned:
                counts.without_caption.append(path.name)
    if not counts.total:
        raise InputError(f"{folder} has no readable images.", "Add images to it.", code="no_images")
    return counts
