"""`caption DIR ...` on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_studio.cli.main import app
from lora_studio.dataset.captions.text import read_caption
from lora_studio.errors import InputError


def run(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["caption", str(folder), *words])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def run_json(folder: Path, *words: str) -> Any:
    return json.loads(run(folder, *words, "--json"))


@pytest.fixture
def folder(image_folder: Callable[..., Path]) -> Path:
    """Three images with captions `inkstamp_hc, thing N, round`."""
    return image_folder(3)


def captions(folder: Path) -> list[str | None]:
    return [read_caption(image) for image in sorted(folder.glob("*.png"))]


def test_extension_chooses_the_captions_of_all_commands(folder: Path) -> None:
    assert run_json(folder, "extension") == {"suffixes": [".txt", ".caption"]}
    run(folder, "extension", ".tags")
    run(folder, "add", "new")
    assert captions(folder) == ["new"] * 3
    assert (folder / "picture 0.txt").read_text() == "inkstamp_hc, thing 0, round"
    assert run(folder, "extension", "").strip() == ".txt or .caption"
    assert captions(folder)[0] == "inkstamp_hc, thing 0, round"


def test_lint_lists_and_fixes_problems(folder: Path) -> None:
    (folder / "picture 1.txt").write_text("thing 1,, day, night")
    found = run_json(folder, "lint", "--trigger", "inkstamp_hc")["findings"]
    assert [finding["code"] for finding in found] == ["trigger_missing", "contradictory", "untidy"]
    assert found[2]["images"] == [str(folder / "picture 1.png")]
    assert "--fix contradictory:day/night:night    Remove night" in run(folder, "lint")
    fixes = ["--fix", "untidy", "--fix", "trigger_missing", "--fix", "contradictory:day/night:night"]
    after = run_json(folder, "lint", "--trigger", "inkstamp_hc", *fixes)
    assert after["findings"] == []
    assert len(after["fixed"]) == 3
    assert captions(folder)[1] == "inkstamp_hc, thing 1, day"
    with pytest.raises(InputError, match="'untidy'"):
        run(folder, "lint", "--fix", "untidy")


def test_edits_are_previewed_applied_listed_and_undone(folder: Path) -> None:
    before = captions(folder)
    shown = run(folder, "replace", "round", "flat", "--dry-run")
    assert "  + inkstamp_hc, thing 0, flat" in shown
    assert re.search(r"\b3 captions.*\b0 unchanged", shown)
    assert captions(folder) == before
    done = run_json(folder, "replace", r"thing (\d)", r"item \1", "--regex")
    assert done["changes"][2]["after"] == "inkstamp_hc, item 2, round"
    assert len(done["changed"]) == 3
    assert "Added red: 3 captions." in run(
        folder, "add", "red", "--position", "after-trigger", "--trigger", "inkstamp_hc"
    )
    run(folder, "remove", "ROUND", "item 0")
    assert captions(folder) == ["inkstamp_hc, red", "inkstamp_hc, red, item 1", "inkstamp_hc, red, item 2"]
    assert [edit["what"] for edit in run_json(folder, "undo", "--list")] == [
        "Removed ROUND, item 0",
        "Added red",
        r"Replaced thing (\d) with item \1",
    ]
    for _ in range(3):
        run(folder, "undo")
    assert captions(folder) == before
    with pytest.raises(InputError, match="undo"):
        run(folder, "undo")


def test_review_marks_follow_the_content_of_an_image(folder: Path) -> None:
    assert "0 of 3 reviewed." in run(folder, "review")
    assert len(run_json(folder, "review", "--mark", "picture 0.png", str(folder / "picture 1.png"))["reviewed"]) == 2
    for suffix in ("png", "txt"):
        (folder / f"picture 0.{suffix}").rename(folder / f"renamed.{suffix}")
    assert "2 of 3 reviewed." in run(folder, "review")
    assert "1 of 3 reviewed." in run(folder, "review", "--unmark", "renamed.png")
    with pytest.raises(InputError) as caught:
        run(folder, "review", "--mark", "../other.png")
    assert caught.value.code == "no_image"
    with pytest.raises(InputError) as caught:
        run(folder, "review", "--mark")
    assert caught.value.code == "usage"


def test_stats_count_tags_and_cooccurrence(folder: Path) -> None:
    found = run_json(folder, "stats", "--tag", "thing 1")
    assert found["tags"][0] == {"tag": "inkstamp_hc", "images": 3, "share": 1.0}
    assert [count["tag"] for count in found["together"]] == ["inkstamp_hc", "round"]
    assert found["split"]["held_out"] == []
    assert re.search(r"\b3 of 3 images .*\b5 ", run(folder, "stats"))
