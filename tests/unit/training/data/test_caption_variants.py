"""Caption augmentation: tag shuffling, tag and caption dropout, and the cached variants of frozen text encoders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.dataset.buckets import Placement
from lora_studio.dataset.captions.text import split_fixed_tags, split_tags
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.data.caption_variants import captions_to_cache, shuffle_and_drop_tags, training_caption
from lora_studio.training.data.dataset import Dataset, TrainItem
from lora_studio.training.data.rng import generator
from tests.support.training_runs import make_job

CAPTION = "ohwx woman, smiling, red hair, forest, sitting, blue dress"
tags = st.lists(st.sampled_from(["cat", "red hair", "ohwx", "a b", "Forest", "x", "ohwxes"]), max_size=7)


def job_of(**recipe: object) -> TrainJob:
    job = make_job("base", Path("data"), **recipe)
    job.trigger_word = "ohwx"
    return job


def item_of(caption: str = CAPTION, sha256: str = "ab12" * 16, *, prior: bool = False) -> TrainItem:
    return TrainItem(
        Path("a.png"), sha256, (64, 64), Placement((64, 64), (64, 64), (0, 0)), caption, True, 1, "x", prior=prior
    )


@given(parts=tags, keep=st.integers(0, 9), trigger=st.sampled_from(["", "ohwx", "OHWX", "red hair, ohwx", "dog"]))
def test_fixed_and_free_tags_are_all_tags_of_the_caption(parts: list[str], keep: int, trigger: str) -> None:
    caption = ", ".join(parts)
    fixed, free = split_fixed_tags(caption, trigger, keep)
    whole = split_tags(caption)
    assert Counter(fixed + free) == Counter(whole)
    assert free == [tag for tag in whole if tag in free]
    assert set(whole[:keep]) <= set(fixed)
    named = [word for word in split_tags(trigger.lower()) if word in [tag.lower() for tag in whole]]
    assert [tag.lower() for tag in fixed[: len(named)]] == named
    assert len(fixed) <= len(named) + keep


@given(
    parts=tags,
    keep=st.integers(0, 4),
    rate=st.sampled_from([0.0, 0.3, 1.0]),
    shuffle=st.booleans(),
    number=st.integers(0, 50),
)
def test_fixed_tags_stay_first_when_tags_are_shuffled_and_dropped(
    parts: list[str], keep: int, rate: float, shuffle: bool, number: int
) -> None:
    job = job_of(shuffle_caption=shuffle, keep_tokens=keep, caption_tag_dropout_rate=rate)
    caption = ", ".join(parts)
    fixed, free = split_fixed_tags(caption, "ohwx", keep)
    tags_found = split_tags(shuffle_and_drop_tags(caption, job, generator(1, "test", number)))
    assert tags_found[: len(fixed)] == fixed
    rest = tags_found[len(fixed) :]
    assert set(rest) <= set(free)
    if rate == 0:
        assert Counter(rest) == Counter(free)
    if rate == 1:
        assert rest == []
    if not shuffle:
        assert rest == [tag for tag in free if tag in rest]


def test_a_tag_that_contains_the_trigger_word_is_moved_to_the_front() -> None:
    assert split_fixed_tags("smiling, photo of ohwx woman, ohwx again", "ohwx", 1) == (
        ["photo of ohwx woman", "smiling"],
        ["ohwx again"],
    )


def test_captions_are_unchanged_without_augmentation() -> None:
    item = item_of("A sentence,with  odd, commas.")
    assert {training_caption(item, job_of(), step, 0, cached=step > 5) for step in range(10)} == {item.caption}
    assert captions_to_cache(job_of(), Dataset([item], [])) == [item.caption]


@pytest.mark.parametrize("cached", [True, False])
def test_a_caption_depends_on_step_and_sample_alone(cached: bool) -> None:
    job = job_of(shuffle_caption=True)
    first = [training_caption(item_of(), job, step, sample, cached=cached) for step in range(30) for sample in range(2)]
    assert first == [
        training_caption(item_of(), job, step, sample, cached=cached) for step in range(30) for sample in (0, 1)
    ]
    assert len(set(first)) > 5
    assert all(caption.startswith("ohwx woman, ") for caption in first)
    assert all(set(split_tags(caption)) == set(split_tags(CAPTION)) for caption in first)


def test_every_caption_that_a_sample_can_draw_is_cached() -> None:
    job = job_of(shuffle_caption=True, caption_tag_dropout_rate=0.3, caption_dropout_rate=0.2, caption_variants=3)
    items = [item_of(), item_of("ohwx, a, b, c, d", "cd34" * 16), item_of("a man, tall", "ef56" * 16, prior=True)]
    validation = item_of("ohwx, alone", "9a" * 32)
    cached_captions = captions_to_cache(
        job, Dataset(items[:2], [], regularization=items[2:], validation_items=[validation])
    )
    drawn = {training_caption(item, job, step, 0, cached=True) for item in items for step in range(200)}
    assert drawn <= set(cached_captions)
    assert set(cached_captions) - drawn == {validation.caption}
    assert len(cached_captions) == len(set(cached_captions)) <= 3 * 3 + 2
    assert "" in cached_captions


def test_captions_and_tags_are_dropped_at_the_given_rates() -> None:
    job = job_of(caption_dropout_rate=0.3)
    empty = sum(training_caption(item_of(), job, step, 1, cached=True) == "" for step in range(1000))
    assert abs(empty - 300) < 5 * (1000 * 0.3 * 0.7) ** 0.5
    job = job_of(caption_tag_dropout_rate=0.4)
    counts = Counter(
        tag for step in range(500) for tag in split_tags(training_caption(item_of(), job, step, 0, cached=False))
    )
    assert counts["ohwx woman"] == 500
    for tag in split_tags(CAPTION)[1:]:
        assert abs(counts[tag] - 300) < 5 * (500 * 0.24) ** 0.5
