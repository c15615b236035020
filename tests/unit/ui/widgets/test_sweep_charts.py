"""Charts of a figure over the values of one variable."""

from __future__ import annotations

import itertools
import re

import pytest

from lora_studio.ui.widgets.sweep_charts import Figure, Values, sweep_chart


@pytest.mark.parametrize("logarithmic", [False, True])
def test_values_are_placed_in_order_within_the_plot(logarithmic: bool) -> None:
    values = Values([1, 2, 4, 8], ["1", "2", "4", "8"], 1, "Batch size", logarithmic)
    places = values.places()
    assert 0 < places[0] < places[1] < places[2] < places[3] < 100
    distances = [right - left for left, right in itertools.pairwise(places)]
    assert (max(distances) == pytest.approx(min(distances))) == logarithmic


def test_labels_keep_their_distance_and_include_the_current_value() -> None:
    numbers = list(range(1, 41))
    ticks = Values(numbers, [str(number) for number in numbers], 16, "Epochs").ticks()
    assert "17" in [tick.text for tick in ticks]
    assert all(right.place - left.place >= 10 for left, right in itertools.pairwise(ticks))


def test_columns_cover_the_plot_without_gaps() -> None:
    columns = Values([5, 10, 50], ["5", "10", "50"], None, "Images", logarithmic=True).columns(["a", "b", "c"])
    assert columns[0].x == 0
    assert sum(column.width for column in columns) == pytest.approx(100)
    for left, right in itertools.pairwise(columns):
        assert left.x + left.width == pytest.approx(right.x)


def test_a_chart_marks_the_current_value_and_the_limit() -> None:
    values = Values([1, 2], ["1", "2"], 1, "Batch size")
    figure = Figure("Memory", "GiB", [8, 10], ["8 GiB", "<10 GiB>"], [(7, 9), (8, 40)], "range", [12, 12], "GPU", 12)
    drawn = sweep_chart(values, figure)
    for line in ("band", "limit", "smooth", "current"):
        assert f'class="line {line}"' in drawn
    assert '<output class="reading" data-reading="&lt;10 GiB&gt;">&lt;10 GiB&gt;</output>' in drawn
    assert not re.search(r"[ML]-", drawn)
    unmarked = sweep_chart(Values([1], ["1"], None, "Images"), Figure("Steps", "", [8], ["8 steps"]))
    assert 'class="line current"' not in unmarked
    assert 'data-reading=""' in unmarked
