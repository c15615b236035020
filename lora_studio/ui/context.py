"""What all tabs share: the home, the selected project, navigation, and error display.

A tab is a module with `build(studio, tab) -> Page`, which creates the components and registers the events. The frame
calls `Page.refresh` when the project changes and when the page loads. `tab.select` fires when the tab is opened, also
after `studio.goto`; its handler must keep what the user typed. Handlers receive names from the browser, never paths,
and look them up with `studio.find_project`. They return a dictionary from component to update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import gradio as gr

from lora_studio.errors import InputError, StudioError
from lora_studio.example import EXAMPLE_NAME
from lora_studio.ui.roles import Role, allowed, current_role
from lora_studio.ui.server import Mode
from lora_studio.ui.state.jobs import Jobs
from lora_studio.ui.widgets.events import EventOptions, Updates
from lora_studio.ui.widgets.html import error_card
from lora_studio.workspace.project import Home, Project

NEW_RUN = ""  # value of `Studio.run` while Train shows the form of a new run


@dataclass(frozen=True)
class EditedRun:
    """A run of a project, by name, with which Train's form is to be filled, and the settings to change in it.

    It is hashable, as gradio requires of a state with a `change` event.
    """

    project: str
    run: str
    values: tuple[tuple[str, Any], ...]


class TabName(StrEnum):
    """Ids of the four tabs."""

    PLAN = "plan"
    DATASET = "dataset"
    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True)
class Page:
    """A built tab: `refresh(project)` returns updates for some of `outputs`."""

    refresh: Callable[[Project], Updates]
    outputs: Sequence[gr.blocks.Block]


@dataclass
class Opened:
    """The name of the project that the owner opened last: the one that visitors see."""

    name: str = ""


@dataclass(frozen=True)
class Studio:
    """What all tabs share.

    - `project`: name of the selected project, kept in the browser; an input of handlers.
    - `run`: name of the training run that Train shows; empty for the form of a new run, None before a choice was made.
    - `tabs`: an output, to send the user to another tab (`goto`).
    - `timer`: ticks while a job is active. Tabs update their live parts on `timer.tick`, with `always_last`, so that
      the tick after the end of a job is not dropped behind a slow one. Handlers that start a job restart the timer
      (`start_polling`).
    - `taken_back`: names of the settings that Plan set back to the plan since Train's form was last shown.
    - `edited`: the `EditedRun` that Train's form is filled with when the tab is opened next; None for none.
    - `opened`: the project that the owner opened last.
    - `loading_bar`: shown along the top of the page while an event with `with_progress` runs.
    """

    home: Home
    mode: Mode
    jobs: Jobs
    project: gr.BrowserState
    run: gr.State
    tabs: gr.Tabs
    timer: gr.Timer
    taken_back: gr.State
    edited: gr.State
    loading_bar: gr.HTML
    opened: Opened = field(default_factory=Opened)

    @property
    def with_progress(self) -> EventOptions:
        """Options of events that the user waits for: the bar at the top shows that they run. As fast as NO_PROGRESS."""
        return {"show_progress": "minimal", "show_progress_on": [self.loading_bar]}

    def may_see(self, project: str) -> bool:
        """Return whether the request that is being handled may see this project."""
        match current_role():
            case Role.OWNER:
                return True
            case Role.VISITOR:
                return project == self.opened.name
            case _:
                return project == EXAMPLE_NAME

    def visible_projects(self) -> list[Project]:
        """Return the projects that the request that is being handled may see, the one last worked on first."""
        return [project for project in self.home.recent_projects() if self.may_see(project.name)]

    def find_project(self, name: object) -> Project:
        """Return the project with this name; raises InputError if there is none, or none that may be seen."""
        if not isinstance(name, str) or not name:
            raise InputError("No project is selected.", "Create one, or select one at the top.", code="no_project")
        if not self.may_see(name):
            raise InputError("This project is not open to you.", "Reload the page to see what is.", code="no_project")
        return self.home.project(name)

    def goto(self, tab: TabName) -> Updates:
        """Switch to another tab, whose `tab.select` handler then runs; needs `studio.tabs` among the outputs."""
        return {self.tabs: gr.Tabs(selected=tab.value)}

    def opens(self, tab: TabName) -> Callable[[], Updates]:
        """Return a handler for a button that switches to another tab; everybody may call it."""
        return allowed(Role.GUEST)(lambda: self.goto(tab))

    def start_polling(self) -> Updates:
        """Start the timer, after a job was started; needs `studio.timer` among the outputs."""
        return {self.timer: gr.Timer(active=True)}


def guarded(notice: gr.HTML, handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """Wrap a handler: show a StudioError as a card in `notice`, and clear `notice` after a success.

    `notice` must be among the event's outputs. The handler returns a dictionary of updates.
    """

    @functools.wraps(handler)
    def wrapped(*args: object) -> Updates:
        try:
            return {notice: "", **handler(*args)}
        except StudioError as error:
            return {notice: error_card(error)}

    return wrapped
