"""A dataset as tiles, grid, groups of copies and cards. Buttons in it send `verb:id`, see `Pick`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

from markupsafe import Markup

from lora_studio.dataset.curate import Proposal, Rejected
from lora_studio.dataset.duplicates.find import DuplicateGroup
from lora_studio.dataset.images.decode import MAX_ASPECT, MIN_SIDE
from lora_studio.dataset.images.sets import loose_images
from lora_studio.dataset.ingest.importers import ImportReport
from lora_studio.errors import InputError
from lora_studio.guide import WORKFLOW
from lora_studio.ui.dataset.background_scan import THUMBNAIL_PX, ScanTask
from lora_studio.ui.dataset.contents import Contents, ImageItem, Selection, display_name, image_id
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.ui.widgets.html import Tile, Tone, card, cards, empty_card, error_card, heading, note, tiles
from lora_studio.ui.widgets.thumbnails import picture_url
from lora_studio.workspace.project import Home

PAGE_SIZE = 48  # divisible by all usual numbers of columns
GROUPS_SHOWN = 12
ROWS_SHOWN = 12  # of what to look at; the rest follows
NAMES_SHOWN = 12
ISSUE_LABELS = {
    "unreadable": "unreadable",
    "wrong_extension": "misnamed",
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
    "border": "bordered",
    "bar": "with a bar",
}


class Pick(StrEnum):
    """What a button in the page asks for; what follows the colon is an image's id, or a page's number."""

    SHOW = "show"
    PAGE = "page"
    SET_ASIDE = "set_aside"
    KEEP = "keep"
    UNKEEP = "unkeep"
    USE_INSTEAD = "use_instead"
    RESTORE = "restore"


def action(pick: Pick, subject: str, text: str, title: str = "", *, key: str = "") -> Markup:
    """A small button inside `pickable`; `key` presses it in the group or row that the arrow keys chose."""
    return Markup('<button type="button" class="act" data-pick="{}:{}" title="{}" data-key="{}">{}</button>').format(
        pick.value, subject, title, key, text
    )


def dataset_tiles(contents: Contents, aside: int) -> Markup:
    """Images, copies, what to look at, captions, reviews."""
    items, flagged = contents.items, contents.flagged
    copies = [contents.by_path[path] for path in contents.duplicates]
    scanned = len(items) - contents.unscanned
    return tiles(
        [
            Tile("Images", f"{len(items):,}", _images_note(contents, aside)),
            Tile(
                "Copies",
                f"{len(copies):,}" if scanned else "–",
                _counted(item.proposal.split(" of ")[0].removesuffix(" copy") for item in copies)
                or ("no image is there twice" if scanned else "known after the scan"),
                Tone.WARNING if copies else Tone.OK if scanned else Tone.PLAIN,
            ),
            Tile(
                "To look at",
                f"{len(flagged):,}" if scanned else "–",
                _counted(ISSUE_LABELS[issue.code] for item in flagged if item.info for issue in item.info.issues)
                or ("no flaws were found" if scanned else "known after the scan"),
                Tone.WARNING if flagged else Tone.OK if scanned else Tone.PLAIN,
            ),
            Tile(
                "Captioned",
                f"{len(contents.captioned):,} / {len(items):,}",
                _captions_note(contents),
                _captions_tone(contents),
            ),
            Tile(
                "Reviewed",
                f"{contents.reviewed:,} / {len(items):,}",
                "captions that you read" if contents.reviewed else "read each caption once",
                Tone.OK if items and contents.reviewed == len(items) else Tone.PLAIN,
            ),
        ]
    )


def _images_note(contents: Contents, aside: int) -> str:
    sizes = contents.sizes
    parts = [f"{aside:,} set aside"] if aside else []
    if len(sizes) == 1:
        (width, height) = next(iter(sizes))
        parts.append(f"all {width} × {height} px")
    elif sizes:
        parts.append(f"{len(sizes):,} sizes")
    return ", ".join(parts) or ("not scanned yet" if contents.items else "none yet")


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{count:,} {word}" for word, count in Counter(words).most_common(3))


def _captions_note(contents: Contents) -> str:
    if not contents.captioned:
        return "tag them, or write your own"
    if not contents.trigger:
        return "no trigger word selection yet"
    without = contents.without_trigger
    return f"{without:,} without the trigger word" if without else "trigger word first in each"


def _captions_tone(contents: Contents) -> Tone:
    if not contents.items:
        return Tone.PLAIN
    done = len(contents.captioned) == len(contents.items) and not contents.without_trigger
    return Tone.OK if done else Tone.WARNING


def image_grid(
    home: Home, contents: Contents, selection: Selection, page: int, current: str, *, thumbnails_ready: bool
) -> Markup:
    """One page of thumbnails with their captions, and the way to the other pages.

    `thumbnails_ready`: small pictures of images that were not scanned yet may be asked for, as they are made already.
    """
    items = contents.matching(selection)
    if not items:
        return empty_card("No image is like that", "Choose another filter to see the rest.")
    pages = (len(items) - 1) // PAGE_SIZE + 1
    page = min(max(page, 0), pages - 1)
    first = page * PAGE_SIZE
    shown = items[first : first + PAGE_SIZE]
    cells = Markup("").join(_cell(home, item, item.id == current, thumbnails_ready=thumbnails_ready) for item in shown)
    head = f"{first + 1}–{first + len(shown)} of {format_count(len(items), 'image')}"
    return Markup('{}<div class="shots">{}</div>').format(_pager(head, page, pages), cells)


def _pager(head: str, page: int, pages: int) -> Markup:
    buttons = []
    if page > 0:
        buttons.append(action(Pick.PAGE, str(page - 1), "Previous page"))
    if page < pages - 1:
        buttons.append(action(Pick.PAGE, str(page + 1), "Next page"))
    return Markup('<div class="pager"><span class="hint">{}</span>{}</div>').format(head, Markup("").join(buttons))


def _cell(home: Home, item: ImageItem, current: bool, *, thumbnails_ready: bool) -> Markup:
    issues = item.issues
    marks = Markup('<span class="mark">{}</span>').format(_mark(item)) if issues else Markup("")
    if item.reviewed:
        marks += Markup('<span class="tick" aria-hidden="true">✓</span>')
    return Markup(
        '<button type="button" class="shot" data-pick="{}:{}" aria-pressed="{}" title="{}">{}{}'
        '<span class="line{}">{}</span></button>'
    ).format(
        Pick.SHOW.value,
        item.id,
        str(current).lower(),
        "\n".join([item.name, *(["reviewed"] if item.reviewed else []), *issues]),
        thumbnail(home, item, thumbnails_ready=thumbnails_ready),
        marks,
        "" if item.caption else " missing",
        item.caption or "no caption",
    )


def _mark(item: ImageItem) -> str:
    """What is most to look at, in a word or two."""
    if item.info and not item.info.readable:
        return ISSUE_LABELS["unreadable"]
    if item.proposal:
        return "copy"
    return ISSUE_LABELS[item.info.issues[0].code] if item.info and item.info.issues else ""


def thumbnail(home: Home, item: ImageItem, *, thumbnails_ready: bool = True) -> Markup:
    """An image's small picture; a place for it while there is none."""
    if item.info is None and not thumbnails_ready:
        return Markup('<span class="thumb none">being read</span>')
    return _thumbnail(home, item.path, item.name, item.info.sha256 if item.info else None)


