"""The validation loss: fixed timesteps and noise, weighted as in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_studio.training.batch_loss import BatchLoss
from lora_studio.training.data.augment import image_seed
from lora_studio.training.data.rng import generator
from lora_studio.training.progress import Progress
from lora_studio.training.trainer import Trainer
from lora_studio.training.validation import TIMESTEP_FRACTIONS, validate
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
    expected = []
    for item in zero_run.dataset.validation_items:
        for number, t in enumerate((125, 375, 625, 875)):
            shape = (4, item.placement.bucket[1] // 8, item.placement.bucket[0] // 8)
            noise = torch.randn(shape, generator=generator(42, "held-out noise", image_seed(item), number))
            mask = zero_run.collator.latents.load_mask(item)
            expected.append(float((noise**2 * mask).mean() / mask.mean()) * snr_weight(zero_run, t))
    losses = [values["loss"] for values in of(events, "validation")]
    assert losses[0] == losses[1] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert [entry.step for entry in progress.validation_losses] == [4, 9]
    unet: Any = zero_run.base.unet
    assert not any(seen["training"] for seen in unet.seen)
    assert unet.training
    assert [int(seen["t"][0]) for seen in unet.seen][: len(TIMESTEP_FRACTIONS)] == [125, 375, 625, 875]


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


def test_a_stop_request_ends_the_validation(zero_run: Trainer) -> None:
    progress = Progress()
    validate(zero_run, progress, 1, report=ignore, should_stop=lambda: True)
    assert progress.validation_losses == []
