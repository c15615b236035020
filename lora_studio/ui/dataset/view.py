"""HTML of the Dataset tab: tiles, grid, progress and import. Its buttons send `verb:subject`, see `Pick`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.dataset.captions.extension import CAPTION_SUFFIXES
from lora_studio.dataset.curate import Rejected
from lora_studio.dataset.images.decode import MAX_ASPECT, MIN_SIDE
from lora_studio.dataset.images.sets import printable_name
from lora_studio.dataset.ingest.report import ImportReport, Refused
from lora_studio.errors import InputError
from lora_studio.plurals import format_count
from lora_studio.ui.dataset.background_scan import THUMBNAIL_PX, ScanView
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.gallery import Gallery
from lora_studio.ui.dataset.image_item import Filter, ImageItem, Selection, display_name, image_id
from lora_studio.ui.widgets.html import Tile, Tone, card, cards, empty_card, error_card, note, render, tiles
from lora_studio.ui.widgets.thumbnails import thumbnail_url
from lora_studio.workspace.project import Home, Project

PAGE_SIZE = 48  # images; divisible by all usual numbers of columns
MAX_NAMES = 12
ISSUE_LABELS = {
    "unreadable": "unreadable",
    "wrong_extension": "wrong extension",
    "too_small": f"below {MIN_SIDE} px",
    "extreme_aspect": f"longer than {MAX_ASPECT:g}:1",
    "animated": "animated",
    "alpha": "transparent",
    "deep_color": "deep colour",
    "cmyk": "CMYK",
    "blurred": "blurred",
    "dark": "dark",
    "bright": "washed out",
    "compressed": "strongly compressed",
    "border": "border",
    "bar": "bar",
}


class Pick(StrEnum):
    """Verbs of buttons in the page. The subject after the colon is an image's id, or the number of a page."""

    SHOW = "show"
    PAGE = "page"
    SET_ASIDE = "set_aside"
    KEEP = "keep"
    UNKEEP = "unkeep"
    USE_INSTEAD = "use_instead"
    RESTORE = "restore"


class FilterPick(StrEnum):
    """Verbs of the filters above the grid. The subject after the colon is a filter, or the name of a set."""

    ALL = "all"
    FILTER = "filter"
    SET = "set"


class Chip(NamedTuple):
    """A filter with the number of images that it shows."""

    pick: str
    text: str
    images: int
    chosen: bool


class Action(NamedTuple):
    """A small button that sends `pick`; `key` presses it in the group or row chosen with the arrow keys."""

    pick: str
    text: str
    title: str = ""
    key: str = ""


class Picture(NamedTuple):
    """A thumbnail with its image's name; `placeholder` is shown where there is no `url`."""

    pick: str
    name: str
    url: str = ""
    placeholder: str = ""


class Cell(NamedTuple):
    """An image of the grid. `badge` names its main issue, `detail` is the value by which the images are sorted."""

    id: str
    picture: Picture
    title: str
    caption: str
    badge: str
    reviewed: bool = False
    current: bool = False
    detail: str = ""


def dataset_tiles(contents: Contents, rejected: int, *, scanning: bool = False) -> Markup:
    """Return the tiles: images, duplicates, issues, captions, reviewed images.

    `rejected` is the number of images that were set aside. Results of a scan are shown only if it covers all images and
    no scan is running.
    """
    items, flagged = contents.items, contents.flagged
    duplicates = [item for item in items if item.path in contents.duplicates]
    duplicate_kinds = _most_common(_duplicate_kind(item.proposal) for item in duplicates)
    issues = _most_common(ISSUE_LABELS[issue.code] for item in flagged if item.info for issue in item.info.issues)
    pending = _pending_scan(contents, scanning=scanning)
    return tiles(
        [
            Tile("Images", f"{len(items):,}", _images_note(contents, rejected, pending)),
            _scan_tile("Duplicates", len(duplicates), duplicate_kinds or "no image is a duplicate", pending),
            _scan_tile("To check", len(flagged), issues or "no issues found", pending),
            Tile(
                _captioned_label(contents),
                f"{contents.captioned:,} / {len(items):,}",
                _captions_note(contents),
                _captions_tone(contents),
            ),
            Tile(
                "Reviewed",
                f"{contents.reviewed:,} / {len(items):,}",
                "captions that you have read" if contents.reviewed else "read each caption once",
                Tone.OK if items and contents.reviewed == len(items) else Tone.PLAIN,
            ),
        ]
    )


def _captioned_label(contents: Contents) -> str:
    """Return the label of the number of captions, with the extension that the project chose for them."""
    suffixes = contents.caption_suffixes
    return "Captioned" if suffixes == CAPTION_SUFFIXES else f"Captioned in {suffixes[0]}"


