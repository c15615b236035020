"""Hashes of a base model's weights, also those that are known without reading all of a large file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lora_studio.models.locate import HASH_LENGTH, HASH_START, PARTS, Source, weights_file


class QuickHashes(NamedTuple):
    """Hashes of a base as the metadata of a LoRA has them, each None if it takes a whole large file to compute.

    `legacy` is `ss_sd_model_hash` of a single file, `new` is `ss_new_sd_model_hash` of a folder.
    """

    legacy: str | None = None
    new: str | None = None


def quick_hashes(source: Source) -> QuickHashes:
    """Return the hashes of a local base that take milliseconds. Raises InputError or OSError if files are missing."""
    path = Path(source.location)
    if source.kind == "file":
        return QuickHashes(legacy=legacy_hash(path))
    return QuickHashes(new=folder_hash([weights_file(path / part) for part in PARTS]))


def legacy_hash(file: Path) -> str:
    """Return kohya's "legacy" hash of a file: 8 hex digits."""
    return window_hash(file)[:8]


def folder_hash(files: Sequence[Path]) -> str:
    """Return the SHA-256 in hex of the names, sizes and window hashes of a folder's weight files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name} {file.stat().st_size} {window_hash(file)}\n".encode())
    return digest.hexdigest()


def window_hash(file: Path) -> str:
    """Return the SHA-256 in hex of the 64 KiB at offset 1 MiB."""
    with file.open("rb") as stream:
        stream.seek(HASH_START)
        return hashlib.sha256(stream.read(HASH_LENGTH)).hexdigest()
