"""What the Dataset tab shows: as the page has it when an event happens, and as it shall be next.

Handlers take a `DatasetState` and return another; `DatasetRenderer` turns that into updates of components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from lora_studio.dataset.captions.edits import EditPlan
from lora_studio.dataset.curate import Rejected, rejected_images
from lora_studio.errors import InputError, StudioError
from lora_studio.settings.choices import ExistingCaptions
from lora_studio.ui.dataset.background_scan import ScanView
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.gallery import Gallery, latest_image_losses, similarities_of
from lora_studio.ui.dataset.image_item import Filter, ImageItem, Selection, Sort
from lora_studio.ui.dataset.view import PAGE_SIZE
from lora_studio.workspace.project import Home, Project

MAX_PRESSES = 1000  # of one request


class Section(StrEnum):
    """Sections of the tab, in the order of the workflow."""

    IMPORT = "Import"
    CURATE = "Curate"
    TAG = "Tag"
    CAPTIONS = "Captions"
    REVIEW = "Review"
    STATISTICS = "Statistics"


@dataclass(frozen=True)
class Draft:
    """The caption in the text box of Review.

    The browser keeps its text, the id of its image, and `original`: that id with the caption before the edit. So a late
    save reaches the image that it was typed for, and does not overwrite a caption that changed on disk meanwhile.
    """

    image: str = ""
    text: str = ""
    original: str = ""

    @classmethod
    def of(cls, item: ImageItem | None) -> Self:
        """Return an image's caption, not edited yet; an empty draft without an image."""
        return cls(item.id, item.caption or "", original_of(item.id, item.caption)) if item else cls()

    @property
    def is_edited(self) -> bool:
        """True if the text differs from the caption before the edit."""
        return bool(self.image) and original_of(self.image, self.text) != self.original

    @property
    def caption_before(self) -> str:
        """The caption before the edit."""
        return self.original.partition(":")[2]


@dataclass(frozen=True)
class Filters:
    """The filters and the order of the grid; `finding` is the key of a finding of the caption checks."""

    chosen: frozenset[Filter] = frozenset()
    tag: str = ""
    without_tag: bool = False
    finding: str = ""
    set_name: str = ""
    sort: Sort = Sort.NAME


@dataclass(frozen=True)
class Place:
    """Where the user is in the tab: what the page keeps between events. Pages count from 0.

    `is_viewing`: the image in Review is shown large.
    """

    section: Section = Section.IMPORT
    filters: Filters = Filters()
    grid_page: int = 0
    statistics_page: int = 0
    draft: Draft = Draft()
    is_viewing: bool = False


@dataclass(frozen=True)
class Message:
    """What the last action did; `undo` is the request of its button and of the key Z, see `Pick`."""

    html: str = ""
    undo: str = ""


@dataclass(frozen=True)
class TagDefaults:
    """New content of fields of the Tag form; None leaves a field to the user."""

    trigger: str
    tagger: str | None = None
    existing: ExistingCaptions | None = None


@dataclass(frozen=True)
class BulkPreview:
    """The preview of a bulk edit; without a plan, there is none."""

    plan: EditPlan | None = None


class TagForm(NamedTuple):
    """The content of the Tag form, in the order of `TagPanel.fields`."""

    tagger: str | None
    also: list[str] | None
    trigger: str | None
    threshold: float
    character_threshold: float
    existing: str
    exclude: str | None
    only: str | None
    prompt: str | None
    max_caption_tokens: float


class BulkForm(NamedTuple):
    """The content of the bulk edit's form, in the order of `CaptionsPanel.fields`; `previewed` is a plan's digest."""

    action: str
    first: str | None
    second: str | None
    position: str
    scope: str
    previewed: str


class Part(Enum):
    """How much of the tab is rendered."""

    ALL = auto()
    SCAN = auto()
    TAGGING = auto()


@dataclass(frozen=True)
class DatasetFiles:
    """A project's dataset on disk, read when first used."""

    project: Project
    home: Home
    loaded: Contents | None = None

    @cached_property
    def contents(self) -> Contents:
        """The dataset as it is on disk, or was after the last change."""
        return self.loaded or Contents.of(self.project)

    @cached_property
    def rejected(self) -> list[Rejected]:
        """The images that were set aside."""
        return rejected_images(self.project.rejected_dir)

    def after_change(self, images: Iterable[Path] = ()) -> Self:
        """Return the dataset after the studio changed marks, or these images or their captions."""
        return type(self)(self.project, self.home, self.contents.after_change(images))


