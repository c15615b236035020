"""The fixed-noise loss: fixed images, timesteps and noise, weighted as in training, beside that of the base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lora_studio.planning.evaluations import Evaluations
from lora_studio.training import validation
from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.augment import image_seed
from lora_studio.training.data.rng import generator
from lora_studio.training.progress import Progress, ValidationLoss
from lora_studio.training.trainer import Trainer
from lora_studio.training.validation import evaluations_of, measure_base, validate
from tests.support.augmented_runs import snr_weight
from tests.support.events import Events, append_to, ignore, of


def test_the_validation_loss_uses_fixed_timesteps_and_noise(zero_run: Trainer) -> None:
    """For a prediction of zeros it is the mean squared noise over images and timesteps, weighted as in training."""
    events: Events = []
    state = torch.get_rng_state()
    progress = Progress()
    for progress.step in (4, 9):
        validate(zero_run, progress, 1, report=append_to(events), should_stop=lambda: False)
    assert torch.equal(torch.get_rng_state(), state)
    expected, count = [], evaluations_of(zero_run).points
    (item,) = zero_run.dataset.validation_items
    times = [int((number + 0.5) / count * 1000) for number in range(count)]
    for number, t in enumerate(times):
        shape = (4, item.placement.bucket[1] // 8, item.placement.bucket[0] // 8)
        noise = torch.randn(shape, generator=generator(42, "fixed noise", image_seed(item), number))
        mask = zero_run.collator.latents.load_mask(item)
        expected.append(float((noise**2 * mask).mean() / mask.mean()) * snr_weight(zero_run, t))
    found = of(events, "validation")
    assert [values["split"] for values in found] == ["validation"] * 2
    losses = [values["loss"] for values in found]
    assert losses[0] == losses[1] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert [values["base_loss"] for values in found] == losses
    assert [entry.step for entry in progress.validation_losses] == [4, 9]
    unet: Any = zero_run.base.unet
    assert not any(seen["training"] for seen in unet.seen)
    assert unet.training
    assert sorted({int(t) for seen in unet.seen for t in seen["t"]}) == times


def test_without_a_validation_split_it_is_that_of_training_images(
    zero_run: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: Events = []
    monkeypatch.setattr(zero_run.collator, "dataset", replace(zero_run.dataset, validation_items=[]))
    validate(zero_run, Progress(), 0, report=append_to(events), should_stop=lambda: False)
    (found,) = of(events, "validation")
    assert (found["split"], found["step"]) == ("training", 0)
    assert found["loss"] == found["base_loss"] > 0


def test_the_base_is_measured_without_the_lora(augmented_run: Trainer) -> None:
    """Also after steps, and the LoRA is back afterwards. Its base measures the same as before the first step."""
    before = Progress()
    validate(augmented_run, before, 0, report=ignore, should_stop=lambda: False)
    untrained = {name: weight.clone() for name, weight in augmented_run.adapters.state().items()}
    augmented_run.adapters.load_state({name: weight + 0.2 for name, weight in untrained.items()})
    try:
        after = Progress(step=3)
        for _ in range(2):
            validate(augmented_run, after, 1, report=ignore, should_stop=lambda: False)
    finally:
        augmented_run.adapters.load_state(untrained)
    (first,), (second, third) = before.validation_losses, after.validation_losses
    assert first.loss == first.base_loss == pytest.approx(second.base_loss, rel=1e-6)
    assert second.base_loss == third.base_loss
    assert second.loss == third.loss != first.loss


def test_a_longer_continuation_keeps_the_points(zero_run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress()
    validate(zero_run, progress, 1, report=ignore, should_stop=lambda: False)
    monkeypatch.setattr(validation, "evaluations_of", lambda trainer: Evaluations(24, 20, 1))
    validate(zero_run, progress, 2, report=ignore, should_stop=lambda: False)
    first, second = progress.validation_losses
    assert (first.loss, first.points) == (second.loss, second.points)


def test_losses_of_earlier_versions_are_not_compared_with_new_ones(zero_run: Trainer) -> None:
    progress = Progress(step=4, validation_losses=[ValidationLoss(step=0, epoch=0, loss=0.1)])
    validate(zero_run, progress, 1, report=ignore, should_stop=lambda: False)
    assert [entry.step for entry in progress.validation_losses] == [4]


class LossesWithout64Bits(torch.Tensor):
    """Losses on a device that has no 64-bit numbers, like MPS."""

    def double(self, *given: Any, **named: Any) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self, *given: Any, **named: Any) -> torch.Tensor:
        return torch.Tensor.cpu(self).as_subclass(torch.Tensor)


def test_devices_without_64_bit_numbers_can_validate(zero_run: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, progress = torch.ones(1).as_subclass(LossesWithout64Bits), Progress()
    monkeypatch.setattr(BatchLoss, "__call__", lambda self, batch: losses.expand(len(batch)))
    validate(zero_run, progress, 1, report=ignore, should_stop=lambda: False)
    assert [entry.loss for entry in progress.validation_losses] == [1.0]


def test_a_stop_request_ends_the_evaluations(zero_run: Trainer) -> None:
    progress, events = Progress(), Events()
    validate(zero_run, progress, 1, report=append_to(events), should_stop=lambda: True)
    measure_base(zero_run, progress, report=append_to(events), should_stop=lambda: True)
    assert progress.validation_losses == []
    assert progress.base_losses is None
    assert {name for name, _ in events} == {"phase"}


def test_the_base_s_loss_is_the_expected_one_at_each_timestep(zero_run: Trainer) -> None:
    """For a prediction of zeros that is the Min-SNR weight, up to the noise of few evaluations."""
    progress, events = Progress(), Events()
    measure_base(zero_run, progress, report=append_to(events), should_stop=lambda: False)
    (found,) = of(events, "base_loss")
    # zeros have the error of a base that is trained with the wrong prediction type
    assert [values["code"] for values in of(events, "warning")] == ["base_loss_high"]
    assert progress.base_losses is not None
    assert (found["timesteps"], found["losses"]) == (progress.base_losses.timesteps, progress.base_losses.losses)
    assert found["evaluations"] == evaluations_of(zero_run).base_points
    for t, loss in zip(found["timesteps"], found["losses"], strict=True):
        assert loss == pytest.approx(snr_weight(zero_run, t), rel=0.35)
    assert min(found["losses"]) < found["loss"] < max(found["losses"])


def test_running_out_of_memory_leaves_the_base_s_loss_unknown(
    zero_run: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(validation, "evaluate", fail)
    progress, events = Progress(), Events()
    measure_base(zero_run, progress, report=append_to(events), should_stop=lambda: False)
    assert progress.base_losses is None
    assert [values["code"] for values in of(events, "warning")] == ["base_loss_out_of_memory"]
