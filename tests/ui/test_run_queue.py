"""Train: runs that are started while another one is active wait in the queue, in the order that the page shows."""

from __future__ import annotations

import re

import pytest

from lora_studio.ui.train.control import RunControl
from lora_studio.ui.train.queue import QueueControl
from lora_studio.ui.train.tab import TrainTab
from lora_studio.workspace.gpu_queue import hold_gpu
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home, Project
from lora_studio.workspace.run_queue import RunQueue
from tests.support.interface import Interface, error_code
from tests.support.jobs import make_project, make_run

Started = list[tuple[JobFolder, bool]]


@pytest.fixture
def project(home: Home) -> Project:
    return make_project(home)


def waiting(home: Home) -> list[str]:
    return [run.folder.name for run in RunQueue(home).runs()]


def picks(table: str) -> list[str]:
    return re.findall(r'data-pick="([^"]+)"', table)


def test_runs_wait_while_the_gpu_is_in_use(
    project: Project, interface: Interface, started: Started, home: Home
) -> None:
    interface.open_project("ink")
    with hold_gpu(home.queue, "a sweep"):
        for name in ("a", "b"):
            interface.call(TrainTab.start_training, train_name=name)
        shown = interface.call(TrainTab.start_training, train_name="c")
        assert not started
        assert waiting(home) == ["001-a", "002-b", "003-c"]
        assert shown["train_stop"]["value"] == "Remove from the queue"
        assert shown["train_new"]["visible"]
        shown = interface.call(TrainTab.open_form)
        assert shown["train_start"]["value"] == "Add to the queue"
        shown = interface.call(QueueControl.click_in_queue, pick="up:projects/ink/runs/003-c")
        assert waiting(home) == ["001-a", "003-c", "002-b"]
        assert "up:projects/ink/runs/001-a" not in picks(shown["train_queue"])
        assert "up:projects/ink/runs/003-c" in picks(shown["train_queue"])
        interface.call(QueueControl.click_in_queue, pick="cancel:projects/ink/runs/001-a")
        assert waiting(home) == ["003-c", "002-b"]
        interface.call(TrainTab.select_run, pick="003-c")
        interface.call(RunControl.stop_training)
        assert waiting(home) == ["002-b"]
    other = Interface(home)  # a page that was opened later
    assert picks(other.open_project("ink")["train_queue"]) == ["cancel:projects/ink/runs/002-b"]
    other.blocks.close(verbose=False)
    assert RunQueue(home).runs()[0].folder.status().state is JobState.WAITING


def test_a_grid_of_variants_is_counted_and_queued(
    project: Project, interface: Interface, started: Started, home: Home
) -> None:
    interface.open_project("ink")
    grid = {"train_variant_1": "unet_lr", "train_values_1": "1e-4, 2e-4"}
    grid |= {"train_variant_2": "network_dim", "train_values_2": "8"}
    shown = interface.call(TrainTab.count_variants, **grid)
    assert "2 runs" in shown["train_variants_summary"]
    assert not project.runs()
    with hold_gpu(home.queue, "a sweep"):
        interface.call(TrainTab.enqueue_variants, train_name="ink")
    assert waiting(home) == ["001-ink-lr1e-4-dim8", "002-ink-lr2e-4-dim8"]
    assert project.runs()[1].job().recipe.unet_lr == 2e-4  # type: ignore[union-attr]
    wrong = interface.call(TrainTab.enqueue_variants, train_values_1="abc")
    assert error_code(wrong["train_notice"]) == "config"
    assert len(project.runs()) == 2


def test_a_forged_pick_changes_nothing(project: Project, interface: Interface, started: Started, home: Home) -> None:
    run = make_run(project)
    interface.open_project("ink")
    for pick in ("cancel:../../x", f"cancel:projects/ink/runs/{run.name}", "drop:x"):
        shown = interface.call(QueueControl.click_in_queue, pick=pick)
        assert error_code(shown["train_notice"]) in ("not_queued", "usage")
    assert run.status().state is JobState.DONE
