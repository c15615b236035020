"""Two or more runs side by side: what differs, their curves over each other, and samples of the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from markupsafe import Markup

from lora_studio.errors import StudioError
from lora_studio.events import SampleEvent
from lora_studio.ledger.compare import Comparison, compare
from lora_studio.ledger.experiments import best_run
from lora_studio.ledger.records import RunRecord, project_records
from lora_studio.planning.losses import smooth
from lora_studio.ui.context import Studio
from lora_studio.ui.roles import Role, allowed
from lora_studio.ui.state.run_history import RunHistories, RunHistory
from lora_studio.ui.widgets.charts import MAX_RUNS, Chart, chart, run_series
from lora_studio.ui.widgets.choices import checked_by_handlers
from lora_studio.ui.widgets.events import Updates
from lora_studio.ui.widgets.html import (
    TableRow,
    Tone,
    cards,
    empty_card,
    error_card,
    heading,
    html,
    note,
    render,
    table,
)
from lora_studio.ui.widgets.thumbnails import THUMBNAIL_SIZE, thumbnail_url_or_empty
from lora_studio.workspace.project import Home


class CompareLayout(NamedTuple):
    """The components."""

    column: gr.Column
    runs: gr.Dropdown
    notice: gr.HTML
    settings: gr.HTML
    curves: gr.HTML
    epoch: gr.Slider
    samples: gr.HTML


class ComparedSample(NamedTuple):
    """A sample of one run; `url` is empty if it has none of this prompt."""

    run: str
    url: str
    when: str


class SampleRow(NamedTuple):
    """The samples of one prompt, one per run; `seed` is empty if it is not the same."""

    prompt: str
    seed: str
    samples: list[ComparedSample]


def build_compare() -> CompareLayout:
    """Create the components, hidden."""
    with gr.Column(visible=False, elem_id="train-compare") as column:
        runs = checked_by_handlers(
            gr.Dropdown(
                [],
                value=[],
                multiselect=True,
                max_choices=MAX_RUNS,
                label="Runs to compare",
                info=f"Two to {MAX_RUNS} runs of this project.",
                elem_id="compare-runs",
            )
        )
        notice = html(elem_id="compare-notice")
        settings = html(elem_id="compare-settings")
        curves = html(elem_id="compare-curves")
        epoch = gr.Slider(
            0,
            1,
            step=1,
            value=1,
            label="Samples after epoch",
            buttons=[],
            visible=False,
            elem_id="compare-epoch",
        )
        samples = html(elem_id="compare-samples")
    return CompareLayout(column, runs, notice, settings, curves, epoch, samples)


class Compare:
    """Reads and shows the comparison."""

    def __init__(self, studio: Studio, layout: CompareLayout) -> None:
        self.studio = studio
        self.layout = layout
        self.histories = RunHistories()

    @property
    def outputs(self) -> list[gr.blocks.Block]:
        """The components that `show` updates, without the column."""
        return [component for component in self.layout if component is not self.layout.column]

    def wire(self) -> None:
        """Register the events."""
        layout, progress = self.layout, self.studio.with_progress
        layout.runs.input(self.show, [self.studio.project, layout.runs], self.outputs, **progress)
        layout.epoch.input(
            self.show_samples,
            [self.studio.project, layout.runs, layout.epoch],
            [layout.samples, layout.notice],
            trigger_mode="always_last",
            **progress,
        )

    @allowed(Role.GUEST)
    def show(self, project: str, names: Sequence[str] | None = None, shown: str | None = None) -> Updates:
        """Compare the named runs; without names the shown run with its parent, else the best run with the latest."""
        layout = self.layout
        try:
            records = project_records(self.studio.find_project(project))
            by_name = {record.name: record for record in records}
            chosen = [name for name in (names or _proposed(records, shown)) if name in by_name]
            updates: Updates = {
                layout.notice: "",
                layout.runs: gr.Dropdown([record.name for record in reversed(records)], value=chosen, multiselect=True),
            }
            if len(chosen) < 2:
                return updates | self._empty()
            return updates | self._comparison(compare([by_name[name] for name in chosen]))
        except StudioError as error:
            return {layout.notice: error_card(error)}

    @allowed(Role.GUEST)
    def show_samples(self, project: str, names: Sequence[str], epoch: int) -> Updates:
        """Show the samples after another epoch."""
        try:
            records = project_records(self.studio.find_project(project))
            chosen = [record for name in names for record in records if record.name == name]
            samples = {record.name: self._history(record) for record in chosen}
            return {self.layout.samples: sample_table(chosen, samples, int(epoch), self.studio.home)}
        except StudioError as error:
            return {self.layout.notice: error_card(error)}

    def _empty(self) -> Updates:
        layout = self.layout
        text = "Select two or more runs above: what differs, their curves and their samples, side by side."
        return {
            layout.settings: empty_card("Your comparison will appear here", text),
            layout.curves: "",
            layout.samples: "",
            layout.epoch: gr.Slider(visible=False),
        }

    def _comparison(self, result: Comparison) -> Updates:
        layout = self.layout
        histories = {record.name: self._history(record) for record in result.runs}
        last = max((epoch for history in histories.values() for epoch in _epochs(history)), default=0)
        return {
            layout.settings: settings_table(result),
            layout.curves: curves(result, histories),
            layout.epoch: gr.Slider(maximum=max(last, 1), value=last, visible=last > 0),
            layout.samples: sample_table(result.runs, histories, last, self.studio.home),
        }

    def _history(self, record: RunRecord) -> RunHistory:
        return self.histories.history(record.folder)


def settings_table(result: Comparison) -> Markup:
    """Return what differs between the runs, then their figures; the columns have the colours of the curves."""
    headers = ["", *(record.name for record in result.runs)]
    rows = [TableRow([item.label, *item.values]) for item in result.settings]
    if not rows:
        rows = [TableRow(["Settings, images and base", *["the same"] * len(result.runs)])]
    verdicts = [record.figures.verdict for record in result.runs]
    figures = [
        TableRow(["Fixed-noise loss against the base", *map(_loss_text, result.runs)], changed=True),
        TableRow(["Verdict", *(verdict.title if verdict else "–" for verdict in verdicts)]),
        TableRow(["Stars", *("★" * record.notes.stars or "not rated" for record in result.runs)]),
        TableRow(["Notes", *(record.notes.notes or "–" for record in result.runs)]),
    ]
    classes = ["", *(["value"] * len(result.runs))]
    differ = table(headers, [*rows, *figures], classes, label="Differences")
    warning = note(
        "The fixed-noise losses cannot be compared: images, captions, validation split, base or objective differ.",
        "Compare the samples instead.",
        Tone.WARNING,
    )
    return heading("What differs") + differ + (Markup("") if result.is_fair else cards([warning]))


def curves(result: Comparison, histories: dict[str, RunHistory]) -> Markup:
    """Return the fixed-noise losses over each other, and the smoothed training losses below.

    Both are relative to the base's loss where all runs have that, so that runs of other lengths compare.
    """
    is_relative = all(record.figures.base_loss for record in result.runs)
    bases = {record.name: record.figures.base_loss if is_relative else None for record in result.runs}
    losses = {
        record.name: [(step, loss / (bases[record.name] or 1)) for step, loss in record.figures.validation.items()]
        for record in result.runs
    }
    title = "Fixed-noise loss, relative to the base" if is_relative else "Fixed-noise loss"
    return _overlay(title, losses, points=True) + _training_chart(histories)


def _training_chart(histories: dict[str, RunHistory]) -> Markup:
    has_relative = all(
        history.steps and all(step.relative_loss is not None for step in history.steps.values())
        for history in histories.values()
    )
    smoothed = {}
    for name, history in histories.items():
        steps, losses, _ = history.loss_curve()
        if has_relative:
            losses = [history.steps[step].relative_loss if step in history.steps else None for step in steps]
        smoothed[name] = [(step, value) for step, value in zip(steps, smooth(losses), strict=True) if value is not None]
    title = "Training loss, relative to the base" if has_relative else "Training loss"
    return _overlay(f"{title}, smoothed", smoothed)


def _overlay(title: str, curves: Mapping[str, Sequence[tuple[int, float]]], **options: Any) -> Markup:
    """Return a chart of one curve of (step, value) per run; empty without a value."""
    series = run_series(list(curves.items()), **options)
    ends = [f"{item.name} {item.y[-1]:.4f}" if item.y else f"{item.name} none" for item in series]
    return chart(
        Chart(title, series, f"Last values: {', '.join(ends)}.", group=f"compare {title}", file_name="compare")
    )


def _loss_text(record: RunRecord) -> str:
    """Return the last fixed-noise loss relative to the base's, and itself: "-33.7% (0.0995)"."""
    loss, change = record.validation_loss, record.validation_change
    if loss is None:
        return "–"
    return f"{loss:.4f}" if change is None else f"{change:+.1%} ({loss:.4f})"


