"""Collating batches: they depend on the step single, and the forward pass never waits for the device."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_studio.errors import JobError
from lora_studio.events import Event, ValidationEvent
from lora_studio.models.load import Base, load_base
from lora_studio.settings.choices import LossType
from lora_studio.training import build
from lora_studio.training.data.batch import BatchTensors, StepBatches
from lora_studio.training.data.prefetch import PREFETCH_DEPTH, Prefetch, prefetch_depth
from lora_studio.training.distributed import SINGLE_PROCESS, RankGroup
from lora_studio.training.loop import train_loop
from lora_studio.training.preflight import PreflightResult, preflight
from lora_studio.training.progress import Progress
from lora_studio.training.resume_state import load_state
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.augmented_runs import ZeroUNet
from tests.support.tiny_sdxl import save_tiny_sdxl
from tests.support.training_runs import make_images, make_job, same, start

META = torch.device("meta")
EVERYTHING: dict[str, Any] = {
    "loss_type": "huber",
    "masked_loss": "files",
    "flip_aug": True,
    "shuffle_caption": True,
    "caption_dropout_rate": 0.2,
    "multires_noise_iterations": 3,
    "batch_size": 3,
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder / "images", [(64, 64), (32, 64), (64, 64), (64, 64)])
    Image.linear_gradient("L").resize((64, 64)).save(folder / "images" / "0-masklabel.png")
    save_tiny_sdxl(folder / "base", layers=1)
    return folder


def job_of(shared: Path, **changes: Any) -> Any:
    return make_job(shared / "base", shared / "images", **changes)


@pytest.fixture(scope="module")
def trainer(shared: Path) -> Trainer:
    return start(job_of(shared, **EVERYTHING), shared / "run", Home(shared / "home"))


@pytest.fixture
def single(trainer: Trainer) -> Iterator[Trainer]:
    yield trainer
    trainer.collator.ranks = SINGLE_PROCESS


def values(inputs: StepBatches) -> dict[str, torch.Tensor]:
    return {f"{first} {name}": value for first, batch in inputs.batches for name, value in batch.tensors.items()}


def test_outside_of_a_mask_the_loss_has_the_unmasked_weight(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.recipe, "loss_type", LossType.L2)
    monkeypatch.setattr(trainer.base, "unet", ZeroUNet())
    item = trainer.dataset.items[0]
    mask = trainer.collator.latents.load_mask(item)  # from black at the top to white at the bottom
    assert (float(mask.min()) < 0.1, float(mask.max()) > 0.9) == (True, True)
    for weight in (0.0, 0.25):
        monkeypatch.setattr(trainer.recipe, "unmasked_weight", weight)
        batch = trainer.collator.collate(0, [item], 0, 1)
        weights = mask.clamp(min=weight)
        expected = (batch.target.square() * weights).sum() / weights.sum() / 4 * batch.weights
        assert float(trainer.batch_loss(batch)) == pytest.approx(float(expected), rel=1e-5)


def test_images_of_a_step_do_not_depend_on_the_epoch_that_another_thread_collates(
    single: Trainer,
) -> None:
    """A prefetching thread is up to an epoch ahead; each epoch's order is drawn once nevertheless."""
    collator, per_epoch = single.collator, single.counts.steps_per_epoch
    first, second = range(per_epoch), range(per_epoch, 2 * per_epoch)
    expected = {step: [str(item.path) for batch in collator.batches(step) for item in batch] for step in first}
    drawn = collator.batches(second[0])
    for step, ahead in zip(first, second, strict=True):
        collator.batches(ahead)
        assert collator.images(step) == expected[step]
    assert collator.batches(second[0]) is drawn
    assert sorted(name for step in first for name in expected[step]) == sorted(
        str(item.path) for item in collator.dataset.items
    )


def test_batches_depend_on_the_step_alone(single: Trainer) -> None:
    steps = [values(single.collator.collate_step(step)) for step in range(4)]
    torch.manual_seed(5)
    again = {step: values(single.collator.collate_step(step)) for step in (3, 0, 2, 1)}
    assert all(same(again[step], steps[step]) for step in again)
    assert not same(steps[0], steps[2])
    names = {name.split()[1] for name in steps[0]}
    assert names == {
        "noisy",
        "target",
        "t",
        "time_ids",
        "weights",
        "sample_count",
        "hidden",
        "pooled",
        "thresholds",
        "masks",
    }


def test_ranks_share_the_batches_of_a_step(single: Trainer) -> None:
    """Two of them have what one has single, each under the numbers of its samples."""
    step = next(step for step in range(4) if single.collator.collate_step(step).sample_count == 3)
    ((_, whole),) = single.collator.collate_step(step).batches
    parts: list[tuple[int, BatchTensors]] = []
    for rank in (0, 1):
        single.collator.ranks = RankGroup(rank, 2)
        inputs = single.collator.collate_step(step)
        assert inputs.sample_count == 3
        parts += inputs.batches
    assert [(first, len(part.t)) for first, part in parts] == [(0, 1), (1, 2)]
    assert [float(part.sample_count) for _, part in parts] == [3, 3]
    samples = {name: value for name, value in whole.tensors.items() if name != "sample_count"}
    assert same({name: torch.cat([part.tensors[name] for _, part in parts]) for name in samples}, samples)


