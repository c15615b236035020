"""Whether a caption begins with the trigger word."""

from __future__ import annotations

import pytest

from lora_studio.ui.dataset.image_item import has_trigger


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("ohwx, cat", "ohwx", True),
        ("OHWX, cat", "ohwx", True),
        ("ohwx woman, smiling", "ohwx", True),
        ("cat, ohwx", "ohwx", False),
        ("cat", "ohwx", False),
        ("", "ohwx", False),
        ("cat", "", True),
        ("a1, b2, cat", "a1, b2", True),
        ("a1, cat", "a1, b2", False),
    ],
)
def test_has_trigger(caption: str, trigger: str, expected: bool) -> None:
    assert has_trigger(caption, trigger) is expected
