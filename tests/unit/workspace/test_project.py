from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.settings.choices import LoraKind
from lora_studio.settings.job_specs import TrainJob
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project, ProjectInfo, image_sets


def start_run(project: Project) -> None:
    job = TrainJob.parse({"name": "a", "dataset": "d", "base": "b"})
    folder = JobFolder.create(project.new_run_dir("a"), job)
    folder.update_status(state=JobState.RUNNING, pid=os.getpid(), pid_started=None)


def test_home_is_the_given_folder_or_from_the_environment_or_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "from the environment"))
    assert Home.locate().path == tmp_path / "from the environment"
    assert Home.locate(tmp_path / "given").path == tmp_path / "given"
    monkeypatch.delenv("LORA_STUDIO_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home.locate().path == tmp_path / "lora-studio"
    assert Home.locate("~/elsewhere").path == tmp_path / "elsewhere"


def test_home_that_gradio_would_serve_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Home.locate(tmp_path / "home").check_private()
    for public, name in ((tmp_path / "work" / "home", "working"), (tmp_path / "temporary" / "home", "temporary")):
        with pytest.raises(InputError, match=name) as caught:
            Home.locate(public).check_private()
        assert "LORA_STUDIO_HOME" in caught.value.remedy


def test_project_saves_its_settings(home: Home) -> None:
    info = ProjectInfo(kind=LoraKind.STYLE, trigger_word="ink_hc", base="embedded", vram_gib=8, recipe={"epochs": 3})
    project = home.create_project("My style", info)
    assert project.info() == info
    assert home.project("My style").info() == info
    assert project.dataset_dir.is_dir()
    assert project.images_dir.name == "10_My-style"


def test_a_changed_setting_leaves_those_that_another_studio_set_meanwhile(home: Home) -> None:
    project, other = (home.create_project("ink"), Project(home.path / "projects" / "ink"))
    project.info()
    other.change_info(notes="hands are off", kind=LoraKind.STYLE)
    assert project.change_info(trigger_word="ink_hc") == project.info()
    expected = ProjectInfo(notes="hands are off", kind=LoraKind.STYLE, trigger_word="ink_hc")
    assert project.info() == expected
    assert not list(project.path.glob(".*"))


@pytest.mark.parametrize("name", ["", " ", "../up", "a/b", ".hidden", "a\\b", "x" * 61, "end.", "a:b", "con\0"])
def test_invalid_folder_names_are_refused(home: Home, name: str) -> None:
    with pytest.raises(InputError) as caught:
        home.create_project(name)
    assert caught.value.code == "project_name"


def test_taken_names_are_refused_in_any_case(home: Home) -> None:
    home.create_project("Saria")
    for name in ("Saria", "saria", " SARIA "):
        with pytest.raises(InputError) as caught:
            home.create_project(name)
        assert caught.value.code == "project_exists"


@pytest.mark.parametrize("name", ["Ruto", "../projects/Saria", ".", ""])
def test_unknown_projects_are_refused(home: Home, name: str) -> None:
    home.create_project("Saria")
    with pytest.raises(InputError) as caught:
        home.project(name)
    assert caught.value.code == "no_project"


def test_the_project_that_was_worked_on_last_is_the_first_of_the_recent_ones(home: Home) -> None:
    for age, name in enumerate(("beta", "Alpha", "gamma")):
        project = home.create_project(name)
        for path in (*project.path.rglob("*"), project.path):
            os.utime(path, (10_000 - age, 10_000 - age))
    assert [project.name for project in home.recent_projects()] == ["beta", "Alpha", "gamma"]
    gamma = home.project("gamma")
    gamma.save_info(gamma.info().model_copy(update={"notes": "again"}))
    assert [project.name for project in home.recent_projects()] == ["gamma", "beta", "Alpha"]


def test_projects_are_sorted_by_name(home: Home) -> None:
    assert home.projects() == []
    for name in ("beta", "Alpha", "gamma"):
        home.create_project(name)
    (home.path / "projects" / "not one").mkdir()
    assert [project.name for project in home.projects()] == ["Alpha", "beta", "gamma"]


def test_unfinished_copy_is_not_listed(home: Home) -> None:
    partial = home.path / "projects" / ".copy.partial"
    Project(partial).save_info(ProjectInfo())
    assert home.projects() == []


def test_renaming_keeps_the_images(home: Home) -> None:
    project = home.create_project("old")
    (project.images_dir / "a.png").write_bytes(b"x")
    renamed = home.rename_project("old", "new")
    assert [item.name for item in home.projects()] == ["new"]
    assert (renamed.images_dir / "a.png").read_bytes() == b"x"


def test_copy_has_images_and_settings_but_no_runs(home: Home) -> None:
    project = home.create_project("first", ProjectInfo(trigger_word="ink_hc"))
    (project.images_dir / "a.png").write_bytes(b"x")
    project.new_run_dir("run")
    copy = home.duplicate_project("first", "second")
    assert copy.info().trigger_word == "ink_hc"
    assert (copy.images_dir / "a.png").read_bytes() == b"x"
    assert copy.runs() == []
    assert not (copy.path / "runs").exists()
    assert {item.name for item in home.projects()} == {"first", "second"}


def test_deleted_project_can_be_restored(home: Home) -> None:
    project = home.create_project("Saria")
    (project.images_dir / "a.png").write_bytes(b"x")
    trashed = home.delete_project("Saria")
    assert home.projects() == []
    assert home.deleted_projects() == [trashed]
    home.create_project("Saria")
    with pytest.raises(InputError) as caught:
        home.restore_project(trashed)
    assert caught.value.code == "project_exists"
    assert home.deleted_projects() == [trashed]
    home.rename_project("Saria", "Another")
    restored = home.restore_project(trashed)
    assert (restored.images_dir / "a.png").read_bytes() == b"x"
    assert home.deleted_projects() == []


def test_projects_of_the_same_name_can_be_deleted(home: Home) -> None:
    for _ in range(2):
        home.create_project("Saria")
        home.delete_project("Saria")
    assert len(home.deleted_projects()) == 2


def test_project_with_a_running_job_cannot_be_deleted_or_renamed(home: Home) -> None:
    project = home.create_project("Saria")
    start_run(project)
    for change in (lambda: home.delete_project("Saria"), lambda: home.rename_project("Saria", "Other")):
        with pytest.raises(InputError, match="001-a") as caught:
            change()
        assert caught.value.code == "busy"
    assert [item.name for item in home.projects()] == ["Saria"]


def test_broken_project_file_is_an_input_error(home: Home) -> None:
    project = home.create_project("Saria")
    (project.path / "project.json").write_text('{"kind": "poem"}', "utf-8")
    with pytest.raises(InputError, match=r"project\.json"):
        project.info()


def test_jobs_of_all_kinds_are_listed(home: Home) -> None:
    project = home.create_project("Saria")
    job = TrainJob.parse({"name": "a", "dataset": "d", "base": "b"})
    for make in (project.new_tag_dir, project.new_sweep_dir, lambda: project.new_run_dir("a")):
        JobFolder.create(make(), job)
    assert len(list(project.jobs())) == 3
    assert [run.name for run in project.runs()] == ["001-a"]
    assert [sweep.name for sweep in project.sweeps()] == ["001"]


def test_image_sets_follow_kohyas_folder_names(tmp_path: Path) -> None:
    for name in ("10_saria", "2_two words", "notes", "_x", "3x"):
        (tmp_path / name).mkdir()
    found = [(item.repeats, item.concept, item.path.name) for item in image_sets(tmp_path)]
    assert found == [(10, "saria", "10_saria"), (2, "two words", "2_two words")]


def test_flat_folder_is_one_set(tmp_path: Path) -> None:
    flat, numbered = tmp_path / "pictures", tmp_path / "5_bird"
    flat.mkdir()
    numbered.mkdir()
    assert [(item.repeats, item.concept, item.path) for item in image_sets(flat)] == [(1, "pictures", flat)]
    assert [(item.repeats, item.concept, item.path) for item in image_sets(numbered)] == [(5, "bird", numbered)]
    assert image_sets(tmp_path / "nowhere") == []


def test_images_dir_is_the_first_set(home: Home) -> None:
    project = home.create_project("Saria")
    (project.dataset_dir / "10_Saria").rename(project.dataset_dir / "3_saria")
    assert project.images_dir.name == "3_saria"
