"""The application opens quickly and in order."""

from __future__ import annotations

from typing import Any

from tests.ui.conftest import Running


def test_the_first_page_invites(running: Running, page: Any) -> None:
    assert page.title() == "LoRA Studio"
    page.get_by_role("button", name="Try it with the example set").wait_for()
