"""Variants of a recipe: every combination once, named by what differs."""

from __future__ import annotations

import pytest

from lora_studio.errors import ConfigError, InputError
from lora_studio.planning.variants import Axis, variant_jobs, variants
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe


def test_every_combination_of_two_settings() -> None:
    found = variants(Recipe(), [Axis.of("unet_lr", "1e-4, 5e-4,1e-4,"), Axis.of("network_dim", "8,16")])
    assert [variant.name for variant in found] == ["lr1e-4-dim8", "lr1e-4-dim16", "lr5e-4-dim8", "lr5e-4-dim16"]
    assert [(item.recipe.unet_lr, item.recipe.network_dim) for item in found] == [
        (1e-4, 8),
        (1e-4, 16),
        (5e-4, 8),
        (5e-4, 16),
    ]
    pattern = TrainJob.parse({"dataset": ".", "base": "x", "name": f"ink-{found[0].name}"}).name
    assert pattern == "ink-lr1e-4-dim8"


def test_choices_are_values_too() -> None:
    found = variants(Recipe(), [Axis.of("optimizer", "AdamW, Prodigy")])
    assert [variant.name for variant in found] == ["optimizerAdamW", "optimizerProdigy"]


@pytest.mark.parametrize(
    ("axes", "word"),
    [
        ([], "setting"),
        ([("unet_lr", " , ")], "unet_lr"),
        ([("unet_lr", "abc, 1e-4")], "unet_lr"),
        ([("unet_lr", "1e-4"), ("unet_lr", "2e-4")], "unet_lr"),
        ([("unet_lr", "1"), ("seed", "1"), ("epochs", "1")], "2"),
        ([("colour", "red")], "colour"),
        ([("seed", ",".join(map(str, range(25))))], "24"),
    ],
)
def test_wrong_axes_are_named(axes: list[tuple[str, str]], word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        variants(Recipe(), [Axis.of(name, values) for name, values in axes])
    assert word in caught.value.problems[0]


def test_the_text_of_an_option_has_a_setting_and_its_values() -> None:
    assert Axis.parse("unet_lr = 1e-4,2e-4") == Axis("unet_lr", ["1e-4", "2e-4"])
    with pytest.raises(InputError) as raised:
        Axis.parse("unet_lr")
    assert raised.value.code == "vary"


def test_jobs_differ_in_name_and_recipe_alone() -> None:
    job = TrainJob.parse({"dataset": ".", "base": "x", "name": "n" * 80, "trigger_word": "inkstamp"})
    jobs = variant_jobs(job, [Axis("network_dim", [8, 16])])
    assert [each.recipe.network_dim for each in jobs] == [8, 16]
    assert [each.name[-6:] for each in jobs] == ["n-dim8", "-dim16"]
    assert all(each.model_copy(update={"name": job.name, "recipe": job.recipe}) == job for each in jobs)
