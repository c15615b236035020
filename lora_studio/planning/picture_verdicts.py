"""Verdicts on a run's samples, in the structure of those on its losses: `picture_signs` finds what is to be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from lora_studio.events import SampleMeasuresEvent
from lora_studio.guide import WARNING_SIGNS
from lora_studio.planning.picture_signs import THUMBNAILS, PictureCode, PictureSign, find_picture_signs
from lora_studio.planning.verdicts import Verdict
from lora_studio.settings.choices import PredictionType
from lora_studio.settings.recipe import Recipe

# The guide's warning sign that each code belongs to.
GUIDE_SIGNS: Mapping[PictureCode, str] = {
    "copies": "copies",
    "collapsed": "overfit",
    "washed_out": "washed_out",
    "burnt": "burnt",
}


def judge_samples(
    events: Sequence[SampleMeasuresEvent],
    *,
    recipe: Recipe | None = None,
    checkpoints: Mapping[int, str] | None = None,
) -> list[Verdict]:
    """Return the verdicts on a run's latest samples, none if they have no sign; `events` are in order of their steps.

    `checkpoints` are the files that exist, by step. With a recipe, the next step names the setting to change.
    """
    after = [event for event in events if event.step]
    if not after:
        return []
    before = events[0] if not events[0].step else None
    return [
        _verdict(sign, after, _first_step(sign.code, after, before), recipe, checkpoints or {})
        for sign in find_picture_signs(after[-1], before)
    ]


def _first_step(code: PictureCode, after: Sequence[SampleMeasuresEvent], before: SampleMeasuresEvent | None) -> int:
    """Return the step of the first of the latest samples that all have a sign."""
    shown = takewhile(
        lambda event: any(sign.code == code for sign in find_picture_signs(event, before)), reversed(after)
    )
    return min(event.step for event in shown)


def _verdict(
    sign: PictureSign,
    after: Sequence[SampleMeasuresEvent],
    first: int,
    recipe: Recipe | None,
    checkpoints: Mapping[int, str],
) -> Verdict:
    warning, now = WARNING_SIGNS[GUIDE_SIGNS[sign.code]], after[-1]
    since = f" So it has been since step {first}." if first < now.step else ""
    return Verdict(
        code=sign.code,
        title=warning.sign,
        evidence=f"{_evidence(sign, now)}{since} {warning.cause}",
        next_step=f"{_remedy(sign.code, recipe) or warning.remedy}{_checkpoint(checkpoints, first)}",
        level="warn" if sign.code == "copies" else "bad",
        step=now.step,
    )


def _evidence(sign: PictureSign, now: SampleMeasuresEvent) -> str:
    count = len(now.indices)
    if sign.code == "copies":
        closest = min(sign.copied, key=now.nearest_ratio.__getitem__)
        name, ratio = Path(now.nearest[closest]).name, now.nearest_ratio[closest]
        return (
            f"{len(sign.copied)} of {count} samples: the closest, for prompt {now.indices[closest] + 1}, is "
            f"{ratio:.0%} as far from {name} as training images are from their own nearest. {_compared_by(now)}"
        )
    value, error = sign.value
    figure = f"{value:.3g}" if error is None else f"{value:.3g} \N{PLUS-MINUS SIGN} {error:.2g}"
    text = f"The {sign.figure} of {count} samples is {figure}; before training or in the training images it is "
    text += f"{sign.reference:.3g}."
    return f"{text} {_compared_by(now)}" if sign.code == "collapsed" else text


def _compared_by(now: SampleMeasuresEvent) -> str:
    if now.features == THUMBNAILS:
        return "Compared by the pixels of thumbnails alone, since no tagger has tagged the training images."
    return f"Compared by the features of {now.features}."


def _remedy(code: PictureCode, recipe: Recipe | None) -> str:
    """Return the next step where the recipe shows which of the guide's causes it is."""
    if code == "washed_out" and recipe is not None and recipe.prediction_type is not PredictionType.AUTO:
        return f"Set prediction_type from {recipe.prediction_type.value} to auto."
    if code == "washed_out":
        return "Use an earlier checkpoint, and fewer epochs next time."
    return ""


def _checkpoint(checkpoints: Mapping[int, str], first: int) -> str:
    """Return a sentence that names the last checkpoint before a step; empty if there is none."""
    earlier = [step for step in checkpoints if step < first]
    if not earlier:
        return ""
    step = max(earlier)
    return f" {checkpoints[step].rpartition('/')[2]}, of step {step}, is the last one before."
