"""The form of settings in a real browser: labels, reset buttons, search, and lists that keep what was typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from lora_studio.settings.recipe import Recipe
from tests.support.application import Running
from tests.support.jobs import make_project

pytestmark = pytest.mark.slow

FOLDS = ("Network", "Learning rates", "Optimizer", "Schedule", "Objective", "Data", "Captions", "Memory", "Samples")
EVENT_MS = 1_500  # an event that should not happen would have changed the page by then


@pytest.fixture
def form(running: Running, open_page: Callable[..., Any]) -> Any:
    """Open the form of a new run."""
    names = [project.name for project in running.home.projects()]
    for name in {"ink", "other"} - set(names):
        make_project(running.home, name)
    page = open_page()
    open_train(page)
    return page


def open_train(page: Any) -> None:
    """Open the Train tab and wait for its form."""
    page.locator("#plan-tiles").get_by_text("Steps").wait_for()
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-tiles").get_by_text("Steps").wait_for()


def box_of(page: Any, setting: str) -> Any:
    """Return the text box of a setting."""
    return page.locator(f"#recipe-{setting}").locator("input, textarea")


def edit(page: Any, setting: str, text: str) -> None:
    """Type a value, leave the box, and wait until the field is marked as changed."""
    box_of(page, setting).fill(text)
    box_of(page, setting).press("Tab")
    page.locator(f"#recipe-{setting}.changed").wait_for()


def test_a_label_belongs_to_its_text_box_and_only_the_button_resets(form: Any) -> None:
    page = form
    edit(page, "network_dim", "77")
    field, box = page.locator("#recipe-network_dim"), box_of(page, "network_dim")
    label, help_text = field.locator("[data-testid='block-info']"), field.locator(".info-text")
    for clicked in (label, help_text):
        box.blur()
        clicked.click()
        assert box.evaluate("box => box === document.activeElement")
    above = box.bounding_box()
    page.mouse.click(above["x"] + 40, above["y"] - 3)
    assert box.input_value() == "77"
    field.get_by_role("button").click()
    page.locator("#recipe-network_dim:not(.changed)").wait_for()
    assert box.input_value() == str(Recipe().network_dim)


def test_every_setting_has_its_label_as_accessible_name(form: Any) -> None:
    page = form
    for fold in FOLDS:
        page.get_by_role("button", name=re.compile(rf"^{fold}\b(?! prompts)")).click()
    page.locator("#recipe-sample_prompts").wait_for()
    fields = page.locator(".field:visible")
    assert fields.count() > 40
    for field in fields.all():
        label = field.locator("[data-testid='block-info'], .label-text").inner_text().strip()
        assert (
            field.get_by_role("textbox", name=label, exact=True)
            .or_(field.get_by_role("combobox", name=label, exact=True))
            .or_(field.get_by_role("checkbox", name=label, exact=True))
            .count()
            == 1
        ), label
        reset = field.get_by_role("button", include_hidden=True)
        if reset.count():
            assert label in reset.evaluate(
                "button => button.getAttribute('aria-labelledby').split(' ').map("
                "id => document.getElementById(id).innerText).join(' ')"
            ), label


def test_the_search_follows_its_box(form: Any) -> None:
    page = form
    search = page.get_by_placeholder("Search settings")
    shown = page.locator("[id^='recipe-'].field:visible")
    main_settings = shown.count()
    first = page.locator("#recipe-network_dim")
    search.press_sequentially("snr", delay=30)
    page.locator("#recipe-min_snr_gamma").wait_for()
    first.wait_for(state="hidden")
    page.wait_for_timeout(EVENT_MS)
    assert 0 < shown.count() < main_settings
    for _ in "snr":
        search.press("Backspace")
    first.wait_for()
    page.locator("#recipe-min_snr_gamma").wait_for(state="hidden")
    assert shown.count() == main_settings
    page.keyboard.insert_text("bucket")  # as pasting and the keyboards of phones do
    page.locator("#recipe-min_bucket_reso").wait_for()
    first.wait_for(state="hidden")
    assert all(strip.bounding_box()["height"] > 20 for strip in page.locator(".fields:visible").all())


def test_leaving_a_list_without_a_choice_keeps_the_form(form: Any) -> None:
    page = form
    edit(page, "network_dim", "77")
    for place in ("#project", "#train-preset"):
        box = page.locator(f"{place} input")
        chosen = box.input_value()
        box.click()
        page.locator("[role='option']").first.wait_for()
        page.locator("#train-title").click()
        box.focus()
        box.press("Tab")
        page.wait_for_timeout(EVENT_MS)
        assert page.locator("[role='option']").count() == 0
        assert (box.input_value(), box_of(page, "network_dim").input_value()) == (chosen, "77"), place
    page.locator("#train-preset input").click()
    page.get_by_role("option", name="The guide's defaults").click()
    page.locator("#recipe-network_dim:not(.changed)").wait_for()
    edit(page, "network_dim", "77")
    name = "other" if page.locator("#project input").input_value() == "ink" else "ink"
    page.locator("#project input").click()
    page.get_by_role("option", name=name, exact=True).click()
    page.locator("#recipe-network_dim:not(.changed)").wait_for()
    assert page.locator("#project input").input_value() == name
