"""What a plan would be with another value of one variable: steps, time, memory and file size for each value.

Images and the GPU's memory are answers: the plan is made again for them. Epochs, batch size and network dim are
settings: all others stay as planned, as after a change in the form.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from math import floor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lora_studio.dataset.buckets import Size, place_for
from lora_studio.dataset.training_images import DatasetImage, DatasetImages
from lora_studio.planning.estimate import RunEstimator
from lora_studio.planning.memory import lora_mib
from lora_studio.planning.plan import PlanInputs
from lora_studio.planning.timing import SecondsRange
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import ImageSet

VALUES_BESIDE = 7  # on each side of the plan's


class Variable(StrEnum):
    """What a plan can be varied over; the names are those of the settings and of the plan's arguments."""

    IMAGES = "images"
    EPOCHS = "epochs"
    BATCH_SIZE = "batch_size"
    NETWORK_DIM = "network_dim"
    VRAM_GIB = "vram_gib"

    @property
    def is_setting(self) -> bool:
        """True if only this setting changes; for the others the whole plan is made again."""
        return self in (Variable.EPOCHS, Variable.BATCH_SIZE, Variable.NETWORK_DIM)


class WhatIfRow(BaseModel):
    """The figures with one value of the variable; `is_current` marks that of the plan.

    `min_vram_gib` recomputes all activations and `max_vram_gib` none, where the recipe leaves that open; the run takes
    `vram_gib`. `limit_gib` is the GPU's memory and `fits` says whether the run fits in it, None if it is not known.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    is_current: bool
    total_steps: int
    seconds: SecondsRange
    vram_gib: float
    min_vram_gib: float
    max_vram_gib: float
    limit_gib: float | None
    fits: bool | None
    lora_mib: float


USUAL_VALUES: dict[Variable, Sequence[float]] = {
    Variable.IMAGES: (
        *(5, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500, 600, 800, 1000),
        *(1250, 1500, 2000, 2500, 3000, 4000, 5000, 6000, 8000, 10_000),
    ),
    Variable.EPOCHS: (*range(1, 21), *range(22, 41, 2), *range(45, 101, 5), *range(150, 1001, 50)),
    Variable.BATCH_SIZE: (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64),
    Variable.NETWORK_DIM: (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    Variable.VRAM_GIB: (6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80),
}


def what_if(inputs: PlanInputs, variable: Variable) -> list[WhatIfRow]:
    """Return the figures of a plan for usual values of one variable around its own, the smallest value first.

    The plan's own value is among them, unless it is the memory of an unknown GPU. Raises InputError for settings that
    cannot work.
    """
    run = inputs.estimator()
    recipe = inputs.fitted(inputs.recommended(), run)
    current = _current(inputs, recipe, variable)
    rows = []
    for value in _values(variable, current):
        if value == current:
            rows.append(_row(inputs, run, recipe, value, is_current=True))
        elif variable.is_setting:
            rows.append(_row(inputs, run, Recipe.parse(recipe.model_dump() | {variable.value: value}), value))
        else:
            rows.append(_row_planned_again(inputs, run, recipe, variable, value))
    return rows


def what_if_summary(variable: Variable, rows: Sequence[WhatIfRow]) -> dict[str, Any]:
    """Return the rows as JSON values."""
    return {"variable": variable.value, "rows": [row.model_dump(mode="json") for row in rows]}


def _current(inputs: PlanInputs, recipe: Recipe, variable: Variable) -> float | None:
    match variable:
        case Variable.IMAGES:
            return inputs.images.total
        case Variable.VRAM_GIB:
            return inputs.vram_gib
        case _:
            return float(getattr(recipe, variable.value))


def _values(variable: Variable, current: float | None) -> list[float]:
    """Return usual values with `current` among them, at most VALUES_BESIDE on each side of it."""
    usual = USUAL_VALUES[variable]
    if current is None:
        return [*usual]
    place = bisect_left(usual, current)
    beside = usual[max(0, place - VALUES_BESIDE) : place + VALUES_BESIDE + 1]
    return sorted({current, *beside})


def _row_planned_again(
    inputs: PlanInputs, run: RunEstimator, recipe: Recipe, variable: Variable, value: float
) -> WhatIfRow:
    """Return the figures of the plan for another number of images or another GPU."""
    if variable is Variable.IMAGES:
        images = _scaled(inputs.images, recipe, int(value))
        changed = replace(inputs, images=images, assumed=True)
        run = changed.estimator()
    else:
        changed = replace(inputs, vram_gib=value, device=None, speeds=())
        run = replace(run, vram_gib=value, gpu="", speeds=())
    return _row(changed, run, changed.fitted(changed.recommended(), run), value)


def _row(inputs: PlanInputs, run: RunEstimator, recipe: Recipe, value: float, *, is_current: bool = False) -> WhatIfRow:
    vram_gib, memory = inputs.vram_gib, run.memory(inputs.on_device(recipe))
    return WhatIfRow(
        value=value,
        is_current=is_current,
        total_steps=run.steps(recipe).total_steps,
        seconds=run.seconds(recipe),
        vram_gib=memory.gib,
        min_vram_gib=memory.least,
        max_vram_gib=memory.most,
        limit_gib=vram_gib,
        fits=None if vram_gib is None else memory.fits(vram_gib),
        lora_mib=round(lora_mib(recipe, inputs.known, on_cpu=inputs.on_cpu), 1),
    )


def _scaled(images: DatasetImages, recipe: Recipe, number: int) -> DatasetImages:
    """Return `number` images whose buckets and sets have the shares that those of `images` have."""
    counts: Counter[tuple[Size, ImageSet]] = Counter()
    for image in images.images:
        counts[place_for(recipe, *image.size).bucket, image.image_set] += image.count
    exact = {group: number * count / images.total for group, count in counts.items()}
    whole = {group: floor(share) for group, share in exact.items()}
    by_rest = sorted(exact, key=lambda group: whole[group] - exact[group])
    for group in by_rest[: number - sum(whole.values())]:
        whole[group] += 1
    return DatasetImages(
        [DatasetImage(Path(), size, image_set, count=count) for (size, image_set), count in whole.items() if count]
    )
