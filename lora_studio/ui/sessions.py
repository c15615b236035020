"""What the server keeps of each page that is open, and for how long after it was closed.

Gradio keeps a description of every component for every page that was ever opened, up to 10,000 pages, for links that
open a page in the state of another one. The studio has no such links: here a page costs only the components that its
events have changed. A page that connects again keeps its session, unless that was dropped.
"""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.routes import App
from gradio.state_holder import SessionState, StateHolder

MAX_CLOSED = 50  # sessions of closed pages that are kept, at 2 MB each


class Session(SessionState):
    """State and changed components of one page, without the descriptions of components."""

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks={}))  # type: ignore[arg-type]
        self.blocks_config.config_for_block = describe_nothing  # type: ignore[method-assign,assignment]


class Sessions(StateHolder):
    """The sessions of all open pages, and of those that closed within the last hour: at most MAX_CLOSED."""

    def __getitem__(self, session_id: str) -> SessionState:
        """Return a page's session, and begin it at the page's first event."""
        if session_id not in self.session_data:
            self.session_data[session_id] = Session(self.blocks)
        return super().__getitem__(session_id)

    def delete_all_expired_state(self) -> None:
        """Drop sessions of closed pages: the oldest beyond MAX_CLOSED, and expired ones. Called each second."""
        super().delete_all_expired_state()  # type: ignore[no-untyped-call]
        closed = [name for name, session in list(self.session_data.items()) if session.is_closed]  # last used last
        now = datetime.now()
        for name in closed:
            unused = (now - self.time_last_used.get(name, now)).total_seconds()
            if name in closed[:-MAX_CLOSED] or unused > self.session_data[name].STATE_TTL_WHEN_CLOSED:
                self.delete_state(name)
                with self.lock:
                    self.session_data.pop(name, None)
                    self.time_last_used.pop(name, None)


def describe_nothing(number: int, rendered: list[int], block: Block) -> dict[str, Any]:
    """Return no description of a component, in place of gradio's for links to a page's state."""
    return {}


def keep_lean_sessions(app: App) -> None:
    """Let a served application keep its sessions in Sessions, before its first page is opened."""
    blocks = app.get_blocks()
    app.state_holder = Sessions()  # type: ignore[no-untyped-call]
    app.state_holder.set_blocks(blocks)
