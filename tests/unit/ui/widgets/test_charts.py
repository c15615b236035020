"""The data of a chart that the browser draws."""

from __future__ import annotations

import math

import pytest

from lora_studio.ui.widgets.charts import (
    MAX_POINTS,
    Chart,
    Mark,
    MarkKind,
    Series,
    XAxis,
    chart,
    chart_grid,
    run_series,
)
from tests.support.charts import charts_in, marks_of, points_of

HOSTILE = "</studio-chart><img src=x onerror=\"alert('1')\">"


def make_chart(*series: Series, title: str = "Loss", **options: object) -> Chart:
    return Chart(title, series, "A summary.", "group", **options)  # type: ignore[arg-type]


def test_series_with_the_same_steps_share_them_and_gaps_are_null() -> None:
    raw = Series("raw", [1, 2, 3], [0.5, None, math.nan])
    smooth = Series("smooth", [1, 2, 3], [0.5, 1 / 3, 0.25])
    fixed = Series("fixed", [0, 3], [0.5, 0.25])
    drawn = charts_in(chart(make_chart(raw, smooth, fixed)))["Loss"]
    assert drawn["xs"] == [[1, 2, 3], [0, 3]]
    assert points_of(drawn, "raw") == [(1, 0.5), (2, None), (3, None)]
    assert points_of(drawn, "smooth")[1] == (2, pytest.approx(1 / 3, rel=1e-5))
    assert points_of(drawn, "fixed") == [(0, 0.5), (3, 0.25)]
    assert drawn["x"]["domain"] == [0, 3]


@pytest.mark.parametrize("count", [MAX_POINTS, MAX_POINTS + 1, 10 * MAX_POINTS])
def test_long_series_are_thinned_and_keep_both_ends(count: int) -> None:
    steps = list(range(1, count + 1))
    drawn = charts_in(chart(make_chart(Series("loss", steps, [float(step) for step in steps]))))["Loss"]
    points = points_of(drawn, "loss")
    assert len(points) <= MAX_POINTS + 1
    assert (points[0], points[-1]) == ((1, 1), (count, count))
    assert all(x == value for x, value in points)


def test_a_chart_without_a_finite_value_is_empty() -> None:
    gaps = make_chart(Series("loss", [1, 2], [None, math.inf]))
    assert chart(gaps) == ""
    assert chart_grid([gaps, gaps]) == ""
    known = make_chart(Series("loss", [1], [1.0]), title="Known")
    assert list(charts_in(chart_grid([gaps, known]))) == ["Known"]


def test_text_of_users_stays_text() -> None:
    series = Series(HOSTILE, [1], [1.0], texts=[HOSTILE])
    drawn = chart(make_chart(series, title=HOSTILE, marks=[Mark(1, MarkKind.VERDICT, HOSTILE)], file_name=HOSTILE))
    assert drawn.count("<") == 2
    assert "<img" not in drawn
    assert charts_in(drawn)[HOSTILE]["series"][0]["texts"] == [HOSTILE]
    assert marks_of(charts_in(drawn)[HOSTILE]) == {"verdict": [1]}


def test_runs_have_different_styles_and_named_values_their_texts() -> None:
    curves = run_series([(f"run {number}", [(1, 0.5)]) for number in range(6)])
    assert len({series.style for series in curves}) == 6
    axis = XAxis("images", values=[4, 8], labels=["4", "8"], texts=["4 images", "8 images"])
    drawn = charts_in(chart(make_chart(*curves, x=axis)))["Loss"]
    assert [item["text"] for item in drawn["x"]["named"]] == ["4 images", "8 images"]
