"""One change at a time: changes split into runs in the guide's order, and what to try next."""

from __future__ import annotations

import pytest

from lora_studio.ledger.experiments import Experiment, best_run, effective_changes, split_changes, suggest_next
from lora_studio.ledger.records import project_records
from lora_studio.planning.optimizers import optimizer_errors
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Home, Project
from tests.support.jobs import make_project
from tests.support.ledger_runs import make_ledger_run

BEFORE = Recipe(optimizer="AdamW8bit")


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home, images=0)


def names(recipe: Recipe, before: Recipe = BEFORE) -> list[list[str]]:
    """Return the settings that each variant changes."""
    return [[change.name for change in variant.changes] for variant in split_changes(recipe, before)]


def test_changes_are_split_in_the_guides_order() -> None:
    recipe = Recipe(optimizer="AdamW", network_dim=64, epochs=5, unet_lr=1e-4, noise_offset=0.03, sample_steps=9)
    variants = split_changes(recipe, BEFORE)
    assert [variant.experiment for variant in variants] == list(Experiment)
    assert names(recipe) == [["unet_lr"], ["epochs"], ["network_dim"], ["optimizer"], ["noise_offset"]]
    for variant in variants:
        changed = [change.name for change in effective_changes(variant.recipe, BEFORE)]
        assert changed == [change.name for change in variant.changes]
        assert variant.recipe.sample_steps == 9


@pytest.mark.parametrize(
    "recipe", [BEFORE, Recipe(optimizer="AdamW8bit", unet_lr=1e-4, sample_steps=9, log_with="trackio")]
)
def test_fewer_than_two_changes_are_not_split(recipe: Recipe) -> None:
    assert split_changes(recipe, BEFORE) == []


def test_dim_and_alpha_are_one_change() -> None:
    recipe = Recipe(optimizer="AdamW8bit", network_dim=16, network_alpha=8, unet_lr=1e-4)
    assert names(recipe) == [["unet_lr"], ["network_dim", "network_alpha"]]
    assert names(Recipe(optimizer="AdamW8bit", network_dim=16, network_alpha=8)) == []


def test_an_optimizer_keeps_the_rates_that_it_needs() -> None:
    recipe = Recipe(optimizer="Prodigy", unet_lr=1, text_encoder_lr=1, lr_scheduler="cosine", epochs=5)
    split = names(recipe)
    assert split[0] == ["epochs"]
    assert {"optimizer", "unet_lr", "text_encoder_lr"} <= set(split[1])
    assert all(not optimizer_errors(variant.recipe) for variant in split_changes(recipe, BEFORE))


def test_settings_that_only_work_together_stay_together() -> None:
    recipe = Recipe(optimizer="AdamW8bit", noise_offset=0.0, adaptive_noise_scale=0.0, unet_lr=1e-4)
    before = Recipe(optimizer="AdamW8bit", noise_offset=0.05, adaptive_noise_scale=0.01)
    assert names(recipe, before) == [["unet_lr"], ["noise_offset", "adaptive_noise_scale"]] or names(
        recipe, before
    ) == [["unet_lr"], ["adaptive_noise_scale", "noise_offset"]]


def test_the_next_experiment_is_the_first_untried_one_from_the_best_run(project: Project) -> None:
    assert suggest_next([]) is None
    first = make_ledger_run(project, final=0.12)
    make_ledger_run(project, first, final=0.09, unet_lr=1e-4)
    make_ledger_run(project, first, final=0.11, epochs=9, network_dim=64)
    suggestion = suggest_next(project_records(project))
    assert suggestion is not None
    assert (suggestion.rule.code, suggestion.run) == ("epochs", "002-ink")
    for changes in ({"epochs": 9}, {"network_dim": 64}, {"optimizer": "AdamW"}):
        make_ledger_run(project, first, **changes)
    assert suggest_next(project_records(project)) is None


def test_the_best_run_has_the_lowest_validation_loss_on_the_same_images(project: Project) -> None:
    make_ledger_run(project, final=0.05, images={"a" * 64: "other"})
    make_ledger_run(project, final=0.09)
    make_ledger_run(project, final=0.12)
    assert best_run(project_records(project)).name == "002-ink"
