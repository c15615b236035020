"""Generate images with a base model through diffusers' SDXL pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor, nn

from lora_studio.device import free_gpu_cache
from lora_studio.models.load import Base, on_device
from lora_studio.models.samplers import make_scheduler
from lora_studio.settings.choices import Sampler

# Sides in px of the tiles in which latents are decoded when memory is short. At SDXL's size a tile of 512 px takes 0.76
# GiB in fp32, one of 256 px 0.19 GiB, a whole image of 1024 px 3.0 GiB; in half precision half as much.
TILES = (512, 256)


@dataclass(frozen=True)
class TextEmbeddings:
    """Text embeddings that condition the UNet: `hidden` [1, tokens, D1 + D2] and `pooled` [1, D2]."""

    hidden: Tensor
    pooled: Tensor

    def repeated(self, tokens: int) -> TextEmbeddings:
        """Return the embeddings repeated to `tokens` tokens, a multiple of their own; attention gives the same."""
        return TextEmbeddings(self.hidden.repeat(1, tokens // self.hidden.shape[1], 1), self.pooled)

    def zeros(self) -> TextEmbeddings:
        """Return zeros of the same shapes: SDXL's unconditional embeddings, used for an empty negative prompt."""
        return TextEmbeddings(torch.zeros_like(self.hidden), torch.zeros_like(self.pooled))


class _LatentPipeline(StableDiffusionXLPipeline):
    """diffusers' pipeline on the UNet's device, wherever the VAE is."""

    @property
    def _execution_device(self) -> torch.device:
        device: torch.device = self.unet.device
        return device


def make_pipeline(base: Base) -> StableDiffusionXLPipeline:
    """Return a diffusers pipeline of the base's parts, without text encoders if the base has released them.

    Its sampler is Euler.
    """
    first, second = base.text_encoders or (None, None)
    # diffusers' annotations name neither the optional parts nor the schedulers that its pipelines accept
    pipe: StableDiffusionXLPipeline = _LatentPipeline(
        vae=base.vae,
        text_encoder=first,  # type: ignore[arg-type]
        text_encoder_2=second,  # type: ignore[arg-type]
        tokenizer=base.tokenizers[0],
        tokenizer_2=base.tokenizers[1],
        unet=base.unet,
        scheduler=make_scheduler(base, Sampler.EULER),  # type: ignore[arg-type]
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate_image(
    pipe: StableDiffusionXLPipeline, prompt: TextEmbeddings, negative: TextEmbeddings, *, seed: int, **settings: Any
) -> Image.Image | None:
    """Generate one image; see `generate_images`."""
    return generate_images(pipe, [prompt], negative, seeds=[seed], **settings)[0]


def generate_images(
    pipe: StableDiffusionXLPipeline,
    prompts: Sequence[TextEmbeddings],
    negative: TextEmbeddings,
    *,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    width: int,
    height: int,
    should_stop: Callable[[], bool] = lambda: False,
    offload: Sequence[nn.Module] = (),
    decode_in_half: bool = True,
) -> list[Image.Image | None]:
    """Generate an image per prompt in one batch; the same seed gives the same initial noise on every device.

    `guidance` is the classifier-free guidance scale; `negative` is used only above 1. The modules in `offload` are on
    the CPU while latents are decoded, one by one, if there is not enough memory otherwise. With `decode_in_half` they
    are decoded in the UNet's precision first. An image is None if `should_stop` became true meanwhile, or if its
    latents or pixels are NaN or infinite, as can happen with a LoRA that is too strong.
    """
    stopped = False

    def after_step(pipe: StableDiffusionXLPipeline, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        nonlocal stopped
        stopped = pipe._interrupt = stopped or should_stop()
        return values

    tokens = lcm(*(text.hidden.shape[1] for text in (*prompts, negative)))
    texts = [prompt.repeated(tokens) for prompt in prompts]
    against = negative.repeated(tokens)
    latents = pipe(
        prompt_embeds=torch.cat([text.hidden for text in texts]),
        pooled_prompt_embeds=torch.cat([text.pooled for text in texts]),
        negative_prompt_embeds=against.hidden.repeat(len(texts), 1, 1),
        negative_pooled_prompt_embeds=against.pooled.repeat(len(texts), 1),
        num_inference_steps=steps,
        guidance_scale=guidance,
        width=width,
        height=height,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="latent",
        callback_on_step_end=after_step,
    ).images
    if stopped:
        return [None] * len(texts)
    return [
        _decode_latents(pipe, own, offload, decode_in_half) if torch.isfinite(own).all() else None
        for own in latents.split(1)
    ]


@torch.no_grad()
def _decode_latents(
    pipe: StableDiffusionXLPipeline, latents: Tensor, offload: Sequence[nn.Module], in_half: bool
) -> Image.Image | None:
    """Decode latents [1, 4, h, w]: with `in_half` in the UNet's precision, then in the VAE's own if that is not finite.

    SDXL's own VAE overflows in fp16. The VAE is on the latents' device for as long as it decodes. Returns None if
    pixels are not finite in either precision.
    """
    own = pipe.vae.dtype
    for dtype in dict.fromkeys([*[pipe.unet.dtype] * in_half, own]):
        # a copy, since casting the VAE itself and back would round its weights; diffusers' own `to` warns for nothing
        vae = pipe.vae if dtype == own else nn.Module.to(deepcopy(pipe.vae), dtype)
        with on_device(vae, latents.device), torch.autocast(latents.device.type, enabled=False):
            pixels = _decode_within_memory(vae, latents / vae.config["scaling_factor"], offload)
        if torch.isfinite(pixels).all():
            image: Image.Image = pipe.image_processor.postprocess(pixels.float(), output_type="pil")[0]
            return image
    return None


def _decode_within_memory(vae: AutoencoderKL, scaled: Tensor, offload: Sequence[nn.Module]) -> Tensor:
    """Return the pixels of scaled latents; if memory runs out, retry with `offload` on the CPU, then in tiles.

    Tiles lose a little of the image's coherence, since the VAE normalises over the whole image: smaller ones are tried
    last. Raises torch.OutOfMemoryError if memory does not suffice for the smallest.
    """
    device = scaled.device
    attempts: list[int | None] = [*[None] * (2 if offload else 1), *TILES]
    moved: Sequence[nn.Module] = ()
    try:
        for tile in attempts:
            try:
                return decode_pixels(vae, scaled, tile=tile)
            except torch.OutOfMemoryError:
                if tile == TILES[-1]:
                    raise
            moved = offload
            for module in moved:
                module.to("cpu")
            free_gpu_cache()
    finally:
        for module in moved:
            module.to(device)
    raise AssertionError("the last attempt returns or raises")


def decode_pixels(vae: AutoencoderKL, scaled: Tensor, *, tile: int | None = None) -> Tensor:
    """Return the pixels [B, 3, H, W] of scaled latents, decoded as a whole or in overlapping tiles of `tile` px."""
    vae.use_tiling = tile is not None
    if tile is not None:
        vae.tile_sample_min_size = tile
        vae.tile_latent_min_size = tile // int(2 ** (len(vae.config["block_out_channels"]) - 1))
    try:
        pixels: Tensor = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
        return pixels
    finally:
        vae.use_tiling = False
