"""The Chromium that the browser tests and benchmarks use, and the size of its window."""

from __future__ import annotations

import os
from typing import Any

CHROMIUM = os.environ.get("LORA_STUDIO_CHROMIUM") or "/usr/bin/chromium"
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
DESKTOP = (1360, 860)
PAGE_TIMEOUT_MS = 60_000  # Playwright's timeout for each action; long enough for a busy machine


def reload(page: Any) -> None:
    """Reload a page. What the old page reports of the requests that this interrupts is left out."""
    page.evaluate("() => { console.error = () => {}; }")
    page.reload()
