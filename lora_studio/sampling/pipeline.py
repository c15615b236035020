"""A base model on the best device, for encoding prompts and generating images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image
from torch import nn

from lora_studio.device import free_gpu_bytes, free_gpu_cache, torch_device, torch_dtype
from lora_studio.errors import InputError
from lora_studio.models.load import Base, load_base
from lora_studio.models.locate import resolve_base
from lora_studio.models.pipeline import TextEmbeddings, generate_image, generate_images, make_pipeline
from lora_studio.models.prompt_weights import encode_prompt
from lora_studio.models.quantize import quantize
from lora_studio.models.samplers import make_scheduler
from lora_studio.settings.choices import BasePrecision, Precision, Sampler
from lora_studio.training.speed.gpu_fallbacks import known_failures
from lora_studio.training.speed.self_test import FastPath
from lora_studio.workspace.project import Home

SAMPLING_BYTES = 2**30  # a LoRA and the UNet's passes at 1024 px; latents can be decoded without the UNet on the GPU


@dataclass(frozen=True)
class SamplingPipeline:
    """A base model with its pipeline and the sampler of its scheduler.

    UNet and VAE are on `device`. The text encoders are there only while they encode, which saves 1.5 GiB for the rest.
    Without `decodes_in_half` latents are decoded in fp32.
    """

    base: Base
    pipe: StableDiffusionXLPipeline
    device: torch.device
    sampler: Sampler = Sampler.EULER
    decodes_in_half: bool = True
    base_precision: BasePrecision = BasePrecision.FULL

    @property
    def precision(self) -> str:
        """The precision of the computation, and of the UNet's weights if they are quantized."""
        return precision_text(self.base.unet.dtype, self.base_precision)

    def encode(self, text: str, *, clip_skip: int) -> TextEmbeddings:
        """Encode a prompt of any length with A1111's weights, on the CPU if the GPU's memory is short.

        `clip_skip` counts layers from the end, as in A1111: 1 is the last one. Raises InputError if a text encoder has
        fewer layers.
        """
        layers = min(encoder.config.num_hidden_layers for encoder in self.base.text_encoders)
        if clip_skip > layers:
            raise InputError(
                f"clip_skip is {clip_skip}, but a text encoder of {self.base.name} has {layers} layers.",
                "Use 2, which SDXL was trained with.",
                code="clip_skip",
            )
        with suppress(torch.OutOfMemoryError):
            return self._encode_on(self.device, text, clip_skip)
        free_gpu_cache()
        return self._encode_on(torch.device("cpu"), text, clip_skip)

    def encode_negative(self, text: str, *, clip_skip: int) -> TextEmbeddings:
        """Encode a negative prompt; an empty one becomes zeros, as in SDXL's training."""
        encoded = self.encode(text, clip_skip=clip_skip)
        if text or not self.pipe.config["force_zeros_for_empty_prompt"]:
            return encoded
        return encoded.zeros()

    def generate(self, prompt: TextEmbeddings, negative: TextEmbeddings, **settings: Any) -> Image.Image | None:
        """Generate one image; see `generate_image` for the settings and for when it returns None."""
        self._move_text_encoders(torch.device("cpu"))
        return generate_image(
            self.pipe, prompt, negative, offload=[self.base.unet], decode_in_half=self.decodes_in_half, **settings
        )

    def generate_batch(
        self, prompts: Sequence[TextEmbeddings], negative: TextEmbeddings, **settings: Any
    ) -> list[Image.Image | None]:
        """Generate an image per prompt at once; see `generate_images` for the settings and for when one is None."""
        self._move_text_encoders(torch.device("cpu"))
        offload = [self.base.unet]
        return generate_images(
            self.pipe, prompts, negative, offload=offload, decode_in_half=self.decodes_in_half, **settings
        )

    @torch.no_grad()
    def _encode_on(self, device: torch.device, text: str, clip_skip: int) -> TextEmbeddings:
        self._move_text_encoders(device)
        hidden, pooled = encode_prompt(self.base.text_encoders, self.base.tokenizers, text, clip_skip)
        return TextEmbeddings(hidden.to(self.device), pooled.to(self.device))

    def _move_text_encoders(self, device: torch.device) -> None:
        encoders: list[nn.Module] = [*self.base.text_encoders]
        for encoder in encoders:
            encoder.to(device)


def precision_text(dtype: torch.dtype, base_precision: BasePrecision) -> str:
    """Return the precision of a computation in `dtype`, and of the UNet's weights if they are quantized."""
    computed = str(dtype).removeprefix("torch.")
    return computed if base_precision is BasePrecision.FULL else f"{computed}, {base_precision.value}"


def load_sampling_pipeline(
    name: str,
    *,
    home: Home,
    precision: Precision,
    sampler: Sampler = Sampler.EULER,
    on_progress: Callable[[str], None] = lambda message: None,
) -> SamplingPipeline:
    """Load a base model by name, path or Hub repository onto the best device.

    Raises InputError if the base is missing or damaged, the device does not support the precision, or the sampler
    cannot start from the pure noise that the base ends in.
    """
    device = torch_device()
    dtype, _ = torch_dtype(precision, device)
    base = load_base(resolve_base(name, home), dtype=dtype, on_progress=on_progress)
    if base.zero_terminal_snr and not sampler.supports_zero_snr:
        known = ", ".join(item.value for item in Sampler if item.supports_zero_snr)
        message = (
            f"sampler is {sampler.value}, which cannot start from the pure noise of {base.name} (zero terminal SNR)."
        )
        raise InputError(message, f"Use one of {known}.", code="sampler")
    failed = known_failures(device, dtype, home)
    base_precision = BasePrecision.FULL
    if FastPath.INT8 not in failed and not _fits(base, device):
        base_precision = BasePrecision.INT8
        on_progress("The GPU's memory is short: the UNet's weights are used in int8")
        quantize(base.unet, base_precision, dtype, device)
    modules: list[nn.Module] = [base.unet, base.vae]
    for module in modules:
        module.to(device)
    pipe = make_pipeline(base)
    pipe.scheduler = make_scheduler(base, sampler)
    return SamplingPipeline(
        base,
        pipe,
        device,
        sampler,
        decodes_in_half=FastPath.HALF_DECODING not in failed,
        base_precision=base_precision,
    )


def _fits(base: Base, device: torch.device) -> bool:
    """Return whether a GPU has enough free memory for UNet and VAE, and for the passes of an image; else True."""
    free = free_gpu_bytes(device)
    modules: list[nn.Module] = [base.unet, base.vae]
    weights = sum(weight.nbytes for module in modules for weight in module.parameters())
    return free is None or free >= weights + SAMPLING_BYTES
