"""Whole training runs on the small SDXL: every optimizer, precision and way to save memory."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from lora_studio.errors import DiskFullError
from lora_studio.guide import OPTIMIZERS
from lora_studio.models import load, locate
from lora_studio.planning.plan import plan
from lora_studio.planning.presets import list_presets, load_preset
from lora_studio.settings.choices import Optimizer
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.recipe import Recipe
from lora_studio.training import resume_state
from lora_studio.training.loop import train_loop
from lora_studio.training.progress import Progress
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home
from tests.support.events import ignore, of
from tests.support.original_layout import save_single_file
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import losses_of, make_images, make_job, same, start, train_into, weights_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64), (32, 64), (64, 64)])
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


def job_of(shared: Path, **changes: Any) -> Any:
    return make_job(shared / "base", shared / "images", **({"text_encoder_lr": 5e-4} | changes))


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("optimizer", list(Optimizer))
@pytest.mark.parametrize("schedule", ["cosine", "cosine_with_restarts"])
def test_every_optimizer_resumes_bit_exact(shared: Path, tmp_path: Path, optimizer: Optimizer, schedule: str) -> None:
    rates = {"unet_lr": 1.0, "text_encoder_lr": 1.0} if OPTIMIZERS[optimizer].learning_rate_free else {}
    job = job_of(shared, optimizer=optimizer, lr_scheduler=schedule, lr_warmup_steps=1, network_dim=64, **rates)
    home = Home(shared / "home")
    train_into(job, tmp_path / "whole", home)
    train_into(job, tmp_path / "parts", home, stop_after=1)
    train_into(job, tmp_path / "parts", home, stop_after=3, resume=True)
    train_into(job, tmp_path / "parts", home, resume=True)
    whole = weights_of(tmp_path / "whole")
    assert same(weights_of(tmp_path / "parts"), whole)
    assert any(weight.any() for name, weight in whole.items() if name.endswith("/B"))


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_is_planned_and_trains_the_planned_steps(shared: Path, tmp_path: Path, preset: str) -> None:
    small = {"resolution": 64, "bucket_reso_steps": 32, "min_bucket_reso": 64, "max_bucket_reso": 128}
    short = {"max_train_steps": 2, "mixed_precision": "fp32", "sample_every_n_epochs": 0, "validation_split": 0}
    values, home = load_preset(preset) | small | short, Home(shared / "home")
    common = {"base": str(shared / "base"), "trigger_word": "inkstamp"}
    planned = plan(shared / "images", overrides=values, home=home, **common)
    assert planned.recipe == planned.recipe.model_copy(update=Recipe.parse(values).model_dump(include=set(values)))
    job = TrainJob(name="ink", dataset=shared / "images", recipe=planned.recipe, **common)
    result, events = train_into(job, tmp_path / "run", home)
    assert result.steps == planned.steps.total_steps == 2
    assert of(events, "start")[0]["steps_per_epoch"] == planned.steps.steps_per_epoch
    assert all(event["loss"] is not None for event in of(events, "step"))
    assert result.lora is not None
    assert result.lora.is_file()


@pytest.mark.parametrize("optimizer", ["torch.optim.RAdam", "pytorch_optimizer.AdEMAMix"])
def test_classes_by_their_names_resume_bit_exact(shared: Path, tmp_path: Path, optimizer: str) -> None:
    cosine = {"lr_scheduler_type": "CosineAnnealingLR", "lr_scheduler_args": ["T_max=3"]}
    job = job_of(shared, optimizer_type=optimizer, **cosine, scale_weight_norms=0.01, ip_noise_gamma=0.1)
    home = Home(shared / "home")
    _, events = train_into(job, tmp_path / "whole", home)
    train_into(job, tmp_path / "parts", home, stop_after=2)
    train_into(job, tmp_path / "parts", home, resume=True)
    assert same(weights_of(tmp_path / "parts"), weights_of(tmp_path / "whole"))
    rates = [values["lr"] / job.recipe.unet_lr for values in of(events, "step")]
    assert rates == pytest.approx([1, 0.75, 0.25, 0], abs=1e-9)


def test_adafactors_schedule_resumes_bit_exact(shared: Path, tmp_path: Path) -> None:
    job = job_of(shared, optimizer="Adafactor", lr_scheduler="adafactor", ema_decay=0.9)
    home = Home(shared / "home")
    _, events = train_into(job, tmp_path / "whole", home)
    train_into(job, tmp_path / "parts", home, stop_after=3)
    train_into(job, tmp_path / "parts", home, resume=True)
    assert same(weights_of(tmp_path / "parts"), weights_of(tmp_path / "whole"))
    assert [values["lr"] for values in of(events, "step")] == pytest.approx([0.01] * 4)
    assert "adafactor_rates" in {values["code"] for values in of(events, "hint")}


def test_gradient_checkpointing_changes_no_bit(shared: Path, tmp_path: Path) -> None:
    for checkpointing in (False, True):
        job = job_of(shared, gradient_checkpointing=checkpointing)
        train_into(job, tmp_path / str(checkpointing), Home(shared / "home"))
    assert same(weights_of(tmp_path / "True"), weights_of(tmp_path / "False"))


def test_bf16_losses_are_close_to_fp32_and_weights_stay_in_fp32(shared: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        _, events = train_into(job_of(shared, mixed_precision=precision), tmp_path / precision, Home(shared / "home"))
        losses[precision] = [values["loss"] for values in of(events, "step")]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert {weight.dtype for weight in weights_of(tmp_path / "bf16").values()} == {torch.float32}
    assert {weight.dtype for weight in load_file(tmp_path / "bf16" / "ink.safetensors").values()} == {torch.float16}


@torch.no_grad()
def mean_loss(trainer: Trainer) -> float:
    """Return the mean loss over 40 draws of timestep and noise that training did not use."""
    found = []
    for step in range(10_000, 10_020):
        found.append(losses_of(trainer, trainer.dataset.items[:2], step=step).mean())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("rates", [{"text_encoder_lr": 0}, {"unet_lr": 0, "text_encoder_lr": 5e-3}])
def test_training_lowers_the_loss(shared: Path, tmp_path: Path, rates: dict[str, float]) -> None:
    make_images(tmp_path / "images", [(64, 64)] * 2)
    job = make_job(shared / "base", tmp_path / "images", **({"unet_lr": 5e-3, "epochs": 2, "repeats": 30} | rates))
    trainer = start(job, tmp_path / "run", Home(shared / "home"))
    before = mean_loss(trainer)
    train_loop(trainer, Progress(), report=ignore, should_stop=lambda: False)
    assert mean_loss(trainer) < before - 0.004


def test_a_run_resumes_bit_exact_after_a_full_disk(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(shared / "home")
    train_into(job_of(shared), tmp_path / "whole", home)
    real = resume_state._write
    full = True

    def write(path: Path, content: bytes) -> None:
        if full and path.parent.name.startswith("00000004"):
            path.write_bytes(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(resume_state, "_write", write)
    with pytest.raises(DiskFullError):
        train_into(job_of(shared), tmp_path / "run", home)
    assert not (tmp_path / "run" / "ink.safetensors").exists()
    full = False
    train_into(job_of(shared), tmp_path / "run", home, resume=True)
    assert same(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))


def test_a_single_file_base_trains_like_its_folder(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (locate, load):
        monkeypatch.setattr(module, "SDXL_CONFIG", shared / "base")
    file = save_single_file(StableDiffusionXLPipeline.from_pretrained(shared / "base"), tmp_path / "tiny.safetensors")
    home = Home(shared / "home")
    _, folder = train_into(job_of(shared), tmp_path / "folder", home)
    result, single = train_into(make_job(file, shared / "images", text_encoder_lr=5e-4), tmp_path / "file", home)
    # Equal up to the order of sums: the memory layout of the weights differs.
    losses = [[values["loss"] for values in of(events, "step")] for events in (single, folder)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert result.lora is not None
    assert load_file(result.lora).keys() == load_file(tmp_path / "folder" / "ink.safetensors").keys()
