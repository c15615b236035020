"""The SDXL presets that kohya_ss comes with: each can be imported and trained."""

from __future__ import annotations

import pytest
import torch

from lora_studio.interop.read import Translation
from lora_studio.planning.advice import recipe_errors
from lora_studio.settings.recipe import Recipe
from lora_studio.training.optim.optimizers import check_optimizer, optimizer_arguments
from lora_studio.training.optim.schedules import check_lr_scheduler
from tests.support.kohya_presets import OPTIONS

# Arguments whose value is refused: sd-scripts refuses it for SDXL, too.
LEFT_OUT = {
    "locon-dadaptation-sdxl": {"bucket_reso_steps"},
}
# Arguments whose setting has the same name and value.
SAME = {
    *("network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "lr_scheduler_type", "noise_offset"),
    *("adaptive_noise_scale", "min_snr_gamma", "multires_noise_iterations", "multires_noise_discount", "resolution"),
    *("scale_weight_norms", "min_timestep", "max_timestep", "bucket_no_upscale", "max_bucket_reso", "keep_tokens"),
    *("shuffle_caption", "caption_dropout_rate", "mixed_precision", "save_every_n_epochs", "max_token_length"),
    *("save_precision", "dim_from_weights"),
}


def test_there_are_19_presets() -> None:
    assert len(OPTIONS) == 19
    assert OPTIONS.keys() > LEFT_OUT.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_preset_is_imported_and_can_be_trained(name: str) -> None:
    options = OPTIONS[name]
    found = Translation(options, complete=True)
    assert {item.name for item in found.left_out if item.matters} == LEFT_OUT.get(name, set())
    recipe = Recipe.parse(found.recipe)
    assert recipe_errors(recipe) == []
    check_optimizer(recipe, torch.device("cpu"))
    check_lr_scheduler(recipe)
    values = recipe.model_dump(mode="json")
    same = SAME & options.keys() - LEFT_OUT.get(name, set())
    assert {setting: values[setting] for setting in same} == {setting: options[setting] for setting in same}
    assert values["epochs"] == options.get("max_train_epochs", values["epochs"])
    assert values["gradient_checkpointing"] == ("on" if options.get("gradient_checkpointing") else "off")


@pytest.mark.parametrize("name", [name for name, options in OPTIONS.items() if "optimizer_args" in options])
def test_an_optimizer_gets_the_arguments_of_the_preset(name: str) -> None:
    recipe = Recipe.parse(Translation(OPTIONS[name], complete=True).recipe)
    used = optimizer_arguments(recipe)
    other_names = {"decouple": "weight_decouple", "use_bias_correction": "bias_correction"}
    for text in OPTIONS[name]["optimizer_args"]:
        argument, _, value = text.partition("=")
        assert str(used.get(argument, used.get(other_names.get(argument, "")))) in (value, str(eval(value)))
