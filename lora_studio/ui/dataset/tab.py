"""Dataset: is it good? Import, curate, tag and review: images on the left, what can be done with them on the right."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from lora_studio.dataset.captions.text import with_trigger
from lora_studio.dataset.curate import rejected_images
from lora_studio.dataset.images.sets import loose_images
from lora_studio.errors import InputError, StudioError
from lora_studio.example import EXAMPLE_IMAGES, example_project_info
from lora_studio.ui.context import Page, Studio, guarded, with_project
from lora_studio.ui.dataset import curate as dataset_curation
from lora_studio.ui.dataset import review as dataset_review
from lora_studio.ui.dataset import variety as dataset_variety
from lora_studio.ui.dataset import view as dataset_view
from lora_studio.ui.dataset.background_scan import ScanRunner, ScanTask
from lora_studio.ui.dataset.contents import Contents, Filter, ImageItem, Selection
from lora_studio.ui.dataset.handlers import CaptionHandlers
from lora_studio.ui.dataset.layout import Section, build_curate, build_import, build_left, build_top
from lora_studio.ui.dataset.review import CaptionChanged, ReviewPanel
from lora_studio.ui.dataset.tagging import TagPanel
from lora_studio.ui.dataset.view import Pick
from lora_studio.ui.server import Mode
from lora_studio.ui.widgets.events import NO_PROGRESS, Updates
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.ui.widgets.html import error_card
from lora_studio.workspace.project import Project, ProjectInfo

SCAN_TICK_SECONDS = 0.5
Data = Mapping[Any, Any]


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and wire its events."""
    return DatasetTab(studio).wire(tab)


