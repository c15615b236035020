"""The GPU memory of each phase of a run and of a sweep at SDXL's real size, measured on the code that runs.

The meta device replaces the GPU (see `meta_gpu`). A peak is in bytes of tensors, without what CUDA itself takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_studio.dataset.buckets import Placement
from lora_studio.events import Event, WarningEvent
from lora_studio.lora.layers import TargetLayer, find_target_layers
from lora_studio.lora.read import LayerWeights
from lora_studio.lora.shapes import layer_dim_alpha
from lora_studio.models.load import Base, make_noise_scheduler, on_device
from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.models.pipeline import TextEmbeddings
from lora_studio.models.text_encoding import CHUNK_TOKENS, encode_text
from lora_studio.planning.steps import count_steps
from lora_studio.sampling import adapter
from lora_studio.sampling import pipeline as sampling_pipeline
from lora_studio.sampling.adapter import apply_lora
from lora_studio.sampling.pipeline import SamplingPipeline
from lora_studio.settings.choices import NetworkType, Precision
from lora_studio.settings.recipe import Recipe
from lora_studio.training.build import fit_gpu_memory, make_trainer
from lora_studio.training.data.batch import BatchTensors, StepBatches
from lora_studio.training.data.cache import encode_image
from lora_studio.training.loop import step_retry
from lora_studio.training.reporting.startup import PhaseReporter
from lora_studio.training.samples import encode_prompt, generate_samples, samples_of
from lora_studio.training.step import train_step
from lora_studio.training.trainer import Trainer, eval_mode
from lora_studio.workspace.job_folder import JobFolder
from lora_studio.workspace.project import Home
from tests.support.events import ignore
from tests.support.meta_gpu import META, MetaGpu, meta_gpu

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": torch.bfloat16}


def config(part: str) -> dict[str, Any]:
    """Return SDXL's configuration of a part."""
    return dict(json.loads((SDXL_CONFIG / part / "config.json").read_text("utf-8")))


def real_base(dtype: torch.dtype) -> Base:
    """Return an SDXL at its real size on the CPU. Its weights are never read, so that they take no memory."""
    with torch.device("meta"):
        parts: list[nn.Module] = [
            UNet2DConditionModel.from_config(config("unet")),
            CLIPTextModel(CLIPTextConfig(**config("text_encoder"))),
            CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder_2"))),
            AutoencoderKL.from_config(config("vae")),
        ]
    for part in parts:
        half = dtype if not isinstance(part, AutoencoderKL) else torch.float32
        nn.Module.to(part, half).requires_grad_(False).eval().to_empty(device="cpu")
    unet, first, second, vae = parts
    return Base(
        name="SDXL",
        unet=unet,
        text_encoders=[first, second],
        tokenizers=tokenizers(),
        vae=vae,
        noise_scheduler=make_noise_scheduler({}, "epsilon", False),
        prediction_type="epsilon",
        zero_terminal_snr=False,
        native_resolution=1024,
    )


@cache
def tokenizers() -> list[CLIPTokenizer]:
    """Return SDXL's tokenizers."""
    return [CLIPTokenizer.from_pretrained(SDXL_CONFIG / name) for name in ("tokenizer", "tokenizer_2")]


def batch_of(recipe: Recipe, dtype: torch.dtype) -> BatchTensors:
    """Return a batch like the collator's, on the CPU."""
    count, chunks, side = recipe.batch_size, recipe.max_token_length // CHUNK_TOKENS, recipe.resolution // 8
    trains_text = recipe.trains_text_encoders
    latents = (count, 4, side, side)
    return BatchTensors(
        noisy=torch.zeros(latents, dtype=dtype),
        target=torch.zeros(latents),
        t=torch.full((count,), 500),
        time_ids=torch.zeros(count, 6, dtype=torch.long),
        weights=torch.ones(count),
        sample_count=torch.tensor(float(count)),
        hidden=None if trains_text else torch.zeros(count, 77 * chunks, 2048, dtype=dtype),
        pooled=None if trains_text else torch.zeros(count, 1280, dtype=dtype),
        tokens=torch.zeros(2, count, chunks, 77, dtype=torch.long) if trains_text else None,
    )


