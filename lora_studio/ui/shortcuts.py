"""The keyboard shortcuts of the page, each declared once: scripts look keys up here, and the key sheet lists them.

A script asks `window.studioKey(place, event)` of shortcuts.js for the action of a pressed key. A key that is not
declared does nothing.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.ui.widgets.html import render


class Place(StrEnum):
    """Where in the page keys work."""

    PAGE = "page"
    MENU = "menu"
    GRID = "grid"
    SELECTION_TAG = "selection_tag"
    REVIEW = "review"
    ADD_TAG = "add_tag"
    CHIPS = "chips"
    CURATE = "curate"
    VIEWER = "viewer"
    LIGHTBOX = "lightbox"
    CHART = "chart"


TITLES = {
    Place.PAGE: "Everywhere",
    Place.MENU: "Projects menu",
    Place.GRID: "Dataset, grid of images",
    Place.SELECTION_TAG: "Dataset, tag of selected images",
    Place.REVIEW: "Dataset, Review",
    Place.ADD_TAG: "Dataset, field that adds a tag",
    Place.CHIPS: "Dataset, tag of a caption",
    Place.CURATE: "Dataset, Curate",
    Place.VIEWER: "Dataset, large view",
    Place.CHART: "Charts",
    Place.LIGHTBOX: "Test, large image",
}


class Shortcut(NamedTuple):
    """A line of the key sheet: what the keys do, and the action of each key as `event.key` names it.

    A prefix names modifiers: `Ctrl+`, `Alt+`, `Shift+`, in this order. `Shift+` is not written before a
    single character.
    """

    meaning: str
    actions: dict[str, str]
    label: str = ""

    @property
    def keys(self) -> str:
        """Return the keys as a person reads them."""
        return self.label or " or ".join(_readable(key) for key in self.actions)


READABLE = {
    "ArrowLeft": "←",
    "ArrowRight": "→",
    "ArrowUp": "↑",
    "ArrowDown": "↓",
    "Escape": "Esc",
    " ": "Space",
    "-": "−",
    "PageUp": "Page Up",
    "PageDown": "Page Down",
}
ARROWS = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown")


def _readable(key: str) -> str:
    *modifiers, name = key.split("+") if len(key) > 1 else [key]
    return " ".join([*modifiers, READABLE.get(name, name.upper() if len(name) == 1 else name)])


def _pressed(*keys: str) -> dict[str, str]:
    """Return keys whose action has the key's own name."""
    return {key: key for key in keys}


SHORTCUTS: dict[Place, tuple[Shortcut, ...]] = {
    Place.PAGE: (Shortcut("show or close this list", {"?": "sheet"}),),
    Place.MENU: (Shortcut("close", _pressed("Escape")),),
    Place.GRID: (
        Shortcut("move in the grid", _pressed(*ARROWS), "← → ↑ ↓"),
        Shortcut("select or deselect", {"x": "select"}),
        Shortcut("extend the selection", {f"Shift+{key}": f"Shift+{key}" for key in ARROWS}, "Shift with an arrow"),
        Shortcut("select the page", {"Ctrl+a": "page"}),
        Shortcut("clear the selection", {"Escape": "clear"}),
        Shortcut("set the selection aside", {"Delete": "aside"}),
    ),
    Place.SELECTION_TAG: (Shortcut("add the tag", {"Enter": "add_tag"}),),
    Place.REVIEW: (
        Shortcut(
            "previous, next",
            {"ArrowLeft": "previous", "k": "previous", "ArrowRight": "next", "j": "next"},
            "← → or K J",
        ),
        Shortcut("mark as reviewed, next", {"Enter": "mark", " ": "mark"}),
        Shortcut("mark or unmark", {"r": "toggle"}),
        Shortcut("add a tag", {"a": "add"}),
        Shortcut("set aside", {"Delete": "aside"}),
        Shortcut("large view: zoom, crop, rotate", {"v": "view"}),
        Shortcut("undo", {"Ctrl+z": "undo"}),
    ),
    Place.ADD_TAG: (
        Shortcut("choose a suggestion", _pressed("ArrowUp", "ArrowDown"), "↑ ↓"),
        Shortcut("add the tag", _pressed("Enter")),
        Shortcut("leave the field", _pressed("Escape")),
    ),
    Place.CHIPS: (
        Shortcut("previous, next tag", {"ArrowLeft": "previous", "ArrowRight": "next"}, "← →"),
        Shortcut("move the tag", {"Alt+ArrowLeft": "earlier", "Alt+ArrowRight": "later"}, "Alt with ← →"),
        Shortcut("remove the tag", {"Delete": "drop", "Backspace": "drop"}),
    ),
    Place.CURATE: (
        Shortcut("choose a group or row", {"ArrowUp": "up", "ArrowDown": "down"}, "↓ ↑"),
        Shortcut("set aside", _pressed("Delete")),
        Shortcut("keep", _pressed("k")),
        Shortcut("use the duplicate instead", _pressed("u")),
        Shortcut("undo", _pressed("z")),
    ),
    Place.VIEWER: (
        Shortcut("previous, next image", _pressed("ArrowLeft", "ArrowRight"), "← →"),
        Shortcut("zoom", {"+": "+", "=": "+", "-": "-", "_": "-"}, "+ −"),
        Shortcut("fit into the window", _pressed("0")),
        Shortcut("rotate right", _pressed("r")),
        Shortcut("draw a crop with the pointer", _pressed("c")),
        Shortcut("apply the crop", _pressed("Enter")),
        Shortcut("set the focus point with the pointer", _pressed("f")),
        Shortcut("undo", _pressed("z")),
        Shortcut("end the crop, or close", _pressed("Escape")),
    ),
    Place.CHART: (
        Shortcut("read values", _pressed("ArrowLeft", "ArrowRight"), "← →"),
        Shortcut("in larger steps", _pressed("PageUp", "PageDown"), "Page Up, Page Down"),
        Shortcut("first, last value", _pressed("Home", "End"), "Home, End"),
        Shortcut("zoom", _pressed("+", "-"), "+ −"),
        Shortcut("end reading, show all", _pressed("Escape")),
    ),
    Place.LIGHTBOX: (
        Shortcut("the next image in that direction", _pressed(*ARROWS), "← → ↑ ↓"),
        Shortcut("star it", _pressed("s")),
        Shortcut("close", _pressed("Escape")),
    ),
}


def actions(place: Place) -> dict[str, str]:
    """Return the action of each key of a place."""
    return {key: action for shortcut in SHORTCUTS[place] for key, action in shortcut.actions.items()}


def key_line(place: Place, note: str = "") -> Markup:
    """Return the keys of a place as one line below what they act on, and a note."""
    return render("dataset/keys.html", shortcuts=SHORTCUTS[place], note=note)


def key_sheet() -> Markup:
    """Return the button and the dialog that lists all keys, with their actions for the scripts."""
    return render(
        "app/shortcuts.html",
        groups=[(TITLES[place], SHORTCUTS[place]) for place in TITLES],
        actions=json.dumps({place: actions(place) for place in Place}),
    )
