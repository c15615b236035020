"""Drawing one picture with a base model, the way that programs for SDXL draw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from lora_studio.config import Precision
from lora_studio.device import torch_device, torch_dtype
from lora_studio.errors import InputError
from lora_studio.project import Home
from lora_studio.training.base_models import Base, load_base, resolve
from lora_studio.training.text import encode_text


@dataclass(frozen=True)
class Text:
    """An encoded text as the UNet takes it: `hidden` [1, tokens, width] and `pooled` [1, width of encoder 2]."""

    hidden: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class Painter:
    """A base model ready to draw; `sampler` is the name that A1111 gives to the scheduler."""

    base: Base
    pipe: StableDiffusionXLPipeline
    sampler: str = "Euler"

    def encode(self, text: str, *, clip_skip: int) -> Text:
        """Encode up to 75 tokens. `clip_skip` counts layers from the end, as A1111 does: 1 is the last one.

        Raises InputError if a text encoder has fewer layers.
        """
        layers = min(encoder.config.num_hidden_layers for encoder in self.base.text_encoders)
        if clip_skip > layers:
            raise InputError(
                f"clip_skip is {clip_skip}, but a text encoder of {self.base.name} has {layers} layers.",
                "Use 2, which SDXL was made with.",
                code="clip_skip",
            )
        with torch.no_grad():
            return Text(*encode_text(self.base.text_encoders, self.base.tokenizers, [text], clip_skip))

    def encode_negative(self, text: str, *, clip_skip: int) -> Text:
        """Encode a negative prompt; an empty one is zeros, as SDXL was trained with."""
        encoded = self.encode(text, clip_skip=clip_skip)
        if text or not self.pipe.config.force_zeros_for_empty_prompt:
            return encoded
        return Text(torch.zeros_like(encoded.hidden), torch.zeros_like(encoded.pooled))

    def draw(
        self,
        prompt: Text,
        negative: Text,
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

        def after_step(pipe: StableDiffusionXLPipeline, step: int, timestep: int, values: dict) -> dict:
            nonlocal stopped
            stopped = pipe._interrupt = stopped or should_stop()
            return values

        latents = self.pipe(
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
        return None if stopped or not torch.isfinite(latents).all() else self._decode(latents)

    def _decode(self, latents: torch.Tensor) -> Image.Image | None:
        """Latents [1, 4, h, w] to a picture; in tiles where the memory is too small for the whole."""
        vae = self.base.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        with torch.no_grad():
            try:
                pixels = vae.decode(scaled, return_dict=False)[0]
            except torch.OutOfMemoryError:
                if vae.use_tiling:
                    raise
                vae.enable_tiling()
                pixels = vae.decode(scaled, return_dict=False)[0]
        if not torch.isfinite(pixels).all():
            return None
        picture: Image.Image = self.pipe.image_processor.postprocess(pixels, output_type="pil")[0]
        return picture


def open_painter(
    name: str, *, home: Home, precision: Precision, on_progress: Callable[[str], None] = lambda message: None
) -> Painter:
    """Load a base model by name, path or Hub repository onto the best device.

    Raises InputError for a base that is not there or broken, or a precision that the device does not have.
    """
    device = torch_device()
    dtype, _ = torch_dtype(precision, device)
    base = load_base(resolve(name, home), dtype=dtype, on_progress=on_progress)
    pipe = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        text_encoder_2=base.text_encoders[1],
        tokenizer=base.tokenizers[0],
        tokenizer_2=base.tokenizers[1],
        unet=base.unet,
        scheduler=base.sampler(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for module in (base.unet, *base.text_encoders, base.vae):
        module.to(device)
    return Painter(base, pipe)
