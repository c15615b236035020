"""The strength to use and the verdict on a LoRA, from a sweep's measures of one base and LoRA over the strengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from lora_studio.events import Measured
from lora_studio.measures.thumbnails import NAME as THUMBNAILS
from lora_studio.planning.picture_signs import TestCode
from lora_studio.planning.verdict_limits import (
    COPY_RATIO,
    COPY_RATIO_OF_THUMBNAILS,
    MAX_LEAKAGE,
    MIN_KEPT_VARIETY,
    MIN_TRIGGER_RESPONSE,
    STANDARD_ERRORS_OF_PICTURES,
    WASHED_OUT_CONTRAST,
)
from lora_studio.planning.verdicts import Verdict
from lora_studio.sampling.picture_measures import StrengthPictures

USUAL = 1.0  # strength that a LoRA is meant for


class StrengthAdvice(BaseModel):
    """The recommended strength, None if the images do not show it; `low` to `high` are as good within the error."""

    model_config = ConfigDict(frozen=True)

    strength: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str


def recommend_strength(rows: Sequence[StrengthPictures], features: str) -> StrengthAdvice:
    """Return the lowest strength whose effect is within one standard error of the best one, without copies or collapse.

    The effect is the closeness to the training images, of which more than 1 is not better, or, if they are not known,
    the trigger response. The one-standard-error rule is that of Breiman et al. 1984 (Classification and Regression
    Trees, section 3.4.3): the simplest choice that is not worse beyond chance. Without a standard error, as with one
    prompt and seed, nothing is recommended.
    """
    known = sorted((row for row in rows if row.strength > 0), key=lambda row: row.strength)
    damaged = [row.strength for row in known if is_copying(row, features) or has_collapsed(row)]
    effects = [_Effect(row.strength, *measured) for row in known if (measured := _effect(row)) is not None]
    effects = [effect for effect in effects if effect.strength not in damaged]
    if not effects:
        why = (
            "every strength copies a training image or draws the same picture"
            if damaged and known
            else ("neither closeness nor trigger response was measured")
        )
        return StrengthAdvice(reason=f"No strength is recommended: {why}.")
    best = max(effects, key=lambda effect: effect.value)
    if best.error is None:
        return StrengthAdvice(
            reason="No strength is recommended: with one prompt and one seed the difference may be chance. Add seeds."
        )
    equal = [effect.strength for effect in effects if effect.value >= best.value - best.error]
    reason = (
        f"The lowest strength whose effect is within the error of the best one, {best.value:.2f} \N{PLUS-MINUS SIGN} "
        f"{best.error:.2f} at {best.strength:g}."
    )
    if damaged:
        reason += f" Left out, for copies or equal pictures: {', '.join(f'{strength:g}' for strength in damaged)}."
    return StrengthAdvice(strength=equal[0], low=equal[0], high=equal[-1], reason=reason)


def judge_lora(rows: Sequence[StrengthPictures], features: str) -> Verdict:
    """Return the verdict on a LoRA: its evidence and the one thing to change next.

    It is judged at the strength nearest to 1, and for copies at all strengths up to 1.
    """
    strong = [row for row in rows if row.strength > 0]
    now = min(strong, key=lambda row: abs(row.strength - USUAL), default=None)
    off = next((row for row in rows if not row.strength), None)
    if now is None:
        return _verdict("unclear", "No image with the LoRA was drawn.")
    copies = [row for row in strong if row.strength <= USUAL and is_copying(row, features)]
    if copies:
        row = min(copies, key=lambda row: row.nearest_ratio or 0.0)
        image = row.nearest.name if row.nearest else "a training image"
        return _verdict(
            "memorised", f"At {row.strength:g} an image is {row.nearest_ratio:.0%} as far from {image} as usual."
        )
    at = f"At {now.strength:g}"
    if off and off.contrast and now.contrast and _upper(now.contrast) < WASHED_OUT_CONTRAST * off.contrast[0]:
        return _verdict(
            "wrong_prediction", f"{at} the contrast is {_text(now.contrast)}, without the LoRA {off.contrast[0]:.2f}."
        )
    if has_collapsed(now):
        return _verdict(
            "overtrained", f"{at} the variety over seeds is {_text(now.seed_variety)} of that without the LoRA."
        )
    if now.leakage is not None and _lower(now.leakage) > MAX_LEAKAGE:
        return _verdict(
            "leaks",
            f"{at} prompts without the trigger word change {_text(now.leakage)} times as much as those with it.",
        )
    closer = _gain(now, off)
    response = now.trigger_response
    if response is None or response[1] is None:
        missing = "was not measured" if response is None else "is of one picture"
        return _verdict(
            "unclear", f"{at} the trigger response {missing}: add strength 0, seeds, and a prompt with and without it."
        )
    evidence = f"{at} the trigger response is {_text(response)}."
    if _upper(response) < MIN_TRIGGER_RESPONSE:
        return _verdict("trigger_weak" if closer else "undertrained", evidence)
    return _verdict("good" if _lower(response) > 1 else "unclear", evidence)


def is_copying(row: StrengthPictures, features: str) -> bool:
    """Return whether an image of a strength copies a training image."""
    limit = COPY_RATIO_OF_THUMBNAILS if features == THUMBNAILS else COPY_RATIO
    return row.nearest_ratio is not None and row.nearest_ratio < limit


def has_collapsed(row: StrengthPictures) -> bool:
    """Return whether images of one prompt hardly differ from seed to seed, beyond the error."""
    variety = row.seed_variety
    return variety is not None and variety[1] is not None and _upper(variety) < MIN_KEPT_VARIETY


class _Effect(NamedTuple):
    strength: float
    value: float
    error: float | None


def _effect(row: StrengthPictures) -> Measured | None:
    if row.closeness is not None:
        return min(row.closeness[0], 1.0), row.closeness[1]
    return row.trigger_response


def _gain(now: StrengthPictures, off: StrengthPictures | None) -> bool:
    """Return whether the images are closer to the training images than without the LoRA, beyond the error."""
    if off is None or off.closeness is None or now.closeness is None:
        return False
    return _lower(now.closeness) > _upper(off.closeness)


def _upper(measured: Measured) -> float:
    return measured[0] + STANDARD_ERRORS_OF_PICTURES * (measured[1] or 0.0)


def _lower(measured: Measured) -> float:
    return measured[0] - STANDARD_ERRORS_OF_PICTURES * (measured[1] or 0.0)


def _text(measured: Measured | None) -> str:
    if measured is None:
        return "unknown"
    value, error = measured
    return f"{value:.2f}" if error is None else f"{value:.2f} \N{PLUS-MINUS SIGN} {error:.2f}"


class _Words(NamedTuple):
    title: str
    next_step: str
    level: str


_WORDS: dict[TestCode, _Words] = {
    "good": _Words("The trigger word works", "Use the recommended strength.", "good"),
    "undertrained": _Words(
        "Undertrained", "Train for more epochs; if that changes nothing, at a higher learning rate.", "warn"
    ),
    "overtrained": _Words("Overtrained: always the same picture", "Use an earlier checkpoint or fewer epochs.", "bad"),
    "trigger_weak": _Words(
        "The trigger word is weak",
        "Put the trigger word first in every caption, and leave out what it should mean.",
        "warn",
    ),
    "leaks": _Words(
        "It shows without the trigger word, too",
        "Lower the text encoder's learning rate. A style may do so on purpose.",
        "warn",
    ),
    "memorised": _Words(
        "It copies a training image", "Set duplicates of that image aside, and use an earlier checkpoint.", "bad"
    ),
    "wrong_prediction": _Words(
        "Washed out", "Check the prediction type of the base; if it is right, use an earlier checkpoint.", "bad"
    ),
    "unclear": _Words("Not clear yet", "Draw more seeds and prompts.", "info"),
}


def _verdict(code: TestCode, evidence: str) -> Verdict:
    words = _WORDS[code]
    return Verdict.model_validate(
        {"code": code, "title": words.title, "evidence": evidence, "next_step": words.next_step, "level": words.level}
    )
