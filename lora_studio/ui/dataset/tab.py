"""The Dataset tab: images on the left; on the right what can be done with them: import, curate, tag, review."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import gradio as gr

from lora_studio.dataset.captions.edit_history import CaptionHistory
from lora_studio.dataset.review import record_reviewed_captions
from lora_studio.errors import InputError, StudioError
from lora_studio.example import EXAMPLE_IMAGES, example_project_info
from lora_studio.ui.context import Page, Studio
from lora_studio.ui.dataset.background_scan import ScanRunner
from lora_studio.ui.dataset.caption_edit import save_draft
from lora_studio.ui.dataset.curate import CurationHandlers
from lora_studio.ui.dataset.gallery_handlers import GalleryHandlers
from lora_studio.ui.dataset.handlers import CaptionHandlers, Events
from lora_studio.ui.dataset.image_item import Filter, Sort
from lora_studio.ui.dataset.layout import EXCLUDES_TAG, DatasetLayout, build_layout
from lora_studio.ui.dataset.render import DatasetRenderer
from lora_studio.ui.dataset.state import (
    BulkPreview,
    DatasetFiles,
    DatasetState,
    Draft,
    Filters,
    Message,
    Part,
    Place,
    Section,
    TagDefaults,
    TagForm,
    after_presses,
)
from lora_studio.ui.dataset.suggestions import TagSuggester
from lora_studio.ui.dataset.tagging import TaggingJobs
from lora_studio.ui.dataset.tagging_view import tag_defaults
from lora_studio.ui.dataset.typing_help import TypingHelp
from lora_studio.ui.dataset.viewer import ViewerHandlers
from lora_studio.ui.roles import Role, allowed, is_owner
from lora_studio.ui.server import Mode
from lora_studio.ui.tab_events import PageValues, TabEvents
from lora_studio.ui.widgets.events import Updates
from lora_studio.workspace.project import Project, ProjectInfo

REFUSED_IMPORTS = ("no_files", "no_folder", "not_local")  # codes of errors about what cannot be imported
GONE = ("no_image", "no_group")  # codes of errors about images that the page still shows


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and wire its events."""
    return DatasetTab(studio, build_layout(local=studio.mode is Mode.LOCAL)).wire(tab)


