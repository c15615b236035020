"""Resize a LoRA to a smaller rank by singular value decomposition; LoHa, LoKr and full differences become LoRAs."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.lora.deltas import delta_matrix, kernel_of, low_rank, rank_of
from lora_studio.lora.names import kernel_of_name
from lora_studio.lora.tools.files import (
    LoraReader,
    Progress,
    layer_vectors,
    network_metadata,
    no_progress,
    parse_dtype,
    write_lora,
)
from lora_studio.lora.tools.layer_names import find_layer_names
from lora_studio.lora.tools.new_file import check_new_file
from lora_studio.lora.tools.reports import LayerError, TruncationReport
from lora_studio.lora.tools.truncate import RankRule, lora_parts, truncate


def resize_lora(
    source: Path | str,
    out: Path | str,
    *,
    rank: int | None = None,
    keep: float | None = None,
    dtype: str | None = None,
    on_progress: Progress = no_progress,
) -> TruncationReport:
    """Write a LoRA at a lower rank: at most `rank`, and as few as keep the share `keep` of each layer's norm.

    A DoRA keeps its magnitudes; changes of biases and norms stay as they are. `dtype` is float32, float16 or bfloat16,
    by default the file's own. Raises InputError, also if `out` exists.
    """
    source, out = Path(source), Path(out)
    rule = RankRule(rank, keep)
    check_new_file(out)
    with LoraReader(source) as reader:
        chosen = parse_dtype(dtype, [reader])
        names = find_layer_names(reader.layers)
        tensors: dict[str, Tensor] = {}
        layers, norms = [], []
        for number, layer in enumerate(reader.layers):
            kohya = names[layer].kohya
            tensors |= layer_vectors(kohya, reader.vectors(layer))
            if parts := reader.parts(layer):
                alpha = reader.alpha(layer, parts)
                factors = low_rank(parts, alpha)
                small = truncate(delta_matrix(parts, alpha) if factors is None else factors, rule)
                kernel = kernel_of(parts) or kernel_of_name(layer)
                tensors |= lora_parts(kohya, small.factors, kernel, chosen)
                if "dora_scale" in parts:
                    tensors[f"{kohya}.dora_scale"] = parts["dora_scale"]
                error = small.lost / small.norm if small.norm else 0.0
                layers.append(LayerError(layer=layer, rank_before=rank_of(parts), rank=small.rank, error=error))
                norms.append((small.norm, small.lost))
            on_progress(number + 1, len(reader.layers))
        if not layers:
            raise InputError(
                f"LoRA {source.name} changes only biases and norms: it has no rank to resize.",
                "Use it as it is.",
                code="lora_no_rank",
            )
        rule_text = " and ".join(
            text for text in (f"rank {rank}" if rank else "", f"{keep:.3g} of the norm" if keep else "") if text
        )
        metadata = network_metadata(reader.lora.metadata, [layer.rank for layer in layers], f"resized to {rule_text}")
        write_lora(out, tensors, metadata)
    return truncation_report(out, layers, norms, source.stat().st_size)


def truncation_report(
    out: Path, layers: list[LayerError], norms: list[tuple[float, float]], bytes_before: int
) -> TruncationReport:
    """Return the report of a written file from each layer's (norm, norm of what was left out)."""
    total = sum(norm**2 for norm, _ in norms)
    return TruncationReport(
        out=out,
        error=(sum(lost**2 for _, lost in norms) / total) ** 0.5 if total else 0.0,
        layers=sorted(layers, key=lambda layer: -layer.error),
        bytes_before=bytes_before,
        bytes=out.stat().st_size,
    )
