"""The large view of the image in Review: zoom, rotate, crop, focus point, and what training sees of it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from urllib.parse import quote

from markupsafe import Markup
from pydantic import ValidationError

from lora_studio.dataset.buckets import Focus
from lora_studio.dataset.crops import ImageCrop
from lora_studio.dataset.image_edits import ImageEdit, edit_image, edits_of, undo_image_edit
from lora_studio.dataset.images.crop import crop_to_bucket
from lora_studio.dataset.images.decode import decode
from lora_studio.dataset.marks import change_marks
from lora_studio.errors import InputError, StudioError
from lora_studio.files import write_atomic
from lora_studio.plurals import format_count
from lora_studio.ui.dataset.background_scan import ScanRunner
from lora_studio.ui.dataset.caption_edit import save_draft
from lora_studio.ui.dataset.crop_frame import Frame, crop_text
from lora_studio.ui.dataset.handlers import Events
from lora_studio.ui.dataset.image_item import ImageItem
from lora_studio.ui.dataset.layout import DatasetLayout
from lora_studio.ui.dataset.state import DatasetState, Message
from lora_studio.ui.roles import Role, allowed, require_owner
from lora_studio.ui.widgets.html import note, render
from lora_studio.ui.widgets.thumbnails import thumbnail_url_or_empty
from lora_studio.workspace.project import Home

FULL_PX = 2048
WEBP_QUALITY = 90


class ViewPick(StrEnum):
    """Verbs of the large view. After the colon: a step, an angle, a box or a point, as shares of the image."""

    OPEN = "view"
    CLOSE = "close"
    STEP = "step"
    ROTATE = "rotate"
    CROP = "crop"
    FOCUS = "focus"
    UNDO = "undo"
    ORIGINAL = "original"


class ViewerHandlers:
    """Event handlers of the large view."""

    def __init__(self, scans: ScanRunner) -> None:
        self.scans = scans

    def wire(self, events: Events, layout: DatasetLayout) -> None:
        """Register the events."""
        for component in (layout.viewer, layout.review.picture):
            events.on(component.click, self.viewer_acted, sends="pick", trigger_mode="multiple")

    @allowed(Role.GUEST)
    def viewer_acted(self, state: DatasetState, pick: object) -> DatasetState:
        """Open or close the large view, show another image, or change this one."""
        verb, _, subject = str(pick).partition(":")
        state = save_draft(state)
        match verb:
            case ViewPick.OPEN:
                return state.viewing(True)
            case ViewPick.CLOSE:
                return state.viewing(False)
            case ViewPick.STEP if subject in ("-1", "1"):
                return state.with_image(state.gallery.neighbour(state.place.draft.image, int(subject))).viewing(True)
        require_owner()
        try:
            return self._changed(state.viewing(True), verb, subject)
        except StudioError as error:  # shown in the large view, which covers the rest of the page
            return replace(state, error=error)

    def _changed(self, state: DatasetState, verb: str, subject: str) -> DatasetState:
        item, dataset = state.contents.item(state.place.draft.image), state.project.dataset_dir
        match verb:
            case ViewPick.ROTATE if subject in ("90", "180", "270"):
                edit_image(dataset, item.path, ImageEdit(rotate=int(subject)))
            case ViewPick.CROP:
                edit_image(dataset, item.path, _crop(subject))
            case ViewPick.FOCUS:
                return _with_focus(state, item, Focus(*_shares(subject, 2)) if subject else None)
            case ViewPick.UNDO | ViewPick.ORIGINAL:
                undo_image_edit(dataset, item.path, all_edits=verb == ViewPick.ORIGINAL)
            case _:
                raise InputError("Unknown button.", "Reload the page.", code="pick")
        state = replace(state.after_change([item.path]), message=Message())
        with suppress(InputError):  # a scan that is running reads the image anyway, or the next one does
            self.scans.start(state.project)
        return replace(state, scan=self.scans.view(state.project))


def render_viewer(home: Home, state: DatasetState) -> Markup:
    """Return the large view of the current image; empty while it is closed."""
    item = state.current
    if item is None or not state.place.is_viewing:
        return Markup("")
    crop, edits = state.contents.bucketing.crop_of(item.path), edits_of(state.project.dataset_dir, item.path)
    is_random = state.contents.bucketing.recipe.random_crop
    return render(
        "dataset/viewer.html",
        name=item.name,
        image=item.id,
        url=thumbnail_url_or_empty(home, item.path, FULL_PX),
        frame=Frame.of(crop) if crop else None,
        text=crop_text(crop, is_random=is_random),
        trained=trained_url(home, item, crop) if crop else "",
        bucket=crop.bucket if crop else None,
        edits=format_count(len(edits), "edit") if edits else "",
        error=note(state.error.message, state.error.remedy) if state.error else "",
    )


def trained_url(home: Home, item: ImageItem, crop: ImageCrop) -> str:
    """Return the URL of exactly what the VAE gets of an image; empty if it cannot be decoded."""
    placement = crop.placement
    key = hashlib.sha256(f"{item.path} {item.path.stat().st_mtime_ns} {placement}".encode()).hexdigest()[:32]
    file = home.thumbnails / f"trained-{key}.webp"
    try:
        if not file.is_file():
            home.thumbnails.mkdir(parents=True, exist_ok=True)
            picture = crop_to_bucket(decode(item.path).image, placement)
            write_atomic(file, lambda path: picture.save(path, "WEBP", quality=WEBP_QUALITY), derived=True)
    except (StudioError, OSError):
        return ""
    return f"gradio_api/file={quote(str(file))}"


def _with_focus(state: DatasetState, item: ImageItem, focus: Focus | None) -> DatasetState:
    sha256 = state.contents.manifest.sha256_of(item.path)
    change_marks(state.project.path, lambda marks: marks.with_focus(sha256, focus))
    return state.after_change()


def _crop(subject: str) -> ImageEdit:
    left, top, right, bottom = _shares(subject, 4)
    try:
        return ImageEdit(crop=(left, top, right, bottom))
    except ValidationError as error:
        raise InputError("The crop is not inside of the image.", "Draw it again.", code="pick") from error


def _shares(subject: str, count: int) -> list[float]:
    """Return the numbers of a request; raise InputError if they are not `count` numbers."""
    try:
        found = [float(part) for part in subject.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise InputError("Unknown button.", "Reload the page.", code="pick")
    return found
