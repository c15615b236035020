"""Caption augmentation with trained text encoders: no text embedding is cached, and resuming is bit-exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.workspace.project import Home
from tests.support.events import of
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same, train_into, weights_of

pytestmark = pytest.mark.slow


def test_caption_augmentation_with_trained_text_encoders_resumes_bit_exact(tmp_path: Path) -> None:
    base = save_tiny_sdxl(tmp_path / "base", layers=1)
    images = make_images(tmp_path / "images", [(64, 64), (64, 64), (100, 64), (64, 64)])
    for index in range(4):
        (images / f"{index}.txt").write_text(f"red, inkstamp, thing {index}, small, on a table", "utf-8")
    recipe = {
        "text_encoder_lr": 5e-4,
        "shuffle_caption": True,
        "caption_tag_dropout_rate": 0.2,
        "caption_dropout_rate": 0.2,
        "max_token_length": 225,
        "flip_aug": True,
        "validation_split": 0.25,
        "epochs": 3,
    }
    job, home = make_job(base, images, **recipe), Home(tmp_path / "home")
    _, events = train_into(job, tmp_path / "whole", home)
    assert not (home.cache / "text").exists()
    train_into(job, tmp_path / "halves", home, stop_after=3)
    _, rest = train_into(job, tmp_path / "halves", home, resume=True)
    assert of(rest, "validation") == of(events, "validation")[-len(of(rest, "validation")) :]
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "halves"))
