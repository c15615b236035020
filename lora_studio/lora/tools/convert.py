"""Convert a LoRA file between kohya's naming and that of diffusers, which peft reads; the weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.lora.alphas import PEFT_METADATA
from lora_studio.lora.deltas import merged_down, rank_of
from lora_studio.lora.names import PEFT_PREFIXES
from lora_studio.lora.save import peft_metadata
from lora_studio.lora.shapes import DimAlpha
from lora_studio.lora.tools.files import LoraReader, Progress, layer_vectors, no_progress, write_lora
from lora_studio.lora.tools.layer_names import LayerName, find_layer_names
from lora_studio.lora.tools.new_file import check_new_file
from lora_studio.lora.tools.reports import ConvertReport, Naming


def convert_lora(
    source: Path | str, out: Path | str, to: Naming | str, *, on_progress: Progress = no_progress
) -> ConvertReport:
    """Write a LoRA with the names of kohya's or diffusers' format.

    In diffusers' format alphas are in the metadata, as diffusers 0.35 and later read them. From kohya's names to
    diffusers' and back every tensor is the same. Raises InputError for what diffusers' format does not have (LoHa,
    LoKr, full differences, norms, biases, DoRA with magnitudes per input), and if `out` exists.
    """
    source, out, naming = Path(source), Path(out), Naming(to)
    check_new_file(out)
    with LoraReader(source) as reader:
        names = find_layer_names(reader.layers)
        convert: Callable[[LoraReader, str, LayerName], dict[str, Tensor]]
        convert = _kohya_tensors if naming is Naming.KOHYA else _diffusers_tensors
        tensors: dict[str, Tensor] = {}
        dims: dict[str, dict[str, DimAlpha]] = {}
        for number, layer in enumerate(reader.layers):
            name = names[layer]
            tensors |= convert(reader, layer, name)
            if naming is Naming.DIFFUSERS:
                parts = reader.parts(layer)
                dims.setdefault(name.model, {})[name.path] = DimAlpha(rank_of(parts), reader.alpha(layer, parts))
            on_progress(number + 1, len(reader.layers))
        metadata = {key: value for key, value in reader.lora.metadata.items() if key != PEFT_METADATA}
        if naming is Naming.DIFFUSERS:
            use_dora = any("lora_magnitude_vector" in name for name in tensors)
            metadata |= peft_metadata(dims, use_dora=use_dora)
        write_lora(out, tensors, metadata)
        return ConvertReport(out=out, naming=naming, layers=len(reader.layers), left_out=reader.lora.embeddings)


def _kohya_tensors(reader: LoraReader, layer: str, name: LayerName) -> dict[str, Tensor]:
    parts = reader.parts(layer)
    tensors = dict(parts)
    if parts and "alpha" not in parts and rank_of(parts):
        dtype = max(parts.values(), key=Tensor.numel).dtype
        alpha = torch.tensor(reader.alpha(layer, parts))
        tensors["alpha"] = alpha.to(dtype) if float(alpha.to(dtype)) == float(alpha) else alpha
    if "dora_scale" in parts and reader.lora.modules[layer]["dora_scale"].split(".")[-1] != "dora_scale":
        dims = parts["lora_up.weight"].dim()
        tensors["dora_scale"] = parts["dora_scale"].reshape(-1, *[1] * (dims - 1))
    return {f"{name.kohya}.{part}": tensor for part, tensor in tensors.items()} | layer_vectors(
        name.kohya, reader.vectors(layer)
    )


def _diffusers_tensors(reader: LoraReader, layer: str, name: LayerName) -> dict[str, Tensor]:
    parts = reader.parts(layer)
    if "lora_down.weight" not in parts or reader.vectors(layer):
        raise InputError(
            f"LoRA {reader.lora.path.name} has a layer that diffusers' format does not have: {layer} "
            f"({', '.join(sorted(reader.lora.modules[layer]))}).",
            "Resize it first, which makes a LoRA of it: python -m lora_studio lora resize.",
            code="convert_type",
        )
    start = f"{PEFT_PREFIXES[name.model]}.{name.path}"
    tensors = {
        f"{start}.lora_A.weight": merged_down(parts).to(parts["lora_down.weight"].dtype),
        f"{start}.lora_B.weight": parts["lora_up.weight"],
    }
    if (magnitude := parts.get("dora_scale")) is not None:
        _check_axis(reader, layer, magnitude, parts)
        ending = ".weight" if name.model != "unet" else ""
        shape = (1, -1, 1, 1) if parts["lora_up.weight"].dim() == 4 else (-1,)
        tensors[f"{start}.lora_magnitude_vector{ending}"] = magnitude.reshape(shape)
    return tensors


def _check_axis(reader: LoraReader, layer: str, magnitude: Tensor, parts: Mapping[str, Tensor]) -> None:
    is_row = magnitude.dim() > 1 and magnitude.shape[0] == 1 and parts["lora_up.weight"].shape[0] > 1
    if is_row and reader.lora.modules[layer]["dora_scale"].endswith("dora_scale"):
        raise InputError(
            f"LoRA {reader.lora.path.name} is a DoRA with magnitudes per input, which diffusers' format does not have.",
            "Use it in kohya's format, which A1111, Forge and ComfyUI read.",
            code="convert_dora",
        )
