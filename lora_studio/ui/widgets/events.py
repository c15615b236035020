"""Types and options that all event handlers share."""

from __future__ import annotations

from typing import Any

Updates = dict[Any, Any]
"""What a handler returns: new values or `gr.update` of components, by component."""

NO_PROGRESS: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
"""Options of events that the user does not wait for, such as timer ticks and typing: nothing is drawn while they run.

The empty list is for speed. Whenever an event starts or ends, gradio's page goes through all components that were ever
in `show_progress_on`, by default all outputs of all events so far, and looks up each in the tree of the whole page.
"""
