"""Runs with regularisation, validation split, masks, and image and caption augmentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_studio.errors import ConfigError, InputError
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.data import collate
from lora_studio.training.data.augment import image_seed
from lora_studio.training.data.caption_variants import training_caption
from lora_studio.training.data.rng import generator
from lora_studio.training.objective import draw_noise, draw_timestep
from lora_studio.training.reporting.lora_metadata import build_lora_metadata
from lora_studio.training.run import Run
from lora_studio.training.validation import TIMESTEP_FRACTIONS, validate
from lora_studio.workspace.project import Home
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import (
    Events,
    losses_of,
    make_images,
    make_job,
    of,
    same,
    start,
    train_into,
    weights_of,
)

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


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a dataset of four images with captions of several tags, one mask, and a regularisation set."""
    folder = tmp_path_factory.mktemp("shared")
    save_tiny_sdxl(folder / "base", layers=1)
    dataset(folder / "images")
    prior = make_images(folder / "prior" / "1_thing", [(64, 64), (100, 64)])
    for caption in prior.glob("*.txt"):
        caption.write_text("a thing", "utf-8")
    return folder


def dataset(folder: Path) -> Path:
    make_images(folder, [(64, 64), (64, 64), (100, 64), (64, 64)])
    for index in range(4):
        (folder / f"{index}.txt").write_text(f"red, inkstamp, thing {index}, small, on a table", "utf-8")
    half = np.zeros((64, 64), np.uint8)
    half[:32] = 255
    Image.fromarray(half).save(folder / "0-masklabel.png")
    return folder


def job_of(shared: Path, images: Path | None = None, **recipe: Any) -> TrainJob:
    job = make_job(shared / "base", images or shared / "images", **recipe)
    job.regularization = shared / "prior"
    return job


@pytest.fixture(scope="module")
def whole(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Events]:
    """The folder and events of a run with everything, trained without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_into(job_of(shared, **EVERYTHING), folder, Home(shared / "home"))[1]


def test_validates_before_the_first_step_and_after_each_epoch(
    whole: tuple[Path, Events],
) -> None:
    events = whole[1]
    last = len(of(events, "step"))
    positions = [(values["epoch"], values["step"]) for values in of(events, "validation")]
    assert positions == [(0, 0), (1, last // 2), (2, last)]
    assert len({values["loss"] for values in of(events, "validation")}) == 3


def test_a_run_with_everything_resumes_bit_exact_once_its_images_are_restored(
    shared: Path, whole: tuple[Path, Events], tmp_path: Path
) -> None:
    """Images that are lost or damaged during the run do no harm; resuming needs them back."""
    home = Home(shared / "home")
    images = dataset(tmp_path / "images")
    job = job_of(shared, images, **EVERYTHING)
    total = len(of(whole[1], "step"))
    stop = total // 2 + 1

    def damage_images(steps: int) -> bool:
        if steps == 1:
            (images / "1.png").unlink(missing_ok=True)
            (images / "3.png").write_text("no picture", "utf-8")
        return steps >= stop

    run = tmp_path / "run"
    train_into(job, run, home, stop_when=damage_images)
    with pytest.raises(ConfigError, match=r"3\.png"):
        train_into(job, run, home, resume=True)
    (images / "3.png").unlink()
    with pytest.raises(InputError, match=r"1\.png, 3\.png") as caught:
        train_into(job, run, home, resume=True)
    assert caught.value.code == "dataset_changed"
    dataset(images)
    _, rest = train_into(job, run, home, resume=True)
    assert not [warning for warning in of(rest, "warning") if warning["code"] == "dataset_changed"]
    assert [values["step"] for values in of(rest, "step")] == list(range(stop + 1, total + 1))
    assert [values["loss"] for values in of(rest, "step")] == [values["loss"] for values in of(whole[1], "step")][stop:]
    assert of(rest, "validation") == of(whole[1], "validation")[2:]
    assert same(weights_of(whole[0]), weights_of(run))


def test_validation_images_do_not_change_the_training(shared: Path, tmp_path: Path) -> None:
    """The weights equal those of a run on a folder without these images."""
    home = Home(shared / "home")
    train_into(job_of(shared, validation_split=0.25, max_train_steps=2), tmp_path / "split", home)
    held = [record for record in records(tmp_path / "split" / "dataset.jsonl") if record["set"] == "held out"]
    assert len(held) == 1
    rest = dataset(tmp_path / "images")
    (rest / Path(held[0]["path"]).name).unlink()
    train_into(job_of(shared, rest, max_train_steps=2), tmp_path / "without", home)
    assert same(weights_of(tmp_path / "split"), weights_of(tmp_path / "without"))


class ZeroUNet(torch.nn.Module):
    """A UNet that predicts zeros and records its inputs."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        self.seen.append({"noisy": noisy, "t": t, "training": self.training, **given})
        return (torch.zeros_like(noisy),)


@pytest.fixture(scope="module")
def prepared(shared: Path) -> Run:
    return start(job_of(shared, **EVERYTHING, min_snr_gamma=3.0), shared / "run", Home(shared / "home"))


@pytest.fixture
def run(prepared: Run) -> Iterator[Run]:
    unet = prepared.base.unet
    prepared.base.unet = ZeroUNet()
    yield prepared
    prepared.base.unet, prepared.step, prepared.validation_losses = unet, 0, []


def weight(run: Run, t: int) -> float:
    kept = float(run.base.noise_scheduler.alphas_cumprod[t])
    return min(kept / (1 - kept), 3.0) / (kept / (1 - kept))


