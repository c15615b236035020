"""Turns the state of the Dataset tab into updates of its components."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr
from markupsafe import Markup

from lora_studio.errors import StudioError
from lora_studio.plurals import format_count
from lora_studio.ui.context import Studio
from lora_studio.ui.dataset import curation_view, variety, view
from lora_studio.ui.dataset.caption_edit import CaptionChanged, accept_other_caption
from lora_studio.ui.dataset.captions import render_captions, render_preview
from lora_studio.ui.dataset.layout import EXCLUDES_TAG, INCLUDES_TAG, DatasetLayout
from lora_studio.ui.dataset.review import render_review
from lora_studio.ui.dataset.state import DatasetState, Part, Section
from lora_studio.ui.dataset.statistics import render_statistics
from lora_studio.ui.dataset.suggestions import TagSuggester
from lora_studio.ui.dataset.tagging import TaggingJobs
from lora_studio.ui.dataset.tagging_view import render_tagging
from lora_studio.ui.dataset.viewer import render_viewer
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import error_card


@dataclass(frozen=True)
class DatasetRenderer:
    """Renders states for the components of a layout."""

    studio: Studio
    layout: DatasetLayout
    tagging: TaggingJobs
    suggester: TagSuggester

    def render(self, state: DatasetState) -> Updates:
        """Return the updates that show a state."""
        match state.part:
            case Part.SCAN:
                return self._scan(state)
            case Part.TAGGING:
                return {**self._tagging(state), self.layout.top.tiles: _tiles(state)}
        state = state.with_existing_image()
        return {
            **self._top(state),
            **self._columns(state),
            **self._scan(state),
            **self._left(state),
            **self._import(state),
            **self._tagging(state),
            **render_review(self.layout.review, state, self.suggester),
            **self._captions_and_statistics(state),
            self.layout.viewer: render_viewer(self.studio.home, state),
            self.layout.held.is_viewing: state.place.is_viewing,
            **(self.studio.start_polling() if state.is_job_started else {}),
            **(self.error(state.error) if state.error else {}),
        }

    def error(self, error: StudioError) -> Updates:
        """Show an error. A caption that changed on disk is in its text, so that the next save may overwrite it."""
        shown: Updates = {self.layout.top.notice: error_card(error)}
        if isinstance(error, CaptionChanged):
            shown[self.layout.review.original] = accept_other_caption(error)
        return shown

    def _top(self, state: DatasetState) -> Updates:
        top, place, shown = self.layout.top, state.place, state.shown
        is_other_section = shown is None or shown.section is not place.section
        return {
            top.tiles: _tiles(state) if state.contents.items or state.files.rejected else "",
            **({top.section: place.section.value} if is_other_section else {}),
            **({} if state.message is None else {top.message: state.message.html}),
        }

    def _columns(self, state: DatasetState) -> Updates:
        """Show the columns of the section."""
        layout, section = self.layout, state.place.section
        has_images, is_curating = bool(state.contents.items), section is Section.CURATE
        columns = {
            Section.IMPORT: layout.imports.column,
            Section.CURATE: layout.curate.column,
            Section.TAG: layout.tag.column,
            Section.REVIEW: layout.review.column,
            Section.CAPTIONS: layout.captions.column,
            Section.STATISTICS: layout.statistics.column,
        }
        return {
            **{column: gr.Column(visible=name is section) for name, column in columns.items()},
            layout.left.empty: gr.Column(visible=not has_images),
            layout.left.grid_side: gr.Column(visible=has_images and not is_curating),
            layout.left.curate_side: gr.Column(visible=has_images and is_curating),
        }

    def _scan(self, state: DatasetState) -> Updates:
        """Show the progress of the scan, and run the timer while it lasts."""
        return {
            self.layout.top.progress: view.scan_card(state.scan),
            self.layout.held.shown_scan: state.scan.key,
            self.layout.scan_timer: gr.Timer(active=state.scan.running),
            self.layout.curate.scan: gr.Button(interactive=not state.scan.running),
        }

    def _left(self, state: DatasetState) -> Updates:
        """Show the grid with its filters, or what Curate lists."""
        if state.place.section is Section.CURATE:
            return {**self._filters(state), **self._curation(state)}
        return {**self._filters(state), self.layout.left.grid: self._grid(state)}

    def _grid(self, state: DatasetState) -> Markup:
        place, ready = state.place, state.scan.thumbnails_ready
        return view.image_grid(
            self.studio.home,
            state.gallery,
            place.grid_page,
            place.draft.image,
            state.files.rejected,
            thumbnails_ready=ready,
        )

    def _filters(self, state: DatasetState) -> Updates:
        left, held, filters = self.layout.left, self.layout.held, state.place.filters
        bar = view.filter_bar(state.gallery, len(state.files.rejected))
        page: Updates = {held.grid_page: state.place.grid_page, left.filter: bar}
        if state.shown and state.shown.filters == filters:
            return page
        return {
            **page,
            left.sort: filters.sort.value,
            held.sort: filters.sort.value,
            held.chosen: tuple(item.value for item in filters.chosen),
            held.set_name: filters.set_name,
            left.tag: filters.tag,
            left.tag_side: EXCLUDES_TAG if filters.without_tag else INCLUDES_TAG,
            held.finding: filters.finding,
        }

    def _curation(self, state: DatasetState) -> Updates:
        left, curate, contents, home = self.layout.left, self.layout.curate, state.contents, self.studio.home
        loose = contents.images.trained.outside_sets
        return {
            left.groups: curation_view.duplicate_groups(home, contents) + variety.similar_groups(home, contents),
            left.flagged: curation_view.flagged_list(home, contents),
            left.pairs: variety.most_similar_pairs(home, contents),
            left.buckets: variety.bucket_overview(home, contents),
            curate.status: curation_view.curation_status(contents, scanning=state.scan.running),
            curate.apply: gr.Button(
                f"Set aside all proposed ({len(contents.proposed)})", visible=bool(contents.proposed)
            ),
            curate.restore: gr.Button(visible=bool(state.files.rejected)),
            curate.keep_flagged: gr.Button(
                f"Keep all to check ({len(contents.flagged)})", visible=len(contents.flagged) > 1
            ),
            curate.move_loose: gr.Button(
                f"Move {format_count(len(loose), 'loose image')} into {state.project.images_dir.name}",
                visible=bool(loose),
            ),
            curate.variety: variety.variety_card(contents),
            curate.aside: curation_view.set_aside_list(home, contents, state.files.rejected),
        }

    def _import(self, state: DatasetState) -> Updates:
        imports, report = self.layout.imports, state.scan.report
        return {
            imports.report: view.import_card(report) if report else "",
            **({imports.files: None, imports.folder: ""} if state.is_import_started or not state.shown else {}),
        }

    def _tagging(self, state: DatasetState) -> Updates:
        key = self.tagging.key(state.project)  # before the job is read: the next tick shows what changes meanwhile
        tagging = self.tagging.view(state.project)
        return {self.layout.held.shown_tagging: key, **render_tagging(self.layout.tag, state, tagging)}

    def _captions_and_statistics(self, state: DatasetState) -> Updates:
        captions, statistics, section = self.layout.captions, self.layout.statistics, state.place.section
        return {
            statistics.page: state.place.statistics_page,
            **(render_captions(captions, state) if section is Section.CAPTIONS else {}),
            **(render_statistics(statistics, state) if section is Section.STATISTICS else {}),
            **({} if state.preview is None else render_preview(captions, state.preview)),
            **({} if state.shown else {captions.first: "", captions.second: ""}),
        }


def _tiles(state: DatasetState) -> Markup:
    return view.dataset_tiles(state.contents, len(state.files.rejected), scanning=state.scan.running)
