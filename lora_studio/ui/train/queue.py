"""The queue of runs in Train: the list with its buttons, and several variants of the form put into it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lora_studio.errors import InputError, StudioError
from lora_studio.ui.context import Studio
from lora_studio.ui.train.state import RunReader, TrainPage, TrainState
from lora_studio.ui.widgets.html import TableRow, error_card, heading, pick_button, render, table
from lora_studio.workspace.run_queue import QueuedRun, RunQueue

UP, DOWN, CANCEL = "up", "down", "cancel"
SEPARATOR = ":"
PLACES = {UP: -1, DOWN: 1}


def queue_table(studio: Studio) -> Markup:
    """Return the waiting runs of the visible projects in their order, with buttons; nothing while none waits."""
    try:
        runs = [run for run in RunQueue(studio.home).runs() if studio.may_see(run.folder.path.parents[1].name)]
    except StudioError as error:
        return error_card(error)
    if not runs:
        return Markup("")
    rows = [
        TableRow([str(place), _name(run), _buttons(run, first=place == 1, last=place == len(runs))])
        for place, run in enumerate(runs, start=1)
    ]
    hint = "Each starts when the one before has ended, also after a restart."
    return heading("Queue", hint) + table(["", "Run", "Change"], rows, ["keep", "", ""], label="Queue", stacked=True)


def _name(run: QueuedRun) -> Markup:
    project = run.folder.path.parents[1].name
    return render("two_lines.html", first=run.folder.name, second=f"{project}, resumes" if run.resume else project)


def _buttons(run: QueuedRun, *, first: bool, last: bool) -> Markup:
    actions: Sequence[tuple[str, str, bool]] = (
        (UP, "Up", not first),
        (DOWN, "Down", not last),
        (CANCEL, "Remove", True),
    )
    buttons = (
        pick_button(f"{action}{SEPARATOR}{run.key}", text, title=f"{text}: {run.folder.name}")
        for action, text, is_possible in actions
        if is_possible
    )
    return Markup(" ").join(buttons)


class QueueControl:
    """The handlers of the queue's list."""

    def __init__(self, reader: RunReader) -> None:
        self.reader = reader

    def click_in_queue(self, page: TrainPage, pick: object) -> TrainState:
        """Move a waiting run by one place, or remove it from the queue."""
        action, _, key = str(pick).partition(SEPARATOR)
        queue = RunQueue(page.project.home)
        if action in PLACES:
            queue.move(key, PLACES[action])
        elif action == CANCEL:
            queue.cancel(queue.find(key).folder)
        else:
            raise InputError(f"{action!r} is not known.", "Use the buttons of the queue.", code="usage")
        run = self.reader.shown_or_form(page)
        return TrainState(run, self.reader.run_list(page.project, run.folder.name if run else page.run or ""))
