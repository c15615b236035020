"""Images and files for the browser: only the studio's WebP copies are served, and copies of files to download."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import quote

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from lora_studio.dataset.images.decode import thumbnail
from lora_studio.errors import InputError, disk_errors
from lora_studio.files import cached_by_stamp, write_atomic
from lora_studio.workspace.project import Home

THUMBNAIL_SIZE = 512  # px


def thumbnail_url(home: Home, path: Path, size: int = THUMBNAIL_SIZE, *, sha256: str | None = None) -> str:
    """Return the URL of a WebP copy of an image, made if missing. `sha256` is the image's hash if it is known.

    Raises InputError if the image cannot be decoded, OSError.
    """
    copy = _thumbnail(path, home.thumbnails, size, sha256)
    return f"gradio_api/file={quote(str(copy))}"


def thumbnail_url_or_empty(home: Home, path: Path, size: int) -> str:
    """Return the URL of a WebP copy of an image, or an empty string if the image cannot be shown."""
    try:
        return thumbnail_url(home, path, size)
    except (InputError, OSError):
        return ""


@cached_by_stamp(maxsize=16384)
def _thumbnail(path: Path, folder: Path, size: int, sha256: str | None) -> Path:
    """Return the path of the WebP copy; the image is hashed again only after it has changed."""
    return thumbnail(path, folder, size, sha256=sha256)


def copy_for_download(button: gr.DownloadButton, path: Path, name: str = "") -> str:
    """Copy a project's file to gradio's cache, from which a download button may serve it, and return the copy.

    `name` is the name of the copy, by default that of the file.
    """
    with disk_errors(path):
        copy = Path(save_file_to_cache(path, button.GRADIO_CACHE))
        if name and copy.name != name and not copy.with_name(name).exists():
            write_atomic(copy.with_name(name), lambda temporary: _copy(copy, temporary))
        return str(copy.with_name(name or copy.name))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
