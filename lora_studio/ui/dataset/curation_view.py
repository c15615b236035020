"""HTML of Curate: groups of duplicates, images to check, images that were set aside, and cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.dataset.curate import Proposal, Rejected
from lora_studio.dataset.duplicates.find import DuplicateGroup
from lora_studio.dataset.marks import damaged_marks
from lora_studio.guide import WORKFLOW
from lora_studio.plurals import format_count
from lora_studio.ui.dataset.contents import Contents
from lora_studio.ui.dataset.image_item import ImageItem, display_name, image_id
from lora_studio.ui.dataset.view import Action, Pick, Picture, file_picture, picture
from lora_studio.ui.widgets.html import Tone, card, cards, empty_card, note, render
from lora_studio.workspace.project import Home

MAX_GROUPS = 12
MAX_ENTRIES = 12
MAX_KEPT = 48
SET_ASIDE_HINT = "Moves it out of the dataset; it can be restored."


class Entry(NamedTuple):
    """A row with an image, a text and buttons."""

    picture: Picture
    text: str
    buttons: Sequence[Action]


class Member(NamedTuple):
    """An image of a group."""

    picture: Picture
    text: str
    size: str
    buttons: Sequence[Action] = ()
    keeper: bool = False


class Group(NamedTuple):
    """Images shown side by side."""

    label: str
    members: Sequence[Member]
    similar: bool = False


def set_aside_action(item: ImageItem) -> Action:
    """Return the button that sets an image aside."""
    return Action(f"{Pick.SET_ASIDE}:{item.id}", "Set aside", SET_ASIDE_HINT, key="Delete")


def duplicate_actions(item: ImageItem, keeper: ImageItem) -> list[Action]:
    """Return the buttons of a duplicate in its group."""
    return [
        set_aside_action(item),
        Action(
            f"{Pick.USE_INSTEAD}:{item.id}", "Use instead", f"Keeps this image and sets {keeper.name} aside.", key="u"
        ),
        Action(f"{Pick.KEEP}:{item.id}", "Keep both", "Keeps it, and does not propose it again.", key="k"),
    ]


def flag_actions(item: ImageItem) -> list[Action]:
    """Return the buttons of an image to check."""
    return [
        set_aside_action(item),
        Action(f"{Pick.KEEP}:{item.id}", "Keep", "It is fine; it is not listed again.", key="k"),
        Action(f"{Pick.SHOW}:{item.id}", "Open", "Opens it in Review."),
    ]


def duplicate_groups(home: Home, contents: Contents) -> Markup:
    """Return the groups of duplicates, each with the image to keep first; empty if there are none."""
    if not contents.groups:
        return Markup("")
    shown = contents.groups[:MAX_GROUPS]
    return render(
        "dataset/groups.html",
        title="Duplicates",
        hint="The largest of each group, then the sharpest, is proposed to be kept. Duplicates are learned twice.",
        groups=[_group(home, contents, group) for group in shown],
        more=more_text(len(contents.groups) - len(shown), "group"),
    )


def _group(home: Home, contents: Contents, group: DuplicateGroup) -> Group:
    keeper = contents.by_path[group.keep]
    duplicates = [contents.by_path[path] for path in group.reject]
    members = [Member(picture(home, keeper), _why_keep(keeper, duplicates), image_size(keeper), keeper=True)]
    for item, reason in zip(duplicates, group.reasons, strict=True):
        buttons = duplicate_actions(item, keeper)
        members.append(Member(picture(home, item), reason.capitalize(), image_size(item), buttons))
    return Group(f"{keeper.name} and {format_count(len(duplicates), 'duplicate')}", members)


def _why_keep(keeper: ImageItem, duplicates: Sequence[ImageItem]) -> str:
    if all(_pixels(item) < _pixels(keeper) for item in duplicates):
        return "the largest"
    if keeper.caption and not any(item.caption for item in duplicates):
        return "same size, and it has the caption"
    return "same size, and at least as sharp"


def _pixels(item: ImageItem) -> int:
    return item.info.width * item.info.height if item.info else 0


def image_size(item: ImageItem) -> str:
    """Return an image's width and height as text; empty before the scan and for unreadable images."""
    return f"{item.info.width} × {item.info.height} px" if item.info and item.info.readable else ""


def flagged_list(home: Home, contents: Contents) -> Markup:
    """Return the images with issues other than being a duplicate; empty if there are none."""
    flagged = contents.flagged
    if not flagged:
        return Markup("")
    entries = [Entry(picture(home, item), " ".join(item.issues), flag_actions(item)) for item in flagged[:MAX_ENTRIES]]
    return render(
        "dataset/entries.html",
        title="To check",
        hint="These are suggestions; you can train anyway.",
        entries=entries,
        more=more_text(len(flagged) - len(entries), "image"),
    )


