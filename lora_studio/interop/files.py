"""Import the settings of a training from a file of kohya's tools, or from a LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio.errors import InputError
from lora_studio.interop.arguments import ARGUMENTS, LeftOut
from lora_studio.interop.dataset_config import DatasetConfig
from lora_studio.interop.gui import MARKS, gui_arguments
from lora_studio.interop.metadata import PREFIX, metadata_arguments
from lora_studio.interop.read import JOB_FIELDS, LENGTH, NETWORK, OPTIMIZER, RATES, SCHEDULE, Translation
from lora_studio.lora.header import read_lora_header
from lora_studio.settings.declare import parse_toml
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import common_folder

MAX_BYTES = 4 * 1024**2
FILE_TYPES = (".json", ".toml", ".safetensors")
_KNOWN = {argument.name for argument in ARGUMENTS} | {*NETWORK, *OPTIMIZER, *RATES, *SCHEDULE, *LENGTH, *JOB_FIELDS}
PATHS = {"dataset", "regularization", "network_weights"}  # fields of a job
NOT_LOOKED_AT = "Paths of this computer can be used only when the studio is not shared."
_DATA_FOLDERS = {"train_data_dir", "reg_data_dir"}
_OWN_MARKS = {"kind", "recipe"}  # of a job file


class SettingsSource(StrEnum):
    """What wrote a file with settings."""

    KOHYA_SS = "kohya_ss"
    SD_SCRIPTS = "sd-scripts"
    DATASET_CONFIG = "dataset_config"
    LORA = "LoRA metadata"


class ImportedSettings(BaseModel):
    """Settings from a file of another program, in this one's names.

    `recipe` has values of recipe settings, `job` those of other fields of a training job: dataset, base, name... Those
    that the file says nothing about are missing. `left_out` lists the arguments that were not carried over.
    """

    model_config = ConfigDict(frozen=True)

    source: SettingsSource
    recipe: dict[str, Any]
    job: dict[str, Any]
    left_out: list[LeftOut]

    def lines(self) -> list[str]:
        """Return what was not carried over as sentences; what the studio does not need is one line."""
        found = [f"{item.name} = {item.value}: {item.why}" for item in self.left_out if item.matters]
        if others := [item.name for item in self.left_out if not item.matters]:
            found.append(f"Not needed here: {', '.join(others)}.")
        return found


def import_settings(path: Path | str, *, with_files: bool = True) -> ImportedSettings:
    """Read the JSON of kohya_ss' form, a TOML of sd-scripts, or the metadata of a LoRA file.

    Without `with_files`, no file or folder that it names is looked at: they are listed as left out. Raises InputError
    if the file is missing, damaged or has no such settings.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    folder = path.parent if with_files else None
    if suffix == ".safetensors":
        return _from_lora(path, folder)
    text = _read(path)
    if suffix == ".json":
        return _from_gui(_parse_json(text, path.name), path.name, folder)
    return _from_toml(parse_toml(text, path.name), path.name, folder)


def _read(path: Path) -> str:
    if path.suffix.lower() not in FILE_TYPES:
        raise InputError(
            f"{path.name} is not a file with settings.",
            "Give a .json of kohya_ss, a .toml of sd-scripts or a LoRA as .safetensors.",
            code="import_type",
        )
    if not path.is_file():
        raise InputError(f"{path} does not exist.", "Give the path of a file with settings.", code="no_file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(
                f"{path.name} is larger than {MAX_BYTES // 1024**2} MB.",
                "Give a file with settings.",
                code="import_file",
            )
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read: {error}.", "Save it as UTF-8.", code="import_file") from error


