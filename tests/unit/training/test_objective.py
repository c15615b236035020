"""The objective against the formulas of the papers, implemented again in this file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lora_studio.models.load import make_noise_scheduler
from lora_studio.settings.choices import HuberSchedule, LossType, TimestepSampling
from lora_studio.training.data.rng import generator
from lora_studio.training.objective import (
    adaptive_noise_offset,
    debiased_weights,
    draw_latent,
    draw_noise,
    draw_timestep,
    huber_thresholds,
    min_snr_weights,
    random_strength,
    sample_losses,
    signal_to_noise,
    timestep_weights,
    training_target,
)

Array = NDArray[np.float64]


def kept_signal() -> list[float]:
    """Return a_t of SDXL: the cumulative product of 1 - beta, with the square roots of the betas evenly spaced."""
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    kept, product = [], 1.0
    for t in range(1000):
        product *= 1 - (low + (high - low) * t / 999) ** 2
        kept.append(product)
    return kept


def test_signal_to_noise_ratio_of_sdxl() -> None:
    snr = signal_to_noise(make_noise_scheduler({}, "epsilon", False))
    for t in (0, 1, 500, 999):
        a = kept_signal()[t]
        assert float(snr[t]) == pytest.approx(a / (1 - a), rel=1e-4)


def test_zero_terminal_snr_rescales_the_schedule() -> None:
    snr = signal_to_noise(make_noise_scheduler({}, "v_prediction", True))
    roots = [math.sqrt(a) for a in kept_signal()]
    shifted = [(root - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for root in roots]
    for t in (0, 500, 998):
        a = shifted[t] ** 2
        assert float(snr[t]) == pytest.approx(a / (1 - a), rel=1e-3)
    assert float(snr[-1]) == pytest.approx(0, abs=1e-6)


def test_min_snr_hardly_trains_the_noisiest_timesteps_of_zero_terminal_snr() -> None:
    """The figures of planning's caution."""
    weights = min_snr_weights(signal_to_noise(make_noise_scheduler({}, "v_prediction", True)), 5.0, "v_prediction")
    assert float(weights[900:].sum() / weights.sum()) == pytest.approx(0.0003, rel=0.1)
    assert weights[-1] == 0


@pytest.mark.parametrize(("kind", "divisor"), [("epsilon", 0.0), ("v_prediction", 1.0)])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights(kind: str, divisor: float, gamma: float) -> None:
    snr = torch.tensor([0.01, 0.9, 4.99, 5.0, 20.0, 700.0])
    expected = [min(value, gamma) / (value + divisor) for value in snr.tolist()]
    assert min_snr_weights(snr, gamma, kind).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_weights_are_finite_at_zero_snr(kind: str) -> None:
    weights = min_snr_weights(signal_to_noise(make_noise_scheduler({}, kind, True)), 5.0, kind)
    assert weights.isfinite().all()
    assert float(weights.min()) >= 0
    assert float(weights[-1]) == (1.0 if kind == "epsilon" else pytest.approx(0.0, abs=1e-6))


