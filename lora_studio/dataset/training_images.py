"""Which images of a dataset train, how often, which are in the validation split, and which have captions.

Planning, training and the pages read a dataset here, so that they agree.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from lora_studio import guide
from lora_studio.dataset.buckets import Focus, Placement, Size, place_for
from lora_studio.dataset.captions.template import caption_template, plain_caption
from lora_studio.dataset.captions.text import read_caption
from lora_studio.dataset.images.decode import IMAGE_SUFFIXES, ImageInfo, find_images, images_in
from lora_studio.dataset.images.header_cache import is_transparent, readable_size, sha256_of
from lora_studio.dataset.images.masks import MaskSource, mask_from_file
from lora_studio.dataset.manifest import Manifest
from lora_studio.dataset.validation_split import SplitSuggestion, choose_validation_images, validation_count
from lora_studio.errors import InputError
from lora_studio.settings.choices import MaskedLoss
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import Subset
from lora_studio.workspace.project import ImageSet, image_sets


@dataclass(frozen=True)
class DatasetImage:
    """A readable image of a set: its upright size (width, height) in px and, once computed, its SHA-256 in hex.

    `info` is what the last scan found; None if the image is new or has changed since. Assumed images have no file, and
    `count` of them are one object. `caption_suffixes` are those of its caption file; None: those that its dataset uses.
    `focus` is the point that its crop is centred on, if the user chose one.
    """

    path: Path
    size: Size
    image_set: ImageSet
    sha256: str = ""
    info: ImageInfo | None = None
    count: int = 1
    caption_suffixes: tuple[str, ...] | None = None
    focus: Focus | None = None

    def placement_in(self, recipe: Recipe) -> Placement:
        """Return its bucket and crop in a run."""
        return place_for(recipe, *self.size, focus=self.focus)

    @cached_property
    def caption_text(self) -> str:
        """The text of the caption file, empty if there is none. Raises InputError if it cannot be read."""
        return read_caption(self.path, self.caption_suffixes) or ""

    @property
    def caption(self) -> str:
        """The caption as one line, empty if there is none. Raises InputError if its file cannot be read."""
        return " ".join(self.caption_text.split())

    @property
    def has_caption(self) -> bool:
        """True if the image has a caption that is not empty; a file that cannot be read counts as one."""
        try:
            return bool(self.caption)
        except InputError:
            return True

    def repeats_in(self, recipe: Recipe) -> int:
        """Return how often an epoch contains it: its subset's repeats, else the recipe's or those of its folder."""
        return self.image_set.repeats if self.image_set.subset else recipe.repeats or self.image_set.repeats

    def settings_in(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the settings of the image's subset."""
        return self.image_set.subset.applied_to(recipe) if self.image_set.subset else recipe

    def template_in(self, recipe: Recipe, trigger_word: str) -> str:
        """Return the template of its captions in a run, see `captions.template`.

        Without a caption it is its subset's class tokens, else the trigger word, else the name of its folder. Raises
        InputError if the caption file cannot be read.
        """
        settings, subset = self.settings_in(recipe), self.image_set.subset
        return caption_template(
            self.caption_text or (subset.class_tokens if subset else "") or trigger_word or self.image_set.concept,
            prefix=settings.caption_prefix,
            suffix=settings.caption_suffix,
            wildcards=settings.enable_wildcard,
        )

    def caption_in(self, recipe: Recipe, trigger_word: str) -> str:
        """Return its caption in a run, before shuffling and dropout. Raises InputError if that cannot be read."""
        settings, template = self.settings_in(recipe), self.template_in(recipe, trigger_word)
        return plain_caption(template, wildcards=settings.enable_wildcard, separator=settings.keep_tokens_separator)

    def mask(self, kind: MaskedLoss) -> MaskSource | None:
        """Return where the loss mask comes from; None if the image has none and the whole image counts.

        For MaskedLoss.ALPHA, an image with an alpha channel that the scan has not read is decoded to see whether any
        pixel is transparent. Raises InputError if the mask cannot be read or has another shape than the image.
        """
        if kind is MaskedLoss.FILES:
            return mask_from_file(self.path, self.size)
        if kind is MaskedLoss.OFF or not self._is_transparent():
            return None
        return MaskSource(self.path, self.sha256, alpha=True)

    def _is_transparent(self) -> bool:
        if self.info is not None:
            return any(issue.code == "alpha" for issue in self.info.issues)
        return is_transparent(self.path)


class RepeatedImage(NamedTuple):
    """An image and how often an epoch contains it."""

    image: DatasetImage
    repeats: int


@dataclass(frozen=True)
class DatasetSplit:
    """The images of a run; those in `validation` are not trained on. `regularization` balances `training`."""

    training: list[RepeatedImage]
    validation: list[RepeatedImage]
    regularization: list[RepeatedImage]


