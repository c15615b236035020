"""The tagging stage: captions that are written and kept, stop and resume, undo and redo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_studio import api
from lora_studio.dataset.captions import edit_history
from lora_studio.dataset.captions.text import split_tags
from lora_studio.dataset.marks import Marks, load_marks, save_marks
from lora_studio.dataset.review import mark_reviewed, review_status
from lora_studio.dataset.tagging import stage as tagging
from lora_studio.dataset.tagging.stage import TagResult, combined_caption
from lora_studio.errors import DiskFullError, InputError
from lora_studio.settings.choices import ExistingCaptions
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from tests.support.events import records_of
from tests.support.tagging_jobs import TaggingJob
from tests.support.tiny_taggers import save_tiny_wd


def test_captions_every_image_with_the_trigger_word_first(studio: TaggingJob) -> None:
    for index in range(6):
        studio.add(f"{index}.png", index)
    studio.add("5_more/a.png", 77)
    result = studio.run(trigger_word="ohwx")
    assert result == TagResult(tagged=7)
    assert studio.captions() == {
        **{f"{index}.txt": f"ohwx, red {index}, thing" for index in range(6)},
        "5_more/a.txt": "ohwx, red 77, thing",
    }
    tagged = records_of(studio.folder, "tagged")
    assert [(event["done"], event["total"]) for event in tagged] == [(done, 7) for done in range(1, 8)]
    assert tagged[-1]["seconds_left"] == 0
    assert tagged[0]["caption"] == "ohwx, red 0, thing"
    assert sum(studio.tagger.batches) == 7


def test_captions_are_written_with_the_extension_of_the_dataset(studio: TaggingJob) -> None:
    studio.add("a.png", 1, "by hand")
    api.set_caption_extension(studio.images, ".tags")
    assert studio.run() == TagResult(tagged=1)
    assert (studio.images / "a.tags").read_text() == "red 1, thing"
    assert studio.captions() == {"a.txt": "by hand"}


@pytest.mark.parametrize("earlier_version", [False, True])
def test_captions_that_tagging_changed_are_no_longer_reviewed(studio: TaggingJob, earlier_version: bool) -> None:
    images = [studio.add("changed.png", 1, "smiling"), studio.add("same.png", 2, "red 2, thing")]
    review = mark_reviewed(studio.images, images)
    assert len(review.reviewed) == 2
    if earlier_version:
        save_marks(studio.images, Marks(reviewed=load_marks(studio.images).reviewed))
    studio.run(existing=ExistingCaptions.OVERWRITE)
    assert [path.name for path in review_status(studio.images).reviewed] == ["same.png"]
    studio.history.undo()
    assert len(review_status(studio.images).reviewed) == 2


@pytest.mark.parametrize(
    ("existing", "expected", "tagged"),
    [
        (ExistingCaptions.IGNORE, {"a.txt": "smiling, thing", "b.txt": "red 2, thing", "c.txt": "red 3, thing"}, 2),
        (
            ExistingCaptions.APPEND,
            {"a.txt": "smiling, thing, red 1", "b.txt": "red 2, thing", "c.txt": "red 3, thing"},
            3,
        ),
        (ExistingCaptions.OVERWRITE, {"a.txt": "red 1, thing", "b.txt": "red 2, thing", "c.txt": "red 3, thing"}, 3),
    ],
)
def test_existing_captions(
    studio: TaggingJob, existing: ExistingCaptions, expected: dict[str, str], tagged: int
) -> None:
    studio.add("a.png", 1, "smiling, thing")
    studio.add("b.png", 2)
    studio.add("c.png", 3, "  \n")
    result = studio.run(existing=existing)
    assert studio.captions() == expected
    assert (result.tagged, result.skipped) == (tagged, 3 - tagged)
    assert len(studio.names("tagged")) == tagged
    assert studio.names("skipped") == ["a.png"] * (3 - tagged)


def test_append_puts_the_trigger_word_first_and_only_once(studio: TaggingJob) -> None:
    studio.add("a.png", 1, "smiling, OHWX, Thing")
    studio.run(existing=ExistingCaptions.APPEND, trigger_word="ohwx")
    assert studio.captions() == {"a.txt": "ohwx, smiling, Thing, red 1"}


def test_append_without_new_tags_keeps_the_file(studio: TaggingJob) -> None:
    path = studio.add("a.png", 1, "thing,red 1\n")
    result = studio.run(existing=ExistingCaptions.APPEND)
    assert (result.tagged, result.skipped) == (0, 1)
    assert path.with_suffix(".txt").read_text() == "thing,red 1\n"


def test_does_not_look_for_the_tagger_without_images_to_tag(
    studio: TaggingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.add("a.png", 1, "there")
    monkeypatch.setattr(tagging, "find_tagger", lambda *names, **options: pytest.fail("looked for"))
    assert studio.run() == TagResult(skipped=1)


def test_reports_broken_images_and_tags_the_others(studio: TaggingJob) -> None:
    studio.add("a.png", 1)
    (studio.images / "b.png").write_text("no image")
    studio.add("c.png", 3)
    result = studio.run()
    assert (result.tagged, [item.path.name for item in result.failed]) == (2, ["b.png"])
    assert "b.png" in result.failed[0].message
    assert list(studio.captions()) == ["a.txt", "c.txt"]
    failed = next(event for event in studio.events if event["event"] == "image_failed")
    assert failed["message"] == result.failed[0].message


def test_writes_no_empty_caption_if_no_tag_reaches_the_threshold(studio: TaggingJob) -> None:
    studio.add("a.png", 1)
    studio.add("b.png", 2, "mine")
    result = studio.run(existing=ExistingCaptions.OVERWRITE, threshold=0.95)
    assert studio.captions() == {"b.txt": "mine"}
    assert "0.95" in result.failed[0].message


def test_keeps_sentences_whole(studio: TaggingJob) -> None:
    studio.add("a.png", 1, "a drawing")
    studio.tagger.sentence = "a cat, sitting on a mat"
    studio.run(existing=ExistingCaptions.APPEND, trigger_word="ohwx", threshold=1)
    assert studio.captions() == {"a.txt": "ohwx, a drawing, a cat, sitting on a mat"}


@pytest.mark.parametrize("existing", list(ExistingCaptions))
def test_stop_and_resume_tag_every_image_once(studio: TaggingJob, existing: ExistingCaptions) -> None:
    for index in range(10):
        studio.add(f"{index}.png", index, "old" if index in (1, 7) else None)
    studio.stop_after = 3
    first = studio.run(existing=existing)
    assert first.stopped
    assert 3 <= first.tagged < 8
    (studio.images / "0.txt").write_text("edited while it was stopped")
    studio.stop_after = 10**9
    second = studio.run(resume=True)
    expected = 8 if existing is ExistingCaptions.IGNORE else 10
    assert (second.tagged, second.skipped, second.stopped) == (expected, 10 - expected, False)
    assert len(studio.names("tagged")) == len(set(studio.names("tagged"))) == expected
    assert studio.captions()["0.txt"] == "edited while it was stopped"
    expected_captions = {}
    for index in range(10):
        said = f"red {index}, thing"
        old = {"ignore": "old", "append": f"old, {said}", "overwrite": said}[existing.value]
        expected_captions[f"{index}.txt"] = old if index in (1, 7) else said
    assert studio.captions() == expected_captions | {"0.txt": "edited while it was stopped"}
    assert studio.events[-1]["done"] == studio.events[-1]["total"] == 10


def test_undo_restores_the_captions_byte_for_byte_and_redo_writes_them_again(studio: TaggingJob) -> None:
    studio.add("old.png", 1)
    latin = "café, naïve\r\n".encode("latin-1")
    (studio.images / "old.txt").write_bytes(latin)
    studio.add("new.png", 2)
    studio.add("edited.png", 3, "mine")
    dotted = studio.add("dotted.png", 4)
    dotted.with_suffix(".caption").write_text("theirs")
    studio.run(existing=ExistingCaptions.OVERWRITE)
    tagged = studio.captions()
    (studio.images / "edited.txt").write_text("better words")
    [edit] = studio.history.edits()
    assert (edit.what, edit.images, edit.undone) == ("Tagged with red", 4, False)
    report = studio.history.undo()
    assert (studio.images / "old.txt").read_bytes() == latin
    assert sorted(path.name for path in studio.images.glob("*.txt")) == ["edited.txt", "old.txt"]
    assert (studio.images / "edited.txt").read_text() == "better words"
    assert dotted.with_suffix(".caption").read_text() == "theirs"
    assert sorted(path.name for path in report.changed) == ["dotted.png", "new.png", "old.png"]
    assert [item.image.name for item in report.kept] == ["edited.png"]
    studio.history.redo()
    assert studio.captions() == tagged | {"edited.txt": "better words"}


def test_a_resumed_job_that_changed_a_caption_twice_is_one_edit(studio: TaggingJob) -> None:
    path = studio.add("a.png", 1, "first")
    studio.run(existing=ExistingCaptions.OVERWRITE)
    [record] = studio.history.folder.glob("*.jsonl")
    with record.open("a") as lines:
        lines.write('{"image": "torn')
    (studio.job_path / "events.jsonl").unlink()  # as if the machine had died before the event was written
    path.with_suffix(".txt").write_text("first")
    studio.tagger.name = "another"
    studio.tagger.sentence = "second"
    studio.run(resume=True)
    assert studio.captions() == {"a.txt": "second, red 1, thing"}
    assert len(studio.history.edits()) == 1
    assert studio.history.undo().kept == []
    assert studio.captions() == {"a.txt": "first"}
    studio.history.redo()
    assert studio.captions() == {"a.txt": "second, red 1, thing"}


def test_a_stopped_and_resumed_job_is_one_edit(studio: TaggingJob) -> None:
    for index in range(10):
        studio.add(f"{index}.png", index)
    studio.stop_after = 3
    assert studio.run().stopped
    studio.stop_after = 10**9
    studio.run(resume=True)
    assert [edit.images for edit in studio.history.edits()] == [10]
    studio.history.undo()
    assert studio.captions() == {}


def test_a_job_resumed_after_its_undo_starts_another_edit(studio: TaggingJob) -> None:
    for index in range(10):
        studio.add(f"{index}.png", index)
    studio.stop_after = 3
    studio.run()
    studio.history.undo()
    studio.stop_after = 10**9
    studio.run(resume=True)
    [edit] = studio.history.edits()
    assert not edit.undone
    assert 0 < edit.images < 10
    studio.history.undo()
    assert studio.captions() == {}


def test_an_edit_of_another_image_during_the_job_leaves_it_one_edit(studio: TaggingJob) -> None:
    studio.interrupt_with(lambda: studio.edit("0.png", "mine"))
    studio.run(existing=ExistingCaptions.OVERWRITE)
    assert [edit.what for edit in studio.history.edits()] == ["Edited 0.png", "Tagged with red"]
    studio.history.undo()
    assert studio.captions()["0.txt"] == "red 0, thing"
    studio.history.undo()
    assert studio.captions() == {}


def test_a_caption_edited_before_the_job_overwrites_it_can_be_undone_to_the_edit(studio: TaggingJob) -> None:
    studio.interrupt_with(lambda: studio.edit("9.png", "mine"))
    studio.run(existing=ExistingCaptions.OVERWRITE)
    assert [edit.what for edit in studio.history.edits()] == [
        "Tagged with red",
        "Edited 9.png",
        "Tagged with red",
    ]
    studio.history.undo()
    assert studio.captions()["9.txt"] == "mine"
    studio.history.undo()
    assert "9.txt" not in studio.captions()
    studio.history.undo()
    assert studio.captions() == {}


def test_a_job_that_changed_nothing_is_not_an_edit(studio: TaggingJob) -> None:
    studio.add("a.png", 1, "kept")
    studio.run()
    assert studio.history.edits() == []


def test_images_of_a_linked_set_folder_are_tagged_and_undone(studio: TaggingJob, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (studio.images / "5_set").symlink_to(elsewhere, target_is_directory=True)
    studio.add("5_set/a.png", 1)
    studio.run()
    assert studio.captions() == {"5_set/a.txt": "red 1, thing"}
    studio.history.undo()
    assert studio.captions() == {}


def test_a_full_disk_ends_the_job_and_keeps_what_is_done(studio: TaggingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    studio.add("a.png", 1, "old a")
    studio.add("b.png", 2, "old b")
    write = edit_history.write_many

    def full(contents: dict[Path, bytes]) -> None:
        write({path: data for path, data in contents.items() if path.name != "b.txt"})
        if any(path.name == "b.txt" for path in contents):
            raise DiskFullError("No room left.", "Free some.")

    monkeypatch.setattr(edit_history, "write_many", full)
    with pytest.raises(DiskFullError):
        studio.run(existing=ExistingCaptions.OVERWRITE)
    assert studio.captions() == {"a.txt": "red 1, thing", "b.txt": "old b"}
    monkeypatch.setattr(edit_history, "write_many", write)
    again = studio.run(resume=True)
    assert (again.tagged, again.skipped, studio.tagger.loaded) == (1, 1, 1)
    studio.history.undo()
    assert studio.captions() == {"a.txt": "old a", "b.txt": "old b"}


def test_refuses_a_folder_without_images(studio: TaggingJob) -> None:
    with pytest.raises(InputError) as caught:
        studio.run()
    assert caught.value.code == "no_images"


def test_tag_function_with_a_tiny_wd_tagger(image_folder: Callable[..., Path], tmp_path: Path, home: Home) -> None:
    images, tagger = image_folder(3, captions=False), save_tiny_wd(tmp_path / "wd")
    events: list[str] = []
    result = api.tag(
        images,
        tagger=str(tagger),
        threshold=0.1,
        trigger_word="ohwx",
        out=tmp_path / "job",
        home=home,
        on_event=lambda event: events.append(event.name),
    )
    assert result.tagged == 3
    for path in images.glob("*.txt"):
        caption = path.read_text()
        assert caption.startswith("ohwx, ")
        assert set(split_tags(caption)) == {"ohwx", "1girl", "long hair", "^_^", "hat (object)", "red", "green", "blue"}
    folder = JobFolder(tmp_path / "job")
    assert folder.status().state is JobState.DONE
    assert folder.result() == {"tagged": 3, "skipped": 0, "failed": [], "stopped": False, "compared": []}
    assert events.count("tagged") == 3


tags = st.text(st.characters(codec="ascii", exclude_characters=",", exclude_categories=["C"]), min_size=1, max_size=8)


@settings(max_examples=60)
@given(old=st.lists(tags, max_size=5), said=st.lists(tags, max_size=5), trigger=st.sampled_from(["", "ohwx"]))
def test_append_loses_no_tag_and_repeats_none(old: list[str], said: list[str], trigger: str) -> None:
    def append(text: str) -> str:
        return combined_caption(text, ", ".join(said), ExistingCaptions.APPEND, trigger)

    combined = split_tags(append(", ".join(old)))
    folded = {part.casefold() for part in combined}
    for part in split_tags(", ".join([*old, *said])):
        assert part.casefold() in folded or "ohwx" in part.casefold()
    assert split_tags(append(", ".join(combined))) == combined


def test_excluded_tags_are_not_written_but_kept_in_existing_captions(studio: TaggingJob) -> None:
    studio.add("a.png", 10)
    studio.add("b.png", 20, "Thing, my own")
    studio.run(existing=ExistingCaptions.APPEND, trigger_word="ohwx", exclude_tags="thing, red")
    assert studio.captions() == {"a.txt": "ohwx, red 10", "b.txt": "ohwx, Thing, my own, red 20"}
