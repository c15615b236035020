from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project, ProjectInfo, image_sets


def busy(project: Project) -> None:
    job = TrainJob.parse({"name": "a", "dataset": "d", "base": "b"})
    folder = JobFolder.create(project.new_run_dir("a"), job)
    folder.update_status(state=JobState.RUNNING, pid=os.getpid(), pid_started=None)


def test_home_is_found_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "from the environment"))
    assert Home.locate().path == tmp_path / "from the environment"
    assert Home.locate(tmp_path / "given").path == tmp_path / "given"
    monkeypatch.delenv("LORA_STUDIO_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home.locate().path == tmp_path / "lora-studio"
    assert Home.locate("~/elsewhere").path == tmp_path / "elsewhere"


def test_a_public_home_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Home.locate(tmp_path / "home").check_private()
    for public, name in ((tmp_path / "work" / "home", "working"), (tmp_path / "temporary" / "home", "temporary")):
        with pytest.raises(InputError, match=name) as caught:
            Home.locate(public).check_private()
        assert "LORA_STUDIO_HOME" in caught.value.remedy


def test_a_project_keeps_what_was_said(home: Home) -> None:
    info = ProjectInfo(kind=LoraKind.STYLE, trigger_word="ink_hc", base="embedded", vram_gib=8, recipe=Recipe(epochs=3))
    project = home.create_project("My style", info)
    assert project.info() == info
    assert home.project("My style").info() == info
    assert project.dataset_dir.is_dir()
    assert project.images_dir.name == "10_My-style"


@pytest.mark.parametrize("name", ["", " ", "../up", "a/b", ".hidden", "a\\b", "x" * 61, "end.", "a:b", "con\0"])
def test_names_that_are_no_folders_are_refused(home: Home, name: str) -> None:
    with pytest.raises(InputError, match="cannot be a folder"):
        home.create_project(name)


def test_names_are_taken_whatever_their_case(home: Home) -> None:
    home.create_project("Saria")
    for name in ("Saria", "saria", " SARIA "):
        with pytest.raises(InputError, match="exists already"):
            home.create_project(name)


@pytest.mark.parametrize("name", ["nobody", "../projects/Saria", ".", ""])
def test_only_listed_projects_are_opened(home: Home, name: str) -> None:
    home.create_project("Saria")
    with pytest.raises(InputError, match="no project"):
        home.project(name)


def test_projects_are_listed_by_name(home: Home) -> None:
    assert home.projects() == []
    for name in ("beta", "Alpha", "gamma"):
        home.create_project(name)
    (home.path / "projects" / "not one").mkdir()
    assert [project.name for project in home.projects()] == ["Alpha", "beta", "gamma"]


def test_a_copy_that_is_being_made_is_not_listed(home: Home) -> None:
    partial = home.path / "projects" / ".copy.partial"
    Project(partial).save_info(ProjectInfo())
    assert home.projects() == []


def test_renaming_keeps_everything(home: Home) -> None:
    project = home.create_project("old")
    (project.images_dir / "a.png").write_bytes(b"x")
    renamed = home.rename_project("old", "new")
    assert [item.name for item in home.projects()] == ["new"]
    assert (renamed.images_dir / "a.png").read_bytes() == b"x"


def test_a_copy_has_images_and_settings_but_no_runs(home: Home) -> None:
    project = home.create_project("first", ProjectInfo(trigger_word="ink_hc"))
    (project.images_dir / "a.png").write_bytes(b"x")
    project.new_run_dir("run")
    copy = home.duplicate_project("first", "second")
    assert copy.info().trigger_word == "ink_hc"
    assert (copy.images_dir / "a.png").read_bytes() == b"x"
    assert copy.runs() == []
    assert not (copy.path / "runs").exists()
    assert {item.name for item in home.projects()} == {"first", "second"}


def test_deleting_can_be_undone(home: Home) -> None:
    project = home.create_project("Saria")
    (project.images_dir / "a.png").write_bytes(b"x")
    trashed = home.delete_project("Saria")
    assert home.projects() == []
    assert home.deleted_projects() == [trashed]
    home.create_project("Saria")
    with pytest.raises(InputError, match="exists already"):
        home.restore_project(trashed)
    assert home.deleted_projects() == [trashed]
    home.rename_project("Saria", "Another")
    restored = home.restore_project(trashed)
    assert (restored.images_dir / "a.png").read_bytes() == b"x"
    assert home.deleted_projects() == []


def test_the_same_name_can_be_deleted_twice(home: Home) -> None:
    for _ in range(2):
        home.create_project("Saria")
        home.delete_project("Saria")
    assert len(home.deleted_projects()) == 2


def test_a_project_at_work_is_left_alone(home: Home) -> None:
    project = home.create_project("Saria")
    busy(project)
    with pytest.raises(InputError, match=r"Cannot delete 'Saria' while 001-a is at work"):
        home.delete_project("Saria")
    with pytest.raises(InputError, match="Cannot rename"):
        home.rename_project("Saria", "Other")
    assert [item.name for item in home.projects()] == ["Saria"]


def test_broken_project_file_is_named(home: Home) -> None:
    project = home.create_project("Saria")
    (project.path / "project.json").write_text('{"kind": "poem"}', "utf-8")
    with pytest.raises(InputError, match=r"project\.json cannot be read"):
        project.info()


def test_jobs_of_all_kinds_are_found(home: Home) -> None:
    project = home.create_project("Saria")
    job = TrainJob.parse({"name": "a", "dataset": "d", "base": "b"})
    for make in (project.new_tag_dir, project.new_sweep_dir, lambda: project.new_run_dir("a")):
        JobFolder.create(make(), job)
    assert len(list(project.jobs())) == 3
    assert [run.name for run in project.runs()] == ["001-a"]
    assert [sweep.name for sweep in project.sweeps()] == ["001"]


def test_image_sets_follow_the_names_of_kohyas_folders(tmp_path: Path) -> None:
    for name in ("10_saria", "2_two words", "notes", "_x", "3x"):
        (tmp_path / name).mkdir()
    found = [(item.repeats, item.concept, item.path.name) for item in image_sets(tmp_path)]
    assert found == [(10, "saria", "10_saria"), (2, "two words", "2_two words")]


def test_a_flat_folder_is_one_set(tmp_path: Path) -> None:
    flat, numbered = tmp_path / "pictures", tmp_path / "5_bird"
    flat.mkdir()
    numbered.mkdir()
    assert [(item.repeats, item.concept, item.path) for item in image_sets(flat)] == [(1, "pictures", flat)]
    assert [(item.repeats, item.concept, item.path) for item in image_sets(numbered)] == [(5, "bird", numbered)]
    assert image_sets(tmp_path / "nowhere") == []


def test_images_go_into_the_first_set(home: Home) -> None:
    project = home.create_project("Saria")
    (project.dataset_dir / "10_Saria").rename(project.dataset_dir / "3_saria")
    assert project.images_dir.name == "3_saria"
