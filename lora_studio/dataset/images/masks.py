"""Masks for masked loss: the weight of each part of an image in the loss, 1 for white and 0 for black.

The mask of an image is its own alpha channel, as in kohya's sd-scripts (`alpha_mask`), or a file: `NAME-masklabel.png`
beside the image, as in OneTrainer, or a file of the image's name in a folder `mask` beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from PIL import Image

from lora_studio.dataset.buckets import Size
from lora_studio.dataset.images.decode import IMAGE_SUFFIXES, MASK_ENDING, DecodedImage, read_image
from lora_studio.dataset.images.header_cache import readable_size, sha256_of
from lora_studio.errors import InputError
from lora_studio.files import write_atomic

AnyPath = TypeVar("AnyPath", bound=PurePath)
MASK_FOLDER = "mask"
ASPECT_TOLERANCE = 0.02  # of the aspect ratio: a mask may have another resolution than its image, but not another shape


@dataclass(frozen=True)
class MaskSource:
    """The file that an image's mask comes from and its SHA-256; with `alpha` it is the image file itself."""

    path: Path
    sha256: str
    alpha: bool


def mask_files(image: Path) -> list[Path]:
    """Return the mask files of an image; the first one is used."""
    beside = image.with_name(f"{image.stem}{MASK_ENDING}.png")
    folder = image.parent / MASK_FOLDER
    places = [beside, *(folder / f"{image.stem}{suffix}" for suffix in sorted(IMAGE_SUFFIXES))]
    return [file for file in places if file.is_file()]


def mask_file(image: Path) -> Path | None:
    """Return the mask file of an image, or None."""
    return next(iter(mask_files(image)), None)


def match_masks(files: Iterable[AnyPath], key: Callable[[AnyPath], str]) -> dict[AnyPath, AnyPath | None]:
    """Return those image files that are masks, each with the image that it belongs to, None if that is missing.

    Files whose `key` is equal are taken to have the same name. A file in a folder called `mask` is a mask only if the
    parent folder has its image.
    """
    files = list(files)
    images = {(path.parent, key(path)): path for path in files}
    found: dict[AnyPath, AnyPath | None] = {}
    for path in files:
        if path.stem.endswith(MASK_ENDING):
            named = path.with_name(path.stem.removesuffix(MASK_ENDING) + path.suffix)
            found[path] = images.get((path.parent, key(named)))
        elif path.parent.name == MASK_FOLDER and (path.parent.parent, key(path)) in images:
            found[path] = images[path.parent.parent, key(path)]
    return found


def import_mask(file: Path, image: Path) -> None:
    """Copy a mask file beside an image that has no mask. Raises InputError if the file cannot be read."""
    mask = read_image(file).convert("L")
    target = image.with_name(f"{image.stem}{MASK_ENDING}.png")
    write_atomic(target, lambda temporary: mask.save(temporary, "PNG"))


def mask_from_file(image: Path, size: Size) -> MaskSource | None:
    """Return the mask file of an image of `size` (width, height) px as the source of its mask; None without one.

    Raises InputError if the mask file cannot be read or has another shape than its image.
    """
    file = mask_file(image)
    if file is None:
        return None
    try:
        width, height = readable_size(file)
        sha256 = sha256_of(file)
    except InputError as error:
        raise _unusable(file, error) from error
    if abs(width * size[1] / (height * size[0]) - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"The mask {file.name!r} has {width} x {height} px and its image {image.name!r} has "
            f"{size[0]} x {size[1]} px; their aspect ratios must be equal.",
            "Draw the mask on this image again, or remove it.",
            code="mask_shape",
        )
    return MaskSource(file, sha256, alpha=False)


def decode_mask_file(file: Path) -> Image.Image:
    """Return a mask file, upright and in greyscale (mode L). Raises InputError if it cannot be read."""
    try:
        return read_image(file).convert("L")
    except InputError as error:
        raise _unusable(file, error) from error


def alpha_mask(picture: DecodedImage) -> Image.Image:
    """Return the alpha channel of an image that was decoded with it; white if the image is opaque."""
    return picture.alpha or Image.new("L", picture.image.size, 255)


def _unusable(file: Path, error: InputError) -> InputError:
    return InputError(f"The mask {file.name!r} cannot be used: {error.message}", "Replace or remove it.", code="mask")
