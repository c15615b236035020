"""Caption augmentation: wildcards, tag shuffling, tag warmup, tag dropout and caption dropout.

With frozen text encoders the text embeddings are cached: each image has a fixed number of variants of its caption,
derived from seed and image, and each sample draws one; during a tag warmup it gets the first tags of that variant's
order in the file. With trained text encoders every sample gets its own variant. Caption dropout encodes the empty
string, as A1111 and ComfyUI do for an empty prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from math import floor

import torch

from lora_studio.dataset.captions.template import draw_caption, split_caption, without_separator
from lora_studio.dataset.captions.text import join_tags, split_fixed_tags, split_tags
from lora_studio.planning.steps import warmup_steps
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.sections.captions import CaptionSettings
from lora_studio.training.data.augment import image_seed
from lora_studio.training.data.dataset import Dataset, TrainItem, epoch_steps
from lora_studio.training.data.rng import generator

ALL_TAGS = 1.0  # of a tag warmup that is over


def training_caption(item: TrainItem, job: TrainJob, step: int, sample: int, *, cached: bool, total_steps: int) -> str:
    """Return the augmented caption of one sample of one step; with `cached` it is one of `captions_to_cache`.

    `total_steps` is the length of the run, of which a tag warmup can be a fraction.
    """
    settings, seed = item.settings or job.recipe, job.recipe.seed
    if settings.caption_dropout_rate:
        chance = torch.rand(1, generator=generator(seed, "caption dropout", step, sample))
        if float(chance) < settings.caption_dropout_rate:
            return ""
    if not settings.augments_captions:
        return item.caption
    progress = warmup_progress(settings, step, total_steps)
    if not cached:
        return augmented_caption(item, job, generator(seed, "caption", step, sample), progress)
    return _variant(item, job, _drawn_variant(settings, seed, step, sample), progress)


def fixed_caption(item: TrainItem, job: TrainJob) -> str:
    """Return the caption with which a training image is evaluated: its first variant, which is always cached."""
    settings = item.settings or job.recipe
    return _variant(item, job, 0, ALL_TAGS) if settings.augments_captions else item.caption


def captions_to_cache(job: TrainJob, dataset: Dataset, *, total_steps: int) -> list[str]:
    """Return every caption that training and validation can use, each once."""
    found = [item.caption for item in dataset.validation_items]
    for item in dataset.epoch_items:
        settings = item.settings or job.recipe
        if settings.augments_captions:
            found += [_variant(item, job, number, ALL_TAGS) for number in range(settings.caption_variants)]
        else:
            found.append(item.caption)
        if settings.caption_dropout_rate:
            found.append("")
    found += _warmup_captions(job, dataset, total_steps)
    return list(dict.fromkeys(found))


def warmup_progress(settings: CaptionSettings, step: int, total_steps: int) -> float:
    """Return how far a tag warmup has come at a step (counted from 0), in 0..1; 1 without one."""
    length = warmup_steps(settings.token_warmup_step, total_steps)
    return step / length if step < length else ALL_TAGS


def augmented_caption(item: TrainItem, job: TrainJob, rng: torch.Generator, progress: float = ALL_TAGS) -> str:
    """Return a caption drawn from an item's template, with its free tags shuffled and dropped, as the settings say.

    The fixed tags come first: those before the separator, or with the trigger word, and the first `keep_tokens` tags;
    those after a second separator come last. As in kohya's sd-scripts, a tag warmup takes the first free tags before
    they are shuffled, and each free tag is dropped independently with probability `caption_tag_dropout_rate`.
    `progress` is that of the warmup.
    """
    settings = item.settings or job.recipe
    caption = item.template or item.caption
    if settings.enable_wildcard:
        caption = draw_caption(caption, lambda count: int(torch.randint(count, (1,), generator=rng)))
    separator = settings.keep_tokens_separator
    if not (settings.shuffle_caption or settings.caption_tag_dropout_rate or settings.token_warmup_step):
        return without_separator(caption, separator)
    first, text, last = split_caption(caption, separator)
    kept = 0 if text != caption else settings.keep_tokens
    fixed, free = split_fixed_tags(text, job.trigger_word, kept)
    if progress < ALL_TAGS:
        least = min(settings.token_warmup_min, len(free))
        free = free[: floor(progress * (len(free) - least)) + least]
    if settings.shuffle_caption:
        free = [free[index] for index in torch.randperm(len(free), generator=rng).tolist()]
    chances = torch.rand(len(free), generator=rng).tolist()
    remaining = [tag for tag, chance in zip(free, chances, strict=True) if chance >= settings.caption_tag_dropout_rate]
    return join_tags([*split_tags(first), *fixed, *remaining, *split_tags(last)])


def _warmup_captions(job: TrainJob, dataset: Dataset, total_steps: int) -> Iterator[str]:
    """Yield the captions of the samples of a tag warmup: each step has its own number of tags."""
    all_settings = [item.settings or job.recipe for item in dataset.epoch_items]
    last = max((warmup_steps(settings.token_warmup_step, total_steps) for settings in all_settings), default=0)
    steps = (batches for epoch in count() for batches in epoch_steps(dataset, job.recipe, epoch))
    for step, batches in enumerate(islice(steps, last)):
        for sample, item in enumerate(item for batch in batches for item in batch):
            yield training_caption(item, job, step, sample, cached=True, total_steps=total_steps)


def _drawn_variant(settings: CaptionSettings, seed: int, step: int, sample: int) -> int:
    """Return the number of the cached variant that a sample of a step uses."""
    return int(torch.randint(settings.caption_variants, (1,), generator=generator(seed, "variant", step, sample)))


def _variant(item: TrainItem, job: TrainJob, number: int, progress: float) -> str:
    rng = generator(job.recipe.seed, "caption variant", image_seed(item), number)
    return augmented_caption(item, job, rng, progress)
