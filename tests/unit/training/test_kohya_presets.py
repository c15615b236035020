"""The SDXL presets that kohya_ss comes with, as recipes: which can be trained, and what the others lack."""

from __future__ import annotations

import pytest
import torch

from lora_studio.errors import ConfigError
from lora_studio.planning.advice import recipe_errors
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.optimizers import check_optimizer
from lora_studio.training.optim.schedules import check_lr_scheduler
from tests.support.kohya_presets import OPTIONS, recipe_values

# Arguments that have no setting, or whose value is refused.
NOT_COVERED = {
    "locon-dadaptation-sdxl": {"bucket_reso_steps"},  # 1, which sd-scripts refuses for SDXL, too
}


def test_there_are_19_presets() -> None:
    assert len(OPTIONS) == 19
    assert NOT_COVERED.keys() < OPTIONS.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_preset_can_be_trained_with_all_that_is_covered(name: str) -> None:
    values, missing = recipe_values(OPTIONS[name]), NOT_COVERED.get(name, set())
    covered = {setting: value for setting, value in values.items() if setting not in missing}
    recipe = Recipe.parse(covered)
    assert recipe_errors(recipe) == []
    check_optimizer(recipe, torch.device("cpu"))
    check_lr_scheduler(recipe)
    found = recipe.model_dump(mode="json")
    checkpointing = covered.pop("gradient_checkpointing")
    assert found["gradient_checkpointing"] == ("on" if checkpointing else "off")
    assert {setting: found[setting] for setting in covered} == covered


@pytest.mark.parametrize("name", NOT_COVERED)
def test_what_is_not_covered_is_refused_by_its_name(name: str) -> None:
    values = recipe_values(OPTIONS[name])
    for setting in NOT_COVERED[name]:
        with pytest.raises(ConfigError, match=setting):
            Recipe.parse(values)
