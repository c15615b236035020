"""A plan's figures over the values of one variable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_studio.planning.plan import plan, read_inputs
from lora_studio.planning.what_if import Variable, WhatIfRow, what_if

CASES: list[dict[str, Any]] = [
    {"images": 24, "kind": "style", "base": "Illustrious XL", "vram_gib": 12.0},
    {"images": 400, "vram_gib": 24.0, "hours": 2},
    {"images": 20, "base": "embedded", "device": "CPU"},
    {"images": 30, "overrides": {"network_dim": 20, "epochs": 37, "gradient_checkpointing": "off"}},
]


def figures(row: WhatIfRow) -> tuple[Any, ...]:
    return row.total_steps, row.seconds, row.vram_gib, row.lora_mib


@pytest.mark.parametrize("variable", Variable)
@pytest.mark.parametrize("arguments", CASES)
def test_each_row_has_the_figures_of_a_plan_with_its_value(arguments: dict[str, Any], variable: Variable) -> None:
    planned = plan(**arguments)
    rows = what_if(read_inputs(**arguments), variable)
    assert len(rows) >= 8
    assert [row.value for row in rows] == sorted({row.value for row in rows})
    for row in (rows[0], rows[-1], *(row for row in rows if row.is_current)):
        value = row.value if variable is Variable.VRAM_GIB else int(row.value)
        if variable.is_setting:
            changed = planned.recipe.model_dump() | {variable.value: value}
            other = plan(**arguments | {"overrides": changed, "hours": None})
        else:
            other = plan(**arguments | {variable.value: value})
        assert figures(row) == (other.steps.total_steps, other.seconds, other.vram_gib, other.lora_mib)
        assert row.min_vram_gib <= row.vram_gib <= row.max_vram_gib


def test_the_plans_own_value_is_marked_even_if_it_is_unusual() -> None:
    for variable, value in ((Variable.NETWORK_DIM, 20), (Variable.EPOCHS, 37), (Variable.IMAGES, 30)):
        rows = what_if(read_inputs(**CASES[3]), variable)
        assert [row.value for row in rows if row.is_current] == [value]
    unknown = what_if(read_inputs(24), Variable.VRAM_GIB)
    assert not any(row.is_current for row in unknown)
    assert {row.limit_gib == row.value for row in unknown} == {True}


def test_rows_say_what_does_not_fit_the_gpu() -> None:
    recipe = plan(24, vram_gib=12).recipe.model_dump()
    rows = what_if(read_inputs(24, vram_gib=12), Variable.BATCH_SIZE)
    assert {row.fits for row in rows} == {True, False}
    for row in rows:
        changed = plan(24, vram_gib=12, overrides=recipe | {"batch_size": int(row.value)})
        assert row.fits == ("memory" not in {caution.code for caution in changed.warnings})
    assert {row.fits for row in what_if(read_inputs(24), Variable.NETWORK_DIM)} == {None}


def test_other_numbers_of_images_keep_the_shares_of_the_buckets(tmp_path: Path) -> None:
    for number in range(8):
        size = (96, 160) if number < 6 else (160, 96)
        Image.new("RGB", size, "orange").save(tmp_path / f"{number}.png")
    inputs = read_inputs(tmp_path, overrides={"repeats": 1, "epochs": 1, "batch_size": 2})
    steps = {row.value: row.total_steps for row in what_if(inputs, Variable.IMAGES)}
    assert (steps[8], steps[20], steps[40]) == (3 + 1, 8 + 3, 15 + 5)
