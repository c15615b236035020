"""A training run as tiles, cards, images and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from lora_studio.device import find_gpu
from lora_studio.events import SampleEvent
from lora_studio.interop.write import ExportedSettings
from lora_studio.planning.project_plan import NextRun
from lora_studio.planning.verdicts import Verdict
from lora_studio.plurals import format_count
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.settings.sample_prompts import read_sample_prompts
from lora_studio.settings.subsets import Subset
from lora_studio.settings.values import format_value
from lora_studio.ui.state.run_history import RunView
from lora_studio.ui.train.exchange import ProjectImport
from lora_studio.ui.train.lineage import changes_since
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
    render,
    table,
    tiles,
)
from lora_studio.ui.widgets.job_status import job_title, state_label, time_tile
from lora_studio.ui.widgets.setting_spec import SettingSpec
from lora_studio.ui.widgets.thumbnails import THUMBNAIL_SIZE, thumbnail_url_or_empty
from lora_studio.workspace.job_folder import JobState
from lora_studio.workspace.project import Home

VERDICT_TONES = {"good": Tone.OK, "info": Tone.PLAIN, "warn": Tone.WARNING, "bad": Tone.ERROR}
MAX_FILM_COLUMNS = 16
MAX_CHANGES_SHOWN = 3
OPEN_PLAN = ":plan"
ALL_BACK = ":all"
WITHOUT_SUBSETS = ":subsets"
PACE_STEPS = 50  # steps that the seconds per step are averaged over


class FilmSample(NamedTuple):
    """A sample image of the filmstrip."""

    url: str
    when: str
    prompt: str


class FilmRow(NamedTuple):
    """The samples of one prompt. `settings` is empty where they are not known, as in runs of earlier versions."""

    prompt: str
    negative_prompt: str
    settings: str
    samples: list[FilmSample]


def title(view: RunView) -> Markup:
    """Return the run's name, its state, base, trigger word and device."""
    start = view.history.start
    device = f"{start.device} · {start.precision}" if start else ""
    facts = " · ".join(part for part in (view.job.base, view.job.trigger_word, device) if part)
    return job_title(view.folder.name, view.status, facts)


def form_title(facts: str) -> Markup:
    """Return the title of the form of a new run."""
    return render("train/form_title.html", facts=facts)


def plan_source(run: NextRun) -> Markup:
    """Return where the recipe in the form comes from, and the user's changes, with buttons that take the plan's values.

    The buttons pick OPEN_PLAN, ALL_BACK or the name of a setting.
    """
    hint = "Edit any setting below: it is marked, and one click takes it back."
    plan = run.planned.plan
    if plan is None:
        title, hint = "There is no plan yet: these are the guide's defaults", ""
    elif run.recipe is None:
        title, hint = "From the plan, with wrong values", "Correct the marked fields."
    elif not run.changes:
        title = f"From the plan: {format_count(plan.steps.total_steps, 'step')}"
    else:
        changes = f"{len(run.changes)} changes" if len(run.changes) > 1 else "change"
        title = f"From the plan, with your {changes}: {run.compared_steps}"
    return render(
        "train/plan_source.html",
        title=title,
        hint=hint,
        changes=run.changes,
        subsets=[_subset_text(subset) for subset in run.planned.info.subsets],
        without_subsets=WITHOUT_SUBSETS,
        open_plan=OPEN_PLAN,
        all_back=ALL_BACK,
    )


def _subset_text(subset: Subset) -> str:
    """Return a subset as the form's source shows it: 10_cat: 3 repeats, keep_tokens 2."""
    settings = [f"{name} {format_value(value)}" for name, value in subset.settings.items()]
    return f"{subset.image_dir.name}: {', '.join([format_count(subset.num_repeats, 'repeat'), *settings])}"


def import_card(imported: ProjectImport) -> Markup:
    """Return what an import set, and what it did not carry over."""
    counts = {"setting": len(imported.recipe), "subset": len(imported.subsets)}
    found = " and ".join(format_count(count, name) for name, count in counts.items() if count)
    matter = [item for item in imported.left_out if item.matters]
    return render(
        "train/exchange.html",
        title=f"Imported {found or 'nothing'} from {imported.source}",
        path="",
        left_out=matter,
        complete="Everything that has an effect was carried over.",
        not_needed=[item.name for item in imported.left_out if not item.matters],
    )


