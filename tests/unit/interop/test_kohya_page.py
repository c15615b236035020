"""docs/kohya.md has every argument that is imported or left out, and is up to date."""

from __future__ import annotations

from lora_studio.interop.arguments import ARGUMENTS, NOT_AVAILABLE, NOT_NEEDED
from tools.build_kohya_page import PAGE, kohya_page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == kohya_page(), "run python tools/build_kohya_page.py"


def test_the_page_has_every_argument() -> None:
    text = PAGE.read_text("utf-8")
    for argument in ARGUMENTS:
        assert f"| `{argument.name}` | `{argument.setting}` |" in text
    for name in (*NOT_AVAILABLE, *NOT_NEEDED):
        assert f"`{name}`" in text
