"""What the UNet is trained to predict, and how much each timestep counts.

Noise schedule of Ho et al. 2020 (arXiv:2006.11239): x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, with a_t the cumulative
product of 1 - beta. The signal-to-noise ratio is a_t / (1 - a_t).
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lora_studio.settings.choices import HuberSchedule, LossType, TimestepSampling
from lora_studio.training.data.rng import generator

MIN_SNR = 1e-4  # below any timestep's but that of pure noise, where 1 / sqrt(snr) has no value


def draw_timestep(
    seed: int,
    step: int,
    sample: int,
    end: int,
    *,
    begin: int = 0,
    sampling: TimestepSampling = TimestepSampling.UNIFORM,
) -> int:
    """A timestep in begin..end-1 for one sample of one step.

    `logit_normal` takes the logistic function of a normal number as the place in the range: most in its middle (Esser
    et al. 2024, arXiv:2403.03206). `high_noise` takes 1 - u^3 of a uniform u (Mou et al. 2023, T2I-Adapter,
    arXiv:2302.08453, section 3.4), `low_noise` u^3: a half of all draws falls into an eighth of the range.
    """
    source = generator(seed, "timestep", step, sample)
    count = end - begin
    if sampling is TimestepSampling.UNIFORM:
        return begin + int(torch.randint(count, (1,), generator=source))
    if sampling is TimestepSampling.LOGIT_NORMAL:
        place = float(torch.sigmoid(torch.randn((), generator=source)))
    else:
        place = float(torch.rand((), generator=source)) ** 3
        place = 1 - place if sampling is TimestepSampling.HIGH_NOISE else place
    return begin + min(int(place * count), count - 1)


def draw_noise(
    shape: tuple[int, ...],
    seed: int,
    step: int,
    sample: int,
    noise_offset: float,
    *,
    multires_iterations: int = 0,
    multires_discount: float = 0.3,
) -> Tensor:
    """Standard normal noise [C, H, W] of one sample, with what lets a model learn dark and bright pictures.

    Noise offset (N. Guttenberg, "Diffusion with Offset Noise", 2023): each channel gets one more normal number, times
    `noise_offset`, over its whole area. Multires noise: see `add_multires_noise`.
    """
    source = generator(seed, "noise", step, sample)
    noise = torch.randn(shape, generator=source)
    if noise_offset:
        noise = noise + noise_offset * torch.randn((shape[0], 1, 1), generator=source)
    if multires_iterations:
        noise = add_multires_noise(
            noise, generator(seed, "multires", step, sample), multires_iterations, multires_discount
        )
    return noise


def add_multires_noise(noise: Tensor, source: torch.Generator, iterations: int, discount: float) -> Tensor:
    """Noise [C, H, W] with noise of coarser and coarser grain on top, scaled back to a standard deviation of 1.

    Multi-resolution, or pyramid, noise (J. Whitaker, "Multi-Resolution Noise for Diffusion Model Training", 2023): the
    i-th layer has sides smaller by r^i, with r drawn anew from 2..4, is enlarged bilinearly and counts discount^i. It
    ends early with a layer that is one latent wide.
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


def debiased_weights(snr: Tensor, prediction_type: str) -> Tensor:
    """Weights of the debiased estimation loss, of the shape of `snr`; finite for every SNR, 0 included.

    Yu et al. 2023, "Unmasking Bias in Diffusion Model Training" (arXiv:2310.08442): 1 / sqrt(snr) for the error of the
    noise. The error of v says the same of the picture if it has the same weight per error of the noise. As
    e = sqrt(a) v + sqrt(1 - a) x_t, an error d of v is one of sqrt(a) d of the noise, and a = snr / (snr + 1); so its
    weight is sqrt(snr) / (snr + 1). (sd-scripts has 1 / (snr + 1) there and OneTrainer 1 / sqrt(snr + 1): the losses of
    x_0 and of something in between.)
    """
    if prediction_type == "v_prediction":
        return snr.sqrt() / (snr + 1)
    return snr.clamp(min=MIN_SNR).rsqrt()


def timestep_weights(snr: Tensor, prediction_type: str, *, gamma: float, debiased: bool) -> Tensor:
    """How much each timestep counts: `min_snr_weights`, `debiased_weights`, or both multiplied as in sd-scripts."""
    weights = min_snr_weights(snr, gamma, prediction_type)
    if not debiased:
        return weights
    # min-SNR has turned v's error into the noise's already
    return weights * debiased_weights(snr, "epsilon" if gamma else prediction_type)


def huber_thresholds(scheduler: DDPMScheduler, schedule: HuberSchedule, huber_c: float) -> Tensor:
    """The threshold c of the Huber losses at each timestep [T], from 1 without noise to `huber_c` with nothing else.

    Khrapov et al. 2024, "Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss"
    (arXiv:2403.16728): exponential is huber_c^(t / T), snr is huber_c + (1 - huber_c) / (1 + s)^2 with
    s = sqrt((1 - a) / a).
    """
    total = scheduler.config.num_train_timesteps
    if schedule is HuberSchedule.CONSTANT:
        return torch.full((total,), huber_c)
    if schedule is HuberSchedule.EXPONENTIAL:
        return torch.logspace(0, total - 1, total, base=huber_c ** (1 / total), dtype=torch.float64).float()
    kept: Tensor = scheduler.alphas_cumprod.double()
    sigma = ((1 - kept) / kept).sqrt()
    return (huber_c + (1 - huber_c) / (1 + sigma).square()).float()


def sample_losses(
    prediction: Tensor,
    target: Tensor,
    *,
    loss_type: LossType = LossType.L2,
    thresholds: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The mean error of each sample: [B, C, H, W] -> [B], in fp32.

    l2 is d^2 of a difference d; huber 2c (sqrt(d^2 + c^2) - c) and smooth_l1 the same without the first c, with
    c = `thresholds` [B]: the pseudo-Huber losses of Charbonnier et al. 1997, with kohya's factors. Where `mask`
    [B, 1, H, W] in 0..1 is given, each place counts as much as it says, and the mean is over what counts, so that a
    small subject is learned as fast as a large one; a mask of zeros gives 0.
    """
    errors = (prediction.float() - target.float()).square()
    if loss_type is not LossType.L2:
        if thresholds is None:
            raise ValueError(f"{loss_type} needs thresholds")
        c = thresholds.view(-1, 1, 1, 1)
        errors = 2 * ((errors + c * c).sqrt() - c) * (c if loss_type is LossType.HUBER else 1)
    if mask is None:
        return errors.mean(dim=(1, 2, 3))
    shares = mask.float().expand_as(errors)
    return (errors * shares).sum(dim=(1, 2, 3)) / shares.sum(dim=(1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
