"""A training run as tiles, cards, pictures and tables."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lora_studio.device import find_gpu
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.ui.state.run_history import RunView, recipe_changes
from lora_studio.ui.widgets.charts import loss_curve, timestep_chart
from lora_studio.ui.widgets.formatting import format_duration, format_value
from lora_studio.ui.widgets.html import (
    TableRow,
    Tile,
    Tone,
    card,
    cards,
    empty_card,
    heading,
    note,
    pick_button,
    table,
    tiles,
)
from lora_studio.ui.widgets.settings_form import Spec
from lora_studio.ui.widgets.thumbnails import picture
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Home

TONES = {"good": Tone.OK, "info": Tone.PLAIN, "warn": Tone.WARNING, "bad": Tone.ERROR}
STATE_WORDS = {
    JobState.CREATED: "not started",
    JobState.QUEUED: "waiting",
    JobState.RUNNING: "running",
    JobState.DONE: "done",
    JobState.STOPPED: "stopped",
    JobState.FAILED: "failed",
}
FILM_COLUMNS = 16
CHANGES_SHOWN = 3


def title(view: RunView) -> Markup:
    """Which run this is, and where it stands."""
    start = view.history.start
    where = f"{start['device']} · {start['precision']}" if start.get("device") and start.get("precision") else ""
    return Markup('<h2 class="run-title">{} <span class="pill" title="{}">{}</span></h2><p class="hint">{}</p>').format(
        view.folder.name,
        view.status.message,
        STATE_WORDS[view.status.state],
        " · ".join(part for part in (view.job.base, view.job.trigger_word, where) if part),
    )


def run_tiles(view: RunView) -> Markup:
    """Step, loss, time, memory and rate."""
    last, history, status = view.history.last, view.history, view.status
    total = int(last.get("total") or history.start.get("total") or status.total or 0)
    epochs = history.start.get("epochs")
    loss = view.smoothed_loss
    gpu = find_gpu()
    return tiles(
        [
            Tile(
                "Step",
                f"{last.get('step', 0):,} / {total:,}" if total else "–",
                f"epoch {last.get('epoch', 0)} of {epochs}" if epochs else status.message,
            ),
            Tile(
                "Loss",
                f"{loss:.4f}" if loss is not None else "–",
                f"smoothed; this step {last['loss']:.4f}" if last else "after the first step",
                TONES[view.verdict.level] if loss is not None else Tone.PLAIN,
            ),
            _time_tile(view),
            Tile(
                "Memory",
                f"{last['memory_gib']:.1f} GiB" if last.get("memory_gib") is not None else "–",
                f"of {gpu.vram_gib:g} GiB" if gpu else "at the latest step",
            ),
            Tile("Learning rate", _rate(last.get("lr")), _rate_note(view)),
        ]
    )


def _time_tile(view: RunView) -> Tile:
    steps = [event["seconds"] for event in list(view.history.steps.values())[-50:] if event.get("seconds")]
    pace = f"{sum(steps) / len(steps):.2f} s a step" if steps else "known after the first steps"
    if view.status.state is JobState.RUNNING:
        return Tile("Time left", format_duration(view.status.seconds_left), pace)
    if view.status.started_at and view.status.updated_at and not view.alive:
        return Tile("Took", format_duration(view.status.updated_at - view.status.started_at), pace)
    return Tile("Time left", "–", pace)


def _rate(rate: float | None) -> str:
    return "–" if rate is None else format_value(float(f"{rate:.3g}"))


def _rate_note(view: RunView) -> str:
    text = view.history.last.get("text_encoder_lr")
    schedule = view.job.recipe.lr_scheduler.value.replace("_", " ")
    return f"{schedule}; text {_rate(text)}" if text else schedule


def curve(view: RunView) -> Markup:
    """The loss curve with the loss by timestep below it, or what will stand there."""
    steps, raw, smoothed = view.history.curve()
    if not steps:
        return empty_card("The loss curve will stand here", "It begins with the first step.")
    start = view.history.start
    total = int(view.history.last.get("total") or start.get("total") or steps[-1])
    over_steps = loss_curve(
        steps,
        raw,
        smoothed,
        total=total,
        steps_per_epoch=int(start.get("steps_per_epoch") or 0),
        held_out=sorted(view.history.held_out.items()),
    )
    known = view.history.timesteps
    if not known:
        return over_steps
    first, last = known[min(known)], known[max(known)]
    return over_steps + timestep_chart(last["bins"], last["loss"], first["loss"], epoch=max(known))


def filmstrip(view: RunView, home: Home) -> Markup:
    """Samples: one row a prompt, the training from left to right, all with one seed, so that only it differs."""
    samples = view.history.samples
    if not samples:
        every = view.job.recipe.sample_every_n_epochs
        when = "after every epoch" if every == 1 else f"every {every} epochs, and after the last,"
        text = f"Each prompt is drawn {when} with one seed." if every else "This run draws none (Sample every is 0)."
        return empty_card("Samples will stand here" if view.alive else "No samples were drawn", text)
    steps = _spread(sorted({step for step, _ in samples}), FILM_COLUMNS)
    rows = []
    for index in sorted({index for _, index in samples}):
        row = [samples[step, index] for step in steps if (step, index) in samples]
        pictures = Markup("").join(
            picture(home, view.folder.path / sample["path"], f"{when}: {sample['prompt']}", when)
            for sample in row
            for when in [f"step {sample['step']}" if sample["epoch"] is None else f"epoch {sample['epoch']}"]
        )
        rows.append(
            Markup('<p class="hint">{}</p><div class="film" tabindex="0" role="group" aria-label="{}">{}</div>').format(
                row[-1]["prompt"], row[-1]["prompt"], pictures
            )
        )
    return heading("Samples", "One seed, so that only the training differs.") + Markup("").join(rows)


def _spread(values: list[int], most: int) -> list[int]:
    """At most `most` of the values, evenly, the first and last among them."""
    if len(values) <= most:
        return values
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def state_card(view: RunView) -> Markup:
    """What the state asks for: waiting, getting ready, stopped, failed; empty while all goes its way."""
    status = view.status
    match status.state:
        case JobState.QUEUED:
            return card("Waiting for its turn", status.message, "It starts by itself. Stop takes it out of the queue.")
        case JobState.RUNNING if not view.history.steps:
            progress = f" ({status.done} of {status.total})" if status.total and status.done else ""
            return card("Getting ready", f"{status.message}{progress}")
        case JobState.STOPPED:
            return card("Stopped", status.message, status.remedy, Tone.WARNING)
        case JobState.FAILED:
            return card("The run failed", status.message, status.remedy, Tone.ERROR)
    return Markup("")


def what_it_says(view: RunView) -> Markup:
    """The verdict on the loss, then the run's warnings."""
    verdict = view.verdict
    said = (
        [card(verdict.title, verdict.evidence, verdict.next_step, TONES[verdict.level])] if view.history.losses else []
    )
    notes = view.history.notes.values()
    return cards([*said, *(note(event.get("message", ""), event.get("why", ""), Tone.WARNING) for event in notes)])


