"""The training objective: timesteps, noise, target, loss and loss weights.

Noise schedule of Ho et al. 2020 (arXiv:2006.11239): x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, with a_t the cumulative
product of 1 - beta. The signal-to-noise ratio is a_t / (1 - a_t).
"""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from lora_studio.settings.choices import HuberSchedule, LossType, TimestepSampling
from lora_studio.training.data.rng import generator

MIN_SNR = 1e-4  # below the SNR of every timestep except pure noise, where 1 / sqrt(snr) is infinite


def draw_timestep(
    seed: int,
    step: int,
    sample: int,
    end: int,
    *,
    begin: int = 0,
    sampling: TimestepSampling = TimestepSampling.UNIFORM,
) -> int:
    """Draw a timestep in begin..end-1 for one sample of one step.

    `logit_normal` takes the logistic function of a normal number as the position in the range, mostly in its middle
    (Esser et al. 2024, arXiv:2403.03206). `high_noise` takes 1 - u^3 of a uniform u (Mou et al. 2023, T2I-Adapter,
    arXiv:2302.08453, section 3.4), `low_noise` u^3: half of all draws fall into an eighth of the range.
    """
    source = generator(seed, "timestep", step, sample)
    count = end - begin
    if sampling is TimestepSampling.UNIFORM:
        return begin + int(torch.randint(count, (1,), generator=source))
    if sampling is TimestepSampling.LOGIT_NORMAL:
        position = float(torch.sigmoid(torch.randn((), generator=source)))
    else:
        position = float(torch.rand((), generator=source)) ** 3
        position = 1 - position if sampling is TimestepSampling.HIGH_NOISE else position
    return begin + min(int(position * count), count - 1)


def draw_noise(
    shape: tuple[int, ...],
    seed: int,
    step: int,
    sample: int,
    noise_offset: float | Tensor,
    *,
    multires_iterations: int = 0,
    multires_discount: float = 0.3,
) -> Tensor:
    """Draw the noise [C, H, W] of one sample: standard normal, with noise offset and multires noise if set.

    Both let a model learn dark and bright images. Noise offset (N. Guttenberg, "Diffusion with Offset Noise", 2023)
    adds `noise_offset`, a number or one per channel [C, 1, 1], times one normal number to each whole channel. Multires
    noise: see `add_multires_noise`.
    """
    source = generator(seed, "noise", step, sample)
    noise = torch.randn(shape, generator=source)
    if isinstance(noise_offset, Tensor) or noise_offset:
        noise = noise + noise_offset * torch.randn((shape[0], 1, 1), generator=source)
    if multires_iterations:
        noise = add_multires_noise(
            noise, generator(seed, "multires", step, sample), multires_iterations, multires_discount
        )
    return noise


def random_strength(strength: float, purpose: str, seed: int, step: int, sample: int) -> float:
    """Draw a strength for one sample, uniform in 0..`strength`."""
    return strength * float(torch.rand((), generator=generator(seed, f"{purpose} strength", step, sample)))


def adaptive_noise_offset(noise_offset: float, scale: float, latents: Tensor) -> Tensor:
    """Return the noise offset of each channel [C, 1, 1] of latents [C, H, W], scaled as the UNet gets them.

    max(0, noise_offset + scale |mean of the channel|): `apply_noise_offset` of sd-scripts
    (library/custom_train_functions.py).
    """
    offset: Tensor = (noise_offset + scale * latents.mean(dim=(1, 2), keepdim=True).abs()).clamp(min=0)
    return offset


def draw_perturbation(shape: tuple[int, ...], gamma: float, seed: int, step: int, sample: int) -> Tensor:
    """Draw what is added to the noise [C, H, W] in the UNet's input, but not in its target: gamma times normal noise.

    Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models" (arXiv:2301.11706), equation 13.
    """
    return gamma * torch.randn(shape, generator=generator(seed, "perturbation", step, sample))


def add_multires_noise(noise: Tensor, source: torch.Generator, iterations: int, discount: float) -> Tensor:
    """Add noise of lower and lower resolution to noise [C, H, W], and scale the sum to a standard deviation of 1.

    Multi-resolution, or pyramid, noise (J. Whitaker, "Multi-Resolution Noise for Diffusion Model Training", 2023): the
    i-th layer has sides smaller by r^i, with r drawn from 2..4 for each layer, is upsampled bilinearly and multiplied
    by discount^i. It ends early after a layer that is one latent wide or high.
    """
    height, width = noise.shape[1:]
    for layer in range(iterations):
        ratio = (2 + 2 * float(torch.rand((), generator=source))) ** layer
        sides = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = torch.randn((1, noise.shape[0], *sides), generator=source)
        noise = noise + discount**layer * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        if 1 in sides:
            break
    return noise / noise.std()


