"""Fixtures for all kinds of tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image, ImageDraw

from lora_studio.workspace.project import Home

settings.register_profile("studio", deadline=None)  # a busy machine can stall for seconds
settings.load_profile("studio")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty studio home for this test."""
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "home"))
    return Home.locate()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random SDXL in diffusers layout, 64 px native."""
    from tests.support.tiny_sdxl import save_tiny_sdxl

    return save_tiny_sdxl(tmp_path_factory.mktemp("tiny_sdxl"))


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes different images: `image_folder(count, size=(w, h), captions=True)`."""

    def make(count: int = 4, size: tuple[int, int] = (96, 96), captions: bool = True, name: str = "images") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for index in range(count):
            image = Image.new("RGB", size, (40 * index % 256, 90, 255 - 30 * index % 256))
            draw = ImageDraw.Draw(image)
            draw.ellipse((5 + 7 * index, 10, 40 + 7 * index, 60), fill=(255, 200, 17 * index % 256))
            draw.line((0, 9 * index, size[0], size[1] - 5 * index), fill=(0, 0, 0), width=5)
            image.save(folder / f"picture {index}.png")
            if captions:
                (folder / f"picture {index}.txt").write_text(f"inkstamp_hc, thing {index}, round", "utf-8")
        return folder

    return make
