"""Samplers by kohya's names, as diffusers' schedulers over a base's own noise schedule."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from lora_studio.models.load import Base
from lora_studio.settings.choices import Sampler


@dataclass(frozen=True)
class SamplerClass:
    """A sampler's name in A1111, its class in diffusers, and the options that select it there."""

    title: str
    scheduler: Any
    options: Mapping[str, Any] = field(default_factory=dict)


SAMPLERS: Mapping[Sampler, SamplerClass] = MappingProxyType(
    {
        Sampler.EULER: SamplerClass("Euler", EulerDiscreteScheduler),
        Sampler.EULER_A: SamplerClass("Euler a", EulerAncestralDiscreteScheduler),
        Sampler.DDIM: SamplerClass("DDIM", DDIMScheduler),
        Sampler.PNDM: SamplerClass("PLMS", PNDMScheduler, {"skip_prk_steps": True}),
        Sampler.LMS: SamplerClass("LMS", LMSDiscreteScheduler),
        Sampler.HEUN: SamplerClass("Heun", HeunDiscreteScheduler),
        Sampler.DPM_2: SamplerClass("DPM2", KDPM2DiscreteScheduler),
        Sampler.DPM_2_A: SamplerClass("DPM2 a", KDPM2AncestralDiscreteScheduler),
        # diffusers allows the older algorithm to end at sigma_min only
        Sampler.DPMSOLVER: SamplerClass(
            "DPM-Solver",
            DPMSolverMultistepScheduler,
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        ),
        Sampler.DPMSOLVER_PP: SamplerClass("DPM++ 2M", DPMSolverMultistepScheduler),
        Sampler.DPMSINGLE: SamplerClass("DPM++ 2S", DPMSolverSinglestepScheduler, {"lower_order_final": True}),
    }
)


def make_scheduler(base: Base, sampler: Sampler) -> SchedulerMixin:
    """Return a sampler's scheduler over a base's betas; with zero terminal SNR it starts at the last timestep."""
    chosen = SAMPLERS[sampler]
    spacing = "trailing" if base.zero_terminal_snr else "leading"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*algorithm_type", FutureWarning)  # dpmsolver is deprecated in diffusers
        scheduler: SchedulerMixin = chosen.scheduler.from_config(
            base.noise_scheduler.config, timestep_spacing=spacing, **chosen.options
        )
    return scheduler
