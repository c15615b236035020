from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from lora_studio.errors import StopRequested
from lora_studio.workspace import gpu_queue
from lora_studio.workspace.gpu_queue import hold_gpu, live_tickets

HOLDER = """
import sys, time
from pathlib import Path
from lora_studio.workspace.gpu_queue import hold_gpu
with hold_gpu(Path(sys.argv[1]), "the other"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_queue, "POLL_SECONDS", 0.01)


def ticket(folder: Path, name: str, pid: int, label: str = "x") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"label": label, "pid": pid, "pid_started": None}), "utf-8")
    return path


def test_free_gpu_is_held_at_once_and_the_ticket_removed(tmp_path: Path) -> None:
    with hold_gpu(tmp_path / "queue", "mine"):
        assert [label for _, label in live_tickets(tmp_path / "queue")] == ["mine"]
    assert live_tickets(tmp_path / "queue") == []


def test_jobs_run_one_at_a_time_in_order_of_arrival(tmp_path: Path) -> None:
    order: list[str] = []
    inside: list[int] = []

    def work(name: str) -> None:
        with hold_gpu(tmp_path, name):
            inside.append(1)
            order.append(name)
            assert len(inside) == 1
            time.sleep(0.05)
            inside.pop()

    threads = []
    for name in ("first", "second", "third"):
        threads.append(threading.Thread(target=work, args=(name,)))
        threads[-1].start()
        deadline = time.monotonic() + 5
        while name not in order and not any(label == name for _, label in live_tickets(tmp_path)):
            assert time.monotonic() < deadline
            time.sleep(0.005)
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second", "third"]


def test_waiting_job_gets_the_number_ahead_and_can_be_stopped(tmp_path: Path) -> None:
    ahead = ticket(tmp_path, "0000-1", os.getpid(), "the older")
    heard: list[tuple[int, str]] = []
    with (
        pytest.raises(StopRequested),
        hold_gpu(tmp_path, "mine", should_stop=lambda: bool(heard), on_wait=lambda *news: heard.append(news)),
    ):
        pytest.fail("the GPU was not free")
    assert heard == [(1, "the older")]
    assert [path for path, _ in live_tickets(tmp_path)] == [ahead]


def test_lock_is_released_when_its_holder_dies(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        heard: list[tuple[int, str]] = []

        def hear(number: int, label: str) -> None:
            heard.append((number, label))
            process.kill()
            process.wait(10)

        with hold_gpu(tmp_path, "mine", on_wait=hear):
            assert heard[0] == (1, "the other")
    finally:
        process.kill()
        process.communicate()


def test_lock_without_a_ticket_is_waited_for(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        for path, _ in live_tickets(tmp_path):
            path.unlink()
        heard: list[str] = []
        with (
            pytest.raises(StopRequested),
            hold_gpu(tmp_path, "mine", should_stop=lambda: bool(heard), on_wait=lambda _, label: heard.append(label)),
        ):
            pytest.fail("the lock was held")
        assert heard == ["another program"]
    finally:
        process.kill()
        process.communicate()


def test_tickets_of_dead_processes_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    dead = ticket(tmp_path, "0000-1", process.pid)
    broken = tmp_path / "0001-1.json"
    broken.write_text("{", "utf-8")
    with hold_gpu(tmp_path, "mine"):
        assert not dead.exists()


def test_lock_and_ticket_are_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hold_gpu(tmp_path, "mine"):
        raise RuntimeError
    with hold_gpu(tmp_path, "next"):
        assert len(live_tickets(tmp_path)) == 1


def test_ticket_of_a_reused_process_id_is_ignored(tmp_path: Path) -> None:
    path = ticket(tmp_path, "0000-1", os.getpid())
    content = json.loads(path.read_text("utf-8"))
    content["pid_started"] = psutil.Process().create_time() - 100
    path.write_text(json.dumps(content), "utf-8")
    assert live_tickets(tmp_path) == []
