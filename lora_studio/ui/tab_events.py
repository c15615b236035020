"""Connect gradio's events to handlers that take the state of a page and return its next state.

Gradio's values and updates are dictionaries by component. Only `read` and `render` of a tab know them: `read` makes the
tab's typed state of an event's values, a handler returns the next state, and `render` makes updates of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component
from gradio.events import Dependency

from lora_studio.errors import StudioError
from lora_studio.ui.roles import allowed, role_needed
from lora_studio.ui.widgets.events import NO_PROGRESS, EventOptions, Updates

PageValues = Mapping[Component, Any]
"""The values of an event's inputs, by component."""
PageT = TypeVar("PageT")
StateT = TypeVar("StateT")


GradioEvent = Callable[..., Dependency]
"""An event of a gradio component, such as `button.click`."""


@dataclass(frozen=True)
class TabEvents(Generic[PageT, StateT]):
    """Registers the events of a tab.

    - `inputs`: components that every handler's page is read from.
    - `outputs`: components that `render` and `show_error` update.
    - `read(values)` returns the page; it may raise StudioError, for example if no project is selected.
    - `render(state)` returns the updates that show what a handler returned.
    - `show_error(error)` returns the updates for a StudioError of a handler.
    - `notice` shows errors; it is emptied after a success, except by ticks.
    - `lock` is held while a handler runs.
    - `recover(page, error)`, if given, returns what to show besides the error, such as a list without what is gone.
    - `concurrency_id`, if given: events with the same id, except ticks, are handled one at a time, in the order in
      which they came. Others may be handled at the same time.
    """

    inputs: Iterable[Component]
    outputs: Sequence[Block]
    read: Callable[[PageValues], PageT]
    render: Callable[[StateT], Updates]
    show_error: Callable[[StudioError], Updates]
    notice: gr.HTML
    progress: EventOptions
    lock: AbstractContextManager[object] = field(default_factory=nullcontext)
    recover: Callable[[PageT, StudioError], StateT | None] | None = None
    concurrency_id: str | None = None

    def on(
        self,
        event: GradioEvent,
        handler: Callable[..., StateT | None],
        *more: Component,
        form: Callable[..., object] | None = None,
        sends: str = "",
        outputs: Sequence[Block] | None = None,
        ignored_error: str = "",
        **options: Any,
    ) -> Dependency:
        """Call `handler(page, *values)` at an event, and show what it returns; None leaves the page as it is.

        Returns the registered event, whose `then` is an event, too.

        `values` are those of the components `more`, or one object that `form` makes of them, then what the page's
        script sends with the event as `sends`. With `outputs`, only these are updated. Errors with the code
        `ignored_error` are not shown.
        """

        def act(values: PageValues, *sent: object) -> Updates:
            page = None
            try:
                page = self.read(values)
                given = [values[component] for component in more]
                state = handler(page, *([form(*given)] if form else given), *sent)
                updates = {self.notice: "", **self._rendered(state)}
            except StudioError as error:
                updates = {**self._recovered(page, error), **self.show_error(error)}
                if error.code == ignored_error:
                    updates = {}
            return updates if outputs is None else {item: updates[item] for item in outputs if item in updates}

        order = {"concurrency_id": self.concurrency_id, "concurrency_limit": 1} if self.concurrency_id else {}
        return self._register(event, handler, act, more, sends, outputs, {**self.progress, **order, **options})

    def on_tick(
        self, event: GradioEvent, handler: Callable[[PageT], StateT | None], outputs: Sequence[Block], **options: Any
    ) -> None:
        """Call `handler(page)` at a tick of a timer, without signs of progress or errors; `outputs` are updated."""

        def act(values: PageValues) -> Updates:
            try:
                return self._rendered(handler(self.read(values)))
            except StudioError:
                return {}

        self._register(event, handler, act, (), "", outputs, {**NO_PROGRESS, "queue": False, **options})

    def _recovered(self, page: PageT | None, error: StudioError) -> Updates:
        return self._rendered(self.recover(page, error)) if page is not None and self.recover else {}

    def _rendered(self, state: StateT | None) -> Updates:
        return {} if state is None else self.render(state)

    def _register(
        self,
        event: GradioEvent,
        handler: Callable[..., object],
        act: Callable[..., Updates],
        more: Iterable[Component],
        sends: str,
        outputs: Sequence[Block] | None,
        options: Mapping[str, Any],
    ) -> Dependency:
        # Gradio takes an empty dictionary for too few values.
        def run(values: dict[Component, Any]) -> Updates | dict[str, Any]:
            with self.lock:
                return act(values) or gr.skip()

        def run_with_event(values: dict[Component, Any], event_data: gr.EventData) -> Updates | dict[str, Any]:
            with self.lock:
                return act(values, getattr(event_data, sends)) or gr.skip()

        called = run_with_event if sends else run
        called.__name__, called.__qualname__, called.__doc__ = handler.__name__, handler.__qualname__, handler.__doc__
        called = allowed(role_needed(handler))(called)
        return event(called, {*self.inputs, *more}, self.outputs if outputs is None else outputs, **options)
