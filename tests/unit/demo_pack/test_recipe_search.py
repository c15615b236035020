"""A recipe is judged by what its LoRAs reach in the styles that choose it."""

from __future__ import annotations

import pytest
from demo_pack import recipe_search, styles
from demo_pack.recipe_search import NO_TRIGGER

from lora_studio.planning.presets import load_preset
from lora_studio.settings.recipe import Recipe

REACHED = {
    "style": {"0": 0.02, "0.7": 0.7, "1": 0.9, NO_TRIGGER: 0.1},
    "content kept": {"0": 1.0, "0.7": 0.9, "1": 0.7, NO_TRIGGER: 0.8},
}


def test_figures_that_reach_every_goal_miss_none() -> None:
    assert recipe_search.shortfall(REACHED) == 0
    assert min(recipe_search.criteria(REACHED).values()) >= 0


@pytest.mark.parametrize(
    ("kind", "strength", "value", "missed", "by"),
    [
        ("style", "1", 0.5, "style at 1", 0.3),
        ("content kept", "1", 0.5, "content at 1", 0.167),
        ("style", "0", 0.15, "style at 0", 0.1),
        ("style", "0.7", 0.5, "style at 0.7", 0.136),
        ("content kept", "0.7", 0.7, "content at 0.7", 0.09),
        ("content kept", NO_TRIGGER, 0.4, "content without the trigger word", 0.267),
    ],
)
def test_a_missed_goal_is_named_with_its_distance(
    kind: str, strength: str, value: float, missed: str, by: float
) -> None:
    figures = {name: dict(values) for name, values in REACHED.items()}
    figures[kind][strength] = value
    assert recipe_search.criteria(figures)[missed] == pytest.approx(-by, abs=0.002)
    assert recipe_search.shortfall(figures) >= by - 0.002


def test_three_styles_choose_and_the_others_have_no_say() -> None:
    assert set(recipe_search.CHOSEN_ON) < set(styles.STYLES)
    assert len(styles.STYLES) == 2 * len(recipe_search.CHOSEN_ON)


@pytest.mark.parametrize("name", recipe_search.CANDIDATES)
def test_every_candidate_is_a_recipe(name: str) -> None:
    changes = recipe_search.CANDIDATES[name]
    recipe = Recipe.parse({**load_preset("demo"), **changes})
    assert {key: getattr(recipe, key) for key in changes} == changes
