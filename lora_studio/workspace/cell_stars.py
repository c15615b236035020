"""The images of a test that the user starred, in stars.json of the test's folder."""

from __future__ import annotations

import json
from pathlib import Path

from lora_studio.errors import InputError
from lora_studio.file_lock import change_file
from lora_studio.files import write_json

STARS_FILE = "stars.json"


def starred_cells(sweep: Path) -> list[str]:
    """Return the file names of the starred images, in the order in which they got their star.

    Raises InputError if the file is damaged.
    """
    file = sweep / STARS_FILE
    try:
        names = json.loads(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}", "Correct it, or remove it.", code="stars") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{file} is not a list of file names.", "Correct it, or remove it.", code="stars")
    return names


def toggle_star(sweep: Path, name: str) -> bool:
    """Give an image a star, or take it away; return whether it has one now. Raises InputError as `starred_cells`."""
    with change_file(sweep / STARS_FILE):
        before = starred_cells(sweep)
        after = [other for other in before if other != name] if name in before else [*before, name]
        write_json(sweep / STARS_FILE, after)
    return name in after