def export_card(exported: ExportedSettings) -> Markup:
    """Return where an export was written, and what sd-scripts does not have."""
    return render(
        "train/exchange.html",
        title="Exported for sd-scripts",
        path=exported.file,
        left_out=exported.left_out,
        complete="Start it with sdxl_train_network.py --config_file.",
        not_needed=[],
    )


def run_tiles(view: RunView) -> Markup:
    """Return tiles with step, loss, time, VRAM and learning rate."""
    last, history, status = view.history.last_step, view.history, view.status
    total = history.total_steps
    epochs = history.start.epochs if history.start else None
    loss = view.smoothed_loss
    gpu = find_gpu()
    return tiles(
        [
            Tile(
                "Step",
                f"{last.step if last else 0:,} / {total:,}" if total else "–",
                f"epoch {last.epoch if last else 0} of {epochs}" if epochs else _before_first_step(view),
            ),
            Tile(
                "Loss",
                f"{loss:.4f}" if loss is not None else "–",
                f"smoothed; last step {last.loss:.4f}" if last and last.loss is not None else _before_first_step(view),
                VERDICT_TONES[view.verdict.level] if loss is not None else Tone.PLAIN,
            ),
            time_tile(status, _seconds_per_step(view)),
            Tile(
                "Memory",
                f"{last.memory_gib:.1f} GiB" if last and last.memory_gib is not None else "–",
                f"of {gpu.vram_gib:g} GiB" if gpu else "peak RAM of the process",
            ),
            Tile("Learning rate", _rate(last.lr if last else None), _rate_note(view)),
        ]
    )


def _before_first_step(view: RunView) -> str:
    return "after the first step" if view.is_active else "no step was made"


def _seconds_per_step(view: RunView) -> str:
    recent = list(view.history.steps.values())[-PACE_STEPS:]
    steps = [event.seconds for event in recent if event.seconds]
    return f"{sum(steps) / len(steps):.2f} s per step" if steps else _before_first_step(view)


def _rate(rate: float | None) -> str:
    return "–" if rate is None else format_value(float(f"{rate:.3g}"))


def _rate_note(view: RunView) -> str:
    last = view.history.last_step
    schedule = view.job.recipe.schedule_name.replace("_", " ")
    rates = [rate for rate in (last.text_encoder_lr, last.text_encoder_lr2) if rate is not None] if last else []
    return f"{schedule}; text encoders {' and '.join(map(_rate, rates))}" if any(rates) else schedule


def filmstrip(view: RunView, home: Home) -> Markup:
    """Return the samples: one row per prompt, training from left to right, all with the same seed."""
    samples = view.history.samples
    if not samples:
        return _no_samples(view)
    steps = _evenly_spaced(sorted({step for step, _ in samples}), MAX_FILM_COLUMNS)
    rows = []
    for index in sorted({index for _, index in samples}):
        events = [samples[step, index] for step in steps if (step, index) in samples]
        last = events[-1]
        images = [_film_sample(view, home, event) for event in events]
        rows.append(FilmRow(last.prompt, last.negative_prompt, _sample_settings(last), images))
    title = heading("Samples", "The seed of a prompt stays the same, so that only the training differs.")
    return title + render("train/filmstrip.html", rows=rows)


def _no_samples(view: RunView) -> Markup:
    if not view.is_active and (view.status.state is JobState.FAILED or not view.history.steps):
        return Markup("")
    title = "Samples will appear here" if view.is_active else "No samples were drawn"
    return empty_card(title, _sampling_times(view.job.recipe))


def _sampling_times(recipe: Recipe) -> str:
    """Return when a run draws its samples, as a sentence."""
    epochs, steps = recipe.sample_every_n_epochs, recipe.sample_every_n_steps
    if not read_sample_prompts(recipe):
        return "This run has no sample prompts."
    times = ["before the first step"] if recipe.sample_at_first else []
    if epochs:
        times.append("after every epoch" if epochs == 1 else f"every {epochs} epochs and after the last")
    if steps:
        times.append("after every step" if steps == 1 else f"every {steps} steps")
    if not times:
        return "They are drawn only when you click Sample now."
    return f"Each prompt is drawn {', '.join(times)}."


def _sample_settings(event: SampleEvent) -> str:
    """Return the settings of a sample: "832 × 1216 px · seed 7 · 20 steps · CFG 6 · euler"."""
    if event.width is None or event.guidance is None:
        return ""
    size = f"{event.width} × {event.height} px"
    return f"{size} · seed {event.seed} · {event.steps} steps · CFG {event.guidance:g} · {event.sampler}"