def on_meta(shared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Trainer:
    """Return a run on the meta device, which has shapes and no values; its caches must be full."""

    def preflight_on_meta(*given: Any, **more: Any) -> PreflightResult:
        return replace(preflight(*given, **more), device=META)

    monkeypatch.setattr("tests.support.training_runs.preflight", preflight_on_meta)
    return start(job_of(shared, **changes), folder / "meta", Home(shared / "home"))


def test_with_full_caches_only_the_unet_is_on_the_device_and_the_loss_does_not_synchronise(
    single: Trainer, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a value from the meta device, or moving the VAE there and back, would raise."""
    encoders: list[weakref.ref[Any]] = []

    def load(*given: Any, **more: Any) -> Base:
        base = load_base(*given, **more)
        encoders.extend(weakref.ref(encoder) for encoder in base.text_encoders)
        return base

    monkeypatch.setattr(build, "load_base", load)
    trainer = on_meta(shared, tmp_path, monkeypatch, **EVERYTHING)
    assert {weight.device for weight in trainer.base.unet.parameters()} == {META}
    assert {weight.device for weight in trainer.base.vae.parameters()} == {torch.device("cpu")}
    assert [encoder() for encoder in encoders] == [None, None]
    ((_, batch),) = trainer.collator.collate_step(0).batches
    assert {value.device.type for value in batch.tensors.values()} == {"cpu"}
    losses = trainer.batch_loss(batch.to(META))
    assert (losses.shape, losses.device) == (batch.t.shape, META)
    losses.sum().backward()
    trainer.weights.accumulate_gradients()
    assert {gradient.device for gradient in trainer.weights.gradients} == {META}


def test_the_loss_does_not_synchronise_with_trained_text_encoders(
    single: Trainer, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = on_meta(shared, tmp_path, monkeypatch, text_encoder_lr=1e-3, max_token_length=150)
    ((_, batch),) = trainer.collator.collate_step(0).batches
    assert batch.tokens is not None
    assert batch.tokens.shape == (2, len(batch.t), 2, 77)
    assert trainer.batch_loss(batch.to(META)).device == META


def test_a_missing_cache_file_ends_the_run_in_the_step_that_needs_it(shared: Path, tmp_path: Path) -> None:
    plain = start(job_of(shared, batch_size=1), tmp_path / "run", Home(tmp_path / "home"))
    trainer = replace(plain, prefetch=Prefetch(PREFETCH_DEPTH))
    needed = trainer.collator.latents.file(trainer.collator.batches(2)[0][0])

    def report(event: Event) -> None:
        if isinstance(event, ValidationEvent):  # before the first step; it reads every image
            needed.unlink(missing_ok=True)

    JobFolder(trainer.folder).path.mkdir(exist_ok=True)
    progress = Progress()
    with pytest.raises(JobError) as caught:
        train_loop(trainer, progress, report=report, should_stop=lambda: False)
    assert caught.value.code == "cache_gone"
    state = load_state(trainer.folder / "checkpoints" / "state", on_damage=print)
    assert state is not None
    assert progress.step == state.progress.step == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_steps_are_prefetched_unless_the_device_is_a_cpu() -> None:
    assert [prefetch_depth(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [
        0,
        PREFETCH_DEPTH,
        PREFETCH_DEPTH,
    ]


def collated(trainer: Trainer, **recipe: Any) -> tuple[BatchTensors, torch.Tensor]:
    """Return the first batch of step 0 under a changed recipe, and sqrt(1 - a_t) of its samples [B, 1, 1, 1]."""
    job = trainer.job.model_copy(update={"recipe": trainer.recipe.model_copy(update=recipe)})
    ((_, batch),) = replace(trainer.collator, job=job).collate_step(0).batches[:1]
    kept = trainer.base.noise_scheduler.alphas_cumprod[batch.t]
    return batch, (1 - kept).sqrt().view(-1, 1, 1, 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_input_perturbation_is_in_the_input_and_not_in_the_target(single: Trainer, prediction: str) -> None:
    single.collator.prediction_type = prediction
    plain, noise_scale = collated(single)
    perturbed, _ = collated(single, ip_noise_gamma=0.1)
    scaled, _ = collated(single, ip_noise_gamma=0.1, ip_noise_gamma_random_strength=True)
    single.collator.prediction_type = "epsilon"
    assert torch.equal(perturbed.target, plain.target)
    assert torch.equal(scaled.target, plain.target)
    added = (perturbed.noisy - plain.noisy) / noise_scale
    assert float(added.std()) == pytest.approx(0.1, rel=0.1)
    assert abs(float((added * plain.target).mean())) < 0.02
    strengths = ((scaled.noisy - plain.noisy) / noise_scale / added).mean(dim=(1, 2, 3))
    assert ((strengths > 0) & (strengths < 1)).all()
    assert len({round(float(strength), 3) for strength in strengths}) == len(strengths)


def test_noise_offset_is_random_and_adapts_to_the_latents_mean(single: Trainer) -> None:
    off = {"multires_noise_iterations": 0}
    plain, _ = collated(single, **off, noise_offset=0)
    whole, _ = collated(single, **off, noise_offset=0.1)
    drawn, noise_scale = collated(single, **off, noise_offset=0.1, noise_offset_random_strength=True)
    adaptive, _ = collated(single, **off, noise_offset=0.1, adaptive_noise_scale=0.5)
    shift = (whole.target - plain.target).mean(dim=(2, 3))  # 0.1 times one normal number per channel
    ratios = (drawn.target - plain.target).mean(dim=(2, 3)) / shift
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios), rtol=1e-3, atol=1e-4)
    assert ((ratios > 0) & (ratios < 1)).all()
    assert len({round(float(ratio), 3) for ratio in ratios[:, 0]}) == len(ratios)
    kept = (1 - noise_scale.square()).sqrt()
    latents = (plain.noisy - noise_scale * plain.target) / kept
    grown = (adaptive.target - plain.target).mean(dim=(2, 3)) / shift
    expected = 1 + 5 * latents.mean(dim=(2, 3)).abs()
    torch.testing.assert_close(grown, expected, rtol=1e-2, atol=1e-2)
