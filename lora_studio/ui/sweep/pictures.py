"""The measures of a test by features: a curve over the strength with a sentence each, and copied training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.events import Measured
from lora_studio.measures.thumbnails import NAME as THUMBNAILS
from lora_studio.planning.verdict_limits import COPY_RATIO, COPY_RATIO_OF_THUMBNAILS
from lora_studio.sampling.cells import strength_label
from lora_studio.sampling.picture_measures import PictureMeasures, StrengthPictures
from lora_studio.sampling.recommend import (
    CheckpointAdvice,
    judge_lora,
    recommend_checkpoints,
    recommend_strength,
)
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.sweep.curves import measure_charts
from lora_studio.ui.sweep.next_run import TRY, change_to_try
from lora_studio.ui.widgets.html import TableRow, Tone, card, cards, heading, hint, render, table
from lora_studio.ui.widgets.thumbnails import THUMBNAIL_SIZE, thumbnail_url_or_empty
from lora_studio.workspace.project import Home

TONES = {"good": Tone.OK, "info": Tone.PLAIN, "warn": Tone.WARNING, "bad": Tone.ERROR}


class Described(NamedTuple):
    """A measure as the page shows it: its title, and a sentence with the places {now} and {off}.

    `needs` is what a test must have for it.
    """

    title: str
    sentence: str
    needs: str = ""
    percent: bool = False


MEASURES: Mapping[str, Described] = {
    "trigger_response": Described(
        "Trigger response",
        "The trigger word changes a picture {now} times as much as it does without the LoRA.",
        "strength 0, and a prompt with {trigger} and the same one without it",
    ),
    "leakage": Described(
        "Leakage",
        "Prompts without the trigger word change {now} as much as those with it.",
        "strength 0, and prompts with and without {trigger}",
        percent=True,
    ),
    "likeness": Described(
        "Likeness to the training images",
        "With the trigger word, pictures have gone {now} of the way from the base's pictures to the training images.",
        "strength 0, and a LoRA that was trained on this machine",
        percent=True,
    ),
    "likeness_without": Described(
        "Likeness without the trigger word",
        "Without the trigger word, pictures have gone {now} of the way.",
        "prompts with and without {trigger}",
        percent=True,
    ),
    "caption_likeness": Described(
        "Likeness with training captions",
        "With captions of the training images, pictures have gone {now} of the way.",
        "captions of the training images among the prompts",
        percent=True,
    ),
    "reproduction": Described(
        "Distance to the captions' own images",
        "With captions of the training images, pictures are {now} as far from these images as usual. 0 is a copy.",
        percent=True,
    ),
    "closeness": Described(
        "Closeness to the training images",
        "Closeness {now}; without the LoRA {off}. At 1 a picture could be one of the training images.",
        "a LoRA that was trained on this machine",
    ),
    "validation_closeness": Described(
        "Closeness to the validation split",
        "Closeness {now} to images that were not trained on; without the LoRA {off}.",
    ),
    "memorisation": Described(
        "Distance to the nearest training image",
        "Pictures are {now} as far from the nearest training image as these are from their own nearest. 0 is a copy.",
        percent=True,
    ),
    "seed_variety": Described(
        "Variety over seeds",
        "Pictures of one prompt differ from seed to seed {now} as much as without the LoRA.",
        "strength 0, and two seeds",
        percent=True,
    ),
    "prompt_variety": Described(
        "Variety over prompts",
        "Pictures of different prompts differ {now} as much as without the LoRA.",
        "strength 0, and two prompts",
        percent=True,
    ),
    "content_kept": Described(
        "Content of the prompt",
        "Pictures show what the base draws for the same prompt, and not for others, {now} as clearly as without the "
        "LoRA.",
        "strength 0, and two prompts",
        percent=True,
    ),
    "adherence": Described(
        "Prompt adherence",
        "The tagger finds {now} of the prompts' tags; without the LoRA {off}.",
        "prompts with tags that the dataset's tagger knows",
        percent=True,
    ),
    "contrast": Described("Contrast", "Contrast {now}; without the LoRA {off}."),
    "saturation": Described("Saturation", "Saturation {now}; without the LoRA {off}."),
    "clipped": Described("Clipped", "{now} of the pixels are black or white; without the LoRA {off}.", percent=True),
}


def picture_measures(view: SweepView, measures: PictureMeasures, home: Home) -> Markup:
    """Return the measures of a test as curves, with a table, and the training images that are copied."""
    shown = [name for name in MEASURES if any(getattr(row, name) is not None for row in measures.rows)]
    rows = measures.rows
    return (
        _verdicts(view, measures)
        + heading("Measures", _compared_by(measures))
        + measure_charts(
            view,
            rows,
            {name: MEASURES[name].title for name in shown},
            value=lambda row, name: None if getattr(row, name) is None else getattr(row, name)[0],
            notes={name: sentence(name, rows) for name in shown},
            advice={
                place: recommend_strength(own, measures.features)
                for place, own in measures.by_lora().items()
                if place[0]
            },
        )
        + _copies(view, measures, home)
        + _table(view, rows, shown)
        + _missing(shown)
    )


def sentence(name: str, rows: Sequence[StrengthPictures]) -> str:
    """Return what a measure says at the strength nearest to 1, of the first LoRA that has it."""
    described = MEASURES[name]
    known = [row for row in rows if getattr(row, name) is not None]
    strong = [row for row in known if row.strength] or known
    now = min(strong, key=lambda row: abs(row.strength - 1))
    off = next((row for row in known if not row.strength and (row.base, row.lora) == (now.base, now.lora)), None)
    text = described.sentence
    if off is None:
        text = text.replace("; without the LoRA {off}", "")
    figure_off = "" if off is None else figure(getattr(off, name), percent=described.percent)
    said = text.format(now=figure(getattr(now, name), percent=described.percent), off=figure_off)
    return f"At {strength_label(now.strength)}: {said}"


def figure(measured: Measured, *, percent: bool = False) -> str:
    """Return a value with its standard error: "1.52 ± 0.08" or "48% ± 3%"."""
    value, error = measured
    shown = "{:.0%}" if percent else "{:.2f}"
    text = shown.format(value)
    return text if error is None else f"{text} \N{PLUS-MINUS SIGN} {shown.format(error)}"


def _verdicts(view: SweepView, measures: PictureMeasures) -> Markup:
    """Return a card per LoRA and base: the verdict with its evidence and next step, and the recommended strength.

    Where the next step is a setting, a button tries it. Of a run with several checkpoints, a card recommends one.
    """
    series = measures.by_lora()
    found = []
    for place, ((lora, base), rows) in enumerate(series.items()):
        if not lora:
            continue
        verdict, advice = judge_lora(rows, measures.features), recommend_strength(rows, measures.features)
        name = f"{lora} on {base}: " if len(series) > 1 else ""
        strength = ""
        if advice.strength is not None:
            to = f" ({advice.low:g} to {advice.high:g} are as good)" if advice.low != advice.high else ""
            strength = f"Recommended strength: {advice.strength:g}{to}. "
        evidence = f"{verdict.evidence} {strength}{advice.reason}"
        found.append(
            render(
                "sweep/verdict.html",
                title=f"{name}{verdict.title}",
                evidence=evidence,
                next_step=verdict.next_step,
                tone=TONES[verdict.level],
                change=change_to_try(view, lora, verdict),
                pick=f"{TRY}{place}",
            )
        )
    if not found:
        return Markup("")
    found += [_checkpoint_card(view, advice) for advice in recommend_checkpoints(measures, view.plan)]
    return heading("Verdict", "Its limits were chosen on LoRAs of a small base: judge by the grid, too.") + cards(found)


def _checkpoint_card(view: SweepView, advice: CheckpointAdvice) -> Markup:
    """Return the recommended checkpoint of a run, with its reason and those that are as good."""
    of = f" of {advice.run}" if advice.run else ""
    on = f" on {advice.base}" if len(view.plan.bases) > 1 else ""
    if advice.lora is None:
        return card(f"Checkpoints{of}{on}", advice.reason)
    equal = f" {advice.equal[0]} to {advice.equal[-1]} are as good." if len(advice.equal) > 1 else ""
    return card(f"Recommended checkpoint{of}{on}: {advice.lora}", advice.reason + equal, tone=Tone.OK)


def _compared_by(measures: PictureMeasures) -> str:
    images = f" with {measures.images} training images" if measures.images else ""
    if measures.features == THUMBNAILS:
        by = f"Compared{images} by the pixels of thumbnails, since no tagger has tagged the training images."
    else:
        by = f"Compared{images} by the features of {measures.features}."
    return f"{by} \N{PLUS-MINUS SIGN} is the standard error over prompts and seeds."


def _copies(view: SweepView, measures: PictureMeasures, home: Home) -> Markup:
    """Return the picture of each strength that copies a training image, beside that image."""
    limit = COPY_RATIO_OF_THUMBNAILS if measures.features == THUMBNAILS else COPY_RATIO
    pairs = [
        {
            "sample": thumbnail_url_or_empty(home, view.folder.path / row.nearest_cell, THUMBNAIL_SIZE),
            "image": thumbnail_url_or_empty(home, Path(row.nearest), THUMBNAIL_SIZE),
            "prompt": row.nearest_cell.stem,
            "when": f"strength {row.strength:g}{f', {row.lora}' if len(view.plan.loras) > 1 else ''}",
            "name": row.nearest.name,
            "distance": f"{row.nearest_ratio:.0%} as far as usual",
        }
        for row in measures.rows
        if row.strength and row.nearest and row.nearest_cell and row.nearest_ratio is not None
        if row.nearest_ratio < limit
    ]
    if not pairs:
        return Markup("")
    title = heading("Copies of training images", "The closest picture at each strength, and the image beside it.")
    return title + render("train/copies.html", pairs=pairs)


def _table(view: SweepView, rows: Sequence[StrengthPictures], shown: Sequence[str]) -> Markup:
    several = len(view.plan.loras) * len(view.plan.bases) > 1
    cells = [
        TableRow(
            [
                *([f"{row.lora} · {row.base}"] if several else []),
                strength_label(row.strength),
                *(_cell(row, name) for name in shown),
            ]
        )
        for row in rows
    ]
    headers = [*(["LoRA and base"] if several else []), "Strength", *(MEASURES[name].title for name in shown)]
    return table(headers, cells, ["keep"] * len(headers), label="Measures", stacked=True)


def _cell(row: StrengthPictures, name: str) -> str:
    measured = getattr(row, name)
    return "–" if measured is None else figure(measured, percent=MEASURES[name].percent)


def _missing(shown: Sequence[str]) -> Markup:
    """Return what a test needs for the measures that this one does not have."""
    missing = [f"{item.title}: {item.needs}" for name, item in MEASURES.items() if name not in shown and item.needs]
    return hint(f"Not measured, with what each needs. {'. '.join(missing)}.") if missing else Markup("")
