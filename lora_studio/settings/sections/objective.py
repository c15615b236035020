"""Settings of the training objective: noise, timesteps, loss."""

from __future__ import annotations

from lora_studio.settings.choices import HuberSchedule, LossType, PredictionType, TimestepSampling, ZeroTerminalSnr
from lora_studio.settings.declare import Group, Settings, setting


class ObjectiveSettings(Settings):
    """What the network is trained to predict, and how its error is measured."""

    noise_offset: float = setting(label="Noise offset", group=Group.OBJECTIVE, advice="noise_offset", ge=0, le=1)
    adaptive_noise_scale: float = setting(
        0.0,
        label="Adaptive noise scale",
        group=Group.OBJECTIVE,
        why="Adds this times the mean of a latent's channel to the noise offset, so that very bright and very dark "
        "images get more of it (with a negative value less): a tenth of the noise offset is usual, 0 is off.",
        ge=-1,
        le=1,
        only_with="noise_offset",
    )
    noise_offset_random_strength: bool = setting(
        False,
        label="Random noise offset",
        group=Group.OBJECTIVE,
        why="Draws the noise offset of each sample between 0 and the set one. Off: every sample gets the whole.",
        only_with="noise_offset",
    )
    ip_noise_gamma: float = setting(
        0.0,
        label="Input perturbation",
        group=Group.OBJECTIVE,
        why="Adds noise to the UNet's input that it is not trained to predict, so that it copes better with its own "
        "errors while sampling (Ning et al. 2023); 0.1 is the paper's value, 0 is off.",
        ge=0,
        le=1,
    )
    ip_noise_gamma_random_strength: bool = setting(
        False,
        label="Random input perturbation",
        group=Group.OBJECTIVE,
        why="Draws the strength for each sample between 0 and the set one. Off: every sample gets the whole.",
        only_with="ip_noise_gamma",
    )
    min_snr_gamma: float = setting(
        5.0,
        label="Min-SNR gamma",
        group=Group.OBJECTIVE,
        why="Lowers the loss weight of timesteps with little noise, so that they do not outweigh the rest (Hang et al. "
        "2023); 5 is the paper's value, 0 is off.",
        ge=0,
        le=100,
    )
    debiased_estimation_loss: bool = setting(
        False,
        label="Debiased estimation loss",
        group=Group.OBJECTIVE,
        why="Another weighting of timesteps, instead of Min-SNR gamma: more weight on noisy ones, which decide the "
        "composition (Yu et al. 2023).",
    )
    prediction_type: PredictionType = setting(
        PredictionType.AUTO,
        label="Prediction type",
        group=Group.OBJECTIVE,
        why="Read from the base model; the wrong one gives washed-out colours.",
    )
    zero_terminal_snr: ZeroTerminalSnr = setting(
        ZeroTerminalSnr.AUTO,
        label="Zero terminal SNR",
        group=Group.OBJECTIVE,
        why="Ends the noise schedule in pure noise, for full black and white (Lin et al. 2023). Read from the base "
        "model; needs a v-prediction model.",
    )
    multires_noise_iterations: int = setting(
        0,
        label="Multires noise iterations",
        group=Group.OBJECTIVE,
        why="Adds noise at coarser and coarser resolutions (pyramid noise), for the same purpose as a noise offset; 6 "
        "is usual, 0 is off.",
        ge=0,
        le=64,
    )
    multires_noise_discount: float = setting(
        0.3,
        label="Multires noise discount",
        group=Group.OBJECTIVE,
        why="Strength of each coarser noise relative to the one before: 0.3 is usual, 0.8 is strong.",
        ge=0,
        le=1,
        only_with="multires_noise_iterations",
    )
    min_timestep: int = setting(
        0,
        label="Min timestep",
        group=Group.OBJECTIVE,
        why="Skips timesteps below it: the final details, with almost no noise.",
        ge=0,
        le=999,
    )
    max_timestep: int = setting(
        1000,
        label="Max timestep",
        group=Group.OBJECTIVE,
        why="Skips timesteps from it on: the first outlines, with almost only noise.",
        ge=1,
        le=1000,
    )
    timestep_sampling: TimestepSampling = setting(
        TimestepSampling.UNIFORM,
        label="Timestep sampling",
        group=Group.OBJECTIVE,
        why="uniform is what SDXL was trained with. logit_normal prefers the middle, high_noise composition and style, "
        "low_noise detail.",
    )
    loss_type: LossType = setting(
        LossType.L2,
        label="Loss type",
        group=Group.OBJECTIVE,
        why="l2 is the mean squared error. huber and smooth_l1 grow more slowly for large errors, so that a few odd "
        "images do less harm.",
    )
    huber_c: float = setting(
        0.1,
        label="Huber c",
        group=Group.OBJECTIVE,
        why="Error at which huber and smooth_l1 change from quadratic to linear: lower is more robust.",
        gt=0,
        le=1,
        only_with="loss_type=huber|smooth_l1",
    )
    huber_schedule: HuberSchedule = setting(
        HuberSchedule.SNR,
        label="Huber schedule",
        group=Group.OBJECTIVE,
        why="snr and exponential lower the threshold from 1 to Huber c as the noise grows, which keeps detail.",
        only_with="loss_type=huber|smooth_l1",
    )
    clip_skip: int = setting(label="Clip skip", group=Group.OBJECTIVE, advice="clip_skip", ge=1, le=12)
