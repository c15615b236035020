from __future__ import annotations

from PIL import Image

from lora_studio.sampling.measures import MEASURE_DESCRIPTIONS, measure


def test_measures_of_known_images() -> None:
    black, white, red = (Image.new("RGB", (64, 64), color) for color in ("black", "white", "#ff0000"))
    half = black.copy()
    half.paste("white", (0, 0, 32, 64))
    flat = measure({"a": black, "b": white}, {"a": black, "b": black})
    assert flat == {"change": 0.5, "saturation": 0.0, "contrast": 0.0, "clipped": 1.0, "variety": 1.0}
    assert measure({"a": half}, {}) == {
        "change": None,
        "saturation": 0.0,
        "contrast": 0.5,
        "clipped": 1.0,
        "variety": None,
    }
    colored = measure({"a": red}, {"a": red})
    assert (colored["change"], colored["saturation"], colored["clipped"]) == (0.0, 1.0, 0.0)
    assert measure({"a": red, "b": red}, {})["variety"] == 0
    assert set(flat) == set(MEASURE_DESCRIPTIONS)
