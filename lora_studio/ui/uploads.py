"""Limits of uploads: the size of a request, that of all uploaded files that are kept, and free disk space.

Gradio limits the size of each file and the number of files per request (1,000), and removes uploads a day later.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lora_studio.workspace.disk_usage import folder_size

GIB = 2**30
UPLOAD_PATH = "/gradio_api/upload"


@dataclass(frozen=True)
class UploadLimits:
    """The most bytes of one request and of all kept uploads, and the free space that must be left on the disk."""

    request: int = 16 * GIB
    kept: int = 64 * GIB
    free: int = 2 * GIB


@dataclass
class UploadLimit:
    """ASGI middleware: 411 for an upload of unknown size, 413 for one above a limit, with the limit as the text.

    `folder` returns where uploads are kept. A request counts as kept from its start.
    """

    app: ASGIApp
    folder: Callable[[], Path]
    limits: UploadLimits = UploadLimits()
    pending: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, unless it is an upload above a limit."""
        is_upload = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/") == UPLOAD_PATH
        if not is_upload:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("content-length", "")
        if not given.isdecimal() or "transfer-encoding" in headers:  # else the server ends the request at its size
            await PlainTextResponse("An upload needs its size (Content-Length).", 411)(scope, receive, send)
            return
        size = int(given)
        if refusal := await run_in_threadpool(self.refusal, size):
            await PlainTextResponse(refusal, 413)(scope, receive, send)
            return
        self.pending += size
        try:
            await self.app(scope, receive, send)
        finally:
            self.pending -= size

    def refusal(self, size: int) -> str:
        """Return the reason to refuse an upload of `size` bytes, with the limit and a remedy; empty if it fits."""
        if size > self.limits.request:
            return (
                f"The files have {_gib(size)} together; the limit of one upload is {_gib(self.limits.request)}. "
                "Upload fewer at a time, or import them by their path."
            )
        folder = self.folder()
        kept = folder_size(folder) + self.pending
        if kept + size > self.limits.kept:
            return (
                f"The studio keeps {_gib(kept)} of uploads; with these {_gib(size)} it would be above its limit of "
                f"{_gib(self.limits.kept)}. Delete {folder}, or wait: uploads are removed after a day."
            )
        free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
        if size > free - self.pending - self.limits.free:
            return (
                f"The files have {_gib(size)} and the disk of {folder} has {_gib(free)} free, of which "
                f"{_gib(self.limits.free)} are kept free. Free some disk space, then try again."
            )
        return ""


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
