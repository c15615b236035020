"""Types and options that all event handlers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from gradio.blocks import Block
from gradio.components import Component

Updates = dict[Block, Any]
"""What a handler returns: new values or `gr.update` of components, by component."""


class EventOptions(TypedDict):
    """Options of an event that choose how the page shows that it runs."""

    show_progress: Literal["hidden", "minimal"]
    show_progress_on: Sequence[Component]


NO_PROGRESS: EventOptions = {"show_progress": "hidden", "show_progress_on": []}
"""Options of events that the user does not wait for, such as timer ticks and typing: nothing is drawn while they run.

The empty list is for speed. Whenever an event starts or ends, gradio's page goes through all components that were ever
in `show_progress_on`, by default all outputs of all events so far, and looks up each in the tree of the whole page.
"""
