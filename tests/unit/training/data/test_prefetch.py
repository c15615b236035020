"""Prefetching: values are computed in a thread, at most `depth` steps ahead; errors belong to their step."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lora_studio.errors import JobError
from lora_studio.training.data.prefetch import Prefetch


@pytest.fixture
def prefetch() -> Iterator[Prefetch[int]]:
    ahead: Prefetch[int] = Prefetch(2)
    yield ahead
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_the_next_steps_are_computed_in_a_thread(prefetch: Prefetch[int]) -> None:
    """Two steps ahead, and none beyond the last."""
    computed: list[int] = []
    done = [threading.Event() for _ in range(7)]

    def compute(step: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        computed.append(step)
        done[step].set()
        return 10 * step

    for step in range(5):
        assert prefetch.get(step, 5, compute) == 10 * step
        assert all(event.wait(30) for event in done[step : min(step + 3, 5)])
        assert computed == list(range(min(step + 3, 5)))


def test_an_error_is_raised_in_its_own_step(prefetch: Prefetch[int]) -> None:
    def compute(step: int) -> int:
        if step == 2:
            raise JobError("gone", "Resume.", code="cache_gone")
        return step

    assert [prefetch.get(step, 9, compute) for step in (0, 1)] == [0, 1]
    with pytest.raises(JobError, match="gone"):
        prefetch.get(2, 9, compute)
    assert prefetch.get(3, 9, compute) == 3


def test_steps_may_be_requested_in_any_order_and_after_closing(prefetch: Prefetch[int]) -> None:
    assert [prefetch.get(step, 9, lambda number: number) for step in (0, 5, 1, 20, 21)] == [0, 5, 1, 20, 21]
    prefetch.close()
    assert prefetch.get(3, 9, lambda number: -number) == -3


def test_closing_cancels_steps_that_have_not_started(prefetch: Prefetch[int]) -> None:
    computed: list[int] = []
    started, proceed = threading.Event(), threading.Event()

    def compute(step: int) -> int:
        computed.append(step)
        if step == 1:
            started.set()
            proceed.wait(30)
        return step

    prefetch.get(0, 9, compute)
    assert started.wait(30)
    threading.Timer(0.05, proceed.set).start()
    prefetch.close()
    assert computed == [0, 1]


def test_without_depth_a_step_is_computed_on_demand() -> None:
    computed: list[threading.Thread] = []
    Prefetch[None]().get(0, 9, lambda step: computed.append(threading.current_thread()))
    assert computed == [threading.main_thread()]
