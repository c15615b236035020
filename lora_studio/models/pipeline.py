"""Drawing one picture with a base model, the way that programs for SDXL draw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from lora_studio.models.load import Base


@dataclass(frozen=True)
class TextEmbeddings:
    """An encoded text as the UNet takes it: `hidden` [1, tokens, width] and `pooled` [1, width of encoder 2]."""

    hidden: Tensor
    pooled: Tensor

    def zeros(self) -> TextEmbeddings:
        """What stands for an empty negative prompt: SDXL was trained with zeros there."""
        return TextEmbeddings(torch.zeros_like(self.hidden), torch.zeros_like(self.pooled))


def make_pipeline(base: Base) -> StableDiffusionXLPipeline:
    """The base's parts as a pipeline of diffusers; without text encoders where the base has let them go."""
    first, second = base.text_encoders or (None, None)
    pipe = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=base.tokenizers[0],
        tokenizer_2=base.tokenizers[1],
        unet=base.unet,
        scheduler=base.euler_scheduler(),
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
    """Draw one picture; the same seed starts from the same noise on every device. `negative` counts above CFG 1.

    None if `should_stop` turned true meanwhile, or if the numbers were no longer finite, which a LoRA that is too
    strong can bring about.
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
    """Latents [1, 4, h, w] to a picture, in the VAE's own precision; in tiles if the whole does not fit the memory."""
    vae = pipe.vae
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor
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
    picture: Image.Image = pipe.image_processor.postprocess(pixels, output_type="pil")[0]
    return picture
