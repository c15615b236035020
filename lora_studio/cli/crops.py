"""`python -m lora_studio crops DIR`: what the trainer sees of each image, and the focus points of the crops."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_studio import api
from lora_studio.cli.console import Folder, HomeOption, Json, print_json, print_lines
from lora_studio.cli.recipe_options import PresetOption, SetOption
from lora_studio.errors import InputError
from lora_studio.planning.presets import load_preset
from lora_studio.settings.recipe import Recipe, apply_overrides
from lora_studio.workspace.project import Home


def crops(
    folder: Folder,
    focus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE=X,Y",
            help="Centre the crop of an image on a point, as shares from the left and the top; IMAGE= resets it.",
        ),
    ] = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Show bucket, scaled size and crop of each image, as training uses them."""
    for asked in focus or []:
        image, _, point = asked.rpartition("=")
        api.set_focus(folder, image, _point(asked, point) if point.strip() else None)
    changes = load_preset(preset, Home.locate(home)) if preset else {}
    found = api.crops(folder, Recipe.parse(apply_overrides(changes, settings or [])))
    if as_json:
        print_json([crop.model_dump(mode="json") for crop in found])
        return
    for crop in found:
        point = f", focus {crop.focus.x:.0%} from the left, {crop.focus.y:.0%} from the top" if crop.focus else ""
        print_lines(f"{crop.path}: {crop.text}{point}")


def _point(asked: str, text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise InputError(
            f"--focus {asked!r} is not an image and a point.", "Give for example a.png=0.5,0.2.", code="usage"
        ) from None
    return x, y
