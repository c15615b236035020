"""The measures of a test as curves over the strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.widgets.charts import Chart, XAxis, chart_grid, run_series


def measure_charts(
    view: SweepView,
    rows: Sequence[Any],
    names: Mapping[str, str],
    *,
    value: Callable[[Any, str], float | None] = getattr,
    notes: Mapping[str, str] | None = None,
) -> Markup:
    """Return a chart per measure, with a curve per LoRA and base; empty for fewer than two strengths.

    `rows` have a base, a LoRA and a strength, `names` are the measures with their titles, `value(row, name)` is the
    figure, and `notes` are sentences below the charts. One table below shows the figures of all.
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
        points = []
        for label, own in curves.items():
            found = [(row.strength, value(row, name)) for row in sorted(own, key=lambda row: row.strength)]
            points.append((label, [(strength, figure) for strength, figure in found if figure is not None]))
        summary = ", ".join(f"{label} {found[0][1]:.3f} to {found[-1][1]:.3f}" for label, found in points if found)
        charts.append(
            Chart(
                title,
                run_series(points, points=True),
                f"From the lowest to the highest strength: {summary}.",
                group=f"test {view.folder.path}",
                x=XAxis("strength"),
                file_name=f"test-{view.folder.name}",
                small=True,
                note=(notes or {}).get(name, ""),
                has_table=False,
            )
        )
    return chart_grid(charts)
