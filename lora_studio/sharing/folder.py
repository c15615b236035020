"""Builds the folder and the zip of a release: complete or not at all, and beside earlier ones instead of over them."""

from __future__ import annotations

import os
import re
import shutil
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from uuid import uuid4

from PIL import Image
from pydantic import BaseModel

from lora_studio.errors import InputError, disk_errors
from lora_studio.files import sync_folder, write_atomic
from lora_studio.lora.tools.metadata import strip_metadata
from lora_studio.sharing.facts import LoraFacts, Picture, chosen_lora, read_facts
from lora_studio.sharing.options import ReleaseOptions
from lora_studio.sharing.texts import DEFAULT_STRENGTH, Release, civitai_text, model_card, sidecar
from lora_studio.workspace.job_folder import slugify

GALLERY = 6  # pictures of the model card
POSITION = re.compile(r"-(?:best|\d{6}|step\d{8}(?:-saved)?)$")  # what a checkpoint's name adds to the run's
COMPRESSED = frozenset({".md", ".json", ".txt"})
README = "README.md"
CIVITAI = "civitai.txt"
STALE_SECONDS = 3600.0  # after which a partial release is no longer being written


class ReleaseResult(BaseModel):
    """A release on disk: its folder with `files` (relative), and the zip of it; `url` once it is on the Hub."""

    folder: Path
    zip: Path
    lora: Path
    files: list[str]
    strength: float
    trigger_word: str
    url: str = ""


def build_release(source: Path, options: ReleaseOptions, *, out: Path | None = None) -> ReleaseResult:
    """Write the release of a run folder or a LoRA file into a new folder in `out`, and a zip beside it.

    `out` defaults to the folder `release` beside the LoRA's run. The folder gets the release's name, with a number if
    there is one already. Raises InputError for a run without a LoRA, a file that is not one, or a preview that is not
    an image, and DiskFullError.
    """
    lora = chosen_lora(source)
    facts = read_facts(lora)
    name = slugify(options.name) or slugify(POSITION.sub("", lora.stem)) or "lora"
    parent = out or (facts.run.path if facts.run else lora.parent) / "release"
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        _remove_litter(parent, name)
        partial = parent / f".{name}.{uuid4().hex}.partial"
        partial.mkdir()
        try:
            release = _fill(partial, name, facts, options)
            _sync(partial)
            folder = _rename_new(partial, parent / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    archive = folder.with_name(f"{folder.name}.zip")
    write_atomic(archive, lambda temporary: _zip(temporary, folder, files))
    return ReleaseResult(
        folder=folder,
        zip=archive,
        lora=folder / f"{name}.safetensors",
        files=files,
        strength=release.strength,
        trigger_word=facts.trigger_word,
    )


def _remove_litter(parent: Path, name: str) -> None:
    """Remove what releases of this name left that were killed, once nothing can still be writing it."""
    latest = time.time() - STALE_SECONDS
    for left in [*parent.glob(f".{name}.*.partial"), *parent.glob(f".{name}*.zip.*.tmp.zip")]:
        with suppress(FileNotFoundError):
            if left.stat().st_mtime > latest:
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink()


def choose_pictures(pictures: Sequence[Picture], strength: float, trigger_word: str) -> list[Picture]:
    """Return at most GALLERY pictures, each of another prompt: with the trigger word, and near the strength, first."""

    def rank(picture: Picture) -> tuple[bool, float]:
        return trigger_word not in picture.prompt, abs(picture.strength - strength)

    by_prompt: dict[str, Picture] = {}
    for picture in sorted((picture for picture in pictures if picture.strength), key=rank):
        by_prompt.setdefault(picture.prompt, picture)
    return list(by_prompt.values())[:GALLERY]


def _fill(folder: Path, name: str, facts: LoraFacts, options: ReleaseOptions) -> Release:
    """Write the files of a release into an empty folder."""
    target = folder / f"{name}.safetensors"
    if options.strip_tags:
        strip_metadata(facts.file.path, target)
    else:
        shutil.copyfile(facts.file.path, target)
    strength, reason = _strength(facts, options)
    chosen = choose_pictures(facts.pictures, strength, facts.trigger_word)
    gallery = []
    for number, picture in enumerate(chosen, 1):
        path = PurePosixPath("images", f"{number}.png")
        (folder / "images").mkdir(exist_ok=True)
        shutil.copyfile(picture.path, folder / path)
        gallery.append((path, picture.prompt))
    if options.preview is not None:
        _write_preview(options.preview, folder / f"{name}.preview.png")
    elif chosen:
        shutil.copyfile(chosen[0].path, folder / f"{name}.preview.png")
    if facts.grids:
        shutil.copyfile(facts.grids[0], folder / "grid.png")
    release = Release(name, facts, options, strength, reason, gallery)
    texts = {README: model_card(release), f"{name}.json": sidecar(release), CIVITAI: civitai_text(release)}
    for file, text in texts.items():
        (folder / file).write_text(text, "utf-8")
    return release


def _strength(facts: LoraFacts, options: ReleaseOptions) -> tuple[float, str]:
    """Return the strength to recommend, and how it was found: the chosen one, that of the last test, else the usual."""
    if options.strength is not None:
        return options.strength, ""
    if facts.advice is not None and facts.advice.strength is not None:
        return facts.advice.strength, "the lowest with the full effect in a test over strengths"
    return DEFAULT_STRENGTH, ""


def _write_preview(source: Path, target: Path) -> None:
    """Copy a PNG, with the parameters in it, or convert another image to one; raise InputError if it is none."""
    try:
        with Image.open(source, formats=["PNG", "JPEG", "WEBP"]) as image:
            image.load()
            if image.format == "PNG":
                shutil.copyfile(source, target)
            else:
                image.convert("RGB").save(target, "PNG")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"The preview {source} cannot be read as an image.", "Give a PNG, JPEG or WebP file.", code="preview"
        ) from error


def _sync(folder: Path) -> None:
    """Flush all files of a folder to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)


def _rename_new(partial: Path, target: Path) -> Path:
    """Give a folder the name of `target`, with a number if that exists, and return it."""
    number, free = 1, target
    while True:
        if not free.exists() and not free.with_name(f"{free.name}.zip").exists():
            try:
                partial.rename(free)
            except FileExistsError:
                pass
            except OSError:
                if not free.exists():
                    raise
            else:
                sync_folder(free.parent)
                return free
        number += 1
        free = target.with_name(f"{target.name}-{number}")


def _zip(target: Path, folder: Path, files: Sequence[str]) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for file in files:
            packed = zipfile.ZIP_DEFLATED if Path(file).suffix in COMPRESSED else zipfile.ZIP_STORED
            archive.write(folder / file, f"{folder.name}/{file}", compress_type=packed)
