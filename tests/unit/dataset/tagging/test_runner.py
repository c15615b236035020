"""Taggers run in batches: cached predictions, and batches that do not fit in memory."""

from __future__ import annotations

import pytest
import torch

from lora_studio.dataset.images.decode import file_sha256
from lora_studio.dataset.tagging.cache import cached_confidences, cached_predictions
from lora_studio.settings.choices import ExistingCaptions
from tests.support.tagging_jobs import RedTagger, TaggingJob


def test_other_settings_use_cached_predictions(studio: TaggingJob) -> None:
    for index in range(5):
        studio.add(f"{index}.png", index)
    studio.run(existing=ExistingCaptions.OVERWRITE, trigger_word="ohwx")
    studio.add("5.png", 5)
    (studio.images / "0.png").rename(studio.images / "renamed.png")
    studio.job_path = studio.job_path.with_name("again")
    settings = {"threshold": 0.6, "character_threshold": 0.7, "exclude_tags": "red_2"}
    assert studio.run(existing=ExistingCaptions.OVERWRITE, **settings).tagged == 6
    said = {name: caption for name, caption in studio.captions().items() if name != "0.txt"}
    assert said == {
        "1.txt": "red 1, hero",
        "2.txt": "hero",
        "3.txt": "red 3, hero",
        "4.txt": "red 4, hero",
        "5.txt": "red 5, hero",
        "renamed.txt": "red 0, hero",
    }
    assert sum(studio.tagger.batches) == 6  # only the new image was predicted
    studio.job_path = studio.job_path.with_name("third")
    studio.run(existing=ExistingCaptions.OVERWRITE, only_tags="thing, red 1")
    assert studio.captions()["1.txt"] == "red 1, thing"
    assert studio.tagger.loaded == 2


def test_two_taggers_are_merged_and_each_is_loaded_once(studio: TaggingJob) -> None:
    studio.taggers["other"] = RedTagger("other", confidence=0.95)
    studio.taggers["other"].sentence = "a picture"
    for index in range(3):
        studio.add(f"{index}.png", index)
    studio.run(tagger="other", also=["red"])
    assert studio.captions() == {f"{index}.txt": f"a picture, red {index}, thing" for index in range(3)}
    assert [tagger.loaded for tagger in studio.taggers.values()] == [1, 1]
    assert cached_predictions(studio.home, [file_sha256(studio.images / "1.png")]) is not None
    assert cached_confidences(studio.home, file_sha256(studio.images / "1.png"))["hero"] == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch_and_tags_every_image_once(studio: TaggingJob, error: Exception) -> None:
    studio.tagger.max_batch, studio.tagger.error = 1, error
    for index in range(5):
        studio.add(f"{index}.png", index)
    assert studio.run().tagged == 5
    assert studio.tagger.batches == [1] * 5
    studio.tagger.max_batch, studio.tagger.name = 0, "none fits"
    studio.job_path = studio.job_path.with_name("again")
    with pytest.raises(type(error)) as caught:
        studio.run(existing=ExistingCaptions.OVERWRITE)
    assert caught.value is error


def test_other_errors_of_the_model_end_the_job_at_once(studio: TaggingJob) -> None:
    studio.tagger.max_batch, studio.tagger.error = 1, RuntimeError("shapes do not match")
    for index in range(3):
        studio.add(f"{index}.png", index)
    with pytest.raises(RuntimeError, match="shapes"):
        studio.run()
    assert studio.tagger.batches == []
