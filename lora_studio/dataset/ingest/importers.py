"""Import images with their captions and masks into a dataset, from files, folders and zips.

Sources are only read. An image is copied unless the same file is already in the dataset or was set aside by curation;
if another image has its name, it gets a number. Folders named like `10_name`, as in kohya's tools, become sets of the
dataset; everything else is imported into the given folder. One import at a time writes to a dataset, and each image
appears complete or not at all.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath

from lora_studio.dataset.captions.extension import known_suffixes
from lora_studio.dataset.captions.text import decode_text, existing_caption, write_caption
from lora_studio.dataset.change_lock import change_lock
from lora_studio.dataset.curate import default_rejected_dir
from lora_studio.dataset.duplicates.fingerprints import DECODE_SIDE
from lora_studio.dataset.images.decode import SUFFIXES_BY_FORMAT, decode
from lora_studio.dataset.images.masks import import_mask, mask_file
from lora_studio.dataset.images.sets import printable_name, safe_name
from lora_studio.dataset.ingest.archives import Limits, Member
from lora_studio.dataset.ingest.known_images import KnownImages
from lora_studio.dataset.ingest.report import ImportReport, Refused, Skipped
from lora_studio.dataset.ingest.sources import Candidate, Source, file_key, find_candidates
from lora_studio.errors import DiskFullError, InputError, disk_errors
from lora_studio.files import remove_temporary_files, write_atomic
from lora_studio.plurals import format_count
from lora_studio.workspace.project import records_folder

Progress = Callable[[int, int], None]

MAX_CAPTION_BYTES = 1 << 20  # bytes
SCRATCH = ".import-"  # prefix of the folder in which members of archives are extracted
STALE_SECONDS = 3600.0  # after which a temporary file is no longer being written


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
    candidates, report.refused = find_candidates([Path(source).expanduser() for source in sources], limits, suffixes)
    _check_space(candidates, images_dir)
    with disk_errors(images_dir):
        images_dir.mkdir(parents=True, exist_ok=True)
        with change_lock(records_folder(images_dir)), _scratch_folder(images_dir) as scratch:
            known = KnownImages.of(images_dir, rejected_dir or default_rejected_dir(images_dir))
            for done, candidate in enumerate(candidates, 1):
                _import_image(candidate, images_dir, known, scratch, report)
                if on_progress:
                    on_progress(done, len(candidates))
    loose = sum(candidate.set_name is None for candidate in candidates)
    if 0 < loose < len(candidates):
        report.notes.append(f"{format_count(loose, 'image')} outside set folders imported into {images_dir.name!r}.")
    return report


def _check_space(candidates: Sequence[Candidate], images_dir: Path) -> None:
    """Raise DiskFullError if the images of zips need more than the free space of the dataset's disk."""
    needed = sum(candidate.source.size for candidate in candidates if isinstance(candidate.source, Member))
    free = shutil.disk_usage(next(place for place in images_dir.parents if place.is_dir())).free
    if needed > free:
        raise DiskFullError(
            f"The zip unpacks to {needed / 2**30:.1f} GiB, and the disk of {images_dir} has {free / 2**30:.1f} GiB "
            "free.",
            "Free some disk space, then import it again. Nothing was imported.",
            code="disk_full",
        )


@contextmanager
def _scratch_folder(images_dir: Path) -> Iterator[Path]:
    """Make a folder for members of archives, after removing what killed imports left; the caller holds the lock."""
    for left in images_dir.glob(f"{SCRATCH}*/"):
        shutil.rmtree(left, ignore_errors=True)
    remove_temporary_files(images_dir, older_than=STALE_SECONDS)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=images_dir) as scratch:
        yield Path(scratch)


def _import_image(
    candidate: Candidate, images_dir: Path, known: KnownImages, scratch: Path, report: ImportReport
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
        if file_key(target) in taken:
            continue
        taken.add(file_key(target))
        try:
            write_atomic(target, partial(shutil.copyfile, file), overwrite=False)
        except FileExistsError:
            continue  # a file with this name was written since the folder was read
        return target
    raise AssertionError("count() has no end")


def _refusal(name: str, error: InputError | OSError) -> Refused:
    if isinstance(error, InputError):
        return Refused(
            name=printable_name(name), message=printable_name(error.message), remedy=error.remedy, code=error.code
        )
    message = f"{printable_name(name)!r} cannot be read: {error.strerror}."
    return Refused(name=printable_name(name), message=message, remedy="Check its permissions.", code="unreadable")
