"""The one plan of a project, and the user's changes to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_studio.planning.project_plan import load_plan, project_recipe, save_changes
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.project import Home, Project
from tests.support.jobs import make_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(Home(tmp_path / "home"), images=0)


def answer(project: Project, **answers: object) -> None:
    project.save_info(project.info().model_copy(update=answers))


def test_without_changes_the_next_run_is_the_plan(project: Project) -> None:
    answer(project, expected_images=2000)
    planned = load_plan(project)
    run = planned.next_run()
    assert planned.plan is not None
    assert planned.plan.steps.total_steps == 1350
    assert (run.figures, run.changes) == (planned.plan, [])


def test_changes_stay_and_all_else_follows_another_plan(project: Project) -> None:
    planned = load_plan(project).recipe
    save_changes(project, planned.model_copy(update={"network_dim": 77}), planned)
    assert project.info().recipe == {"network_dim": 77}
    answer(project, expected_images=2000)
    planned = load_plan(project)
    run = planned.next_run()
    assert run.recipe == planned.recipe.model_copy(update={"network_dim": 77})
    assert [(change.name, change.before, change.value) for change in run.changes] == [("network_dim", 32, 77)]
    assert run.figures is not None
    assert planned.plan is not None
    assert run.figures.steps == planned.plan.steps
    assert run.figures.lora_mib > planned.plan.lora_mib


def test_a_value_that_equals_the_plan_is_no_change(project: Project) -> None:
    planned = load_plan(project).recipe
    save_changes(project, planned.model_copy(update={"epochs": 3}), planned)
    answer(project, expected_images=2000)
    assert load_plan(project).recipe.epochs == 3
    assert load_plan(project).next_run().changes == []
    answer(project, expected_images=20)
    assert [change.name for change in load_plan(project).next_run().changes] == ["epochs"]


def test_changes_that_cannot_work_are_an_error_of_the_run_alone(project: Project) -> None:
    answer(project, recipe={"min_bucket_reso": 4096})
    planned = load_plan(project)
    run = planned.next_run()
    assert run.error is not None
    assert run.error.code == "config"
    assert planned.plan is not None
    assert project_recipe(project) == planned.recipe


def test_a_dataset_that_cannot_be_planned_has_the_guides_defaults(project: Project) -> None:
    project.images_dir.joinpath("broken.png").write_text("not an image", "utf-8")
    planned = load_plan(project)
    assert planned.plan is None
    assert planned.error is not None
    assert planned.recipe == Recipe()


def test_regularisation_images_count_in_the_next_run(project: Project, tmp_path: Path) -> None:
    (tmp_path / "prior").mkdir()
    Image.new("RGB", (1024, 1024)).save(tmp_path / "prior" / "a.png")
    planned = load_plan(project)
    run = planned.run_with(planned.recipe, tmp_path / "prior")
    assert planned.plan is not None
    assert run.figures is not None
    assert run.figures.steps.total_steps == 2 * planned.plan.steps.total_steps


@pytest.mark.parametrize("stored", ['{"recipe": null}', '{"recipe": {"epochs": 3}}', "{}"])
def test_project_files_with_and_without_changes_are_read(project: Project, stored: str) -> None:
    (project.path / "project.json").write_text(stored, "utf-8")
    assert project.info().recipe == ({"epochs": 3} if "epochs" in stored else {})


def test_several_gpus_are_planned_with_the_memory_to_communicate(home: Home) -> None:
    planned = load_plan(home.create_project("two"))
    alone, together = (planned.run_with(planned.recipe, None, count).figures for count in (1, 2))
    assert alone is not None
    assert together is not None
    assert "Communication" not in alone.vram_parts
    assert together.vram_parts["Communication"] > 0
