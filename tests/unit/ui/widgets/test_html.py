"""The shared HTML: user text is escaped, and errors carry their code."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from lora_studio.errors import ConfigError, InputError
from lora_studio.ui.widgets.html import (
    LONG_TABLE,
    STATIC,
    TEMPLATES,
    TableRow,
    Tile,
    card,
    cards,
    empty_card,
    error_card,
    heading,
    note,
    pick_button,
    pill,
    render,
    script,
    table,
    tiles,
)
from tests.support.interface import error_code

HOSTILE = "<img src=x onerror=alert(1)> \" ' &"
ESCAPED = "&lt;img src=x onerror=alert(1)&gt; &#34; &#39; &amp;"


@pytest.mark.parametrize(
    "made",
    [
        card(HOSTILE, HOSTILE, HOSTILE),
        cards([note(HOSTILE, HOSTILE)]),
        empty_card(HOSTILE, HOSTILE),
        error_card(InputError(HOSTILE, HOSTILE)),
        heading(HOSTILE, HOSTILE),
        pick_button(HOSTILE, HOSTILE, title=HOSTILE),
        pill(HOSTILE, HOSTILE),
        table([HOSTILE], [TableRow([HOSTILE])], label=HOSTILE),
        tiles([Tile(HOSTILE, HOSTILE, HOSTILE)]),
        render("job_title.html", name=HOSTILE, state=HOSTILE, label=HOSTILE, message=HOSTILE, facts=HOSTILE),
        render("log.html", lines=HOSTILE),
    ],
)
def test_text_is_escaped(made: Markup) -> None:
    assert "<img" not in made
    assert ESCAPED in made


def test_markup_is_not_escaped_again() -> None:
    assert "<td><b>x</b></td>" in table(["a"], [TableRow([Markup("<b>x</b>")])]).replace(' class=""', "")
    assert cards([]) == cards([Markup("")]) == ""


def test_errors_are_alerts_with_their_code() -> None:
    assert error_code(error_card(InputError("a", "b", code="no_run"))) == "no_run"
    assert error_code(error_card(ConfigError(["a: 1", "b: 2"]))) == "config"
    assert error_code(card("a")) == ""


@pytest.mark.parametrize("name", TEMPLATES.list_templates())
def test_templates_compile(name: str) -> None:
    assert TEMPLATES.get_template(name)


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("log.html")


@pytest.mark.parametrize("name", [path.name for path in STATIC.glob("*.js")])
def test_scripts_are_read(name: str) -> None:
    assert script(name)


def test_a_long_table_can_be_searched() -> None:
    rows = [TableRow([f"run {number}"]) for number in range(LONG_TABLE + 1)]
    assert 'class="table-search" aria-label="Search Runs"' in table(["Run"], rows, label="Runs", searchable=True)
    assert "table-search" not in table(["Run"], rows[1:], label="Runs", searchable=True)
    assert "table-search" not in table(["Run"], rows, label="Runs")
