"""The start page: recent projects and what a computer can train."""

from __future__ import annotations

import re

import pytest

from lora_studio.ui.welcome import MAX_RECENT, STEPS, recent_projects, what_fits
from lora_studio.ui.widgets.html import STATIC
from lora_studio.workspace.project import Home


@pytest.mark.parametrize("vram_gib", [8, 24])
def test_the_batch_that_fits_takes_no_more_than_the_gpu_has(vram_gib: int) -> None:
    text = what_fits(vram_gib)
    needed = re.search(r"batch (\d+) at 1024 px takes about ([\d.]+) GiB", text)
    assert needed is not None
    assert float(needed[2]) < vram_gib
    assert ("saves memory" in text) == (vram_gib == 8)


def test_a_gpu_that_is_too_small_gets_the_memory_that_sdxl_needs() -> None:
    assert "SDXL needs about" in what_fits(2)


def test_recent_projects_are_buttons_and_the_others_are_counted(home: Home) -> None:
    assert recent_projects([]) == ""
    for number in range(MAX_RECENT + 2):
        home.create_project(f"project {number}")
    shown = recent_projects(home.recent_projects())
    assert shown.count("data-pick=") == MAX_RECENT
    assert "2 more" in shown


def test_each_step_has_its_picture() -> None:
    for name, _, _ in STEPS:
        assert (STATIC / "welcome" / f"{name}.webp").read_bytes()[8:12] == b"WEBP"
