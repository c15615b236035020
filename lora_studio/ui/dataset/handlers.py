"""What Captions, Review and Statistics do when a button is pressed: the curator's half of the Dataset tab."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from lora_studio.dataset.captions.edit_history import CaptionHistory, EditReport
from lora_studio.dataset.captions.edits import EditPlan, plan_edit
from lora_studio.dataset.captions.lint import find_fix
from lora_studio.errors import InputError, StudioError
from lora_studio.ui.context import Studio
from lora_studio.ui.dataset.captions import CaptionsPanel, FindingPick, report_card
from lora_studio.ui.dataset.chips import suggestion_list
from lora_studio.ui.dataset.contents import Contents, Filter, ImageItem, Selection, save_manifest
from lora_studio.ui.dataset.layout import HAS_TAG, LACKS_TAG, Left, Section
from lora_studio.ui.dataset.review import ReviewPanel, change_caption, chip_edit, neighbour, status_line
from lora_studio.ui.dataset.statistics import StatisticsPanel, TagPick
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates

Data = Mapping[Any, Any]


class CaptionHandlers:
    """The handlers. `render_tab`, `show_image` and `save_pending_caption` are the tab's.

    `left`, `message` and `page` are the tab's components: images, last action, page of the gallery.
    """

    def __init__(
        self,
        studio: Studio,
        *,
        left: Left,
        message: gr.HTML,
        page: gr.State,
        review: ReviewPanel,
        render_tab: Callable[[Data, Contents | None], Updates],
        show_image: Callable[[Contents, ImageItem, Data], Updates],
        save_pending_caption: Callable[[Data], Updates],
    ) -> None:
        self.studio = studio
        self.left = left
        self.message = message
        self.page = page
        self.review = review
        self.render_tab = render_tab
        self.show_image = show_image
        self.save_pending_caption = save_pending_caption
        self.captions = CaptionsPanel()
        self.statistics = StatisticsPanel()
        self.finding = gr.Textbox(visible=False, elem_id="dataset-finding")

    @property
    def inputs(self) -> set[Any]:
        """What tells which images are shown."""
        return {self.left.filter, self.left.tag, self.left.tag_side, self.finding, self.statistics.page}

    @property
    def outputs(self) -> list[Any]:
        """Everything that these panels change."""
        return [*self.captions.outputs, *self.statistics.outputs, self.finding]

    def wire(self, on: Callable[..., None]) -> None:
        """Register the events: `on(event, handler, more inputs, **options)`."""
        on(self.left.tag.submit, self.filter_changed)
        on(self.left.tag.blur, self.filter_changed)
        on(self.left.tag_side.input, self.filter_changed)
        every = {"trigger_mode": "multiple"}  # quick clicks are done one after the other
        on(self.review.chips.click, self.chip_clicked, **every)
        on(self.review.add.submit, self.chip_clicked, **every)
        on(self.review.mark.click, self.mark_and_show_next)
        on(self.review.toggle.click, self.toggle_reviewed)
        on(self.review.undo.click, self.undo)
        on(self.captions.undo.click, self.undo)
        on(self.captions.redo.click, self.redo)
        on(self.captions.findings.click, self.finding_clicked)
        on(self.captions.preview.click, self.preview, self.captions.inputs)
        on(self.captions.first.submit, self.preview, self.captions.inputs)
        on(self.captions.second.submit, self.preview, self.captions.inputs)
        on(self.captions.apply.click, self.apply, self.captions.inputs)
        on(self.statistics.table.click, self.tag_clicked)
        on(self.statistics.co_occurrence.click, self.tag_clicked)
        self.captions.action.input(
            self.captions.action_changed, self.captions.action, self.captions.outputs, **NO_PROGRESS
        )
        self.review.add.input(
            self.suggest,
            [self.studio.project, self.review.current],
            self.review.suggestions,
            **NO_PROGRESS,
            trigger_mode="always_last",
        )

    def selection(self, contents: Contents, data: Data) -> Selection:
        """Which images are to be seen; a finding that is mended by now shows all."""
        key = data[self.finding]
        found = [finding for finding in contents.findings if finding.key == key] if key else []
        return Selection(
            Filter(data[self.left.filter]),
            " ".join((data[self.left.tag] or "").split()),
            data[self.left.tag_side] == LACKS_TAG,
            frozenset(found[0].images) if found else None,
        )

    def reset(self) -> Updates:
        """What another project begins with."""
        return {
            self.finding: "",
            self.left.tag: "",
            self.left.tag_side: HAS_TAG,
            self.statistics.page: 0,
            **self.captions.clear_preview(),
        }

    def render(self, contents: Contents, section: Section, data: Data) -> Updates:
        """The panel of that section, as things are now; the others are hidden."""
        updates: Updates = {
            self.captions.column: gr.Column(visible=section is Section.CAPTIONS),
            self.statistics.column: gr.Column(visible=section is Section.STATISTICS),
        }
        if section is Section.CAPTIONS:
            updates |= self.captions.render(contents)
        if section is Section.STATISTICS:
            tag = " ".join((data[self.left.tag] or "").split())
            updates |= self.statistics.render(contents, tag, data[self.statistics.page] or 0)
        return updates

    def filter_changed(self, data: Data) -> Updates:
        """Other images are to be shown."""
        return self._filter_by(data, {self.finding: ""})

    def chip_clicked(self, data: Data, event: gr.EventData) -> Updates:
        """A tag of the caption is to go, to come or to move; done to what is on disk."""
        self.save_pending_caption(data)
        contents = self._contents(data)
        item = contents.item(data[self.review.current])
        edit = chip_edit(str(event.pick), contents.trigger)
        changed = change_caption(contents, item, edit)
        contents = contents.after_change([item.path])
        return self.show_image(contents, contents.item(item.id), data) | {
            self.review.saved: status_line(f"{edit.what}." if changed else "The caption stays as it is.")
        }

    def mark_and_show_next(self, data: Data) -> Updates:
        """The caption was read: tick it, and show the next image."""
        return self._mark(data, lambda item: True, show_next=True)

    def toggle_reviewed(self, data: Data) -> Updates:
        """Tick the image, or take its tick away."""
        return self._mark(data, lambda item: not item.reviewed, show_next=False)

    def undo(self, data: Data) -> Updates:
        """Take the latest edit back."""
        return self._apply_history(data, lambda history: history.undo())

    def redo(self, data: Data) -> Updates:
        """Do again what was undone."""
        return self._apply_history(data, lambda history: history.redo())

    def finding_clicked(self, data: Data, event: gr.EventData) -> Updates:
        """A finding's button: mend it, or show its images."""
        verb, _, key = str(event.pick).partition(":")
        match verb:
            case FindingPick.FIX:
                finding, fix = find_fix(self._contents(data).findings, key)
                return self._apply_history(data, lambda history: history.apply(plan_edit(finding.images, fix.edit)))
            case FindingPick.SHOW:
                return self._filter_by(data, {self.left.tag: "", self.left.filter: Filter.ALL.value, self.finding: key})
            case FindingPick.TAG:
                return self._filter_by_tag(data, key)
        raise InputError("That button is not known.", "Reload the page.", code="pick")

    def preview(self, data: Data) -> Updates:
        """Show what the form would change."""
        self.save_pending_caption(data)
        return self.captions.show_preview(self._plan(self._contents(data), data))

    def apply(self, data: Data) -> Updates:
        """Change what was seen."""
        contents = self._contents(data)
        report = self.captions.apply_previewed(contents, self._plan(contents, data), data)
        return self._captions_changed(data, contents, report) | self.captions.clear_preview()

    def tag_clicked(self, data: Data, event: gr.EventData) -> Updates:
        """A tag of the statistics: show the images that have it; or another page of the table."""
        verb, _, subject = str(event.pick).partition(":")
        if verb == TagPick.TAG and subject:
            return self._filter_by_tag(data, subject)
        if verb == TagPick.PAGE and subject.isdecimal():
            return self.render_tab({**data, self.statistics.page: int(subject)}, None) | {
                self.statistics.page: int(subject)
            }
        raise InputError("That button is not known.", "Reload the page.", code="pick")

    def suggest(self, project: str, current: str, event: gr.EventData) -> Any:
        """Tags that fit what was typed."""
        try:
            contents = Contents.of(self.studio.find_project(project))
        except StudioError:
            return gr.skip()
        found = self.review.suggester.suggest(contents, str(event.text)[:100], contents.by_id.get(current))
        return suggestion_list(found)

    def _contents(self, data: Data) -> Contents:
        return Contents.of(self.studio.find_project(data[self.studio.project]))

    def _plan(self, contents: Contents, data: Data) -> EditPlan:
        shown: Sequence[ImageItem] = contents.matching(self.selection(contents, data))
        return self.captions.plan(contents, shown, data)

    def _filter_by_tag(self, data: Data, tag: str) -> Updates:
        everything = {self.left.filter: Filter.ALL.value, self.finding: ""}
        return self._filter_by(data, {self.left.tag: tag, self.left.tag_side: HAS_TAG, **everything})

    def _filter_by(self, data: Data, filters: Updates) -> Updates:
        """The first page of what is to be shown now, with what chooses it."""
        return self.render_tab({**data, **filters, self.page: 0}, None) | filters

    def _apply_history(self, data: Data, action: Callable[[CaptionHistory], EditReport]) -> Updates:
        self.save_pending_caption(data)
        contents = self._contents(data)
        return self._captions_changed(data, contents, action(CaptionHistory.of(contents.project.dataset_dir)))

    def _captions_changed(self, data: Data, contents: Contents, report: EditReport) -> Updates:
        """Captions were changed: show them as they are, and what was done."""
        contents = contents.after_change([*report.changed, *(item.image for item in report.kept)])
        updates = self.render_tab(data, contents)
        item = contents.by_id.get(data[self.review.current])
        if item is not None:
            updates |= self.review.show_image(contents, item)
        return updates | {self.message: report_card(report)}

    def _mark(self, data: Data, reviewed: Callable[[ImageItem], bool], *, show_next: bool) -> Updates:
        self.save_pending_caption(data)
        contents = self._contents(data)
        item = contents.item(data[self.review.current])
        if item.info is None:
            raise InputError(
                f"{item.name} was not scanned yet.", "Wait for the scan, or scan in Curate.", code="not_scanned"
            )
        save_manifest(contents.project, contents.manifest.review([item.info.sha256], reviewed=reviewed(item)))
        contents = contents.after_change()
        item = contents.item(item.id)
        if show_next:
            item = neighbour(contents, item.id, self.selection(contents, data), 1) or item
        return self.show_image(contents, item, data)
