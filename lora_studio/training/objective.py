"""What the UNet is trained to predict, and how much each timestep counts.

Noise schedule of Ho et al. 2020 (arXiv:2006.11239): x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, with a_t the cumulative
product of 1 - beta. The signal-to-noise ratio is a_t / (1 - a_t).
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lora_studio.training.rng import generator


def draw_timestep(seed: int, step: int, sample: int, total: int) -> int:
    """A timestep, uniform in 0..total-1, for one sample of one step."""
    return int(torch.randint(total, (1,), generator=generator(seed, "timestep", step, sample)))


def draw_noise(shape: tuple[int, ...], seed: int, step: int, sample: int, noise_offset: float) -> Tensor:
    """Standard normal noise [C, H, W] of one sample, with the offset that lets a model learn dark and bright pictures.

    Noise offset (N. Guttenberg, "Diffusion with Offset Noise", 2023): each channel gets one more normal number, times
    `noise_offset`, over its whole area.
    """
    source = generator(seed, "noise", step, sample)
    noise = torch.randn(shape, generator=source)
    if noise_offset:
        noise = noise + noise_offset * torch.randn((shape[0], 1, 1), generator=source)
    return noise


def draw_latent(mean: Tensor, logvar: Tensor, seed: int, step: int, sample: int) -> Tensor:
    """A fresh sample of the VAE's posterior N(mean, exp(logvar)), so that no single draw is learned by heart."""
    return mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator(seed, "latent", step, sample))


def training_target(
    scheduler: DDPMScheduler, prediction_type: str, latents: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """What the UNet should answer [B, C, H, W]: the noise, or v = sqrt(a_t) e - sqrt(1 - a_t) x_0.

    v-prediction: Salimans and Ho 2022 (arXiv:2202.00512).
    """
    if prediction_type == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, noise, t)
        return velocity
    return noise


def signal_to_noise(scheduler: DDPMScheduler) -> Tensor:
    """SNR [T] of the schedule that is really used: 0 at the last timestep if its terminal SNR is zero."""
    kept: Tensor = scheduler.alphas_cumprod.double()
    return (kept / (1 - kept)).float()


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Weights of the loss, of the shape of `snr`; 1 everywhere for gamma 0. Finite for every SNR, 0 included.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv:2303.09556), in the loss that
    is used here: min(snr, gamma) / snr for noise, min(snr, gamma) / (snr + 1) for v.
    """
    if not gamma:
        return torch.ones_like(snr)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def sample_losses(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample: [B, C, H, W] -> [B], in fp32.

    Where `mask` [B, 1, H, W] in 0..1 is given, each place counts as much as it says, and the mean is over what counts,
    so that a small subject is learned as fast as a large one; a mask of zeros gives 0.
    """
    errors = (prediction.float() - target.float()).square()
    if mask is None:
        return errors.mean(dim=(1, 2, 3))
    shares = mask.float().expand_as(errors)
    return (errors * shares).sum(dim=(1, 2, 3)) / shares.sum(dim=(1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