def sample_table(records: Sequence[RunRecord], histories: dict[str, RunHistory], epoch: int, home: Home) -> Markup:
    """Return the samples after an epoch, or the last before it: one row per prompt, one column per run."""
    latest = {record.name: _latest(histories[record.name], epoch) for record in records}
    prompts = list(dict.fromkeys(prompt for samples in latest.values() for prompt in samples))
    if not prompts:
        return empty_card("No samples to compare", "None of these runs has drawn a sample.")
    rows = []
    for prompt in prompts:
        events = [latest[record.name].get(prompt) for record in records]
        seeds = {event.seed for event in events if event}
        samples = [_sample(record, event, home) for record, event in zip(records, events, strict=True)]
        rows.append(SampleRow(prompt, f"seed {seeds.pop()}" if len(seeds) == 1 else "", samples))
    return heading("Samples", "One prompt per row, drawn with the same seed where it says so.") + render(
        "train/compare_samples.html", rows=rows
    )


def _proposed(records: Sequence[RunRecord], shown: str | None) -> list[str]:
    """Return the shown run, else the latest one, after its parent; without a parent after the best other run."""
    if len(records) < 2:
        return []
    run = next((record for record in records if record.name == shown), records[-1])
    others = [record for record in records if record is not run]
    before = run.parent if run.parent in others else best_run(others)
    return [before.name, run.name] if before else []


def _epochs(history: RunHistory) -> list[int]:
    return [_epoch_of(event) for event in history.samples.values()]


def _epoch_of(event: SampleEvent) -> int:
    """Return the epoch that a sample was drawn after; 0 for one before the first step or within an epoch."""
    return event.epoch or 0


def _latest(history: RunHistory, epoch: int) -> dict[str, SampleEvent]:
    """Return the last sample of each prompt up to an epoch."""
    found: dict[str, SampleEvent] = {}
    for event in sorted(history.samples.values(), key=lambda event: (_epoch_of(event), event.step)):
        if _epoch_of(event) <= epoch:
            found[event.prompt] = event
    return found


def _sample(record: RunRecord, event: SampleEvent | None, home: Home) -> ComparedSample:
    if event is None:
        return ComparedSample(record.name, "", "not drawn")
    when = f"epoch {event.epoch}" if event.epoch is not None else f"step {event.step}"
    path = record.folder.path / Path(event.path)
    return ComparedSample(record.name, thumbnail_url_or_empty(home, path, THUMBNAIL_SIZE), f"{when}, seed {event.seed}")
