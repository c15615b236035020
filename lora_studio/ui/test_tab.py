"""The Test tab."""

from __future__ import annotations

import gradio as gr

from lora_studio.project import Project
from lora_studio.ui.components import html
from lora_studio.ui.context import Page, Studio, Updates


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab."""
    place = html()

    def refresh(project: Project) -> Updates:
        return {place: "test "}

    return Page(refresh, [place])
