"""Recognise which kind of model a checkpoint is, so that one that is not an SDXL is refused by name."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

# Starts of tensor names in single files, the most telling first. "model.diffusion_model." is left out of them.
_TENSORS = {
    "double_blocks.": "a FLUX model",
    "joint_blocks.": "a Stable Diffusion 3 model",
    "noise_refiner.": "a Lumina 2 or Z-Image model",
    "conditioner.embedders.0.model.": "an SDXL refiner",
    "cond_stage_model.model.": "a Stable Diffusion 2 model",
    "cond_stage_model.transformer.": "a Stable Diffusion 1 model",
    "label_emb.": "an SDXL UNet without text encoders and VAE",
    "decoder.conv_in.": "a VAE",
}
_ADAPTER_PARTS = ("lora_down", "lora_A", "hada_w1", "lokr_w")
# Pipeline classes of diffusers, as model_index.json names them.
_PIPELINES = {
    "StableDiffusionPipeline": "a Stable Diffusion 1 or 2 model",
    "StableDiffusionXLImg2ImgPipeline": "an SDXL refiner",
    "StableDiffusion3Pipeline": "a Stable Diffusion 3 model",
    "FluxPipeline": "a FLUX model",
}
# A checkpoint of SDXL has 2,500 tensors, a quantized one up to four times as many, and a header below 2 MB; its
# metadata may contain an image.
MAX_HEADER_BYTES = 32 * 1024**2
MAX_TENSORS = 20_000
SDXL_PIPELINE = "StableDiffusionXLPipeline"


def read_header(file: Path) -> tuple[set[str], dict[str, str]]:
    """Return the tensor names and the metadata of a .safetensors file, without its tensors and without torch.

    Raises OSError if the file cannot be read, ValueError if it is damaged or incomplete
    (https://github.com/huggingface/safetensors#format).
    """
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if length > size - 8:
            raise ValueError("its header is incomplete")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {length / 2**20:.0f} MiB; the limit is {MAX_HEADER_BYTES >> 20} MiB")
        text = content.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if len(header) > MAX_TENSORS:
        raise ValueError(f"its header has {len(header):,} tensors; the limit is {MAX_TENSORS:,}")
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is damaged")
    try:
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError("its header is damaged") from error
    if 8 + length + end != size:
        raise ValueError(f"it has {size:,} bytes instead of {8 + length + end:,}")
    return set(header), {str(name): str(value) for name, value in metadata.items()}


def is_adapter(keys: Collection[str]) -> bool:
    """Return whether tensors of these names are those of a LoRA, LoHa or LoKr."""
    return any(part in key for key in keys for part in _ADAPTER_PARTS)


def kind_of_tensors(keys: Collection[str]) -> str:
    """Return what a single file with tensors of these names is, with its article; empty if it is not recognised."""
    names = {key.removeprefix("model.diffusion_model.") for key in keys}
    return next((kind for start, kind in _TENSORS.items() if any(name.startswith(start) for name in names)), "")


def kind_of_pipeline(class_name: str) -> str:
    """Return what a model of this pipeline class of diffusers is, with its article; empty for an SDXL."""
    if class_name in ("", SDXL_PIPELINE):
        return ""
    return _PIPELINES.get(class_name, f"a model for diffusers' {class_name}")


def kind_of_folder(folder: Path) -> str:
    """Return what a folder in diffusers layout is; empty for an SDXL, or if its model_index.json does not tell."""
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return kind_of_pipeline(str(index.get("_class_name", ""))) if isinstance(index, dict) else ""