class DatasetTab:
    """Event handlers of the Dataset tab."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.scans = ScanRunner(studio.home)
        self._lock = threading.Lock()
        self.top = build_top()
        with gr.Row(elem_classes="sides dataset-sides"):
            with gr.Column(scale=3, min_width=340):
                self.left = build_left()
            with gr.Column(scale=2, min_width=320, elem_classes="dataset-aside"):
                self.imports = build_import(local=studio.mode is Mode.LOCAL)
                self.curate = build_curate()
                self.tag = TagPanel(studio)
                self.review = ReviewPanel(studio.home)
                self.page = gr.State(0)
                self.captioning = CaptionHandlers(
                    studio,
                    left=self.left,
                    message=self.top.message,
                    page=self.page,
                    review=self.review,
                    render_tab=self._render,
                    show_image=self._show_image,
                    save_pending_caption=self._save_pending_caption,
                )
        self.shown_scan = gr.State("")
        self.shown_tagging = gr.State("")
        self.ticker = gr.Timer(SCAN_TICK_SECONDS, active=False)

    @property
    def outputs(self) -> list[Any]:
        """Everything that the tab changes."""
        return [
            *self.top,
            *self.left,
            *self.imports,
            *self.curate,
            *self.tag.outputs,
            *self.review.outputs,
            *self.captioning.outputs,
            self.page,
            self.shown_scan,
            self.shown_tagging,
            self.ticker,
            self.studio.timer,
        ]

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events."""
        outputs = self.outputs
        common = {self.studio.project, self.top.section, self.page, *self.review.inputs, *self.captioning.inputs}

        def on(event: Any, handler: Callable[..., Updates], more: Iterable[Any] = (), **options: Any) -> None:
            wrapped = guarded(self.top.notice, self._serialized(handler))
            event(wrapped, {*common, *more}, outputs, **self.studio.with_progress, **options)

        self.captioning.wire(on)
        on(tab.select, self.tab_opened)
        on(self.top.section.input, self.section_changed)
        on(self.left.filter.input, self.captioning.filter_changed)
        curated = (self.left.groups, self.left.flagged, self.left.buckets, self.left.pairs, self.curate.aside)
        for component in (self.left.grid, *curated, self.top.message):
            on(component.click, self.button_clicked)
        on(self.imports.files.upload, self.import_files, [self.imports.files])
        on(self.left.choose.upload, self.import_chosen, [self.left.choose])
        on(self.imports.import_folder.click, self.import_folder, [self.imports.folder])
        on(self.imports.folder.submit, self.import_folder, [self.imports.folder])
        on(self.left.example.click, self.import_example)
        on(self.curate.scan.click, self.start_scan)
        on(self.curate.apply.click, self.set_aside_proposed)
        on(self.curate.restore.click, self.restore_all)
        on(self.curate.move_loose.click, self.move_loose_images)
        on(self.review.previous.click, self.show_previous)
        on(self.review.next.click, self.show_next)
        on(self.review.aside.click, self.set_current_aside)
        on(self.review.save.click, self.save_caption)
        on(self.review.caption.blur, self.save_caption)
        on(self.review.add_trigger.click, self.add_trigger_word)
        on(self.tag.start.click, self.start_tagging, self.tag.inputs)
        on(self.tag.stop.click, self.stop_tagging)
        on(self.tag.resume.click, self.resume_tagging)
        on(self.tag.undo.click, self.undo_tagging)
        self.tag.tagger.input(self.tag.tagger_changed, self.tag.tagger, self.tag.tagger_outputs, **NO_PROGRESS)
        self.review.caption.change(
            self.caption_typed,
            [self.studio.project, self.review.caption],
            [self.review.hint, self.review.add_trigger],
            **NO_PROGRESS,
            trigger_mode="always_last",
        )
        self.ticker.tick(self.scan_tick, {*common, self.shown_scan}, outputs, **NO_PROGRESS, queue=False)
        self.studio.timer.tick(
            self.tagging_tick,
            {*common, self.shown_tagging},
            outputs,
            **NO_PROGRESS,
            queue=False,
            trigger_mode="always_last",
        )
        return Page(self.refresh, outputs)

    def refresh(self, project: Project) -> Updates:
        """Show a project, in the part where there is something to do."""
        scan = self._scan_updates(project)
        contents = Contents.of(project)
        if not contents.items:
            section = Section.IMPORT
        elif self.tag.is_running(project):
            section = Section.TAG
        else:
            section = Section.CURATE if contents.proposed or contents.unscanned else Section.REVIEW
        first = contents.items[0] if contents.items else None
        return (
            self._show(contents, section, Selection(), 0, first)
            | scan
            | self.review.show_image(contents, first)
            | self.tag.fill_form(contents)
            | self.captioning.render(contents, section, {})
            | self.captioning.reset()
            | {
                self.top.section: section.value,
                self.left.filter: Filter.ALL.value,
                self.imports.folder: "",
                self.top.message: "",
            }
        )

    @with_project
    def tab_opened(self, data: Data) -> Updates:
        """The tab was opened: images that were never scanned are looked at."""
        contents = self._contents(data)
        if contents.unscanned and not self.scans.is_running(contents.project):
            self.scans.start(contents.project)
        return self._render(data, contents) | {self.tag.trigger: contents.trigger}

    def section_changed(self, data: Data) -> Updates:
        """Another part was chosen."""
        self.scans.clear_error(self.studio.find_project(data[self.studio.project]))
        return self._save_pending_caption(data) | self._render(data) | {self.top.message: ""}

    def button_clicked(self, data: Data, event: gr.EventData) -> Updates:
        """A button within the page was pressed; what it says is looked up."""
        verb, _, subject = str(event.pick).partition(":")
        contents = self._contents(data)
        match verb:
            case Pick.PAGE if subject.isdecimal():
                return self._render({**data, self.page: int(subject)}, contents)
            case Pick.SHOW:
                return self._open_in_review(data, contents, contents.item(subject).id)
            case Pick.ASIDE:
                return self._set_aside(data, contents, [contents.item(subject)])
            case Pick.INSTEAD:
                return self._use_instead(data, contents, contents.item(subject))
            case Pick.KEEP | Pick.UNKEEP:
                return self._keep(data, contents, contents.item(subject), kept=verb == Pick.KEEP)
            case Pick.BACK:
                return self._restore(data, contents, subject.split(","))
        raise InputError("That button is not known.", "Reload the page.", code="pick")

    def import_files(self, data: Data) -> Updates:
        """Files were dropped or chosen."""
        return {self.imports.files: None} | self._import(data, data[self.imports.files])

    def import_chosen(self, data: Data) -> Updates:
        """Files were chosen with the button of the empty state."""
        return self._import(data, data[self.left.choose])

    def import_folder(self, data: Data) -> Updates:
        """A folder of this computer was named."""
        if self.studio.mode is not Mode.LOCAL:
            raise InputError(
                "Folders can be imported only where the studio runs for you alone.", "Drop a zip.", code="not_local"
            )
        text = (data[self.imports.folder] or "").strip()
        if not text:
            raise InputError("No folder is given.", "Write its path, or drop files above.", code="no_folder")
        return self._import(data, [text]) | {self.imports.folder: ""}

    def import_example(self, data: Data) -> Updates:
        """The example images, and what they want of a project that says nothing yet."""
        project = self.studio.find_project(data[self.studio.project])
        if project.info() == ProjectInfo():
            project.save_info(example_project_info())
        return self._import(data, [EXAMPLE_IMAGES]) | self.tag.fill_form(self._contents(data))

    def start_scan(self, data: Data) -> Updates:
        """Scan the images, which changes none of them."""
        self.scans.start(self.studio.find_project(data[self.studio.project]))
        return self._render(data)

    def set_aside_proposed(self, data: Data) -> Updates:
        """Set aside what the scan proposes."""
        contents = self._contents(data)
        return self._set_aside(data, contents, contents.proposed)

    def restore_all(self, data: Data) -> Updates:
        """Put back everything that was set aside."""
        return self._restore(data, self._contents(data))

    def move_loose_images(self, data: Data) -> Updates:
        """Put images beside the set folders into the first set, and look at them there."""
        project = self.studio.find_project(data[self.studio.project])
        project.check_idle("move images of")
        self._save_pending_caption(data)
        self.scans.move_loose_images(project)
        return self._render(data)

    def show_previous(self, data: Data) -> Updates:
        """The image before."""
        return self._step(data, -1)

    def show_next(self, data: Data) -> Updates:
        """The image after."""
        return self._step(data, 1)

    def set_current_aside(self, data: Data) -> Updates:
        """Set aside the image that is shown large."""
        self._save_pending_caption(data)
        contents = self._contents(data)
        return self._set_aside(data, contents, [contents.item(data[self.review.current])])

    def save_caption(self, data: Data) -> Updates:
        """Keep the caption that was typed."""
        contents = self._contents(data)
        if not self.review.save_caption(contents, data):
            return {}
        saved = self.review.after_save(contents, data)
        contents = contents.after_change([contents.item(data[self.review.current]).path])
        return saved | {self.top.tiles: self._tiles(contents), self.left.grid: self._grid(contents, data)}

    def add_trigger_word(self, data: Data) -> Updates:
        """Put the trigger word first in the caption that is shown."""
        trigger = self._contents(data).trigger
        text = with_trigger(data[self.review.caption] or "", trigger)
        return self.save_caption({**data, self.review.caption: text}) | {self.review.caption: text}

    def caption_typed(self, project_name: str, caption: str) -> Any:
        """The caption changed: how long it is, and where the trigger word stands."""
        try:
            trigger = self.studio.find_project(project_name).info().trigger_word
        except StudioError:
            return gr.skip()
        return self.review.caption_hints(trigger, caption or "")

    def start_tagging(self, data: Data) -> Updates:
        """Start the job."""
        contents = self._contents(data)
        saved = self._save_pending_caption(data)
        self.tag.start_job(contents.project, contents, data)
        return saved | self._render(data) | self.studio.start_polling()

    def stop_tagging(self, data: Data) -> Updates:
        """Ask the job to end; the captions it made are kept."""
        self.tag.request_stop(self.studio.find_project(data[self.studio.project]))
        return self._render(data)

    def resume_tagging(self, data: Data) -> Updates:
        """Go on with the images that the stopped job did not come to."""
        self.tag.resume_job(self.studio.find_project(data[self.studio.project]))
        return self._render(data) | self.studio.start_polling()

    def undo_tagging(self, data: Data) -> Updates:
        """Bring back the captions as they were before the last tagging."""
        message = self.tag.undo_last(self.studio.find_project(data[self.studio.project]))
        contents = self._contents(data)
        return self._render(data, contents) | self._reload_caption(contents, data) | {self.top.message: message}

    def scan_tick(self, data: Data) -> Any:
        """How far importing and scanning are; called while they are at work."""
        try:
            project = self.studio.find_project(data[self.studio.project])
            task = self.scans.latest(project)
            if task is None:
                return {self.ticker: gr.Timer(active=False)}
            if task.render_key == data[self.shown_scan]:
                return {self.top.progress: dataset_view.scan_card(task)}
            return self._render(data)
        except StudioError:
            return gr.skip()

    def tagging_tick(self, data: Data) -> Any:
        """How far the tagging is; called while a job is at work."""
        try:
            project = self.studio.find_project(data[self.studio.project])
            key = self.tag.render_key(project)
            if key == data[self.shown_tagging]:
                return gr.skip()
            contents = self._contents(data)
            if self.tag.is_running(project):
                return self.tag.render(project, contents) | {
                    self.top.tiles: self._tiles(contents),
                    self.shown_tagging: key,
                }
            if data[self.shown_tagging] and not self.scans.is_running(project):
                self.scans.find_similar(project)
            return self._render(data) | self._reload_caption(contents, data)
        except StudioError:
            return gr.skip()

    def _serialized(self, handler: Callable[..., Updates]) -> Callable[..., Updates]:
        """One handler after the other: leaving the caption's box saves it, and what was clicked may move its image.

        A caption that changed on disk meanwhile is shown; what was typed stays in the box, and is saved next time. What
        a pass over the images found while the handler was at work is left to the next tick.
        """

        @functools.wraps(handler)
        def wrapped(data: Data, *args: Any) -> Updates:
            with self._lock:
                task = self._latest_scan(data)
                key = task.render_key if task else ""
                try:
                    updates = handler(data, *args)
                except CaptionChanged as error:
                    return {self.top.notice: error_card(error), **self.review.accept_other_caption(error)}
                if task is not None and task.render_key != key:
                    updates |= {self.shown_scan: "", self.ticker: gr.Timer(active=True)}
                return updates

        return wrapped

    def _latest_scan(self, data: Data) -> ScanTask | None:
        try:
            return self.scans.latest(self.studio.find_project(data[self.studio.project]))
        except StudioError:
            return None

    def _contents(self, data: Data) -> Contents:
        return Contents.of(self.studio.find_project(data[self.studio.project]))

    def _import(self, data: Data, sources: Iterable[str | Path] | None) -> Updates:
        paths = [Path(source).expanduser() for source in sources or []]
        if not paths:
            raise InputError("No files came.", "Drop images, or a zip of them.", code="no_files")
        for path in paths:
            if not path.exists():
                raise InputError(f"There is no folder {str(path)!r}.", "Check the path.", code="no_folder")
        project = self.studio.find_project(data[self.studio.project])
        self.scans.start(project, paths)
        return self._render({**data, self.top.section: Section.IMPORT.value}) | {self.top.section: Section.IMPORT.value}

    def _set_aside(self, data: Data, contents: Contents, items: Sequence[ImageItem], reason: str = "") -> Updates:
        """Set images aside; if the one that is shown large is among them, the next one takes its place."""
        message = dataset_curation.set_aside(contents.project, items, reason)
        left = contents.after_change(item.path for item in items)
        gone = contents.by_id.get(data[self.review.current])
        opened: Updates = {}
        if gone is not None and gone.id not in left.by_id:
            following = dataset_review.after_removal(contents, gone, left, self.captioning.selection(left, data))
            opened = self.review.show_image(left, following)
            data = {**data, self.review.current: following.id if following else ""}
        return self._render(data, left) | opened | {self.top.message: message}

    def _use_instead(self, data: Data, contents: Contents, item: ImageItem) -> Updates:
        """Set aside the one that was proposed to be kept. What else was a copy of it is compared anew."""
        group = dataset_curation.group_with_duplicate(contents, item)
        keeper = contents.by_path[group.keep]
        updates = self._set_aside(data, contents, [keeper], f"{item.name} is used instead")
        if len(group.reject) > 1 and not self.scans.is_running(contents.project):
            self.scans.start(contents.project)
            updates |= self._scan_updates(contents.project)
        return updates

    def _keep(self, data: Data, contents: Contents, item: ImageItem, *, kept: bool) -> Updates:
        dataset_curation.mark_kept(contents, item, kept=kept)
        return self._render(data, contents.after_change()) | {self.top.message: ""}

    def _restore(self, data: Data, contents: Contents, ids: Sequence[str] | None = None) -> Updates:
        message, back = dataset_curation.restore(contents.project, ids)
        return self._render(data, contents.after_change(back)) | {self.top.message: message}

    def _open_in_review(self, data: Data, contents: Contents, identity: str) -> Updates:
        """Show an image large, in Review."""
        if self._save_pending_caption(data):
            contents = self._contents(data)
        item = contents.item(identity)
        opened = {} if self.review.is_showing(item, data) else self.review.show_image(contents, item)
        data = {**data, self.review.current: item.id, self.top.section: Section.REVIEW.value}
        return self._render(data, contents) | opened | {self.top.section: Section.REVIEW.value, self.top.message: ""}

    def _step(self, data: Data, step: int) -> Updates:
        self._save_pending_caption(data)
        contents = self._contents(data)
        item = dataset_review.neighbour(
            contents, data[self.review.current], self.captioning.selection(contents, data), step
        )
        return self._render(data, contents) if item is None else self._show_image(contents, item, data)

    def _show_image(self, contents: Contents, item: ImageItem, data: Data) -> Updates:
        """Show an image large, and the gallery's page that has it."""
        shown = contents.matching(self.captioning.selection(contents, data))
        place = next((place for place, one in enumerate(shown) if one.id == item.id), None)
        page = data[self.page] if place is None else place // dataset_view.PAGE_SIZE
        data = {**data, self.review.current: item.id, self.page: page}
        return {
            self.left.grid: self._grid(contents, data),
            self.top.tiles: self._tiles(contents),
            self.page: page,
            self.top.message: "",
        } | self.review.show_image(contents, item)

    def _save_pending_caption(self, data: Data) -> Updates:
        """Save what is in the caption's box, as everything does that leads away from it."""
        if not self.review.has_unsaved_caption(data):
            return {}
        contents = self._contents(data)
        return self.review.after_save(contents, data) if self.review.save_caption(contents, data) else {}

    def _reload_caption(self, contents: Contents, data: Data) -> Updates:
        """Show the caption as it is on disk now, unless something unsaved is in the box."""
        item = contents.by_id.get(data[self.review.current])
        if item is not None and self.review.has_unsaved_caption(data):
            return {}
        return self.review.show_image(contents, item or (contents.items[0] if contents.items else None))

    def _render(self, data: Data, contents: Contents | None = None) -> Updates:
        """The tab as it is now, but for what the user typed; `contents` if they were read since anything changed."""
        # Asked before the images are read: a pass that ends in between is shown at the next tick.
        scan = self._scan_updates(self.studio.find_project(data[self.studio.project]))
        contents = contents or self._contents(data)
        current = contents.by_id.get(data[self.review.current])
        opened: Updates = {}
        if current is None:
            current = contents.items[0] if contents.items else None
            opened = self.review.show_image(contents, current)
        section, chosen = Section(data[self.top.section]), self.captioning.selection(contents, data)
        return (
            opened
            | self._show(contents, section, chosen, data[self.page], current)
            | self.captioning.render(contents, section, data)
            | scan
        )

    def _show(
        self, contents: Contents, section: Section, chosen: Selection, page: int, current: ImageItem | None
    ) -> Updates:
        project, home = contents.project, self.studio.home
        there = bool(contents.items)
        aside = rejected_images(project.rejected_dir)
        curating = section is Section.CURATE
        task = self.scans.latest(project)
        updates: Updates = {
            self.top.tiles: dataset_view.dataset_tiles(contents, len(aside)) if there or aside else "",
            self.left.empty: gr.Column(visible=not there),
            self.left.grid_side: gr.Column(visible=there and not curating),
            self.left.curate_side: gr.Column(visible=there and curating),
            self.imports.column: gr.Column(visible=section is Section.IMPORT),
            self.curate.column: gr.Column(visible=curating),
            self.tag.column: gr.Column(visible=section is Section.TAG),
            self.review.column: gr.Column(visible=section is Section.REVIEW),
            self.page: page,
            self.imports.report: dataset_view.import_card(task.report) if task and task.report else "",
            self.shown_tagging: self.tag.render_key(project),
            **self._scan_updates(project),
            **self.tag.render(project, contents),
        }
        if curating:
            loose = loose_images(project.dataset_dir)
            updates |= {
                self.left.groups: dataset_view.duplicate_groups(home, contents)
                + dataset_variety.similar_groups(home, contents),
                self.left.buckets: dataset_variety.bucket_overview(home, contents),
                self.curate.variety: dataset_variety.variety_card(contents),
                self.left.pairs: dataset_variety.most_similar_pairs(home, contents),
                self.left.flagged: dataset_view.flagged_list(home, contents),
                self.curate.aside: dataset_view.aside_list(home, contents, aside),
                self.curate.status: dataset_view.curation_status(contents),
                self.curate.apply: gr.Button(
                    f"Set aside all proposed ({len(contents.proposed)})", visible=bool(contents.proposed)
                ),
                self.curate.scan: gr.Button(
                    "Scan again" if contents.unscanned < len(contents.items) else "Scan",
                    interactive=there and not self.scans.is_running(project),
                ),
                self.curate.restore: gr.Button(visible=bool(aside)),
                self.curate.move_loose: gr.Button(
                    f"Put {format_count(len(loose), 'loose image')} into {project.images_dir.name}", visible=bool(loose)
                ),
            }
        else:
            thumbnails_ready = task is not None and task.thumbnails_ready
            updates[self.left.grid] = dataset_view.image_grid(
                home, contents, chosen, page, current.id if current else "", thumbnails_ready=thumbnails_ready
            )
        if current is not None:
            updates |= self.review.status(contents, current)
        return updates

    def _scan_updates(self, project: Project) -> Updates:
        task = self.scans.latest(project)
        busy = self.scans.is_running(project)
        return {
            self.top.progress: dataset_view.scan_card(task),
            self.shown_scan: task.render_key if task else "",
            self.ticker: gr.Timer(active=busy),
            self.curate.scan: gr.Button(interactive=not busy),
        }

    def _tiles(self, contents: Contents) -> Markup:
        return dataset_view.dataset_tiles(contents, len(rejected_images(contents.project.rejected_dir)))

    def _grid(self, contents: Contents, data: Data) -> Markup:
        task = self.scans.latest(contents.project)
        return dataset_view.image_grid(
            self.studio.home,
            contents,
            self.captioning.selection(contents, data),
            data[self.page],
            data[self.review.current],
            thumbnails_ready=task is not None and task.thumbnails_ready,
        )
