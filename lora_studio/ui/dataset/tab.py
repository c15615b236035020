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
from lora_studio.ui.context import QUIET, Page, Studio, Updates, guarded, with_project
from lora_studio.ui.dataset import curate as dataset_curation
from lora_studio.ui.dataset import review as dataset_review
from lora_studio.ui.dataset import variety as dataset_variety
from lora_studio.ui.dataset import view as dataset_view
from lora_studio.ui.dataset.background_scan import Look, Looks
from lora_studio.ui.dataset.contents import Contents, Filter, Item, Selection
from lora_studio.ui.dataset.handlers import Desk
from lora_studio.ui.dataset.layout import Section, build_curate, build_import, build_left, build_top
from lora_studio.ui.dataset.review import CaptionChanged, ReviewPanel
from lora_studio.ui.dataset.tagging import TagPanel
from lora_studio.ui.dataset.view import Pick
from lora_studio.ui.server import Mode
from lora_studio.ui.widgets.html import count_of, error_card
from lora_studio.workspace.project import Project, ProjectInfo

LOOK_SECONDS = 0.5
Data = Mapping[Any, Any]


def build(studio: Studio, tab: gr.Tab) -> Page:
    """Build the tab and wire its events."""
    return DatasetTab(studio).wire(tab)


class DatasetTab:
    """Event handlers of the Dataset tab."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.looks = Looks(studio.home)
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
                self.desk = Desk(
                    studio,
                    left=self.left,
                    said=self.top.said,
                    page=self.page,
                    review=self.review,
                    again=self._again,
                    step_to=self._step_to,
                    saved_first=self._saved_first,
                )
        self.seen_look = gr.State("")
        self.seen_tag = gr.State("")
        self.ticker = gr.Timer(LOOK_SECONDS, active=False)

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
            *self.desk.outputs,
            self.page,
            self.seen_look,
            self.seen_tag,
            self.ticker,
            self.studio.timer,
        ]

    def wire(self, tab: gr.Tab) -> Page:
        """Register the events."""
        outputs = self.outputs
        place = {self.studio.project, self.top.section, self.page, *self.review.inputs, *self.desk.inputs}

        def on(event: Any, handler: Callable[..., Updates], more: Iterable[Any] = (), **options: Any) -> None:
            wrapped = guarded(self.top.notice, self._in_turn(handler))
            event(wrapped, {*place, *more}, outputs, **self.studio.awaited, **options)

        self.desk.wire(on)
        on(tab.select, self.reopened)
        on(self.top.section.input, self.switched)
        on(self.left.filter.input, self.desk.filtered)
        curated = (self.left.groups, self.left.flagged, self.left.buckets, self.left.pairs, self.curate.aside)
        for place_to_pick in (self.left.grid, *curated, self.top.said):
            on(place_to_pick.click, self.picked)
        on(self.imports.files.upload, self.import_dropped, [self.imports.files])
        on(self.left.choose.upload, self.import_chosen, [self.left.choose])
        on(self.imports.import_folder.click, self.import_typed, [self.imports.folder])
        on(self.imports.folder.submit, self.import_typed, [self.imports.folder])
        on(self.left.example.click, self.import_example)
        on(self.curate.scan.click, self.look)
        on(self.curate.apply.click, self.set_all_aside)
        on(self.curate.restore.click, self.put_all_back)
        on(self.curate.wrap.click, self.wrap)
        on(self.review.previous.click, self.go_back)
        on(self.review.next.click, self.go_on)
        on(self.review.aside.click, self.set_current_aside)
        on(self.review.save.click, self.save)
        on(self.review.caption.blur, self.save)
        on(self.review.add_trigger.click, self.put_trigger)
        on(self.tag.start.click, self.start_tagging, self.tag.inputs)
        on(self.tag.stop.click, self.stop_tagging)
        on(self.tag.resume.click, self.resume_tagging)
        on(self.tag.undo.click, self.undo_tagging)
        self.tag.tagger.input(self.tag.chosen, self.tag.tagger, self.tag.chosen_outputs, **QUIET)
        self.review.caption.change(
            self.typed,
            [self.studio.project, self.review.caption],
            [self.review.hint, self.review.add_trigger],
            **QUIET,
            trigger_mode="always_last",
        )
        self.ticker.tick(self.tick, {*place, self.seen_look}, outputs, **QUIET, queue=False)
        self.studio.timer.tick(
            self.tag_tick,
            {*place, self.seen_tag},
            outputs,
            **QUIET,
            queue=False,
            trigger_mode="always_last",
        )
        return Page(self.refresh, outputs)

    def refresh(self, project: Project) -> Updates:
        """Show a project, in the part where there is something to do."""
        look = self._look_updates(project)
        contents = Contents.of(project)
        if not contents.items:
            section = Section.IMPORT
        elif self.tag.at_work(project):
            section = Section.TAG
        else:
            section = Section.CURATE if contents.proposed or contents.unseen else Section.REVIEW
        first = contents.items[0] if contents.items else None
        return (
            self._show(contents, section, Selection(), 0, first)
            | look
            | self.review.open(contents, first)
            | self.tag.fill(contents)
            | self.desk.show(contents, section, {})
            | self.desk.reset()
            | {
                self.top.section: section.value,
                self.left.filter: Filter.ALL.value,
                self.imports.folder: "",
                self.top.said: "",
            }
        )

    @with_project
    def reopened(self, data: Data) -> Updates:
        """The tab was opened: images that were never scanned are looked at."""
        contents = self._contents(data)
        if contents.unseen and not self.looks.busy(contents.project):
            self.looks.start(contents.project)
        return self._again(data, contents) | {self.tag.trigger: contents.trigger}

    def switched(self, data: Data) -> Updates:
        """Another part was chosen."""
        self.looks.forget_error(self.studio.open(data[self.studio.project]))
        return self._saved_first(data) | self._again(data) | {self.top.said: ""}

    def picked(self, data: Data, event: gr.EventData) -> Updates:
        """A button within the page was pressed; what it says is looked up."""
        verb, _, subject = str(event.pick).partition(":")
        contents = self._contents(data)
        match verb:
            case Pick.PAGE if subject.isdecimal():
                return self._again({**data, self.page: int(subject)}, contents)
            case Pick.SHOW:
                return self._open(data, contents, contents.item(subject).id)
            case Pick.ASIDE:
                return self._set_aside(data, contents, [contents.item(subject)])
            case Pick.INSTEAD:
                return self._use_instead(data, contents, contents.item(subject))
            case Pick.KEEP | Pick.UNKEEP:
                return self._keep(data, contents, contents.item(subject), kept=verb == Pick.KEEP)
            case Pick.BACK:
                return self._put_back(data, contents, subject.split(","))
        raise InputError("That button is not known.", "Reload the page.", code="pick")

    def import_dropped(self, data: Data) -> Updates:
        """Files were dropped or chosen."""
        return {self.imports.files: None} | self._import(data, data[self.imports.files])

    def import_chosen(self, data: Data) -> Updates:
        """Files were chosen with the button of the empty state."""
        return self._import(data, data[self.left.choose])

    def import_typed(self, data: Data) -> Updates:
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
        project = self.studio.open(data[self.studio.project])
        if project.info() == ProjectInfo():
            project.save_info(example_project_info())
        return self._import(data, [EXAMPLE_IMAGES]) | self.tag.fill(self._contents(data))

    def look(self, data: Data) -> Updates:
        """Scan the images, which changes none of them."""
        self.looks.start(self.studio.open(data[self.studio.project]))
        return self._again(data)

    def set_all_aside(self, data: Data) -> Updates:
        """Set aside what the scan proposes."""
        contents = self._contents(data)
        return self._set_aside(data, contents, contents.proposed)

    def put_all_back(self, data: Data) -> Updates:
        """Put back everything that was set aside."""
        return self._put_back(data, self._contents(data))

    def wrap(self, data: Data) -> Updates:
        """Put images beside the set folders into the first set, and look at them there."""
        project = self.studio.open(data[self.studio.project])
        project.check_idle("move images of")
        self._saved_first(data)
        self.looks.wrap(project)
        return self._again(data)

    def go_back(self, data: Data) -> Updates:
        """The image before."""
        return self._step(data, -1)

    def go_on(self, data: Data) -> Updates:
        """The image after."""
        return self._step(data, 1)

    def set_current_aside(self, data: Data) -> Updates:
        """Set aside the image that is shown large."""
        self._saved_first(data)
        contents = self._contents(data)
        return self._set_aside(data, contents, [contents.item(data[self.review.current])])

    def save(self, data: Data) -> Updates:
        """Keep the caption that was typed."""
        contents = self._contents(data)
        if not self.review.store(contents, data):
            return {}
        saved = self.review.stored(contents, data)
        contents = contents.after([contents.item(data[self.review.current]).path])
        return saved | {self.top.tiles: self._tiles(contents), self.left.grid: self._grid(contents, data)}

    def put_trigger(self, data: Data) -> Updates:
        """Put the trigger word first in the caption that is shown."""
        trigger = self._contents(data).trigger
        text = with_trigger(data[self.review.caption] or "", trigger)
        return self.save({**data, self.review.caption: text}) | {self.review.caption: text}

    def typed(self, project_name: str, caption: str) -> Any:
        """The caption changed: how long it is, and where the trigger word stands."""
        try:
            trigger = self.studio.open(project_name).info().trigger_word
        except StudioError:
            return gr.skip()
        return self.review.hints(trigger, caption or "")

    def start_tagging(self, data: Data) -> Updates:
        """Start the job."""
        contents = self._contents(data)
        saved = self._saved_first(data)
        self.tag.begin(contents.project, contents, data)
        return saved | self._again(data) | self.studio.watch()

    def stop_tagging(self, data: Data) -> Updates:
        """Ask the job to end; the captions it made are kept."""
        self.tag.end(self.studio.open(data[self.studio.project]))
        return self._again(data)

    def resume_tagging(self, data: Data) -> Updates:
        """Go on with the images that the stopped job did not come to."""
        self.tag.go_on(self.studio.open(data[self.studio.project]))
        return self._again(data) | self.studio.watch()

    def undo_tagging(self, data: Data) -> Updates:
        """Bring back the captions as they were before the last tagging."""
        said = self.tag.bring_back(self.studio.open(data[self.studio.project]))
        contents = self._contents(data)
        return self._again(data, contents) | self._reopen(contents, data) | {self.top.said: said}

    def tick(self, data: Data) -> Any:
        """How far importing and scanning are; called while they are at work."""
        try:
            project = self.studio.open(data[self.studio.project])
            look = self.looks.last(project)
            if look is None:
                return {self.ticker: gr.Timer(active=False)}
            if look.stamp == data[self.seen_look]:
                return {self.top.progress: dataset_view.look_card(look)}
            return self._again(data)
        except StudioError:
            return gr.skip()

    def tag_tick(self, data: Data) -> Any:
        """How far the tagging is; called while a job is at work."""
        try:
            project = self.studio.open(data[self.studio.project])
            signature = self.tag.signature(project)
            if signature == data[self.seen_tag]:
                return gr.skip()
            contents = self._contents(data)
            if self.tag.at_work(project):
                return self.tag.show(project, contents) | {
                    self.top.tiles: self._tiles(contents),
                    self.seen_tag: signature,
                }
            if data[self.seen_tag] and not self.looks.busy(project):
                self.looks.compare(project)
            return self._again(data) | self._reopen(contents, data)
        except StudioError:
            return gr.skip()

    def _in_turn(self, handler: Callable[..., Updates]) -> Callable[..., Updates]:
        """One handler after the other: leaving the caption's box saves it, and what was clicked may move its image.

        A caption that changed on disk meanwhile is shown; what was typed stays in the box, and is saved next time. What
        a pass over the images found while the handler was at work is left to the next tick.
        """

        @functools.wraps(handler)
        def wrapped(data: Data, *args: Any) -> Updates:
            with self._lock:
                look = self._look(data)
                stamp = look.stamp if look else ""
                try:
                    updates = handler(data, *args)
                except CaptionChanged as error:
                    return {self.top.notice: error_card(error), **self.review.seen(error)}
                if look is not None and look.stamp != stamp:
                    updates |= {self.seen_look: "", self.ticker: gr.Timer(active=True)}
                return updates

        return wrapped

    def _look(self, data: Data) -> Look | None:
        try:
            return self.looks.last(self.studio.open(data[self.studio.project]))
        except StudioError:
            return None

    def _contents(self, data: Data) -> Contents:
        return Contents.of(self.studio.open(data[self.studio.project]))

    def _import(self, data: Data, sources: Iterable[str | Path] | None) -> Updates:
        paths = [Path(source).expanduser() for source in sources or []]
        if not paths:
            raise InputError("No files came.", "Drop images, or a zip of them.", code="no_files")
        for path in paths:
            if not path.exists():
                raise InputError(f"There is no folder {str(path)!r}.", "Check the path.", code="no_folder")
        project = self.studio.open(data[self.studio.project])
        self.looks.start(project, paths)
        return self._again({**data, self.top.section: Section.IMPORT.value}) | {self.top.section: Section.IMPORT.value}

    def _set_aside(self, data: Data, contents: Contents, items: Sequence[Item], reason: str = "") -> Updates:
        """Set images aside; if the one that is shown large is among them, the next one takes its place."""
        said = dataset_curation.set_aside(contents.project, items, reason)
        left = contents.after(item.path for item in items)
        gone = contents.by_id.get(data[self.review.current])
        opened: Updates = {}
        if gone is not None and gone.id not in left.by_id:
            following = dataset_review.after_removal(contents, gone, left, self.desk.selection(left, data))
            opened = self.review.open(left, following)
            data = {**data, self.review.current: following.id if following else ""}
        return self._again(data, left) | opened | {self.top.said: said}

    def _use_instead(self, data: Data, contents: Contents, item: Item) -> Updates:
        """Set aside the one that was proposed to be kept. What else was a copy of it is compared anew."""
        group = dataset_curation.group_of(contents, item)
        keeper = contents.by_path[group.keep]
        updates = self._set_aside(data, contents, [keeper], f"{item.name} is used instead")
        if len(group.reject) > 1 and not self.looks.busy(contents.project):
            self.looks.start(contents.project)
            updates |= self._look_updates(contents.project)
        return updates

    def _keep(self, data: Data, contents: Contents, item: Item, *, kept: bool) -> Updates:
        dataset_curation.keep(contents, item, kept=kept)
        return self._again(data, contents.after()) | {self.top.said: ""}

    def _put_back(self, data: Data, contents: Contents, ids: Sequence[str] | None = None) -> Updates:
        said, back = dataset_curation.put_back(contents.project, ids)
        return self._again(data, contents.after(back)) | {self.top.said: said}

    def _open(self, data: Data, contents: Contents, identity: str) -> Updates:
        """Show an image large, in Review."""
        if self._saved_first(data):
            contents = self._contents(data)
        item = contents.item(identity)
        opened = {} if self.review.shows(item, data) else self.review.open(contents, item)
        data = {**data, self.review.current: item.id, self.top.section: Section.REVIEW.value}
        return self._again(data, contents) | opened | {self.top.section: Section.REVIEW.value, self.top.said: ""}

    def _step(self, data: Data, step: int) -> Updates:
        self._saved_first(data)
        contents = self._contents(data)
        item = dataset_review.neighbour(contents, data[self.review.current], self.desk.selection(contents, data), step)
        return self._again(data, contents) if item is None else self._step_to(contents, item, data)

    def _step_to(self, contents: Contents, item: Item, data: Data) -> Updates:
        """Show an image large, and the gallery's page that has it."""
        shown = contents.shown(self.desk.selection(contents, data))
        place = next((place for place, one in enumerate(shown) if one.id == item.id), None)
        page = data[self.page] if place is None else place // dataset_view.PAGE_SIZE
        data = {**data, self.review.current: item.id, self.page: page}
        return {
            self.left.grid: self._grid(contents, data),
            self.top.tiles: self._tiles(contents),
            self.page: page,
            self.top.said: "",
        } | self.review.open(contents, item)

    def _saved_first(self, data: Data) -> Updates:
        """Save what is in the caption's box, as everything does that leads away from it."""
        if not self.review.edited(data):
            return {}
        contents = self._contents(data)
        return self.review.stored(contents, data) if self.review.store(contents, data) else {}

    def _reopen(self, contents: Contents, data: Data) -> Updates:
        """Show the caption as it is on disk now, unless something unsaved is in the box."""
        item = contents.by_id.get(data[self.review.current])
        if item is not None and self.review.edited(data):
            return {}
        return self.review.open(contents, item or (contents.items[0] if contents.items else None))

    def _again(self, data: Data, contents: Contents | None = None) -> Updates:
        """The tab as it is now, but for what the user typed; `contents` if they were read since anything changed."""
        # Asked before the images are read: a pass that ends in between is shown at the next tick.
        look = self._look_updates(self.studio.open(data[self.studio.project]))
        contents = contents or self._contents(data)
        current = contents.by_id.get(data[self.review.current])
        opened: Updates = {}
        if current is None:
            current = contents.items[0] if contents.items else None
            opened = self.review.open(contents, current)
        section, chosen = Section(data[self.top.section]), self.desk.selection(contents, data)
        return (
            opened
            | self._show(contents, section, chosen, data[self.page], current)
            | self.desk.show(contents, section, data)
            | look
        )

    def _show(
        self, contents: Contents, section: Section, chosen: Selection, page: int, current: Item | None
    ) -> Updates:
        project, home = contents.project, self.studio.home
        there = bool(contents.items)
        aside = rejected_images(project.rejected_dir)
        curating = section is Section.CURATE
        look = self.looks.last(project)
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
            self.imports.report: dataset_view.import_card(look.report) if look and look.report else "",
            self.seen_tag: self.tag.signature(project),
            **self._look_updates(project),
            **self.tag.show(project, contents),
        }
        if curating:
            loose = loose_images(project.dataset_dir)
            updates |= {
                self.left.groups: dataset_view.copy_groups(home, contents)
                + dataset_variety.similar_groups(home, contents),
                self.left.buckets: dataset_variety.buckets_picture(home, contents),
                self.curate.variety: dataset_variety.variety_card(contents),
                self.left.pairs: dataset_variety.alike_pairs(home, contents),
                self.left.flagged: dataset_view.flagged_list(home, contents),
                self.curate.aside: dataset_view.aside_list(home, contents, aside),
                self.curate.says: dataset_view.curate_says(contents),
                self.curate.apply: gr.Button(
                    f"Set aside all proposed ({len(contents.proposed)})", visible=bool(contents.proposed)
                ),
                self.curate.scan: gr.Button(
                    "Scan again" if contents.unseen < len(contents.items) else "Scan",
                    interactive=there and not self.looks.busy(project),
                ),
                self.curate.restore: gr.Button(visible=bool(aside)),
                self.curate.wrap: gr.Button(
                    f"Put {count_of(len(loose), 'loose image')} into {project.images_dir.name}", visible=bool(loose)
                ),
            }
        else:
            pictured = look is not None and look.pictured
            updates[self.left.grid] = dataset_view.grid(
                home, contents, chosen, page, current.id if current else "", pictured=pictured
            )
        if current is not None:
            updates |= self.review.look(contents, current)
        return updates

    def _look_updates(self, project: Project) -> Updates:
        look = self.looks.last(project)
        busy = self.looks.busy(project)
        return {
            self.top.progress: dataset_view.look_card(look),
            self.seen_look: look.stamp if look else "",
            self.ticker: gr.Timer(active=busy),
            self.curate.scan: gr.Button(interactive=not busy),
        }

    def _tiles(self, contents: Contents) -> Markup:
        return dataset_view.dataset_tiles(contents, len(rejected_images(contents.project.rejected_dir)))

    def _grid(self, contents: Contents, data: Data) -> Markup:
        look = self.looks.last(contents.project)
        return dataset_view.grid(
            self.studio.home,
            contents,
            self.desk.selection(contents, data),
            data[self.page],
            data[self.review.current],
            pictured=look is not None and look.pictured,
        )
