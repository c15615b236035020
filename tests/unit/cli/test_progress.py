"""The progress of a job on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lora_studio.cli.progress import JobProgress, progress_bar
from lora_studio.events import (
    CellEvent,
    Event,
    HintEvent,
    ImageFailedEvent,
    PhaseEvent,
    SavedEvent,
    TaggedEvent,
    WaitingEvent,
    WarningEvent,
)
from tests.support.events import step_event

CELL = CellEvent(done=1, total=4, path="a.png", prompt="ink", strength=1.0, seed=1, lora=None, base="embedded")
STEPS = [step_event(n, total=9, loss=0.1234 * n) for n in (1, 2)]


def output_of(events: list[Event], *, terminal: bool = False) -> tuple[str, JobProgress]:
    """Return what is printed for these events, and the progress at the end."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with JobProgress(console) as progress:
        for event in events:
            progress(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue(), progress


def test_without_a_terminal_each_phase_is_one_line() -> None:
    phases = [PhaseEvent(message="Caching latents", done=n, total=2) for n in (0, 1, 2)]
    printed, _ = output_of([*phases, *STEPS, CELL, *STEPS[1:]])
    assert printed.splitlines() == ["Caching latents", "Training", "Sampling", "Training"]


@pytest.mark.parametrize("terminal", [True, False])
def test_warnings_are_printed_without_markup(terminal: bool) -> None:
    printed, _ = output_of(
        [WarningEvent(code="a", message="no [bold]caption"), HintEvent(code="b", message="add one")],
        terminal=terminal,
    )
    assert "Warning: no [bold]caption" in printed
    assert "Hint: add one" in printed


@pytest.mark.parametrize(
    ("event", "label", "completed", "total", "note"),
    [
        (STEPS[1], "Training", 2, 9, "loss 0.2468"),
        (step_event(1, total=9, loss=None), "Training", 1, 9, ""),
        (TaggedEvent(path="a.png", done=3, total=7, caption="ink"), "Tagging", 3, 7, ""),
        (ImageFailedEvent(path="a.png", done=4, total=7, message="broken"), "Tagging", 4, 7, ""),
        (WaitingEvent(message="Waiting for the GPU"), "Waiting for the GPU", 0, None, ""),
    ],
)
def test_the_bar_has_the_figures_of_the_last_event(
    event: Event, label: str, completed: int, total: int | None, note: str
) -> None:
    printed, progress = output_of([CELL, event], terminal=True)
    [task] = progress.progress.tasks
    assert (task.description, task.completed, task.total, task.fields["note"]) == (label, completed, total, note)
    assert label in printed


def test_events_without_progress_show_nothing() -> None:
    printed, progress = output_of([SavedEvent(path="a.safetensors")])
    assert printed == ""
    assert progress.progress.tasks == []


def test_a_bar_is_updated_by_the_function_that_it_yields() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress_bar(console, "Scanning") as update:
        update(3, 8)
    assert isinstance(console.file, io.StringIO)
    assert "Scanning" in console.file.getvalue()
    assert "3/8" in console.file.getvalue()
