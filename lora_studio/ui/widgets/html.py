"""Pieces of the page: tiles, cards, pills and tables as HTML in which every text of a user's is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.errors import ConfigError, StudioError


class Tone(StrEnum):
    """What the edge of a tile or card says; the words say it too, so colour never stands alone."""

    PLAIN = ""
    OK = "ok"
    LOOK = "look"
    BAD = "bad"


class Tile(NamedTuple):
    """One large figure with one line of meaning."""

    label: str
    figure: str
    note: str = ""
    tone: Tone = Tone.PLAIN


def tiles(items: Iterable[Tile]) -> Markup:
    """A row of tiles."""
    one = Markup(
        '<div class="tile {3}"><div class="label">{0}</div><div class="figure">{1}</div>'
        '<div class="note">{2}</div></div>'
    )
    return Markup('<div class="tiles">{}</div>').format(Markup("").join(one.format(*item) for item in items))


def card(title: str, text: str = "", next_step: str = "", tone: Tone = Tone.PLAIN) -> Markup:
    """A title in plain words, the evidence, and one next step."""
    role = Markup(' role="alert"') if tone is Tone.BAD else ""
    return Markup('<div class="card {}"{}><h3>{}</h3>{}{}</div>').format(
        tone.value,
        role,
        title,
        Markup("<p>{}</p>").format(text) if text else "",
        Markup('<p class="next">{}</p>').format(next_step) if next_step else "",
    )


def note(message: str, why: str = "", tone: Tone = Tone.PLAIN) -> Markup:
    """One thing to look at: what it is, and why it matters."""
    return Markup('<div class="card {}"><p>{}</p>{}</div>').format(
        tone.value, message, Markup('<p class="hint">{}</p>').format(why) if why else ""
    )


def cards(items: Iterable[Markup]) -> Markup:
    """Cards below each other; empty text for none."""
    content = Markup("").join(items)
    return Markup('<div class="cards">{}</div>').format(content) if content else Markup("")


def error_card(error: StudioError, title: str = "That did not work") -> Markup:
    """What went wrong and what to do about it, for a place near the button that was pressed."""
    if isinstance(error, ConfigError):
        title = "One setting to correct" if len(error.problems) == 1 else f"{len(error.problems)} settings to correct"
    return card(title, error.message, error.remedy, Tone.BAD)


def empty_card(title: str, text: str) -> Markup:
    """What will stand here, and how to get there."""
    return Markup('<div class="card empty"><h3>{}</h3><p>{}</p></div>').format(title, text)


def pill(text: str, title: str = "") -> Markup:
    """A short fact for the header; `title` is its reason, shown when pointed at."""
    return Markup('<span class="pill" title="{}">{}</span>').format(title, text)


def heading(text: str, hint: str = "") -> Markup:
    """A heading over a part of a tab, with a line below it."""
    line = Markup('<p class="hint">{}</p>').format(hint) if hint else ""
    return Markup('<h2 class="heading">{}</h2>{}').format(text, line)


@dataclass(frozen=True)
class Row:
    """A table's row: cells of text or Markup; `changed` marks it."""

    cells: Sequence[object]
    changed: bool = False


def table(headers: Sequence[str], rows: Iterable[Row], classes: Sequence[str] = (), label: str = "") -> Markup:
    """A table in the page's own font. `classes` are the columns': "keep" does not wrap, "why" is subdued."""
    columns = [*classes, *[""] * (len(headers) - len(classes))]
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(text) for text in headers)
    body = Markup("").join(
        Markup('<tr class="{}">{}</tr>').format(
            "changed" if row.changed else "",
            Markup("").join(
                Markup('<td class="{}">{}</td>').format(name, cell)
                for name, cell in zip(columns, row.cells, strict=True)
            ),
        )
        for row in rows
    )
    return Markup(
        '<div class="table-scroll" tabindex="0" role="region" aria-label="{}"><table><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(label or headers[0], head, body)


def html(value: str = "", *, classes: str = "", **options: Any) -> gr.HTML:
    """A place for HTML that reacts to nothing; it takes no room while it is empty."""
    return gr.HTML(value, js_on_load=None, apply_default_css=False, elem_classes=["studio-html", classes], **options)


PICK_SCRIPT = """
element.addEventListener('click', (event) => {
  const picked = event.target.closest('[data-pick]');
  if (picked && element.contains(picked)) trigger('click', { pick: picked.dataset.pick });
});
"""


def pickable(value: str = "", *, classes: str = "", **options: Any) -> gr.HTML:
    """A place for HTML whose buttons made by `pick_button` fire `.click`; the handler takes gr.EventData, `.pick`."""
    return gr.HTML(
        value, js_on_load=PICK_SCRIPT, apply_default_css=False, elem_classes=["studio-html", classes], **options
    )


def pick_button(name: str, text: str | Markup, *, current: bool = False, title: str = "") -> Markup:
    """A button inside `pickable`; `name` is what the handler gets, to be resolved and checked there."""
    return Markup('<button type="button" class="pick" data-pick="{}" aria-pressed="{}" title="{}">{}</button>').format(
        name, str(current).lower(), title, text
    )


@dataclass(frozen=True)
class EmptyState:
    """A part of a tab that stands there while there is nothing to show, with its buttons."""

    group: gr.Column
    buttons: list[gr.Button]


def empty_state(title: str, text: str, actions: Sequence[str], visible: bool = True) -> EmptyState:
    """Build an empty state: what will be here, and buttons for the ways to get there, the first one primary."""
    with gr.Column(visible=visible, elem_classes="empty-state") as group:
        html(empty_card(title, text))
        with gr.Row(elem_classes="actions"):
            buttons = [
                gr.Button(action, variant="secondary" if index else "primary", scale=0, min_width=260)
                for index, action in enumerate(actions)
            ]
    return EmptyState(group, buttons)


def count_of(number: int, word: str) -> str:
    """A number with its word: "1 image", "24 images"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: "45 s", "1 min 04 s", "2 h 10 min"; "unknown" for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def short(value: object) -> str:
    """A setting's value as people write it: 5e-4, 0.05, on, off, empty. A number reads back as the same number."""
    if value is None or value == "":
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        exact = Decimal(repr(value)).normalize()
        if value and not 0.001 <= abs(value) < 1e6:
            mantissa, _, exponent = f"{exact:e}".partition("e")
            return f"{mantissa}e{int(exponent)}"
        return f"{exact:f}"
    if isinstance(value, list | tuple):
        return "\n".join(short(item) for item in value)
    return str(value)
