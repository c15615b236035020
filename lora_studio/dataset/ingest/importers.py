"""Import images with their captions and masks into a dataset, from files, folders and zips.

Sources are only read. An image is copied unless the same file is already in the dataset or was set aside by curation;
if another image has its name, it gets a number. Folders named like `10_name`, as in kohya's tools, become sets of the
dataset; everything else is imported into the given folder.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.captions.extension import known_suffixes
from lora_studio.dataset.captions.text import decode_text, existing_caption, write_caption
from lora_studio.dataset.curate import REJECTED_FILE, default_rejected_dir, rejected_images
from lora_studio.dataset.duplicates.fingerprints import DECODE_SIDE
from lora_studio.dataset.images.decode import SUFFIXES_BY_FORMAT, decode, file_sha256, find_images, is_image_name
from lora_studio.dataset.images.masks import import_mask, mask_file, match_masks
from lora_studio.dataset.images.sets import format_image_count, printable_name, safe_name, set_name
from lora_studio.dataset.ingest.archives import Limits, Member, list_members
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import write_atomic
from lora_studio.workspace.project import SET_FOLDER

Progress = Callable[[int, int], None]

# Image formats that are not supported: such files are reported as refused; files that are not images are skipped.
FOREIGN_SUFFIXES = frozenset((".jxl", ".jp2", ".psd", ".svg", ".raw", ".cr2", ".nef", ".dng"))
MAX_CAPTION_BYTES = 1 << 20  # bytes


class Refused(BaseModel):
    """A file that was not imported, with the reason and a remedy; `code` is that of the error."""

    model_config = ConfigDict(frozen=True)

    name: str
    message: str
    remedy: str
    code: str = ""


class Skipped(BaseModel):
    """An image that was not imported again, and where it already is."""

    model_config = ConfigDict(frozen=True)

    name: str
    reason: str


class ImportReport(BaseModel):
    """The result of an import: `added` are the new images, `captions` and `masks` count the imported ones."""

    added: list[Path] = []
    captions: int = 0
    masks: int = 0
    skipped: list[Skipped] = []
    refused: list[Refused] = []
    notes: list[str] = []

    def lines(self) -> list[str]:
        """Return the report as text: the problems, then a summary line."""
        lines = [f"{item.message} {item.remedy}".strip() for item in self.refused]
        counts = [f"{format_image_count(len(self.added))} added"]
        if self.captions:
            counts.append(f"{self.captions} with captions")
        if self.masks:
            counts.append(f"{self.masks} with masks")
        if self.skipped:
            counts.append(f"{len(self.skipped)} already in the dataset")
        if self.refused:
            counts.append(f"{len(self.refused)} refused")
        return [*lines, *self.notes, ", ".join(counts) + "."]


Source = Path | Member


@dataclass(frozen=True)
class _Candidate:
    """An image to import: its name for messages, its source, its set (`10_name` or None), its caption and mask."""

    name: str
    source: Source
    set_name: str | None
    caption: Source | None
    mask: Source | None = None


def import_paths(
    sources: Sequence[Path | str],
    images_dir: Path,
    *,
    rejected_dir: Path | None = None,
    on_progress: Progress | None = None,
    limits: Limits | None = None,
) -> ImportReport:
    """Copy the images of `sources` (image and caption files, folders, zips) into `images_dir`.

    Sets named `N_name` in the sources become folders beside `images_dir`. Captions (with the dataset's extension, .txt
    or .caption) are imported with their image and written as UTF-8 with the dataset's extension; an image that is
    already in the dataset without a caption gets the caption of its duplicate. Images in `rejected_dir` (default: as in
    `curate`) are not imported again. `on_progress(done, total)` is called after each image.

    Files that cannot be used are listed in the report. Raises InputError, before anything is written, if a source is
    missing, contains no image, or is a zip that is refused; DiskFullError if the disk is full, with all images until
    then imported completely.
    """
    report = ImportReport()
    images_dir = images_dir.absolute()
    suffixes = known_suffixes(images_dir)
    candidates = _collect([Path(source).expanduser() for source in sources], report, limits, suffixes)
    with disk_errors(images_dir):
        images_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".import-", dir=images_dir) as scratch:
            known = _KnownImages.of(images_dir, rejected_dir or default_rejected_dir(images_dir))
            for done, candidate in enumerate(candidates, 1):
                _import_image(candidate, images_dir, known, Path(scratch), report)
                if on_progress:
                    on_progress(done, len(candidates))
    loose = sum(candidate.set_name is None for candidate in candidates)
    if 0 < loose < len(candidates):
        report.notes.append(f"{format_image_count(loose)} outside set folders imported into {images_dir.name!r}.")
    return report


def _collect(
    sources: Sequence[Path], report: ImportReport, limits: Limits | None, suffixes: tuple[str, ...]
) -> list[_Candidate]:
    """Return all images of all sources; raises one InputError with all problems of the sources.

    `suffixes` are those of captions, in the order of precedence.
    """
    candidates: list[_Candidate] = []
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
        raise InputError("\n".join(str(problem) for problem in problems), code="sources")
    return candidates + _from_files(files, report, suffixes)


def _from_folder(folder: Path, suffixes: tuple[str, ...]) -> list[_Candidate]:
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


def _from_zip(archive: Path, limits: Limits | None, suffixes: tuple[str, ...]) -> list[_Candidate]:
    members = sorted(list_members(archive, limits), key=lambda member: member.name)
    found = _paired([(member.name, member) for member in members], None, suffixes)
    if not found:
        raise _no_images_in(f"the zip {archive.name!r}")
    return found


def _from_files(files: Sequence[Path], report: ImportReport, suffixes: tuple[str, ...]) -> list[_Candidate]:
    """Return the images among single files; a browser uploads each into a folder of its own, captions and masks too."""
    captions = {_key(path, suffix): path for suffix in reversed(suffixes) for path in files if _ends_with(path, suffix)}
    images = [path for path in files if not any(_ends_with(path, suffix) for suffix in suffixes)]
    masks = match_masks([Path(path.name) for path in images], _key)
    by_image = {_key(image): path for path in images if (image := masks.get(Path(path.name))) is not None}
    alone = [("caption", captions[key]) for key in captions.keys() - {_key(path) for path in images}]
    alone += [("mask", mask) for mask, image in masks.items() if image is None]
    for kind, path in alone:
        report.refused.append(
            Refused(
                name=printable_name(path.name),
                message=f"There is no image for the {kind} {printable_name(path.name)!r}.",
                remedy="Import it together with its image, which has the same name.",
                code=f"{kind}_without_image",
            )
        )
    return [
        _Candidate(path.name, path, None, captions.get(_key(path), existing_caption(path)), by_image.get(_key(path)))
        for path in images
        if Path(path.name) not in masks
    ]


def _paired(
    files: Sequence[tuple[PurePath, Source]], own_set: str | None, suffixes: tuple[str, ...]
) -> list[_Candidate]:
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
        captions |= {(path.parent, _key(path, suffix)): source for path, source in seen if _ends_with(path, suffix)}
    images = {path: source for path, source in seen if is_image_name(path.name)}
    masks = match_masks(images, _key)
    by_image = {image: images[mask] for mask, image in masks.items() if image is not None}
    return [
        _Candidate(
            name=path.name if isinstance(source, Path) else str(path),
            source=source,
            set_name=next(filter(None, map(set_name, reversed(path.parent.parts))), own_set),
            caption=captions.get((path.parent, _key(path))),
            mask=by_image.get(path),
        )
        for path, source in seen
        if (path in images and path not in masks) or path.suffix.lower() in FOREIGN_SUFFIXES
    ]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _key(path: PurePath, suffix: str = "") -> str:
    """Return the stem that an image shares with its caption, whatever the Unicode form (macOS) and case (Windows).

    `suffix` is the caption's, by default what follows the last dot.
    """
    stem = path.name[: -len(suffix)] if suffix else path.stem
    return unicodedata.normalize("NFC", stem).casefold()


def _ends_with(path: PurePath, suffix: str) -> bool:
    return path.name.lower().endswith(suffix.lower()) and len(path.name) > len(suffix)


def _import_image(
    candidate: _Candidate, images_dir: Path, known: _KnownImages, scratch: Path, report: ImportReport
) -> None:
    """Copy one image with its caption and mask, or report why not."""
    folder = images_dir.parent / candidate.set_name if candidate.set_name else images_dir
    try:
        file = _fetch(candidate.source, scratch)
        existing = known.find(file)
        image_format = "" if existing else decode(file, min_side=DECODE_SIDE).format
    except (InputError, OSError) as error:
        report.refused.append(_refusal(candidate.name, error))
        return
    if existing is None:
        suffixes = SUFFIXES_BY_FORMAT[image_format]
        suffix = PurePath(candidate.name).suffix.lower()
        name = safe_name(PurePath(candidate.name).stem)
        image = _copy(file, folder, name, suffix if suffix in suffixes else suffixes[0], known.stems(folder))
        known.add(image)
        report.added.append(image)
        if suffix not in suffixes:
            report.notes.append(
                f"{printable_name(candidate.name)!r} is a {image_format} image and was renamed to {image.name!r}."
            )
    else:
        image, reason = existing
        report.skipped.append(Skipped(name=printable_name(candidate.name), reason=reason))
    if isinstance(candidate.source, Member):
        file.unlink()
    if candidate.mask and image.is_relative_to(images_dir.parent) and mask_file(image) is None:
        _import_mask(candidate.mask, image, scratch, report)
    if candidate.caption and image.is_relative_to(images_dir.parent) and existing_caption(image) is None:
        _import_caption(candidate.caption, image, scratch, report)


def _import_mask(source: Source, image: Path, scratch: Path, report: ImportReport) -> None:
    try:
        import_mask(_fetch(source, scratch), image)
        report.masks += 1
    except (InputError, OSError) as error:
        report.refused.append(_refusal(source.name if isinstance(source, Path) else str(source.name), error))


def _import_caption(source: Source, image: Path, scratch: Path, report: ImportReport) -> None:
    name = source.name if isinstance(source, Path) else str(source.name)
    try:
        size = source.stat().st_size if isinstance(source, Path) else source.size
        if size > MAX_CAPTION_BYTES:
            raise InputError(
                f"The caption {name!r} has {size:,} bytes; the limit is {MAX_CAPTION_BYTES:,}.",
                "Check whether it is a caption.",
                code="caption",
            )
        text = " ".join(decode_text(_fetch(source, scratch).read_bytes()).split())
    except (InputError, OSError) as error:
        report.refused.append(_refusal(name, error))
        return
    if text:
        write_caption(image, text)
        report.captions += 1


def _fetch(source: Source, scratch: Path) -> Path:
    """Return the source file, or extract it from its archive under its own name."""
    if isinstance(source, Path):
        return source
    file = scratch / safe_name(source.name.name)
    source.extract(file)
    return file


def _copy(file: Path, folder: Path, stem: str, suffix: str, taken: set[str]) -> Path:
    """Copy into `folder` under a name that no image or caption has, and return the new file."""
    for number in itertools.count(1):
        target = folder / f"{stem if number == 1 else f'{stem} ({number})'}{suffix}"
        if _key(target) in taken:
            continue
        taken.add(_key(target))
        try:
            write_atomic(target, partial(_fill, file, target))
        except FileExistsError:
            continue  # another import has taken the name
        except BaseException:
            if target.exists() and not target.stat().st_size:
                target.unlink()
            raise
        return target
    raise AssertionError("count() has no end")


def _fill(file: Path, target: Path, temporary: Path) -> None:
    shutil.copyfile(file, temporary)
    target.touch(exist_ok=False)


def _refusal(name: str, error: InputError | OSError) -> Refused:
    if isinstance(error, InputError):
        return Refused(
            name=printable_name(name), message=printable_name(error.message), remedy=error.remedy, code=error.code
        )
    message = f"{printable_name(name)!r} cannot be read: {error.strerror}."
    return Refused(name=printable_name(name), message=message, remedy="Check its permissions.", code="unreadable")


def _no_images_in(what: str) -> InputError:
    return InputError(
        f"There are no images in {what}.",
        "Give PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF files.",
        code="no_images",
    )


@dataclass
class _KnownImages:
    """The images in the dataset and the rejected ones, to be found by content. Files are hashed when needed."""

    reasons: dict[Path, str] = field(default_factory=dict)
    by_size: dict[int, list[Path]] = field(default_factory=dict)
    hashes: dict[Path, str] = field(default_factory=dict)
    names: dict[Path, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, images_dir: Path, rejected_dir: Path) -> _KnownImages:
        """Return the images of `images_dir`, of the sets beside it, and of the rejected folder."""
        known = cls()
        sets = [path for path in images_dir.parent.iterdir() if SET_FOLDER.match(path.name) and path.is_dir()]
        for folder in dict.fromkeys([images_dir, *sorted(sets)]):
            for image in find_images(folder):
                known.add(image)
        for entry in rejected_images(rejected_dir):
            known.add(rejected_dir / entry.files[0].name, f"set aside earlier: {entry.reason}")
        return known

    def add(self, image: Path, reason: str = "") -> None:
        """Add an image; `reason` is reported if it is imported again."""
        self.reasons[image] = reason or f"already in the dataset as {image.name!r}"
        self.by_size.setdefault(image.stat().st_size, []).append(image)

    def find(self, file: Path) -> tuple[Path, str] | None:
        """Return the image with the same bytes as `file`, and the reason to skip `file`."""
        same_size = self.by_size.get(file.stat().st_size)
        if not same_size:
            return None
        sha256 = file_sha256(file)
        for image in same_size:
            if image not in self.hashes:
                self.hashes[image] = file_sha256(image)
            if self.hashes[image] == sha256:
                return image, self.reasons[image]
        return None

    def stems(self, folder: Path) -> set[str]:
        """Return the stems of the files in `folder`, which is made if missing."""
        if folder not in self.names:
            folder.mkdir(parents=True, exist_ok=True)
            self.names[folder] = {_key(path) for path in folder.iterdir()}
        return self.names[folder]
