"""The Dataset tab: images on the left; on the right what can be done with them: import, curate, tag, review."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import InputError, StudioError
from lora_studio.example import EXAMPLE_IMAGES, example_project_info
from lora_studio.ui.context import Page, Studio, guarded, requires_project
from lora_studio.ui.dataset import view as dataset_view
from lora_studio.ui.dataset.background_scan import ScanTask
from lora_studio.ui.dataset.curate import CurationHandlers
from lora_studio.ui.dataset.handlers import CaptionHandlers
from lora_studio.ui.dataset.layout import Data, Section
from lora_studio.ui.dataset.page import DatasetPage
from lora_studio.ui.dataset.review import CaptionChanged
from lora_studio.ui.server import Mode
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.html import error_card
from lora_studio.workspace.project import ProjectInfo


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and wire its events."""
    return DatasetTab(studio).wire(tab)


class DatasetTab:
    """The tab's events, and the handlers of Import and Tag."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.page = DatasetPage(studio)
        self.scans = self.page.scans
        self.curation = CurationHandlers(self.page)
        self.captioning = CaptionHandlers(self.page)
        self._lock = threading.Lock()

    def wire(self, tab: gr.Tab) -> Page:
        """Register all event handlers of the tab."""
        page = self.page
        inputs, outputs = page.inputs, page.outputs

        def on(event: Any, handler: Callable[..., Updates], more: Iterable[Any] = (), **options: Any) -> None:
            wrapped = guarded(page.top.notice, self._serialized(handler))
            event(wrapped, {*inputs, *more}, outputs, **self.studio.with_progress, **options)

        on(tab.select, self.tab_opened)
        on(page.top.section.input, self.section_changed, trigger_mode="always_last")
        on(page.imports.files.upload, self.import_files, [page.imports.files])
        on(page.left.choose.upload, self.import_chosen, [page.left.choose])
        on(page.imports.import_folder.click, self.import_folder, [page.imports.folder])
        on(page.imports.folder.submit, self.import_folder, [page.imports.folder])
        on(page.left.example.click, self.import_example)
        on(page.curate.scan.click, self.start_scan)
        on(page.curate.move_loose.click, self.move_loose_images)
        on(page.tag.start.click, self.start_tagging, page.tag.inputs)
        on(page.tag.stop.click, self.stop_tagging)
        on(page.tag.resume.click, self.resume_tagging)
        self.curation.wire(on)
        self.captioning.wire(on)
        page.tag.tagger.input(page.tag.tagger_changed, page.tag.tagger, page.tag.tagger_outputs, **NO_PROGRESS)
        page.scan_timer.tick(self.scan_tick, {*inputs, page.shown_scan}, outputs, **NO_PROGRESS, queue=False)
        self.studio.timer.tick(
            self.tagging_tick,
            {*inputs, page.shown_tagging},
            outputs,
            **NO_PROGRESS,
            queue=False,
            trigger_mode="always_last",
        )
        return Page(page.refresh, outputs)

    @requires_project
    def tab_opened(self, data: Data) -> Updates:
        """Show the tab again, and scan if there are images that were never scanned."""
        contents = self.page.contents(data)
        if contents.images.unscanned and not self.scans.is_running(contents.project):
            self.scans.start(contents.project)
        return self.page.render(data, contents) | {self.page.tag.trigger: contents.trigger}

    def section_changed(self, data: Data) -> Updates:
        """Show another section, such as Curate; the error of a failed scan is dismissed."""
        self.scans.clear_error(self.page.project(data))
        return self.page.save_pending_caption(data) | self.page.render(data) | {self.page.top.message: ""}

    def import_files(self, data: Data) -> Updates:
        """Import files that were dropped or chosen."""
        return {self.page.imports.files: None} | self._import(data, data[self.page.imports.files])

    def import_chosen(self, data: Data) -> Updates:
        """Import files that were chosen with the button of the empty state."""
        return self._import(data, data[self.page.left.choose])

    def import_folder(self, data: Data) -> Updates:
        """Import a folder of this computer by its path."""
        if self.studio.mode is not Mode.LOCAL:
            raise InputError(
                "Folders can be imported only when the studio is not shared.", "Drop a zip.", code="not_local"
            )
        folder = (data[self.page.imports.folder] or "").strip()
        if not folder:
            raise InputError("No folder is given.", "Enter its path, or drop files above.", code="no_folder")
        return self._import(data, [folder]) | {self.page.imports.folder: ""}

    def import_example(self, data: Data) -> Updates:
        """Import the example images; a project without settings of its own also gets the example's."""
        project = self.page.project(data)
        if project.info() == ProjectInfo():
            project.save_info(example_project_info())
        return self._import(data, [EXAMPLE_IMAGES]) | self.page.tag.fill_form(self.page.contents(data))

    def start_scan(self, data: Data) -> Updates:
        """Scan the images, which changes none of them."""
        self.scans.start(self.page.project(data))
        return self.page.render(data)

    def move_loose_images(self, data: Data) -> Updates:
        """Move images outside of set folders into the first set, then scan."""
        project = self.page.project(data)
        project.check_idle("move images of")
        self.page.save_pending_caption(data)
        self.scans.move_loose_images(project)
        return self.page.render(data)

    def scan_tick(self, data: Data) -> Any:
        """Show the progress of an import or scan; runs every SCAN_TICK_SECONDS while there is one."""
        try:
            task = self.scans.latest(self.page.project(data))
            if task is None:
                return {self.page.scan_timer: gr.Timer(active=False)}
            if task.render_key == data[self.page.shown_scan]:
                return {self.page.top.progress: dataset_view.scan_card(task)}
            trigger = {self.page.tag.trigger: task.inferred_trigger} if task.inferred_trigger else {}
            return self.page.render(data) | trigger
        except StudioError:
            return gr.skip()

    def start_tagging(self, data: Data) -> Updates:
        """Start a tagging job with the form's settings."""
        contents = self.page.contents(data)
        saved = self.page.save_pending_caption(data)
        self.page.tag.start_job(contents.project, contents, data)
        return saved | self.page.render(data) | self.studio.start_polling()

    def stop_tagging(self, data: Data) -> Updates:
        """Ask the tagging job to stop; captions written up to then are kept."""
        self.page.tag.request_stop(self.page.project(data))
        return self.page.render(data)

    def resume_tagging(self, data: Data) -> Updates:
        """Continue a stopped tagging job with the images that it has not tagged yet."""
        self.page.tag.resume_job(self.page.project(data))
        return self.page.render(data) | self.studio.start_polling()

    def tagging_tick(self, data: Data) -> Any:
        """Show the progress of tagging; once it has finished, compare the images by its features."""
        try:
            project = self.page.project(data)
            key = self.page.tag.render_key(project)
            if key == data[self.page.shown_tagging]:
                return gr.skip()
            contents = self.page.contents(data)
            if self.page.tag.is_running(project):
                return self.page.tag.render(project, contents) | {
                    self.page.top.tiles: self.page.tiles(contents),
                    self.page.shown_tagging: key,
                }
            if data[self.page.shown_tagging] and not self.scans.is_running(project):
                self.scans.find_similar(project)
            return self.page.render(data) | self.page.reload_caption(contents, data)
        except StudioError:
            return gr.skip()

    def _import(self, data: Data, sources: Iterable[str | Path] | None) -> Updates:
        paths = [Path(source).expanduser() for source in sources or []]
        if not paths:
            raise InputError("No files were received.", "Drop images, or a zip of them.", code="no_files")
        for path in paths:
            if not path.exists():
                raise InputError(f"The folder {str(path)!r} does not exist.", "Check the path.", code="no_folder")
        self.scans.start(self.page.project(data), paths)
        section = {self.page.top.section: Section.IMPORT.value}
        return self.page.render({**data, **section}) | section

    def _serialized(self, handler: Callable[..., Updates]) -> Callable[..., Updates]:
        """Wrap a handler so that handlers run one at a time, in the order of their events.

        A click outside of the caption's text box fires two events: one saves the caption, the other may move the image
        that it belongs to. A caption that changed on disk meanwhile is shown; the typed one stays in the text box and
        is saved the next time. If a scan reports a new state while the handler runs, the next tick shows it.
        """

        @functools.wraps(handler)
        def wrapped(data: Data, *args: Any) -> Updates:
            with self._lock:
                task = self._latest_scan(data)
                key = task.render_key if task else ""
                try:
                    updates = handler(data, *args)
                except CaptionChanged as error:
                    return {self.page.top.notice: error_card(error), **self.page.review.accept_other_caption(error)}
                if task is not None and task.render_key != key:
                    updates |= {self.page.shown_scan: "", self.page.scan_timer: gr.Timer(active=True)}
                return updates

        return wrapped

    def _latest_scan(self, data: Data) -> ScanTask | None:
        try:
            return self.scans.latest(self.page.project(data))
        except StudioError:
            return None
