"""Failures of a run: each ends with a status that names its cause and a remedy, and the run can be resumed."""

from __future__ import annotations

import ctypes
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_studio import worker
from lora_studio.errors import StudioError
from lora_studio.events import Event, PhaseEvent, StepEvent
from lora_studio.training import loop
from lora_studio.training.reporting.step_log import StepResult
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.job_folder import JobFolder, JobState
from lora_studio.workspace.project import Home
from tests.support.forked import events_of, start_worker, without_times
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same, weights_of

pytestmark = pytest.mark.slow
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of a running process are Linux's")

STEPS = 12


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64), (32, 64), (64, 64)])
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


@pytest.fixture(scope="module")
def whole(shared: Path) -> JobFolder:
    """The same run without a failure."""
    folder = JobFolder.create(shared / "whole", job_of(shared))
    worker.execute(folder, home=Home(shared / "home"))
    return folder


def job_of(shared: Path, images: Path | None = None) -> Any:
    return make_job(shared / "base", images or shared / "images", batch_size=1, epochs=9, max_train_steps=STEPS)


def assert_resumes_to(folder: JobFolder, whole: JobFolder, home: Home) -> None:
    folder.clear_stop()
    worker.execute(folder, home=home, resume=True)
    assert folder.status().state is JobState.DONE
    assert same(weights_of(folder.path), weights_of(whole.path))
    assert without_times(folder) == without_times(whole)


def fail(folder: JobFolder, home: Home, when: Callable[[Event], bool], harm: Callable[[], Any]) -> str:
    """Run the job and do the harm at an event; return the error's code."""
    done = False

    def listen(event: Event) -> None:
        nonlocal done
        if not done and when(event):
            done = True
            harm()

    with pytest.raises(StudioError) as caught:
        worker.execute(folder, home=home, listen=listen)
    status = folder.status()
    assert status.state is JobState.FAILED
    assert (status.message, status.remedy) == (caught.value.message, caught.value.remedy)
    assert status.remedy or "Remove or replace it" in status.message
    return caught.value.code


def limit_memory() -> None:
    """Let step 6 have half of the memory that the forward pass of step 5 took, as address space.

    Every block of 64 KiB or more is allocated with mmap, so that the limit takes effect.
    """
    assert ctypes.CDLL(None).mallopt(-3, 2**16)
    process, take_step, sizes = psutil.Process(), loop.train_step, []

    def limited_step(trainer: Trainer, step: int, *retry: Any) -> StepResult:
        def record_size(*_: Any) -> None:
            sizes.append(process.memory_info().vms)

        if step == 4:
            record_size()
            with trainer.base.unet.register_forward_hook(record_size):
                return take_step(trainer, step, *retry)
        if step == 5:
            resource.setrlimit(resource.RLIMIT_AS, (sum(sizes) // 2,) * 2)
        return take_step(trainer, step, *retry)

    loop.train_step = limited_step


def limit_files() -> None:
    """Limit files to 32 KiB from step 5 on."""
    take_step = loop.train_step

    def limited_step(trainer: Trainer, step: int, *retry: Any) -> StepResult:
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15))
        return take_step(trainer, step, *retry)

    loop.train_step = limited_step


@linux
def test_out_of_memory_ends_with_its_code_and_the_run_resumes(shared: Path, tmp_path: Path, whole: JobFolder) -> None:
    home = Home(shared / "home")
    folder = JobFolder.create(tmp_path / "run", job_of(shared))
    process = start_worker(folder, home, prepare=limit_memory)
    process.join(180)
    status = folder.status()
    assert status.state is JobState.FAILED
    assert status.done == 5
    assert events_of(folder, "failed")[-1]["code"] == "out_of_memory", folder.log_tail()
    assert "gradient checkpointing" in status.remedy
    assert_resumes_to(folder, whole, home)


@linux
def test_a_full_disk_ends_with_its_code_and_the_run_resumes(shared: Path, tmp_path: Path, whole: JobFolder) -> None:
    """Files are limited to 32 KiB from step 5 on: small ones can be written, states and LoRA files cannot."""
    home = Home(shared / "home")
    folder = JobFolder.create(tmp_path / "run", job_of(shared))
    process = start_worker(folder, home, prepare=limit_files)
    process.join(180)
    status = folder.status()
    assert status.state is JobState.FAILED
    assert events_of(folder, "failed")[-1]["code"] == "disk_full", folder.log_tail()
    assert status.remedy
    assert not [path for path in folder.path.rglob("*") if ".tmp" in path.name or path.suffix == ".partial"]
    assert_resumes_to(folder, whole, home)


def encoding(event: Event) -> bool:
    return isinstance(event, PhaseEvent) and event.message == "Encoding images"


@pytest.mark.parametrize("harm", ["damaged", "deleted"])
def test_an_image_lost_during_preparation_is_named(shared: Path, tmp_path: Path, whole: JobFolder, harm: str) -> None:
    images = shutil.copytree(shared / "images", tmp_path / "images")
    home, lost = Home(tmp_path / "home"), images / "2.png"
    content = lost.read_bytes()
    folder = JobFolder.create(tmp_path / "run", job_of(shared, images))
    fail(folder, home, encoding, lost.unlink if harm == "deleted" else lambda: lost.write_bytes(content[:99]))
    assert "2.png" in folder.status().message
    lost.write_bytes(content)
    assert_resumes_to(folder, whole, home)


def test_a_damaged_image_is_named_before_the_start(shared: Path, tmp_path: Path, whole: JobFolder) -> None:
    images = shutil.copytree(shared / "images", tmp_path / "images")
    content = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(content[: len(content) // 2])
    folder = JobFolder.create(tmp_path / "run", job_of(shared, images))
    fail(folder, Home(tmp_path / "home"), lambda event: False, lambda: None)
    assert "1.png" in folder.status().message
    assert not events_of(folder, "start")
    (images / "1.png").write_bytes(content)
    assert_resumes_to(folder, whole, Home(tmp_path / "home"))


def test_a_cache_deleted_during_the_run_is_an_error_that_can_be_resumed(
    shared: Path, tmp_path: Path, whole: JobFolder
) -> None:
    home = Home(tmp_path / "home")
    folder = JobFolder.create(tmp_path / "run", job_of(shared))

    def at_step_5(event: Event) -> bool:
        return isinstance(event, StepEvent) and event.step == 5

    fail(folder, home, at_step_5, lambda: shutil.rmtree(home.cache / "latents"))
    assert ".safetensors" in folder.status().message
    assert "esume" in folder.status().remedy
    assert_resumes_to(folder, whole, home)


def test_a_base_with_nan_weights_ends_after_five_steps(shared: Path, tmp_path: Path) -> None:
    """The loss is not finite from the first step on."""
    base = shutil.copytree(shared / "base", tmp_path / "base")
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    torch.nn.init.constant_(unet.conv_out.bias, float("nan"))
    unet.save_pretrained(base / "unet")
    folder = JobFolder.create(tmp_path / "run", make_job(base, shared / "images", batch_size=1, epochs=9))
    assert fail(folder, Home(tmp_path / "home"), lambda event: False, lambda: None) == "nan"
    assert "5 steps" in folder.status().message
    assert "mixed_precision" in folder.status().remedy
    assert [event["step"] for event in events_of(folder, "nan")] == [1, 2, 3, 4, 5]
    assert not list(folder.path.rglob("ink.safetensors"))
