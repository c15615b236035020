"""Runs with everything that a dataset may bring: regularisation and held-out sets, masks, views, changing captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_studio.config import TrainJob
from lora_studio.errors import ConfigError, InputError
from lora_studio.project import Home
from lora_studio.training.loop import Run
from lora_studio.training.loss import batch_losses
from lora_studio.training.metadata import describe_lora
from lora_studio.training.objective import draw_noise, draw_timestep
from lora_studio.training.rng import generator
from lora_studio.training.validation import SHARES, validate
from lora_studio.training.views import image_number
from tests.tiny_sdxl import save_tiny_sdxl
from tests.training_runs import Events, make_images, make_job, of, same, start, train_into, weights_of

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
    "validation_split": 0.2,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a dataset of five images with captions of several tags, one mask, and a regularisation set."""
    folder = tmp_path_factory.mktemp("shared")
    save_tiny_sdxl(folder / "base", layers=1)
    dataset(folder / "images")
    make_images(folder / "prior" / "1_thing", [(64, 64), (70, 64)])
    return folder


def dataset(folder: Path) -> Path:
    make_images(folder, [(64, 64), (64, 64), (100, 64), (64, 64), (100, 64)])
    for index in range(5):
        (folder / f"{index}.txt").write_text(f"red, inkstamp, thing {index}, small, on a table", "utf-8")
    half = np.zeros((64, 64), np.uint8)
    half[:32] = 255
    Image.fromarray(half).save(folder / "0-masklabel.png")
    return folder


def job_of(shared: Path, images: Path | None = None, **recipe: Any) -> TrainJob:
    job = make_job(shared / "base", images or shared / "images", **recipe)
    job.regularization = shared / "prior"
    return job


@pytest.mark.parametrize("text_encoder_lr", [0.0, 5e-4])
def test_a_run_with_everything_resumes_with_the_same_bits(shared: Path, tmp_path: Path, text_encoder_lr: float) -> None:
    home = Home(shared / "home")
    job = job_of(shared, **EVERYTHING, text_encoder_lr=text_encoder_lr)
    result, events = train_into(job, tmp_path / "whole", home)
    measured = of(events, "validation")
    assert [values["epoch"] for values in measured] == [0, 1, 2]
    assert [values["step"] for values in measured] == [0, result.steps // 2, result.steps]
    stop = result.steps // 2 + 1
    train_into(job, tmp_path / "halves", home, stop_after=stop)
    _, rest = train_into(job, tmp_path / "halves", home, resume=True)
    assert [values["step"] for values in of(rest, "step")] == list(range(stop + 1, result.steps + 1))
    assert of(rest, "validation") == measured[2:]
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "halves"))
    assert [values["loss"] for values in of(events, "step")][stop:] == [values["loss"] for values in of(rest, "step")]


def test_held_out_images_change_nothing_about_training(shared: Path, tmp_path: Path) -> None:
    """Weights are those of a run on a folder without them."""
    home = Home(shared / "home")
    train_into(job_of(shared, validation_split=0.2, epochs=1), tmp_path / "split", home)
    held = [record for record in records(tmp_path / "split" / "dataset.jsonl") if record["set"] == "held out"]
    assert len(held) == 1
    rest = dataset(tmp_path / "images")
    (rest / Path(held[0]["path"]).name).unlink()
    train_into(job_of(shared, rest, epochs=1), tmp_path / "without", home)
    assert same(weights_of(tmp_path / "split"), weights_of(tmp_path / "without"))


class Zeros(torch.nn.Module):
    """A UNet that answers zeros and keeps what it was given."""

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
    prepared.base.unet = Zeros()
    yield prepared
    prepared.base.unet, prepared.step, prepared.held_out = unet, 0, []


def weight(run: Run, t: int) -> float:
    kept = float(run.base.noise_scheduler.alphas_cumprod[t])
    return min(kept / (1 - kept), 3.0) / (kept / (1 - kept))


