"""Presets: files in presets/ with the values that differ from the guide's defaults, each with its reason as a comment.

A preset has recipe values only, never a path; loading one changes nothing else in a job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Array, Item

from lora_studio.errors import ConfigError, InputError
from lora_studio.files import shipped_folder
from lora_studio.settings.declare import parse_toml
from lora_studio.settings.recipe import Recipe

FOLDER = shipped_folder("presets")


def list_presets() -> list[str]:
    """Return the names of the presets that ship with the studio."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_preset(name: str | Path) -> dict[str, Any]:
    """Load the recipe values of a preset, given its name or the user's own .toml file.

    Raises InputError if the preset is missing or is not TOML, ConfigError if a value cannot work.
    """
    path = _find(name)
    values = parse_toml(_read(path), path.name)
    try:
        Recipe.parse(values)
    except ConfigError as error:
        raise ConfigError([f"{path.name}: {problem}" for problem in error.problems], error.remedy) from error
    return values


def preset_reasons(name: str | Path) -> dict[str, str]:
    """Return the reason of each of a preset's values: the comment behind it, or "".

    Raises InputError like `load_preset`.
    """
    path = _find(name)
    text = _read(path)
    parse_toml(text, path.name)
    return {key.key: _comment(item) for key, item in tomlkit.parse(text).body if key is not None}


def preset_title(name: str | Path) -> str:
    """Return a preset's purpose: the comment in its first line, or ""."""
    first = _read(_find(name)).partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _find(name: str | Path) -> Path:
    if str(name) in list_presets():
        return FOLDER / f"{name}.toml"
    path = Path(name).expanduser()
    if path.suffix == ".toml" and path.is_file():
        return path
    raise InputError(
        f"There is no preset {str(name)!r}.",
        f"Use one of {', '.join(list_presets())}, or give a .toml file.",
        code="no_preset",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The preset {path} cannot be read: {error}.", "Save it as UTF-8.", code="preset") from error


def _comment(item: Item) -> str:
    """Return the comment behind a value; for a list over several lines, the one behind its opening bracket."""
    text = item.trivia.comment
    if not text and isinstance(item, Array):
        text = item.as_string().partition("\n")[0].partition("#")[2]
    return text.lstrip("#").strip()
