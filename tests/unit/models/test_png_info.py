from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_studio.models.png_info import infotext, read_parameters, save_png


@settings(max_examples=30)
@given(st.text(max_size=200).filter(lambda text: "\0" not in text))
def test_prompt_round_trips_through_the_file(tmp_path_factory: pytest.TempPathFactory, prompt: str) -> None:
    path = tmp_path_factory.mktemp("png") / "x.png"
    prompt = prompt.encode("utf-8", "ignore").decode()
    save_png(Image.new("RGB", (8, 8)), path, prompt)
    assert read_parameters(path) == prompt


def test_infotext_has_a1111s_format() -> None:
    text = infotext("a cat", "blurry", {"Steps": 20, "CFG scale": "6", "Lora hashes": "ink: abc", "Note": 'a "b"'})
    assert text == (
        'a cat\nNegative prompt: blurry\nSteps: 20, CFG scale: 6, Lora hashes: "ink: abc", Note: "a \\"b\\""'
    )
    assert infotext("a cat", "", {"Steps": 20}) == "a cat\nSteps: 20"


def test_broken_files_and_files_without_parameters_give_none(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    save_png(Image.new("RGB", (64, 64), (200, 30, 30)), path, "x")
    assert read_parameters(path) == "x"
    path.write_bytes(path.read_bytes()[:-30])
    assert read_parameters(path) is None
    assert read_parameters(tmp_path / "gone.png") is None
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    assert read_parameters(tmp_path / "bare.png") is None