def _film_sample(view: RunView, home: Home, event: SampleEvent) -> FilmSample:
    when = f"step {event.step}" if event.step else "before training"
    if event.epoch is not None:
        when = f"epoch {event.epoch}"
    url = thumbnail_url_or_empty(home, view.folder.path / event.path, THUMBNAIL_SIZE)
    return FilmSample(url, when, event.prompt)


def _evenly_spaced(values: list[int], limit: int) -> list[int]:
    """Return at most `limit` of the values, evenly spaced, with the first and the last."""
    if len(values) <= limit:
        return values
    return [values[round(place * (len(values) - 1) / (limit - 1))] for place in range(limit)]


def verdict_cards(view: RunView, on_samples: Sequence[Verdict]) -> Markup:
    """Return the verdicts on loss and samples, the worst on the loss before if that was worse, then warnings."""
    judged = []
    if view.history.losses:
        verdict, worst = view.verdict, view.worst_verdict
        judged = [card(verdict.title, verdict.evidence, verdict.next_step, VERDICT_TONES[verdict.level])]
        if worst is not None:
            title = f"Before, at step {worst.step}: {worst.title}"
            judged.append(card(title, worst.evidence, worst.next_step, VERDICT_TONES[worst.level]))
    warnings = view.history.warnings.values()
    judged += [card(found.title, found.evidence, found.next_step, VERDICT_TONES[found.level]) for found in on_samples]
    return cards([*judged, *(note(event.message, event.why, Tone.WARNING) for event in warnings)])


def runs_table(views: Sequence[RunView], selected: str) -> Markup:
    """Return all runs, latest first, with the differences to the run that each was made from, loss and verdict."""
    if not views:
        return empty_card("Your runs will appear here", "Each with its changed settings, loss and verdict.")
    by_path = {view.folder.path: view for view in views}
    rows = []
    for view in reversed(views):
        name = view.folder.name
        button = pick_button(name, name, current=name == selected)
        rows.append(
            TableRow(
                [
                    render("two_lines.html", first=button, second=state_label(view.status)),
                    _changes(view, by_path.get(view.job.parent) if view.job.parent else None),
                    _loss_cell(view),
                    view.verdict.title if view.history.losses else "–",
                ],
                changed=name == selected,
            )
        )
    columns = ["Run", "Changed", "Loss vs base", "Verdict"]
    return heading("Runs", "Compared with the run that each was made from, else with the guide's defaults.") + table(
        columns, rows, ["keep", "", "keep", ""], label="Runs", stacked=True, searchable=True
    )


def _loss_cell(view: RunView) -> Markup:
    """Return the last fixed-noise loss relative to the base's, the figure to compare runs by."""
    losses, last = view.history.validation_losses, view.history.last_step
    base, loss = losses.get(0), losses[max(losses)] if losses else None
    steps = f"{last.step if last else 0:,} steps"
    if loss is None:
        return render("two_lines.html", first="–", second=steps)
    return render("two_lines.html", first=f"{loss / base - 1:+.1%}" if base else f"{loss:.4f}", second=steps)


def _changes(run: RunView, parent: RunView | None) -> Markup:
    lines = changes_since(run, parent) or ["nothing" if parent else "the guide's defaults"]
    hidden = lines[MAX_CHANGES_SHOWN:]
    return render("train/changes.html", lines=lines[:MAX_CHANGES_SHOWN] + [f"and {len(hidden)} more"] * bool(hidden))


def training_captions(view: RunView) -> Markup:
    """Return the first captions as the run used them, after shuffling and dropout."""
    captions = view.history.captions
    if not captions:
        return Markup("")
    title = heading("Captions as trained", "The first ones, after shuffling and dropout; more are in captions.jsonl.")
    return title + render("train/captions.html", captions=captions)


def recipe_of_run(job: TrainJob) -> Markup:
    """Return the settings of a run: the simple ones, and all that differ from the guide's defaults."""
    defaults = Recipe()
    rows = []
    for name in Recipe.model_fields:
        spec = SettingSpec.of(Recipe, name)
        value, default = getattr(job.recipe, name), getattr(defaults, name)
        if spec.simple or value != default:
            rows.append(TableRow([spec.label, format_value(value), format_value(default)], changed=value != default))
    if job.subsets:
        rows.append(TableRow(["Subsets", str(len(job.subsets)), "none"], changed=True))
    if job.regularization is not None:
        rows.append(TableRow(["Regularisation images", str(job.regularization), "empty"], changed=True))
    return table(["Setting", "Value", "Default"], rows, ["", "value", "why"], label="Recipe of this run", stacked=True)
