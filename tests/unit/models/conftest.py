"""A small base model as a folder and as a single file, shared by the tests of models."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline

from lora_studio.models import load, locate
from tests.support.original_layout import save_single_file
from tests.support.tiny_sdxl import save_tiny_sdxl


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL in diffusers layout."""
    return save_tiny_sdxl(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def single(base: Path) -> Path:
    """The same model as one file in the original layout."""
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    return save_single_file(pipe, base.parent / "tiny.safetensors")


@pytest.fixture
def tiny_config(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace SDXL's bundled configuration by the tiny model's."""
    for module in (load, locate):
        monkeypatch.setattr(module, "SDXL_CONFIG", base)
