"""The program of a child process that decodes images within limits, see `decode_pool`."""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from lora_studio.dataset.images.decode import DecodedImage, decode_here, pillow_formats
from lora_studio.errors import InputError


def main(memory: float, idle_seconds: float) -> None:
    """Answer requests on standard input, on what was standard output, until there is none for `idle_seconds`."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    pillow_formats()
    limit_memory(int(memory))
    while True:
        timer = threading.Timer(idle_seconds, os._exit, (0,))
        timer.daemon = True
        timer.start()
        request = sys.stdin.buffer.readline()
        timer.cancel()
        if not request:
            return
        answer(json.loads(request), answers)


def limit_memory(size: int) -> None:
    """Limit the address space of this process to `size` bytes more than it has, where the system can."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit = psutil.Process().memory_info().vms + size
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def answer(request: dict[str, Any], answers: BinaryIO) -> None:
    """Write the answer to a request: the fields of the image as a line of JSON, then its pixels and alpha channel."""
    pixels, alpha = b"", b""
    try:
        decoded = decode_here(Path(request.pop("path")), **request)
        pixels = decoded.image.tobytes()
        alpha = decoded.alpha.tobytes() if decoded.alpha is not None else b""
        given: dict[str, Any] = _plain_fields(decoded)
    except InputError as error:
        given = {"message": error.message, "remedy": error.remedy, "code": error.code}
    except MemoryError:
        given = {"over_limit": True}
    answers.write(json.dumps(given | {"pixels": len(pixels), "alpha": len(alpha)}).encode() + b"\n")
    answers.write(pixels)
    answers.write(alpha)
    answers.flush()


def _plain_fields(decoded: DecodedImage) -> dict[str, Any]:
    images = ("image", "alpha")
    plain = {item.name: getattr(decoded, item.name) for item in fields(decoded) if item.name not in images}
    return plain | {"image_size": decoded.image.size}
