"""Taggers compared on one image: no caption is written, and one that cannot be used does not end the others."""

from __future__ import annotations

from lora_studio.dataset.tagging.compare import ComparedTagger
from lora_studio.errors import InputError
from lora_studio.ui.dataset.tagging_view import comparison
from tests.support.tagging_jobs import RedTagger, TaggingJob


def test_taggers_are_compared_side_by_side_without_writing_captions(studio: TaggingJob) -> None:
    image = studio.add("a.png", 7, "by hand")
    other = studio.add("b.png", 8)
    captioner = RedTagger("captioner", confidence=0.1)
    captioner.sentence = "a red square"
    studio.taggers["captioner"] = captioner
    result = studio.run(also=["captioner"], threshold=0.6, compare=image)
    first, second = result.compared
    assert (first.tagger, first.sentence, [tag.name for tag in first.tags]) == ("red", "", ["red 7"])
    assert (second.tagger, second.sentence, second.tags) == ("captioner", "a red square", [])
    assert first.seconds is not None
    assert studio.captions() == {"a.txt": "by hand"}
    assert not other.with_suffix(".txt").exists()
    assert not studio.history.can_undo


def test_a_tagger_that_cannot_be_used_is_reported_beside_the_others(studio: TaggingJob) -> None:
    image = studio.add("a.png", 7)

    class Broken(RedTagger):
        def load(self, *, on_cpu: bool = False) -> RedTagger:
            raise InputError("Its file is damaged.", "Download it again.", code="tagger_broken")

    studio.taggers["broken"] = Broken("broken")
    result = studio.run(tagger="broken", also=["red"], compare=image)
    assert [compared.error for compared in result.compared] == ["Its file is damaged. Download it again.", ""]


def test_a_cached_prediction_is_compared_without_the_model(studio: TaggingJob) -> None:
    image = studio.add("a.png", 7)
    studio.run()
    loaded = studio.tagger.loaded
    studio.job_path = studio.job_path.with_name("again")
    (compared,) = studio.run(compare=image).compared
    assert studio.tagger.loaded == loaded
    assert compared.seconds is None


def test_texts_of_models_are_escaped() -> None:
    shown = comparison("<a>.png", [ComparedTagger(tagger="<b>", sentence="<script>", error="<i>")])
    for name in ("a", "b", "script", "i"):
        assert f"<{name}>" not in shown
