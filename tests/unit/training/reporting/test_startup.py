"""What a run reports before its first step: warnings about the dataset, and hints about the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_studio.models.load import load_base
from lora_studio.models.locate import Source
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.subsets import Subset
from lora_studio.training.data.dataset import Dataset, read_dataset
from lora_studio.training.reporting import startup
from lora_studio.training.reporting.startup import report_dataset, report_recipe_hints, report_truncated_captions
from tests.support.events import Events, append_to, of
from tests.support.training_runs import make_images, make_job


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", [(64, 64)] * 3)


def dataset_of(job: TrainJob) -> Dataset:
    return read_dataset(job.dataset, job.recipe, job.trigger_word, regularization=job.regularization)


def warnings(job: TrainJob) -> dict[str, str]:
    """Return the messages of the dataset's warnings by code."""
    events: Events = []
    report_dataset(job, dataset_of(job), append_to(events))
    return {values["code"]: values["message"] for values in of(events, "warning")}


def test_a_complete_dataset_has_no_warnings(images: Path) -> None:
    assert warnings(make_job("base", images)) == {}


def test_warns_about_missing_captions(images: Path) -> None:
    (images / "1.txt").unlink()
    found = warnings(make_job("base", images))
    assert list(found) == ["captions_missing"]
    assert "1 of 3" in found["captions_missing"]
    assert "1.png" in found["captions_missing"]


def test_names_what_is_used_in_place_of_missing_captions(images: Path) -> None:
    (images / "1.txt").unlink()
    job = make_job("base", images)
    assert f"{job.trigger_word!r}" in warnings(job)["captions_missing"]
    subsets = [Subset(image_dir=images, class_tokens="a paper crane")]
    events: Events = []
    dataset = read_dataset(job.dataset, job.recipe, job.trigger_word, subsets=subsets)
    report_dataset(job, dataset, append_to(events))
    [message] = [found["message"] for found in of(events, "warning") if found["code"] == "captions_missing"]
    assert "'a paper crane'" in message
    assert job.trigger_word not in message


def test_warns_about_captions_without_the_trigger_word(images: Path) -> None:
    (images / "2.txt").write_text("a thing", "utf-8")
    found = warnings(make_job("base", images))
    assert list(found) == ["trigger_missing"]
    assert "1 of 3" in found["trigger_missing"]
    assert "2.png" in found["trigger_missing"]


def test_warns_about_images_outside_set_folders(images: Path) -> None:
    make_images(images / "2_ink", [(64, 64)])
    found = warnings(make_job("base", images))
    assert list(found) == ["images_left_out"]
    assert "3 images" in found["images_left_out"]


def test_warns_about_truncated_captions(tiny_base: Path, images: Path) -> None:
    (images / "0.txt").write_text("inkstamp " * 40, "utf-8")
    job, events = make_job("base", images), Events()
    base = load_base(Source("base", "folder", str(tiny_base)), dtype=torch.float32)
    report_truncated_captions(job, base, dataset_of(job), append_to(events))
    (warning,) = of(events, "warning")
    assert warning["code"] == "captions_long"
    assert "75 tokens" in warning["message"]


def test_warns_about_the_trigger_word_in_regularisation_captions(images: Path) -> None:
    make_images(images.parent / "prior", [(64, 64)])
    job = make_job("base", images).model_copy(update={"regularization": images.parent / "prior"})
    found = warnings(job)
    assert list(found) == ["regularization_trigger"]
    assert "1 regularisation captions" in found["regularization_trigger"]


def test_warns_about_images_without_a_mask(images: Path) -> None:
    Image.new("L", (64, 64), 255).save(images / "1-masklabel.png")
    found = warnings(make_job("base", images, masked_loss="files"))
    assert list(found) == ["masks_missing"]
    assert "2 of 3" in found["masks_missing"]
    assert "0.png" in found["masks_missing"]


@pytest.mark.parametrize(
    ("recipe", "codes", "part"),
    [
        ({"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 0}, ["prodigy_rates"], "encoders are not trained"),
        ({"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 1}, ["prodigy_rates"], "UNet and text encoders"),
        ({"optimizer": "Prodigy", "unet_lr": 0, "text_encoder_lr": 1}, ["prodigy_rates"], "only the text encoders"),
        ({"optimizer": "Adafactor", "lr_scheduler": "adafactor"}, ["adafactor_rates"], "unet_lr"),
        ({"optimizer": "AdamWScheduleFree"}, ["schedule_free"], "set lr_scheduler to constant"),
        ({}, [], ""),
    ],
)
def test_hints_say_how_the_optimizer_uses_the_recipe(recipe: dict[str, Any], codes: list[str], part: str) -> None:
    events: Events = []
    job = make_job("base", Path("images"), **recipe)
    report_recipe_hints(job.recipe, append_to(events), zero_terminal_snr=False)
    assert [values["code"] for values in of(events, "hint")] == codes == [values["code"] for _, values in events]
    for hint in of(events, "hint"):
        assert hint["about"] == "recipe"
        assert part in hint["message"]


@pytest.mark.parametrize(
    ("recipe", "codes"),
    [
        ({}, ["noise_offset_zero_snr", "min_snr_zero_snr"]),
        ({"noise_offset": 0}, ["min_snr_zero_snr"]),
        ({"noise_offset": 0, "min_snr_gamma": 0}, []),
    ],
)
def test_hints_say_what_does_not_suit_zero_terminal_snr(recipe: dict[str, Any], codes: list[str]) -> None:
    events: Events = []
    job = make_job("base", Path("images"), **recipe)
    report_recipe_hints(job.recipe, append_to(events), zero_terminal_snr=True)
    assert [values["code"] for values in of(events, "hint")] == codes


def test_a_phase_reports_the_time_left_from_what_it_did_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(startup.time, "monotonic", lambda: now)
    events: Events = []
    phases = startup.PhaseReporter(append_to(events))
    phases("Encoding images", 50, 100, "images")  # half of them are cached
    now = 110.0
    phases("Encoding images", 60, 100, "images")
    now = 110.1
    phases("Encoding images", 61, 100, "images")
    phases("Loading", 0, 0)
    reported = [(values["message"], values.get("unit"), values.get("seconds_left")) for values in of(events, "phase")]
    assert reported == [
        ("Encoding images", "images", None),
        ("Encoding images", "images", 40.0),
        ("Loading", None, None),
    ]
