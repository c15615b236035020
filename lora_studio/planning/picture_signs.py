"""Find signs in the measures of a run's samples: copies of training images, collapse, washed-out and burnt colours.

Each measure is compared with that before training and with that of the training images: a style may be pale, and a
subject always the same. Colours are judged only if samples were drawn before training: until a LoRA has learned a pale
style, its samples have the base's colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lora_studio.events import Measured, SampleMeasuresEvent
from lora_studio.planning.verdict_limits import (
    BURNT_CLIPPED,
    BURNT_SATURATION,
    COLLAPSED_VARIETY,
    COPY_RATIO,
    COPY_RATIO_OF_THUMBNAILS,
    STANDARD_ERRORS_OF_PICTURES,
    WASHED_OUT_CONTRAST,
    WASHED_OUT_SATURATION,
)

PictureCode = Literal["copies", "collapsed", "washed_out", "burnt"]
# Of a LoRA in a test, at several strengths.
TestCode = Literal[
    "good", "undertrained", "overtrained", "trigger_weak", "leaks", "memorised", "wrong_prediction", "unclear"
]
THUMBNAILS = "thumbnails"  # `features` of an event that compares pixels


@dataclass(frozen=True)
class PictureSign:
    """A sign in the samples of a step.

    `figure` names the measure, with its value and standard error; `reference` is what it was compared with. `copied`
    has the places, among the samples, of those that copy a training image.
    """

    code: PictureCode
    figure: str = ""
    value: Measured = (0.0, None)
    reference: float = 0.0
    copied: Sequence[int] = ()


def find_picture_signs(now: SampleMeasuresEvent, before: SampleMeasuresEvent | None) -> list[PictureSign]:
    """Return the signs in the samples of a step, given those before the first step, if they were drawn."""
    found = []
    if copied := _copied(now, before):
        found.append(PictureSign("copies", copied=copied))
    if now.variety is not None and now.training_variety is not None:
        usual = [now.training_variety, *([before.variety[0]] if before and before.variety else [])]
        if _upper(now.variety) < COLLAPSED_VARIETY * min(usual):
            found.append(PictureSign("collapsed", "variety", now.variety, min(usual)))
    return found + ([] if before is None else _colour_signs(now, before))


def _colour_signs(now: SampleMeasuresEvent, before: SampleMeasuresEvent) -> list[PictureSign]:
    """Return what has happened to the colours since before the first step: at most one sign."""
    found = []
    contrasts, saturations, clipped = (_references(now, before, name) for name in ("contrast", "saturation", "clipped"))
    if _upper(now.contrast) < WASHED_OUT_CONTRAST * min(contrasts):
        found.append(PictureSign("washed_out", "contrast", now.contrast, min(contrasts)))
    elif _upper(now.saturation) < WASHED_OUT_SATURATION * min(saturations):
        found.append(PictureSign("washed_out", "saturation", now.saturation, min(saturations)))
    elif _lower(now.clipped) > max(clipped) + BURNT_CLIPPED:
        found.append(PictureSign("burnt", "clipped share", now.clipped, max(clipped)))
    elif _lower(now.saturation) > BURNT_SATURATION * max(saturations):
        found.append(PictureSign("burnt", "saturation", now.saturation, max(saturations)))
    return found


def _copied(now: SampleMeasuresEvent, before: SampleMeasuresEvent | None) -> list[int]:
    """Return the places of samples that copy a training image, and that did not do so before training."""
    limit = COPY_RATIO_OF_THUMBNAILS if now.features == THUMBNAILS else COPY_RATIO
    near = set()
    if before is not None:
        pairs = zip(before.indices, before.nearest_ratio, strict=True)
        near = {index for index, ratio in pairs if ratio < limit}
    return [
        place
        for place, (index, ratio) in enumerate(zip(now.indices, now.nearest_ratio, strict=True))
        if ratio < limit and index not in near
    ]


def _references(now: SampleMeasuresEvent, before: SampleMeasuresEvent, name: str) -> list[float]:
    """Return a colour figure of the training images, and that of the samples before training."""
    return [getattr(now, f"training_{name}"), getattr(before, name)[0]]


def _upper(measured: Measured) -> float:
    return measured[0] + STANDARD_ERRORS_OF_PICTURES * (measured[1] or 0.0)


def _lower(measured: Measured) -> float:
    return measured[0] - STANDARD_ERRORS_OF_PICTURES * (measured[1] or 0.0)
