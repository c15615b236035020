"""Sets of images as kohya's tools have them: folders named like `10_name`, whose number says how often each is shown.

Images that lie beside such folders are trained on by nobody; here they are put into one.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from lora_studio.dataset.captions.text import CAPTION_SUFFIXES
from lora_studio.dataset.images.decode import find_images, images_in
from lora_studio.dataset.images.masks import mask_files
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import sync_folder
from lora_studio.workspace.project import DEFAULT_REPEATS, SET_FOLDER, Project, image_sets

MAX_REPEATS = 500  # `2024_holidays` is a year, not 2024 repeats
MAX_NAME_BYTES = 200  # bytes; file systems take 255
MAX_NAMES_SHOWN = 5  # names of files in a message

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # names that Windows keeps for devices


def set_name(folder_name: str) -> str | None:
    """The name of a set of images made safe, or None for a folder that is none."""
    match = SET_FOLDER.match(folder_name)
    if match is None or not 1 <= int(match[1]) <= MAX_REPEATS:
        return None
    return f"{int(match[1])}_{safe_name(match[2])}"


def safe_name(name: str) -> str:
    """A part of a file name that every system takes: no separators, no control characters, not too long."""
    name = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", printable_name(name)))
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .")
    return f"_{name}" if _RESERVED.fullmatch(name) else name or "image"


def printable_name(name: str) -> str:
    """A file name as text; bytes that are none become question marks."""
    return name.encode("utf-8", "replace").decode()


def project_images(project: Project) -> list[Path]:
    """Return the images of a project's dataset; none if the project has no dataset folder yet."""
    return find_images(project.dataset_dir) if project.dataset_dir.is_dir() else []


def loose_images(folder: Path) -> list[Path]:
    """Images in `folder` itself beside its sets, which are not trained on; none where it has no sets."""
    return images_in(folder) if any(item.path != folder for item in image_sets(folder)) else []


def wrap_images(folder: Path | str, name: str) -> list[Path]:
    """Move all images that lie in `folder` itself, with captions and masks, into its set `name`; give their places.

    `name` is like `10_saria`; without a number it gets 10 repeats. Nothing is moved if a name is taken there. A caption
    or a mask goes before its image, and what was broken off can simply be repeated. Raises InputError or DiskFullError.
    """
    folder = Path(folder)
    target = folder / _named(name)
    images = images_in(folder) if folder.is_dir() else []
    if not images:
        raise InputError(f"No images lie in {str(folder)!r} itself.", "Nothing is left to do.", code="loose")
    moves = {file: target / file.relative_to(folder) for image in images for file in [*_companions(image), image]}
    if taken := [place.name for place in moves.values() if place.exists()]:
        names = ", ".join(taken[:MAX_NAMES_SHOWN]) + (
            f" and {len(taken) - MAX_NAMES_SHOWN} more" if len(taken) > MAX_NAMES_SHOWN else ""
        )
        raise InputError(f"The set {target.name!r} has {names} already.", "Choose another set.", code="taken")
    with disk_errors(target):
        for file, place in moves.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
        for changed in {target, *(place.parent for place in moves.values()), folder}:
            sync_folder(changed)
    return [moves[image] for image in images]


def _named(name: str) -> str:
    wanted = name.strip() if SET_FOLDER.match(name.strip()) else f"{DEFAULT_REPEATS}_{name.strip()}"
    found = set_name(wanted)
    if found is None or not name.strip():
        raise InputError(
            f"{name!r} is no name of a set.",
            f"Write repeats and a name, like 10_saria, with 1 to {MAX_REPEATS} repeats.",
            code="set_name",
        )
    return found


def _companions(image: Path) -> list[Path]:
    captions = [file for suffix in CAPTION_SUFFIXES if (file := image.with_suffix(suffix)).is_file()]
    return [*captions, *mask_files(image)]
