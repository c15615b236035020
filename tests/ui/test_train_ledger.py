"""The ledger, comparisons, notes and the parent of the next run in the Train tab, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.settings.job_specs import TrainJob
from lora_studio.ui.train.compare import Compare
from lora_studio.ui.train.ledger import Scope
from lora_studio.ui.train.lineage import NO_PARENT, SPLIT, save_parent
from lora_studio.ui.train.run_panel import RunPanel
from lora_studio.ui.train.sections import Section, Sections
from lora_studio.ui.train.tab import TrainTab
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.job_paths import read_moved_paths
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.run_notes import change_notes
from tests.support.charts import charts_in
from tests.support.interface import Interface, error_code
from tests.support.jobs import make_project, make_run
from tests.support.ledger_runs import make_ledger_run

Started = list[tuple[JobFolder, bool]]


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home)


def parents(started: Started) -> list[Path | None]:
    return [job.parent for folder, _ in started if isinstance(job := folder.job(), TrainJob)]


def test_a_run_is_made_from_the_one_that_was_edited_or_started_last(
    project: Project, interface: Interface, started: Started
) -> None:
    first, second = make_run(project), make_run(project)
    interface.open_project("ink")
    interface.call(TrainTab.select_run, pick=first.name)
    interface.call(TrainTab.edit_and_rerun)
    interface.call(TrainTab.start_training, recipe_unet_lr="1e-4")
    interface.call(TrainTab.open_form)
    interface.call(TrainTab.start_training, recipe_epochs="5")
    assert parents(started) == [first.path, started[0][0].path]
    assert second.name not in project.info().parent


def test_several_changes_are_split_into_runs_or_started_as_one(
    project: Project, interface: Interface, started: Started
) -> None:
    parent = make_run(project)
    interface.open_project("ink")
    interface.call(TrainTab.select_run, pick=parent.name)
    shown = interface.call(TrainTab.edit_and_rerun)
    assert SPLIT not in shown["train_lineage"]
    interface.call(TrainTab.save_edit, recipe_epochs="5")
    shown = interface.call(TrainTab.save_edit, recipe_unet_lr="1e-4")
    assert SPLIT in shown["train_lineage"]
    interface.call(TrainTab.click_in_lineage, pick=SPLIT)
    recipes = [job.recipe for folder, _ in started if isinstance(job := folder.job(), TrainJob)]
    assert [(recipe.unet_lr, recipe.epochs) for recipe in recipes] == [(1e-4, 2), (5e-4, 5)]
    assert parents(started) == [parent.path, parent.path]
    interface.call(TrainTab.open_form)
    interface.call(TrainTab.start_training)
    job = started[-1][0].job()
    assert isinstance(job, TrainJob)
    assert (job.recipe.unet_lr, job.recipe.epochs, job.parent) == (1e-4, 5, parent.path)


def test_the_form_names_what_differs_in_the_data_and_files_of_the_parent(
    project: Project, interface: Interface
) -> None:
    parent = make_ledger_run(project, images={"a" * 64: "old"})
    interface.open_project("ink")
    interface.call(TrainTab.select_run, pick=parent.name)
    shown = interface.call(TrainTab.edit_and_rerun)["train_lineage"]
    assert f"{len(list(project.images_dir.glob('*.png')))} images added, 1 removed" in shown
    shown = interface.call(TrainTab.save_edit, train_vae="sdxl-vae.safetensors")["train_lineage"]
    assert "sdxl-vae.safetensors" in shown


def test_a_single_change_is_not_split(project: Project, interface: Interface, started: Started) -> None:
    make_run(project)
    interface.open_project("ink")
    interface.call(TrainTab.select_run, pick="001-ink")
    interface.call(TrainTab.edit_and_rerun)
    shown = interface.call(TrainTab.click_in_lineage, pick=SPLIT, recipe_epochs="5")
    assert error_code(shown["train_notice"]) == "no_split"
    assert not started


def test_the_parent_is_forgotten_on_request(project: Project, interface: Interface, started: Started) -> None:
    save_parent(project, make_run(project).name)
    interface.open_project("ink")
    interface.call(TrainTab.open_form)
    shown = interface.call(TrainTab.click_in_lineage, pick=NO_PARENT)
    assert shown["train_lineage"] == ""
    interface.call(TrainTab.start_training)
    assert parents(started) == [None]


def test_the_runs_table_compares_with_the_parent_and_its_data(project: Project, interface: Interface) -> None:
    first = make_ledger_run(project)
    make_ledger_run(project, epochs=9)
    make_ledger_run(project, first, images={"a" * 64: "new"}, unet_lr=1e-4)
    runs = interface.open_project("ink")["train_runs"]
    assert "UNet learning rate: 5e-4 → 1e-4" in runs
    assert "Images: 1 image added, 3 removed" in runs
    assert "Epochs: 9 → 4" not in runs


def test_the_ledger_lists_the_runs_of_one_or_all_projects(home: Home, project: Project, interface: Interface) -> None:
    first = make_ledger_run(project)
    make_ledger_run(project, first, unet_lr=1e-4)
    make_ledger_run(make_project(home, "other", images=0))
    change_notes(first.path, stars=3, notes="soft")
    interface.open_project("ink")
    shown = interface.call(Sections.switch, train_section=Section.LEDGER, ledger_scope=Scope.PROJECT)
    table = shown["ledger_table"]
    assert list(table["Run"]) == ["002-ink", "001-ink"]
    assert list(table["Stars"]) == ["", "★★★"]
    assert table["Differences to its parent"][0] == "unet_lr: 5e-4 → 1e-4"
    assert "training length" in shown["ledger_next"]
    assert Path(shown["ledger_csv"]["value"]).read_text("utf-8").count("\n") == 3
    shown = interface.call(Sections.switch, train_section=Section.LEDGER, ledger_scope=Scope.HOME)
    assert set(shown["ledger_table"]["Project"]) == {"ink", "other"}


def test_only_runs_of_the_selected_project_are_opened(home: Home, project: Project, interface: Interface) -> None:
    make_ledger_run(make_project(home, "other", images=0))
    first = make_ledger_run(project)
    make_ledger_run(project)
    interface.open_project("ink")
    shown = interface.call(Sections.click_in_ledger, pick=f"open:ink/{first.name}")
    assert (shown["run"], shown["train_section"]) == (first.name, Section.RUN)
    for pick, code in (("open:other/001-ink", "other_project"), ("open:ink/nothing", "no_run"), ("", "other_project")):
        assert error_code(interface.call(Sections.click_in_ledger, pick=pick)["ledger_notice"]) == code


def test_the_suggested_run_is_edited(project: Project, interface: Interface) -> None:
    first = make_ledger_run(project, final=0.12)
    best = make_ledger_run(project, first, final=0.09, unet_lr=1e-4)
    make_ledger_run(project, first, final=0.11, unet_lr=2e-4)
    interface.open_project("ink")
    suggestion = interface.call(Sections.switch, train_section=Section.LEDGER, ledger_scope=Scope.PROJECT)[
        "ledger_next"
    ]
    assert f"edit:ink/{best.name}" in suggestion
    shown = interface.call(Sections.click_in_ledger, pick=f"edit:ink/{best.name}")
    assert shown["recipe_unet_lr"]["value"] == "1e-4"
    assert project.info().parent == best.name


def test_a_comparison_shows_what_differs_with_curves_and_samples(project: Project, interface: Interface) -> None:
    first = make_ledger_run(project, samples=16)
    second = make_ledger_run(project, first, samples=16, unet_lr=1e-4)
    make_ledger_run(project, second, epochs=9)
    interface.open_project("ink")
    interface.call(TrainTab.select_run, pick=second.name)
    shown = interface.call(Sections.switch, train_section=Section.COMPARE)
    assert shown["compare_runs"]["value"] == [first.name, second.name]
    assert "1e-4" in shown["compare_settings"]
    charts = charts_in(shown["compare_curves"])
    assert len(charts) == 2
    for drawn in charts.values():
        assert [series["name"] for series in drawn["series"]] == [first.name, second.name]
        assert len({series["style"] for series in drawn["series"]}) == 2
    assert shown["compare_samples"].count("seed 42, ") == 0
    assert shown["compare_samples"].count("epoch 4") >= 4
    shown = interface.call(Compare.show_samples, compare_runs=[first.name, second.name], compare_epoch=2)
    assert "epoch 4" not in shown["compare_samples"]
    shown = interface.call(Compare.show, compare_runs=[first.name])
    assert shown["compare_curves"] == ""
    shown = interface.call(Compare.show, compare_runs=["../../etc", first.name])
    assert shown["compare_runs"]["value"] == [first.name]


def test_notes_of_the_shown_run_are_shown(project: Project, interface: Interface) -> None:
    run = make_ledger_run(project)
    change_notes(run.path, stars=2, notes="thin lines")
    interface.open_project("ink")
    shown = interface.call(RunPanel.show_run)
    assert (shown["train_stars"], shown["train_notes"], shown["train_notes_key"]) == (2, "thin lines", "ink/001-ink")
    again = interface.call(RunPanel.show_run, train_notes="being typed")
    assert again.keys().isdisjoint({"train_stars", "train_notes"})
    (run.path / "notes.json").write_text("{", "utf-8")
    assert error_code(interface.call(RunPanel.show_run)["train_run_notice"]) == "notes"


def test_a_run_shows_what_differs_from_the_one_it_was_made_from(project: Project, interface: Interface) -> None:
    first = make_ledger_run(project)
    make_ledger_run(project, first, unet_lr=1e-4, images={"a" * 64: "new"})
    interface.open_project("ink")
    shown = interface.call(RunPanel.show_run, run="002-ink")["train_made_from"]
    assert "001-ink" in shown
    assert "1e-4" in shown
    assert "1 image added, 3 removed" in shown
    assert interface.call(RunPanel.show_run, run="001-ink")["train_made_from"] == ""


def test_a_missing_folder_is_asked_for_once(project: Project, interface: Interface, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    run = make_ledger_run(project, job={"regularization": old})
    interface.open_project("ink")
    assert "train_moved" not in interface.call(RunPanel.show_run)
    old.rename(new)
    assert str(old) in interface.call(RunPanel.show_run)["train_moved"]
    shown = interface.call(RunPanel.save_path, train_moved_path=str(tmp_path / "nowhere"))
    assert error_code(shown["train_run_notice"]) == "moved_path"
    interface.call(RunPanel.save_path, train_moved_path=f'"{new}"')
    assert read_moved_paths(run.path) == {str(old): str(new)}
    assert "train_moved" not in interface.call(RunPanel.show_run)
    job = run.job()
    assert isinstance(job, TrainJob)
    assert job.regularization == new
