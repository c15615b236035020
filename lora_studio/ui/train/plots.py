"""The charts of a run in Train: the loss with its marks, and small ones of rates, norms and the loss by timestep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from markupsafe import Markup

from lora_studio.events import StepEvent
from lora_studio.guide import CHART_READING
from lora_studio.planning.losses import smooth
from lora_studio.ui.state.run_history import RunHistory, RunView
from lora_studio.ui.widgets.charts import (
    Chart,
    Mark,
    MarkKind,
    Sample,
    Series,
    XAxis,
    chart,
    chart_grid,
)
from lora_studio.ui.widgets.html import empty_card
from lora_studio.ui.widgets.thumbnails import THUMBNAIL_SIZE, thumbnail_url_or_empty
from lora_studio.workspace.project import Home

MAX_SAMPLES = 32  # that the pointer shows


def run_charts(view: RunView, home: Home) -> Markup:
    """Return the charts of a run, or a placeholder before the first step."""
    if not view.history.losses:
        if view.is_active:
            return empty_card("The loss curve will appear here", "It begins with the first step.")
        return empty_card("No step was made", "This run ended while it prepared the training.")
    small = [rate_chart(view), gradient_chart(view), weight_chart(view), *timestep_charts(view)]
    return chart(loss_chart(view, home)) + chart_grid(small)


def loss_chart(view: RunView, home: Home) -> Chart:
    """Return the training loss over the steps of the run, with the fixed-noise loss and the level of the base."""
    history, name = view.history, fixed_noise_name(view.history)
    steps, raw, smoothed = history.loss_curve()
    total = max(history.total_steps, steps[-1])
    series = [Series("each step", steps, raw, "raw", robust=True), Series("smoothed", steps, smoothed)]
    last = next((value for value in reversed(smoothed) if value is not None), None)
    summary = f"{steps[-1]} of {total} steps"
    if last is not None:
        summary += f"; smoothed loss now {last:.4f}"
    fixed = history.fixed_noise_curve()
    if fixed:
        summary += f", {name} loss {fixed[-1][1]:.4f}"
        series.append(Series(name, [step for step, _ in fixed], [loss for _, loss in fixed], "fixed", points=True))
    if history.base_loss is not None:
        base = history.base_loss.loss
        summary += f", the base without the LoRA {base:.4f}"
        series.append(Series("base without the LoRA", [0], [base], "base", kind="level"))
        if base and (relative := history.relative_losses()):
            found = [None if value is None else value / base for value in smoothed]
            series.append(Series("smoothed / base", steps, found, kind="hidden"))
            series.append(Series("each step / base", steps, relative, kind="hidden"))
    return Chart(
        "Loss",
        series,
        f"{summary}.",
        group=_group(view),
        x=_step_axis(view),
        marks=run_marks(view),
        samples=_samples(view, home),
        file_name=view.folder.name,
    )


def fixed_noise_name(history: RunHistory) -> str:
    """Return the legend of the fixed-noise loss: which images it is of."""
    event = history.validation
    return "validation" if event is None or event.split == "validation" else "training images at fixed noise"


def run_marks(view: RunView) -> list[Mark]:
    """Return what happened during a run: checkpoints that exist, resumes, verdicts, and the lowest fixed-noise loss."""
    history = view.history
    marks = [
        Mark(step, MarkKind.CHECKPOINT, f"checkpoint {path}")
        for path, step in history.checkpoint_steps.items()
        if (view.folder.path / path).is_file()
    ]
    marks += [Mark(step, MarkKind.RESUME, f"resumed after step {step:,}") for step in history.resumes]
    marks += [Mark(step, MarkKind.VERDICT, title) for step, title in _verdicts(view)]
    trained = [(loss, step) for step, loss in history.fixed_noise_curve() if step > 0]
    if trained:
        loss, step = min(trained)
        is_validation = fixed_noise_name(history) == "validation"
        text = "best validation" if is_validation else "lowest fixed-noise loss"
        marks.append(Mark(step, MarkKind.BEST, text, loss))
    return sorted(marks, key=lambda mark: (mark.x, mark.kind))


def rate_chart(view: RunView) -> Chart:
    """Return the learning rates over the steps."""
    encoders = (("text encoders", "text_encoder_lr", "second"), ("second text encoder", "text_encoder_lr2", "run3"))
    series = [_step_series(view, "UNet", attrgetter("lr"))]
    for name, field, style in encoders:
        found = _step_series(view, name, attrgetter(field), style)
        if any(found.y):
            series.append(found)
    return _small_chart(view, "Learning rate", series, "")


def gradient_chart(view: RunView) -> Chart:
    """Return the norm of the gradient before clipping over the steps."""
    each = _step_series(view, "each step", attrgetter("gradient_norm"), "raw", robust=True)
    series = [each, Series("smoothed", each.x, smooth(each.y))]
    limit = view.job.recipe.max_grad_norm
    if limit and any(value > limit for value in each.y if value is not None):
        series.append(Series("clipped above", [0], [limit], "limit", kind="level", robust=True))
    return _small_chart(view, "Gradient norm", series, CHART_READING["gradient_norm"])


def weight_chart(view: RunView) -> Chart:
    """Return the mean norm of the layers' weight deltas over the steps, and that of the largest."""
    series = [
        _step_series(view, "mean of the layers", attrgetter("mean_weight_norm")),
        _step_series(view, "largest layer", attrgetter("max_weight_norm"), "second"),
    ]
    return _small_chart(view, "Weight norm", series, CHART_READING["weight_norm"])


