"""Samplers: each must reach the data of a model that predicts perfectly."""

from __future__ import annotations

from inspect import signature
from math import isfinite
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_studio.models.load import make_noise_scheduler
from lora_studio.models.samplers import SAMPLERS, make_scheduler
from lora_studio.settings.choices import Sampler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # thousands, of numpy's, in diffusers
PIXEL = 0.7  # the data: images that have this value everywhere
ZERO_SNR = [sampler for sampler in Sampler if sampler.supports_zero_snr]


class PerfectModel:
    """Samples with a model that knows the data; `zero_snr` is the base's zero terminal SNR."""

    def __init__(self, sampler: Sampler, prediction_type: str = "v_prediction", *, zero_snr: bool = False) -> None:
        self.noise_scheduler = make_noise_scheduler({}, prediction_type, zero_snr)
        base: Any = SimpleNamespace(noise_scheduler=self.noise_scheduler, zero_terminal_snr=zero_snr)
        self.scheduler: Any = make_scheduler(base, sampler)
        self.prediction_type = prediction_type
        self.options = {"generator": torch.Generator()} if sampler.value.endswith("_a") else {}

    def error(self, steps: int) -> float:
        """Return the maximum difference of a sample from the data."""
        self.scheduler.set_timesteps(steps)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            predicted = self.predict(self.scheduler.scale_model_input(x, t), float(t))
            x = self.scheduler.step(predicted, t, x, **self.options).prev_sample
        return float((x - PIXEL).abs().max())

    def predict(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """Return the noise or velocity at timestep t, whose log sigma is interpolated between whole ones."""
        cumprod = self.noise_scheduler.alphas_cumprod.double()
        log_sigmas = ((1 - cumprod) / cumprod.clamp_min(2**-24)).sqrt().log()
        below = int(t)
        above = min(below + 1, len(cumprod) - 1)
        sigma = torch.lerp(log_sigmas[below], log_sigmas[above], t - below).exp()
        signal, noise = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
        epsilon = (x - signal * PIXEL) / noise
        return (epsilon if self.prediction_type == "epsilon" else signal * epsilon - noise * PIXEL).float()


def test_every_sampler_has_a_class_and_a_name_of_its_own() -> None:
    assert SAMPLERS.keys() == set(Sampler)
    assert len({entry.title for entry in SAMPLERS.values()}) == len(Sampler)


@pytest.mark.parametrize("sampler", Sampler)
def test_every_sampler_reaches_the_data(sampler: Sampler) -> None:
    model = PerfectModel(sampler)
    assert isfinite(model.error(steps=1))
    assert model.error(steps=21) < 0.15


@pytest.mark.parametrize("sampler", [Sampler.EULER_A, Sampler.DDIM, Sampler.DPMSOLVER_PP])
def test_samplers_follow_the_prediction_type(sampler: Sampler) -> None:
    assert PerfectModel(sampler, "epsilon").error(steps=21) < 0.15


@pytest.mark.parametrize("sampler", ZERO_SNR)
def test_with_zero_terminal_snr_samplers_start_from_pure_noise_and_reach_the_data(sampler: Sampler) -> None:
    model = PerfectModel(sampler, zero_snr=True)
    assert model.error(steps=20) < 0.15
    assert float(model.scheduler.timesteps[0]) == 999


def test_the_other_samplers_ignore_rescaled_betas() -> None:
    accepted = {sampler: signature(entry.scheduler).parameters for sampler, entry in SAMPLERS.items()}
    assert [sampler for sampler in Sampler if "rescale_betas_zero_snr" in accepted[sampler]] == ZERO_SNR
