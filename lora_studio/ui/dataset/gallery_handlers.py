"""Handlers of the filters above the grid, and of the actions on selected images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.captions.edits import Edit, plan_edit
from lora_studio.dataset.captions.text import split_tags
from lora_studio.errors import InputError
from lora_studio.settings.choices import TagPosition
from lora_studio.ui.dataset.caption_edit import save_draft
from lora_studio.ui.dataset.curate import CurationHandlers, keep
from lora_studio.ui.dataset.handlers import Events, with_captions
from lora_studio.ui.dataset.image_item import Filter, ImageItem
from lora_studio.ui.dataset.layout import ALL, DatasetLayout
from lora_studio.ui.dataset.state import DatasetState, Filters
from lora_studio.ui.dataset.view import FilterPick
from lora_studio.ui.roles import Role, allowed


class SelectionPick(StrEnum):
    """Verbs of the bar above the grid. Image ids, or `ALL`, follow a colon; for tags another colon and the tags."""

    SET_ASIDE = "set_aside"
    RESTORE = "restore"
    KEEP = "keep"
    ADD_TAG = "add_tag"
    REMOVE_TAG = "remove_tag"


class GalleryHandlers:
    """Event handlers of filters and of selected images."""

    def __init__(self, curation: CurationHandlers) -> None:
        self.curation = curation

    def wire(self, events: Events, layout: DatasetLayout) -> None:
        """Register the events."""
        events.on(layout.left.filter.click, self.filter_picked, sends="pick")
        events.on(layout.left.sort.input, self.sort_changed)
        events.on(layout.left.selection.click, self.selection_acted, sends="pick", trigger_mode="multiple")

    @allowed(Role.GUEST)
    def filter_picked(self, state: DatasetState, pick: object) -> DatasetState:
        """Choose a filter or a set, or leave it; all of them are combined."""
        verb, _, subject = str(pick).partition(":")
        filters = state.place.filters
        match verb:
            case FilterPick.ALL:
                return state.with_filters(Filters(sort=filters.sort))
            case FilterPick.FILTER if subject in tuple(Filter):
                return state.with_filters(
                    replace(filters, chosen=_toggled(filters.chosen, Filter(subject)), finding="")
                )
            case FilterPick.SET:
                name = "" if subject == filters.set_name else subject
                return state.with_filters(replace(filters, set_name=name))
        raise InputError("Unknown button.", "Reload the page.", code="pick")

    @allowed(Role.GUEST)
    def sort_changed(self, state: DatasetState) -> DatasetState | None:
        """Show the images in another order, from the first page; the list also sends this when it only loses focus."""
        filters = state.place.filters
        return None if state.shown and state.shown.filters == filters else state.with_filters(filters)

    def selection_acted(self, state: DatasetState, pick: object) -> DatasetState:
        """Do what the bar asks for with the selected images; all of it can be undone."""
        verb, _, rest = str(pick).partition(":")
        given, _, tags = rest.partition(":")
        state = save_draft(state)
        if verb == SelectionPick.RESTORE:
            return self.curation.restore(state, None if given == ALL else given.split(","))
        items = state.gallery.matching if given == ALL else [state.contents.item(name) for name in given.split(",")]
        if not items:
            raise InputError("No image is selected.", "Select some first.", code="nothing")
        match verb:
            case SelectionPick.SET_ASIDE:
                return self.curation.set_aside_items(state, items)
            case SelectionPick.KEEP:
                return keep(state, items)
            case SelectionPick.ADD_TAG:
                return _edited(state, items, edits.add(tags, TagPosition.BACK, state.contents.trigger))
            case SelectionPick.REMOVE_TAG:
                return _edited(state, items, edits.remove(split_tags(tags)))
        raise InputError("Unknown button.", "Reload the page.", code="pick")


def _toggled(chosen: frozenset[Filter], picked: Filter) -> frozenset[Filter]:
    """Return the filters with one more or less; that of images set aside is combined with no other."""
    if picked in chosen:
        return chosen - {picked}
    return frozenset({picked}) if picked is Filter.SET_ASIDE else (chosen - {Filter.SET_ASIDE}) | {picked}


def _edited(state: DatasetState, items: Sequence[ImageItem], edit: Edit) -> DatasetState:
    """Return the state after an edit of the captions of some images, as one entry of the undo history."""
    plan = plan_edit([item.path for item in items], edit)
    if not plan.changes:
        raise InputError("No caption changes.", "The selected images have it so already.", code="nothing")
    return with_captions(state, CaptionHistory.of(state.project.dataset_dir).apply(plan))