def runs_table(views: Sequence[RunView], shown: str) -> Markup:
    """All runs, latest first: what each changed from the one before, and how it went."""
    if not views:
        return Markup("")
    rows = []
    for place, view in reversed(list(enumerate(views))):
        parent = views[place - 1].job if place else None
        rows.append(
            TableRow(
                [
                    Markup("{}<div class='hint'>{}</div>").format(
                        pick_button(view.folder.name, view.folder.name, current=view.folder.name == shown),
                        STATE_WORDS[view.status.state],
                    ),
                    _changes(view.job, parent),
                    _loss_cell(view),
                    view.verdict.title if view.history.losses else "–",
                ],
                changed=view.folder.name == shown,
            )
        )
    return heading("Runs", "Each with what it changed from the one before.") + table(
        ["Run", "Changed", "Loss", "Verdict"], rows, ["keep", "", "keep", ""], label="Runs"
    )


def _loss_cell(view: RunView) -> Markup:
    loss = view.smoothed_loss
    return Markup("{}<div class='hint'>{:,} steps</div>").format(
        f"{loss:.4f}" if loss is not None else "–", view.history.last.get("step", 0)
    )


def _changes(job: TrainJob, parent: TrainJob | None) -> Markup:
    changes = recipe_changes(job.recipe, parent.recipe if parent else None)
    if not changes:
        return Markup("{}").format("nothing" if parent else "the guide's defaults")
    lines = [f"{name} {_clip(old)} → {_clip(new)}" for name, old, new in changes[:CHANGES_SHOWN]]
    if len(changes) > CHANGES_SHOWN:
        lines.append(f"and {len(changes) - CHANGES_SHOWN} more")
    return Markup("<br>").join(lines)


def _clip(text: str) -> str:
    flat = " / ".join(text.splitlines())
    return flat if len(flat) <= 24 else f"{flat[:22]}…"


def captions_used(view: RunView) -> Markup:
    """The first captions as the run trains with them, shuffled and thinned out."""
    if not view.history.captions:
        return Markup("")
    lines = Markup("").join(Markup("<li>{}</li>").format(text or "(none)") for text in view.history.captions)
    return heading("Captions as they train", "The first of the run; more are in captions.jsonl.") + Markup(
        "<ul>{}</ul>"
    ).format(lines)


def recipe_of_run(job: TrainJob) -> Markup:
    """The settings of a run: the simple ones, and all that differ from the guide's defaults."""
    defaults = Recipe()
    rows = []
    for name in Recipe.model_fields:
        spec = Spec.of(Recipe, name)
        value, default = getattr(job.recipe, name), getattr(defaults, name)
        if spec.simple or value != default:
            rows.append(TableRow([spec.label, format_value(value), format_value(default)], changed=value != default))
    if job.regularization is not None:
        rows.append(TableRow(["Regularisation images", str(job.regularization), "empty"], changed=True))
    return table(["Setting", "Value", "Default"], rows, ["", "value", "why"], label="Recipe of this run")
