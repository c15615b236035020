"""The pictures of a release to choose from, and what was written and uploaded."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lora_studio.errors import JobError
from lora_studio.plurals import format_count
from lora_studio.sharing.facts import Picture
from lora_studio.sharing.folder import CIVITAI, README, ReleaseResult
from lora_studio.ui.widgets.html import error_card, hint, render
from lora_studio.ui.widgets.thumbnails import thumbnail_url_or_empty
from lora_studio.workspace.project import Home
from lora_studio.workspace.tool_run import ToolRun, ToolState

THUMBNAIL = 160  # px
MIB = 1024**2


def pictures(found: Sequence[Picture], chosen: str, home: Home) -> Markup:
    """Return the pictures as buttons, the chosen one marked."""
    if not found:
        return hint("No picture of this LoRA was drawn yet: make a grid first, and choose the preview here.")
    shown = [
        {
            "path": str(picture.path),
            "url": thumbnail_url_or_empty(home, picture.path, THUMBNAIL),
            "title": f"{picture.prompt} · strength {picture.strength:g}",
            "is_chosen": str(picture.path) == chosen,
        }
        for picture in found
    ]
    return render("sweep/release_pictures.html", pictures=shown)


def made(result: ReleaseResult) -> Markup:
    """Return what is in a release, with the texts to read and copy."""
    size = sum((result.folder / file).stat().st_size for file in result.files)
    texts = [
        ("Model card (README.md)", (result.folder / README).read_text("utf-8")),
        ("Text for Civitai", (result.folder / CIVITAI).read_text("utf-8")),
    ]
    return render(
        "sweep/release.html",
        folder=str(result.folder),
        summary=f"{format_count(len(result.files), 'file')}, {size / MIB:.1f} MiB, for strength {result.strength:g}",
        files=result.files,
        texts=texts,
    )


def upload(run: ToolRun) -> Markup:
    """Return the state of an upload."""
    if run.state is ToolState.RUNNING:
        return render("sweep/tool_progress.html", title=f"Uploading to {run.arguments['repo']}", count="", percent=100)
    if run.state is ToolState.FAILED:
        return error_card(JobError(run.message, run.remedy, code=run.code))
    return render("sweep/uploaded.html", url=run.result["url"])
