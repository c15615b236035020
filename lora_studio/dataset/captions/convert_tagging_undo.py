"""Reader of the undo records that earlier versions kept in the job folders of tagging, to turn them into edits.

`captions.jsonl` has one line per caption file: the SHA-256 of its content before (null: no file) and after.
`captions/SHA256.txt` are copies of the contents before. The texts written are in the job's events.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.dataset.captions.edit_records import CaptionRecord
from lora_studio.dataset.captions.extension import CAPTION_SUFFIXES
from lora_studio.errors import disk_errors

RECORDS_FILE, COPIES_FOLDER = "captions.jsonl", "captions"
CONVERTED_FILE = "captions.converted.jsonl"


@dataclass(frozen=True)
class OldTaggingEdit:
    """The changes of a tagging job as an edit. `time_ns` is the time of the last change."""

    job_folder: Path
    what: str
    time_ns: int
    records: list[CaptionRecord]

    def mark_converted(self) -> None:
        """Rename the undo records so that they are not read again; nothing is deleted."""
        file = self.job_folder / RECORDS_FILE
        with disk_errors(file):
            target = self.job_folder / CONVERTED_FILE
            while target.exists():
                target = target.with_name(f"{target.stem}-again{target.suffix}")
            file.rename(target)


def old_tagging_edits(root: Path) -> Iterator[OldTaggingEdit]:
    """Yield the edits of a project's tagging jobs that have undo records of the old kind, oldest first.

    `root` is the project. An edit without records changed nothing that could still be undone.
    """
    for file in _record_files(root):
        yield OldTaggingEdit(
            file.parent, f"Tagged (job {file.parent.name})", file.stat().st_mtime_ns, list(_records(root, file.parent))
        )


def has_old_tagging_edits(root: Path) -> bool:
    """Return whether `old_tagging_edits` has any."""
    return bool(_record_files(root))


def _record_files(root: Path) -> list[Path]:
    if not (root / "project.json").is_file():
        return []
    return sorted(file for file in root.glob(f"tags/*/{RECORDS_FILE}") if (file.parent / "job.toml").is_file())


def _records(root: Path, job_folder: Path) -> Iterator[CaptionRecord]:
    """Yield the captions of a job that can still be undone."""
    texts = {
        hashlib.sha256(text).hexdigest(): text
        for event in _json_lines(job_folder / "events.jsonl")
        for text in [str(event.get("caption", "")).encode(errors="replace")]
    }
    changes: dict[Path, list[tuple[str | None, str]]] = {}
    for change in _json_lines(job_folder / RECORDS_FILE):
        if isinstance(file := change.get("file"), str) and isinstance(after := change.get("after"), str):
            before = change.get("before")
            changes.setdefault(Path(file), []).append((before if isinstance(before, str) else None, after))
    image_of = _image_finder()
    for recorded, versions in changes.items():
        caption = _current_place(root, recorded)
        now = caption.read_bytes() if caption.is_file() else None
        first = versions[0][0]
        before = None if first is None else _copy(job_folder, first)
        written = [version for _, version in reversed(versions)]
        if now is not None and hashlib.sha256(now).hexdigest() in written:
            after = now
        else:
            after = next((texts[version] for version in written if version in texts), None)
        image = image_of(caption)
        copy_is_missing = first is not None and before is None
        if after is not None and image is not None and now != before and not copy_is_missing:
            yield CaptionRecord(image, before, after)


def _current_place(root: Path, file: Path) -> Path:
    """Return the path of a file of the dataset, also if the project was renamed since it was recorded."""
    if file.is_relative_to(root) or "dataset" not in file.parts:
        return file
    start = len(file.parts) - file.parts[::-1].index("dataset")
    return root.joinpath("dataset", *file.parts[start:])


def _copy(job_folder: Path, sha256: str) -> bytes | None:
    """Return the copy of a caption file, or None if it is missing."""
    try:
        return (job_folder / COPIES_FOLDER / f"{sha256}.txt").read_bytes()
    except OSError:
        return None


def _image_finder() -> Callable[[Path], Path | None]:
    """Return a function from a caption file to the file of the same stem that is not a caption, or None."""
    folders: dict[Path, dict[str, Path]] = {}

    def image_of(caption: Path) -> Path | None:
        folder = caption.parent
        if folder not in folders:
            files = folder.iterdir() if folder.is_dir() else iter(())
            skipped = {*CAPTION_SUFFIXES, ".json", ".npz"}
            folders[folder] = {path.stem: path for path in files if path.suffix.lower() not in skipped}
        return folders[folder].get(caption.stem)

    return image_of


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines, without lines that cannot be read."""
    try:
        lines = file.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