def test_the_held_out_loss_is_measured_at_fixed_timesteps_with_fixed_noise(run: Run) -> None:
    """For an answer of zeros it is the mean of squared noise over images and timesteps, weighted as in training."""
    events: Events = []
    state = torch.get_rng_state()
    for step in (4, 9):
        run.step = step
        validate(run, 1, report=lambda event, /, **values: events.append((event, values)), should_stop=lambda: False)
    assert torch.equal(torch.get_rng_state(), state)
    expected = []
    for item in run.dataset.held_out:
        for number, t in enumerate((125, 375, 625, 875)):
            shape = (4, item.placement.bucket[1] // 8, item.placement.bucket[0] // 8)
            noise = torch.randn(shape, generator=generator(42, "held-out noise", image_number(item), number))
            mask = run.latents.load_mask(item)
            expected.append(float((noise**2 * mask).mean()) * weight(run, t))
    losses = [values["loss"] for values in of(events, "validation")]
    assert losses[0] == losses[1] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert [values["step"] for values in run.held_out] == [4, 9]
    unet: Any = run.base.unet
    assert not any(seen["training"] for seen in unet.seen)
    assert unet.training
    assert [int(seen["t"][0]) for seen in unet.seen][: len(SHARES)] == [125, 375, 625, 875]


def test_a_stop_ends_the_measuring(run: Run) -> None:
    validate(run, 1, report=lambda event, /, **values: None, should_stop=lambda: True)
    assert run.held_out == []


def test_samples_count_by_their_mask_and_set(run: Run) -> None:
    """For an answer of zeros: squared noise where the mask is white, times the weight of the set and of the timestep."""
    run.step = 7
    masked = next(item for item in run.dataset.samples if item.mask is not None)
    prior = next(item for item in run.dataset.regularization if item.placement.bucket == (64, 64))
    losses = batch_losses(run, [masked, prior], 3)
    for loss, item, sample in zip(losses, (masked, prior), (3, 4), strict=True):
        noise = draw_noise((4, 8, 8), 42, 7, sample, run.job.recipe.noise_offset)
        counted = noise[:, :4] if item is masked else noise
        share = 0.5 if item is masked else 1.0
        expected = float((counted**2).mean()) * share * (0.5 if item is prior else 1.0)
        assert float(loss) == pytest.approx(expected * weight(run, draw_timestep(42, 7, sample, 1000)), rel=1e-4)
    unet: Any = run.base.unet
    assert unet.seen[0]["encoder_hidden_states"].shape == (2, 154, 40)


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_the_run_folder_tells_the_captions_that_were_used(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    real = Run.encode

    def encode(run: Run, captions: Any) -> Any:
        used.extend(captions if run.base.unet.training else [])
        return real(run, captions)

    monkeypatch.setattr(Run, "encode", encode)
    _, events = train_into(job_of(shared, **EVERYTHING | {"epochs": 1}), tmp_path, Home(shared / "home"))
    told = records(tmp_path / "captions.jsonl")
    assert [record["caption"] for record in told] == used
    assert of(events, "captions")[0]["examples"] == used[:3]
    assert {record["weight"] for record in told} == {0.5, 1.0}
    assert any(caption not in ("", "red, inkstamp, thing 0, small, on a table") for caption in used)
    assert all(caption.startswith("inkstamp") for caption in used if "on a table" in caption)


def test_images_that_vanish_or_change_in_the_middle_do_no_harm(shared: Path, tmp_path: Path) -> None:
    """What a run trains on was encoded before its first step; resuming it tells what is not as it was."""
    home = Home(tmp_path / "home")
    images = dataset(tmp_path / "images")
    job = job_of(shared, images, epochs=2)
    result, _ = train_into(job, tmp_path / "whole", home)
    steps: list[int] = []

    def meddle() -> bool:
        if len(steps) == 1:
            (images / "1.png").unlink()
            (images / "3.png").write_text("no picture", "utf-8")
        steps.append(1)
        return len(steps) > result.steps // 2

    first, _ = _train(job, tmp_path / "meddled", home, meddle)
    assert first.stopped
    with pytest.raises(ConfigError, match=r"3\.png"):
        train_into(job, tmp_path / "meddled", home, resume=True)
    (images / "3.png").unlink()
    with pytest.raises(InputError, match=r"2 gone \(1\.png, 3\.png\).*steps now instead of") as caught:
        train_into(job, tmp_path / "meddled", home, resume=True)
    assert caught.value.code == "dataset_changed"
    dataset(images)
    last, events = train_into(job, tmp_path / "meddled", home, resume=True)
    assert not of(events, "warning")
    assert last.steps == result.steps
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "meddled"))


def test_an_edited_image_is_told_when_a_run_resumes(shared: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    images = dataset(tmp_path / "images")
    job = job_of(shared, images, epochs=1)
    train_into(job, tmp_path / "run", home, stop_after=1)
    Image.new("RGB", (64, 64), "red").save(images / "1.png")
    (images / "2.txt").write_text("inkstamp, other", "utf-8")
    _, events = train_into(job, tmp_path / "run", home, resume=True)
    (warning,) = of(events, "warning")
    assert warning["code"] == "dataset_changed"
    assert "1 edited (1.png), 1 captioned anew (2.png)" in warning["message"]


def _train(job: TrainJob, folder: Path, home: Home, should_stop: Any) -> Any:
    from lora_studio.runs import JobFolder
    from lora_studio.training.train import train

    events: Events = []
    result = train(
        job,
        JobFolder(folder),
        home=home,
        report=lambda event, /, **values: events.append((event, values)),
        should_stop=should_stop,
    )
    return result, events


def test_the_metadata_tell_what_was_done(prepared: Run) -> None:
    found = describe_lora(
        prepared.job, prepared.dataset, prepared.counts, prepared.base, precision="fp32", started=1.0, epoch=1, step=1
    )
    assert {name: found[name] for name in found if name in TOLD} == TOLD
    assert json.loads(found["ss_reg_dataset_dirs"]) == {"1_thing": {"n_repeats": 2, "img_count": 2}}
    buckets = json.loads(found["ss_bucket_info"])["buckets"]
    assert sum(bucket["count"] for bucket in buckets.values()) == prepared.counts.samples_per_epoch == 8


TOLD = {
    "ss_num_train_images": "4",
    "ss_num_reg_images": "4",
    "ss_prior_loss_weight": "0.5",
    "ss_shuffle_caption": "True",
    "ss_keep_tokens": "0",
    "ss_caption_dropout_rate": "0.2",
    "ss_caption_tag_dropout_rate": "0.2",
    "ss_max_token_length": "150",
    "ss_flip_aug": "True",
    "ss_random_crop": "True",
    "ss_masked_loss": "True",
    "ss_validation_split": "0.2",
}
