"""Mean losses by timestep bin."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_studio.events import parse_event
from lora_studio.training.reporting.loss_by_timestep import BINS, TimestepLosses


@given(st.integers(BINS, 2000), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 10)), max_size=40))
def test_each_loss_is_added_to_the_bin_of_its_timestep(total: int, samples: list[tuple[float, float]]) -> None:
    taken = [(min(int(position * total), total - 1), loss) for position, loss in samples]
    losses = TimestepLosses(total=total)
    losses.add([timestep for timestep, _ in taken], [loss for _, loss in taken])
    event = losses.event(1)
    assert parse_event(json.dumps(event.record())) == event
    edges = [event.bins[0][0], *(end for _, end in event.bins)]
    assert (edges[0], edges[-1], len(edges)) == (0, total, BINS + 1)
    assert [begin for begin, _ in event.bins] == edges[:-1]
    for (begin, end), mean, count in zip(event.bins, event.loss, event.count, strict=True):
        inside = [loss for timestep, loss in taken if begin <= timestep < end]
        assert count == len(inside)
        assert mean is None if not inside else mean == pytest.approx(sum(inside) / len(inside))


def test_the_losses_are_restored_and_cleared_for_the_next_epoch() -> None:
    losses = TimestepLosses(total=1000)
    losses.add([3, 999], [0.1, 0.7])
    again = TimestepLosses.model_validate(json.loads(json.dumps(losses.model_dump())))
    again.add([5], [0.3])
    losses.add([5], [0.3])
    assert again.event(1) == losses.event(1)
    assert again.event(1).loss[0] == pytest.approx(0.2)
    again.clear()
    assert again.event(1) == TimestepLosses(total=1000).event(1)
    assert losses.event(1).count[0] == 2
