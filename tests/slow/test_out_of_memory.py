"""Out of memory at any allocation of a run: it continues with a warning, or it can be resumed to the same LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_studio import worker
from lora_studio.errors import OutOfMemoryError
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from tests.support.allocations import counted_allocations
from tests.support.events import records_of
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same

pytestmark = pytest.mark.slow

RUNS = 24
GOES_ON = {"memory_short", "sample_out_of_memory", "validation_out_of_memory", "measure_out_of_memory"}


def job_of(shared: Path) -> Any:
    """Return a job with every phase: text encoding, validation, checkpoints, samples, gradient checkpointing `auto`."""
    return make_job(
        shared / "base",
        shared / "images",
        epochs=2,
        validation_split=0.3,
        sample_every_n_epochs=1,
        sample_steps=1,
        gradient_checkpointing="auto",
        ema_decay=0.5,
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64)] * 4)
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


@pytest.fixture(scope="module")
def whole(shared: Path) -> tuple[Path, int]:
    """The LoRA of the run with enough memory, and the number of its large allocations."""
    folder = JobFolder.create(shared / "whole", job_of(shared))
    with counted_allocations() as found:
        worker.execute(folder, home=Home(shared / "whole home"))
    return folder.path / "ink.safetensors", len(found.sizes)


@pytest.mark.parametrize("part", range(RUNS))
def test_a_run_survives_out_of_memory_at_any_allocation(
    shared: Path, whole: tuple[Path, int], tmp_path: Path, part: int
) -> None:
    lora, total = whole
    home, folder = Home(tmp_path / "home"), JobFolder.create(tmp_path / "run", job_of(shared))
    error: OutOfMemoryError | None = None
    with counted_allocations(failing=1 + part * (total - 1) // RUNS) as found:
        try:
            worker.execute(folder, home=home)
        except OutOfMemoryError as caught:
            error = caught
    assert found.failed
    if error is None:
        records = records_of(folder)
        names = [record["event"] for record in records]
        warnings = {record["code"] for record in records if record["event"] == "warning"}
        # a decode that runs out of memory is repeated in tiles, which loses nothing
        assert warnings & GOES_ON or (names.count("sample"), names.count("validation")) == (2, 3)
    else:
        status = folder.status()
        assert (error.code, status.state, status.remedy) == ("out_of_memory", JobState.FAILED, error.remedy)
        assert error.remedy
        worker.execute(folder, home=home, resume=True)
    assert folder.status().state is JobState.DONE
    assert same(load_file(folder.path / "ink.safetensors"), load_file(lora))
