"""Several processes: shards of a batch, collectives over a real process group, and errors on all ranks."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from lora_studio import api
from lora_studio.device import is_out_of_memory
from lora_studio.errors import ConfigError, InputError, JobError, PeerOutOfMemoryError, StopRequested
from lora_studio.events import Event, FailedEvent, StoppedEvent
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training.distributed import RankGroup, process_count_errors
from lora_studio.workspace.job_folder import JobFolder, JobState, JobStatus
from lora_studio.workspace.project import Home
from tests.support.events import step_event


@given(values=st.lists(st.integers(), max_size=40), size=st.integers(1, 9))
def test_shards_are_the_batch_in_order_and_differ_by_one_at_most(values: list[int], size: int) -> None:
    shards = [RankGroup(rank, size).shard(values) for rank in range(size)]
    assert [value for _, shard in shards for value in shard] == values
    assert [values[start : start + len(shard)] for start, shard in shards] == [shard for _, shard in shards]
    lengths = {len(shard) for _, shard in shards}
    assert max(lengths) - min(lengths) <= 1


def test_a_single_process_communicates_nothing() -> None:
    alone = RankGroup()
    gradient = torch.ones(2)
    alone.all_reduce([gradient])
    assert gradient.tolist() == [1, 1]
    assert alone.is_main
    assert alone.broadcast_flag(True)
    with pytest.raises(ZeroDivisionError), alone.sync_errors():
        1 / 0


def exchange(rank: int) -> dict[str, Any]:
    ranks = RankGroup(rank, 2)
    seen: dict[str, Any] = {"flag": ranks.broadcast_flag(rank == 0)}
    loss, gradients = torch.tensor(0.5 + rank), [torch.full((2, 3), 1.0 + rank), rank * torch.arange(4.0)]
    ranks.all_reduce([loss, *gradients])
    seen["loss"] = float(loss)
    seen["gradients"] = [gradient.tolist() for gradient in gradients]
    with ranks.sync_errors():
        pass
    for name, error in (
        ("stopped", StopRequested()),
        ("memory", MemoryError("no room")),
        ("config", ConfigError(["a is 1.", "b is 2."])),
        ("known", InputError("a is 1.", "Set it to 2.", code="a")),
        ("unknown", KeyError("x")),
    ):
        try:
            with ranks.sync_errors():
                if rank == 1:
                    raise error
        except Exception as caught:
            seen[name] = caught
    return seen


def run_rank(rank: int, folder: Path, answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    seen = exchange(rank)
    sent = {name: value for name, value in seen.items() if not isinstance(value, Exception)}
    sent |= {
        name: (type(value), str(value), is_out_of_memory(value)) for name, value in seen.items() if name not in sent
    }
    answers.put((rank, sent))
    if rank == 1:
        os._exit(0)  # a process that dies
    try:
        RankGroup(0, 2).broadcast_flag(True)
    except JobError as error:
        answers.put((2, error.code))


def test_two_ranks_exchange_flags_gradients_and_errors(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    processes = [context.Process(target=run_rank, args=(rank, tmp_path, answers), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(answers.get() for _ in range(3))
    for process in processes:
        process.join(20)
    for rank in range(2):
        seen = found[rank]
        assert seen["flag"] is True
        assert seen["loss"] == 2.0
        assert seen["gradients"] == [[[3.0] * 3] * 2, [0.0, 1.0, 2.0, 3.0]]
    first, second = found[0], found[1]
    assert first["stopped"][0] is second["stopped"][0] is StopRequested
    assert first["memory"] == (PeerOutOfMemoryError, "Process 2 of 2: out of memory: no room", True)
    assert second["memory"][0] is MemoryError
    assert second["config"][0] is ConfigError
    assert first["config"][:2] == (JobError, "Process 2 of 2: a is 1.\nb is 2.")
    assert first["known"][:2] == (JobError, "Process 2 of 2: a is 1. Set it to 2.")
    assert first["unknown"][1].startswith("Process 2 of 2: KeyError: 'x'. The log has its traceback.")
    assert found[2] == "process_lost"


def test_num_processes_must_match_the_processes_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    job = TrainJob(name="a", dataset=Path("x"), base="y", num_processes=2)
    (error,) = process_count_errors(job)
    assert "accelerate launch --num_processes 2" in error
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process_count_errors(job) == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    (error,) = process_count_errors(job)
    assert error.startswith("num_processes is 2")


def test_api_forwards_events_and_errors_of_several_processes(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread replaces the processes and writes their events."""
    heard: list[str] = []

    def begin(folder: JobFolder, home: Home, *, resume: bool = False) -> None:
        assert folder.job().num_processes == 2  # type: ignore[union-attr]
        folder.set_status(JobStatus(state=JobState.RUNNING, pid=os.getpid(), total=2))
        threading.Thread(target=play, args=(folder, resume)).start()

    def play(folder: JobFolder, resume: bool) -> None:
        folder.emit(step_event(1 + resume))
        if not resume:
            while not folder.stop_requested():
                time.sleep(0.01)
            folder.emit(StoppedEvent(message="Stopped"))
            folder.update_status(state=JobState.STOPPED, done=1)
        else:
            folder.emit(FailedEvent(message="Not finite.", code="nan"))
            folder.update_status(state=JobState.FAILED, message="Not finite.", remedy="Halve unet_lr.")

    def listen(event: Event) -> None:
        heard.append(event.name)
        if heard == ["step"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(api.jobs, "start", begin)
    result = api.train(
        tmp_path, base="x", recipe=Recipe(), num_processes=2, out=tmp_path / "run", home=home, on_event=listen
    )
    assert (result.stopped, result.lora, result.steps, result.final_loss) == (True, None, 1, 0.5)
    assert heard == ["step", "stopped"]
    with pytest.raises(JobError, match=r"Not finite\. Halve unet_lr\.") as caught:
        api.resume(tmp_path / "run", home=home, on_event=lambda event: None)
    assert caught.value.code == "nan"
