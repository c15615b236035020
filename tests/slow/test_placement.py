"""Every tensor of a gradient pass is on the device: with the meta device in the GPU's place, one that is not raises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_studio.training.preflight import PreflightResult, preflight
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home
from tests.support.networks import NETWORKS
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, start

pytestmark = pytest.mark.slow
META = torch.device("meta")
OPTIONS: dict[str, dict[str, Any]] = {
    "text encoders": {"text_encoder_lr": 1e-3, "max_token_length": 225, "clip_skip": 2},
    "Huber": {"loss_type": "huber", "min_snr_gamma": 5.0, "multires_noise_iterations": 6},
    "masks": {"masked_loss": "alpha"},
    "dropout": {"network_dropout": 0.1, "caption_dropout_rate": 0.5},
    "checkpointing": {"gradient_checkpointing": "on", "text_encoder_lr": 1e-3},
    "rates": {"text_encoder_lr": [1e-3, 1e-4], "loraplus_lr_ratio": 4, "mid_lr_weight": "mid=0.5"},
    "bf16": {"mixed_precision": "bf16", "ema_decay": 0.9},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    images = make_images(folder / "images", [(64, 64)] * 2)
    save_tiny_sdxl(folder / "base", layers=1)
    for image in images.glob("*.png"):
        Image.open(image).convert("RGBA").rotate(45).save(image)
    return folder


def trainer_on_meta(shared: Path, monkeypatch: pytest.MonkeyPatch, **recipe: Any) -> Trainer:
    """Return a trainer on the meta device; the caches are filled by an equal one on the CPU."""
    job = make_job(shared / "base", shared / "images", **recipe)
    start(job, shared / "run", Home(shared / "home"))

    def preflight_on_meta(*given: Any, **named: Any) -> PreflightResult:
        return replace(preflight(*given, **named), device=META)

    monkeypatch.setattr("tests.support.training_runs.preflight", preflight_on_meta)
    return start(job, shared / "run", Home(shared / "home"))


def check_placement(trainer: Trainer) -> None:
    """Run a gradient pass, and check where its results are."""
    ((_, batch),) = trainer.collator.collate_step(0).batches
    losses = trainer.gradient_pass(batch)
    assert (losses.device, len(losses)) == (META, len(batch))
    assert {gradient.device for gradient in trainer.weights.gradients} == {META}
    assert torch.nn.utils.clip_grad_norm_(trainer.weights.flat, 1.0).device == META


@pytest.mark.parametrize("network", NETWORKS)
def test_a_gradient_pass_of_every_network_is_on_the_device(
    shared: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    check_placement(trainer_on_meta(shared, monkeypatch, **NETWORKS[network] | OPTIONS["text encoders"]))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_gradient_pass_with_every_option_is_on_the_device(
    shared: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    check_placement(trainer_on_meta(shared, monkeypatch, **OPTIONS[option]))
