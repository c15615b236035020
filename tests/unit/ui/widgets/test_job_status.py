"""A job's state as HTML."""

from __future__ import annotations

import pytest

from lora_studio.ui.widgets.job_status import STATE_LABELS, job_title, state_card, state_label, time_tile
from lora_studio.workspace.job_folder import JobState, JobStatus


def test_every_state_has_a_label() -> None:
    assert set(STATE_LABELS) == set(JobState)


@pytest.mark.parametrize(
    ("state", "has_results", "css_class"),
    [
        (JobState.QUEUED, False, 'class="card "'),
        (JobState.RUNNING, False, 'class="card "'),
        (JobState.RUNNING, True, ""),
        (JobState.STOPPED, True, 'class="card warning"'),
        (JobState.FAILED, True, 'class="card error" role="alert"'),
        (JobState.DONE, True, ""),
    ],
)
def test_states_that_need_one_have_a_card(state: JobState, has_results: bool, css_class: str) -> None:
    made = state_card(JobStatus(state=state, message="<b>", done=3, total=9), job="run", has_results=has_results)
    assert css_class in made
    assert bool(made) == bool(css_class)
    assert "<b>" not in made


def test_a_run_that_stopped_by_itself_is_no_warning() -> None:
    by_itself = JobStatus(state=JobState.STOPPED, code="plateau", message="It stopped.")
    card = state_card(by_itself, job="run", has_results=True)
    assert 'class="card "' in card
    assert "It stopped." in card
    assert state_label(by_itself) != state_label(JobStatus(state=JobState.STOPPED)) == STATE_LABELS[JobState.STOPPED]
    title = job_title("001-ink", by_itself, "")
    assert 'data-state="stopped"' in title
    assert state_label(by_itself) in title


def test_the_time_tile_shows_time_left_or_duration() -> None:
    running = JobStatus(state=JobState.RUNNING, seconds_left=64)
    ended = JobStatus(state=JobState.DONE, started_at=100.0, updated_at=145.0)
    assert [time_tile(status, "").figure for status in (running, ended, JobStatus())] == ["1 min 04 s", "45 s", "–"]
