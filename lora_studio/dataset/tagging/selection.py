"""From what a tagger sees to what is written: thresholds, lists of tags, several taggers joined. No model is needed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora_studio.dataset.captions.text import split_tags, without_tags
from lora_studio.dataset.tagging.interface import Description, Prediction, Tag
from lora_studio.dataset.tagging.labels import CHARACTER, GENERAL, Label, caption_tag


@dataclass(frozen=True)
class TagSelection:
    """What is written of what is seen.

    `threshold` and `character_threshold` are the least confidences of a general tag and of a character's name (0 to 1).
    `only` are the only tags to write, if there are any; `exclude` are never written, in sentences neither where they
    stand between commas. Both match whole tags, whatever their letter case, with spaces or underscores.
    """

    threshold: float = 0.35
    character_threshold: float = 0.85
    only: Collection[str] = ()
    exclude: Collection[str] = ()


def describe(prediction: Prediction, labels: Sequence[Label], selection: TagSelection) -> Description:
    """What is written about one picture: the tags that reach their threshold, the surest first, or the sentence."""
    least = {GENERAL: selection.threshold, CHARACTER: selection.character_threshold}
    order = np.argsort(-prediction.confidences.astype(np.float32), kind="stable")
    outputs, confidences = prediction.outputs[order].tolist(), prediction.confidences[order].astype(float).tolist()
    tags = [
        Tag(name, confidence)
        for (name, category), confidence in zip((labels[output] for output in outputs), confidences, strict=True)
        # Confidences are kept in half precision: a threshold is met that is the same number there.
        if category in least and confidence >= float(np.float16(least[category]))
    ]
    only, exclude = _casefolded(selection.only), _casefolded(selection.exclude)
    chosen = tuple(
        tag for tag in tags if tag.name.casefold() not in exclude and (not only or tag.name.casefold() in only)
    )
    return Description(tags=chosen, sentence=without_tags(prediction.sentence, exclude))


def merged(descriptions: Sequence[Description]) -> Description:
    """What several taggers say of one picture: their sentences in order, every tag once with its greatest confidence.

    A tag that a sentence holds between its commas is not said again.
    """
    if len(descriptions) == 1:
        return descriptions[0]
    sentences = list(dict.fromkeys(said.sentence for said in descriptions if said.sentence))
    surest: dict[str, Tag] = {}
    for tag in (tag for said in descriptions for tag in said.tags):
        known = surest.get(tag.name.casefold())
        if known is None or tag.confidence > known.confidence:
            surest[tag.name.casefold()] = tag
    for part in split_tags(", ".join(sentences)):
        surest.pop(part.casefold(), None)
    tags = sorted(surest.values(), key=lambda tag: -tag.confidence)
    return Description(tags=tuple(tags), sentence=", ".join(sentences))


def confidence_by_tag(prediction: Prediction, labels: Sequence[Label]) -> Mapping[str, float]:
    """How sure the tagger is of each of its tags that is kept, by the tag's name; ratings are left out."""
    pairs = zip(prediction.outputs.tolist(), prediction.confidences.astype(float).tolist(), strict=True)
    return {
        labels[output].name: confidence
        for output, confidence in pairs
        if labels[output].category in (GENERAL, CHARACTER)
    }


def _casefolded(tags: Iterable[str]) -> set[str]:
    return {caption_tag(" ".join(tag.split())).casefold() for tag in tags if tag.strip()}
