"""Lists whose choices the handlers check themselves."""

from __future__ import annotations

from typing import Any

import gradio as gr


class _AnyChoice:
    """Accepts whatever a page sends."""

    def __call__(self, payload: Any) -> Any:
        return payload


def checked_by_handlers(dropdown: gr.Dropdown) -> gr.Dropdown:
    """Let a list pass on choices that it does not have, which its handlers must refuse, and return it.

    The lists of a page that is older than the server, as after a restart, still have their choices; the server's are
    those of an empty page. Gradio would refuse the click with a raw error and a traceback.
    """
    dropdown.preprocess = _AnyChoice()  # type: ignore[method-assign]
    return dropdown
