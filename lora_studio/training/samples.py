"""Sample pictures as training goes on, drawn with the models that are being trained.

Each picture has a generator of its own, so that drawing changes nothing about the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lora_studio.files import write_atomic
from lora_studio.models.load import Base
from lora_studio.models.pipeline import TextEmbeddings, generate_image, make_pipeline


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


def generate_samples(
    base: Base,
    prompts: Sequence[str],
    encode: Callable[[str], TextEmbeddings],
    settings: SampleSettings,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    should_stop: Callable[[], bool],
) -> Iterator[Image.Image | None]:
    """Draw a picture for each prompt until asked to stop; None stands for one whose numbers were not finite.

    The models are in training mode again whenever a picture is handed out. There is no negative prompt.
    """
    pipe = make_pipeline(base)
    side = settings.side // base.latent_factor * base.latent_factor
    for prompt in prompts:
        with _sampling_mode(base, device), torch.no_grad(), autocast():
            text = encode(prompt)
            picture = generate_image(
                pipe,
                text,
                text.zeros(),
                seed=settings.seed,
                steps=settings.steps,
                guidance=settings.guidance,
                width=side,
                height=side,
                should_stop=should_stop,
            )
        if should_stop() and picture is None:
            return
        yield picture


@contextmanager
def _sampling_mode(base: Base, device: torch.device) -> Iterator[None]:
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
