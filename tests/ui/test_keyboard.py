"""From the start page to a started job with keys alone: every stop of the focus can be seen and is in the window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lora_studio.example import EXAMPLE_NAME
from lora_studio.workspace.gpu_queue import hold_gpu
from lora_studio.workspace.run_queue import RunQueue
from tests.support.application import Running
from tests.support.browser import reload
from tests.support.interface_states import make_trained, settle

pytestmark = pytest.mark.slow

MAX_STOPS = 200  # of Tab, until the wanted element must have had the focus
FOCUS_MS = 3_000  # in which the focus must return
NO_MOTION = "*, ::before, ::after { transition: none !important; animation: none !important; }"

# The focused element, also in a shadow tree, and up to three that it is in; their outlines and shadows.
FOCUS = """() => {
  window.focusChain = () => {
    let one = document.activeElement;
    while (one?.shadowRoot?.activeElement) one = one.shadowRoot.activeElement;
    const chain = [];
    while (one && one !== document.body && chain.length < 4) {
      chain.push(one);
      one = one.parentElement ?? one.getRootNode().host;
    }
    return chain;
  };
  window.focusStyles = (chain) => String(chain.map((one) => {
    const { outlineStyle, outlineWidth, outlineColor, boxShadow } = getComputedStyle(one);
    return [outlineStyle === 'none' ? '' : outlineWidth + outlineColor, boxShadow];
  }));
  window.focusName = (one) => {
    const text = (one.ariaLabel || one.title || one.textContent).trim().slice(0, 60);
    return `<${one.localName} class="${one.className}"> in #${one.closest('[id]')?.id}: ${text}`;
  };
}"""

# What is wrong with the focus: at the last stop, whose styles must have changed since, and at this one.
CHECK = """() => {
  const problems = [], last = window.lastFocus, chain = focusChain();
  const hasMoved = last?.chain[0].isConnected && last.chain[0] !== chain[0];
  if (hasMoved && focusStyles(last.chain) === last.styles) problems.push(`no indicator: ${last.name}`);
  window.lastFocus = null;
  if (!chain.length) return { problems, name: '' };
  const name = focusName(chain[0]);
  const shown = chain.find((one) => one.getBoundingClientRect().width > 8) ?? chain[0];
  const { left, top, right, bottom } = shown.getBoundingClientRect();
  const isInside = right > 0 && bottom > 0 && left < innerWidth && top < innerHeight && right > left;
  if (!isInside) problems.push(`outside of the window: ${name}`);
  window.lastFocus = { chain, styles: focusStyles(chain), name };
  return { problems, name };
}"""
HAS_FOCUS = "(target) => !!focusChain()[0]?.matches(target)"


class Keyboard:
    """Presses keys in a page, and collects what is wrong with the focus at every stop."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.problems: list[str] = []
        self.prepare()

    def prepare(self) -> None:
        """Add the scripts to the page, which was just loaded."""
        self.page.evaluate(FOCUS)
        self.page.add_style_tag(content=NO_MOTION)
        settle(self.page)

    def press(self, *keys: str) -> str:
        """Press keys, check the focus after each, and return what has it."""
        name = ""
        for key in keys:
            self.page.keyboard.press(key)
            found = self.page.evaluate(CHECK)
            name = found["name"]
            self.problems += [problem for problem in found["problems"] if problem not in self.problems]
        return name

    def go_to(self, target: str, key: str = "Tab") -> None:
        """Press a key until an element that matches a selector has the focus."""
        stops: list[str] = []
        while not self.page.evaluate(HAS_FOCUS, target):
            stops.append(self.press(key))
            assert len(stops) < MAX_STOPS, f"{key} does not reach {target}:\n" + "\n".join(stops)

    def activate(self, target: str, key: str = "Enter") -> None:
        """Go to an element, press a key on it, and wait for the answer."""
        self.go_to(target)
        self.press(key)
        settle(self.page)

    def wait_for_focus(self, target: str) -> None:
        """Wait until an element that matches a selector has the focus."""
        self.page.wait_for_function(HAS_FOCUS, arg=target, timeout=FOCUS_MS)


