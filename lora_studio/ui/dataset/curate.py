"""Handlers of Curate and of the buttons at images: set aside, keep, use the duplicate instead, restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.curate import Proposal, Rejected, reject, rejected_images, restore_images
from lora_studio.dataset.duplicates.find import DuplicateGroup
from lora_studio.errors import InputError
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.curation_view import restored_card, set_aside_card
from lora_studio.ui.dataset.image_item import ImageItem, image_id
from lora_studio.ui.dataset.layout import Data
from lora_studio.ui.dataset.page import DatasetPage
from lora_studio.ui.dataset.review import next_after_removal
from lora_studio.ui.dataset.view import Pick
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.workspace.project import Project

BY_HAND = "set aside by hand"


class CurationHandlers:
    """Event handlers that set images aside and restore them."""

    def __init__(self, page: DatasetPage) -> None:
        self.page = page

    def wire(self, on: Callable[..., None]) -> None:
        """Register the events with `on(event, handler, more_inputs, **options)`."""
        page = self.page
        curated = (page.left.groups, page.left.flagged, page.left.buckets, page.left.pairs, page.curate.aside)
        for component in (page.left.grid, *curated, page.top.message):
            on(component.click, self.button_clicked)
        on(page.curate.apply.click, self.set_aside_proposed)
        on(page.curate.restore.click, self.restore_all)
        on(page.review.aside.click, self.set_current_aside)

    def button_clicked(self, data: Data, event: gr.EventData) -> Updates:
        """Do what a button inside the page's HTML asks for, see `Pick`; raise InputError for unknown requests."""
        verb, _, subject = str(event.pick).partition(":")
        contents = self.page.contents(data)
        match verb:
            case Pick.PAGE if subject.isdecimal():
                return self.page.render({**data, self.page.grid_page: int(subject)}, contents)
            case Pick.SHOW:
                return self.page.open_in_review(data, contents, contents.item(subject).id)
            case Pick.SET_ASIDE:
                return self._set_aside(data, contents, [contents.item(subject)])
            case Pick.USE_INSTEAD:
                return self._use_instead(data, contents, contents.item(subject))
            case Pick.KEEP | Pick.UNKEEP:
                mark_kept(contents, contents.item(subject), kept=verb == Pick.KEEP)
                return self.page.render(data, contents.after_change()) | {self.page.top.message: ""}
            case Pick.RESTORE:
                return self._restore(data, contents, subject.split(","))
        raise InputError("Unknown button.", "Reload the page.", code="pick")

    def set_aside_proposed(self, data: Data) -> Updates:
        """Set aside all images that the scan proposes to remove."""
        contents = self.page.contents(data)
        return self._set_aside(data, contents, contents.proposed)

    def set_current_aside(self, data: Data) -> Updates:
        """Set aside the image in Review."""
        self.page.save_pending_caption(data)
        contents = self.page.contents(data)
        return self._set_aside(data, contents, [contents.item(data[self.page.review.current])])

    def restore_all(self, data: Data) -> Updates:
        """Restore all images that were set aside."""
        return self._restore(data, self.page.contents(data))

    def _set_aside(self, data: Data, contents: Contents, items: Sequence[ImageItem], reason: str = "") -> Updates:
        """Set images aside; if the image in Review is one of them, show the next one."""
        message = set_aside(contents.project, items, reason)
        left = contents.after_change(item.path for item in items)
        removed = contents.by_id.get(data[self.page.review.current])
        opened: Updates = {}
        if removed is not None and removed.id not in left.by_id:
            following = next_after_removal(contents, removed, left, self.page.selection(left, data))
            opened = self.page.review.show_image(left, following)
            data = {**data, self.page.review.current: following.id if following else ""}
        return self.page.render(data, left) | opened | {self.page.top.message: message}

    def _use_instead(self, data: Data, contents: Contents, item: ImageItem) -> Updates:
        """Keep a duplicate and set aside the image proposed to be kept; scan again if the group has more duplicates."""
        group = group_with_duplicate(contents, item)
        keeper = contents.by_path[group.keep]
        updates = self._set_aside(data, contents, [keeper], f"{item.name} is used instead")
        if len(group.reject) > 1 and not self.page.scans.is_running(contents.project):
            self.page.scans.start(contents.project)
            updates |= self.page.scan_updates(contents.project)
        return updates

    def _restore(self, data: Data, contents: Contents, ids: Sequence[str] | None = None) -> Updates:
        message, restored = restore(contents.project, ids)
        return self.page.render(data, contents.after_change(restored)) | {self.page.top.message: message}


def set_aside(project: Project, items: Sequence[ImageItem], reason: str = "") -> Markup:
    """Set images aside and return a card that can undo it; raise InputError if `items` is empty.

    The recorded reason is `reason`, else the scan's for each image.
    """
    if not items:
        raise InputError("There are no images to set aside.", "Scan first, or choose images.", code="nothing")
    proposed = [Proposal(path=item.path, reason=reason or item.proposal or BY_HAND) for item in items]
    moved = set(reject(proposed, project.rejected_dir))
    entries = [entry for entry in rejected_images(project.rejected_dir) if entry.image in moved]
    return set_aside_card(
        [item.name for item in items if item.path in moved], [_id(project, entry) for entry in entries]
    )


def group_with_duplicate(contents: Contents, item: ImageItem) -> DuplicateGroup:
    """Return the group in which an image is a duplicate; raise InputError if there is none."""
    for group in contents.groups:
        if item.path in group.reject:
            return group
    raise InputError(f"{item.name} is no longer a duplicate.", "Scan again.", code="no_group")


def mark_kept(contents: Contents, item: ImageItem, *, kept: bool) -> None:
    """Mark an image to be kept whatever the scan finds, or remove the mark; raise InputError before its first scan."""
    if item.info is None:
        raise InputError(f"{item.name} has not been scanned yet.", "Scan first.", code="not_scanned")
    contents.manifest.with_kept(item.info.sha256, kept=kept).save_marks(contents.project.path)


def restore(project: Project, ids: Sequence[str] | None = None) -> tuple[Markup, list[Path]]:
    """Restore images that were set aside, all or those of `ids`; return a card with the result, and the images.

    Raises InputError if an id is unknown.
    """
    images = None
    if ids is not None:
        known = {_id(project, entry): entry.image for entry in rejected_images(project.rejected_dir)}
        if missing := [identity for identity in ids if identity not in known]:
            raise InputError(
                f"{format_count(len(missing), 'image')} cannot be found among those set aside.",
                "Perhaps restored already.",
                code="no_image",
            )
        images = [known[identity] for identity in ids]
    restored, kept = restore_images(project.rejected_dir, images)
    return restored_card(restored, kept), restored


def _id(project: Project, entry: Rejected) -> str:
    return image_id(project, project.rejected_dir / entry.files[0].name)
