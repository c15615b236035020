"""The charts of a run: bars, lines and ticks at the right places."""

from __future__ import annotations

import re

import pytest

from lora_studio.ui.widgets.charts import loss_curve, timestep_chart


def test_bars_are_mean_losses_by_timestep() -> None:
    drawn = timestep_chart([[0, 500], [500, 1000]], [0.1, 0.2], [0.4, None], epoch=3)
    bars = re.findall(r'<rect class="bar" x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"/>', drawn)
    assert [tuple(map(float, bar)) for bar in bars] == [(7.5, 75, 25), (57.5, 50, 50)]
    assert re.findall(r'class="line raw" d="([^"]*)"', drawn) == ["M0 0h50"]
    assert timestep_chart([[0, 10]], [None], [None], epoch=1) == ""


@pytest.mark.parametrize("steps_per_epoch", [3, 10, 40, 51])
def test_epoch_ticks_are_within_the_loss_curve(steps_per_epoch: int) -> None:
    drawn = loss_curve([1, 2], [1.2, 1.0], [1.2, 1.1], total=40, steps_per_epoch=steps_per_epoch)
    ticks = [float(place) for place in re.findall(r'class="tick x" style="left:([\d.]+)%"', drawn)]
    assert all(0 < place <= 100 for place in ticks)
    assert bool(ticks) == (steps_per_epoch <= 40)


def test_validation_losses_are_a_separate_line() -> None:
    plain = loss_curve([1, 2], [1.2, 1.0], [1.2, 1.1], total=4, steps_per_epoch=2)
    assert "validation" not in plain
    drawn = loss_curve([1, 2], [1.2, 1.0], [1.2, 1.1], total=4, steps_per_epoch=2, fixed=[(0, 2.0), (2, 0.5)])
    assert "validation loss 0.5000" in drawn
    path = re.search(r'class="line validation" d="M0 (\S+)L50 (\S+)"', drawn)
    assert path is not None
    assert 0 <= float(path[1]) < float(path[2]) <= 100


def test_the_level_of_the_base_is_a_line_across_the_plot() -> None:
    fixed = [(0, 0.5), (2, 0.25)]
    drawn = loss_curve(
        [1, 2], [0.5, 0.3], [0.5, 0.4], total=4, steps_per_epoch=2, fixed=fixed, fixed_name="training images", base=0.5
    )
    path = re.search(r'class="line base" d="M0 (\S+)L100 (\S+)"', drawn)
    measured = re.search(r'class="line validation" d="M0 (\S+)L50 (\S+)"', drawn)
    assert path is not None
    assert measured is not None
    assert path[1] == path[2] == measured[1]
    assert "training images loss 0.2500" in drawn
    assert "validation loss" not in drawn


def test_a_gap_begins_a_new_subpath_and_long_curves_are_thinned() -> None:
    drawn = loss_curve([1, 2, 3], [1.0, None, 1.0], [1.0, 1.0, 1.0], total=4, steps_per_epoch=0)
    [raw] = re.findall(r'class="line raw" d="([^"]*)"', drawn)
    assert raw.count("M") == 2
    steps = list(range(1, 5001))
    drawn = loss_curve(steps, [1.0] * 5000, [1.0] * 5000, total=5000, steps_per_epoch=0)
    [raw] = re.findall(r'class="line raw" d="([^"]*)"', drawn)
    assert len(re.findall("[ML]", raw)) <= 501
    assert loss_curve([1], [None], [None], total=1, steps_per_epoch=1) == ""
