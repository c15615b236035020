"""Sample images during training, generated with the models that are being trained.

Each image has its own random generator, so that sampling does not change the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from PIL import Image

from lora_studio.device import warn_if_out_of_memory
from lora_studio.events import Report, WarningEvent
from lora_studio.models.load import Base
from lora_studio.models.pipeline import TextEmbeddings, generate_image, make_pipeline
from lora_studio.models.png_info import CPU_NOISE, image_settings, infotext
from lora_studio.models.samplers import SAMPLERS, make_scheduler
from lora_studio.models.text_encoding import encode_text, truncated_captions
from lora_studio.settings.choices import Sampler
from lora_studio.settings.job_specs import TrainJob
from lora_studio.settings.sample_prompts import fill_trigger, negative_prompt, read_sample_prompts
from lora_studio.training.data.dataset import Dataset
from lora_studio.training.trainer import Trainer, eval_mode


@dataclass(frozen=True)
class Sample:
    """All that determines a sample image besides the weights; `width` and `height` are in px."""

    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    sampler: Sampler


def samples_of(job: TrainJob, dataset: Dataset, base: Base) -> list[Sample]:
    """Return the samples that a job draws each time, with its trigger word filled in.

    An empty prompt becomes the first caption; without a size it is the base's native resolution.
    """
    found = []
    for prompt in read_sample_prompts(job.recipe):
        settings = prompt.settings
        sides = (settings.sample_width, settings.sample_height)
        width, height = ((side or base.native_resolution) // base.latent_factor * base.latent_factor for side in sides)
        found.append(
            Sample(
                prompt=fill_trigger(prompt.text, job.trigger_word) or dataset.items[0].caption,
                negative_prompt=fill_trigger(negative_prompt(settings, job.base), job.trigger_word),
                seed=job.recipe.seed if settings.sample_seed is None else settings.sample_seed,
                width=width,
                height=height,
                steps=settings.sample_steps,
                guidance=settings.sample_guidance,
                sampler=settings.sample_sampler,
            )
        )
    return found


def sample_texts(samples: Sequence[Sample]) -> list[str]:
    """Return the texts that samples need embeddings of; an empty negative prompt has zeros."""
    return [text for sample in samples for text in (sample.prompt, *filter(None, [sample.negative_prompt]))]


def report_truncated_prompts(job: TrainJob, dataset: Dataset, base: Base, report: Report) -> None:
    """Warn about sample prompts that are longer than the recipe's `max_token_length`."""
    limit = int(job.recipe.max_token_length)
    texts = dict.fromkeys(sample_texts(samples_of(job, dataset, base)))
    if truncated := truncated_captions(base.tokenizers[0], list(texts), limit):
        message = f"Sample prompts are truncated to {limit} tokens: {', '.join(map(repr, truncated))}."
        report(WarningEvent(code="long_prompt", message=message))


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
    samples: Sequence[Sample],
    encode: Callable[[str], TextEmbeddings],
    *,
    autocast: Callable[[], AbstractContextManager[object]],
    decode_in_half: bool = True,
    report: Report,
    should_stop: Callable[[], bool],
) -> Iterator[Image.Image | None]:
    """Yield an image for each sample, or None if it has NaN or Inf.

    End early after a stop request, and, with a warning, when memory runs out. The models are back in their previous
    mode, and unused GPU memory is freed, whenever an image is yielded.
    """
    pipe = make_pipeline(base)
    for sample in samples:
        completed, image = False, None
        message = f"Memory ran out in the sample for {sample.prompt!r} of {sample.width}x{sample.height} px."
        with warn_if_out_of_memory(report, "sample_out_of_memory", message):
            modes = eval_mode(base.unet, *base.text_encoders)
            with modes, torch.no_grad(), autocast():
                text = encode(sample.prompt)
                pipe.scheduler = make_scheduler(base, sample.sampler)
                image = generate_image(
                    pipe,
                    text,
                    encode(sample.negative_prompt) if sample.negative_prompt else text.zeros(),
                    seed=sample.seed,
                    steps=sample.steps,
                    guidance=sample.guidance,
                    width=sample.width,
                    height=sample.height,
                    decode_in_half=decode_in_half,
                    should_stop=should_stop,
                )
            completed = True
        if not completed or (image is None and should_stop()):
            return
        yield image


def sample_parameters(sample: Sample, trainer: Trainer, step: int) -> str:
    """Return the parameters of a sample after `step` optimizer steps, as A1111's infotext; as those of a sweep."""
    job, base = trainer.job, trainer.base
    settings = image_settings(
        steps=sample.steps,
        sampler=SAMPLERS[sample.sampler].title,
        guidance=sample.guidance,
        seed=sample.seed,
        size=(sample.width, sample.height),
    )
    settings |= {"Model hash": base.hash[:10], "Model": base.name, "Clip skip": job.recipe.clip_skip}
    settings |= {**CPU_NOISE, "Precision": str(trainer.dtype).removeprefix("torch."), "Training step": step}
    return infotext(f"{sample.prompt} <lora:{job.name}:1>".strip(), sample.negative_prompt, settings)
