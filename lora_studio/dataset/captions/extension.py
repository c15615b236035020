"""Which files are the captions of an image: the one place that decides.

By default these are `.txt`, else `.caption`. A dataset can use another extension, like `.txt2`, so that it can have
several sets of captions: a project's is the setting `caption_extension` of its recipe, that of any other folder is in
its captions.json.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_studio.errors import InputError
from lora_studio.files import cached_by_stamp, write_json
from lora_studio.settings.sections.captions import CaptionSettings
from lora_studio.workspace.project import SET_FOLDER, Project, records_folder

CAPTION_SUFFIXES = (".txt", ".caption")  # in the order of precedence; the first is written
RECORD_FILE = "captions.json"
_PROJECT_FILE = "project.json"


def caption_suffixes(image: Path) -> tuple[str, ...]:
    """Return the suffixes of an image's caption files, in the order of precedence; the first is written."""
    return suffixes_in(os.path.dirname(image))  # noqa: PTH120 - a Path's parent takes longer than all else here


def suffixes_in(folder: Path | str) -> tuple[str, ...]:
    """Return the suffixes of the caption files in a folder of images."""
    for record in _records(os.fspath(folder)):
        try:
            if extension := _extension(record):
                return (extension,)
        except OSError:
            continue
    return CAPTION_SUFFIXES


def known_suffixes(folder: Path) -> tuple[str, ...]:
    """Return the suffixes of all files in a folder of images that can be captions, the one in use first."""
    return tuple(dict.fromkeys((*suffixes_in(folder), *CAPTION_SUFFIXES)))


def set_caption_extension(folder: Path, extension: str) -> None:
    """Use the caption files with this extension in a dataset's folder; "" is the default, .txt or .caption.

    No file of captions changes. Raises ConfigError if it is not an extension, InputError if there is no such folder.
    """
    chosen = CaptionSettings.parse({"caption_extension": extension}).caption_extension
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)!r}.", "Give a folder with images.", code="no_folder")
    root = records_folder(folder)
    if (root / _PROJECT_FILE).is_file():
        project = Project(root)
        others = {name: value for name, value in project.info().recipe.items() if name != "caption_extension"}
        project.change_info(recipe={**others, "caption_extension": chosen} if chosen else others)
    else:
        write_json(root / RECORD_FILE, {"caption_extension": chosen})


@lru_cache(maxsize=256)
def _records(folder: str) -> tuple[Path, ...]:
    """Return the files that can say which captions a folder uses; a project's if it is in a project."""
    path = Path(folder)
    root = records_folder(path)
    if (root / _PROJECT_FILE).is_file():
        return (root / _PROJECT_FILE,)
    dataset = (root.parent / RECORD_FILE,) if SET_FOLDER.match(root.name) else ()
    return (root / RECORD_FILE, *dataset)


@cached_by_stamp(maxsize=256)
def _extension(record: Path) -> str:
    """Return the extension in a record; "" if it names none or cannot be read."""
    try:
        content: Any = json.loads(record.read_bytes())
        values = content["recipe"] if record.name == _PROJECT_FILE else content
        return CaptionSettings.parse({"caption_extension": values.get("caption_extension") or ""}).caption_extension
    except (ValueError, KeyError, TypeError, AttributeError, InputError):
        return ""
