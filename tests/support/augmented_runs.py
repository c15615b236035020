"""Runs with everything: augmentation, masks, regularisation and a validation split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.trainer import Trainer
from tests.support.training_runs import make_images, make_job

EVERYTHING = {
    "shuffle_caption": True,
    "caption_tag_dropout_rate": 0.2,
    "caption_dropout_rate": 0.2,
    "caption_variants": 3,
    "max_token_length": 150,
    "flip_aug": True,
    "random_crop": True,
    "masked_loss": "files",
    "prior_loss_weight": 0.5,
    "validation_split": 0.25,
    "epochs": 2,
}


def write_dataset(folder: Path) -> Path:
    """Write four images with captions of several tags and one mask; return the folder."""
    make_images(folder, [(64, 64), (64, 64), (100, 64), (64, 64)])
    for index in range(4):
        (folder / f"{index}.txt").write_text(f"red, inkstamp, thing {index}, small, on a table", "utf-8")
    half = np.zeros((64, 64), np.uint8)
    half[:32] = 255
    Image.fromarray(half).save(folder / "0-masklabel.png")
    return folder


def augmented_job(training_inputs: Path, images: Path | None = None, **recipe: Any) -> TrainJob:
    """Return a job with the base, images and regularisation images of the fixture `training_inputs`."""
    job = make_job(training_inputs / "base", images or training_inputs / "images", **recipe)
    job.regularization = training_inputs / "prior"
    return job


class ZeroUNet(torch.nn.Module):
    """A UNet that predicts zeros and records its inputs."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        self.seen.append({"noisy": noisy, "t": t, "training": self.training, **given})
        return (torch.zeros_like(noisy),)


def snr_weight(trainer: Trainer, t: int) -> float:
    """Return the Min-SNR weight of a timestep with gamma 3."""
    kept = float(trainer.base.noise_scheduler.alphas_cumprod[t])
    return min(kept / (1 - kept), 3.0) / (kept / (1 - kept))


def read_records(file: Path) -> list[dict[str, Any]]:
    """Return the values of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
