"""Handlers of Curate and of the buttons at images: set aside, keep, use the duplicate instead, restore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lora_studio.dataset.curate import Proposal, Rejected, reject, rejected_images, restore_images
from lora_studio.dataset.duplicates.find import DuplicateGroup
from lora_studio.dataset.marks import change_marks
from lora_studio.errors import InputError
from lora_studio.plurals import format_count
from lora_studio.ui.dataset import curation_view, variety
from lora_studio.ui.dataset.background_scan import ScanRunner
from lora_studio.ui.dataset.caption_edit import save_draft
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.curation_view import kept_card, restored_card, set_aside_card
from lora_studio.ui.dataset.image_item import ImageItem, image_id
from lora_studio.ui.dataset.layout import DatasetLayout
from lora_studio.ui.dataset.state import DatasetState, Draft, Message, Section, after_presses
from lora_studio.ui.dataset.view import Action, Pick
from lora_studio.ui.roles import Role, allowed, require_owner
from lora_studio.ui.tab_events import TabEvents
from lora_studio.workspace.project import Project

BY_HAND = "set aside by hand"
UNDO_KEY = "z"


class CurationHandlers:
    """Event handlers that set images aside and restore them."""

    def __init__(self, scans: ScanRunner) -> None:
        self.scans = scans

    def wire(self, events: TabEvents[DatasetState, DatasetState], layout: DatasetLayout) -> None:
        """Register the events."""
        left, curate = layout.left, layout.curate
        lists = (left.grid, left.groups, left.flagged, left.buckets, left.pairs, curate.aside, layout.top.message)
        for component in lists:
            events.on(component.click, self.button_clicked, sends="pick")
        events.on(curate.keys.click, self.keys_pressed, sends="presses", trigger_mode="multiple")
        events.on(curate.apply.click, self.set_aside_proposed)
        events.on(curate.restore.click, self.restore_all)
        events.on(curate.keep_flagged.click, self.keep_flagged)
        events.on(layout.review.aside.click, self.set_current_aside)

    @allowed(Role.GUEST)
    def button_clicked(self, state: DatasetState, pick: object) -> DatasetState:
        """Do what a button inside the page's HTML asks for, see `Pick`; raise InputError for unknown requests."""
        verb, _, subject = str(pick).partition(":")
        if verb not in (Pick.PAGE, Pick.SHOW):
            require_owner()
        match verb:
            case Pick.PAGE if subject.isdecimal():
                return state.at_grid_page(int(subject))
            case Pick.SHOW:
                return self._open_in_review(state, subject)
            case Pick.SET_ASIDE:
                return self.set_aside_items(state, [state.contents.item(subject)])
            case Pick.USE_INSTEAD:
                return self._use_instead(state, state.contents.item(subject))
            case Pick.KEEP | Pick.UNKEEP:
                items = [state.contents.item(identity) for identity in subject.split(",")]
                return with_kept(state, items, kept=verb == Pick.KEEP)
            case Pick.RESTORE:
                return self.restore(state, subject.split(","))
        raise InputError("Unknown button.", "Reload the page.", code="pick")

    def keys_pressed(self, state: DatasetState, presses: object) -> DatasetState:
        """Press the buttons of keys in order, each in the row that has its number then, see `pressed_button`."""
        return after_presses(state, presses, self._press)

    def set_aside_proposed(self, state: DatasetState) -> DatasetState:
        """Set aside all images that the scan proposes to remove."""
        return self.set_aside_items(state, state.contents.proposed)

    def set_current_aside(self, state: DatasetState) -> DatasetState:
        """Set aside the image in Review."""
        state = save_draft(state)
        return self.set_aside_items(state, [state.contents.item(state.place.draft.image)])

    def keep_flagged(self, state: DatasetState) -> DatasetState:
        """Mark all images to check as kept."""
        items = state.contents.flagged
        if not items:
            raise InputError("There are no images to check.", "Scan again to look for issues.", code="nothing")
        return keep(state, items)

    def restore_all(self, state: DatasetState) -> DatasetState:
        """Restore all images that were set aside."""
        return self.restore(state)

    def _press(self, state: DatasetState, press: str) -> DatasetState:
        button = pressed_button(state, press)
        return self.button_clicked(state, button) if button else state

    def _open_in_review(self, state: DatasetState, identity: str) -> DatasetState:
        state = save_draft(state)
        return state.with_image(state.contents.item(identity)).at_section(Section.REVIEW)

    def set_aside_items(self, state: DatasetState, items: Sequence[ImageItem], reason: str = "") -> DatasetState:
        """Set images aside; if the image in Review is one of them, show the next one."""
        before, removed = state.gallery, state.current
        message = set_aside(state.project, items, reason)
        state = replace(state.after_change([item.path for item in items]), message=message)
        if removed is not None and state.current is None:
            following = before.after_removal(removed, state.contents)
            state = state.with_draft(Draft.of(following))
        return state

    def _use_instead(self, state: DatasetState, item: ImageItem) -> DatasetState:
        """Keep a duplicate and set aside the image proposed to be kept; scan again if the group has more duplicates."""
        group = group_with_duplicate(state.contents, item)
        keeper = state.contents.by_path[group.keep]
        state = self.set_aside_items(state, [keeper], f"{item.name} is used instead")
        if len(group.reject) > 1 and not self.scans.is_running(state.project):
            self.scans.start(state.project)
        return replace(state, scan=self.scans.view(state.project))

    def restore(self, state: DatasetState, ids: Sequence[str] | None = None) -> DatasetState:
        """Restore images that were set aside, all or those of `ids`."""
        message, restored = restore(state.project, ids)
        return replace(state.after_change(restored), message=message)


