"""A LoRA file to start from: what it was trained with, and which settings of the form differ."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from lora_studio.lora.file_settings import describe_file, different_settings, settings_of_file
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.values import format_value
from lora_studio.ui.widgets.html import render
from lora_studio.ui.widgets.setting_spec import SettingSpec

USE_FILE = "use"


def file_offer(path: Path, recipe: Recipe | None) -> Markup:
    """Return what a LoRA was trained with, and a button that takes its settings if those of the form differ.

    `recipe` is None while the form has wrong values. Raises InputError if the file is not a LoRA for SDXL.
    """
    found = settings_of_file(path)
    different = found if recipe is None else different_settings(path, recipe)
    texts = [f"{SettingSpec.of(Recipe, name).label}: {format_value(value)}" for name, value in different.items()]
    return render(
        "train/file_offer.html", name=path.name, text=describe_file(found), different=texts, use_file=USE_FILE
    )