def _thumbnail(home: Home, path: Path, name: str, sha256: str | None = None) -> Markup:
    try:
        url = picture_url(home, path, THUMBNAIL_PX, sha256=sha256 or None)
    except (InputError, OSError):
        return Markup('<span class="thumb none">cannot be shown</span>')
    return Markup('<img class="thumb" src="{}" alt="{}" loading="lazy">').format(url, name)


def duplicate_groups(home: Home, contents: Contents) -> Markup:
    """Each group of copies side by side, the one to keep first."""
    if not contents.groups:
        return Markup("")
    shown = contents.groups[:GROUPS_SHOWN]
    return Markup("{}{}{}").format(
        heading(
            "Copies",
            "The largest of a group is proposed to be kept, then the sharpest. Copies teach one picture twice.",
        ),
        Markup('<div class="groups">{}</div>').format(
            Markup("").join(_group(home, contents, group) for group in shown)
        ),
        _and_more(len(contents.groups) - len(shown), "group"),
    )


def _group(home: Home, contents: Contents, group: DuplicateGroup) -> Markup:
    keeper = contents.by_path[group.keep]
    copies = [contents.by_path[path] for path in group.reject]
    kept = Markup('<strong class="kept">Keep</strong>: {}').format(_why_keep(keeper, copies))
    members = [group_member(home, keeper, kept, Markup(""))]
    for item, reason in zip(copies, group.reasons, strict=True):
        buttons = Markup("").join(
            [
                action(
                    Pick.SET_ASIDE, item.id, "Set aside", "Moved out of the dataset; it can be put back.", key="Delete"
                ),
                action(
                    Pick.USE_INSTEAD, item.id, "Use instead", f"Keep this one and set {keeper.name} aside.", key="u"
                ),
                action(Pick.KEEP, item.id, "Keep both", "It stays, and is not proposed again.", key="k"),
            ]
        )
        members.append(group_member(home, item, Markup("{}").format(reason.capitalize()), buttons))
    return Markup('<div class="group" role="group" aria-label="{}">{}</div>').format(
        f"{keeper.name} and {_copies(len(copies))}", Markup("").join(members)
    )


