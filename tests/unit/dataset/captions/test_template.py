"""Captions with wildcards, several lines and separators."""

from __future__ import annotations

import pytest

from lora_studio.dataset.captions.template import (
    caption_template,
    draw_caption,
    plain_caption,
    split_caption,
    without_separator,
)


@pytest.mark.parametrize(
    ("text", "wildcards", "expected"),
    [
        (" a,  b \n c ", False, "ohwx, a, b c, best"),
        (" a,  b \n\n c ", True, "ohwx, a, b, best\nohwx, c, best"),
        ("", True, "ohwx,, best"),
    ],
)
def test_prefix_and_suffix(text: str, wildcards: bool, expected: str) -> None:
    assert caption_template(text, prefix="ohwx,", suffix=", best", wildcards=wildcards) == expected


def test_a_template_is_the_text_itself_without_anything_to_add() -> None:
    assert caption_template("a sentence,with odd commas.") == "a sentence,with odd commas."


@pytest.mark.parametrize(
    ("template", "choice", "expected"),
    [
        ("a {red|blue} {cat|dog}", 1, "a blue dog"),
        ("one\ntwo {x|y}", 1, "two y"),
        ("{alone} and {{braces|here}}", 1, "alone and {braces|here}"),
        ("{red, long|blue} dress", 0, "red, long dress"),
        ("open {brace", 0, "open {brace"),
        ("{|blue} dress", 0, " dress"),
    ],
)
def test_drawn_captions(template: str, choice: int, expected: str) -> None:
    assert draw_caption(template, lambda count: min(choice, count - 1)) == expected


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        ("a ||| b ||| c", ("a ", " b ", " c")),
        ("a ||| b", ("a ", " b", "")),
        ("a, b", ("", "a, b", "")),
        ("a ||| b ||| c ||| d", ("a ", " b ", " c ||| d")),
    ],
)
def test_parts(caption: str, parts: tuple[str, str, str]) -> None:
    assert split_caption(caption, "|||") == parts


def test_separators_become_commas() -> None:
    assert without_separator("a, x ||| b ||| c", "|||") == "a, x, b, c"
    assert without_separator("a ||| b", "") == "a ||| b"
    assert plain_caption("a ||| {b|c}\nd", wildcards=True, separator="|||") == "a, b"
