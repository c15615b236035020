"""Notes and stars of a run on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.errors import ConfigError, InputError
from lora_studio.workspace.run_notes import NOTES_FILE, RunNotes, change_notes, read_notes


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").touch()
    return tmp_path


def test_stars_and_notes_are_changed_one_at_a_time(run: Path) -> None:
    assert read_notes(run) == RunNotes()
    change_notes(run, stars=3)
    change_notes(run, notes="hands are off\nlower rate next")
    assert read_notes(run) == RunNotes(stars=3, notes="hands are off\nlower rate next")
    change_notes(run, notes="")
    assert read_notes(run) == RunNotes(stars=3)


@pytest.mark.parametrize("change", [{"stars": 6}, {"stars": -1}, {"notes": "x" * 20_001}])
def test_values_out_of_bounds_change_nothing(run: Path, change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        change_notes(run, **change)
    assert not (run / NOTES_FILE).exists()


def test_damaged_notes_are_not_overwritten(run: Path) -> None:
    (run / NOTES_FILE).write_text("{", "utf-8")
    with pytest.raises(InputError) as raised:
        change_notes(run, stars=1)
    assert raised.value.code == "notes"
    assert (run / NOTES_FILE).read_text("utf-8") == "{"


def test_a_folder_without_a_job_gets_no_notes(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        change_notes(tmp_path, stars=1)
    assert raised.value.code == "no_job"
