"""The components of the Dataset tab, and the updates that show a project in them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.curate import Rejected, rejected_images
from lora_studio.dataset.review import record_reviewed_captions
from lora_studio.errors import StudioError
from lora_studio.ui.context import Studio
from lora_studio.ui.dataset import curation_view, variety
from lora_studio.ui.dataset import view as dataset_view
from lora_studio.ui.dataset.background_scan import ScanRunner
from lora_studio.ui.dataset.captions import CaptionsPanel
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.image_item import Filter, ImageItem, Selection
from lora_studio.ui.dataset.layout import (
    EXCLUDES_TAG,
    INCLUDES_TAG,
    Data,
    Section,
    build_curate,
    build_import,
    build_left,
    build_top,
)
from lora_studio.ui.dataset.review import ReviewPanel
from lora_studio.ui.dataset.statistics import StatisticsPanel
from lora_studio.ui.dataset.tagging import TagPanel
from lora_studio.ui.server import Mode
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.workspace.project import Project

SCAN_TICK_SECONDS = 0.5


class DatasetPage:
    """Components of the tab.

    Event handlers read `data`, the values of an event's inputs by component, and return updates by component. After a
    change on disk they call `render`, or `show_image` if only the image in Review and the grid are affected.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.scans = ScanRunner(studio.home)
        self.top = build_top()
        with gr.Row(elem_classes="sides dataset-sides"):
            with gr.Column(scale=3, min_width=340):
                self.left = build_left()
            with gr.Column(scale=2, min_width=320, elem_classes="dataset-aside"):
                self.imports = build_import(local=studio.mode is Mode.LOCAL)
                self.curate = build_curate()
                self.tag = TagPanel(studio)
                self.review = ReviewPanel(studio.home)
                self.grid_page = gr.State(0)
                self.captions = CaptionsPanel()
                self.statistics = StatisticsPanel()
                self.finding = gr.Textbox(visible=False, elem_id="dataset-finding")
        self.shown_scan = gr.State("")
        self.shown_tagging = gr.State("")
        self.scan_timer = gr.Timer(SCAN_TICK_SECONDS, active=False)

    @property
    def inputs(self) -> set[Any]:
        """Inputs of every handler: the project, the section, the filters, and the caption that may be unsaved."""
        return {
            self.studio.project,
            self.top.section,
            self.grid_page,
            self.left.filter,
            self.left.tag,
            self.left.tag_side,
            self.finding,
            self.statistics.page,
            *self.review.inputs,
        }

    @property
    def outputs(self) -> list[Any]:
        """All components that handlers of the tab may change."""
        return [
            *self.top,
            *self.left,
            *self.imports,
            *self.curate,
            *self.tag.outputs,
            *self.review.outputs,
            *self.captions.outputs,
            *self.statistics.outputs,
            self.finding,
            self.grid_page,
            self.shown_scan,
            self.shown_tagging,
            self.scan_timer,
            self.studio.timer,
        ]

    def project(self, data: Data) -> Project:
        """Return the chosen project; raise InputError if it no longer exists."""
        return self.studio.find_project(data[self.studio.project])

    def contents(self, data: Data) -> Contents:
        """Return the contents of the chosen project's dataset as they are on disk."""
        return Contents.of(self.project(data))

    def selection(self, contents: Contents, data: Data) -> Selection:
        """Return the filters of the grid. A finding of the caption checks that was fixed meanwhile filters nothing."""
        key = data[self.finding]
        found = [finding for finding in contents.captions.findings if finding.key == key] if key else []
        return Selection(
            Filter(data[self.left.filter]),
            " ".join((data[self.left.tag] or "").split()),
            data[self.left.tag_side] == EXCLUDES_TAG,
            frozenset(found[0].images) if found else None,
        )

    def refresh(self, project: Project) -> Updates:
        """Show a project that was just chosen, in the section of its next step."""
        with suppress(StudioError):  # such as a full disk
            record_reviewed_captions(project.dataset_dir)
        scan = self.scan_updates(project)
        contents = Contents.of(project)
        if not contents.items:
            section = Section.IMPORT
        elif self.tag.is_running(project):
            section = Section.TAG
        else:
            section = Section.CURATE if contents.proposed or contents.images.unscanned else Section.REVIEW
        first = contents.items[0] if contents.items else None
        return (
            self._images(contents, section, Selection(), 0, first)
            | scan
            | self.review.show_image(contents, first)
            | self.tag.fill_form(contents)
            | self._captions_and_statistics(contents, section, "", 0)
            | self.captions.clear_preview()
            | {
                self.top.section: section.value,
                self.top.message: "",
                self.left.filter: Filter.ALL.value,
                self.left.tag: "",
                self.left.tag_side: INCLUDES_TAG,
                self.finding: "",
                self.statistics.page: 0,
                self.imports.folder: "",
            }
        )

    def render(self, data: Data, contents: Contents | None = None) -> Updates:
        """Show everything but the text that is being typed; `contents` if they were loaded after the last change."""
        # Scan state first: if the scan ends while the contents load, the next tick shows the result.
        scan = self.scan_updates(self.project(data))
        contents = contents or self.contents(data)
        current = contents.by_id.get(data[self.review.current])
        opened: Updates = {}
        if current is None:
            current = contents.items[0] if contents.items else None
            opened = self.review.show_image(contents, current)
        section, selection = Section(data[self.top.section]), self.selection(contents, data)
        return (
            opened
            | self._images(contents, section, selection, data[self.grid_page], current)
            | self._captions_and_statistics(contents, section, selection.tag, data[self.statistics.page] or 0)
            | scan
        )

    def show_image(self, contents: Contents, item: ImageItem, data: Data) -> Updates:
        """Show an image in Review, and the grid's page that has it."""
        shown = contents.matching(self.selection(contents, data))
        position = next((index for index, other in enumerate(shown) if other.id == item.id), None)
        page = data[self.grid_page] if position is None else position // dataset_view.PAGE_SIZE
        data = {**data, self.review.current: item.id, self.grid_page: page}
        return {
            self.left.grid: self.grid(contents, data),
            self.top.tiles: self.tiles(contents),
            self.grid_page: page,
            self.top.message: "",
        } | self.review.show_image(contents, item)

    def open_in_review(self, data: Data, contents: Contents, identity: str) -> Updates:
        """Switch to Review and show an image there."""
        if self.save_pending_caption(data):
            contents = self.contents(data)
        item = contents.item(identity)
        opened = {} if self.review.is_showing(item, data) else self.review.show_image(contents, item)
        data = {**data, self.review.current: item.id, self.top.section: Section.REVIEW.value}
        return self.render(data, contents) | opened | {self.top.section: Section.REVIEW.value, self.top.message: ""}

    def save_pending_caption(self, data: Data) -> Updates:
        """Save the caption in the text box if it was edited; every handler that leaves the image calls this first."""
        if not self.review.has_unsaved_caption(data):
            return {}
        contents = self.contents(data)
        return self.review.after_save(contents, data) if self.review.save_caption(contents, data) else {}

    def reload_caption(self, contents: Contents, data: Data) -> Updates:
        """Show the caption as it is on disk, unless the text box has an unsaved one."""
        item = contents.by_id.get(data[self.review.current])
        if item is not None and self.review.has_unsaved_caption(data):
            return {}
        return self.review.show_image(contents, item or (contents.items[0] if contents.items else None))

    def scan_updates(self, project: Project) -> Updates:
        """Show the progress of the scan, and run the timer while it lasts."""
        task = self.scans.latest(project)
        running = self.scans.is_running(project)
        return {
            self.top.progress: dataset_view.scan_card(task),
            self.shown_scan: task.render_key if task else "",
            self.scan_timer: gr.Timer(active=running),
            self.curate.scan: gr.Button(interactive=not running),
        }

    def tiles(self, contents: Contents) -> Markup:
        """Return the tiles at the top of the tab."""
        return self._tiles(contents, len(rejected_images(contents.project.rejected_dir)))

    def _tiles(self, contents: Contents, rejected: int) -> Markup:
        return dataset_view.dataset_tiles(contents, rejected, scanning=self.scans.is_running(contents.project))

    def grid(self, contents: Contents, data: Data) -> Markup:
        """Return the current page of the grid."""
        selection = self.selection(contents, data)
        return self._grid(contents, selection, data[self.grid_page], data[self.review.current])

    def _grid(self, contents: Contents, selection: Selection, page: int, current: str) -> Markup:
        task = self.scans.latest(contents.project)
        ready = task is not None and task.thumbnails_ready
        return dataset_view.image_grid(self.studio.home, contents, selection, page, current, thumbnails_ready=ready)

    def _images(
        self, contents: Contents, section: Section, selection: Selection, page: int, current: ImageItem | None
    ) -> Updates:
        """Return updates of all parts but Captions and Statistics."""
        project = contents.project
        has_images = bool(contents.items)
        rejected = rejected_images(project.rejected_dir)
        curating = section is Section.CURATE
        task = self.scans.latest(project)
        updates: Updates = {
            self.top.tiles: self._tiles(contents, len(rejected)) if has_images or rejected else "",
            self.left.empty: gr.Column(visible=not has_images),
            self.left.grid_side: gr.Column(visible=has_images and not curating),
            self.left.curate_side: gr.Column(visible=has_images and curating),
            self.imports.column: gr.Column(visible=section is Section.IMPORT),
            self.imports.report: dataset_view.import_card(task.report) if task and task.report else "",
            self.curate.column: gr.Column(visible=curating),
            self.tag.column: gr.Column(visible=section is Section.TAG),
            self.review.column: gr.Column(visible=section is Section.REVIEW),
            self.grid_page: page,
            self.shown_tagging: self.tag.render_key(project),
            **self.tag.render(project, contents),
        }
        if curating:
            updates |= self._curation(contents, rejected)
        else:
            updates[self.left.grid] = self._grid(contents, selection, page, current.id if current else "")
        if current is not None:
            updates |= self.review.status(contents, current)
        return updates

    def _curation(self, contents: Contents, rejected: list[Rejected]) -> Updates:
        project, home = contents.project, self.studio.home
        loose = contents.images.trained.outside_sets
        return {
            self.left.groups: curation_view.duplicate_groups(home, contents) + variety.similar_groups(home, contents),
            self.left.flagged: curation_view.flagged_list(home, contents),
            self.left.pairs: variety.most_similar_pairs(home, contents),
            self.left.buckets: variety.bucket_overview(home, contents),
            self.curate.status: curation_view.curation_status(contents, scanning=self.scans.is_running(project)),
            self.curate.apply: gr.Button(
                f"Set aside all proposed ({len(contents.proposed)})", visible=bool(contents.proposed)
            ),
            self.curate.restore: gr.Button(visible=bool(rejected)),
            self.curate.move_loose: gr.Button(
                f"Move {format_count(len(loose), 'loose image')} into {project.images_dir.name}", visible=bool(loose)
            ),
            self.curate.variety: variety.variety_card(contents),
            self.curate.aside: curation_view.set_aside_list(home, contents, rejected),
        }

    def _captions_and_statistics(self, contents: Contents, section: Section, tag: str, page: int) -> Updates:
        updates: Updates = {
            self.captions.column: gr.Column(visible=section is Section.CAPTIONS),
            self.statistics.column: gr.Column(visible=section is Section.STATISTICS),
        }
        if section is Section.CAPTIONS:
            updates |= self.captions.render(contents)
        if section is Section.STATISTICS:
            updates |= self.statistics.render(contents, tag, page)
        return updates
