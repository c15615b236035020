"""The declared shortcuts are those that the page's scripts handle, and the other way round."""

from __future__ import annotations

import re

import pytest

from lora_studio.ui.shortcuts import SHORTCUTS, TITLES, Place, actions, key_line
from lora_studio.ui.widgets.html import STATIC

TEMPLATES = STATIC.parent / "widgets" / "templates"
# The script that handles the keys of a place.
SCRIPTS = {
    Place.PAGE: "shortcuts.js",
    Place.MENU: "project_menu.js",
    Place.GRID: "grid_select.js",
    Place.SELECTION_TAG: "grid_select.js",
    Place.REVIEW: "review_keys.js",
    Place.ADD_TAG: "add_tag.js",
    Place.CHIPS: "caption_chips.js",
    Place.CURATE: "curate_keys.js",
    Place.VIEWER: "image_viewer.js",
    Place.CHART: "chart.js",
    Place.LIGHTBOX: "lightbox.js",
}


def test_every_place_has_a_title_and_a_script_that_asks_for_its_keys() -> None:
    assert set(SHORTCUTS) == set(TITLES) == set(SCRIPTS) == set(Place)
    for place, name in SCRIPTS.items():
        assert f"studioKey('{place}', event)" in (STATIC / name).read_text("utf-8")


def test_scripts_compare_no_key_that_is_not_declared() -> None:
    found = [
        (path.name, key)
        for path in STATIC.glob("*.js")
        for key in re.findall(r"event\.key\s*[!=]==?\s*'([^']+)'", path.read_text("utf-8"))
        if key != "Tab"
    ]
    assert found == []


def test_no_key_of_a_place_has_two_actions() -> None:
    for place, shortcuts in SHORTCUTS.items():
        keys = [key for shortcut in shortcuts for key in shortcut.actions]
        assert len(keys) == len(set(keys)) == len(actions(place))


def test_the_keys_of_the_large_view_are_those_of_its_buttons() -> None:
    source = (TEMPLATES / "dataset/viewer.html").read_text("utf-8")
    assert set(re.findall(r'data-key="([^"]+)"', source)) == set(actions(Place.VIEWER).values())


@pytest.mark.parametrize(("place", "keys"), [(Place.REVIEW, "Ctrl Z"), (Place.VIEWER, "0"), (Place.GRID, "Shift with")])
def test_a_line_of_keys_names_them_as_a_person_reads_them(place: Place, keys: str) -> None:
    assert f"<kbd>{keys}" in key_line(place)
