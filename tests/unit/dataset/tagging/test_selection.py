"""From predictions to captions: thresholds, tag lists, and several taggers."""

from __future__ import annotations

import numpy as np
import pytest

from lora_studio.dataset.tagging.interface import Description, Prediction, Tag
from lora_studio.dataset.tagging.labels import Label, caption_tag
from lora_studio.dataset.tagging.selection import TagSelection, describe, merged


def prediction_of(**confidences: float) -> tuple[Prediction, tuple[Label, ...]]:
    """Return a prediction with its labels; names in capitals are characters, those with a leading `_` are ratings."""
    labels = tuple(
        Label(caption_tag(name), 9 if name[0] == "_" else 4 if name.isupper() else 0) for name in sorted(confidences)
    )
    values = np.array([confidences[name] for name in sorted(confidences)], np.float16)
    return Prediction(np.arange(len(values), dtype=np.uint16), values), labels


def test_selects_tags_by_two_thresholds_and_sorts_them() -> None:
    prediction, labels = prediction_of(_general=0.9, a=0.36, b=0.35, c=0.34, long_hair=0.9, ANNA=0.84, BEA=0.86)
    assert describe(prediction, labels, TagSelection()).caption == "long hair, BEA, a, b"
    assert (
        describe(prediction, labels, TagSelection(threshold=0.5, character_threshold=0.5)).caption
        == "long hair, BEA, ANNA"
    )
    assert describe(prediction, labels, TagSelection(threshold=0.95, character_threshold=0.95)) == Description()


@pytest.mark.parametrize(
    ("only", "exclude", "expected"),
    [
        ((), ("hair",), "long hair, hat, dog"),
        ((), ("LONG_hair", " dog "), "hat"),
        (("long_hair", "dog", "cat"), (), "long hair, dog"),
        (("hat", "dog"), ("dog",), "hat"),
    ],
)
def test_tag_lists_match_whole_tags(only: tuple[str, ...], exclude: tuple[str, ...], expected: str) -> None:
    prediction, labels = prediction_of(long_hair=0.9, hat=0.8, dog=0.7)
    assert describe(prediction, labels, TagSelection(only=only, exclude=exclude)).caption == expected


def test_merges_the_descriptions_of_several_taggers() -> None:
    first = Description(tags=(Tag("cat", 0.9), Tag("hat", 0.4)))
    second = Description(tags=(Tag("hat", 0.8), Tag("Cat", 0.5), Tag("red", 0.6)))
    assert merged([first, second]).tags == (Tag("cat", 0.9), Tag("hat", 0.8), Tag("red", 0.6))
    sentence = Description(sentence="a cat, red")
    assert merged([first, second, sentence]).caption == "a cat, red, cat, hat"
    assert merged([sentence, sentence]).caption == "a cat, red"
