"""Prompt adherence and content: does a picture still show what its prompt says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from lora_studio.dataset.captions.text import split_tags
from lora_studio.measures.distances import MIN_DISTANCE, Vectors, cross_distances, mean
from lora_studio.measures.estimate import Estimate, Indices, jackknife

Confidences = Mapping[str, float]


def prompt_tags(prompt: str, known: Collection[str], trigger_word: str = "") -> list[str]:
    """Return the tags of a prompt that a tagger knows, without the trigger word, as the tagger writes them.

    Tags are compared without case, and with spaces for underscores.
    """
    names = {_folded(name): name for name in known}
    trigger = _folded(trigger_word)
    tags = dict.fromkeys(_folded(tag) for tag in split_tags(prompt))
    return [names[tag] for tag in tags if tag in names and tag != trigger]


def adherence(confidences: Sequence[Sequence[Confidences | None]], tags: Sequence[Collection[str]]) -> Estimate | None:
    """Return the tagger's mean confidence (0 to 1) of the prompts' tags, with its jackknife standard error.

    `confidences` are those of the pictures by prompt and seed, None for a missing picture, and `tags` those of each
    prompt. A prompt without tags that the tagger knows does not count; None if no prompt has any. The counterpart of
    the text-image similarity by CLIP (Hessel et al. 2021, CLIPScore, arXiv:2104.08718) for taggers.
    """
    rows = [
        [float("nan") if found is None else mean([found.get(tag, 0.0) for tag in wanted]) for found in pictures]
        for pictures, wanted in zip(confidences, tags, strict=True)
        if wanted
    ]
    if not rows:
        return None
    scores = np.array(rows)
    return jackknife(lambda prompts, seeds: mean(scores[prompts][:, seeds]), scores.shape)


def content_kept(pictures: Vectors, base: Vectors) -> Estimate | None:
    """Return the prompt fidelity of pictures by features, relative to the base's.

    Of features [prompts, seeds, F] as unit vectors, at the same places. With m(x) the mean distance of pictures x to
    the base's pictures of other prompts, minus that to the base's pictures of their own prompt: m(pictures) / m(base).
    1: as without the LoRA. 0: the prompt does not matter any more. The margin of image retrieval, whose accuracy is the
    R-precision of Xu et al. 2018 (AttnGAN, arXiv:1711.10485), here with the base's pictures as queries. None with one
    prompt.
    """
    if len(pictures) < 2:
        return None

    def statistic(prompts: Indices, seeds: Indices) -> float:
        shown, reference = (vectors[prompts][:, seeds] for vectors in (pictures, base))
        return _margin(shown, reference) / max(_margin(reference, reference), MIN_DISTANCE)

    return jackknife(statistic, pictures.shape[:2])


def _margin(pictures: Vectors, reference: Vectors) -> float:
    """Return the mean distance to reference pictures of other prompts, minus that to those of the own prompt."""
    prompts, seeds, size = pictures.shape
    between = cross_distances(pictures.reshape(-1, size), reference.reshape(-1, size))
    prompt = np.arange(prompts * seeds) // seeds
    own = prompt[:, None] == prompt
    return mean(between[~own]) - mean(between[own])


def _folded(tag: str) -> str:
    return " ".join(tag.replace("_", " ").split()).casefold()
