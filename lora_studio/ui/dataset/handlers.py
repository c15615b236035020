"""Handlers of Review, Captions and Statistics, and of the filters above the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lora_studio.dataset.captions.edit_history import CaptionHistory, EditReport
from lora_studio.dataset.captions.edits import plan_edit
from lora_studio.dataset.captions.lint import find_fix
from lora_studio.dataset.captions.text import with_trigger
from lora_studio.dataset.marks import change_marks
from lora_studio.errors import InputError
from lora_studio.ui.dataset.caption_edit import change_caption, chip_edit, save_draft
from lora_studio.ui.dataset.captions import FindingPick, apply_previewed, bulk_plan, report_card
from lora_studio.ui.dataset.image_item import ImageItem
from lora_studio.ui.dataset.layout import DatasetLayout
from lora_studio.ui.dataset.state import BulkForm, BulkPreview, DatasetState, Draft, Filters, Message
from lora_studio.ui.dataset.statistics import TagPick
from lora_studio.ui.roles import Role, allowed
from lora_studio.ui.tab_events import TabEvents

Events = TabEvents[DatasetState, DatasetState]


class CaptionHandlers:
    """Event handlers that filter images, edit captions and mark them as reviewed."""

    def wire(self, events: Events, layout: DatasetLayout) -> None:
        """Register the events."""
        left, statistics = layout.left, layout.statistics
        events.on(left.tag_side.input, self.filter_changed, trigger_mode="always_last")
        events.on(left.tag.submit, self.filter_changed)
        events.on(left.tag.blur, self.filter_changed)
        for table in (statistics.table, statistics.co_occurrence):
            events.on(table.click, self.tag_clicked, sends="pick")
        self._wire_review(events, layout)
        self._wire_captions(events, layout)

    def _wire_review(self, events: Events, layout: DatasetLayout) -> None:
        review = layout.review
        events.on(review.previous.click, self.show_previous)
        events.on(review.next.click, self.show_next)
        events.on(review.save.click, self.save_caption)
        events.on(review.caption.blur, self.save_caption)
        events.on(review.add_trigger.click, self.add_trigger_word)
        events.on(review.mark.click, self.mark_and_show_next)
        events.on(review.toggle.click, self.toggle_reviewed)
        for event in (review.chips.click, review.add.submit):  # no click is dropped while another one is handled
            events.on(event, self.chip_clicked, sends="pick", trigger_mode="multiple")

    def _wire_captions(self, events: Events, layout: DatasetLayout) -> None:
        captions = layout.captions
        for button in (layout.review.undo, captions.undo, layout.tag.undo):
            events.on(button.click, self.undo)
        events.on(captions.redo.click, self.redo)
        events.on(captions.findings.click, self.finding_clicked, sends="pick")
        for event in (captions.preview.click, captions.first.submit, captions.second.submit):
            events.on(event, self.preview, *captions.fields, form=BulkForm)
        events.on(captions.apply.click, self.apply, *captions.fields, form=BulkForm)

    @allowed(Role.GUEST)
    def filter_changed(self, state: DatasetState) -> DatasetState:
        """Show the images that match the new filter."""
        return state.with_filters(replace(state.place.filters, finding=""))

    @allowed(Role.GUEST)
    def show_previous(self, state: DatasetState) -> DatasetState:
        """Show the previous image that matches the filter."""
        return _step(save_draft(state), -1)

    @allowed(Role.GUEST)
    def show_next(self, state: DatasetState) -> DatasetState:
        """Show the next image that matches the filter."""
        return _step(save_draft(state), 1)

    def save_caption(self, state: DatasetState) -> DatasetState | None:
        """Save the caption in the text box."""
        saved = save_draft(state)
        return None if saved is state else saved

    def add_trigger_word(self, state: DatasetState) -> DatasetState:
        """Put the trigger word first in the caption."""
        draft = state.place.draft
        text = with_trigger(draft.text, state.contents.trigger)
        return save_draft(state.with_draft(replace(draft, text=text)))

    def chip_clicked(self, state: DatasetState, pick: object) -> DatasetState:
        """Remove, add or move a tag of the caption on disk, see `ChipPick`."""
        state = save_draft(state)
        item = state.contents.item(state.place.draft.image)
        edit = chip_edit(str(pick), state.contents.trigger)
        changed = change_caption(state.contents, item, edit)
        state = state.after_change([item.path])
        state = state.with_image(state.contents.item(item.id))
        return replace(state, saved=f"{edit.what}." if changed else "No change.")

    def mark_and_show_next(self, state: DatasetState) -> DatasetState:
        """Mark the image as reviewed and show the next one."""
        return _step(_mark(save_draft(state), lambda item: True), 1)

    def toggle_reviewed(self, state: DatasetState) -> DatasetState:
        """Mark the image as reviewed, or remove the mark."""
        return _mark(save_draft(state), lambda item: not item.reviewed)

    def undo(self, state: DatasetState) -> DatasetState:
        """Undo the latest caption edit."""
        return _edited(state, lambda history: history.undo())

    def redo(self, state: DatasetState) -> DatasetState:
        """Redo the caption edit that was undone last."""
        return _edited(state, lambda history: history.redo())

    def finding_clicked(self, state: DatasetState, pick: object) -> DatasetState:
        """Fix a finding of the caption checks, or filter the images by it or by one of its tags."""
        verb, _, key = str(pick).partition(":")
        match verb:
            case FindingPick.FIX:
                finding, fix = find_fix(state.contents.captions.findings, key)
                return _edited(state, lambda history: history.apply(plan_edit(finding.images, fix.edit)))
            case FindingPick.SHOW:
                return state.with_filters(Filters(finding=key, sort=state.place.filters.sort))
            case FindingPick.TAG:
                return state.with_filters(Filters(tag=key, sort=state.place.filters.sort))
        raise InputError("Unknown button.", "Reload the page.", code="pick")

    def preview(self, state: DatasetState, form: BulkForm) -> DatasetState:
        """Preview a bulk edit."""
        state = save_draft(state)
        return replace(state, preview=BulkPreview(bulk_plan(state, form)))

    def apply(self, state: DatasetState, form: BulkForm) -> DatasetState:
        """Apply the bulk edit that was previewed."""
        report = apply_previewed(state, form)
        return replace(with_captions(state, report), preview=BulkPreview())

    @allowed(Role.GUEST)
    def tag_clicked(self, state: DatasetState, pick: object) -> DatasetState:
        """Filter the images by a tag of the statistics, or show another page of its table."""
        verb, _, subject = str(pick).partition(":")
        if verb == TagPick.TAG and subject:
            return state.with_filters(Filters(tag=subject, sort=state.place.filters.sort))
        if verb == TagPick.PAGE and subject.isdecimal():
            return state.at_statistics_page(int(subject))
        raise InputError("Unknown button.", "Reload the page.", code="pick")


def _step(state: DatasetState, step: int) -> DatasetState:
    """Return the state with the next (1) or previous (-1) image that matches the filter."""
    return state.with_image(state.gallery.neighbour(state.place.draft.image, step))


def _mark(state: DatasetState, reviewed: Callable[[ImageItem], bool]) -> DatasetState:
    """Return the state after the image was marked as reviewed or not; raise InputError before its first scan."""
    contents = state.contents
    item = contents.item(state.place.draft.image)
    if item.info is None:
        remedy = "Wait for the scan, or scan in Curate."
        raise InputError(f"{item.name} has not been scanned yet.", remedy, code="not_scanned")
    sha256, caption = item.info.sha256, item.caption
    if reviewed(item):
        change_marks(contents.project.path, lambda marks: marks.with_reviewed([(sha256, caption)]))
    else:
        change_marks(contents.project.path, lambda marks: marks.without_reviewed([sha256]))
    return state.after_change().with_image(item)


def _edited(state: DatasetState, action: Callable[[CaptionHistory], EditReport]) -> DatasetState:
    """Return the state after an edit of the caption history."""
    state = save_draft(state)
    return with_captions(state, action(CaptionHistory.of(state.project.dataset_dir)))


def with_captions(state: DatasetState, report: EditReport) -> DatasetState:
    """Return the state after an edit of captions, with a report of what changed."""
    images = [*report.changed, *(item.image for item in report.kept)]
    state = state.after_change(images).with_existing_image()
    return replace(state.with_draft(Draft.of(state.current)), message=Message(report_card(report)), saved="")
