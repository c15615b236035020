"""Statistics of a dataset, each computed when first used and shared by contents that do not change it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lora_studio.dataset.buckets import Bucket, bucket_plan
from lora_studio.dataset.captions.lint import Finding, lint_captions
from lora_studio.dataset.captions.statistics import TagTable
from lora_studio.dataset.crops import ImageCrop
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.training_images import DatasetImage, DatasetImages, read_images, select_images
from lora_studio.dataset.validation_split import SplitSuggestion
from lora_studio.planning.project_plan import project_recipe
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.dataset.image_item import ImageItem
from lora_studio.workspace.project import Project


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Values that depend on image files and the scan alone, computed when first used."""

    items: list[ImageItem]
    manifest: Manifest

    @cached_property
    def indices(self) -> dict[str, int]:
        """The position of each image by id, from 0."""
        return {item.id: index for index, item in enumerate(self.items)}

    @cached_property
    def sizes(self) -> Counter[tuple[int, int]]:
        """The number of images of each width and height in pixels."""
        return Counter((item.info.width, item.info.height) for item in self.items if item.info and item.info.readable)

    @cached_property
    def unscanned(self) -> int:
        """The number of images that are new or changed since the last scan."""
        return sum(item.info is None for item in self.items)

    @cached_property
    def trained(self) -> DatasetImages:
        """The images that a run can use: the readable ones of the sets."""
        return select_images(self.manifest.folder, [item.path for item in self.items], self.manifest)

    @cached_property
    def split(self) -> SplitSuggestion:
        """The suggested validation split."""
        return self.trained.suggest_split(seed=Recipe().seed)


@dataclass(frozen=True, eq=False)
class CaptionStatistics:
    """Values that depend on the captions and the names of images alone, computed when first used."""

    items: list[ImageItem]
    trigger: str

    @cached_property
    def tag_table(self) -> TagTable:
        """The tags of all captions, to be counted."""
        return TagTable({item.path: item.tags for item in self.items if item.tags})

    @cached_property
    def findings(self) -> list[Finding]:
        """The findings of the caption checks."""
        return lint_captions([item.lint_input for item in self.items], self.trigger)

    @cached_property
    def without_trigger(self) -> int:
        """The number of captions that do not begin with the trigger word."""
        return sum(bool(item.caption) and not item.has_trigger for item in self.items)


@dataclass(frozen=True, eq=False)
class BucketStatistics:
    """Values that depend on image files and the project's settings alone, computed when first used."""

    images: ImageStatistics
    project: Project

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the project's next run."""
        return project_recipe(self.project)

    @cached_property
    def _images(self) -> DatasetImages:
        """The images that a run reads: those of the project's subsets, else of the sets."""
        subsets = [subset for subset in self.project.subsets(self.project.info()) if not subset.is_reg]
        return read_images(self.project.dataset_dir, subsets=subsets) if subsets else self.images.trained

    @cached_property
    def _by_path(self) -> dict[Path, DatasetImage]:
        return {image.path: image for image in self._images.images}

    def crop_of(self, image: Path) -> ImageCrop | None:
        """Return what training sees of an image, by the trainer's own placement; None if it is not trained on."""
        found = self._by_path.get(image)
        return ImageCrop.of(found, self.recipe) if found else None

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The aspect buckets of the images that the recipe trains on, with the repeats of the project's subsets."""
        training = self._images.split(self.recipe).training
        focus = {image.path: image.focus for image, _ in training if image.focus}
        return bucket_plan(((image.path, image.size, repeats) for image, repeats in training), self.recipe, focus)
