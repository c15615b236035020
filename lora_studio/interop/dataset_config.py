"""The dataset_config of sd-scripts: subsets with settings of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError

from lora_studio.errors import InputError, validation_message
from lora_studio.interop.arguments import ARGUMENTS, NOT_AVAILABLE, NOT_NEEDED, LeftOut
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.subsets import SUBSET_SETTINGS, Subset

_FIELDS = ("image_dir", "num_repeats", "class_tokens", "is_reg")
# Names of arguments that a dataset_config calls otherwise.
_RENAMED = {"batch_size": "train_batch_size"}
_BY_NAME = {argument.name: argument for argument in ARGUMENTS}
_OTHERS = {
    "custom_attributes": "The studio has no use for them.",
    "metadata_file": "Metadata files are not read: write the captions beside the images.",
    "network_multiplier": "The LoRA is always trained at full strength.",
}


class DatasetConfig:
    """The contents of a dataset_config: arguments that all subsets share, the subsets, and what was left out."""

    def __init__(self, values: Mapping[str, Any], folder: Path | None) -> None:
        self.arguments: dict[str, Any] = {}
        self.subsets: list[Subset] = []
        self.left_out: list[LeftOut] = []
        described = _described(values)
        self._share(described)
        for own in described:
            self._add_subset(own, folder)

    def _share(self, described: Sequence[dict[str, Any]]) -> None:
        """Move what is the same in all subsets to the arguments; list what differs and cannot differ here."""
        names = dict.fromkeys(name for own in described for name in own if name not in _FIELDS)
        for name in names:
            values = [own.get(name) for own in described]
            argument = _BY_NAME.get(_RENAMED.get(name, name))
            if all(value == values[0] for value in values):
                self.arguments[_RENAMED.get(name, name)] = values[0]
            elif argument is not None and argument.setting in SUBSET_SETTINGS:
                continue
            elif argument is not None:
                first = next(value for value in values if value is not None)
                self.arguments[argument.name] = first
                why = f"It is the same for all images here: {first} is used."
                self.left_out.append(LeftOut(name, values, why))
            else:
                self.left_out.append(LeftOut(name, values, _reason(name), matters=name not in NOT_NEEDED))
            for own in described:
                own.pop(name, None)

    def _add_subset(self, own: dict[str, Any], folder: Path | None) -> None:
        given = own.pop("image_dir", None)
        if given is None:
            self.left_out.append(LeftOut("image_dir", "", "A subset without a folder of images cannot be used."))
            return
        path = Path(str(given)).expanduser()
        # Without a folder no path is looked at: only its name counts.
        places = (folder / path, path) if folder else ()
        existing = next((place.resolve() for place in places if place.is_dir()), None if folder else Path(path.name))
        if existing is None:
            self.left_out.append(LeftOut("image_dir", str(given), "It is not on this computer: the subset is missing."))
            return
        fields = {name: own.pop(name) for name in _FIELDS if name in own}
        settings = {_BY_NAME[name].setting: _BY_NAME[name].read(value) for name, value in own.items()}
        try:
            self.subsets.append(Subset(image_dir=existing, settings=settings, **fields))
        except ValidationError as error:
            item = error.errors()[0]
            name = str(item["loc"][-1])
            why = f"This subset is missing: {name} {validation_message(item)}."
            self.left_out.append(LeftOut(name, str(given), why))


def _described(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of each subset, with those of its dataset and the general ones below its own.

    Raises InputError if the file has another structure.
    """
    general, datasets = values.get("general", {}), values.get("datasets")
    try:
        found = []
        for dataset in datasets or []:
            shared = {name: value for name, value in dataset.items() if name != "subsets"}
            found += [{**general, **shared, **subset} for subset in dataset["subsets"]]
    except (KeyError, TypeError, AttributeError):
        found = []
    if not found:
        raise InputError(
            "The dataset_config has no subsets.", "Write [[datasets]] with [[datasets.subsets]].", code="no_subsets"
        )
    return found


def _reason(name: str) -> str:
    known = _OTHERS.get(name) or NOT_AVAILABLE.get(name) or NOT_NEEDED.get(name)
    return known or "The studio does not know this setting of a subset."


def write_subsets(subsets: Sequence[Subset], recipe: Recipe) -> str:
    """Return the text of a dataset_config with these subsets; all other settings are in the config."""
    described = []
    for subset in subsets:
        own: dict[str, Any] = {"image_dir": str(subset.image_dir), "num_repeats": subset.num_repeats}
        own |= {"class_tokens": subset.class_tokens} if subset.class_tokens else {}
        own |= {"is_reg": True} if subset.is_reg else {}
        changed = subset.applied_to(recipe)
        for argument in ARGUMENTS:
            if argument.setting in subset.settings:
                own[argument.name] = argument.write(getattr(changed, argument.setting))
        described.append(own)
    return tomlkit.dumps({"datasets": [{"subsets": described}]})
