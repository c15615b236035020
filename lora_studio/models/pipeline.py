"""Generate one image with a base model through diffusers' SDXL pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from lora_studio.models.load import Base


@dataclass(frozen=True)
class TextEmbeddings:
    """Text embeddings that condition the UNet: `hidden` [1, tokens, D1 + D2] and `pooled` [1, D2]."""

    hidden: Tensor
    pooled: Tensor

    def zeros(self) -> TextEmbeddings:
        """Return zeros of the same shapes: SDXL's unconditional embeddings, used for an empty negative prompt."""
        return TextEmbeddings(torch.zeros_like(self.hidden), torch.zeros_like(self.pooled))


def make_pipeline(base: Base) -> StableDiffusionXLPipeline:
    """Return a diffusers pipeline of the base's parts, without text encoders if the base has released them."""
    first, second = base.text_encoders or (None, None)
    # diffusers' annotations name neither the optional parts nor the schedulers that its pipelines accept
    pipe = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=first,  # type: ignore[arg-type]
        text_encoder_2=second,  # type: ignore[arg-type]
        tokenizer=base.tokenizers[0],
        tokenizer_2=base.tokenizers[1],
        unet=base.unet,
        scheduler=base.euler_scheduler(),  # type: ignore[arg-type]
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate_image(
    pipe: StableDiffusionXLPipeline,
    prompt: TextEmbeddings,
    negative: TextEmbeddings,
    *,
    seed: int,
    steps: int,
    guidance: float,
    width: int,
    height: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Image.Image | None:
    """Generate one image; the same seed gives the same initial noise on every device.

    `guidance` is the classifier-free guidance scale; `negative` is used only above 1. Returns None if `should_stop`
    became true meanwhile, or if latents or pixels are NaN or infinite, as can happen with a LoRA that is too strong.
    """
    stopped = False

    def after_step(pipe: StableDiffusionXLPipeline, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        nonlocal stopped
        stopped = pipe._interrupt = stopped or should_stop()
        return values

    latents = pipe(
        prompt_embeds=prompt.hidden,
        pooled_prompt_embeds=prompt.pooled,
        negative_prompt_embeds=negative.hidden,
        negative_pooled_prompt_embeds=negative.pooled,
        num_inference_steps=steps,
        guidance_scale=guidance,
        width=width,
        height=height,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
        callback_on_step_end=after_step,
    ).images
    return None if stopped or not torch.isfinite(latents).all() else _decode_latents(pipe, latents)


@torch.no_grad()
def _decode_latents(pipe: StableDiffusionXLPipeline, latents: Tensor) -> Image.Image | None:
    """Decode latents [1, 4, h, w] in the VAE's own precision; in tiles after an out-of-memory error.

    Returns None if pixels are NaN or infinite.
    """
    vae = pipe.vae
    scaled = latents.to(vae.dtype) / vae.config["scaling_factor"]
    with torch.autocast(scaled.device.type, enabled=False):
        try:
            pixels = vae.decode(scaled, return_dict=False)[0]
        except torch.OutOfMemoryError:
            if vae.use_tiling:
                raise
            vae.enable_tiling()
            pixels = vae.decode(scaled, return_dict=False)[0]
    if not torch.isfinite(pixels).all():
        return None
    image: Image.Image = pipe.image_processor.postprocess(pixels, output_type="pil")[0]
    return image
