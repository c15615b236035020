"""A choice between a few options, shown as a row of segments without a label above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr


def segments(
    choices: Sequence[str], *, value: str, label: str, elem_id: str, classes: str = "", **options: Any
) -> gr.Radio:
    """Create the choice. `label` is its name for screen readers, `classes` are more CSS classes: small, bulk-action."""
    return gr.Radio(
        list(choices),
        value=value,
        label=label,
        show_label=False,
        container=False,
        elem_id=elem_id,
        elem_classes=["segments", *classes.split()],
        **options,
    )
