"""The training images of a run by their loss, worst first; each opens large, with its caption."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.ledger.data import captions_by_path
from lora_studio.training.reporting.loss_by_image import MIN_SAMPLES, ImageLoss, read_image_losses
from lora_studio.ui.state.run_history import RunView
from lora_studio.ui.widgets.html import heading, render
from lora_studio.ui.widgets.thumbnails import THUMBNAIL_SIZE, thumbnail_url_or_empty
from lora_studio.workspace.job_folder import IMAGE_LOSSES_FILE
from lora_studio.workspace.project import Home

MAX_SHOWN = 10
LARGE_SIZE = 1024  # px; the size that Review shows
TO_FIX = (
    "Pictures that the LoRA cannot learn are often those to fix: a caption that does not say what they show, a bad "
    "crop, or a picture that does not belong."
)


class ShownImage(NamedTuple):
    """An image with the URLs of its copies, which are empty if it cannot be shown."""

    name: str
    url: str
    large_url: str
    short: str
    figures: str
    caption: str
    significant: bool


def image_losses(view: RunView, home: Home) -> Markup:
    """Return the images with the highest losses; nothing before they have enough samples."""
    known = read_image_losses(view.folder.path)
    found = [entry for entry in known if entry.samples >= MIN_SAMPLES]
    if not found:
        return Markup("")
    captions = captions_by_path(view.folder.path)
    images = [_shown(entry, captions, home) for entry in found[:MAX_SHOWN]]
    marked = sum(entry.significant for entry in found)
    text = "Loss of each image against the mean of all, at the same timesteps, over its last draws. "
    text += f"{marked or 'None'} of {len(found)} differ{'s' * (marked == 1)} from the others by more than chance"
    more = f" All {len(known)} are in {IMAGE_LOSSES_FILE}." if len(known) > MAX_SHOWN else ""
    title = heading("Loss by image, worst first", f"{text}{', and so are marked' if marked else ''}.{more}")
    return title + render("train/image_losses.html", images=images, to_fix=TO_FIX)


def _shown(entry: ImageLoss, captions: dict[str, str], home: Home) -> ShownImage:
    path = Path(entry.image)
    relative = "" if entry.relative_loss is None else f"{entry.relative_loss:.2f} of the base's loss, "
    return ShownImage(
        path.name,
        thumbnail_url_or_empty(home, path, THUMBNAIL_SIZE),
        thumbnail_url_or_empty(home, path, LARGE_SIZE),
        f"{entry.ratio - 1:+.0%}, {entry.samples:.0f} draws",
        f"{relative}{entry.ratio - 1:+.0%} against all images, over {entry.samples:.0f} draws",
        captions.get(entry.image, ""),
        entry.significant,
    )