class DatasetTab:
    """The tab's events, and the handlers of Import, Tag and the timers."""

    def __init__(self, studio: Studio, layout: DatasetLayout) -> None:
        self.studio = studio
        self.layout = layout
        self.scans = ScanRunner(studio.home)
        self.tagging = TaggingJobs(studio)
        self.suggester = TagSuggester(studio.home)
        self.renderer = DatasetRenderer(studio, layout, self.tagging, self.suggester)
        self.curation = CurationHandlers(self.scans)
        self.captioning = CaptionHandlers()
        self.gallery = GalleryHandlers(self.curation)
        self.viewer = ViewerHandlers(self.scans)

    def wire(self, tab: gr.Tab) -> Page:
        """Register all event handlers of the tab.

        They run one at a time, in the order of their events: a click outside of the caption's text box fires two
        events, of which one saves the caption and the other may move the image that it belongs to.
        """
        layout, renderer = self.layout, self.renderer
        outputs = [*layout.outputs, self.studio.timer]
        events: Events = TabEvents(
            [self.studio.project, *layout.inputs],
            outputs,
            self.read,
            renderer.render,
            renderer.error,
            layout.top.notice,
            self.studio.with_progress,
            threading.Lock(),
            self.recover,
        )
        events.on(tab.select, self.tab_opened, ignored_error="no_project")
        self._wire_import(events)
        self._wire_tagging(events)
        events.on(layout.top.section.input, self.section_changed, trigger_mode="always_last")
        events.on(layout.review.keys.click, self.keys_pressed, sends="presses", trigger_mode="multiple")
        self.curation.wire(events, layout)
        self.captioning.wire(events, layout)
        self.gallery.wire(events, layout)
        self.viewer.wire(events, layout)
        events.on_tick(layout.scan_timer.tick, self.scan_tick, outputs)
        events.on_tick(self.studio.timer.tick, self.tagging_tick, outputs, trigger_mode="always_last")
        TypingHelp(self.studio, layout, self.suggester).wire()
        return Page(self.refresh, outputs)

    def _wire_import(self, events: Events) -> None:
        imports, left, curate = self.layout.imports, self.layout.left, self.layout.curate
        events.on(imports.files.upload, self.import_files, imports.files)
        events.on(left.choose.upload, self.import_files, left.choose)
        events.on(imports.import_folder.click, self.import_folder, imports.folder)
        events.on(imports.folder.submit, self.import_folder, imports.folder)
        events.on(left.example.click, self.import_example)
        events.on(curate.scan.click, self.start_scan)
        events.on(curate.move_loose.click, self.move_loose_images)

    def _wire_tagging(self, events: Events) -> None:
        tag = self.layout.tag
        events.on(tag.start.click, self.start_tagging, *tag.fields, form=TagForm)
        events.on(tag.compare.click, self.compare_taggers, *tag.fields, form=TagForm)
        events.on(tag.stop.click, self.stop_tagging)
        events.on(tag.resume.click, self.resume_tagging)

    def read(self, values: PageValues) -> DatasetState:
        """Return what the page shows as an event's values describe it; raise InputError if no project is selected."""
        layout, review, left = self.layout, self.layout.review, self.layout.left
        project = self.studio.find_project(values[self.studio.project])
        place = Place(
            Section(values[layout.top.section]),
            Filters(
                frozenset(map(Filter, values[layout.held.chosen])),
                values[left.tag] or "",
                values[left.tag_side] == EXCLUDES_TAG,
                values[layout.held.finding] or "",
                values[layout.held.set_name],
                Sort(values[left.sort]),
            ),
            values[layout.held.grid_page],
            values[layout.statistics.page] or 0,
            Draft(values[review.current] or "", values[review.caption] or "", values[review.original] or ""),
            values[layout.held.is_viewing],
        )
        if not is_owner():  # nothing that others type is saved
            place = replace(place, draft=replace(place.draft, text=place.draft.caption_before))
        shown = replace(place, filters=replace(place.filters, sort=Sort(values[layout.held.sort])))
        keys = values[layout.held.shown_scan], values[layout.held.shown_tagging]
        return DatasetState(DatasetFiles(project, self.studio.home), place, self.scans.view(project), shown, *keys)

    def recover(self, state: DatasetState, error: StudioError) -> DatasetState | None:
        """Show the dataset as it is on disk if an image of the page is gone, as after a click in another window.

        The error of the import before is dismissed by the next one.
        """
        if error.code in REFUSED_IMPORTS:
            self.scans.clear_error(state.project)
            return replace(state, scan=self.scans.view(state.project))
        return state if error.code in GONE else None

    def refresh(self, project: Project) -> Updates:
        """Show a project that was just chosen, in the section of its next step."""
        if is_owner():
            with suppress(StudioError):  # such as a full disk
                record_reviewed_captions(project.dataset_dir)
        files, scan = DatasetFiles(project, self.studio.home), self.scans.view(project)
        state = DatasetState(files, Place(), scan, message=Message(), preview=BulkPreview())
        state = replace(state.at_section(self._next_section(state)), tag_form=tag_defaults(state.contents))
        return self.renderer.render(state)

    def tab_opened(self, state: DatasetState) -> DatasetState:
        """Show the tab again, and scan if there are images that were never scanned."""
        state = replace(state, tag_form=TagDefaults(state.contents.trigger))
        return self._scanning(state) if state.contents.images.unscanned and not state.scan.running else state

    @allowed(Role.GUEST)
    def section_changed(self, state: DatasetState) -> DatasetState:
        """Show another section, such as Curate; the error of a failed scan is dismissed."""
        if is_owner():
            self.scans.clear_error(state.project)
        return replace(save_draft(state), message=Message(), scan=self.scans.view(state.project))

    def keys_pressed(self, state: DatasetState, presses: object) -> DatasetState:
        """Do what the keys of Review mean, in order, see review_keys.js."""
        return after_presses(state, presses, self._press)

    def import_files(self, state: DatasetState, files: list[str] | None) -> DatasetState:
        """Import files that were dropped or chosen."""
        return self._import(state, files or [])

    def import_folder(self, state: DatasetState, folder: str | None) -> DatasetState:
        """Import a folder of this computer by its path."""
        if self.studio.mode is not Mode.LOCAL:
            problem = "Folders can be imported only when the studio is not shared."
            raise InputError(problem, "Drop a zip.", code="not_local")
        path = (folder or "").strip().strip("\"'")  # Windows copies paths in quotes
        if not path:
            raise InputError("No folder is given.", "Enter its path, or drop files above.", code="no_folder")
        return self._import(state, [path])

    def import_example(self, state: DatasetState) -> DatasetState:
        """Import the example images; a project without settings of its own also gets the example's."""
        if state.project.info() == ProjectInfo():
            state.project.save_info(example_project_info())
        state = self._import(state, [EXAMPLE_IMAGES])
        return replace(state, tag_form=tag_defaults(state.contents))

    def start_scan(self, state: DatasetState) -> DatasetState:
        """Scan the images, which changes none of them."""
        return self._scanning(state)

    def move_loose_images(self, state: DatasetState) -> DatasetState:
        """Move images outside of set folders into the first set, then scan."""
        state.project.check_idle("move images of")
        state = save_draft(state)
        self.scans.move_loose_images(state.project)
        return replace(state, scan=self.scans.view(state.project))

    @allowed(Role.GUEST)
    def scan_tick(self, state: DatasetState) -> DatasetState:
        """Show the progress of an import or scan; runs every SCAN_TICK_SECONDS while there is one."""
        if state.scan.key == state.shown_scan:
            return replace(state, part=Part.SCAN)
        trigger = state.scan.inferred_trigger
        return replace(state, tag_form=TagDefaults(trigger)) if trigger else state

    def start_tagging(self, state: DatasetState, form: TagForm) -> DatasetState:
        """Start a tagging job with the form's settings."""
        if not state.contents.items:
            raise InputError(f"{state.project.name} has no images yet.", "Import some first.", code="no_images")
        state = save_draft(state)
        self.tagging.start(state.project, form)
        return replace(state, is_job_started=True)

    def compare_taggers(self, state: DatasetState, form: TagForm) -> DatasetState:
        """Run the tagger, and those that it is combined with, on the image in Review; no caption is written."""
        state = save_draft(state.with_existing_image())
        self.tagging.start(state.project, form, compare=state.contents.item(state.place.draft.image).path)
        return replace(state, is_job_started=True)

    def stop_tagging(self, state: DatasetState) -> DatasetState:
        """Ask the tagging job to stop; captions written up to then are kept."""
        self.tagging.request_stop(state.project)
        return state

    def resume_tagging(self, state: DatasetState) -> DatasetState:
        """Continue a stopped tagging job with the images that it has not tagged yet."""
        self.tagging.resume(state.project)
        return replace(state, is_job_started=True)

    @allowed(Role.GUEST)
    def tagging_tick(self, state: DatasetState) -> DatasetState | None:
        """Show the progress of tagging; once it has finished, compare the images by its features."""
        if self.tagging.key(state.project) == state.shown_tagging:
            return None
        if self.tagging.is_running(state.project):
            return replace(state, part=Part.TAGGING)
        if state.shown_tagging and not state.scan.running and is_owner():
            self.scans.find_similar(state.project)
        state = replace(state, scan=self.scans.view(state.project))
        return state if state.place.draft.is_edited else state.with_draft(Draft.of(state.current))

    def _press(self, state: DatasetState, key: str) -> DatasetState:
        if not state.contents.items or (key == "undo" and not CaptionHistory.of(state.project.dataset_dir).can_undo):
            return state
        handlers: dict[str, Callable[[DatasetState], DatasetState]] = {
            "previous": self.captioning.show_previous,
            "next": self.captioning.show_next,
            "mark": self.captioning.mark_and_show_next,
            "toggle": self.captioning.toggle_reviewed,
            "aside": self.curation.set_current_aside,
            "undo": self.captioning.undo,
            "view": lambda state: state.viewing(True),
        }
        if key not in handlers:
            raise InputError("Unknown key.", "Reload the page.", code="pick")
        return handlers[key](state)

    def _scanning(self, state: DatasetState) -> DatasetState:
        self.scans.start(state.project)
        return replace(state, scan=self.scans.view(state.project))

    def _next_section(self, state: DatasetState) -> Section:
        """Return the section of the next step."""
        contents = state.contents
        if not contents.items:
            return Section.IMPORT
        if self.tagging.is_running(state.project):
            return Section.TAG
        return Section.CURATE if contents.proposed or contents.images.unscanned else Section.REVIEW

    def _import(self, state: DatasetState, sources: Iterable[str | Path]) -> DatasetState:
        paths = [Path(source).expanduser() for source in sources]
        if not paths:
            raise InputError("No files were received.", "Drop images, or a zip of them.", code="no_files")
        for path in paths:
            if not path.exists():
                raise InputError(f"The folder {str(path)!r} does not exist.", "Check the path.", code="no_folder")
        self.scans.start(state.project, paths)
        scan = self.scans.view(state.project)
        return replace(state.at_section(Section.IMPORT), scan=scan, is_import_started=True)
