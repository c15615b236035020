"""Look at captions, edit them, and mark them as reviewed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.dataset.captions.edit_history import CaptionHistory, EditReport
from lora_studio.dataset.captions.edits import Edit, EditPlan, plan_edit
from lora_studio.dataset.captions.extension import set_caption_extension as change_extension
from lora_studio.dataset.captions.lint import Finding, lint
from lora_studio.dataset.captions.statistics import CaptionStatistics, caption_statistics
from lora_studio.dataset.images.decode import find_images
from lora_studio.dataset.review import Review, mark_reviewed, review_status
from lora_studio.dataset.training_images import check_caption_extension, read_images
from lora_studio.errors import InputError
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Project, records_folder

if TYPE_CHECKING:
    pass


def lint_captions(dataset: Path | str, *, trigger_word: str | None = None) -> list[Finding]:
    """Return the problems of the captions of `dataset`, each with the edits that fix it.

    `trigger_word` is, by default, that of the project that the dataset belongs to. Raises InputError.
    """
    folder = Path(dataset)
    return lint(_images(folder), trigger_word_of(folder) if trigger_word is None else trigger_word)


def summarize_captions(dataset: Path | str, *, tag: str = "") -> CaptionStatistics:
    """Return tag counts, the tags that occur with `tag`, caption lengths and a suggested validation split.

    `tag` is, by default, the project's trigger word, else the most frequent tag. Raises InputError.
    """
    folder = Path(dataset)
    images = _images(folder)
    split = read_images(folder).suggest_split(seed=Recipe().seed)
    return caption_statistics(images, tag=tag or trigger_word_of(folder), split=split)


def plan_caption_edit(dataset: Path | str, edit: Edit) -> EditPlan:
    """Return what an edit (see `lora_studio.dataset.captions.edits`) would change in the captions of `dataset`."""
    return plan_edit(_images(Path(dataset)), edit)


def edit_captions(dataset: Path | str, edit: Edit) -> EditReport:
    """Apply an edit to all captions of `dataset`; the last 50 can be undone. Raises InputError or DiskFullError."""
    return CaptionHistory.of(Path(dataset)).apply(plan_caption_edit(dataset, edit))


def undo_caption_edit(dataset: Path | str) -> EditReport:
    """Undo the most recent edit of the captions of `dataset`, which may be a tagging; raise InputError without one."""
    return CaptionHistory.of(Path(dataset)).undo()


def set_caption_extension(dataset: Path | str, extension: str) -> None:
    """Read and write the caption files with this extension, like .txt2, in `dataset`; "" is .txt, else .caption.

    No caption file is changed. Raises ConfigError if it is not an extension, InputError if it is an image's or if the
    folder does not exist.
    """
    check_caption_extension(extension)
    change_extension(Path(dataset), extension)


def review_captions(
    dataset: Path | str, *, mark: Sequence[Path | str] = (), unmark: Sequence[Path | str] = ()
) -> Review:
    """Mark the images in `mark` as reviewed and those in `unmark` as not, and return which captions are reviewed.

    Raises InputError for an image that is not in the dataset.
    """
    folder = Path(dataset)
    for images, reviewed in ((mark, True), (unmark, False)):
        if images:
            mark_reviewed(folder, [Path(image) for image in images], reviewed=reviewed)
    return review_status(folder)


def _images(folder: Path) -> list[Path]:
    images = find_images(folder)
    if not images:
        raise InputError(f"There are no images in {str(folder)!r}.", "Give a folder with images.", code="no_images")
    return images


def trigger_word_of(dataset: Path | str) -> str:
    """Return the trigger word of the project that a dataset folder belongs to; empty for any other folder."""
    project = Project(records_folder(Path(dataset)))
    return project.info().trigger_word if (project.path / "project.json").is_file() else ""