@dataclass(frozen=True)
class DatasetImages:
    """The readable images of a dataset's sets, in the trainer's order.

    `unreadable` has a message for each file that cannot be read, `outside_sets` are the images beside the N_name
    folders. `manifest` is None for assumed images.
    """

    images: list[DatasetImage]
    unreadable: dict[Path, str] = field(default_factory=dict)
    outside_sets: list[Path] = field(default_factory=list)
    manifest: Manifest | None = None

    @classmethod
    def assumed(cls, number: int, side: int) -> DatasetImages:
        """Return assumed square images of `side` px, for a plan without a folder."""
        return cls([DatasetImage(Path(), (side, side), ImageSet(Path(), 1, ""), count=number)])

    @property
    def total(self) -> int:
        """The number of readable images."""
        return sum(image.count for image in self.images)

    @property
    def mean_repeats(self) -> float:
        """The average repeats of the images by the names of their folders."""
        return sum(image.image_set.repeats * image.count for image in self.images) / self.total

    def mean_repeats_in(self, recipe: Recipe) -> float:
        """Return how often an epoch contains an image on average."""
        return sum(image.repeats_in(recipe) * image.count for image in self.images) / self.total

    @property
    def has_own_repeats(self) -> bool:
        """True if the repeats are not to be chosen: the folders' differ, or subsets set them."""
        is_set = any(image.image_set.subset is not None for image in self.images)
        return is_set or len({image.image_set.repeats for image in self.images}) > 1

    @property
    def without_caption(self) -> list[DatasetImage]:
        """The images without a caption."""
        return [] if self.manifest is None else [image for image in self.images if not image.has_caption]

    def split(self, recipe: Recipe, regularization: DatasetImages | None = None) -> DatasetSplit:
        """Return the images that a recipe trains on and validates on, with the repeats of each.

        The recipe's repeats override those of the folders' names, not those of subsets; regularisation images are
        balanced.
        """
        training, validation = self._training_and_validation(recipe.validation_split, recipe.seed)

        def repeated(images: list[DatasetImage]) -> list[RepeatedImage]:
            return [RepeatedImage(image, image.repeats_in(recipe)) for image in images]

        own = repeated(training)
        prior = regularization.images if regularization is not None else []
        samples = sum(repeats * image.count for image, repeats in own)
        balanced = zip(prior, balanced_repeats([image.image_set.repeats for image in prior], samples), strict=True)
        return DatasetSplit(
            own, repeated(validation), [RepeatedImage(image, repeats) for image, repeats in balanced if repeats]
        )

    def _training_and_validation(self, share: float, seed: int) -> tuple[list[DatasetImage], list[DatasetImage]]:
        if not share:
            return self.images, []
        if self.manifest is None:
            counts = [(image, validation_count(image.count, share)) for image in self.images]
            training = [replace(image, count=image.count - count) for image, count in counts]
            return training, [replace(image, count=count) for image, count in counts if count]
        chosen = self.validation_images(share, seed)
        training = [image for image in self.images if image.path not in chosen]
        return training, [image for image in self.images if image.path in chosen]

    def validation_images(self, share: float, seed: int) -> frozenset[Path]:
        """Return the images of a validation split; the groups of duplicates of the last scan stay on one side."""
        if self.manifest is None:
            return frozenset()
        hashed = [(image.path, image.sha256 or self.manifest.sha256_of(image.path)) for image in self.images]
        return choose_validation_images(hashed, self.manifest.duplicates, share=share, seed=seed)

    def suggest_split(self, *, seed: int) -> SplitSuggestion:
        """Return the validation split that the guide recommends; a recipe with its share and `seed` uses it."""
        if guide.tier_for(self.total).name == "large":
            return SplitSuggestion(
                share=guide.VALIDATION_SHARE,
                held_out=sorted(self.validation_images(guide.VALIDATION_SHARE, seed)),
                why="Of a large set, use a tenth for validation, to see when the run starts to overfit.",
            )
        if self.total < guide.MIN_IMAGES_FOR_VALIDATION:
            why = (
                f"With fewer than {guide.MIN_IMAGES_FOR_VALIDATION} images a validation split costs more than it "
                "shows: too few images are left to train on, and too few to measure."
            )
        else:
            why = "A validation split is recommended for large sets only; use a tenth to see when overfitting starts."
        return SplitSuggestion(share=0.0, held_out=[], why=why)


