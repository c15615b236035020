"""The collector of garbage in the app's process.

Modules and the contents of a large dataset are some hundred thousand objects that stay: a pass of the collector through
10,000 images takes a tenth of a second of whatever click it falls on. So they are set apart for good. What is set apart
is still freed when nothing refers to it; only rings of objects among it, of which contents have none, would stay.
This is the interface's business alone: a script that uses the library keeps the collector as it is.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Whatever is made within is made without looking for garbage, and never looked through afterwards."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
