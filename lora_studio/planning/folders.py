"""What planning needs to know about a folder of images: how many, how large, how often each is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
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
    """An image's upright size (width, height), the repeats that its folder's name asks for, and its file, if any."""

    size: Size
    repeats: int
    path: Path | None = None


@dataclass
class ImageCounts:
    """The readable images of a folder in the trainer's order; `unreadable` and `without_caption` are file names.

    `manifest` is what a scan found there; None if there is no folder.
    """

    images: list[CountedImage] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    without_caption: list[str] = field(default_factory=list)
    manifest: Manifest | None = None

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

    def buckets(self, recipe: Recipe) -> Counter[Size]:
        """Images times repeats in each bucket, without those held out, with the recipe's repeats where it sets them."""
        return _in_buckets(recipe, ((image, recipe.repeats or image.repeats) for image in self._training_split(recipe)))

    def balanced_buckets(self, recipe: Recipe, samples: int) -> Counter[Size]:
        """The buckets of regularisation images, balanced against so many samples of the training set."""
        return _in_buckets(recipe, zip(self.images, balanced_repeats(self.all_repeats, samples), strict=True))

    def _training_split(self, recipe: Recipe) -> list[CountedImage]:
        share = recipe.validation_split
        if not share or self.manifest is None:
            return self.images[: self.total - validation_count(self.total, share)]
        files = [image.path for image in self.images if image.path is not None]
        hashes = [(path, self.manifest.sha256_of(path)) for path in files]
        chosen = choose_validation_images(hashes, self.manifest.duplicates, share=share, seed=recipe.seed)
        return [image for image in self.images if image.path not in chosen]


def square_images(images: int, side: int) -> ImageCounts:
    """A number of square images of `side` px, as if they had been looked at."""
    return ImageCounts([CountedImage((side, side), 1)] * images)


def _in_buckets(recipe: Recipe, images: Iterable[tuple[CountedImage, int]]) -> Counter[Size]:
    """How many samples each bucket has of images with their repeats."""
    by_size: Counter[Size] = Counter()
    for image, repeats in images:
        by_size[image.size] += repeats
    counts: Counter[Size] = Counter()
    for size, samples in by_size.items():
        if samples:
            counts[place_for(recipe, *size).bucket] += samples
    return counts


def count_images(folder: Path) -> ImageCounts:
    """Count the images of a dataset: by its last scan where that knows them, else by their headers.

    Raises InputError if the folder is missing or holds none.
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
        raise InputError(f"{folder} holds no readable images.", "Put images into it.", code="no_images")
    return counts
