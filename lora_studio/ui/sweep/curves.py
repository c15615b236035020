"""The measures of a test as curves over the strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lora_studio.sampling.recommend import StrengthAdvice
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.widgets.charts import Chart, Mark, MarkKind, XAxis, chart_grid, run_series


def measure_charts(
    view: SweepView,
    rows: Sequence[Any],
    names: Mapping[str, str],
    *,
    value: Callable[[Any, str], float | None] = getattr,
    notes: Mapping[str, str] | None = None,
    advice: Mapping[tuple[str, str], StrengthAdvice] | None = None,
) -> Markup:
    """Return a chart per measure, with a curve per LoRA and base; empty for fewer than two strengths.

    `rows` have a base, a LoRA and a strength, `names` are the measures with their titles, `value(row, name)` is the
    figure, and `notes` are sentences below the charts. One table below shows the figures of all. `advice` by LoRA and
    base is marked on their curves.
    """
    if len({row.strength for row in rows}) < 2:
        return Markup("")
    curves: dict[str, list[Any]] = {}
    for row in rows:
        parts = [row.lora, row.base if len(view.plan.bases) > 1 else ""]
        label = " · ".join(filter(None, parts)) or "LoRA"
        curves.setdefault(label, []).append(row)
    charts = []
    for name, title in names.items():
        points: list[tuple[str, list[tuple[float, float]]]] = []
        marks: list[Mark] = []
        for label, own in curves.items():
            found = [(row.strength, value(row, name)) for row in sorted(own, key=lambda row: row.strength)]
            known = [(strength, figure) for strength, figure in found if figure is not None]
            points.append((label, known))
            given = (advice or {}).get((own[0].lora, own[0].base))
            marks += _recommended(given, dict(known), f" of {label}" if len(curves) > 1 else "")
        summary = ", ".join(f"{label} {found[0][1]:.3f} to {found[-1][1]:.3f}" for label, found in points if found)
        charts.append(
            Chart(
                title,
                run_series(points, points=True),
                " ".join(
                    [f"From the lowest to the highest strength: {summary}.", *(f"{mark.text}." for mark in marks)]
                ),
                group=f"test {view.folder.path}",
                x=XAxis("strength"),
                file_name=f"test-{view.folder.name}",
                marks=marks,
                small=True,
                note=(notes or {}).get(name, ""),
                has_table=False,
            )
        )
    return chart_grid(charts)


def _recommended(advice: StrengthAdvice | None, curve: Mapping[float, float], of: str) -> list[Mark]:
    """Return the mark of the recommended strength on a curve, with the strengths that are as good, if it has one."""
    if advice is None or advice.strength is None or advice.strength not in curve:
        return []
    text = f"Recommended strength{of}: {advice.strength:g}"
    if advice.low != advice.high:
        text += f" ({advice.low:g} to {advice.high:g} are as good)"
    place = curve[advice.strength]
    return [Mark(advice.strength, MarkKind.RECOMMENDED, text, place, low=advice.low, high=advice.high)]
