"""Caption augmentation: tag shuffling, tag and caption dropout, and the cached variants of frozen text encoders."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_studio.dataset.buckets import Placement
from lora_studio.dataset.captions.text import split_fixed_tags, split_tags
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.caption_variants import augmented_caption, captions_to_cache, training_caption
from lora_studio.training.data.dataset import Dataset, TrainItem, epoch_steps
from lora_studio.training.data.rng import generator
from tests.support.training_runs import make_job

CAPTION = "ohwx woman, smiling, red hair, forest, sitting, blue dress"
STEPS = 1000  # of the run
tags = st.lists(st.sampled_from(["cat", "red hair", "ohwx", "a b", "Forest", "x", "ohwxes"]), max_size=7)


def job_of(**recipe: object) -> TrainJob:
    job = make_job("base", Path("data"), **recipe)
    job.trigger_word = "ohwx"
    return job


def item_of(caption: str = CAPTION, sha256: str = "ab12" * 16, *, prior: bool = False, template: str = "") -> TrainItem:
    place = Placement((64, 64), (64, 64), (0, 0))
    return TrainItem(Path("a.png"), sha256, (64, 64), place, caption, True, 1, "x", prior=prior, template=template)


def caption_of(item: TrainItem, job: TrainJob, step: int, sample: int, *, cached: bool) -> str:
    return training_caption(item, job, step, sample, cached=cached, total_steps=STEPS)


def cached_of(job: TrainJob, dataset: Dataset) -> list[str]:
    return captions_to_cache(job, dataset, total_steps=STEPS)


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
    assume(shuffle or rate)
    job = job_of(shuffle_caption=shuffle, keep_tokens=keep, caption_tag_dropout_rate=rate)
    caption = ", ".join(parts)
    fixed, free = split_fixed_tags(caption, "ohwx", keep)
    tags_found = split_tags(augmented_caption(item_of(caption), job, generator(1, "test", number)))
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
    assert {caption_of(item, job_of(), step, 0, cached=step > 5) for step in range(10)} == {item.caption}
    assert cached_of(job_of(), Dataset([item], [])) == [item.caption]


@pytest.mark.parametrize("cached", [True, False])
def test_a_caption_depends_on_step_and_sample_alone(cached: bool) -> None:
    job = job_of(shuffle_caption=True)
    first = [caption_of(item_of(), job, step, sample, cached=cached) for step in range(30) for sample in range(2)]
    assert first == [caption_of(item_of(), job, step, sample, cached=cached) for step in range(30) for sample in (0, 1)]
    assert len(set(first)) > 5
    assert all(caption.startswith("ohwx woman, ") for caption in first)
    assert all(set(split_tags(caption)) == set(split_tags(CAPTION)) for caption in first)


def test_every_caption_that_a_sample_can_draw_is_cached() -> None:
    job = job_of(shuffle_caption=True, caption_tag_dropout_rate=0.3, caption_dropout_rate=0.2, caption_variants=3)
    items = [item_of(), item_of("ohwx, a, b, c, d", "cd34" * 16), item_of("a man, tall", "ef56" * 16, prior=True)]
    validation = item_of("ohwx, alone", "9a" * 32)
    cached_captions = cached_of(job, Dataset(items[:2], [], regularization=items[2:], validation_items=[validation]))
    drawn = {caption_of(item, job, step, 0, cached=True) for item in items for step in range(200)}
    assert drawn <= set(cached_captions)
    assert set(cached_captions) - drawn == {validation.caption}
    assert len(cached_captions) == len(set(cached_captions)) <= 3 * 3 + 2
    assert "" in cached_captions


def test_captions_and_tags_are_dropped_at_the_given_rates() -> None:
    job = job_of(caption_dropout_rate=0.3)
    empty = sum(caption_of(item_of(), job, step, 1, cached=True) == "" for step in range(1000))
    assert abs(empty - 300) < 5 * (1000 * 0.3 * 0.7) ** 0.5
    job = job_of(caption_tag_dropout_rate=0.4)
    counts = Counter(
        tag for step in range(500) for tag in split_tags(caption_of(item_of(), job, step, 0, cached=False))
    )
    assert counts["ohwx woman"] == 500
    for tag in split_tags(CAPTION)[1:]:
        assert abs(counts[tag] - 300) < 5 * (500 * 0.24) ** 0.5


def drawn(item: TrainItem, steps: range, *, cached: bool, **recipe: object) -> list[str]:
    job = job_of(**recipe)
    return [caption_of(item, job, step, 0, cached=cached) for step in steps]


@pytest.mark.parametrize("cached", [True, False])
def test_wildcards_and_lines_are_drawn(cached: bool) -> None:
    item = item_of(template="ohwx, {red|blue} dress\na {{sentence}}, about {one|two|three}.")
    found = drawn(item, range(200), cached=cached, enable_wildcard=True, caption_variants=60)
    dresses = {f"ohwx, {colour} dress" for colour in ("red", "blue")}
    assert set(found) == dresses | {f"a {{sentence}}, about {number}." for number in ("one", "two", "three")}
    assert 60 < sum(caption in dresses for caption in found) < 140


@pytest.mark.parametrize("cached", [True, False])
def test_tags_before_and_after_the_marks_stay(cached: bool) -> None:
    item = item_of("x", template="girl, ohwx ||| a, b, c ||| best, quality")
    found = drawn(
        item, range(120), cached=cached, keep_tokens_separator="|||", shuffle_caption=True, caption_variants=60
    )
    assert {caption.removeprefix("girl, ohwx, ").removesuffix(", best, quality") for caption in found} == {
        *("a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a")
    }


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("length", [100, 0.1])
def test_a_warmup_takes_the_first_tags(cached: bool, length: float) -> None:
    found = drawn(item_of(), range(110), cached=cached, token_warmup_step=length, token_warmup_min=2)
    tags_found = [split_tags(caption) for caption in found]
    whole = split_tags(CAPTION)
    assert [len(tags) for tags in tags_found[:100]] == [1 + 2 + step * 3 // 100 for step in range(100)]
    assert all(tags == whole[: len(tags)] for tags in tags_found)
    assert tags_found[100:] == [whole] * 10


def test_every_caption_of_a_warmup_is_cached() -> None:
    job = job_of(token_warmup_step=30, shuffle_caption=True, caption_variants=3, batch_size=2)
    dataset = Dataset([item_of(), item_of("ohwx, a, b, c, d", "cd34" * 16), item_of("x, y", "ef" * 32)], [])
    cached_captions = set(cached_of(job, dataset))
    step = 0
    for epoch in range(20):
        for batches in epoch_steps(dataset, job.recipe, epoch):
            for sample, item in enumerate(item for batch in batches for item in batch):
                assert caption_of(item, job, step, sample, cached=True) in cached_captions
            step += 1
    assert step > 30


def test_settings_of_a_subset_count_before_those_of_the_recipe() -> None:
    job = job_of(shuffle_caption=False, caption_dropout_rate=1.0)
    own = Recipe(shuffle_caption=True)
    item = replace(item_of(), settings=own)
    found = {caption_of(item, job, step, 0, cached=True) for step in range(50)}
    assert len(found) > 3
    assert "" not in found
    assert found <= set(cached_of(job, Dataset([item], [])))