def embeddings(recipe: Recipe, dtype: torch.dtype) -> TextEmbeddings:
    """Return a prompt's embeddings on the GPU."""
    tokens = 77 * recipe.max_token_length // CHUNK_TOKENS
    return TextEmbeddings(
        torch.zeros(1, tokens, 2048, dtype=dtype, device=META), torch.zeros(1, 1280, dtype=dtype, device=META)
    )


@dataclass
class Phases:
    """Measures the peaks of phases on a GPU, in bytes of tensors."""

    gpu: MetaGpu
    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the peak within the block."""
        self.gpu.reset_peak()
        yield
        self.peaks[name] = self.gpu.peak


def run_phases(recipe: Recipe, limit: float = math.inf) -> dict[str, int]:
    """Run all phases of a training on a GPU with `limit` bytes for tensors; return the peak of each.

    Raises torch.OutOfMemoryError if one does not fit.
    """
    base = real_base(DTYPES[recipe.mixed_precision.value])
    with meta_gpu(limit) as gpu:
        phases = Phases(gpu)
        _Run(recipe, phases).go(base)
    return phases.peaks


class _Run:
    """A run of a recipe on the meta device in a GPU's place."""

    def __init__(self, recipe: Recipe, phase: Phases) -> None:
        self.recipe, self.phase = recipe, phase
        self.dtype = DTYPES[recipe.mixed_precision.value]

    def go(self, base: Base) -> None:
        """Go through all phases of a run, the second of its steps with the optimizer's state."""
        recipe, phase = self.recipe, self.phase
        with phase("Encoding images"), on_device(base.vae, META):
            size = (recipe.resolution, recipe.resolution)
            item: Any = SimpleNamespace(placement=Placement(bucket=size, scaled=size, crop=(0, 0)), flipped=False)
            encode_image(base.vae, Image.new("RGB", size), item)
        if not recipe.trains_text_encoders:
            with phase("Encoding captions"):
                self._encode_captions(base)
        with phase("Making the trainer"):
            trainer = self._trainer(base)
        with phase("Measuring a step"):
            fit_gpu_memory(trainer, ignore)
        with phase("Training"):
            for _ in range(2):
                train_step(trainer, 0, step_retry(trainer, _raise_warning)).read()
                trainer.averaged_weights.update()
        with phase("Validation"), eval_mode(base.unet, *base.text_encoders), torch.no_grad():
            trainer.batch_loss(batch_of(recipe, self.dtype).to(META))
        with phase("Drawing a sample"), trainer.averaged_weights.swapped_in():
            self._draw(trainer)
        with phase("Training again"):
            train_step(trainer, 0, step_retry(trainer, _raise_warning)).read()

    def _encode_captions(self, base: Base) -> None:
        modules: list[nn.Module] = [*base.text_encoders]
        for module in modules:
            module.to(META)
        with torch.no_grad():
            encode_text(base.text_encoders, base.tokenizers, ["a"], self.recipe.clip_skip, self.recipe.max_token_length)
        base.text_encoders.clear()

    def _trainer(self, base: Base) -> Trainer:
        recipe, batch = self.recipe, batch_of(self.recipe, self.dtype)
        inputs = StepBatches(recipe.batch_size, [(0, batch)])
        counts = count_steps({(1, 1): recipe.batch_size}, batch_size=recipe.batch_size, epochs=1000)
        job: Any = SimpleNamespace(recipe=recipe, network_weights=None, trigger_word="inkstamp", base="SDXL")
        checked: Any = SimpleNamespace(device=META, dtype=self.dtype, counts=counts, failed_paths=frozenset())
        collator: Any = SimpleNamespace(
            collate_step=lambda step: inputs,
            largest_batch=lambda: [None] * recipe.batch_size,
            collate=lambda *given: batch,
            images=lambda step: [None] * recipe.batch_size,
            timesteps=lambda step, first, count: [0] * count,
            batch_pixels=lambda step: recipe.batch_size * recipe.resolution**2,
            texts=None,
            dataset=SimpleNamespace(items=[SimpleNamespace(caption="a")]),
        )
        return make_trainer(job, JobFolder(Path("nowhere")), checked, base, collator, phases=PhaseReporter(ignore))

    def _draw(self, trainer: Trainer) -> None:
        base = trainer.base
        samples = samples_of(trainer.job, trainer.dataset, base)
        found = list(
            generate_samples(
                base,
                samples,
                lambda prompt: (
                    encode_prompt(prompt, trainer) if base.text_encoders else embeddings(self.recipe, self.dtype)
                ),
                autocast=trainer.batch_loss.autocast,
                report=ignore,
                should_stop=lambda: False,
            )
        )
        if len(found) < len(samples) or None in found:
            raise torch.OutOfMemoryError("A sample is missing.")


