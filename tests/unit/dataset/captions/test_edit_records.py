"""The records of caption edits: what they store, and records that are torn, damaged or lead outside of the dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.dataset.captions import edits
from lora_studio.dataset.captions.edit_history import CaptionHistory, EditState
from lora_studio.dataset.captions.edits import plan_edit
from lora_studio.dataset.captions.text import read_caption
from lora_studio.errors import InputError
from tests.support.captions import apply_edit, caption_contents, tag_in_batches


def test_refuses_a_record_with_a_path_outside_of_the_dataset(caption_folder: Path) -> None:
    apply_edit(caption_folder, edits.add("new"))
    [record] = (caption_folder / "caption_edits").glob("*.jsonl")
    record.write_text(record.read_text().replace('"a.png"', '"../a.png"'))
    with pytest.raises(InputError) as caught:
        CaptionHistory.of(caption_folder).undo()
    assert caught.value.code == "edit_record"


@pytest.mark.parametrize("torn", [b"{", b'{"image": "d.png", "before": null, "encoding": "utf-8", "after": "x"}'])
def test_a_torn_last_line_is_ignored_and_replaced(caption_folder: Path, torn: bytes) -> None:
    before = caption_contents(caption_folder)
    tag_in_batches(caption_folder, "a")
    [record] = (caption_folder / "caption_edits").glob("*.jsonl")
    record.write_bytes(record.read_bytes() + torn)
    assert [edit.images for edit in CaptionHistory.of(caption_folder).edits()] == [1]
    tag_in_batches(caption_folder, "b", resume=True)
    assert [edit.images for edit in CaptionHistory.of(caption_folder).edits()] == [2]
    CaptionHistory.of(caption_folder).undo()
    assert caption_contents(caption_folder) == before


@pytest.mark.parametrize("heading", ["", "[]", "{}", '{"what": "Added", "time": "never"}', "{"])
def test_a_damaged_record_is_an_input_error_and_does_not_stop_other_edits(caption_folder: Path, heading: str) -> None:
    apply_edit(caption_folder, edits.add("new"))
    [record] = (caption_folder / "caption_edits").glob("*.jsonl")
    record.write_text(heading + "\n" + record.read_text().partition("\n")[2])
    history = CaptionHistory.of(caption_folder)
    with pytest.raises(InputError) as caught:
        history.edits()
    assert caught.value.code == "edit_record"
    assert history.state_of_job(caption_folder / "job") is EditState.NONE
    tag_in_batches(caption_folder, "a", resume=True)
    assert history.state_of_job(caption_folder / "job") is EditState.NEWEST
    assert len(history.undo().changed) == 1


def test_names_that_are_not_utf8_are_recorded_and_read(caption_folder: Path) -> None:
    image = caption_folder / "a\udcff.png"
    image.write_bytes(b"")
    history = CaptionHistory.of(caption_folder)
    history.apply(plan_edit([image], edits.set_text("new", f"Edited {image.name}")))
    assert [edit.what for edit in history.edits()] == [f"Edited {image.name}"]
    assert history.undo().changed == [image]
    assert read_caption(image) is None
