"""The measures of a run's samples: a sentence on them, and those that copy a training image, beside that image."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.events import Measured, SampleMeasuresEvent
from lora_studio.planning.picture_signs import THUMBNAILS, find_picture_signs
from lora_studio.planning.picture_verdicts import judge_samples
from lora_studio.planning.verdicts import Verdict
from lora_studio.ui.state.run_history import RunView
from lora_studio.ui.widgets.html import heading, hint, render
from lora_studio.ui.widgets.thumbnails import THUMBNAIL_SIZE, thumbnail_url_or_empty
from lora_studio.workspace.project import Home


class Copy(NamedTuple):
    """A sample and the training image that it copies: URLs of their thumbnails, and what is said of them."""

    sample: str
    image: str
    prompt: str
    when: str
    name: str
    distance: str


def verdicts_on_samples(view: RunView) -> list[Verdict]:
    """Return the verdicts on a run's latest samples."""
    history = view.history
    checkpoints = history.existing_checkpoints(view.folder.path)
    return judge_samples(history.measured_samples(), recipe=view.job.recipe, checkpoints=checkpoints)


def sample_measures(view: RunView, home: Home) -> Markup:
    """Return the measures of the latest samples as sentences, with copies; empty before there are any."""
    measured = view.history.measured_samples()
    if not measured:
        return Markup("")
    before, now = (measured[0] if not measured[0].step else None), measured[-1]
    copies = [_copy(view, home, now, place) for sign in find_picture_signs(now, before) for place in sign.copied]
    title = heading("Samples against the training images", _compared_by(now))
    return (
        title + hint(" ".join(_sentences(now, before))) + (render("train/copies.html", pairs=copies) if copies else "")
    )


def _compared_by(now: SampleMeasuresEvent) -> str:
    if now.features == THUMBNAILS:
        return (
            f"Compared by the pixels of thumbnails with {now.images} images: no tagger has tagged them, so only copies "
            "and colours are seen."
        )
    return f"Compared by the features of {now.features} with {now.images} images."


def _sentences(now: SampleMeasuresEvent, before: SampleMeasuresEvent | None) -> list[str]:
    """Return what the measures say, each as a sentence with its figures."""
    lowest = min(range(len(now.indices)), key=now.nearest_ratio.__getitem__)
    found = [
        f"The nearest sample, of prompt {now.indices[lowest] + 1}, is {now.nearest_ratio[lowest]:.0%} as far from "
        f"{Path(now.nearest[lowest]).name} as training images are from their own nearest."
    ]
    if now.variety is not None:
        was = f", {before.variety[0]:.2f} before training" if before is not None and before.variety else ""
        found.append(f"Variety {_figure(now.variety)}{was}; of the training images {now.training_variety:.2f}.")
    if now.closeness is not None:
        held_out = f", to the validation split {_figure(now.validation_closeness)}" if now.validation_closeness else ""
        found.append(f"Closeness to the training images {_figure(now.closeness)}{held_out} (1: could be one of them).")
    if now.adherence is not None:
        was = f", {before.adherence[0]:.0%} before training" if before is not None and before.adherence else ""
        found.append(f"The tagger finds {now.adherence[0]:.0%} of the prompts' tags{was}.")
    return found


def _figure(measured: Measured) -> str:
    value, error = measured
    return f"{value:.2f}" if error is None else f"{value:.2f} \N{PLUS-MINUS SIGN} {error:.2f}"


def _copy(view: RunView, home: Home, now: SampleMeasuresEvent, place: int) -> Copy:
    event = view.history.samples.get((now.step, now.indices[place]))
    image = Path(now.nearest[place])
    return Copy(
        sample=thumbnail_url_or_empty(home, view.folder.path / event.path, THUMBNAIL_SIZE) if event else "",
        image=thumbnail_url_or_empty(home, image, THUMBNAIL_SIZE),
        prompt=event.prompt if event else f"prompt {now.indices[place] + 1}",
        when=f"epoch {now.epoch}" if now.epoch is not None else f"step {now.step}",
        name=image.name,
        distance=f"{now.nearest_ratio[place]:.0%} as far as usual",
    )
