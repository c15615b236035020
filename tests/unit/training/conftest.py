"""A run with augmentation, masks, regularisation and a validation split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home
from tests.support.augmented_runs import EVERYTHING, ZeroUNet, augmented_job, write_dataset
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, start


@pytest.fixture(scope="module")
def training_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a dataset of four images with captions of several tags, one mask, and a regularisation set."""
    folder = tmp_path_factory.mktemp("training_inputs")
    save_tiny_sdxl(folder / "base", layers=1)
    write_dataset(folder / "images")
    prior = make_images(folder / "prior" / "1_thing", [(64, 64), (100, 64)])
    for caption in prior.glob("*.txt"):
        caption.write_text("a thing", "utf-8")
    return folder


@pytest.fixture(scope="module")
def augmented_run(training_inputs: Path) -> Trainer:
    """A run with everything, before its first step."""
    return start(
        augmented_job(training_inputs, **EVERYTHING, min_snr_gamma=3.0),
        training_inputs / "run",
        Home(training_inputs / "home"),
    )


@pytest.fixture
def zero_run(augmented_run: Trainer) -> Iterator[Trainer]:
    """That run with a UNet that predicts zeros."""
    unet = augmented_run.base.unet
    augmented_run.base.unet = ZeroUNet()
    yield augmented_run
    augmented_run.base.unet = unet
