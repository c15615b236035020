"""The measures of a test as curves over the strength."""

from __future__ import annotations

from markupsafe import Markup

from lora_studio.sampling.measures import StrengthMeasures
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.widgets.charts import Chart, XAxis, chart_grid, run_series


def measure_charts(view: SweepView, names: dict[str, str]) -> Markup:
    """Return a chart per measure, with a curve per LoRA and base; empty for fewer than two strengths.

    `names` are the measures with their titles. One table below shows the figures of all.
    """
    if len({row.strength for row in view.measures}) < 2:
        return Markup("")
    curves: dict[str, list[StrengthMeasures]] = {}
    for row in view.measures:
        parts = [row.lora, row.base if len(view.plan.bases) > 1 else ""]
        label = " · ".join(filter(None, parts)) or "LoRA"
        curves.setdefault(label, []).append(row)
    charts = []
    for name, title in names.items():
        points = []
        for label, rows in curves.items():
            found = [(row.strength, getattr(row, name)) for row in sorted(rows, key=lambda row: row.strength)]
            points.append((label, [(strength, value) for strength, value in found if value is not None]))
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
                has_table=False,
            )
        )
    return chart_grid(charts)
