"""What changes while a page is read is shown at the next tick."""

from __future__ import annotations

import pytest

from lora_studio.ui.state.run_history import RunHistories, RunView
from lora_studio.ui.train.state import RunReader
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from tests.support.jobs import make_project, make_run, running_status


def test_a_run_that_ends_while_the_list_is_read_changes_the_signature(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(home, "ink")
    run = make_run(project, **running_status())
    reader = RunReader()
    load = RunView.load

    def ends_meanwhile(folder: JobFolder, histories: RunHistories) -> RunView:
        view = load(folder, histories)
        folder.update_status(state=JobState.STOPPED)
        return view

    monkeypatch.setattr(RunView, "load", ends_meanwhile)
    listed = reader.run_list(project, run.name)
    assert listed.signature != reader.signature(project, run.name)
