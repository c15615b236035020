"""The list of keyboard shortcuts: opened by a key or a button, modal, and true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_studio.ui.shortcuts import SHORTCUTS, TITLES
from tests.support.application import Running

pytestmark = pytest.mark.slow

PHONE = (390, 844)
IS_OPEN = "document.querySelector('dialog.shortcuts').open"
FOCUSED = "document.activeElement.textContent.trim()"


@pytest.fixture(autouse=True)
def project(running: Running) -> None:
    """Create a project, so that the tabs are shown."""
    if not running.home.projects():
        running.home.create_project("keys")


def test_the_key_opens_a_modal_list_of_all_keys(page: Any) -> None:
    tab = page.get_by_role("tab", name="Train")
    tab.click()
    tab.focus()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    dialog.wait_for()
    assert dialog.locator("h3").all_inner_texts() == list(TITLES.values())
    assert dialog.locator("kbd").all_inner_texts() == [key.keys for place in TITLES for key in SHORTCUTS[place]]
    for key in ("Tab", "Tab", "Shift+Tab"):
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == "Close"
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert page.evaluate(FOCUSED) == "3 · Train"


def test_the_key_is_text_in_a_text_field(page: Any) -> None:
    page.locator("#project-menu-button").click()
    name = page.locator("#project-name input, #project-name textarea")
    name.click()
    page.keyboard.type("what?")
    assert name.input_value() == "what?"
    assert not page.evaluate(IS_OPEN)


@pytest.mark.parametrize("dark", [False, True])
def test_the_button_opens_the_list_on_a_phone(open_page: Callable[..., Any], dark: bool) -> None:
    page = open_page(PHONE, dark)
    button = page.get_by_role("button", name="Keyboard")
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(IS_OPEN)
    assert page.evaluate("document.querySelector('dialog.shortcuts').scrollWidth <= innerWidth")
    page.get_by_role("button", name="Close").click()
    assert not page.evaluate(IS_OPEN)
    assert page.evaluate(FOCUSED) == "Keyboard"
