"""Runs as rows of the ledger: parent, differences, figures."""

from __future__ import annotations

import json

import pytest

from lora_studio.errors import InputError
from lora_studio.events import ResumeEvent, ValidationEvent
from lora_studio.files import write_text
from lora_studio.ledger.records import find_records, home_records, project_records
from lora_studio.settings.job_specs import job_to_toml
from lora_studio.workspace.job_folder import DATASET_FILE
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.run_notes import NOTES_FILE, change_notes
from tests.support.jobs import make_project
from tests.support.ledger_runs import make_ledger_run

IMAGES = {f"{number:064x}": f"thing {number}" for number in range(4)}


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home, images=0)


def test_differences_are_those_to_the_parent(project: Project) -> None:
    first = make_ledger_run(project, images=IMAGES)
    make_ledger_run(project, unet_lr=1e-3, images=IMAGES)
    changed = dict(list(IMAGES.items())[1:]) | {"f" * 64: "new", "0" * 63 + "1": "edited"}
    make_ledger_run(project, first, unet_lr=1e-4, images=changed, job={"base": "Pony V6 XL", "trigger_word": "two"})
    plain, without_parent, third = project_records(project)
    assert (plain.parent, without_parent.parent, third.parent) == (None, None, plain)
    assert without_parent.differences == []
    assert third.differences == [
        "base: SDXL 1.0 → Pony V6 XL",
        "trigger_word: inkstamp_hc → two",
        "images: 1 image added, 1 removed",
        "captions: 1 caption changed",
        "unet_lr: 5e-4 → 1e-4",
    ]
    assert plain.data is not None
    assert third.data is not None
    assert without_parent.data == plain.data
    assert third.data.dataset_hash != plain.data.dataset_hash


def test_other_captions_leave_the_hash_of_the_images(project: Project) -> None:
    first = make_ledger_run(project, images=IMAGES)
    make_ledger_run(project, first, images=IMAGES | {"0" * 64: "edited"})
    one, two = (record.data for record in project_records(project))
    assert one is not None
    assert two is not None
    assert one.dataset_hash == two.dataset_hash
    assert one.caption_hash != two.caption_hash


def test_figures_are_those_of_the_events(project: Project) -> None:
    run = make_ledger_run(project, final=0.1, rise=0.1)
    (record,) = project_records(project)
    losses = [event.loss for event in run.events()[0] if isinstance(event, ValidationEvent)]
    assert record.validation_loss == losses[-1]
    assert record.validation_change == pytest.approx(losses[-1] / 0.15 - 1)
    assert record.best_step == [0, 15, 30, 45, 60][losses.index(min(losses))]
    assert (record.figures.steps, record.figures.total, record.figures.seconds) == (60, 60, 30.0)
    assert record.figures.verdict is not None
    assert record.figures.worst_verdict is None


def test_a_resume_drops_what_it_repeats(project: Project) -> None:
    run = make_ledger_run(project)
    run.emit(ResumeEvent(step=30))
    (record,) = project_records(project)
    assert (record.figures.steps, list(record.figures.validation)) == (30, [0, 15, 30])


def test_a_run_keeps_its_parent_when_both_move(home: Home, project: Project) -> None:
    make_ledger_run(project, make_ledger_run(project))
    moved = home.rename_project("ink", "stamps")
    first, second = project_records(moved)
    assert second.parent == first
    assert second.job.dataset == moved.dataset_dir


def test_a_deleted_or_circular_parent_is_none(project: Project) -> None:
    first = make_ledger_run(project)
    second = make_ledger_run(project, first)
    write_text(first.job_file, job_to_toml(first.job().model_copy(update={"parent": second.path})))
    one, two = project_records(project)
    assert (one.parent, two.parent) in ((two, None), (None, one))
    second.job_file.unlink()
    (one,) = project_records(project)
    assert one.parent is None


def test_damaged_files_leave_the_rest_of_the_ledger(project: Project) -> None:
    for _ in range(3):
        make_ledger_run(project)
    one, two, three = project.runs()
    (one.path / DATASET_FILE).write_text("{", "utf-8")
    (two.path / NOTES_FILE).write_text("[]", "utf-8")
    three.job_file.write_text("epochs =", "utf-8")
    first, second = project_records(project)
    assert first.data is None
    assert (second.notes.stars, second.name) == (0, two.name)


def test_runs_are_found_by_project_folder_or_home(
    home: Home, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_ledger_run(project)
    make_ledger_run(make_project(home, "other", images=0))
    assert [record.project for record in home_records(home)] == ["ink", "other"]
    assert [record.name for record in find_records(project.dataset_dir, home=home)] == [run.name]
    assert len(find_records(project.path, everything=True, home=home)) == 2
    monkeypatch.chdir(project.path)
    assert [record.project for record in find_records(home=home)] == ["ink"]
    monkeypatch.chdir(home.path)
    assert len(find_records(home=home)) == 2
    with pytest.raises(InputError) as raised:
        find_records(home.cache, home=home)
    assert raised.value.code == "no_runs"


def test_notes_are_part_of_the_record(project: Project) -> None:
    run = make_ledger_run(project)
    change_notes(run.path, stars=4)
    change_notes(run.path, notes="crisp lines")
    (record,) = project_records(project)
    assert (record.notes.stars, record.notes.notes) == (4, "crisp lines")
    assert json.loads((run.path / NOTES_FILE).read_text())["stars"] == 4
