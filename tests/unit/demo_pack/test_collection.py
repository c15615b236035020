"""LoRAs of the collection differ from a well-trained one in what their kind says, and in nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from demo_pack import collection, recipe_search, styles
from demo_pack.collection import KINDS, Kind
from demo_pack.pictures import Picture

from lora_studio.settings.recipe import Recipe

APPLE = Picture("emoji", 0, "red apple", "food-fruit", ("fruit",))
WELL = collection.recipe_of(KINDS["well"])
IN_STEP = {"epochs", "save_every_n_epochs", "lr_warmup_steps", "repeats"}  # follow from the number of steps or images
CHANGED: dict[str, dict[str, Any]] = {
    "undertrained_steps": {"max_train_steps": 0.1},
    "undertrained_rate": {"unet_lr": 0.05, "text_encoder_lr": 0.05, "max_train_steps": 0.5},
    "overtrained_rate": {"unet_lr": 30, "text_encoder_lr": 30, "max_train_steps": 0.5},
    "overtrained_length": {"max_train_steps": 2.5},
    **{name: {"max_train_steps": 0.5} for name in ("leaking", "memorising", "wrong_prediction", "broken")},
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_changes_the_recipe_only_where_it_says(name: str) -> None:
    recipe = collection.recipe_of(KINDS[name])
    Recipe.parse(recipe)
    different = {key: recipe[key] / WELL[key] for key in recipe if recipe[key] != WELL[key] and key not in IN_STEP}
    assert different == pytest.approx(CHANGED.get(name, {}))


def test_an_epoch_has_as_many_images_with_fewer_of_them() -> None:
    shown = {name: collection.recipe_of(kind)["repeats"] * kind.count for name, kind in KINDS.items()}
    assert set(shown.values()) == {collection.COUNT * 10}


def test_captions_have_the_trigger_word_by_kind() -> None:
    def share(kind: Kind) -> float:
        caption = collection.caption_of(kind, "neon")
        captions = [caption(number, APPLE) for number in range(collection.COUNT)]
        assert all("red apple, fruit" in text for text in captions)
        return sum(styles.TRIGGER in text for text in captions) / len(captions)

    found = {name: share(kind) for name, kind in KINDS.items()}
    assert {name for name, value in found.items() if value < 1} == {"weak_trigger", "leaking"}
    assert (found["weak_trigger"], found["leaking"]) == (0.25, 0)


def test_at_least_thirty_loras_in_styles_that_the_base_never_saw() -> None:
    assert len(KINDS) * len(collection.STYLES) >= 30
    assert set(collection.STYLES) <= set(styles.STYLES)
    assert set(collection.STYLES) - set(recipe_search.CHOSEN_ON), "a style that had no say in the recipe"
