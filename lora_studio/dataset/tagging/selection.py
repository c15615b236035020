"""Turn predictions into captions: thresholds, tag lists, and merging the output of several taggers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_studio.dataset.captions.text import split_tags, without_tags
from lora_studio.dataset.tagging.interface import Description, Prediction, Tag
from lora_studio.dataset.tagging.labels import CHARACTER, GENERAL, Label, caption_tag


@dataclass(frozen=True)
class TagSelection:
    """Which of the predicted tags to write.

    `threshold` and `character_threshold` are the minimum confidences of general tags and of character names (0 to 1).
    With `only`, no other tags are written; `exclude` are never written, nor are equal parts of a sentence between
    commas. Both match whole tags, ignoring case, with spaces or underscores.
    """

    threshold: float = 0.35
    character_threshold: float = 0.85
    only: Collection[str] = ()
    exclude: Collection[str] = ()


def describe(prediction: Prediction, labels: Sequence[Label], selection: TagSelection) -> Description:
    """Return the tags of a prediction that reach their threshold, in order of falling confidence, and its sentence."""
    minimum = {GENERAL: selection.threshold, CHARACTER: selection.character_threshold}
    order = np.argsort(-prediction.confidences.astype(np.float32), kind="stable")
    outputs, confidences = prediction.outputs[order].tolist(), prediction.confidences[order].astype(float).tolist()
    tags = [
        Tag(name, confidence)
        for (name, category), confidence in zip((labels[output] for output in outputs), confidences, strict=True)
        # Confidences are stored as float16, so the threshold is rounded to float16 as well.
        if category in minimum and confidence >= float(np.float16(minimum[category]))
    ]
    only, exclude = _casefolded(selection.only), _casefolded(selection.exclude)
    chosen = tuple(
        tag for tag in tags if tag.name.casefold() not in exclude and (not only or tag.name.casefold() in only)
    )
    return Description(tags=chosen, sentence=without_tags(prediction.sentence, exclude))


def merged(descriptions: Sequence[Description]) -> Description:
    """Merge the descriptions of one image by several taggers: all sentences, and each tag with its highest confidence.

    A tag that equals a part of a sentence between commas is left out.
    """
    if len(descriptions) == 1:
        return descriptions[0]
    sentences = list(dict.fromkeys(item.sentence for item in descriptions if item.sentence))
    highest: dict[str, Tag] = {}
    for tag in (tag for item in descriptions for tag in item.tags):
        known = highest.get(tag.name.casefold())
        if known is None or tag.confidence > known.confidence:
            highest[tag.name.casefold()] = tag
    for part in split_tags(", ".join(sentences)):
        highest.pop(part.casefold(), None)
    tags = sorted(highest.values(), key=lambda tag: -tag.confidence)
    return Description(tags=tuple(tags), sentence=", ".join(sentences))


def confidence_by_tag(prediction: Prediction, labels: Sequence[Label]) -> Mapping[str, float]:
    """Return the confidence of each predicted tag by its name, without ratings."""
    pairs = zip(prediction.outputs.tolist(), prediction.confidences.astype(float).tolist(), strict=True)
    return {
        labels[output].name: confidence
        for output, confidence in pairs
        if labels[output].category in (GENERAL, CHARACTER)
    }


def _casefolded(tags: Iterable[str]) -> set[str]:
    """Return tags in the form in which they are compared."""
    return {caption_tag(" ".join(tag.split())).casefold() for tag in tags if tag.strip()}
