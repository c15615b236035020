"""What every tab works with: the home, the chosen project, the way to other tabs, and errors shown where they belong.

A tab is a module with `build(studio, tab) -> Page`. It makes its components, wires its own events, and tells in `Page`
how it shows a project: the frame calls `refresh` when the project changes and when the page loads. What has to happen
when the tab is opened again it hangs on `tab.select` (fired by `studio.goto` too), where it keeps what a user typed.
Handlers take names from the browser, never paths, and look them up through `studio.open`. What they return is a
dictionary from component to update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import gradio as gr
from gradio.components import Component
from markupsafe import escape

from lora_studio.errors import InputError, StudioError
from lora_studio.ui.server import Mode
from lora_studio.ui.state.jobs import Jobs
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import error_card
from lora_studio.workspace.project import Home, Project


class TabName(StrEnum):
    """The four tabs, by the id that the page knows them under."""

    PLAN = "plan"
    DATASET = "dataset"
    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True)
class Page:
    """How a tab shows a project: `refresh(project)` gives updates for some of `outputs`."""

    refresh: Callable[[Project], Updates]
    outputs: Sequence[Component | gr.blocks.BlockContext]


@dataclass(frozen=True)
class Studio:
    """What all tabs share.

    - `project`: name of the selected project, kept in the browser; an input of handlers.
    - `run`: name of the training run that Train shows; empty for the form of a new run, None before a choice was made.
    - `tabs`: an output, to send the user to another tab (`goto`).
    - `timer`: ticks while a job is active. Tabs update their live parts on `timer.tick`, with `always_last`, so that
      the tick after the end of a job is not dropped behind a slow one. Handlers that start a job restart the timer
      (`start_polling`).
    - `loading_bar`: shown along the top of the page while an event with `with_progress` runs.
    """

    home: Home
    mode: Mode
    jobs: Jobs
    project: gr.BrowserState
    run: gr.State
    tabs: gr.Tabs
    timer: gr.Timer
    loading_bar: gr.HTML

    @property
    def with_progress(self) -> dict[str, Any]:
        """Options of events that the user waits for: the bar at the top shows that they run. As fast as NO_PROGRESS."""
        return {"show_progress": "minimal", "show_progress_on": [self.loading_bar]}

    def find_project(self, name: object) -> Project:
        """The project of that name; raises InputError if it is gone."""
        if not isinstance(name, str) or not name:
            raise InputError("No project is chosen.", "Make one, or choose one at the top.", code="no_project")
        return self.home.project(name)

    def goto(self, tab: TabName) -> Updates:
        """Send the user to another tab, which then refreshes itself; needs `studio.tabs` among the outputs."""
        return {self.tabs: gr.Tabs(selected=tab.value)}

    def start_polling(self) -> Updates:
        """Wake the timer, as whoever starts a job does; needs `studio.timer` among the outputs."""
        return {self.timer: gr.Timer(active=True)}


def with_project(handler: Callable[[Any, dict[Any, Any]], Updates]) -> Callable[[Any, dict[Any, Any]], Updates]:
    """Let a tab's method do nothing while no project is chosen, as in a page that is still loading."""

    @functools.wraps(handler)
    def wrapped(tab: Any, data: dict[Any, Any]) -> Updates:
        return handler(tab, data) if data[tab.studio.project] else {}

    return wrapped


def guarded(notice: gr.HTML, handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """Wrap a handler: a StudioError becomes a card in `notice`, which any success empties.

    `notice` must be among the event's outputs. The handler returns a dictionary of updates.
    """

    @functools.wraps(handler)
    def wrapped(*args: Any) -> Updates:
        try:
            return {notice: ""} | handler(*args)
        except StudioError as error:
            return {notice: error_card(error)}

    return wrapped


def warned(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler that has no place for a card: a StudioError becomes a message at the edge."""

    @functools.wraps(handler)
    def wrapped(*args: Any) -> Any:
        try:
            return handler(*args)
        except StudioError as error:
            warn(error)
            return gr.skip()

    return wrapped


def warn(error: StudioError) -> None:
    """Show an error at the edge of the page; gradio takes HTML there, so the text is escaped."""
    gr.Warning(str(escape(str(error))), title="That did not work")
