"""Sample pictures as training goes on, drawn with the models that are being trained.

Each picture has a generator of its own, so that drawing changes nothing about the training.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from lora_studio.files import write_atomic
from lora_studio.training.base_models import Base

Encode = Callable[[str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SampleSettings:
    """How samples are drawn: side in px, Euler steps, classifier-free guidance, seed."""

    side: int
    steps: int
    guidance: float
    seed: int


def sample_prompts(prompts: Sequence[str], trigger_word: str, fallback: str) -> list[str]:
    """Prompts with the trigger word in its place; one that is empty then becomes `fallback`, a caption."""
    return [prompt.replace("{trigger}", trigger_word).strip() or fallback for prompt in prompts]


def draw_samples(
    base: Base,
    prompts: Sequence[str],
    encode: Encode,
    settings: SampleSettings,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> Generator[Image.Image]:
    """Draw one picture for each prompt; the models are as they were afterwards.

    `encode` gives a text's embeddings [77, D] and pooled embeddings [P]. The negative prompt is the empty text.
    """
    pipeline = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=base.unet,
        scheduler=base.sampler(),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    with _drawing(base, device), torch.no_grad(), autocast():
        empty, empty_pooled = encode("")
        for prompt in prompts:
            hidden, pooled = encode(prompt)
            latents = pipeline(
                prompt_embeds=hidden[None].to(device),
                pooled_prompt_embeds=pooled[None].to(device),
                negative_prompt_embeds=empty[None].to(device),
                negative_pooled_prompt_embeds=empty_pooled[None].to(device),
                width=settings.side,
                height=settings.side,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=torch.Generator().manual_seed(settings.seed),
                output_type="latent",
            ).images
            with torch.autocast(device.type, enabled=False):
                decoded = base.vae.decode(latents.float() / base.vae.config.scaling_factor).sample
            yield pipeline.image_processor.postprocess(decoded.nan_to_num(), output_type="pil")[0]


@contextmanager
def _drawing(base: Base, device: torch.device) -> Iterator[None]:
    """UNet and text encoders in eval mode, the VAE on the device for as long as it is needed."""
    modes = [(module, module.training) for module in (base.unet, *base.text_encoders)]
    home = base.vae.device
    try:
        for module, _ in modes:
            module.eval()
        base.vae.to(device)
        yield
    finally:
        base.vae.to(home)
        for module, training in modes:
            module.train(training)


def save_sample(path: Path, image: Image.Image) -> None:
    """Write a picture as PNG, atomically."""
    write_atomic(path, lambda temporary: image.save(temporary, "PNG"))
