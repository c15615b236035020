"""The objective against formulas that are written out here, from the papers."""

from __future__ import annotations

import math

import pytest
import torch

from lora_studio.training.base_models import make_noise_scheduler
from lora_studio.training.objective import (
    draw_latent,
    draw_noise,
    draw_timestep,
    min_snr_weights,
    sample_losses,
    signal_to_noise,
    training_target,
)
from lora_studio.training.rng import generator


def kept_signal() -> list[float]:
    """a_t of SDXL: the product of 1 - beta, betas whose roots are evenly spaced."""
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    kept, product = [], 1.0
    for t in range(1000):
        product *= 1 - (low + (high - low) * t / 999) ** 2
        kept.append(product)
    return kept


def test_signal_to_noise_is_that_of_sdxl() -> None:
    snr = signal_to_noise(make_noise_scheduler({}, "epsilon", False))
    for t in (0, 1, 500, 999):
        a = kept_signal()[t]
        assert float(snr[t]) == pytest.approx(a / (1 - a), rel=1e-4)


def test_zero_terminal_snr_is_the_schedule_that_is_used() -> None:
    snr = signal_to_noise(make_noise_scheduler({}, "v_prediction", True))
    roots = [math.sqrt(a) for a in kept_signal()]
    shifted = [(root - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for root in roots]
    for t in (0, 500, 998):
        a = shifted[t] ** 2
        assert float(snr[t]) == pytest.approx(a / (1 - a), rel=1e-3)
    assert float(snr[-1]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("kind", "divisor"), [("epsilon", 0.0), ("v_prediction", 1.0)])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights(kind: str, divisor: float, gamma: float) -> None:
    snr = torch.tensor([0.01, 0.9, 4.99, 5.0, 20.0, 700.0])
    expected = [min(value, gamma) / (value + divisor) for value in snr.tolist()]
    assert min_snr_weights(snr, gamma, kind).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_weights_are_finite_where_nothing_of_the_picture_is_left(kind: str) -> None:
    weights = min_snr_weights(signal_to_noise(make_noise_scheduler({}, kind, True)), 5.0, kind)
    assert weights.isfinite().all()
    assert float(weights.min()) >= 0
    assert float(weights[-1]) == (1.0 if kind == "epsilon" else pytest.approx(0.0, abs=1e-6))


def test_gamma_zero_weighs_all_timesteps_alike() -> None:
    assert min_snr_weights(torch.tensor([0.0, 3.0]), 0, "epsilon").tolist() == [1, 1]


def test_noise_offset_moves_each_channel_as_a_whole() -> None:
    shape = (4, 32, 48)
    plain = draw_noise(shape, 7, 3, 1, 0.0)
    shift = draw_noise(shape, 7, 3, 1, 0.1) - plain
    per_channel = shift.flatten(1)
    assert torch.allclose(per_channel, per_channel[:, :1].expand_as(per_channel), atol=1e-6)
    assert len({round(value, 5) for value in per_channel[:, 0].tolist()}) == 4


def test_noise_offset_has_the_strength_that_was_asked_for() -> None:
    shifts = [
        float((draw_noise((4, 2, 2), 7, step, 0, 0.1) - draw_noise((4, 2, 2), 7, step, 0, 0.0))[channel, 0, 0])
        for step in range(500)
        for channel in range(4)
    ]
    spread = torch.tensor(shifts)
    assert float(spread.std()) == pytest.approx(0.1, rel=0.08)
    assert float(spread.mean()) == pytest.approx(0, abs=0.01)


def test_targets_of_noise_and_v() -> None:
    scheduler = make_noise_scheduler({}, "v_prediction", False)
    clean, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    t = torch.tensor([17, 800])
    assert torch.equal(training_target(scheduler, "epsilon", clean, noise, t), noise)
    v = training_target(scheduler, "v_prediction", clean, noise, t)
    for index, step in enumerate(t.tolist()):
        a = kept_signal()[step]
        expected = math.sqrt(a) * noise[index] - math.sqrt(1 - a) * clean[index]
        assert torch.allclose(v[index], expected, atol=1e-5)


def test_latents_are_drawn_from_the_posterior() -> None:
    mean, logvar = torch.full((1, 100, 100), 3.0), torch.full((1, 100, 100), 2 * math.log(0.5))
    drawn = draw_latent(mean, logvar, 1, 2, 3)
    assert float(drawn.mean()) == pytest.approx(3, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.03)


def test_timesteps_cover_the_range_evenly() -> None:
    drawn = [draw_timestep(5, step, sample, 1000) for step in range(500) for sample in range(4)]
    assert min(drawn) < 10
    assert max(drawn) in range(990, 1000)
    assert sum(drawn) / len(drawn) == pytest.approx(499.5, abs=25)


def test_losses_are_means_of_squares_for_each_sample_in_fp32() -> None:
    prediction = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]], dtype=torch.bfloat16)
    losses = sample_losses(prediction, torch.zeros(2, 1, 1, 2))
    assert losses.dtype == torch.float32
    assert losses.tolist() == [2.5, 0.0]


def test_random_numbers_depend_on_what_they_are_for_alone() -> None:
    def draw(*key: int, seed: int = 1, purpose: str = "noise") -> float:
        return float(torch.rand(1, generator=generator(seed, purpose, *key)))

    assert draw(3, 4) == draw(3, 4)
    keys = [draw(3, 4), draw(4, 3), draw(34), draw(3, 4, seed=2), draw(3, 4, purpose="latent")]
    assert len(set(keys)) == len(keys)