def _scan_tile(label: str, count: int, text: str, pending: str) -> Tile:
    """Return the tile of a scan's result; with `pending`, the reason why there is none yet."""
    if pending:
        return Tile(label, "–", pending)
    return Tile(label, f"{count:,}", text, Tone.WARNING if count else Tone.OK)


def _pending_scan(contents: Contents, *, scanning: bool) -> str:
    """Return why there is no scan result for all images; empty if there is one."""
    if scanning:
        return "a scan is running"
    unscanned = contents.images.unscanned
    if unscanned == len(contents.items):
        return "known after the scan"
    return f"{format_count(unscanned, 'image')} not scanned yet" if unscanned else ""


def _duplicate_kind(reason: str) -> str:
    """Return the kind in a scan's reason: "mirrored, resized" of "mirrored, resized duplicate of a.png"."""
    return reason.split(" of ")[0].removesuffix(" duplicate")


def _images_note(contents: Contents, rejected: int, pending: str) -> str:
    parts = [f"{rejected:,} set aside"] if rejected else []
    sizes = contents.images.sizes
    if pending:
        return ", ".join(parts) or ("sizes known after the scan" if contents.items else "none yet")
    if len(sizes) == 1:
        (width, height) = next(iter(sizes))
        parts.append(f"all {width} × {height} px")
    elif sizes:
        parts.append(f"{len(sizes):,} sizes")
    return ", ".join(parts)


def _most_common(labels: Iterable[str]) -> str:
    return "; ".join(f"{count:,} {label}" for label, count in Counter(labels).most_common(3))


def _captions_note(contents: Contents) -> str:
    if not contents.captioned:
        return "tag them, or write your own"
    if not contents.trigger:
        return "no trigger word chosen yet"
    without = contents.captions.without_trigger
    return f"{without:,} without the trigger word" if without else "trigger word first in each"


def _captions_tone(contents: Contents) -> Tone:
    if not contents.items:
        return Tone.PLAIN
    complete = contents.captioned == len(contents.items) and not contents.captions.without_trigger
    return Tone.OK if complete else Tone.WARNING


def filter_bar(gallery: Gallery, rejected: int) -> Markup:
    """Return the filters and the sets, each with the number of images that it shows with what is chosen.

    `rejected` is the number of images that were set aside. Filters that show nothing are left out.
    """
    chosen, counts = gallery.selection.filters, gallery.counts + Counter({Filter.SET_ASIDE: rejected})
    filters = [
        Chip(f"{FilterPick.FILTER}:{name}", name.value, counts[name], name in chosen)
        for name in Filter
        if counts[name] or name in chosen
    ]
    sets = gallery.sets if len(gallery.sets) > 1 else []
    return render(
        "dataset/filters.html",
        all=Chip(FilterPick.ALL, "All", len(gallery.contents.items), gallery.selection == Selection()),
        filters=filters,
        sets=[
            Chip(
                f"{FilterPick.SET}:{known.name}",
                f"{printable_name(known.name)} · {format_count(known.repeats, 'repeat')}",
                known.images,
                known.name == gallery.selection.set_name,
            )
            for known in sets
        ],
    )


def image_grid(
    home: Home,
    gallery: Gallery,
    page: int,
    current: str,
    rejected: Sequence[Rejected] = (),
    *,
    thumbnails_ready: bool,
) -> Markup:
    """Return one page of thumbnails with their captions, and buttons to the pages beside it.

    `current` is the id of the selected image; `rejected` are the images that were set aside, which their filter shows.
    Before an image is scanned its thumbnail is shown only when `thumbnails_ready`, so that the page does not wait for
    it to be made.
    """
    project = gallery.contents.project
    if Filter.SET_ASIDE in gallery.selection.filters:
        cells = [partial(_rejected_cell, home, project, entry) for entry in rejected]
    else:
        cells = [
            partial(_cell, home, item, item.id == current, gallery.detail(item), thumbnails_ready=thumbnails_ready)
            for item in gallery.matching
        ]
    if not cells:
        return empty_card("No image matches the filter", "Choose another filter to see more.")
    pages = (len(cells) - 1) // PAGE_SIZE + 1
    page = min(max(page, 0), pages - 1)
    first = page * PAGE_SIZE
    shown = cells[first : first + PAGE_SIZE]
    neighbours = [(page - 1, "Previous page"), (page + 1, "Next page")]
    return render(
        "dataset/grid.html",
        range=f"{first + 1}–{first + len(shown)} of {format_count(len(cells), 'image')}{_in_set(gallery)}",
        pager=[Action(f"{Pick.PAGE}:{number}", text) for number, text in neighbours if 0 <= number < pages],
        cells=[cell() for cell in shown],
        total=len(cells),
        project=project.name,
        aside=Filter.SET_ASIDE in gallery.selection.filters,
    )


