"""Let the n-th call that changes the disk fail, as a full or broken disk does."""

from __future__ import annotations

import builtins
import errno
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
FUNCTIONS = ((os, "replace"), (os, "rename"), (os, "link"), (os, "unlink"), (os, "mkdir"), (os, "fsync"))
OPENERS = ((io, "open"), (builtins, "open"), (tempfile, "mkstemp"))


class Calls:
    """Counts the calls; the one of number `failing` fails (0: none), and all after it if `forever`."""

    def __init__(self, failing: int = 0, *, forever: bool = False) -> None:
        self.failing, self.forever, self.count = failing, forever, 0

    def wrap(self, function: Callable[..., Any], *, opens: bool) -> Callable[..., Any]:
        """Return the function with its calls counted; of `open` only those to write."""

        def counted(*args: Any, **options: Any) -> Any:
            mode = str(options.get("mode", args[1] if len(args) > 1 else "r"))
            is_read = opens and function is not tempfile.mkstemp and not set(mode) & set("wax+")
            if not is_read:
                self.count += 1
                if self.failing and (self.count == self.failing or (self.forever and self.count > self.failing)):
                    self.fail(function, *args, **options)
            return function(*args, **options)

        return counted

    def fail(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Fail instead of a call."""
        number = ERRORS[self.failing % len(ERRORS)]
        raise OSError(number, os.strerror(number), str(args[0]) if args else None)


@contextmanager
def failing_calls(failing: int = 0, *, forever: bool = False, kind: type[Calls] = Calls) -> Iterator[Calls]:
    """Count renames, links, removals, new folders, flushes and files opened to write, and let one of them fail."""
    calls = kind(failing, forever=forever)
    patches = [patch.object(module, name, calls.wrap(getattr(module, name), opens=False)) for module, name in FUNCTIONS]
    patches += [patch.object(module, name, calls.wrap(getattr(module, name), opens=True)) for module, name in OPENERS]
    for change in patches:
        change.start()
    try:
        yield calls
    finally:
        for change in reversed(patches):
            change.stop()
