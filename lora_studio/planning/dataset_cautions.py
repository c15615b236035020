"""Warnings about a dataset's files before a run: images that cannot be read, and captions that teach too little."""

from __future__ import annotations

from collections.abc import Iterator

from lora_studio.dataset.training_images import DatasetImage, DatasetImages
from lora_studio.errors import InputError
from lora_studio.planning.cautions import Caution
from lora_studio.plurals import format_share
from lora_studio.settings.recipe import Recipe


def check_dataset(images: DatasetImages, recipe: Recipe, trigger_word: str) -> Iterator[Caution]:
    """Yield a warning for each kind of flaw of a dataset's files. Without a trigger word none is missed in captions."""
    if images.unreadable:
        yield Caution(
            code="unreadable",
            message=f"{len(images.unreadable)} images cannot be read, like {next(iter(images.unreadable)).name}; "
            "they are not counted. Set them aside.",
            why="Broken files cannot be trained on.",
        )
    if without := images.without_caption:
        yield Caution(
            code="captions_missing",
            message=f"{format_share(len(without), images.total, 'image', 'has', 'have')} no caption. "
            "Tag the images first.",
            why="Captions separate what the trigger word should learn from the rest of the image.",
        )
    word = trigger_word.strip().casefold()
    if not word or word in f"{recipe.caption_prefix} {recipe.caption_suffix}".casefold():
        return
    captioned = [image for image in images.images if images.manifest is not None and image.has_caption]
    if lacking := [image for image in captioned if _lacks(image, word)]:
        yield Caution(
            code="trigger_not_in_captions",
            message=f"{len(lacking)} of {len(captioned)} captions do not contain the trigger word {trigger_word!r}, "
            f"like that of {lacking[0].path.name}. Add it to them in Dataset.",
            why="The LoRA links only those images to the trigger word whose captions have it.",
        )


def _lacks(image: DatasetImage, word: str) -> bool:
    """Return whether an image's caption lacks a word; one that cannot be read is reported elsewhere."""
    try:
        return word not in image.caption.casefold()
    except InputError:
        return False
