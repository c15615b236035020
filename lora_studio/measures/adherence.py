"""Prompt adherence: does a picture still show what its prompt says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from lora_studio.dataset.captions.text import split_tags
from lora_studio.measures.distances import mean
from lora_studio.measures.estimate import Estimate, jackknife

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


def _folded(tag: str) -> str:
    return " ".join(tag.replace("_", " ").split()).casefold()
