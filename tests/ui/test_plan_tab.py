"""Plan: answers are kept and planned with at once; the recipe goes to Train."""

from __future__ import annotations

import pytest

from lora_studio.ui.context import NEW_RUN
from lora_studio.ui.plan.tab import PlanTab
from lora_studio.ui.train.tab import TrainTab
from lora_studio.workspace.project import Home, Project
from tests.support.interface import Interface
from tests.support.jobs import make_project


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home, images=0)


def test_answers_are_kept_and_planned_with(project: Project, interface: Interface) -> None:
    interface.open("ink")
    shown = interface.call(
        PlanTab.update_plan, plan_kind="concept", plan_base="Pony V6 XL", plan_trigger=" ink_new ", plan_images=30
    )
    info = project.info()
    assert (info.kind, info.base, info.trigger_word) == ("concept", "Pony V6 XL", "ink_new")
    assert "30 images × " in shown["plan_tiles"]
    assert "score_9" in shown["plan_recipe"]
    assert "characters and styles" in shown["plan_base"]["info"]


def test_a_number_that_cannot_be_is_named(project: Project, interface: Interface) -> None:
    interface.open("ink")
    before = project.info()
    for box, value, words in [
        ("plan_images", -3, "The number of images is -3"),
        ("plan_vram", -1, "GPU memory is -1"),
        ("plan_hours", 0, "The time budget is 0"),
    ]:
        shown = interface.call(PlanTab.update_plan, **{box: value})
        assert words in shown["plan_notice"]
        interface.open("ink")
    assert project.info() == before


def test_use_this_recipe_takes_it_to_train(project: Project, interface: Interface) -> None:
    interface.open("ink")
    shown = interface.call(PlanTab.use_recipe, plan_images=25)
    recipe = project.info().recipe
    assert recipe is not None
    assert recipe.batch_size == 2
    assert shown["run"] == NEW_RUN
    assert interface.call(TrainTab.tab_selected)["recipe_epochs"]["value"] == str(recipe.epochs)


def test_users_text_is_escaped(project: Project, interface: Interface) -> None:
    interface.open("ink")
    shown = interface.call(PlanTab.update_plan, plan_trigger="<img src=x onerror=alert(1)>", plan_base="<b>base</b>")
    assert not any("<img src=x" in str(value) or "<b>base" in str(value) for value in shown.values() if value)
    assert interface.call(TrainTab.tab_selected)


def test_images_are_counted_in_the_dataset(home: Home, interface: Interface) -> None:
    make_project(home, images=4)
    shown = interface.open("ink")
    assert shown["plan_images"]["value"] == 4
    assert shown["plan_images"]["interactive"] is False
    assert "4 images × " in shown["plan_tiles"]
