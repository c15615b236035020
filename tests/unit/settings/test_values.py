"""Values of settings as text."""

from __future__ import annotations

import pytest

from lora_studio.settings.values import format_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5e-4, "5e-4"),
        (0.05, "0.05"),
        (1.0, "1"),
        (2_000_000.0, "2e6"),
        (0.0, "0"),
        (True, "on"),
        (None, "empty"),
        ("", "empty"),
        (["a", "b"], "a\nb"),
        (32, "32"),
    ],
)
def test_values_have_their_usual_notation(value: object, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize("value", [1 / 3, 5e-4, 1.5e-7, 123456.789, 3e20])
def test_numbers_keep_their_exact_value(value: float) -> None:
    assert float(format_value(value)) == value