def group_member(home: Home, item: ImageItem, facts: Markup, buttons: Markup) -> Markup:
    """An image of a group with what there is to say and to do."""
    return Markup(
        '<div class="member"><button type="button" class="shot" data-pick="{}:{}" title="{}">{}'
        '<span class="line">{}</span></button><p class="hint">{}<br>{}</p><div class="acts">{}</div></div>'
    ).format(
        Pick.SHOW.value, item.id, f"Open {item.name}", thumbnail(home, item), item.name, facts, _size(item), buttons
    )


def _copies(number: int) -> str:
    return "1 copy" if number == 1 else f"{number:,} copies"


def _why_keep(keeper: ImageItem, copies: Sequence[ImageItem]) -> str:
    if all(_pixels(item) < _pixels(keeper) for item in copies):
        return "the largest"
    if keeper.caption and not any(item.caption for item in copies):
        return "as large, and it has the caption"
    return "as large, and as sharp or sharper"


def _pixels(item: ImageItem) -> int:
    return item.info.width * item.info.height if item.info else 0


def _size(item: ImageItem) -> str:
    return f"{item.info.width} × {item.info.height} px" if item.info and item.info.readable else ""


def flagged_list(home: Home, contents: Contents) -> Markup:
    """Images with something else to look at, each with its plain reason."""
    flagged = contents.flagged
    if not flagged:
        return Markup("")
    rows = Markup("").join(
        _row(
            thumbnail(home, item),
            item.name,
            " ".join(item.issues),
            [
                action(
                    Pick.SET_ASIDE, item.id, "Set aside", "Moved out of the dataset; it can be put back.", key="Delete"
                ),
                action(Pick.KEEP, item.id, "Keep", "It is fine as it is; it is not listed again.", key="k"),
                action(Pick.SHOW, item.id, "Open", "See it large in Review."),
            ],
        )
        for item in flagged[:ROWS_SHOWN]
    )
    return Markup('{}<div class="entries">{}</div>{}').format(
        heading("To look at", "Nothing here stops you: the guide would have a second task."),
        rows,
        _and_more(len(flagged) - ROWS_SHOWN, "image"),
    )


def _and_more(rest: int, word: str) -> Markup:
    if rest <= 0:
        return Markup("")
    return Markup('<p class="hint">{} more; they follow when some of these are settled.</p>').format(
        format_count(rest, word)
    )


def aside_list(home: Home, contents: Contents, rejected: Sequence[Rejected]) -> Markup:
    """What was set aside, with the way back, and what was marked to be kept."""
    parts = []
    if rejected:
        folder = contents.project.rejected_dir
        rows = [
            _row(
                _thumbnail(home, folder / entry.files[0].name, display_name(entry.image)),
                display_name(entry.image),
                entry.reason.capitalize(),
                [action(Pick.RESTORE, image_id(contents.project, folder / entry.files[0].name), "Put back")],
            )
            for entry in rejected[:ROWS_SHOWN]
        ]
        parts.append(
            Markup('{}<div class="entries">{}</div>').format(
                heading(f"Set aside ({len(rejected)})", "Out of the dataset, never deleted. Latest first."),
                Markup("").join(rows),
            )
            + _and_more(len(rejected) - len(rows), "image")
        )
    kept = [item for item in contents.items if item.kept]
    if kept:
        rows = [
            _row(thumbnail(home, item), item.name, "", [action(Pick.UNKEEP, item.id, "Look again")])
            for item in kept[:PAGE_SIZE]
        ]
        parts.append(
            Markup('{}<div class="entries">{}</div>').format(
                heading(f"Kept all the same ({len(kept)})", "You decided to keep these whatever the scan says."),
                Markup("").join(rows),
            )
        )
    return Markup("").join(parts)


def _row(picture: Markup, name: str, text: str, buttons: Sequence[Markup]) -> Markup:
    return Markup(
        '<div class="entry">{}<div class="words"><strong>{}</strong><p class="hint">{}</p></div>'
        '<div class="acts">{}</div></div>'
    ).format(picture, name, text, Markup("").join(buttons))