def listed_actions(contents: Contents) -> list[list[Action]]:
    """Return the buttons of each group and row that Curate lists, in the order of the page."""
    groups = contents.groups[: curation_view.MAX_GROUPS]
    rows = [
        curation_view.duplicate_actions(contents.by_path[group.reject[0]], contents.by_path[group.keep])
        for group in groups
    ]
    similar = contents.similar_groups[: variety.MAX_GROUPS]
    rows += [variety.similar_actions(contents.by_path[group.reject[0]]) for group in similar]
    return rows + [curation_view.flag_actions(item) for item in contents.flagged[: curation_view.MAX_ENTRIES]]


def pressed_button(state: DatasetState, press: str) -> str:
    """Return what the button of a key sends; empty if there is none.

    `press` is the key and, after a colon, the number of a group or row from 0; if there are fewer now, the last one is
    meant. For the key Z it is the button of the message on the page; after a key before it, that of the new message.
    """
    key, _, subject = press.partition(":")
    if key == UNDO_KEY:
        return state.message.undo if state.message else subject
    rows = listed_actions(state.contents)
    if not subject.isdecimal() or not rows:
        return ""
    row = rows[min(int(subject), len(rows) - 1)]
    return next((action.pick for action in row if action.key == key), "")


def set_aside(project: Project, items: Sequence[ImageItem], reason: str = "") -> Message:
    """Set images aside and return a message that can undo it; raise InputError if `items` is empty.

    The recorded reason is `reason`, else the scan's for each image.
    """
    if not items:
        raise InputError("There are no images to set aside.", "Scan first, or choose images.", code="nothing")
    proposed = [Proposal(path=item.path, reason=reason or item.proposal or BY_HAND) for item in items]
    moved = set(reject(proposed, project.rejected_dir))
    entries = [entry for entry in rejected_images(project.rejected_dir) if entry.image in moved]
    undo = f"{Pick.RESTORE}:{','.join(_id(project, entry) for entry in entries)}"
    return Message(set_aside_card([item.name for item in items if item.path in moved], undo), undo)


def group_with_duplicate(contents: Contents, item: ImageItem) -> DuplicateGroup:
    """Return the group in which an image is a duplicate; raise InputError if there is none."""
    for group in contents.groups:
        if item.path in group.reject:
            return group
    raise InputError(f"{item.name} is no longer a duplicate.", "Scan again.", code="no_group")


def keep(state: DatasetState, items: Sequence[ImageItem]) -> DatasetState:
    """Mark images as kept, with a message that can undo it; raise InputError before their first scan."""
    undo = f"{Pick.UNKEEP}:{','.join(item.id for item in items)}"
    return replace(with_kept(state, items, kept=True), message=Message(kept_card(len(items), undo), undo))


def with_kept(state: DatasetState, items: Sequence[ImageItem], *, kept: bool) -> DatasetState:
    """Mark images to be kept whatever the scan finds, or remove the marks; raise InputError before their first scan."""
    hashes = []
    for item in items:
        if item.info is None:
            raise InputError(f"{item.name} has not been scanned yet.", "Scan first.", code="not_scanned")
        hashes.append(item.info.sha256)
    change_marks(state.project.path, lambda marks: marks.with_kept(hashes, kept=kept))
    return replace(state.after_change(), message=Message())


def restore(project: Project, ids: Sequence[str] | None = None) -> tuple[Message, list[Path]]:
    """Restore images that were set aside, all or those of `ids`; return a message with the result, and the images.

    Raises InputError if an id is unknown.
    """
    images = None
    if ids is not None:
        known = {_id(project, entry): entry.image for entry in rejected_images(project.rejected_dir)}
        if missing := [identity for identity in ids if identity not in known]:
            raise InputError(
                f"{format_count(len(missing), 'image')} cannot be found among those set aside.",
                "Reload the page: perhaps they were restored already.",
                code="no_image",
            )
        images = [known[identity] for identity in ids]
    restored, kept = restore_images(project.rejected_dir, images)
    return Message(restored_card(restored, kept)), restored


def _id(project: Project, entry: Rejected) -> str:
    return image_id(project, project.rejected_dir / entry.files[0].name)
