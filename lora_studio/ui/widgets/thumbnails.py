"""Pictures and files for the browser. Only the studio's own WebP copies are served; a file to save is copied first."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from markupsafe import Markup

from lora_studio.dataset.images.decode import thumbnail
from lora_studio.errors import InputError, disk_errors
from lora_studio.workspace.project import Home

SHOWN_SIZE = 512


def picture_url(home: Home, path: Path, size: int = SHOWN_SIZE, *, sha256: str | None = None) -> str:
    """The address of a WebP copy of an image, made if missing; `sha256` is the image's hash where it is known.

    Raises InputError if the image cannot be decoded, OSError.
    """
    stamp = path.stat()
    copy = _copy(path, home.thumbnails, size, stamp.st_mtime_ns, stamp.st_size, sha256)
    return f"gradio_api/file={quote(str(copy))}"


@lru_cache(maxsize=16384)
def _copy(path: Path, folder: Path, size: int, changed: int, length: int, sha256: str | None) -> Path:
    """The copy of the file as it is now: its time and length are part of the key, so it is hashed once."""
    return thumbnail(path, folder, size, sha256=sha256)


def picture(home: Home, path: Path, alt: str, caption: str, size: int = SHOWN_SIZE) -> Markup:
    """An image with a line below it; one that cannot be shown says so in its place."""
    try:
        url = picture_url(home, path, size)
    except (InputError, OSError):
        return Markup(
            '<figure class="picture gone"><div>cannot be shown</div><figcaption>{}</figcaption></figure>'
        ).format(caption)
    return Markup(
        '<figure class="picture"><a href="{0}" target="_blank"><img src="{0}" alt="{1}" title="{1}" loading="lazy"></a>'
        "<figcaption>{2}</figcaption></figure>"
    ).format(url, alt, caption)


def copy_to_save(button: gr.DownloadButton, path: Path) -> str:
    """A copy of a workspace's file in gradio's cache, which is where a download button may take it from."""
    with disk_errors(path):
        return str(save_file_to_cache(path, button.GRADIO_CACHE))
