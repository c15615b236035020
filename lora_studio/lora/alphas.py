"""The alpha of layers that have no tensor for it: those of diffusers and peft have it in a configuration.

diffusers writes peft's configuration of each model into the metadata (`lora_adapter_metadata`); peft writes one beside
the weights, `adapter_config.json`. Without either, alpha is the dim, as all programs assume.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lora_studio.lora.header import LoraFile
from lora_studio.lora.names import ANY_TEXT_ENCODER

PEFT_METADATA = "lora_adapter_metadata"
PEFT_CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 1024**2


def peft_config_file(path: Path) -> Path | None:
    """Return the file with peft's configuration of a LoRA file; None if there is none.

    It is `adapter_config.json` in a folder that peft saved, and `NAME.adapter_config.json` of an imported copy.
    """
    own = path.with_name(f"{path.stem}.{PEFT_CONFIG}")
    beside = path.with_name(PEFT_CONFIG)
    if own.is_file():
        return own
    return beside if path.stem == "adapter_model" and beside.is_file() else None


class Alphas:
    """The alphas that a file's metadata, or the configuration beside it, has for each layer."""

    def __init__(self, lora: LoraFile) -> None:
        self.metadata = _parse(lora.metadata.get(PEFT_METADATA, ""))
        file = peft_config_file(lora.path)
        is_small = file is not None and file.stat().st_size <= MAX_CONFIG_BYTES
        self.beside = _parse(file.read_text("utf-8", errors="replace")) if file is not None and is_small else {}

    def of(self, layer: str) -> Callable[[int], float]:
        """Return the function from a layer's dim to its alpha, for a layer without an alpha of its own."""
        return partial(self._alpha, layer)

    def _alpha(self, layer: str, dim: int) -> float:
        model, _, path = layer.partition(".")
        if not path:
            return float(dim)
        if self.beside and not any(key.startswith(f"{model}.") for key in self.metadata):
            return _alpha_of(self.beside, path, dim)
        model = "text_encoder" if model.endswith(f"_{ANY_TEXT_ENCODER}") else model
        own = {
            key.removeprefix(f"{model}."): value for key, value in self.metadata.items() if key.startswith(f"{model}.")
        }
        return _alpha_of(own, path, dim)


def content_hash(lora: LoraFile) -> str:
    """Return the SHA-256 in hex of all that a LoRA file does: its tensors with their names, and alphas beside them."""
    alphas = Alphas(lora)
    content = [lora.model_hash, sorted(lora.tensors.items()), alphas.metadata, alphas.beside]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _alpha_of(config: Mapping[str, Any], path: str, dim: int) -> float:
    """Return a layer's alpha, its dim if none is given. Patterns are compared as names, never run as regexes."""
    patterns = config.get("alpha_pattern") or {}
    exact = next((patterns[name] for name in _path_suffixes(path) if name in patterns), None)
    default = config.get("lora_alpha", config.get("alpha", dim))
    alpha = float(exact if exact is not None else default)
    return alpha * dim**0.5 if config.get("use_rslora") else alpha


def _path_suffixes(path: str) -> list[str]:
    """Return `a.b.c`, `b.c`, `c` of `a.b.c`: a pattern may omit the front of a path."""
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _parse(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