@pytest.mark.parametrize("snr", [1e-6, 0.0047, 0.3, 1.0, 5.0, 20.0, 1175.0])
def test_debiased_losses_of_noise_and_v_are_equal(snr: float) -> None:
    """The same error, expressed as one of the noise and as one of v, must have the same loss."""
    a = snr / (snr + 1)
    clean, noise, wrong_v = np.random.default_rng(3).normal(size=(3, 1000))
    noisy = math.sqrt(a) * clean + math.sqrt(1 - a) * noise
    v = math.sqrt(a) * noise - math.sqrt(1 - a) * clean
    # the noise that v implies, given the noisy latents
    wrong_noise = math.sqrt(a) * wrong_v + math.sqrt(1 - a) * noisy
    weights = {kind: float(debiased_weights(torch.tensor(snr), kind)) for kind in ("epsilon", "v_prediction")}
    of_noise = ((wrong_noise - noise) ** 2).mean() / math.sqrt(snr)
    assert weights["v_prediction"] * ((wrong_v - v) ** 2).mean() == pytest.approx(of_noise, rel=1e-4)
    if snr > 1e-4:
        assert weights["epsilon"] == pytest.approx(1 / math.sqrt(snr), rel=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
@pytest.mark.parametrize("debiased", [False, True])
def test_weights_use_the_schedule_and_are_finite_at_every_timestep(
    kind: str, zero: bool, gamma: float, debiased: bool
) -> None:
    weights = timestep_weights(
        signal_to_noise(make_noise_scheduler({}, kind, zero)), kind, gamma=gamma, debiased=debiased
    )
    assert weights.shape == (1000,)
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    roots = [math.sqrt(a) for a in kept_signal()]
    if zero:
        roots = [(root - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for root in roots]
    for t in (0, 1, 500, 950):
        snr = roots[t] ** 2 / (1 - roots[t] ** 2)
        of_noise = (min(snr, gamma) / snr if gamma else 1) * (snr**-0.5 if debiased else 1)
        weighted = gamma or debiased
        expected = of_noise * snr / (snr + 1) if weighted and kind == "v_prediction" else of_noise
        assert float(weights[t]) == pytest.approx(expected, rel=2e-3)


def test_gamma_0_gives_all_timesteps_the_same_weight() -> None:
    assert min_snr_weights(torch.tensor([0.0, 3.0]), 0, "epsilon").tolist() == [1, 1]


def test_noise_offset_shifts_each_whole_channel() -> None:
    shape = (4, 32, 48)
    plain = draw_noise(shape, 7, 3, 1, 0.0)
    shift = draw_noise(shape, 7, 3, 1, 0.1) - plain
    per_channel = shift.flatten(1)
    assert torch.allclose(per_channel, per_channel[:, :1].expand_as(per_channel), atol=1e-6)
    assert len({round(value, 5) for value in per_channel[:, 0].tolist()}) == 4


def test_noise_offset_has_the_given_strength() -> None:
    shifts = [
        float((draw_noise((4, 2, 2), 7, step, 0, 0.1) - draw_noise((4, 2, 2), 7, step, 0, 0.0))[channel, 0, 0])
        for step in range(500)
        for channel in range(4)
    ]
    spread = torch.tensor(shifts)
    assert float(spread.std()) == pytest.approx(0.1, rel=0.08)
    assert float(spread.mean()) == pytest.approx(0, abs=0.01)


def test_an_adaptive_noise_offset_follows_the_mean_of_each_channel_and_is_never_negative() -> None:
    latents = torch.stack([torch.full((5, 3), mean) for mean in (0.0, 1.5, -2.0)])
    for scale, expected in ((0.01, [0.05, 0.065, 0.07]), (-0.03, [0.05, 0.005, 0.0])):
        offset = adaptive_noise_offset(0.05, scale, latents)
        assert offset.shape == (3, 1, 1)
        assert offset.flatten().tolist() == pytest.approx(expected, abs=1e-7)


def test_random_strengths_are_uniform_up_to_the_given_one() -> None:
    drawn = [random_strength(0.2, "noise offset", 3, step, 0) for step in range(500)]
    assert 0 <= min(drawn) < 0.01 < 0.19 < max(drawn) <= 0.2
    assert sum(drawn) / len(drawn) == pytest.approx(0.1, rel=0.08)
    assert drawn[:9] == [random_strength(0.2, "noise offset", 3, step, 0) for step in range(9)]


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


def test_uniform_timesteps_cover_the_range() -> None:
    drawn = [draw_timestep(5, step, sample, 1000) for step in range(500) for sample in range(4)]
    assert min(drawn) < 10
    assert max(drawn) in range(990, 1000)
    assert sum(drawn) / len(drawn) == pytest.approx(499.5, abs=25)


def test_every_sampling_stays_within_the_timestep_range() -> None:
    for sampling in TimestepSampling:
        drawn = [draw_timestep(5, step, 0, 700, begin=300, sampling=sampling) for step in range(300)]
        assert 300 <= min(drawn) <= max(drawn) < 700
        assert {draw_timestep(5, step, 0, 8, begin=7, sampling=sampling) for step in range(9)} == {7}
    first = [draw_timestep(5, step, 0, 1000) for step in range(20)]
    assert first == [int(torch.randint(1000, (1,), generator=generator(5, "timestep", step, 0))) for step in range(20)]


@pytest.mark.parametrize(
    ("sampling", "below"),
    [
        # the fraction of draws below each eighth of the range, from the cumulative distribution
        ("uniform", lambda x: x),
        ("logit_normal", lambda x: 0.5 + 0.5 * math.erf(math.log(x / (1 - x)) / math.sqrt(2))),
        ("low_noise", lambda x: x ** (1 / 3)),
        ("high_noise", lambda x: 1 - (1 - x) ** (1 / 3)),
    ],
)
def test_timesteps_have_the_distribution_of_their_sampling(sampling: str, below: Callable[[float], float]) -> None:
    drawn = np.array([draw_timestep(1, step, 0, 1000, sampling=TimestepSampling(sampling)) for step in range(3000)])
    for eighth in range(1, 8):
        assert (drawn < 125 * eighth).mean() == pytest.approx(below(eighth / 8), abs=0.03)


def test_multires_noise_is_the_sum_of_its_layers() -> None:
    """Compute it again with numpy: every layer upsampled bilinearly with half-pixel centres."""

    def enlarged(coarse: Array, length: int, axis: int) -> Array:
        place = np.clip((np.arange(length) + 0.5) * coarse.shape[axis] / length - 0.5, 0, None)
        low = place.astype(int)
        high = np.minimum(low + 1, coarse.shape[axis] - 1)
        shape = [1] * coarse.ndim
        shape[axis] = length
        share = (place - low).reshape(shape)
        return coarse.take(low, axis) * (1 - share) + coarse.take(high, axis) * share

    noise = draw_noise((4, 24, 40), 7, 3, 1, 0.05)
    found = draw_noise((4, 24, 40), 7, 3, 1, 0.05, multires_iterations=6, multires_discount=0.4)
    source = generator(7, "multires", 3, 1)
    expected = noise.double().numpy()
    for layer in range(6):
        ratio = (2 + 2 * float(torch.rand((), generator=source))) ** layer
        sides = max(1, int(24 / ratio)), max(1, int(40 / ratio))
        coarse = torch.randn((1, 4, *sides), generator=source)[0].double().numpy()
        expected = expected + 0.4**layer * enlarged(enlarged(coarse, 24, 1), 40, 2)
        if 1 in sides:
            break
    assert 0 < layer < 5
    expected /= expected.std(ddof=1)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)
    assert float(found.std()) == pytest.approx(1, abs=1e-5)


def test_multires_noise_has_more_low_frequencies() -> None:
    plain = torch.stack([draw_noise((4, 32, 32), 1, step, 0, 0) for step in range(100)])
    multires = torch.stack([draw_noise((4, 32, 32), 1, step, 0, 0, multires_iterations=6) for step in range(100)])
    spread = [float(noise.mean(dim=(2, 3)).std()) for noise in (plain, multires)]
    assert spread[0] == pytest.approx(1 / 32, rel=0.2)
    assert spread[1] > 1.5 * spread[0]


@pytest.mark.parametrize("zero", [False, True])
def test_huber_thresholds_are_those_of_the_paper(zero: bool) -> None:
    scheduler = make_noise_scheduler({}, "v_prediction", zero)
    found = {kind: huber_thresholds(scheduler, HuberSchedule(kind), 0.1).tolist() for kind in HuberSchedule}
    assert found["constant"] == pytest.approx([0.1] * 1000)
    assert found["exponential"] == pytest.approx([math.exp(math.log(0.1) / 1000 * t) for t in range(1000)], rel=1e-5)
    kept = scheduler.alphas_cumprod.double().numpy()
    with np.errstate(divide="ignore"):
        sigma = np.sqrt((1 - kept) / kept)
    assert found["snr"] == pytest.approx(0.9 / (1 + sigma) ** 2 + 0.1, rel=1e-5)
    assert all(0.1 <= value <= 1.0001 for values in found.values() for value in values)
    assert found["snr"][0] > 0.9
    assert found["snr"][-1] == pytest.approx(0.1, abs=1e-6 if zero else 5e-3)


@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_huber_losses_are_quadratic_for_small_errors_and_linear_for_large_ones(kind: str) -> None:
    prediction, target = torch.randn(2, 3, 4, 4, 5, generator=torch.Generator().manual_seed(1))
    c = torch.tensor([0.1, 0.5, 1.0])
    found = sample_losses(prediction, target, loss_type=LossType(kind), thresholds=c)
    for index, value in enumerate(c.tolist()):
        d = (prediction[index] - target[index]).double().numpy()
        expected = 2 * (np.sqrt(d**2 + value**2) - value) * (value if kind == "huber" else 1)
        assert float(found[index]) == pytest.approx(expected.mean(), rel=1e-5)
    one = torch.ones(1, 1, 1, 1)
    small, large = (
        float(sample_losses(size * one, 0 * one, loss_type=LossType(kind), thresholds=c[:1])) for size in (0.02, 50.0)
    )
    slope = 0.1 if kind == "huber" else 1.0
    assert small == pytest.approx(0.02**2 * slope / 0.1, rel=0.02)
    assert large == pytest.approx(2 * slope * (50 - 0.1), rel=0.001)


@pytest.mark.parametrize("kind", list(LossType))
def test_a_mask_weights_the_mean(kind: LossType) -> None:
    prediction, target = torch.randn(2, 4, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(4, 1, 6, 8, generator=torch.Generator().manual_seed(2))
    mask[0], mask[1] = 1, 0
    mask[2, :, :, :4], mask[2, :, :, 4:] = 0, 1
    options: dict[str, Any] = {"loss_type": kind, "thresholds": torch.full((4,), 0.3)}
    found = sample_losses(prediction, target, mask=mask, **options)
    plain = sample_losses(prediction, target, **options)
    assert float(found[0]) == pytest.approx(float(plain[0]), rel=1e-6)
    assert float(found[1]) == 0
    half = sample_losses(prediction[2:3, ..., 4:], target[2:3, ..., 4:], loss_type=kind, thresholds=torch.tensor([0.3]))
    assert float(found[2]) == pytest.approx(float(half), rel=1e-6)
    single = torch.stack(
        [
            sample_losses(prediction[3:, :, y : y + 1, x : x + 1], target[3:, :, y : y + 1, x : x + 1], loss_type=kind,
                          thresholds=torch.tensor([0.3]))
            for y in range(6) for x in range(8)
        ]
    )  # fmt: skip
    expected = np.average(single.flatten().numpy(), weights=mask[3].flatten().numpy())
    assert float(found[3]) == pytest.approx(float(expected), rel=1e-5)


def test_losses_are_mean_squares_per_sample_in_fp32() -> None:
    prediction = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]], dtype=torch.bfloat16)
    losses = sample_losses(prediction, torch.zeros(2, 1, 1, 2))
    assert losses.dtype == torch.float32
    assert losses.tolist() == [2.5, 0.0]