@dataclass(frozen=True)
class DatasetState:
    """What the tab shows.

    `shown` is the place as the page has it: only what differs from it is set again, so that nothing that the user types
    meanwhile is lost; None sets everything. `scan` was taken before the contents were read: a scan that ends meanwhile
    is shown by the next tick. `shown_scan` and `shown_tagging` are the keys of what the page has of them. Where a field
    is None, its part of the page stays as it is.
    """

    files: DatasetFiles
    place: Place
    scan: ScanView
    shown: Place | None = None
    shown_scan: str = ""
    shown_tagging: str = ""
    part: Part = Part.ALL
    message: Message | None = None
    saved: str | None = None
    tag_form: TagDefaults | None = None
    preview: BulkPreview | None = None
    error: StudioError | None = None
    is_import_started: bool = False
    is_job_started: bool = False

    @property
    def project(self) -> Project:
        """The selected project."""
        return self.files.project

    @property
    def contents(self) -> Contents:
        """The images of the project."""
        return self.files.contents

    @property
    def current(self) -> ImageItem | None:
        """The image in Review; None without images."""
        return self.contents.by_id.get(self.place.draft.image)

    @property
    def selection(self) -> Selection:
        """The filters of the grid. A finding that was fixed meanwhile filters nothing."""
        filters = self.place.filters
        key, findings = filters.finding, self.contents.captions.findings if filters.finding else []
        found = next((frozenset(finding.images) for finding in findings if finding.key == key), None)
        tag = " ".join(filters.tag.split())
        return Selection(filters.chosen, tag, filters.without_tag, found, filters.set_name)

    @cached_property
    def gallery(self) -> Gallery:
        """The images of the grid."""
        home, contents = self.files.home, self.contents
        return Gallery(
            contents,
            self.selection,
            self.place.filters.sort,
            latest_image_losses(self.project),
            lambda: similarities_of(home, contents),
        )

    def at_section(self, section: Section) -> Self:
        """Return this state in another section."""
        return replace(self, place=replace(self.place, section=section))

    def at_grid_page(self, page: int) -> Self:
        """Return this state with another page of the grid."""
        return replace(self, place=replace(self.place, grid_page=page))

    def at_statistics_page(self, page: int) -> Self:
        """Return this state with another page of the tag table."""
        return replace(self, place=replace(self.place, statistics_page=page))

    def viewing(self, is_viewing: bool) -> Self:
        """Return this state with the large view opened or closed."""
        return replace(self, place=replace(self.place, is_viewing=is_viewing))

    def with_draft(self, draft: Draft) -> Self:
        """Return this state with another caption in the text box."""
        return replace(self, place=replace(self.place, draft=draft))

    def with_filters(self, filters: Filters) -> Self:
        """Return this state with other filters and the first page of the grid."""
        return replace(self, place=replace(self.place, filters=filters, grid_page=0))

    def with_image(self, item: ImageItem | None) -> Self:
        """Return this state with an image and its caption in Review, and the grid's page that has it."""
        matching = self.gallery.matching
        position = next((index for index, other in enumerate(matching) if item and other.id == item.id), None)
        page = self.place.grid_page if position is None else position // PAGE_SIZE
        return replace(self.with_draft(Draft.of(item)).at_grid_page(page), message=Message(), saved="")

    def with_existing_image(self) -> Self:
        """Return this state with the first image in Review if the one there no longer exists."""
        items = self.contents.items
        return self if self.current else self.with_draft(Draft.of(items[0] if items else None))

    def after_change(self, images: Iterable[Path] = ()) -> Self:
        """Return this state after the studio changed marks, or these images or their captions."""
        return replace(self, files=self.files.after_change(images))


def after_presses(
    state: DatasetState, presses: object, press: Callable[[DatasetState, str], DatasetState]
) -> DatasetState:
    """Return the state after `press(state, key)` for each of the keys that a page's script sent, in order.

    An error ends them, as the keys after it were meant for a page without the error. Raises InputError if `presses` are
    not texts.
    """
    if not isinstance(presses, list) or len(presses) > MAX_PRESSES or not all(isinstance(key, str) for key in presses):
        raise InputError("Unknown keys.", "Reload the page.", code="pick")
    for key in presses:
        try:
            state = press(state, key)
        except StudioError as error:
            return replace(state, error=error)
    return state


def one_line(caption: str | None) -> str:
    """Return a caption as it is written to its file: without line breaks and repeated spaces."""
    return " ".join((caption or "").split())


def original_of(identity: str, caption: str | None) -> str:
    """Return the caption before an edit together with its image's id, as the browser keeps it."""
    return f"{identity}:{one_line(caption)}"
