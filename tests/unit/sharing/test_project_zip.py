"""A project as one zip: what is exported is imported, and a hostile zip leaves nothing behind."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from lora_studio.errors import InputError
from lora_studio.settings.job_specs import AnyJob, TrainJob
from lora_studio.sharing.project_zip import export_project, import_project, read_contents
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project, ProjectInfo


@pytest.fixture
def project(home: Home) -> Project:
    project = home.create_project("Ink 2", ProjectInfo(trigger_word="ink_hc", notes="from my sketchbook"))
    (project.images_dir / "a.png").write_bytes(b"picture")
    (project.images_dir / "a.txt").write_text("ink_hc, café", "utf-8")
    job = TrainJob.parse({"name": "ink", "dataset": project.dataset_dir, "base": "embedded"})
    folder = JobFolder.create(project.new_run_dir("ink"), job)
    folder.update_status(state=JobState.DONE)
    (project.path / ".half.tmp").write_text("left over", "utf-8")
    return project


def zip_of(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_an_exported_project_is_imported_under_another_name(project: Project, home: Home, tmp_path: Path) -> None:
    file = export_project(project, tmp_path / "out" / "ink.zip")
    assert read_contents(file).name == "Ink 2"
    copy = import_project(home, file, "Ink 3")
    assert copy.info() == project.info()
    image = copy.dataset_dir / project.images_dir.name / "a.png"
    assert image.read_bytes() == b"picture"
    assert image.with_suffix(".txt").read_text("utf-8") == "ink_hc, café"
    (run,) = copy.runs()
    job = run.job()
    assert isinstance(job, TrainJob)
    assert (job.dataset, run.status().state) == (copy.dataset_dir, JobState.DONE)
    assert not (copy.path / ".half.tmp").exists()


def test_a_project_with_an_active_job_is_not_exported(project: Project, tmp_path: Path) -> None:
    project.runs()[0].update_status(state=JobState.WAITING)
    with pytest.raises(InputError) as caught:
        export_project(project, tmp_path / "ink.zip")
    assert caught.value.code == "busy"
    assert not (tmp_path / "ink.zip").exists()


def test_no_job_is_active_after_an_import(project: Project, home: Home, tmp_path: Path) -> None:
    file = export_project(project, tmp_path / "ink.zip")
    status = project.runs()[0].path.relative_to(project.path) / "status.json"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(tmp_path / "edited.zip", "w") as target:
        for name in source.namelist():
            text = source.read(name)
            target.writestr(name, b'{"state": "waiting", "pid": 1}' if name.endswith(status.as_posix()) else text)
    copy = import_project(home, tmp_path / "edited.zip", "copy")
    found = copy.runs()[0].status()
    assert (found.state, found.pid) == (JobState.STOPPED, None)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"a.png": "x"}, "project_zip"),
        ({"a/project.json": "{}", "b/project.json": "{}"}, "project_zip"),
        ({"a/project.json": "{}", "a/../../../evil.txt": "x"}, "zip"),
        ({"a/project.json": "{}", "/evil.txt": "x"}, "zip"),
        ({"a/project.json": "not json"}, "project"),
    ],
)
def test_what_is_not_the_zip_of_a_project_leaves_nothing(
    home: Home, tmp_path: Path, files: dict[str, str], code: str
) -> None:
    home.create_project("other")
    with pytest.raises(InputError) as caught:
        import_project(home, zip_of(tmp_path / "x.zip", files), "new")
    assert caught.value.code == code
    assert [path.name for path in (home.path / "projects").iterdir()] == ["other"]
    assert not list(tmp_path.rglob("evil.txt"))


def test_an_import_is_undone_if_a_job_is_refused(project: Project, home: Home, tmp_path: Path) -> None:
    def refuse(job: AnyJob) -> None:
        raise InputError("Not here.", "Elsewhere.", code="local_path")

    file = export_project(project, tmp_path / "ink.zip")
    with pytest.raises(InputError):
        import_project(home, file, "copy", check_job=refuse)
    assert [found.name for found in home.projects()] == ["Ink 2"]
    assert not (home.path / "projects" / ".copy.partial").exists()
    with pytest.raises(InputError) as caught:
        import_project(home, file, "ink 2")
    assert caught.value.code == "project_exists"
