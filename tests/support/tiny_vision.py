"""CLIP, SigLIP and DINOv2 with small random weights, in the same files as real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

SIDE = 16  # px
WIDTH = 12
_LAYER = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION = _LAYER | {"image_size": SIDE, "patch_size": 8, "intermediate_size": 16}
_TEXT = _LAYER | {"vocab_size": 20, "intermediate_size": 16, "max_position_embeddings": 8}
_TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def _clip() -> tuple[Any, Any]:
    return CLIPModel(CLIPConfig(vision_config=_VISION, text_config=_TEXT, projection_dim=6)), CLIPImageProcessor(
        **_CROPPED
    )


def _siglip() -> tuple[Any, Any]:
    size = {"height": SIDE, "width": SIDE}
    return SiglipModel(SiglipConfig(vision_config=_VISION, text_config=_TEXT)), SiglipImageProcessor(size=size)


def _dinov2() -> tuple[Any, Any]:
    return Dinov2Model(Dinov2Config(**_LAYER, image_size=SIDE, patch_size=8)), BitImageProcessor(**_CROPPED)


# Each family with the number of its features.
FAMILIES: dict[str, tuple[Callable[[], tuple[Any, Any]], int]] = {
    "clip": (_clip, 6),
    "siglip": (_siglip, WIDTH),
    "dinov2": (_dinov2, WIDTH),
}


def save_tiny_vision(folder: Path, family: str = "dinov2") -> Path:
    """Save a small model of a family with its image processor, as transformers does."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family][0]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