def test_the_validation_loss_uses_fixed_timesteps_and_noise(run: Run) -> None:
    """For a prediction of zeros it is the mean squared noise over images and timesteps, weighted as in training."""
    events: Events = []
    state = torch.get_rng_state()
    for step in (4, 9):
        run.step = step
        validate(run, 1, report=lambda event, /, **values: events.append((event, values)), should_stop=lambda: False)
    assert torch.equal(torch.get_rng_state(), state)
    expected = []
    for item in run.dataset.validation_items:
        for number, t in enumerate((125, 375, 625, 875)):
            shape = (4, item.placement.bucket[1] // 8, item.placement.bucket[0] // 8)
            noise = torch.randn(shape, generator=generator(42, "held-out noise", image_seed(item), number))
            mask = run.collator.latents.load_mask(item)
            expected.append(float((noise**2 * mask).mean() / mask.mean()) * weight(run, t))
    losses = [values["loss"] for values in of(events, "validation")]
    assert losses[0] == losses[1] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert [values["step"] for values in run.validation_losses] == [4, 9]
    unet: Any = run.base.unet
    assert not any(seen["training"] for seen in unet.seen)
    assert unet.training
    assert [int(seen["t"][0]) for seen in unet.seen][: len(TIMESTEP_FRACTIONS)] == [125, 375, 625, 875]


def test_a_stop_request_ends_the_validation(run: Run) -> None:
    validate(run, 1, report=lambda event, /, **values: None, should_stop=lambda: True)
    assert run.validation_losses == []


def test_losses_are_weighted_by_mask_and_set(run: Run) -> None:
    """For a prediction of zeros it is the squared noise within the mask, times the weights of set and timestep."""
    run.step = 7
    masked = next(item for item in run.dataset.epoch_items if item.mask is not None)
    prior = next(item for item in run.dataset.regularization if item.placement.bucket == (64, 64))
    losses = losses_of(run, [masked, prior], 3)
    for loss, item, sample in zip(losses, (masked, prior), (3, 4), strict=True):
        noise = draw_noise((4, 8, 8), 42, 7, sample, run.job.recipe.noise_offset)
        counted = noise[:, :4] if item is masked else noise
        expected = float((counted**2).mean()) * (0.5 if item is prior else 1.0)
        assert float(loss) == pytest.approx(expected * weight(run, draw_timestep(42, 7, sample, 1000)), rel=1e-4)
    unet: Any = run.base.unet
    assert unet.seen[0]["encoder_hidden_states"].shape == (2, 154, 40)


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_captions_jsonl_has_the_captions_that_were_used(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def recorded(*given: Any, **named: Any) -> str:
        used.append(training_caption(*given, **named))
        return used[-1]

    monkeypatch.setattr(collate, "training_caption", recorded)
    _, events = train_into(job_of(shared, **EVERYTHING | {"max_train_steps": 3}), tmp_path, Home(shared / "home"))
    recorded_samples = records(tmp_path / "captions.jsonl")
    assert 4 <= len(used) <= len(recorded_samples)
    assert [record["caption"] for record in recorded_samples][: len(used)] == used
    assert of(events, "captions")[0]["examples"] == used[:3]
    assert {record["weight"] for record in recorded_samples} == {0.5, 1.0}
    assert any(caption not in ("", "red, inkstamp, thing 0, small, on a table") for caption in used)
    assert all(caption.startswith("inkstamp") for caption in used if "on a table" in caption)


def test_warns_about_edited_images_and_captions_when_a_run_resumes(shared: Path, tmp_path: Path) -> None:
    home = Home(shared / "home")
    images = dataset(tmp_path / "images")
    job = job_of(shared, images, max_train_steps=2)
    train_into(job, tmp_path / "run", home, stop_after=1)
    Image.new("RGB", (64, 64), "red").save(images / "1.png")
    (images / "2.txt").write_text("inkstamp, other", "utf-8")
    _, events = train_into(job, tmp_path / "run", home, resume=True)
    (warning,) = of(events, "warning")
    assert warning["code"] == "dataset_changed"
    assert "1 edited (1.png)" in warning["message"]
    assert "(2.png)" in warning["message"]


def test_metadata_of_datasets_and_augmentation(prepared: Run) -> None:
    found = build_lora_metadata(
        prepared.job, prepared.dataset, prepared.counts, prepared.base, precision="fp32", started=1.0, epoch=1, step=1
    )
    assert {name: found[name] for name in found if name in EXPECTED_METADATA} == EXPECTED_METADATA
    assert json.loads(found["ss_reg_dataset_dirs"]) == {"1_thing": {"n_repeats": 2, "img_count": 2}}
    assert json.loads(found["ss_dataset_dirs"]) == {"images": {"n_repeats": 1, "img_count": 3}}
    buckets = json.loads(found["ss_bucket_info"])["buckets"]
    assert sum(bucket["count"] for bucket in buckets.values()) == prepared.counts.samples_per_epoch == 6


EXPECTED_METADATA = {
    "ss_num_train_images": "3",
    "ss_num_reg_images": "3",
    "ss_prior_loss_weight": "0.5",
    "ss_shuffle_caption": "True",
    "ss_keep_tokens": "0",
    "ss_caption_dropout_rate": "0.2",
    "ss_caption_tag_dropout_rate": "0.2",
    "ss_max_token_length": "150",
    "ss_flip_aug": "True",
    "ss_random_crop": "True",
    "ss_masked_loss": "True",
    "ss_validation_split": "0.25",
}
