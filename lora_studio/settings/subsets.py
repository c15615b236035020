"""Subsets of a dataset: folders with repeats and settings of their own, as in sd-scripts' dataset_config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from lora_studio.settings.declare import Settings
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sections.captions import CaptionSettings
from lora_studio.settings.sections.data import DataSettings

# The settings that a subset can have itself.
SUBSET_SETTINGS = (
    *(name for name in CaptionSettings.model_fields if name not in ("caption_variants", "max_token_length")),
    *("flip_aug", "random_crop"),
)


class _SubsetSettings(CaptionSettings, DataSettings):
    """The settings that a subset's are checked as."""


class Subset(Settings):
    """A folder whose images are trained with repeats and settings of their own.

    `settings` has recipe settings by name: those of `SUBSET_SETTINGS`. All others are the recipe's.
    """

    image_dir: Path = Field(description="Folder of images and captions; its subfolders are not read.")
    num_repeats: int = Field(default=1, ge=1, le=10_000, description="How often each image is used per epoch.")
    class_tokens: str = Field(default="", max_length=500, description="Caption of images without one.")
    is_reg: bool = Field(default=False, description="Whether these are regularisation images of the class.")
    settings: dict[str, Any] = Field(default={}, description="Recipe settings that differ from the recipe's.")

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(value) - set(SUBSET_SETTINGS)):
            raise ValueError(f"{unknown[0]} cannot differ between subsets. Use {', '.join(sorted(SUBSET_SETTINGS))}")
        checked = _SubsetSettings.model_validate(value).model_dump(mode="json")
        return {name: checked[name] for name in value}

    def applied_to(self, recipe: Recipe) -> Recipe:
        """Return the recipe with this subset's settings."""
        return recipe.model_copy(update=self.settings) if self.settings else recipe


def common_folder(subsets: list[Subset]) -> Path:
    """Return the folder that contains those of all subsets, which are absolute; the folder itself if it is one."""
    folders = {subset.image_dir for subset in subsets}
    first, *others = folders
    candidates = [first.parent, *first.parents] if others else [first]
    return next(folder for folder in candidates if all(other.is_relative_to(folder) for other in folders))
