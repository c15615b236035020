"""Steps made ahead in a thread: the same, in order, no further ahead than set, and their errors with them."""

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


def test_the_next_steps_are_made_while_this_one_works(prefetch: Prefetch[int]) -> None:
    """Two of them, in another thread, and none beyond the last."""
    made: list[int] = []
    done = [threading.Event() for _ in range(7)]

    def make(step: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        made.append(step)
        done[step].set()
        return 10 * step

    for step in range(5):
        assert prefetch.get(step, 5, make) == 10 * step
        assert all(event.wait(30) for event in done[step : min(step + 3, 5)])
        assert made == list(range(min(step + 3, 5)))


def test_an_error_is_raised_in_the_step_that_it_belongs_to(prefetch: Prefetch[int]) -> None:
    def make(step: int) -> int:
        if step == 2:
            raise JobError("gone", "Resume.", code="cache_gone")
        return step

    assert [prefetch.get(step, 9, make) for step in (0, 1)] == [0, 1]
    with pytest.raises(JobError, match="gone"):
        prefetch.get(2, 9, make)
    assert prefetch.get(3, 9, make) == 3


def test_it_follows_a_run_that_jumps_and_one_that_begins_anew(prefetch: Prefetch[int]) -> None:
    assert [prefetch.get(step, 9, lambda number: number) for step in (0, 5, 1, 20, 21)] == [0, 5, 1, 20, 21]
    prefetch.close()
    assert prefetch.get(3, 9, lambda number: -number) == -3


def test_closing_does_not_wait_for_what_has_not_begun(prefetch: Prefetch[int]) -> None:
    made: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if step == 1:
            begun.set()
            go_on.wait(30)
        return step

    prefetch.get(0, 9, make)
    assert begun.wait(30)
    threading.Timer(0.05, go_on.set).start()
    prefetch.close()
    assert made == [0, 1]


def test_without_depth_a_step_is_made_when_it_is_asked_for() -> None:
    made: list[threading.Thread] = []
    Prefetch[None]().get(0, 9, lambda step: made.append(threading.current_thread()))
    assert made == [threading.main_thread()]
