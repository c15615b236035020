"""All stages of a project: where they stop, how they continue, and what they leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_studio import api
from lora_studio.errors import ConfigError, InputError, JobError
from lora_studio.sampling.sweep import SweepResult
from lora_studio.settings.job_specs import SweepJob, TrainJob
from lora_studio.training.train import TrainResult
from lora_studio.workflow import make as workflow
from lora_studio.workflow.make import MakeResult, make, prompts_to_test
from lora_studio.workflow.record import MAKE_FILE, MakeRecord, Stage, StageRecord, StageState, read_record
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home, Project, ProjectInfo
from tests.support.jobs import LORA

TRIGGER = "saria_zelda"


class Stages:
    """Replaces the stages that need a model: leaves the files of real ones. `calls` has their arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.stop_training = self.fail_training = False

    def tag(self, dataset: Path, **given: Any) -> Any:
        self.calls.append(("tag", given))
        images = list(Path(dataset).rglob("*.[pw]*"))
        for image in images:
            image.with_suffix(".txt").write_text(f"{TRIGGER}, thing", "utf-8")
        return type("Tagged", (), {"tagged": len(images), "stopped": False})()

    def train(self, dataset: Path, *, out: Path, **given: Any) -> TrainResult:
        self.calls.append(("train", given))
        job = TrainJob(dataset=Path(dataset), base=given["base"], name=given["name"], trigger_word=TRIGGER)
        return self._trained(JobFolder.create(out, job))

    def _trained(self, folder: JobFolder) -> TrainResult:
        if self.fail_training:
            raise JobError("Out of memory.", "Lower the batch size.", code="out_of_memory")
        if not self.stop_training:
            shutil.copyfile(LORA, folder.path / f"{folder.job().name}.safetensors")
        result = TrainResult(
            run=folder.path, lora=None, steps=7, epochs=1, final_loss=0.1, seconds=1.0, stopped=self.stop_training
        )
        if not self.stop_training:
            folder.write_result(result.model_dump(mode="json"))
        return result

    def sweep(self, loras: list[Path], *, out: Path, **given: Any) -> SweepResult:
        self.calls.append(("sweep", {"loras": loras, **given}))
        JobFolder.create(out, SweepJob(loras=loras, bases=given["bases"], prompts=list(given["prompts"])))
        Image.new("RGB", (8, 8)).save(out / "grid.png")
        return SweepResult(grid=out / "grid.png")

    def resume(self, folder: Path, **given: Any) -> Any:
        self.calls.append(("resume", {"folder": folder}))
        return self._trained(JobFolder(folder))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    found = Stages()
    for name in ("tag", "train", "sweep", "resume"):
        monkeypatch.setattr(api, name, getattr(found, name))
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write four pictures, one of which is a copy of another."""
    folder = tmp_path / "saria"
    folder.mkdir()
    for index, colour in enumerate(("red", "green", "blue")):
        picture = Image.new("RGB", (160, 160), "white")
        picture.paste(colour, (12 * index, 20, 140, 70 + 24 * index))
        picture.save(folder / f"{index}.png")
    picture.save(folder / "copy.webp")
    return folder


@pytest.fixture
def call(images: Path, tmp_path: Path) -> Callable[..., MakeResult]:
    def run(**given: Any) -> MakeResult:
        return make(images, **{"trigger_word": TRIGGER, "base": "embedded", "home": Home(tmp_path / "home")} | given)

    return run


def test_the_first_call_waits_for_a_look_and_the_second_ends_with_a_release(
    call: Callable[..., MakeResult], stages: Stages
) -> None:
    first = call()
    assert first.stopped_at is Stage.REVIEW
    assert stages.names == ["tag"]
    assert len(list(Path(first.project).glob("dataset/*/*.[pw]*"))) == 4, "nothing is set aside unasked"
    second = call()
    assert stages.names == ["tag", "train", "sweep"]
    assert second.stopped_at is None
    assert second.release is not None
    assert second.zip is not None
    assert second.zip.is_file()
    assert second.grid is not None
    assert second.lora is not None
    assert call() == second, "a third call changes nothing"
    assert stages.names == ["tag", "train", "sweep"]


def test_with_yes_duplicates_are_set_aside_and_nothing_waits(call: Callable[..., MakeResult], stages: Stages) -> None:
    done = call(yes=True)
    assert done.stopped_at is None
    assert len(list(done.project.glob("dataset/*/*.[pw]*"))) == 3
    assert len(list(done.project.glob("rejected/**/*.webp"))) == 1


def test_the_best_checkpoint_is_tested_with_and_without_the_trigger_word(
    call: Callable[..., MakeResult], stages: Stages
) -> None:
    done = call(yes=True)
    given = stages.calls[-1][1]
    assert given["loras"] == [done.lora]
    assert len(given["seeds"]) > 1
    assert {"{trigger}" in prompt for prompt in given["prompts"]} == {True, False}


def test_a_stopped_training_is_resumed(call: Callable[..., MakeResult], stages: Stages) -> None:
    stages.stop_training = True
    stopped = call(yes=True)
    assert (stopped.stopped_at, stopped.lora) == (Stage.TRAIN, None)
    stages.stop_training = False
    done = call(yes=True)
    assert done.stopped_at is None
    assert stages.names == ["tag", "train", "resume", "sweep"]
    assert stages.calls[2][1]["folder"] == stopped.run


def test_an_error_is_recorded_at_its_stage_and_the_next_call_continues(
    call: Callable[..., MakeResult], stages: Stages, tmp_path: Path
) -> None:
    stages.fail_training = True
    with pytest.raises(JobError):
        call(yes=True)
    (project,) = Home(tmp_path / "home").projects()
    record = read_record(project).stage(Stage.TRAIN)
    assert (record.state, record.code) == (StageState.FAILED, "out_of_memory")
    stages.fail_training = False
    assert call(yes=True).stopped_at is None


def test_a_job_that_ended_after_its_process_was_killed_is_not_done_again(
    call: Callable[..., MakeResult], stages: Stages
) -> None:
    done = call(yes=True)
    project = Project(done.project)
    record = read_record(project)
    record.stages[Stage.TRAIN].state = StageState.RUNNING
    record.pid, record.pid_started = 2**22 + 1, 1.0
    record.save(project)
    assert read_record(project).stage(Stage.TRAIN).state is StageState.STOPPED
    before = len(stages.calls)
    assert call(yes=True).stopped_at is None
    assert len(stages.calls) == before


def test_again_starts_over_beside_the_earlier_run(call: Callable[..., MakeResult], stages: Stages) -> None:
    first, second = call(yes=True), call(yes=True, again=True)
    assert first.run != second.run
    assert first.run is not None
    assert first.run.is_dir()
    assert stages.names.count("train") == 2


@pytest.mark.parametrize("given", [{"trigger_word": ""}, {"kind": "poem"}])
def test_wrong_answers_leave_no_project(call: Callable[..., MakeResult], tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        call(**given)
    assert not (tmp_path / "home").exists()


def test_a_folder_without_images_leaves_no_project(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        make(tmp_path / "empty", trigger_word=TRIGGER, home=Home(tmp_path / "home"))
    assert caught.value.code == "no_images"
    assert not (tmp_path / "home").exists()


def test_two_processes_do_not_make_one_project(call: Callable[..., MakeResult], stages: Stages) -> None:
    project = Project(call().project)
    record = read_record(project)
    record.stages[Stage.TRAIN] = StageRecord(state=StageState.RUNNING)
    record.save(project)
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.code == "busy"


@pytest.mark.parametrize(("enough", "given", "expected"), [(5, {}, 0.0), (4, {}, 0.1), (4, {"validation_split": 0}, 0)])
def test_images_are_split_off_for_validation_where_there_are_enough(
    call: Callable[..., MakeResult],
    stages: Stages,
    monkeypatch: pytest.MonkeyPatch,
    enough: int,
    given: dict[str, float],
    expected: float,
) -> None:
    monkeypatch.setattr(workflow, "MIN_IMAGES_TO_SPLIT", enough)
    call()
    call(overrides=given)
    assert stages.calls[1][1]["recipe"].validation_split == expected


def test_a_missing_tagger_is_named(call: Callable[..., MakeResult], stages: Stages, tmp_path: Path) -> None:
    base = tmp_path / "my.safetensors"
    base.write_bytes(b"")
    with pytest.raises(InputError):
        call(base=str(base))
    (project,) = Home(tmp_path / "home").projects()
    assert read_record(project).ended_at is Stage.TAG


def test_a_damaged_record_starts_over(call: Callable[..., MakeResult], stages: Stages) -> None:
    project = Project(call().project)
    for text in ("", "{", '{"stages": {"sing": {}}}', json.dumps([1])):
        (project.path / MAKE_FILE).write_text(text, "utf-8")
        assert read_record(project) == MakeRecord()


def test_each_kind_is_tested_with_its_own_prompts() -> None:
    found = {kind: tuple(prompts_to_test(ProjectInfo(kind=kind))) for kind in ("character", "style", "concept")}
    assert len(set(found.values())) == 3
