"""A run that is stopped and resumed: what its LoRA files say of its steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open

from lora_studio.models import load, locate
from lora_studio.workspace.project import Home
from tests.support.original_layout import save_single_file
from tests.support.training_runs import make_images, make_job, train_into


def position_of(file: Path) -> tuple[str, ...]:
    """Return the epoch, steps, epochs of the run, and start of a LoRA file's metadata."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    return tuple(metadata[f"ss_{key}"] for key in ("epoch", "steps", "num_epochs", "training_started_at"))


@pytest.mark.slow
def test_lora_files_before_and_after_a_resume_have_their_own_epoch_and_step(
    training_inputs: Path, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a base that is a single file. The run has 2 epochs of 2 steps and stops within the second."""
    for module in (load, locate):
        monkeypatch.setattr(module, "SDXL_CONFIG", training_inputs / "base")
    pipeline = StableDiffusionXLPipeline.from_pretrained(training_inputs / "base")
    base = save_single_file(pipeline, tmp_path / "single.safetensors")
    job = make_job(base, make_images(tmp_path / "images", [(64, 64)] * 3))
    run = tmp_path / "run"
    result, _ = train_into(job, run, home, stop_after=3)
    assert (result.stopped, result.steps, result.lora) == (True, 3, None)
    result, _ = train_into(job, run, home, resume=True)
    assert (result.steps, result.epochs) == (4, 2)
    positions = {file.name: position_of(file) for file in run.rglob("*.safetensors") if file.name.startswith("ink")}
    started = positions["ink.safetensors"][-1]
    assert positions == {
        "ink-000001.safetensors": ("1", "2", "2", started),
        "ink-step00000003.safetensors": ("2", "3", "2", started),
        "ink-000002.safetensors": ("2", "4", "2", started),
        "ink.safetensors": ("2", "4", "2", started),
    }
