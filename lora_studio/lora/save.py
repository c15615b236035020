"""Save tensors as a LoRA file with its hashes, and make the metadata of diffusers' format."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lora_studio.files import write_bytes
from lora_studio.lora.names import PEFT_PREFIXES
from lora_studio.lora.shapes import DimAlpha
from lora_studio.models.locate import HASH_LENGTH, HASH_START


def peft_metadata(layers: Mapping[str, Mapping[str, DimAlpha]], *, use_dora: bool) -> dict[str, str]:
    """Return the metadata of diffusers' format: each model's peft configuration, as JSON.

    `layers` has the dim and alpha of each layer, by model (unet, te1, te2) and path. Names omit the level `text_model`,
    which the first text encoder lacks in newer versions of transformers; peft compares the ends of names.
    """
    values: dict[str, Any] = {}
    for model, own in layers.items():
        sizes = {path.removeprefix("text_model."): size for path, size in own.items()}
        dim, alpha = (Counter(found).most_common(1)[0][0] for found in zip(*sizes.values(), strict=True))
        config = {
            "r": dim,
            "lora_alpha": alpha,
            "rank_pattern": {path: size.dim for path, size in sizes.items() if size.dim != dim},
            "alpha_pattern": {path: size.alpha for path, size in sizes.items() if size.alpha != alpha},
            "target_modules": list(sizes),
            "use_dora": use_dora,
            "use_rslora": False,
        }
        values |= {f"{PEFT_PREFIXES[model]}.{name}": value for name, value in config.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(values, sort_keys=True)}


def save_lora(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the file atomically, with the hashes by which programs identify a LoRA.

    Raises DiskFullError if the disk is full, InputError if the folder is not writable.
    """
    write_bytes(path, safetensors.torch.save(tensors, {**metadata, **model_hashes(tensors, metadata)}))


def model_hashes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """Return kohya's two hashes of a LoRA: of everything after the header, and A1111's older one of a 64 KiB window.

    Both are computed from a file with the `ss_` metadata only, so that editing a title does not change them.
    """
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = safetensors.torch.save(tensors, training)
    (header,) = struct.unpack("<Q", content[:8])
    return {
        "sshs_model_hash": hashlib.sha256(content[8 + header :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[HASH_START : HASH_START + HASH_LENGTH]).hexdigest()[:8],
    }