def draw_latent(mean: Tensor, logvar: Tensor, seed: int, step: int, sample: int) -> Tensor:
    """Draw latents from the VAE's posterior N(mean, exp(logvar)) at each step, so that no single draw is memorised."""
    return mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator(seed, "latent", step, sample))


def training_target(
    scheduler: DDPMScheduler, prediction_type: str, latents: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """Return the UNet's target [B, C, H, W]: the noise e, or v = sqrt(a_t) e - sqrt(1 - a_t) x_0.

    v-prediction: Salimans and Ho 2022 (arXiv:2202.00512).
    """
    if prediction_type == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, noise, t)  # type: ignore[arg-type]
        return velocity
    return noise


def signal_to_noise(scheduler: DDPMScheduler) -> Tensor:
    """Return the SNR [T] of the scheduler in use: 0 at the last timestep if its terminal SNR is zero."""
    signal: Tensor = scheduler.alphas_cumprod.double()
    return (signal / (1 - signal)).float()


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Return the min-SNR loss weights, of the shape of `snr`; 1 everywhere for gamma 0, finite also for SNR 0.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv:2303.09556): in terms of the
    loss used here, min(snr, gamma) / snr for noise and min(snr, gamma) / (snr + 1) for v.
    """
    if not gamma:
        return torch.ones_like(snr)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def debiased_weights(snr: Tensor, prediction_type: str) -> Tensor:
    """Return the weights of the debiased estimation loss, of the shape of `snr`; finite also for SNR 0.

    Yu et al. 2023, "Unmasking Bias in Diffusion Model Training" (arXiv:2310.08442): 1 / sqrt(snr) for the squared error
    of the noise. v gets the weight that makes its loss equal: as e = sqrt(a) v + sqrt(1 - a) x_t, an error d of v is an
    error sqrt(a) d of the noise, and a = snr / (snr + 1), so its weight is sqrt(snr) / (snr + 1). (sd-scripts uses
    1 / (snr + 1) and OneTrainer 1 / sqrt(snr + 1): the loss of x_0, and one in between.)
    """
    if prediction_type == "v_prediction":
        return snr.sqrt() / (snr + 1)
    return snr.clamp(min=MIN_SNR).rsqrt()


def timestep_weights(snr: Tensor, prediction_type: str, *, gamma: float, debiased: bool) -> Tensor:
    """Return the loss weight per timestep: `min_snr_weights`, `debiased_weights`, or their product as in sd-scripts."""
    weights = min_snr_weights(snr, gamma, prediction_type)
    if not debiased:
        return weights
    # min-SNR has already converted the weight of v's error to that of the noise's
    return weights * debiased_weights(snr, "epsilon" if gamma else prediction_type)


def huber_thresholds(scheduler: DDPMScheduler, schedule: HuberSchedule, huber_c: float) -> Tensor:
    """Return the threshold c of the Huber losses per timestep [T], from 1 without noise to `huber_c` at pure noise.

    Khrapov et al. 2024, "Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss"
    (arXiv:2403.16728): exponential is huber_c^(t / T), snr is huber_c + (1 - huber_c) / (1 + s)^2 with
    s = sqrt((1 - a) / a).
    """
    total = scheduler.config["num_train_timesteps"]
    if schedule is HuberSchedule.CONSTANT:
        return torch.full((total,), huber_c)
    if schedule is HuberSchedule.EXPONENTIAL:
        return torch.logspace(0, total - 1, total, base=huber_c ** (1 / total), dtype=torch.float64).float()
    signal: Tensor = scheduler.alphas_cumprod.double()
    sigma = ((1 - signal) / signal).sqrt()
    return (huber_c + (1 - huber_c) / (1 + sigma).square()).float()


def sample_losses(
    prediction: Tensor,
    target: Tensor,
    *,
    loss_type: LossType = LossType.L2,
    thresholds: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the mean error of each sample, [B, C, H, W] -> [B], in fp32.

    l2 is d^2 of a difference d; huber 2c (sqrt(d^2 + c^2) - c) and smooth_l1 the same without the first c, with
    c = `thresholds` [B]: the pseudo-Huber losses of Charbonnier et al. 1997, with kohya's factors. `mask` [B, 1, H, W]
    in 0..1 gives a weighted mean over positions, so that a small subject is learned as fast as a large one; a mask of
    zeros gives 0.
    """
    errors = (prediction.float() - target.float()).square()
    if loss_type is not LossType.L2:
        if thresholds is None:
            raise ValueError(f"{loss_type} needs thresholds")
        c = thresholds.view(-1, 1, 1, 1)
        errors = 2 * ((errors + c * c).sqrt() - c) * (c if loss_type is LossType.HUBER else 1)
    if mask is None:
        return errors.mean(dim=(1, 2, 3))
    weights = mask.float().expand_as(errors)
    return (errors * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
