"""Merge LoRAs into one, each with a weight: by concatenating their ranks, which is exact, or at a smaller rank."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.lora.deltas import LowRank, delta_matrix, kernel_of, low_rank, rank_of
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
from lora_studio.lora.tools.layer_names import LayerName, find_layer_names
from lora_studio.lora.tools.new_file import check_new_file
from lora_studio.lora.tools.reports import LayerError, TruncationReport
from lora_studio.lora.tools.resize import truncation_report
from lora_studio.lora.tools.truncate import RankRule, Truncated, lora_parts, truncate


def merge_loras(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    keep: float | None = None,
    dtype: str | None = None,
    on_progress: Progress = no_progress,
) -> TruncationReport:
    """Write the sum of LoRAs, each times its weight (default: 1).

    Without `rank` and `keep` the ranks are concatenated, which is exact up to rounding to `dtype` (by default the
    widest of the files); otherwise the sum is resized as by `resize_lora`. LoHa, LoKr and full differences need a rank.
    Raises InputError, also for a DoRA, whose change is not a sum, and if `out` exists.
    """
    paths, out = [Path(source) for source in sources], Path(out)
    weights = [1.0] * len(paths) if weights is None else list(weights)
    _check_arguments(paths, weights)
    check_new_file(out)
    rule = RankRule(rank, keep) if rank is not None or keep is not None else None
    with ExitStack() as stack:
        readers = [stack.enter_context(LoraReader(path)) for path in paths]
        chosen = parse_dtype(dtype, readers)
        names = [find_layer_names(reader.layers) for reader in readers]
        places = _layers_by_name(names)
        tensors: dict[str, Tensor] = {}
        layers, norms = [], []
        for number, (kohya, own) in enumerate(places.items()):
            given = [(readers[index], layer, weights[index]) for index, layer in own.items()]
            tensors |= layer_vectors(kohya, _merged_vectors(given, chosen))
            if (merged := _merge_layer(given, rule)) is not None:
                small, kernel, rank_before = merged
                tensors |= lora_parts(kohya, small.factors, kernel, chosen)
                error = small.lost / small.norm if small.norm else 0.0
                layers.append(LayerError(layer=kohya, rank_before=rank_before, rank=small.rank, error=error))
                norms.append((small.norm, small.lost))
            on_progress(number + 1, len(places))
        metadata = _merged_metadata(readers, weights, [layer.rank for layer in layers])
        write_lora(out, tensors, metadata)
    return truncation_report(out, layers, norms, sum(path.stat().st_size for path in paths))


def _check_arguments(paths: Sequence[Path], weights: Sequence[float]) -> None:
    if len(paths) < 2:
        raise InputError(f"{len(paths)} LoRAs are given.", "Give at least two to merge.", code="merge_count")
    if len(weights) != len(paths):
        raise InputError(
            f"{len(weights)} weights are given for {len(paths)} LoRAs.",
            "Give one weight per LoRA.",
            code="merge_weights",
        )
    for weight in weights:
        if not abs(weight) <= 1000:
            raise InputError(f"A weight is {weight:g}.", "Give a number like 0.8.", code="merge_weights")


def _layers_by_name(names: Sequence[dict[str, LayerName]]) -> dict[str, dict[int, str]]:
    """Return kohya's name of each layer -> number of the file -> the layer's name in it."""
    found: dict[str, dict[int, str]] = {}
    for index, own in enumerate(names):
        for layer, name in own.items():
            found.setdefault(name.kohya, {})[index] = layer
    return found


def _merge_layer(
    given: Sequence[tuple[LoraReader, str, float]], rule: RankRule | None
) -> tuple[Truncated, tuple[int, ...], int] | None:
    """Return the sum of a layer's deltas, its kernel and the sum of ranks; None if no file changes its weight."""
    ups, downs, dense, ranks = [], [], [], 0
    kernel: tuple[int, ...] = ()
    for reader, layer, weight in given:
        parts = reader.parts(layer)
        if not parts:
            continue
        if "dora_scale" in parts:
            raise InputError(
                f"LoRA {reader.lora.path.name} is a DoRA, whose change of a weight is not a sum.",
                "Merge it into its base, and extract a LoRA from the result: python -m lora_studio lora extract.",
                code="lora_dora",
            )
        alpha = reader.alpha(layer, parts)
        factors = low_rank(parts, alpha)
        ranks += rank_of(parts)
        kernel = kernel_of(parts) or kernel or kernel_of_name(layer)
        if factors is not None:
            ups.append(weight * factors.up)
            downs.append(factors.down)
        elif rule is None:
            raise InputError(
                f"LoRA {reader.lora.path.name} is not a plain LoRA, so that its ranks cannot be concatenated.",
                "Give a rank, for example --rank 32: the sum is then approximated at that rank.",
                code="merge_rank",
            )
        else:
            dense.append(weight * delta_matrix(parts, alpha))
    if not ups and not dense:
        return None
    whole = LowRank(torch.cat(ups, 1), torch.cat(downs)) if ups else None
    if rule is None:
        assert whole is not None
        norm = float(whole.matrix.norm())
        return Truncated(whole, norm, 0.0), kernel, ranks
    matrix = sum(dense, whole.matrix if whole is not None else torch.zeros(())) if dense else None
    delta = matrix if matrix is not None else whole
    assert delta is not None
    return truncate(delta, rule), kernel, ranks


def _merged_vectors(given: Sequence[tuple[LoraReader, str, float]], dtype: torch.dtype) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for reader, layer, weight in given:
        for part, vector in reader.vectors(layer).items():
            change = weight * vector.float()
            found[part] = found[part] + change if part in found else change
    return {part: vector.to(dtype) for part, vector in found.items()}


def _merged_metadata(readers: Sequence[LoraReader], weights: Sequence[float], ranks: Sequence[int]) -> dict[str, str]:
    """Return what all files agree on, and which files were merged."""
    first, *others = [reader.lora.metadata for reader in readers]
    shared = {name: value for name, value in first.items() if all(metadata.get(name) == value for metadata in others)}
    titles = [reader.lora.metadata.get("modelspec.title", reader.lora.name) for reader in readers]
    text = ", ".join(f"{title} x {weight:g}" for title, weight in zip(titles, weights, strict=True))
    return network_metadata(shared, ranks, f"merged from {text}") | {"modelspec.merged_from": ", ".join(titles)}