def _parse_json(text: str, name: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON: {error}.", "Save it again in kohya_ss.", code="json") from error
    if not isinstance(values, dict):
        raise _no_settings(name)
    return values


def _no_settings(name: str) -> InputError:
    return InputError(
        f"{name} has no settings of a training.",
        "Give a .json of kohya_ss, a .toml of sd-scripts or a LoRA that one of them trained.",
        code="no_settings",
    )


def _from_gui(fields: dict[str, Any], name: str, folder: Path | None) -> ImportedSettings:
    if not MARKS & fields.keys() and not _KNOWN & fields.keys():
        raise _no_settings(name)
    arguments, left_out = gui_arguments(fields)
    return _translate(SettingsSource.KOHYA_SS, arguments, left_out, complete=True, folder=folder)


def _from_toml(values: dict[str, Any], name: str, folder: Path | None) -> ImportedSettings:
    if _OWN_MARKS & values.keys():
        raise InputError(f"{name} is a job file of the studio.", "Give it to train as JOB.toml.", code="own_job")
    if isinstance(values.get("datasets"), list):
        config = DatasetConfig(values, folder)
        return _translate(
            SettingsSource.DATASET_CONFIG, {}, config.left_out, complete=False, folder=folder, config=config
        )
    arguments: dict[str, Any] = {}
    for key, value in values.items():  # sections only sort the arguments
        arguments |= value if isinstance(value, Mapping) else {key: value}
    if not _KNOWN & arguments.keys():
        raise _no_settings(name)
    return _translate(SettingsSource.SD_SCRIPTS, arguments, [], complete=True, folder=folder)


def _from_lora(path: Path, folder: Path | None) -> ImportedSettings:
    metadata = read_lora_header(path).metadata
    if not any(name.startswith(PREFIX) for name in metadata):
        raise InputError(
            f"{path.name} does not say how it was trained.",
            "Its metadata was removed, or its trainer wrote none: set the recipe by hand.",
            code="no_settings",
        )
    arguments, left_out = metadata_arguments(metadata)
    return _translate(SettingsSource.LORA, arguments, left_out, complete=False, folder=folder)


def _translate(
    source: SettingsSource,
    arguments: dict[str, Any],
    left_out: list[LeftOut],
    *,
    complete: bool,
    folder: Path | None,
    config: DatasetConfig | None = None,
) -> ImportedSettings:
    """Return the arguments as settings. Paths are relative to `folder`; without one, no path is looked at."""
    if name := arguments.pop("dataset_config", None):
        config = _read_dataset_config(str(name), folder, left_out)
    if config is not None:
        # as in sd-scripts, the folders beside a dataset_config are not used
        arguments = {name: value for name, value in arguments.items() if name not in _DATA_FOLDERS} | config.arguments
    prompts = arguments.get("sample_prompts")
    if isinstance(prompts, str) and (lines := _prompt_lines(folder, prompts)) is not None:
        arguments["sample_prompts"] = lines
    found = Translation(arguments, complete=complete)
    left_out += found.left_out
    for name in PATHS & found.job.keys():
        existing = next((path for path in _places(str(found.job[name]), folder) if path.exists()), None)
        if existing is None:
            why = "It is not on this computer: give it again." if folder else NOT_LOOKED_AT
            left_out.append(LeftOut(name, found.job.pop(name), why))
        else:
            found.job[name] = str(existing)
    if config is not None and config.subsets:
        found.job["dataset"] = str(common_folder(config.subsets))
        found.job["subsets"] = [subset.model_dump(mode="json") for subset in config.subsets]
    return ImportedSettings(source=source, recipe=found.recipe, job=found.job, left_out=left_out)


def _places(name: str, folder: Path | None) -> list[Path]:
    """Return where a path in a file with settings may be: beside the file, or as it is; nowhere without `folder`."""
    given = Path(name).expanduser()
    return [folder / given, given] if folder else []


def _read_dataset_config(name: str, folder: Path | None, left_out: list[LeftOut]) -> DatasetConfig | None:
    """Read the dataset_config that a file with settings names; if it is missing, list it and return None."""
    path = next((path for path in _places(name, folder) if path.is_file()), None)
    if path is None:
        left_out.append(LeftOut("dataset_config", name, "It is not on this computer: import it too."))
        return None
    config = DatasetConfig(parse_toml(_read(path), path.name), path.parent)
    left_out += config.left_out
    return config


def _prompt_lines(folder: Path | None, name: str) -> list[str] | None:
    """Return the lines of a text file of sample prompts, beside the settings or at its path; None if it is missing."""
    for path in _places(name, folder):
        if path.suffix.lower() == ".txt" and path.is_file():
            limit = next(item.max_length for item in Recipe.model_fields["sample_prompts"].metadata)
            lines = [line.strip() for line in _read_text(path).splitlines()]
            return [line for line in lines if line and not line.startswith("#")][:limit]
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""