def sweep_phases(side: int = 1024, limit: float = math.inf) -> dict[str, int]:
    """Draw an image of a sweep, with a LoRA of rank 32; return the peak of each phase."""
    base = real_base(torch.bfloat16)
    with meta_gpu(limit) as gpu:
        phase = Phases(gpu)
        with phase("Loading"):
            pipeline = _sampling_pipeline(base, gpu)
        with phase("Loading a LoRA"):
            targets = [target for target in find_target_layers(base.unet, []) if _is_trained(target)]
            layers = [LayerWeights(target, NetworkType.LORA, 32, 16, _factors(target)) for target in targets]
            doubles = {
                "read_layers": lambda lora, targets: (layers, []),
                "free_gpu_bytes": lambda device: gpu.limit - gpu.now,
                "copy_weight": _copy_of_meta,
            }
            with mock.patch.multiple(adapter, **doubles):
                added = apply_lora(pipeline.pipe, SimpleNamespace(has_vectors=False))  # type: ignore[arg-type]
                added.__enter__()
        with phase("Encoding prompts"):
            text = pipeline.encode("a", clip_skip=2)
        with phase("Drawing a cell"):
            image = pipeline.generate(text, text.zeros(), seed=1, steps=1, guidance=6.0, width=side, height=side)
            assert image is not None
    return phase.peaks


def _sampling_pipeline(base: Base, gpu: MetaGpu) -> SamplingPipeline:
    """Load a base for sampling on the GPU."""
    doubles: dict[str, Any] = {
        "torch_device": lambda: META,
        "torch_dtype": lambda precision, device: (torch.bfloat16, ""),
        "resolve_base": lambda name, home: name,
        "load_base": lambda *given, **named: base,
        "free_gpu_bytes": lambda device: gpu.limit - gpu.now,
    }
    with ExitStack() as stack:
        for name, double in doubles.items():
            stack.enter_context(mock.patch.object(sampling_pipeline, name, double))
        return sampling_pipeline.load_sampling_pipeline("SDXL", home=Home(Path("nowhere")), precision=Precision.AUTO)


def _copy_of_meta(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy of a weight on the GPU, or one in main memory that takes none."""
    if device.type == "meta":
        return torch.empty_like(weight)
    return torch.empty(1, dtype=weight.dtype).expand(weight.shape)


def _is_trained(target: TargetLayer) -> bool:
    return layer_dim_alpha(Recipe(), target.layer) is not None


def _factors(target: TargetLayer) -> dict[str, torch.Tensor]:
    kernel = (1, 1) if target.layer.kernel else ()
    return {
        "lora_down.weight": torch.empty(32, target.layer.inputs, *kernel),
        "lora_up.weight": torch.empty(target.layer.outputs, 32, *kernel),
    }


def _raise_warning(event: Event) -> None:
    """Raise for a warning: a step that runs out of memory is a failure here, though a run would repeat it."""
    if isinstance(event, WarningEvent):
        raise torch.OutOfMemoryError(event.message)