def set_aside_card(names: Sequence[str], ids: Sequence[str]) -> Markup:
    """What was just set aside, with the way back."""
    one = len(names) == 1
    return Markup('<div class="card said" role="status"><p>{} set aside.</p>{}</div>').format(
        f"{names[0]} is" if one else f"{format_count(len(names), 'image')} are",
        action(Pick.RESTORE, ",".join(ids), "Put it back" if one else "Put them back", key="z"),
    )


def restored_card(back: Sequence[Path], kept: Sequence[Proposal]) -> Markup:
    """What was just put back, and what could not be."""
    said = []
    if back:
        one = len(back) == 1
        said.append(note(f"{display_name(back[0])} is back." if one else f"{len(back)} images are back."))
    if kept:
        lines = "\n".join(f"{display_name(item.path)}: {item.reason}." for item in kept)
        said.append(card("Not put back", lines, "Rename the file in its place first.", Tone.WARNING))
    return cards(said)


def curation_status(contents: Contents) -> Markup:
    """Where curation stands, in cards."""
    loose = loose_images(contents.project.dataset_dir)
    said = [
        card(
            f"{format_count(len(loose), 'image')} in no set",
            "Trainers read only the folders named like 10_name: what lies beside them is not trained on.",
            tone=Tone.WARNING,
        )
    ]
    return cards([*(said if loose else []), _stands(contents)])


def _stands(contents: Contents) -> Markup:
    if not contents.items:
        return empty_card("Copies and flaws will stand here", "Import images first; they are scanned as they come in.")
    if contents.unscanned == len(contents.items):
        return card("Not scanned yet", "Scan finds copies and flaws; it changes nothing.")
    words = [_copies(len(contents.duplicates))] if contents.duplicates else []
    unreadable = len(contents.proposed) - len(contents.duplicates)
    words += [f"{unreadable} unreadable"] if unreadable else []
    if words:
        return card(
            f"{format_count(len(contents.proposed), 'image')} to set aside",
            f"The scan proposes {' and '.join(words)}. Nothing is deleted: all can be put back.",
            tone=Tone.WARNING,
        )
    if contents.flagged:
        return card(
            "No copies left", f"{format_count(len(contents.flagged), 'image')} to look at below.", tone=Tone.WARNING
        )
    return card("Nothing to set aside", WORKFLOW["dataset"].thought, tone=Tone.OK)


def scan_card(task: ScanTask | None) -> Markup:
    """How far importing and scanning are, or why they failed."""
    if task is None or not (task.running or task.error):
        return Markup("")
    if task.error:
        return error_card(task.error)
    return progress_card(task.phase, task.done, task.total)


def progress_card(title: str, done: int, total: int, text: str = "") -> Markup:
    """Work at hand with a bar."""
    share = done / total if total else 0.0
    figures = f"{done:,} of {total:,}" if total else ""
    return Markup(
        '<div class="card progress" role="status"><h3>{} <span class="hint">{}</span></h3>'
        '<div class="bar"><div style="width: {:.1f}%"></div></div>{}</div>'
    ).format(title, figures, 100 * share, Markup("<p>{}</p>").format(text) if text else "")


def import_card(report: ImportReport) -> Markup:
    """What an import added, left out and refused, with the reasons."""
    counts = [f"{format_count(len(report.added), 'image')} added"]
    if report.captions:
        counts.append(f"{format_count(report.captions, 'caption')} kept")
    if report.skipped:
        counts.append(f"{len(report.skipped)} there already")
    if report.refused:
        counts.append(f"{len(report.refused)} refused")
    tone = Tone.WARNING if report.refused or not report.added else Tone.OK
    step = "Next: set copies aside in Curate, then Tag." if report.added else ""
    said = [card("Imported" if report.added else "Nothing new", f"{', '.join(counts)}.", step, tone)]
    said += [note(text) for text in report.notes]
    said += [note(item.message, item.remedy, Tone.WARNING) for item in report.refused[:NAMES_SHOWN]]
    said += _left_out([f"{item.name}: {item.reason}" for item in report.skipped], "There already")
    if len(report.refused) > NAMES_SHOWN:
        said.append(note(f"{len(report.refused) - NAMES_SHOWN} more were refused for such reasons."))
    return cards(said)


def _left_out(lines: Sequence[str], title: str) -> list[Markup]:
    if not lines:
        return []
    more = [f"and {len(lines) - NAMES_SHOWN} more"] if len(lines) > NAMES_SHOWN else []
    return [card(title, "\n".join([*lines[:NAMES_SHOWN], *more]))]
