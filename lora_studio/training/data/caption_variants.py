"""Caption augmentation: tag shuffling, tag dropout and caption dropout.

With frozen text encoders the text embeddings are cached: each image has a fixed number of variants of its caption,
derived from seed and image, and each sample draws one. With trained text encoders every sample gets its own variant.
Caption dropout encodes the empty string, as A1111 and ComfyUI do for an empty prompt.
"""

from __future__ import annotations

import torch

from lora_studio.dataset.captions.text import join_tags, split_fixed_tags
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training.data.augment import image_seed
from lora_studio.training.data.dataset import Dataset, TrainItem
from lora_studio.training.data.rng import generator


def has_caption_augmentation(recipe: Recipe) -> bool:
    """Return True if tags are shuffled or dropped."""
    return recipe.shuffle_caption or recipe.caption_tag_dropout_rate > 0


def training_caption(item: TrainItem, job: TrainJob, step: int, sample: int, *, cached: bool) -> str:
    """Return the augmented caption of one sample of one step; with `cached` it is one of `captions_to_cache`."""
    recipe = job.recipe
    if recipe.caption_dropout_rate:
        chance = torch.rand(1, generator=generator(recipe.seed, "caption dropout", step, sample))
        if float(chance) < recipe.caption_dropout_rate:
            return ""
    if not has_caption_augmentation(recipe):
        return item.caption
    if not cached:
        return shuffle_and_drop_tags(item.caption, job, generator(recipe.seed, "caption", step, sample))
    number = torch.randint(recipe.caption_variants, (1,), generator=generator(recipe.seed, "variant", step, sample))
    return _variant(item, job, int(number))


def captions_to_cache(job: TrainJob, dataset: Dataset) -> list[str]:
    """Return every caption that training and validation can use, each once."""
    recipe = job.recipe
    found = [item.caption for item in dataset.validation_items]
    for item in dataset.epoch_items:
        if has_caption_augmentation(recipe):
            found += [_variant(item, job, number) for number in range(recipe.caption_variants)]
        else:
            found.append(item.caption)
    if recipe.caption_dropout_rate:
        found.append("")
    return list(dict.fromkeys(found))


def shuffle_and_drop_tags(caption: str, job: TrainJob, rng: torch.Generator) -> str:
    """Return the caption with its free tags shuffled and dropped, as the recipe says.

    The fixed tags come first: those with the trigger word, and the first `keep_tokens` tags. As in kohya's sd-scripts,
    each free tag is dropped independently with probability `caption_tag_dropout_rate`.
    """
    recipe = job.recipe
    fixed, free = split_fixed_tags(caption, job.trigger_word, recipe.keep_tokens)
    if recipe.shuffle_caption:
        free = [free[index] for index in torch.randperm(len(free), generator=rng).tolist()]
    chances = torch.rand(len(free), generator=rng).tolist()
    kept = [tag for tag, chance in zip(free, chances, strict=True) if chance >= recipe.caption_tag_dropout_rate]
    return join_tags([*fixed, *kept])


def _variant(item: TrainItem, job: TrainJob, number: int) -> str:
    return shuffle_and_drop_tags(
        item.caption, job, generator(job.recipe.seed, "caption variant", image_seed(item), number)
    )
