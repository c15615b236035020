"""Find the images to import in files, folders and zips, with their captions, masks and sets. Sources are only read."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from lora_studio.dataset.captions.text import existing_caption
from lora_studio.dataset.curate import REJECTED_FILE
from lora_studio.dataset.images.decode import is_image_name
from lora_studio.dataset.images.masks import match_masks
from lora_studio.dataset.images.sets import printable_name, set_name
from lora_studio.dataset.ingest.archives import Limits, Member, list_members
from lora_studio.dataset.ingest.report import Refused
from lora_studio.errors import InputError

# Image formats that are not supported: such files are reported as refused; files that are not images are skipped.
FOREIGN_SUFFIXES = frozenset((".jxl", ".jp2", ".psd", ".svg", ".raw", ".cr2", ".nef", ".dng"))

Source = Path | Member


@dataclass(frozen=True)
class Candidate:
    """An image to import: its name for messages, its source, its set (`10_name` or None), its caption and mask."""

    name: str
    source: Source
    set_name: str | None
    caption: Source | None
    mask: Source | None = None


def find_candidates(
    sources: Sequence[Path], limits: Limits | None, suffixes: tuple[str, ...]
) -> tuple[list[Candidate], list[Refused]]:
    """Return all images of all sources, and the captions and masks that have no image.

    `suffixes` are those of captions, in the order of precedence. Raises one InputError with all problems of the
    sources.
    """
    candidates: list[Candidate] = []
    files: list[Path] = []
    problems: list[InputError] = []
    for source in sources:
        try:
            if source.is_dir():
                candidates += _from_folder(source, suffixes)
            elif not source.is_file():
                raise InputError(f"There is no file or folder {str(source)!r}.", "Check the path.", code="no_source")
            elif source.suffix.lower() == ".zip":
                candidates += _from_zip(source, limits, suffixes)
            else:
                files.append(source)
        except InputError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InputError(
            "\n".join(str(problem) for problem in problems), "Then import all of them again.", code="sources"
        )
    found, refused = _from_files(files, suffixes)
    return candidates + found, refused


def _from_folder(folder: Path, suffixes: tuple[str, ...]) -> list[Candidate]:
    files = [(path.relative_to(folder), path) for path in _walk(folder)]
    found = _paired(files, set_name(folder.resolve().name), suffixes)
    if not found:
        raise _no_images_in(f"the folder {str(folder)!r}")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in order of name, without hidden folders, links to folders and unreadable ones."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (path for name in sorted(names) if (path := Path(parent, name)).is_file())


def _from_zip(archive: Path, limits: Limits | None, suffixes: tuple[str, ...]) -> list[Candidate]:
    members = sorted(list_members(archive, limits), key=lambda member: member.name)
    found = _paired([(member.name, member) for member in members], None, suffixes)
    if not found:
        raise _no_images_in(f"the zip {archive.name!r}")
    return found


def _from_files(files: Sequence[Path], suffixes: tuple[str, ...]) -> tuple[list[Candidate], list[Refused]]:
    """Return the images among single files, and the captions and masks that have no image.

    A browser uploads each file into a folder of its own, captions and masks too.
    """
    captions = {
        file_key(path, suffix): path for suffix in reversed(suffixes) for path in files if _ends_with(path, suffix)
    }
    images = [path for path in files if not any(_ends_with(path, suffix) for suffix in suffixes)]
    masks = match_masks([Path(path.name) for path in images], file_key)
    by_image = {file_key(image): path for path in images if (image := masks.get(Path(path.name))) is not None}
    alone = [("caption", captions[key]) for key in captions.keys() - {file_key(path) for path in images}]
    alone += [("mask", mask) for mask, image in masks.items() if image is None]
    refused = [
        Refused(
            name=printable_name(path.name),
            message=f"There is no image for the {kind} {printable_name(path.name)!r}.",
            remedy="Import it together with its image, which has the same name.",
            code=f"{kind}_without_image",
        )
        for kind, path in alone
    ]
    candidates = [
        Candidate(
            path.name, path, None, captions.get(file_key(path), existing_caption(path)), by_image.get(file_key(path))
        )
        for path in images
        if Path(path.name) not in masks
    ]
    return candidates, refused


def _paired(
    files: Sequence[tuple[PurePath, Source]], own_set: str | None, suffixes: tuple[str, ...]
) -> list[Candidate]:
    """Return the images among `files` (paths below the source) with their sets, captions and masks.

    Hidden files and the folders of rejected images are left out.
    """
    rejected = {path.parent for path, _ in files if path.name == REJECTED_FILE}
    seen = [
        (path, source)
        for path, source in files
        if not any(_is_hidden(part) for part in path.parts) and rejected.isdisjoint(path.parents)
    ]
    captions: dict[tuple[PurePath, str], Source] = {}
    for suffix in reversed(suffixes):  # of two captions the first suffix wins
        captions |= {(path.parent, file_key(path, suffix)): source for path, source in seen if _ends_with(path, suffix)}
    images = {path: source for path, source in seen if is_image_name(path.name)}
    masks = match_masks(images, file_key)
    by_image = {image: images[mask] for mask, image in masks.items() if image is not None}
    return [
        Candidate(
            name=path.name if isinstance(source, Path) else str(path),
            source=source,
            set_name=next(filter(None, map(set_name, reversed(path.parent.parts))), own_set),
            caption=captions.get((path.parent, file_key(path))),
            mask=by_image.get(path),
        )
        for path, source in seen
        if (path in images and path not in masks) or path.suffix.lower() in FOREIGN_SUFFIXES
    ]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def file_key(path: PurePath, suffix: str = "") -> str:
    """Return the stem that an image shares with its caption, whatever the Unicode form (macOS) and case (Windows).

    `suffix` is the caption's, by default what follows the last dot.
    """
    stem = path.name[: -len(suffix)] if suffix else path.stem
    return unicodedata.normalize("NFC", stem).casefold()


def _ends_with(path: PurePath, suffix: str) -> bool:
    return path.name.lower().endswith(suffix.lower()) and len(path.name) > len(suffix)


def _no_images_in(what: str) -> InputError:
    return InputError(
        f"There are no images in {what}.",
        "Give PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF files.",
        code="no_images",
    )