def read_images(
    folder: Path,
    *,
    hash_all: bool = False,
    caption_extension: str = "",
    subsets: Sequence[Subset] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetImages:
    """Read the images of a dataset's folder and its N_name subfolders, or of `subsets` instead; see `select_images`.

    `caption_extension` is the recipe's. Raises InputError if a folder does not exist, or if that is an image's.
    """
    read = partial(_read_sets, Manifest.of(folder), hash_all=hash_all, on_progress=on_progress)
    if subsets:
        found = read([(path, ImageSet.of(subset)) for subset in subsets for path in _images_of(subset)])
    else:
        found = read(_with_sets(folder, find_images(folder)))
    return replace(found, images=[_with_caption_extension(image, caption_extension) for image in found.images])


def _with_caption_extension(image: DatasetImage, chosen: str) -> DatasetImage:
    """Return an image with the extension of its captions, its subset's or the recipe's; "" is the dataset's.

    Raises InputError if it is an image's.
    """
    subset = image.image_set.subset
    extension = str(subset.settings.get("caption_extension", chosen)) if subset else chosen
    check_caption_extension(extension)
    return replace(image, caption_suffixes=(extension,)) if extension else image


def check_caption_extension(extension: str) -> None:
    """Raise InputError if the extension of captions is that of images."""
    if extension.lower() in IMAGE_SUFFIXES:
        raise InputError(
            f"caption_extension is {extension}, which is an image's.",
            "Use the extension of text files, like .txt.",
            code="caption_extension",
        )


def _images_of(subset: Subset) -> list[Path]:
    if not subset.image_dir.is_dir():
        raise InputError(
            f"image_dir {subset.image_dir} of a subset does not exist.",
            "Correct it, or remove the subset.",
            code="no_folder",
        )
    return images_in(subset.image_dir)


def select_images(
    folder: Path,
    paths: Sequence[Path],
    manifest: Manifest,
    *,
    hash_all: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetImages:
    """Return those of a dataset's image files that are in a set and readable.

    Sizes are those of the last scan or, of new and changed images, of the file headers; an image is decoded only if
    neither has its size. With `hash_all`, every file is hashed, and the scan is used only for content that it has read:
    that also finds an image that was edited without changing its size in bytes or its time of change.
    """
    return _read_sets(manifest, _with_sets(folder, paths), hash_all=hash_all, on_progress=on_progress)


def _with_sets(folder: Path, paths: Sequence[Path]) -> list[tuple[Path, ImageSet | None]]:
    """Return image files with the set that each is in, None for those beside the sets of the dataset's folder."""
    # os.path, since a Path's parent takes longer to build than everything else that an unchanged image needs
    sets = {os.path.dirname(image_set.path / "a"): image_set for image_set in image_sets(folder)}  # noqa: PTH120
    return [(path, sets.get(os.path.dirname(path))) for path in paths]  # noqa: PTH120


def _read_sets(
    manifest: Manifest,
    paths: Sequence[tuple[Path, ImageSet | None]],
    *,
    hash_all: bool,
    on_progress: Callable[[int, int], None],
) -> DatasetImages:
    """Return those image files that are in a set and readable."""
    found = DatasetImages([], manifest=manifest)
    for done, (path, image_set) in enumerate(paths):
        on_progress(done, len(paths))
        if image_set is None:
            found.outside_sets.append(path)
            continue
        try:
            image = _read_image(path, image_set, manifest.infos.get(path), hash_all=hash_all)
            found.images.append(replace(image, focus=manifest.focus_of(path, image.sha256)))
        except InputError as error:
            found.unreadable[path] = error.message
        except OSError as error:
            found.unreadable[path] = f"The image {path.name!r} cannot be read: {error.strerror}."
    return found


def _read_image(path: Path, image_set: ImageSet, info: ImageInfo | None, *, hash_all: bool) -> DatasetImage:
    sha256 = sha256_of(path) if hash_all else ""
    if info is not None and info.readable and sha256 in ("", info.sha256):
        return DatasetImage(path, (info.width, info.height), image_set, sha256, info)
    decoded = info is not None and not info.readable  # by the scan, which could not: the header does not show it
    return DatasetImage(path, readable_size(path, decoded=decoded), image_set, sha256)


def samples_per_bucket(images: Iterable[RepeatedImage], recipe: Recipe) -> Counter[Size]:
    """Count the samples per epoch, images times repeats, of each bucket."""
    by_size: Counter[Size] = Counter()
    for image, repeats in images:
        by_size[image.size] += repeats * image.count
    counts: Counter[Size] = Counter()
    for size, samples in by_size.items():
        counts[place_for(recipe, *size).bucket] += samples
    return counts


def balanced_repeats(own: Sequence[int], samples: int) -> list[int]:
    """Return the repeats of regularisation images that balance `samples` training samples per epoch.

    `own` are their folders' repeats. As in kohya's sd-scripts, images are taken in order with their own repeats until
    their sum reaches `samples`; if it does not, each image is repeated once more, in order. Images that are not needed
    get 0, and with repeats above 1 the sum may exceed `samples`.
    """
    repeats = [0] * len(own)
    total = 0
    for index, count in enumerate(own):
        if total >= samples:
            return repeats
        repeats[index] = count
        total += count
    if own and (missing := samples - total) > 0:
        rounds, rest = divmod(missing, len(own))
        repeats = [count + rounds + (index < rest) for index, count in enumerate(repeats)]
    return repeats
