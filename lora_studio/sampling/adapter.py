"""A LoRA file on a pipeline: loaded once, then used at any strength without touching the base's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from lora_studio.errors import InputError
from lora_studio.training.lora_file import LoraFile

ADAPTER = "studio"
PEFT_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class Adapter:
    """A LoRA that lies on a pipeline. `matched` of `total` layers of the file were found in the base."""

    pipe: StableDiffusionXLPipeline
    matched: int
    total: int

    def set_strength(self, strength: float) -> None:
        """Add `strength` times the LoRA; 0 switches it off, which leaves exactly the base."""
        if strength == 0:
            self.pipe.disable_lora()
        else:
            self.pipe.enable_lora()
            self.pipe.set_adapters([ADAPTER], [strength])


@contextmanager
def applied(pipe: StableDiffusionXLPipeline, lora: LoraFile) -> Iterator[Adapter]:
    """Put a LoRA on the pipeline, and take it off at the end.

    Raises InputError if the weights are not finite, do not fit the base, or none of the file's layers is in the base.
    """
    weights = _read_weights(lora)
    try:
        with _quiet():
            if PEFT_METADATA in lora.metadata:
                pipe.load_lora_weights(
                    str(lora.path.parent),
                    weight_name=lora.path.name,
                    use_safetensors=True,
                    local_files_only=True,
                    adapter_name=ADAPTER,
                )
            else:
                pipe.load_lora_weights(weights, adapter_name=ADAPTER)
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        pipe.unload_lora_weights()
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _unfit(lora, _first_reason(error)) from error
    try:
        layers = [layer for layer in _layers(pipe) if ADAPTER in layer.lora_A]
        if not layers:
            raise _unfit(lora, f"none of its {len(lora.modules)} layers is there")
        for layer in layers:
            for part in (layer.lora_A, layer.lora_B):
                part[ADAPTER].to(dtype=layer.get_base_layer().weight.dtype)
        yield Adapter(pipe, len(layers), len(lora.modules))
    finally:
        pipe.unload_lora_weights()


def _read_weights(lora: LoraFile) -> dict[str, torch.Tensor]:
    """All tensors, checked, in names that diffusers takes."""
    try:
        weights: dict[str, torch.Tensor] = load_file(lora.path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"LoRA {lora.path.name} is damaged: {error}.", "Download or copy it again.", code="lora_file"
        ) from error
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"LoRA {lora.path.name} holds numbers that are not finite (in {name}).",
                "Its training broke down; use an earlier checkpoint.",
                code="lora_not_finite",
            )
    if lora.kohya:
        weights = {_with_text_model(name): weight for name, weight in weights.items()}
        _fold_mixed_alphas(weights)
    return weights


def _with_text_model(name: str) -> str:
    """Trainers on recent transformers leave `text_model_` out of the text encoders' names; diffusers needs it."""
    for prefix in ("lora_te1_", "lora_te2_"):
        if name.startswith(prefix + "encoder_"):
            return prefix + "text_model_" + name.removeprefix(prefix)
    return name


def _fold_mixed_alphas(weights: dict[str, torch.Tensor]) -> None:
    """Where layers differ in rank or alpha, put alpha into the weights: up <- up * alpha / rank, then alpha = rank.

    diffusers' own reading of mixed alphas does not reach the attention of the text encoders.
    """
    ranks = {name.removesuffix(".lora_down.weight"): w.shape[0] for name, w in weights.items() if "lora_down" in name}
    alphas = {name: float(weights.get(f"{name}.alpha", torch.tensor(rank))) for name, rank in ranks.items()}
    if len(set(ranks.values())) == 1 and len(set(alphas.values())) == 1:
        return
    for name, rank in ranks.items():
        weights[f"{name}.lora_up.weight"] = weights[f"{name}.lora_up.weight"].float() * (alphas[name] / rank)
        weights.pop(f"{name}.alpha", None)


def _layers(pipe: StableDiffusionXLPipeline) -> Iterator[BaseTunerLayer]:
    for model in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        yield from (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def _unfit(lora: LoraFile, why: str) -> InputError:
    made_for = lora.metadata.get("ss_base_model_version") or lora.metadata.get("modelspec.architecture")
    hint = f" Its metadata says that it was made for {made_for}." if made_for else ""
    return InputError(
        f"LoRA {lora.path.name} does not fit this base: {why}.{hint}",
        "Choose a base of the kind that the LoRA was trained on.",
        code="lora_unfit",
    )


def _first_reason(error: Exception) -> str:
    """The first line that says something: torch heads its list of wrong shapes with a line of its own."""
    if isinstance(error, KeyError):
        return f"it has no place for {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (lines[1] if lines[0].startswith("Error(s) in loading") and len(lines) > 1 else lines[0])[:250].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries from warning that a LoRA leaves a text encoder alone, and from listing what is raised too."""
    logger = logging.getLogger("diffusers.loaders")
    level, bars = logger.level, is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bar()