def timestep_charts(view: RunView) -> list[Chart]:
    """Return the mean loss of the last epoch by timestep as bars, with the first epoch as a line; none before that.

    Timestep 0 is the clean image, the last one pure noise.
    """
    by_epoch = view.history.timesteps
    if not by_epoch:
        return []
    first, last = by_epoch[min(by_epoch)], by_epoch[max(by_epoch)]
    places = list(range(len(last.bins)))
    series = [Series(f"epoch {last.epoch}", places, last.loss, "bar", kind="bar")]
    if first.epoch != last.epoch and first.bins == last.bins:
        series.append(Series(f"epoch {first.epoch}", places, first.loss, "second", kind="stairs"))
    found = [
        f"{begin} to {end - 1}: {value:.3f}"
        for (begin, end), value in zip(last.bins, last.loss, strict=True)
        if value is not None
    ]
    axis = XAxis(
        "timestep (0: clean image)",
        domain=(-0.5, len(places) - 0.5),
        values=places,
        labels=[str(begin) for begin, _ in last.bins],
        texts=[f"timesteps {begin} to {end - 1}" for begin, end in last.bins],
    )
    summary = f"Mean loss of epoch {last.epoch} by timestep. {', '.join(found)}."
    name = view.folder.name
    group = f"{_group(view)} timesteps"
    return [
        Chart("Loss by timestep", series, summary, group, axis, from_zero=True, file_name=name, small=True),
    ]


def _small_chart(view: RunView, title: str, series: Sequence[Series], note: str) -> Chart:
    """Return a small chart over the steps, whose values begin at 0."""
    ends = [f"{item.name} {item.y[-1]:.3g}" for item in series if item.y and item.y[-1] is not None]
    return Chart(
        title,
        series,
        f"Last values: {', '.join(ends)}.",
        group=_group(view),
        x=_step_axis(view),
        from_zero=True,
        note=note,
        file_name=view.folder.name,
        small=True,
    )


def _step_series(
    view: RunView, name: str, value: Callable[[StepEvent], float | None], style: str = "smooth", robust: bool = False
) -> Series:
    """Return a value of the step events that have it."""
    found = {step: value(event) for step, event in sorted(view.history.steps.items())}
    known = {step: number for step, number in found.items() if number is not None}
    return Series(name, list(known), list(known.values()), style, robust=robust)


def _step_axis(view: RunView) -> XAxis:
    history = view.history
    steps_per_epoch = history.start.steps_per_epoch if history.start else 0
    return XAxis(domain=(0, max(history.total_steps, *history.losses)), steps_per_epoch=steps_per_epoch)


def _verdicts(view: RunView) -> list[tuple[int, str]]:
    """Return the verdicts that were reported during the run, and the worst one, each with its step."""
    found = {title: step for step, title in reversed(view.history.verdicts)}
    if view.worst_verdict is not None:
        found.setdefault(view.worst_verdict.title, view.worst_verdict.step)
    return [(step, title) for title, step in found.items()]


def _samples(view: RunView, home: Home) -> list[Sample]:
    """Return the samples of the first prompt; of many, evenly spaced ones."""
    events = view.history.samples
    first = min((index for _, index in events), default=0)
    steps = sorted(step for step, index in events if index == first)
    every = max(1, -(-len(steps) // MAX_SAMPLES))
    urls = {
        step: thumbnail_url_or_empty(home, view.folder.path / events[step, first].path, THUMBNAIL_SIZE)
        for step in steps[::every]
    }
    return [Sample(step, url) for step, url in urls.items() if url]


def _group(view: RunView) -> str:
    return f"run {view.folder.path}"
