"""The strength to use, the checkpoint to use, and the verdict on a LoRA, from the measures of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from lora_studio.events import Measured
from lora_studio.measures.thumbnails import NAME as THUMBNAILS
from lora_studio.planning.picture_signs import TestCode
from lora_studio.planning.verdict_limits import (
    COPY_RATIO,
    COPY_RATIO_OF_THUMBNAILS,
    GOOD_LIKENESS,
    MAX_LEAKAGE,
    MAX_LIKENESS_WITHOUT,
    MIN_CONTENT_KEPT,
    MIN_KEPT_VARIETY,
    MIN_LIKENESS,
    MIN_REPRODUCTION,
    MIN_TRIGGER_RESPONSE,
    STANDARD_ERRORS_OF_PICTURES,
    WASHED_OUT_CONTRAST,
)
from lora_studio.planning.verdicts import Verdict
from lora_studio.sampling.cells import SweepPlan
from lora_studio.sampling.picture_measures import PictureMeasures, StrengthPictures

USUAL = 1.0  # strength that a LoRA is meant for
CHECKPOINTS = "checkpoints"  # folder of a run


class StrengthAdvice(BaseModel):
    """The recommended strength, None if the images do not show it; `low` to `high` are as good within the error."""

    model_config = ConfigDict(frozen=True)

    strength: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str


class CheckpointAdvice(BaseModel):
    """The recommended checkpoint of a run, None if the images do not show it, by its label in the sweep.

    `equal` are those that are as good within the error, the earliest first, `strength` that of the compared images.
    """

    model_config = ConfigDict(frozen=True)

    run: str = ""
    base: str = ""
    lora: str | None = None
    equal: list[str] = []
    strength: float
    reason: str


def recommend_strength(rows: Sequence[StrengthPictures], features: str) -> StrengthAdvice:
    """Return the lowest strength whose effect is within one standard error of the best one, without copies or collapse.

    The effect is the likeness to the training images, of which more than 1 is not better; if it is not known, the
    closeness, or else the trigger response. The one-standard-error rule is that of Breiman et al. 1984
    (Classification and Regression Trees, section 3.4.3): the simplest choice that is not worse beyond chance. Without a
    standard error, as with one prompt and seed, nothing is recommended.
    """
    known = sorted((row for row in rows if row.strength > 0), key=lambda row: row.strength)
    choice = _first_within_error([(f"{row.strength:g}", row) for row in known], features)
    if isinstance(choice, str):
        return StrengthAdvice(reason=f"No strength is recommended: {choice}.")
    strengths = [row.strength for row in choice.equal]
    reason = f"The lowest strength whose effect is within the error of the best one, {choice.reason}"
    return StrengthAdvice(strength=strengths[0], low=strengths[0], high=strengths[-1], reason=reason)


def recommend_checkpoint(rows: Mapping[str, StrengthPictures], features: str) -> CheckpointAdvice:
    """Return the earliest checkpoint whose effect is within one standard error of the best one's.

    `rows` are the measures of one strength by checkpoint, in the order of training. Effect and exclusions are those of
    `recommend_strength`: fewer steps, too, are the simpler choice.
    """
    choice = _first_within_error(list(rows.items()), features)
    strength = next(iter(rows.values())).strength if rows else 0.0
    if isinstance(choice, str):
        return CheckpointAdvice(strength=strength, reason=f"No checkpoint is recommended: {choice}.")
    reason = f"The earliest checkpoint whose effect at strength {strength:g} is within the error of the best one, "
    equal = [name for name, row in rows.items() if row in choice.equal]
    return CheckpointAdvice(lora=equal[0], equal=equal, strength=strength, reason=reason + choice.reason)


def recommend_checkpoints(measures: PictureMeasures, plan: SweepPlan) -> list[CheckpointAdvice]:
    """Return the recommended checkpoint of each run with several of them in a sweep, for each base.

    They are compared at the strength nearest to 1 that was drawn with all of them. Files of a run are those of one
    folder, or of its folder of checkpoints, that name different steps in their metadata.
    """
    runs: dict[Path, dict[int, str]] = {}
    for lora, label in zip(plan.loras, plan.lora_labels, strict=True):
        steps = lora.metadata.get("ss_steps", "")
        folder = lora.path.parent
        run = folder.parent if folder.name == CHECKPOINTS else folder
        if steps.isdecimal():
            runs.setdefault(run, {}).setdefault(int(steps), label)
    found = []
    for run, labels in runs.items():
        for base in dict.fromkeys(row.base for row in measures.rows):
            own = {label: _by_strength(measures.rows, label, base) for _, label in sorted(labels.items())}
            shared = set.intersection(*(set(by_strength) for by_strength in own.values()))
            if len(own) > 1 and shared:
                strength = min(shared, key=lambda strength: (abs(strength - USUAL), strength))
                rows = {label: by_strength[strength] for label, by_strength in own.items()}
                advice = recommend_checkpoint(rows, measures.features)
                found.append(advice.model_copy(update={"run": run.name, "base": base}))
    return found


def recommendations(measures: PictureMeasures, plan: SweepPlan) -> dict[str, list[dict[str, Any]]]:
    """Return the recommended strength of each LoRA and base, and the recommended checkpoints, as values of JSON."""
    strengths = [
        {"lora": lora, "base": base, **recommend_strength(rows, measures.features).model_dump(mode="json")}
        for (lora, base), rows in measures.by_lora().items()
        if lora
    ]
    checkpoints = [advice.model_dump(mode="json") for advice in recommend_checkpoints(measures, plan)]
    return {"strengths": strengths, "checkpoints": checkpoints}


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
    if _surely_below(now.content_kept, MIN_CONTENT_KEPT):
        evidence = f"{at} {_percent(now.content_kept)} of what the prompts say is left"
        if now.reproduction is not None and _surely_above(now.reproduction, 1):
            far = f"even images of training captions are {_percent(now.reproduction)} as far from theirs as usual"
            return _verdict("wrong_prediction", f"{evidence}, and {far}.")
        return _verdict("overtrained", f"{evidence}.")
    if _surely_below(now.reproduction, MIN_REPRODUCTION):
        return _verdict(
            "memorised",
            f"{at}, images of training captions are {_percent(now.reproduction)} as far from their own training images "
            "as usual.",
        )
    if now.likeness is None:
        return _by_response(now)
    strength = recommend_strength(rows, features).strength
    return _by_likeness(now, next((row for row in strong if row.strength == strength), now))


def _by_likeness(now: StrengthPictures, recommended: StrengthPictures) -> Verdict:
    """Judge how far the images have gone to the training images by kind of prompt, at 1 and the recommended strength.

    What shows without the trigger word is judged at the recommended strength, at which the LoRA will be used.
    """
    likeness, captions = now.likeness, _with_error(now.caption_likeness)
    if likeness is None or likeness[1] is None:
        return _verdict("unclear", f"{_likeness_text(now)} That is of one image: add seeds and prompts.")
    without = _with_error(recommended.likeness_without)
    if without is not None and recommended.likeness is not None:
        limit = max(MAX_LIKENESS_WITHOUT * recommended.likeness[0], MIN_LIKENESS)
        if _lower(without) > limit:
            return _verdict("leaks", _likeness_text(recommended))
    if captions is not None and _lower(captions) > max(_upper(likeness), MIN_LIKENESS):
        return _verdict(
            "trigger_weak", f"{_likeness_text(now)} With captions of the training images it is {_percent(captions)}."
        )
    known = [row for row in (recommended, now) if row.likeness is not None]
    good = next((row for row in known if _is_good(row)), None)
    if good is None and all(_upper(row.likeness) < GOOD_LIKENESS for row in known if row.likeness):
        return _verdict("undertrained", _likeness_text(now))
    return _verdict("unclear" if good is None else "good", _likeness_text(good or now))


def _is_good(row: StrengthPictures) -> bool:
    return row.likeness is not None and row.likeness[0] >= GOOD_LIKENESS and _lower(row.likeness) > MIN_LIKENESS


def _likeness_text(row: StrengthPictures) -> str:
    text = f"At {row.strength:g} the images have gone {_percent(row.likeness)} of the way to the training images"
    without = row.likeness_without
    return text + ("." if without is None else f", without the trigger word {_percent(without)}.")


def _with_error(measured: Measured | None) -> Measured | None:
    """Return a figure if its standard error is known, which that of a single image is not."""
    return measured if measured is not None and measured[1] is not None else None


def _surely_below(measured: Measured | None, limit: float) -> bool:
    """Return whether a figure is below a limit beyond one standard error."""
    return measured is not None and measured[1] is not None and measured[0] + measured[1] < limit


def _surely_above(measured: Measured, limit: float) -> bool:
    """Return whether a figure is above a limit beyond one standard error."""
    return measured[1] is not None and measured[0] - measured[1] > limit


def _by_response(now: StrengthPictures) -> Verdict:
    """Judge by leakage and trigger response, where the training images are not known."""
    at = f"At {now.strength:g}"
    leakage = _with_error(now.leakage)
    if leakage is not None and _lower(leakage) > MAX_LEAKAGE:
        return _verdict(
            "leaks",
            f"{at} prompts without the trigger word change {_text(leakage)} times as much as those with it.",
        )
    response = now.trigger_response
    if response is None or response[1] is None:
        missing = "was not measured" if response is None else "is of one picture"
        return _verdict(
            "unclear", f"{at} the trigger response {missing}: add strength 0, seeds, and a prompt with and without it."
        )
    evidence = f"{at} the trigger response is {_text(response)}."
    if _upper(response) < MIN_TRIGGER_RESPONSE:
        return _verdict("undertrained", evidence)
    return _verdict("good" if _lower(response) > 1 else "unclear", evidence)


def is_copying(row: StrengthPictures, features: str) -> bool:
    """Return whether an image of a strength copies a training image."""
    limit = COPY_RATIO_OF_THUMBNAILS if features == THUMBNAILS else COPY_RATIO
    return row.nearest_ratio is not None and row.nearest_ratio < limit


def has_collapsed(row: StrengthPictures) -> bool:
    """Return whether images of one prompt hardly differ from seed to seed, beyond the error."""
    variety = row.seed_variety
    return variety is not None and variety[1] is not None and _upper(variety) < MIN_KEPT_VARIETY


class _Choice(NamedTuple):
    """The rows whose effect is within the error of the best one, in their order, and the figures that show it."""

    equal: list[StrengthPictures]
    reason: str


def _first_within_error(rows: Sequence[tuple[str, StrengthPictures]], features: str) -> _Choice | str:
    """Choose among rows with their names, the simplest first; return why not, if they do not allow it."""
    damaged = [name for name, row in rows if is_copying(row, features) or has_collapsed(row)]
    effects = [
        (name, row, *measured) for name, row in rows if name not in damaged and (measured := _effect(row)) is not None
    ]
    if not effects:
        if damaged and rows:
            return "all copy a training image or draw the same picture"
        return "neither likeness, closeness nor trigger response was measured"
    best_name, _, best, error = max(effects, key=lambda effect: effect[2])
    if error is None:
        return "with one prompt and one seed the difference may be chance, so add seeds"
    equal = [row for _, row, value, _ in effects if value >= best - error]
    reason = f"{best:.2f} \N{PLUS-MINUS SIGN} {error:.2f} at {best_name}."
    if damaged:
        reason += f" Left out, for copies or equal pictures: {', '.join(damaged)}."
    return _Choice(equal, reason)


def _by_strength(rows: Sequence[StrengthPictures], lora: str, base: str) -> dict[float, StrengthPictures]:
    return {row.strength: row for row in rows if row.strength > 0 and (row.lora, row.base) == (lora, base)}


def _effect(row: StrengthPictures) -> Measured | None:
    measured = row.likeness or row.closeness
    return row.trigger_response if measured is None else (min(measured[0], 1.0), measured[1])


def _upper(measured: Measured) -> float:
    return measured[0] + STANDARD_ERRORS_OF_PICTURES * (measured[1] or 0.0)


def _lower(measured: Measured) -> float:
    return measured[0] - STANDARD_ERRORS_OF_PICTURES * (measured[1] or 0.0)


def _text(measured: Measured | None) -> str:
    if measured is None:
        return "unknown"
    value, error = measured
    return f"{value:.2f}" if error is None else f"{value:.2f} \N{PLUS-MINUS SIGN} {error:.2f}"


def _percent(measured: Measured | None) -> str:
    if measured is None:
        return "an unknown part"
    value, error = measured
    return f"{value:.0%}" if error is None else f"{value:.0%} \N{PLUS-MINUS SIGN} {error:.0%}"


class _Words(NamedTuple):
    title: str
    next_step: str
    level: str


_WORDS: dict[TestCode, _Words] = {
    "good": _Words("The trigger word works", "Use the recommended strength.", "good"),
    "undertrained": _Words(
        "Undertrained", "Train for more epochs; if that changes nothing, at a higher learning rate.", "warn"
    ),
    "overtrained": _Words(
        "Overtrained: the prompt hardly matters", "Use an earlier checkpoint or fewer epochs.", "bad"
    ),
    "trigger_weak": _Words(
        "The trigger word is weak",
        "Put the trigger word first in every caption, and leave out what it should mean.",
        "warn",
    ),
    "leaks": _Words(
        "It shows without the trigger word, too",
        "Train with regularisation images, captioned without the trigger word, or lower the text encoder's rate. A "
        "style may do so on purpose.",
        "warn",
    ),
    "memorised": _Words(
        "It copies a training image", "Set duplicates of that image aside, and use an earlier checkpoint.", "bad"
    ),
    "wrong_prediction": _Words(
        "Washed out or noise",
        "Check the prediction type of the base; if it is right, use an earlier checkpoint, or train at a lower rate.",
        "bad",
    ),
    "unclear": _Words("Not clear yet", "Draw more seeds and prompts.", "info"),
}


def _verdict(code: TestCode, evidence: str) -> Verdict:
    words = _WORDS[code]
    return Verdict.model_validate(
        {"code": code, "title": words.title, "evidence": evidence, "next_step": words.next_step, "level": words.level}
    )
