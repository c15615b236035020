"""Progress bars for the events of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lora_studio.events import (
    CellEvent,
    DownloadEvent,
    Event,
    HintEvent,
    ImageEvent,
    PhaseEvent,
    StepEvent,
    WaitingEvent,
    WarningEvent,
)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


class JobProgress:
    """A listener for job events that shows one bar per phase, and prints warnings and hints.

    Without a terminal each phase is one line.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = _bar(console)
        self.task: TaskID | None = None
        self.label = ""

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case WarningEvent() | HintEvent():
                text = f"{event.name.capitalize()}: {event.message}"
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            case StepEvent():
                note = "" if event.loss is None else f"loss {event.loss:.4f}"
                self._advance("Training", event.step, event.total, note)
            case CellEvent():
                self._advance("Sampling", event.done, event.total)
            case ImageEvent():
                self._advance("Tagging", event.done, event.total)
            case DownloadEvent():
                self._advance(f"{event.message} (MB)", event.done // 10**6, event.total // 10**6)
            case PhaseEvent(unit="bytes", total=int(total)):
                self._advance(f"{event.message} (MB)", event.done // 10**6, total // 10**6)
            case PhaseEvent():
                self._advance(event.message, event.done, event.total)
            case WaitingEvent():
                self._advance(event.message, 0, None)

    def stage(self, title: str) -> None:
        """Print the title of a stage."""
        self.console.print(title, markup=False, highlight=False, style="bold")

    def _advance(self, label: str, done: int, total: int | None, note: str = "") -> None:
        if self.task is None or label != self.label:
            if self.task is not None:
                self.progress.remove_task(self.task)
            self.task, self.label = self.progress.add_task(label, total=total, note=note), label
            if not self.console.is_terminal:
                self.console.print(label, markup=False, highlight=False)
        self.progress.update(self.task, completed=done, total=total, note=note)


@contextmanager
def progress_bar(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar, and yield the function to call with `(done, total)`."""
    with _bar(console) as progress:
        task = progress.add_task(label, total=None, note="")
        yield lambda done, total: progress.update(task, completed=done, total=total)
