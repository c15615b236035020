"""HTML of the page. Every piece is a Jinja2 template with autoescape, so that user text stays text.

Templates are in `templates/`, scripts in `ui/static/`. `macros.html` holds what recurs on every tab: tiles, cards,
tables. The functions here give its macros typed arguments and defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lora_studio.errors import ConfigError, StudioError
from lora_studio.ui.widgets.formatting import format_coordinate

LONG_TABLE = 12  # rows, beyond which a table can be searched
STATIC = Path(__file__).parents[1] / "static"
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
TEMPLATES.globals["is_owner"] = lambda: True  # see ui/authorisation.py
TEMPLATES.filters["coordinate"] = format_coordinate


def render(template: str, **values: object) -> Markup:
    """Render a file of `templates/`. Text is escaped, Markup is not."""
    return Markup(TEMPLATES.get_template(template).render(values).strip())


@functools.cache
def script(name: str) -> str:
    """Return a script or style sheet of `ui/static/`, for `gr.HTML`."""
    return (STATIC / name).read_text("utf-8")


def _macro(name: str, *args: object) -> Markup:
    return Markup(getattr(_macros(), name)(*args))


@functools.cache
def _macros() -> Any:
    return TEMPLATES.get_template("macros.html").module


class Tone(StrEnum):
    """CSS class of the coloured edge of a tile or card. The text says the same, so that colour is never alone."""

    PLAIN = ""
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Tile(NamedTuple):
    """One large figure with a label above and a line below."""

    label: str
    figure: str
    note: str = ""
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True)
class TableRow:
    """Cells of text or Markup; `changed` marks the row."""

    cells: Sequence[object]
    changed: bool = False


def tiles(items: Iterable[Tile]) -> Markup:
    """Return a row of tiles."""
    return _macro("tiles", list(items))


def card(title: str, text: str = "", next_step: str = "", tone: Tone = Tone.PLAIN) -> Markup:
    """Return a card with a title, the evidence and one next step; an error is announced as an alert."""
    return _macro("card", title, text, next_step, tone)


def note(message: str, why: str = "", tone: Tone = Tone.PLAIN) -> Markup:
    """Return a card without a title: a message and the reason for it."""
    return _macro("note", message, why, tone)


def cards(items: Iterable[Markup]) -> Markup:
    """Return cards one below the other; empty if there are none."""
    return _macro("cards", list(items))


def error_card(error: StudioError, title: str = "Error") -> Markup:
    """Return an error's message and remedy as a card, whose `data-code` is the error's code."""
    if isinstance(error, ConfigError):
        title = "One setting to correct" if len(error.problems) == 1 else f"{len(error.problems)} settings to correct"
    return _macro("card", title, error.message, error.remedy, Tone.ERROR, error.code)


def empty_card(title: str, text: str) -> Markup:
    """Return a placeholder: what will appear here, and how to get there."""
    return _macro("empty_card", title, text)


def pill(text: str, title: str = "", *, warning: bool = False) -> Markup:
    """Return a rounded label, marked if it is a warning; `title` is its tooltip."""
    return _macro("pill", text, title, warning)


def heading(text: str, hint: str = "") -> Markup:
    """Return a heading with an optional line below it."""
    return _macro("heading", text, hint)


def hint(text: str) -> Markup:
    """Return a small subdued line."""
    return _macro("hint", text)


def table(
    headers: Sequence[str],
    rows: Iterable[TableRow],
    classes: Sequence[str] = (),
    label: str = "",
    *,
    stacked: bool = False,
    searchable: bool = False,
) -> Markup:
    """Return a table. `classes` are those of the columns: "keep" does not wrap, "why" is subdued.

    A `searchable` one of more than LONG_TABLE rows has a search field above it, see table_search.js.
    On a phone, a `stacked` table shows each row as a card, in which every cell after the first has its header.
    """
    columns = [*classes, *[""] * (len(headers) - len(classes))]
    rows = list(rows)
    searched = searchable and len(rows) > LONG_TABLE
    return _macro("table", headers, rows, columns, label or headers[0], stacked, searched)


def pick_button(name: str, text: str | Markup, *, current: bool = False, title: str = "") -> Markup:
    """Return a button for `pickable`. The handler receives `name` from the browser and must check it."""
    return _macro("pick_button", name, text, current, title)


def html(value: str = "", *, js: str | Sequence[str] = (), classes: str = "", **options: Any) -> gr.HTML:
    """Create an HTML component, which takes no room while it is empty.

    `js` names the script of `ui/static/` for it, or several that share their top-level names.
    """
    names = [js] if isinstance(js, str) else js
    return gr.HTML(
        value,
        js_on_load="\n".join(map(script, names)) or None,
        apply_default_css=False,
        elem_classes=["studio-html", classes],
        **options,
    )


def pickable(value: str = "", *, classes: str = "", **options: Any) -> gr.HTML:
    """Create an HTML component whose buttons with `data-pick` fire `.click`; handlers read `gr.EventData.pick`."""
    return html(value, js="pick.js", classes=classes, **options)


@dataclass(frozen=True)
class EmptyState:
    """A placeholder with buttons, shown while a tab has nothing to show."""

    group: gr.Column
    buttons: list[gr.Button]


def empty_state(title: str, text: str, actions: Sequence[str], visible: bool = True) -> EmptyState:
    """Create a placeholder: what will appear here, and buttons for the ways to get there, the first one primary."""
    with gr.Column(visible=visible, elem_classes="empty-state") as group:
        html(empty_card(title, text))
        with gr.Row(elem_classes="actions"):
            buttons = [
                gr.Button(action, variant="secondary" if index else "primary", scale=0, min_width=260)
                for index, action in enumerate(actions)
            ]
    return EmptyState(group, buttons)
