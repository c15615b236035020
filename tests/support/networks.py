"""Recipes of every network type, and adapters with random weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from torch import Tensor

from lora_studio.lora.inject import Adapters, add_adapters, layer_tensors
from lora_studio.lora.save import save_lora
from lora_studio.lora.write import adapter_metadata, lora_tensors
from lora_studio.settings.choices import SaveFormat
from lora_studio.settings.recipe import Recipe
from lora_studio.training.trainer import Trainer
from lora_studio.workspace.project import Home
from tests.support.tiny_sdxl import make_pipeline
from tests.support.training_runs import make_images, make_job, start

SMALL = {"network_dim": 4, "network_alpha": 2}


NETWORKS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "LoCon": {"network_type": "LoCon", "conv_dim": 2, "conv_alpha": 1},
    "DoRA": {"network_type": "DoRA", "train_layers": "all"},
    "LoHa": {"network_type": "LoHa", "train_layers": "all"},
    "LoHa tucker": {"network_type": "LoHa", "train_layers": "all", "use_tucker": True},
    "LoKr": {"network_type": "LoKr", "train_layers": "all", "network_dim": 1},
    "LoKr whole": {"network_type": "LoKr", "network_dim": 64, "lokr_factor": 4},
    "LoKr full": {"network_type": "LoKr", "train_layers": "all", "network_dim": 100_000, "conv_dim": 100_000},
    "LoKr tucker": {"network_type": "LoKr", "train_layers": "all", "network_dim": 1, "use_tucker": True},
    "rsLoRA blocks": {"rank_stabilized": True, "block_dims": "in=2, mid=8, out0=0"},
    "LoCon diffusers": {"network_type": "LoCon", "conv_dim": 2, "rank_stabilized": True, "save_format": "diffusers"},
    "DoRA diffusers": {"network_type": "DoRA", "train_layers": "all", "save_format": "diffusers"},
}


def in_tiers(names: Iterable[str], *, fast: Collection[str]) -> list[Any]:
    """Return the parameters of a test, those that are not in `fast` for the slow tier."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def recipe_of(network: str, **more: Any) -> Recipe:
    return Recipe.parse(SMALL | NETWORKS[network] | more)


def unet_output(pipe: StableDiffusionXLPipeline) -> Tensor:
    """Return the UNet's prediction for noisy latents and token ids that both text encoders encode."""
    source = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=source)
    ids = torch.randint(0, 400, (1, 77), generator=source)
    with torch.no_grad():
        first = pipe.text_encoder(ids, output_hidden_states=True)
        second = pipe.text_encoder_2(ids, output_hidden_states=True)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        added = {"text_embeds": second[0], "time_ids": torch.zeros(1, 6)}
        out: Tensor = pipe.unet(latents, torch.tensor([500]), hidden, added_cond_kwargs=added, return_dict=False)[0]
        return out


def add_random_adapters(pipe: StableDiffusionXLPipeline, recipe: Recipe) -> Adapters:
    """Add adapters with random weights, so that they have an effect as after training."""
    adapters = add_adapters(pipe.unet, [pipe.text_encoder, pipe.text_encoder_2], recipe)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, _, layer in adapters.layers:
            for name, weight in layer_tensors(layer).items():
                noise = torch.randn(weight.shape, generator=source)
                weight.copy_(weight * (1 + 0.3 * noise) if name == "dora_scale" else 0.3 * noise)
    return adapters


def write_lora(path: Path, pipe: StableDiffusionXLPipeline, adapters: Adapters, recipe: Recipe) -> Path:
    metadata = adapter_metadata(adapters) if recipe.save_format is SaveFormat.DIFFUSERS else {}
    save_lora(path, lora_tensors(adapters, pipe.unet, torch.float32, recipe.save_format), metadata)
    return path


def eval_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    """Return the tiny SDXL with one layer per block, in eval mode; its tokenizers are written to `folder`."""
    pipe = make_pipeline(folder, layers=1)
    for model in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        model.eval()
    return pipe


def run_with_random_lora(base: Path, folder: Path) -> Trainer:
    """Return a trainer with a LoRA in all three models; B is random, so that the LoRA has an effect."""
    images = make_images(folder / "images" / "2_ink stamp", [(64, 64), (64, 64)])
    trainer = start(make_job(base, images.parent, text_encoder_lr=1e-4), folder, Home(folder / "home"))
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, _, layer in trainer.adapters.layers:
            weight = layer.lora_B["default"].weight
            weight.copy_(0.2 * torch.randn(weight.shape, generator=source))
    return trainer


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as content:
        return dict(content.metadata())
