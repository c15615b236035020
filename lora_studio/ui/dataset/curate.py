"""What Curate does: images set aside, kept all the same, and put back; told as cards that lead back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from lora_studio.dataset.curate import Proposal, Rejected, reject, rejected_images, restore_images
from lora_studio.dataset.duplicates.find import DuplicateGroup
from lora_studio.errors import InputError
from lora_studio.ui.dataset.contents import Contents, ImageItem, image_id, save_manifest
from lora_studio.ui.dataset.view import restored_card, set_aside_card
from lora_studio.ui.widgets.formatting import format_count
from lora_studio.workspace.project import Project

BY_HAND = "set aside by hand"


def set_aside(project: Project, items: Sequence[ImageItem], reason: str = "") -> Markup:
    """Set images aside for `reason`, else for what the scan said of each; raises InputError if there are none."""
    if not items:
        raise InputError("There is nothing to set aside.", "Scan first, or choose images.", code="nothing")
    proposed = [Proposal(path=item.path, reason=reason or item.proposal or BY_HAND) for item in items]
    moved = set(reject(proposed, project.rejected_dir))
    entries = [entry for entry in rejected_images(project.rejected_dir) if entry.image in moved]
    return set_aside_card(
        [item.name for item in items if item.path in moved], [_id(project, entry) for entry in entries]
    )


def group_with_duplicate(contents: Contents, item: ImageItem) -> DuplicateGroup:
    """The group in which an image is a copy; raises InputError if it is none."""
    for group in contents.groups:
        if item.path in group.reject:
            return group
    raise InputError(f"{item.name} is no copy any more.", "Scan again.", code="no_group")


def mark_kept(contents: Contents, item: ImageItem, *, kept: bool) -> None:
    """Mark an image as one to keep whatever the scan says, or no longer; raises InputError if it was not scanned."""
    if item.info is None:
        raise InputError(f"{item.name} was not scanned yet.", "Scan first.", code="not_scanned")
    save_manifest(contents.project, contents.manifest.keep(item.info.sha256, kept=kept))


def restore(project: Project, ids: Sequence[str] | None = None) -> tuple[Markup, list[Path]]:
    """Put back what was set aside: all, or those of the ids; returns what there is to say, and the images.

    Raises InputError if one of them is not there.
    """
    images = None
    if ids is not None:
        known = {_id(project, entry): entry.image for entry in rejected_images(project.rejected_dir)}
        if missing := [identity for identity in ids if identity not in known]:
            raise InputError(
                f"{format_count(len(missing), 'image')} cannot be found among what was set aside.",
                "It may be back already.",
                code="no_image",
            )
        images = [known[identity] for identity in ids]
    back, kept = restore_images(project.rejected_dir, images)
    return restored_card(back, kept), back


def _id(project: Project, entry: Rejected) -> str:
    return image_id(project, project.rejected_dir / entry.files[0].name)
