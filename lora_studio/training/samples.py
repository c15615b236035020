"""Sample images during training, generated with the models that are being trained.

Each image has its own random generator, so that sampling does not change the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lora_studio.device import warn_if_out_of_memory
from lora_studio.events import Report
from lora_studio.files import write_atomic
from lora_studio.models.load import Base, on_device
from lora_studio.models.pipeline import TextEmbeddings, generate_image, make_pipeline
from lora_studio.models.text_encoding import encode_text
from lora_studio.settings.job_specs import TrainJob
from lora_studio.training.data.dataset import Dataset
from lora_studio.training.trainer import Trainer, eval_mode


@dataclass(frozen=True)
class SampleSettings:
    """Settings of sample images: side in px, Euler steps, classifier-free guidance scale, seed."""

    side: int
    steps: int
    guidance: float
    seed: int


def sample_prompts(job: TrainJob, dataset: Dataset) -> list[str]:
    """Return the job's sample prompts with the trigger word filled in; an empty prompt becomes the first caption."""
    first_caption = dataset.items[0].caption
    prompts = [prompt.replace("{trigger}", job.trigger_word).strip() for prompt in job.recipe.sample_prompts]
    return [prompt or first_caption for prompt in prompts]


def encode_prompt(prompt: str, trainer: Trainer) -> TextEmbeddings:
    """Return embeddings [1, 77 n, D] and pooled embeddings [1, P] of a prompt, from the cache if there is one."""
    recipe, texts = trainer.recipe, trainer.collator.texts
    if texts is None:
        base = trainer.base
        return TextEmbeddings(
            *encode_text(base.text_encoders, base.tokenizers, [prompt], recipe.clip_skip, recipe.max_token_length)
        )
    hidden, pooled = texts.load([prompt], trainer.dtype)
    return TextEmbeddings(hidden.to(trainer.device), pooled.to(trainer.device))


def generate_samples(
    base: Base,
    prompts: Sequence[str],
    encode: Callable[[str], TextEmbeddings],
    settings: SampleSettings,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    report: Report,
    should_stop: Callable[[], bool],
) -> Iterator[Image.Image | None]:
    """Yield an image for each prompt, or None if it has NaN or Inf.

    End early after a stop request, and, with a warning, when memory runs out. The models are back in their previous
    mode, and unused GPU memory is freed, whenever an image is yielded. The negative prompt is empty.
    """
    pipe = make_pipeline(base)
    side = settings.side // base.latent_factor * base.latent_factor
    for prompt in prompts:
        completed, image = False, None
        with warn_if_out_of_memory(report, "sample_out_of_memory", f"Memory ran out in the sample for {prompt!r}."):
            modes = eval_mode(base.unet, *base.text_encoders)
            with on_device(base.vae, device), modes, torch.no_grad(), autocast():
                text = encode(prompt)
                image = generate_image(
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
            completed = True
        if not completed or (image is None and should_stop()):
            return
        yield image


def save_sample(path: Path, image: Image.Image) -> None:
    """Write an image as PNG, atomically."""
    write_atomic(path, lambda temporary: image.save(temporary, "PNG"))
