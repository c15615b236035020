"""An executor that is left by an exception."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from lora_studio.dataset.duplicates.pools import cancel_on_exit


def test_an_exception_cancels_pending_work_and_waits_for_running_work() -> None:
    started, release = threading.Event(), threading.Event()
    finished: list[int] = []

    def work(number: int) -> None:
        started.set()
        release.wait(10)
        finished.append(number)

    futures: list[Future[None]] = []

    def submit_and_fail() -> None:
        with cancel_on_exit(ThreadPoolExecutor(1)) as pool:
            futures.extend(pool.submit(work, number) for number in range(3))
            assert started.wait(10)
            threading.Timer(0.05, release.set).start()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        submit_and_fail()
    assert finished == [0]
    assert [future.cancelled() for future in futures] == [False, True, True]