def _in_set(gallery: Gallery) -> str:
    """Return the name and repeats of the only set; empty if there are several, which are filters."""
    if len(gallery.sets) != 1 or gallery.sets[0].name != gallery.contents.project.images_dir.name:
        return ""
    return f" · {printable_name(gallery.sets[0].name)}, {format_count(gallery.sets[0].repeats, 'repeat')}"


def _rejected_cell(home: Home, project: Project, entry: Rejected) -> Cell:
    file = project.rejected_dir / entry.files[0].name
    identity, name = image_id(project, file), display_name(entry.image)
    return Cell(identity, file_picture(home, file, "", name), f"{name}\n{entry.reason}", entry.reason, "")


def _cell(home: Home, item: ImageItem, current: bool, detail: str, *, thumbnails_ready: bool) -> Cell:
    issues = item.issues
    return Cell(
        id=item.id,
        picture=picture(home, item, thumbnails_ready=thumbnails_ready),
        title="\n".join(
            [item.name, *([item.set_name] if item.set_name else []), *(["reviewed"] if item.reviewed else []), *issues]
        ),
        caption=item.caption or "",
        badge=_badge(item) if issues else "",
        reviewed=item.reviewed,
        current=current,
        detail=detail,
    )


def _badge(item: ImageItem) -> str:
    """Return the image's main issue in a word or two."""
    if item.info and not item.info.readable:
        return ISSUE_LABELS["unreadable"]
    if item.proposal:
        return "duplicate"
    return ISSUE_LABELS[item.info.issues[0].code] if item.info and item.info.issues else ""


def picture(home: Home, item: ImageItem, *, thumbnails_ready: bool = True) -> Picture:
    """Return an image's thumbnail, whose button opens it in Review; a placeholder if there is none."""
    pick = f"{Pick.SHOW}:{item.id}"
    if item.info is None and not thumbnails_ready:
        return Picture(pick, item.name, placeholder="loading")
    return file_picture(home, item.path, pick, item.name, item.info.sha256 if item.info else None)


def file_picture(home: Home, path: Path, pick: str, name: str, sha256: str | None = None) -> Picture:
    """Return the thumbnail of an image file."""
    try:
        return Picture(pick, name, thumbnail_url(home, path, THUMBNAIL_PX, sha256=sha256 or None))
    except (InputError, OSError):
        return Picture(pick, name, placeholder="cannot be shown")


def scan_card(scan: ScanView) -> Markup:
    """Return the progress of an import or scan, or why it failed; empty if there is neither."""
    if scan.error:
        return error_card(scan.error)
    return progress_card(scan.phase, scan.done, scan.total) if scan.running else Markup("")


def progress_card(title: str, done: int, total: int, text: str = "") -> Markup:
    """Return a card with a progress bar."""
    return render(
        "dataset/progress.html",
        title=title,
        count=f"{done:,} of {total:,}" if total else "",
        percent=100 * done / total if total else 0.0,
        text=text,
    )


def import_card(report: ImportReport) -> Markup:
    """Return what an import added, skipped and refused, with the reasons."""
    counts = [f"{format_count(len(report.added), 'image')} added"]
    if report.captions:
        counts.append(f"{format_count(report.captions, 'caption')} kept")
    if report.skipped:
        counts.append(f"{len(report.skipped)} already imported")
    if report.refused:
        counts.append(f"{len(report.refused)} refused")
    tone = Tone.WARNING if report.refused or not report.added else Tone.OK
    step = "Next: set duplicates aside in Curate, then Tag." if report.added else ""
    parts = [card("Imported" if report.added else "Nothing new", f"{', '.join(counts)}.", step, tone)]
    parts += [note(text) for text in report.notes]
    parts += _refusals(report.refused)
    if report.skipped:
        lines = [f"{item.name}: {item.reason}" for item in report.skipped]
        parts.append(card("Already imported", "\n".join(shortened(lines))))
    return cards(parts)


def _refusals(refused: Sequence[Refused]) -> list[Markup]:
    """Return a card for each remedy, with the files that it is for."""
    by_remedy: dict[str, list[str]] = {}
    for item in refused:
        by_remedy.setdefault(item.remedy, []).append(item.message)
    return [
        note(messages[0], remedy, Tone.WARNING)
        if len(messages) == 1
        else card(f"{len(messages):,} files were refused", "\n".join(shortened(messages)), remedy, Tone.WARNING)
        for remedy, messages in by_remedy.items()
    ]


def shortened(lines: Sequence[str]) -> list[str]:
    """Return the first MAX_NAMES lines, and how many more there are."""
    more = [f"and {len(lines) - MAX_NAMES} more"] if len(lines) > MAX_NAMES else []
    return [*lines[:MAX_NAMES], *more]
