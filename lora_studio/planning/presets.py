"""Presets: files with the recipe values that differ from the guide's defaults.

Those in presets/ ship with the studio, each value with its reason as a comment; those in the home's presets folder are
the user's own. A preset has recipe values only, never a path; loading one changes nothing else in a job.
"""

from __future__ import annotations

import re
import time
from datetime import date
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Array, Item

from lora_studio.errors import ConfigError, InputError, disk_errors
from lora_studio.files import shipped_folder, write_text
from lora_studio.settings.declare import parse_toml
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Home

FOLDER = shipped_folder("presets")


def list_presets() -> list[str]:
    """Return the names of the presets that ship with the studio."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def own_presets(home: Home) -> list[str]:
    """Return the names of the user's own presets."""
    return sorted(path.stem for path in home.presets.glob("*.toml"))


def save_preset(home: Home, name: str, recipe: Recipe) -> Path:
    """Write what differs from the guide's defaults as a preset of the user's own.

    Raises InputError if the name is taken or is not a valid file name, or if nothing differs.
    """
    values, file = recipe.non_defaults(), _new_file(home, name)
    if not values:
        raise InputError(
            "These settings are the guide's defaults.", "Change one before you save them.", code="preset_empty"
        )
    document = tomlkit.document()
    document.add(tomlkit.comment(f"{file.stem}, saved on {date.today().isoformat()}."))
    for setting, value in values.items():
        document.add(setting, tomlkit.item(value))
    _write(file, tomlkit.dumps(document))
    return file


def rename_preset(home: Home, name: str, new_name: str) -> Path:
    """Rename one of the user's own presets and return its new path.

    Raises InputError if there is none, or if the new name is taken or is not a valid file name.
    """
    file = own_preset_file(home, name)
    target = _new_file(home, new_name, renamed=name)
    with disk_errors(target):
        file.rename(target)
    return target


def import_preset(home: Home, file: Path, name: str = "") -> Path:
    """Copy a preset from a .toml file, with its comments, to the user's own; `name` is by default that of the file.

    Deleted presets can be restored from the trash with it. Raises InputError if the name is taken or not valid, or the
    file is missing, is not TOML or is empty, ConfigError if a value cannot work.
    """
    if not load_preset(file):
        raise InputError(f"{file.name} has no settings.", "Choose a preset with at least one.", code="preset_empty")
    target = _new_file(home, name or file.expanduser().stem)
    _write(target, _read(file.expanduser()))
    return target


def export_preset(home: Home, name: str, target: Path) -> Path:
    """Copy a preset to a new .toml file, or into the folder `target`, and return the file.

    Raises InputError if there is no such preset, or if the file exists.
    """
    source = _find(name, home)
    target = target.expanduser()
    file = target / source.name if target.is_dir() else target
    if file.suffix != ".toml" or file.exists():
        problem = "exists already" if file.exists() else "is not named like a .toml file"
        raise InputError(f"{file} {problem}.", "Give another name.", code="preset_file")
    _write(file, _read(source))
    return file


def own_preset_file(home: Home, name: str) -> Path:
    """Return the file of one of the user's own presets; raises InputError if there is none."""
    if name not in own_presets(home):
        raise InputError(f"You have no preset {name!r}.", "Select one from your own.", code="no_preset")
    return home.presets / f"{name}.toml"


def delete_preset(home: Home, name: str) -> Path:
    """Move one of the user's own presets to the trash and return its new path; raises InputError if there is none."""
    file = own_preset_file(home, name)
    target = home.trash / "presets" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}.toml"
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    return target


def load_preset(name: str | Path, home: Home | None = None) -> dict[str, Any]:
    """Load the recipe values of a preset, given its name or a .toml file; with `home` also one of the user's own.

    Raises InputError if the preset is missing or is not TOML, ConfigError if a value cannot work.
    """
    path = _find(name, home)
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


def _find(name: str | Path, home: Home | None = None) -> Path:
    if str(name) in list_presets():
        return FOLDER / f"{name}.toml"
    own = own_presets(home) if home is not None else []
    if home is not None and str(name) in own:
        return home.presets / f"{name}.toml"
    path = Path(name).expanduser()
    if path.suffix == ".toml" and path.is_file():
        return path
    raise InputError(
        f"There is no preset {str(name)!r}.",
        f"Use one of {', '.join([*own, *list_presets()])}, or give a .toml file.",
        code="no_preset",
    )


def _new_file(home: Home, name: str, *, renamed: str = "") -> Path:
    """Return the file of a new preset, or of the one that is `renamed`; raises InputError for a name that cannot be."""
    name = name.strip()
    if not re.fullmatch(r"\w[\w .-]{0,59}", name) or name.endswith("."):
        raise InputError(
            f"{name!r} is not a valid name for a preset.",
            "Use letters, digits, spaces, dots, dashes and underscores, at most 60, and begin with a letter.",
            code="preset_name",
        )
    known = [*list_presets(), *(own for own in own_presets(home) if own != renamed)]
    if name == renamed or name.lower() in {own.lower() for own in known}:
        raise InputError(
            f"There is already a preset {name!r}.",
            "Choose another name, or delete your own one first.",
            code="preset_name",
        )
    return home.presets / f"{name}.toml"


def _write(file: Path, text: str) -> None:
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)


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
