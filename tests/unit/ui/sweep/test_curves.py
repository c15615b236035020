"""The measures of a test over the strength."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_studio.sampling.recommend import StrengthAdvice
from lora_studio.ui.state.sweep_view import SweepView
from lora_studio.ui.sweep.curves import measure_charts
from lora_studio.workspace.project import Home
from tests.support.charts import charts_in, points_of
from tests.support.jobs import LORA, make_project, make_sweep


@pytest.fixture
def view(tmp_path: Path) -> SweepView:
    """Create a test of two LoRAs at three strengths, in no order."""
    folder = make_sweep(make_project(Home(tmp_path / "home")), [LORA])
    rows = [
        {"lora": lora, "base": "b", "strength": strength, "change": strength / scale, "variety": None}
        for lora, scale in (("one", 10), ("two", 5))
        for strength in (1, 0, 0.5)
    ]
    (folder.path / "measures.json").write_text(json.dumps({"rows": rows}), "utf-8")
    return SweepView.load(folder)


def test_each_lora_has_a_curve_by_ascending_strength(view: SweepView) -> None:
    charts = charts_in(measure_charts(view, view.measures, {"change": "Change", "variety": "Variety"}))
    assert list(charts) == ["Change"]
    assert points_of(charts["Change"], "one") == [(0, 0), (0.5, 0.05), (1, 0.1)]
    assert points_of(charts["Change"], "two") == [(0, 0), (0.5, 0.1), (1, 0.2)]


def test_one_strength_has_no_curve(view: SweepView) -> None:
    assert measure_charts(view, view.measures[:1], {"change": "Change"}) == ""


def test_the_recommended_strength_is_marked_on_each_curve_with_those_as_good(view: SweepView) -> None:
    advice = {
        ("one", "b"): StrengthAdvice(strength=0.5, low=0.5, high=1, reason="x"),
        ("two", "b"): StrengthAdvice(reason="not known"),
    }
    [drawn] = charts_in(measure_charts(view, view.measures, {"change": "Change"}, advice=advice)).values()
    [mark] = drawn["marks"]
    assert (mark["kind"], mark["x"], mark["y"], mark["low"], mark["high"]) == ("recommended", 0.5, 0.05, 0.5, 1)
    assert mark["text"] == "Recommended strength of one: 0.5 (0.5 to 1 are as good)"
    assert mark["text"] in drawn["summary"]
    assert charts_in(measure_charts(view, view.measures, {"change": "Change"}))["Change"]["marks"] == []
