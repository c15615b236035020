"""Set folders as in kohya's tools: `10_name`, where the number is the repeats of each image per epoch.

Images beside set folders ("loose" images) are ignored by training; `wrap_images` moves them into a set.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from lora_studio.dataset.captions.extension import known_suffixes
from lora_studio.dataset.change_lock import LOCK_SECONDS, change_lock
from lora_studio.dataset.images.decode import find_images, images_in
from lora_studio.dataset.images.masks import mask_files
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import sync_folder
from lora_studio.workspace.project import DEFAULT_REPEATS, SET_FOLDER, Project, records_folder

MAX_REPEATS = 500  # in `2024_holidays` the number is a year
MAX_NAME_BYTES = 200  # file systems allow 255
MAX_NAMES_SHOWN = 5  # file names listed in a message

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # device names that Windows reserves


def set_name(folder_name: str) -> str | None:
    """Return a set folder's name made safe for every file system, or None if the folder is not a set."""
    match = SET_FOLDER.match(folder_name)
    if match is None or not 1 <= int(match[1]) <= MAX_REPEATS:
        return None
    return f"{int(match[1])}_{safe_name(match[2])}"


def safe_name(name: str) -> str:
    """Return the name without separators, control characters and reserved names, and not too long for any system."""
    name = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", printable_name(name)))
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .")
    return f"_{name}" if _RESERVED.fullmatch(name) else name or "image"


def printable_name(name: str) -> str:
    """Return a file name as valid Unicode; bytes that cannot be decoded become question marks."""
    return name.encode("utf-8", "replace").decode()


def project_images(project: Project) -> list[Path]:
    """Return the images of a project's dataset; none if the project has no dataset folder yet."""
    return find_images(project.dataset_dir) if project.dataset_dir.is_dir() else []


def wrap_images(folder: Path | str, name: str) -> list[Path]:
    """Move all images in `folder` itself, with captions and masks, into its set `name`; return their new paths.

    `name` is like `10_saria`; without a number the set gets 10 repeats. Nothing is moved if the set has a file of the
    same name. Captions and masks are moved before their image, so that an interrupted call can be repeated. Raises
    InputError or DiskFullError.
    """
    folder = Path(folder)
    target = folder / _set_folder_name(name)
    if not folder.is_dir():
        raise _no_loose_images(folder)
    with change_lock(records_folder(folder), seconds=LOCK_SECONDS):
        return _wrap_images(folder, target)


def _wrap_images(folder: Path, target: Path) -> list[Path]:
    images = images_in(folder)
    if not images:
        raise _no_loose_images(folder)
    moves = {
        file: target / file.relative_to(folder) for image in images for file in [*_captions_and_masks(image), image]
    }
    if taken := [new.name for new in moves.values() if new.exists()]:
        names = ", ".join(taken[:MAX_NAMES_SHOWN]) + (
            f" and {len(taken) - MAX_NAMES_SHOWN} more" if len(taken) > MAX_NAMES_SHOWN else ""
        )
        raise InputError(f"The set {target.name!r} already has {names}.", "Choose another set.", code="taken")
    with disk_errors(target):
        for file, new in moves.items():
            new.parent.mkdir(parents=True, exist_ok=True)
            file.rename(new)
        for changed in {target, *(new.parent for new in moves.values()), folder}:
            sync_folder(changed)
    return [moves[image] for image in images]


def _no_loose_images(folder: Path) -> InputError:
    return InputError(
        f"There are no images in {str(folder)!r} itself.", "Images in set folders can stay there.", code="loose"
    )


def _set_folder_name(name: str) -> str:
    wanted = name.strip() if SET_FOLDER.match(name.strip()) else f"{DEFAULT_REPEATS}_{name.strip()}"
    found = set_name(wanted)
    if found is None or not name.strip():
        raise InputError(
            f"{name!r} is not a set name.",
            f"Use repeats and a name, like 10_saria, with 1 to {MAX_REPEATS} repeats.",
            code="set_name",
        )
    return found


def _captions_and_masks(image: Path) -> list[Path]:
    captions = [file for suffix in known_suffixes(image.parent) if (file := image.with_suffix(suffix)).is_file()]
    return [*captions, *mask_files(image)]
