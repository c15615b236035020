"""A small folder of images with captions, its content, and edits of it."""

from __future__ import annotations

from pathlib import Path

from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.edit_history import CaptionHistory, EditReport
from lora_studio.dataset.captions.edits import plan_edit


def make_caption_folder(folder: Path) -> Path:
    """Write four images: two with plain captions, one with a caption in Latin-1, one without; return the folder."""
    for name, data in (("a", b"ohwx, smile, day"), ("b", b"ohwx, smiley"), ("c", "ohwx, café".encode("latin-1"))):
        (folder / f"{name}.txt").write_bytes(data)
    for name in "abcd":
        (folder / f"{name}.png").write_bytes(name.encode())
    return folder


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder."""
    return sorted(folder.glob("*.png"))


def caption_contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each caption by the name of its image without suffix."""
    return {file.stem: file.read_bytes() for file in sorted(folder.glob("*.txt"))}


def apply_edit(folder: Path, edit: edits.Edit) -> EditReport:
    """Apply an edit to all images of a folder."""
    return CaptionHistory.of(folder).apply(plan_edit(images_in(folder), edit))


def tag_in_batches(folder: Path, *names: str, resume: bool = False) -> None:
    """Caption one image per batch, as a job in the folder's `job` does."""
    edit = CaptionHistory.of(folder).edit_of_job("Tagged", folder / "job", resume=resume)
    for name in names:
        edit.write({folder / f"{name}.png": f"tagged {name}"})