@pytest.fixture
def keyboard(page: Any) -> Iterator[Keyboard]:
    """The keyboard of a page; the test fails if a stop of the focus could not be seen."""
    keyboard = Keyboard(page)
    yield keyboard
    assert not keyboard.problems, "\n".join(keyboard.problems)


def tab(name: str) -> str:
    return f'[role="tab"][data-tab-id="{name}"]'


def test_from_the_start_page_to_a_started_job(keyboard: Keyboard, running: Running) -> None:
    page = keyboard.page
    keyboard.activate("#welcome-example")
    page.locator("#plan-tiles .tile").first.wait_for()
    check_project_menu(keyboard)
    check_key_sheet(keyboard)
    check_large_view(keyboard)
    with hold_gpu(running.home.queue, "the test"):
        keyboard.activate(tab("train"))
        keyboard.activate("#train-start")
        page.locator("#train-state").get_by_text("In the queue").wait_for()
        [waiting] = RunQueue(running.home).runs()
        assert waiting.folder.path.is_relative_to(running.home.project(EXAMPLE_NAME).path)
        RunQueue(running.home).cancel(waiting.folder)


def check_project_menu(keyboard: Keyboard) -> None:
    """Open the menu, go through it, and close it with Escape."""
    panel = keyboard.page.locator(".project-menu")
    keyboard.activate("#project-menu-button")
    panel.wait_for()
    keyboard.go_to("#project-start-page")
    keyboard.press("Escape")
    panel.wait_for(state="hidden")
    keyboard.wait_for_focus("#project-menu-button")


def check_key_sheet(keyboard: Keyboard) -> None:
    """Open the list of keys from a tab, and close it with Escape."""
    keyboard.go_to(tab("plan"))
    keyboard.press("?")
    keyboard.page.locator("dialog.shortcuts").wait_for()
    keyboard.press("Tab", "Escape")
    keyboard.wait_for_focus(tab("plan"))


def check_large_view(keyboard: Keyboard) -> None:
    """Open Review and the large view of an image of its grid, go round in it, and close it with Escape."""
    page = keyboard.page
    viewer = page.locator("#dataset-viewer .viewer")
    keyboard.activate(tab("dataset"))
    keyboard.go_to("#dataset-section input")
    keyboard.go_to('#dataset-section input[value="Review"]', "ArrowRight")
    page.locator("#dataset-grid .shot img").first.wait_for()
    settle(page)
    keyboard.activate("#dataset-grid .shot")
    keyboard.wait_for_focus('#dataset-grid .shot[aria-pressed="true"]')
    for place in ('#dataset-grid .shot[aria-pressed="true"]', "#review-picture button"):
        keyboard.go_to(place)
        keyboard.press("v")
        viewer.wait_for()
        keyboard.go_to(".viewer .viewer-stage")
        keyboard.go_to('.viewer [data-key="Escape"]')
        keyboard.press("Escape")
        viewer.wait_for(state="detached")
        keyboard.wait_for_focus(place)


def test_a_grid_of_a_test_and_its_large_image(keyboard: Keyboard, running: Running) -> None:
    page = keyboard.page
    make_trained(running.home)
    reload(page)
    page.locator(".studio-tabs").wait_for()
    keyboard.prepare()
    keyboard.go_to("#project input")
    page.keyboard.insert_text("trained")
    keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#project input').value === 'trained'")
    settle(page)
    keyboard.activate(tab("test"))
    page.locator("#test-grid img").first.wait_for()
    large = page.locator(".lightbox")
    keyboard.activate("#test-grid td button")
    large.wait_for()
    first = large.get_attribute("data-cell")
    keyboard.press("ArrowRight")
    page.wait_for_function("(cell) => document.querySelector('.lightbox').dataset.cell !== cell", arg=first)
    settle(page)
    second = large.get_attribute("data-cell")
    keyboard.go_to(".lightbox summary")
    keyboard.go_to('.lightbox [data-key="Escape"] button')
    keyboard.press("Escape")
    large.wait_for(state="detached")
    keyboard.wait_for_focus(f'#test-grid [data-pick="{second}"]')