def more_text(rest: int, noun: str) -> str:
    """Return a line about entries that are not shown yet; empty if there are none."""
    return f"{format_count(rest, f'more {noun}')}; shown once some of these are handled." if rest > 0 else ""


def set_aside_list(home: Home, contents: Contents, rejected: Sequence[Rejected]) -> Markup:
    """Return the images that were set aside, with buttons to restore them, and those marked to be kept."""
    parts = []
    if rejected:
        entries = [_rejected_entry(home, contents, entry) for entry in rejected[:MAX_ENTRIES]]
        parts.append(
            render(
                "dataset/entries.html",
                title=f"Set aside ({len(rejected)})",
                hint="Out of the dataset, never deleted. Most recent first.",
                entries=entries,
                more=more_text(len(rejected) - len(entries), "image"),
            )
        )
    kept = [item for item in contents.items if item.kept]
    if kept:
        parts.append(
            render(
                "dataset/entries.html",
                title=f"Marked as kept ({len(kept)})",
                hint="You decided to keep these whatever the scan finds.",
                entries=[
                    Entry(picture(home, item), "", [Action(f"{Pick.UNKEEP}:{item.id}", "Check again")])
                    for item in kept[:MAX_KEPT]
                ],
                more="",
            )
        )
    return Markup("").join(parts)


def _rejected_entry(home: Home, contents: Contents, entry: Rejected) -> Entry:
    file = contents.project.rejected_dir / entry.files[0].name
    return Entry(
        file_picture(home, file, "", display_name(entry.image)),
        entry.reason.capitalize(),
        [Action(f"{Pick.RESTORE}:{image_id(contents.project, file)}", "Restore")],
    )


def kept_card(count: int, undo: str) -> Markup:
    """Return a card about images that were just marked as kept, with a button that sends the request `undo`."""
    text = f"{format_count(count, 'image')} marked as kept: the scan does not list them again."
    return render("dataset/message.html", text=text, button=Action(undo, "Undo", key="z"))


def set_aside_card(names: Sequence[str], undo: str) -> Markup:
    """Return a card about images that were just set aside, with a button that sends the request `undo`."""
    text = f"{names[0]} was set aside." if len(names) == 1 else f"{format_count(len(names), 'image')} were set aside."
    return render("dataset/message.html", text=text, button=Action(undo, "Restore", key="z"))


def restored_card(restored: Sequence[Path], kept: Sequence[Proposal]) -> Markup:
    """Return cards about images that were restored, and about those that could not be."""
    parts = []
    if restored:
        one = len(restored) == 1
        parts.append(
            note(f"{display_name(restored[0])} was restored." if one else f"{len(restored)} images were restored.")
        )
    if kept:
        lines = "\n".join(f"{display_name(item.path)}: {item.reason}." for item in kept)
        parts.append(card("Not restored", lines, "Rename the file in its place first.", Tone.WARNING))
    return cards(parts)


def curation_status(contents: Contents, *, scanning: bool = False) -> Markup:
    """Return cards about damaged marks, images that are in no set, and what the scan proposes."""
    warnings = []
    if damaged := damaged_marks(contents.project.path):
        names = ", ".join(file.name for file in damaged)
        warnings.append(
            card(
                "Marks cannot be read",
                f"Damaged: {names}. Images marked as reviewed or kept there are unmarked.",
                "Mark them again, then delete the damaged file from the project folder.",
                Tone.WARNING,
            )
        )
    if loose := contents.images.trained.outside_sets:
        warnings.append(
            card(
                f"{format_count(len(loose), 'image')} in no set",
                "Trainers read only folders named like 10_name: images outside of them are not trained on.",
                tone=Tone.WARNING,
            )
        )
    return cards([*warnings, _proposal_card(contents, scanning=scanning)])


def _proposal_card(contents: Contents, *, scanning: bool) -> Markup:
    if not contents.items:
        return empty_card("Duplicates and issues will appear here", "Import images first; they are scanned on import.")
    if contents.images.unscanned == len(contents.items):
        return card("Not scanned yet", "A scan finds duplicates and issues; it changes nothing.")
    counts = [format_count(len(contents.duplicates), "duplicate")] if contents.duplicates else []
    unreadable = len(contents.proposed) - len(contents.duplicates)
    counts += [f"{unreadable} unreadable"] if unreadable else []
    if counts:
        return card(
            f"{format_count(len(contents.proposed), 'image')} to set aside",
            f"The scan proposes {' and '.join(counts)}. Nothing is deleted: everything can be restored.",
            tone=Tone.WARNING,
        )
    if scanning:
        return card("A scan is running", "What it proposes to set aside will appear here.")
    if contents.flagged:
        text = f"{format_count(len(contents.flagged), 'image')} to check below."
        return card("No duplicates left", text, tone=Tone.WARNING)
    return card("Nothing to set aside", WORKFLOW["dataset"].thought, tone=Tone.OK)
