"""The plan to share: a button that copies it as Markdown, and one that draws it as a picture."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from lora_studio.planning.planned_run import Plan
from lora_studio.ui.plan.picture import plan_picture
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import html, render
from lora_studio.workspace.job_folder import slugify


class Share(NamedTuple):
    """The components: the copy button with the text, and the picture with its buttons."""

    text: gr.HTML
    draw: gr.Button
    picture: gr.HTML
    download: gr.DownloadButton


def build_share() -> tuple[gr.HTML, gr.Button]:
    """Create the two buttons, for a row of actions."""
    return html(js="copy_text.js", elem_id="plan-copy", classes="copy"), gr.Button(
        "Draw as a picture", size="sm", scale=0, min_width=150, elem_id="plan-draw"
    )


def build_picture() -> tuple[gr.HTML, gr.DownloadButton]:
    """Create the place of the picture, which is empty until one is drawn."""
    picture = html(elem_id="plan-picture")
    download = gr.DownloadButton("Download the picture", size="sm", visible=False, elem_id="plan-picture-download")
    return picture, download


def share_updates(share: Share, plan: Plan | None, project: str, *, draws: bool) -> Updates:
    """Return the updates for a plan; a picture of an earlier one is removed."""
    updates: Updates = {
        share.text: render("plan/copy.html", text=plan.describe()) if plan else "",
        share.draw: gr.Button(interactive=plan is not None),
        share.picture: "",
        share.download: gr.DownloadButton(visible=False),
    }
    if plan is not None and draws:
        name = f"plan-{slugify(project)}.png"
        path = save_bytes_to_cache(plan_picture(plan, project), name, share.download.GRADIO_CACHE)
        url = f"gradio_api/file={quote(path)}"
        updates[share.picture] = render("plan/picture.html", url=url, plan=plan)
        updates[share.download] = gr.DownloadButton(value=path, visible=True)
    return updates
