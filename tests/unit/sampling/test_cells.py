from __future__ import annotations

import pytest

from lora_studio.sampling.cells import fill_trigger


@pytest.mark.parametrize(
    ("prompt", "trigger", "filled"),
    [
        ("{trigger}, smiling", "saria", "saria, smiling"),
        ("{trigger}, smiling", "", "smiling"),
        ("a cat, {trigger} , red", "", "a cat, red"),
        ("{trigger}", "", ""),
        ("a cat,  red", "", "a cat,  red"),
        ("{trigger} and {trigger}", "x", "x and x"),
    ],
)
def test_trigger_placeholder_is_replaced_or_removed(prompt: str, trigger: str, filled: str) -> None:
    assert fill_trigger(prompt, trigger) == filled
