"""Bounds of the numbers of a plan, and of those of all jobs."""

from __future__ import annotations

from typing import get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt

from lora_studio.errors import InputError
from lora_studio.settings.declare import Settings
from lora_studio.settings.job_specs import JOB_KINDS
from lora_studio.settings.plan_numbers import PlanNumbers, check_plan_number
from lora_studio.settings.recipe import Recipe


@pytest.mark.parametrize("model", [Recipe, PlanNumbers, *JOB_KINDS.values()])
def test_every_number_has_a_lower_and_an_upper_bound(model: type[Settings]) -> None:
    for name, field in model.model_fields.items():
        if {int, float} & {field.annotation, *get_args(field.annotation)}:
            kinds = {type(bound) for bound in field.metadata}
            assert kinds & {Ge, Gt}, name
            assert kinds & {Le, Lt}, name


def test_a_number_out_of_its_bounds_is_named_with_its_value_and_bound() -> None:
    for value in (None, 1, 1_000_000):
        check_plan_number("images", value)
    with pytest.raises(InputError) as raised:
        check_plan_number("images", 2_000_000)
    assert raised.value.code == "images"
    assert "2,000,000" in raised.value.message
    assert "1000000" in raised.value.message
