"""Extract a LoRA from a finetuned checkpoint: the difference to its base, layer by layer, at a smaller rank.

Both checkpoints are read one tensor at a time, so that the memory is that of the LoRA and a few layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.lora.tools.files import (
    DTYPES,
    Progress,
    network_metadata,
    no_progress,
    parse_dtype,
    write_lora,
)
from lora_studio.lora.tools.layer_names import LayerName, find_layer_names
from lora_studio.lora.tools.new_file import check_new_file
from lora_studio.lora.tools.reports import LayerError, TruncationReport
from lora_studio.lora.tools.resize import truncation_report
from lora_studio.lora.tools.truncate import RankRule, lora_parts, truncate
from lora_studio.models.locate import Source, fetch_base, read_base_config, resolve_base
from lora_studio.models.tensors import BaseTensors
from lora_studio.workspace.project import Home

SPECIFICATION = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
}


@dataclass
class _Extraction:
    """What was found so far."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    layers: list[LayerError] = field(default_factory=list)
    norms: list[tuple[float, float]] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)


def extract_lora(
    finetuned: str,
    out: Path | str,
    *,
    base: str,
    rank: int | None = None,
    keep: float | None = None,
    dtype: str = "float16",
    home: Home | None = None,
    on_progress: Progress = no_progress,
) -> TruncationReport:
    """Write the difference of two SDXL checkpoints as a LoRA: at most `rank`, and as few ranks as `keep` needs.

    `keep` is the share of the Frobenius norm of each layer's difference. `finetuned` and `base` are names from the
    catalogue, Hub repositories, diffusers folders or .safetensors files. Layers that are equal are left out; changes of
    norms and biases are only counted, in `left_out`. Raises InputError if the checkpoints differ in architecture or
    not at all, and if `out` exists.
    """
    out, home = Path(out), home or Home.locate()
    rule = RankRule(rank, keep)
    parse_dtype(dtype, [])
    check_new_file(out)
    sources = [_source(name, home) for name in (finetuned, base)]
    with BaseTensors(sources[0]) as tuned, BaseTensors(sources[1]) as original:
        known = _known_layers(tuned, original, sources)
        found = _Extraction()
        for number, (name, (layer, twin)) in enumerate(known.items()):
            _extract_tensor(found, layer, tuned.read(name), original.read(twin), rule, dtype, name)
            on_progress(number + 1, len(known))
    if not found.layers:
        raise InputError(
            f"{sources[0].name} has the same weights as {sources[1].name}.",
            "Give the checkpoint that was finetuned, and as --base the one that it was trained from.",
            code="extract_equal",
        )
    comment = f"extracted from {Path(finetuned).name} against {Path(base).name}"
    write_lora(out, found.tensors, network_metadata(SPECIFICATION, [layer.rank for layer in found.layers], comment))
    locations = [Path(source.location) for source in sources]
    report = truncation_report(out, found.layers, found.norms, _size(locations[0]))
    if found.vectors:
        report.left_out.append(f"{len(found.vectors)} changed norms and biases")
    return report


def _source(name: str, home: Home) -> Source:
    source = fetch_base(resolve_base(name, home))
    read_base_config(source)  # refuses what is not an SDXL
    return source


def _known_layers(tuned: BaseTensors, original: BaseTensors, sources: list[Source]) -> dict[str, tuple[LayerName, str]]:
    """Return the tensors of layers that both checkpoints have: name in the first -> its layer, and name in the second.

    Raises InputError if their UNets differ in structure.
    """
    twins = {(layer.kohya, kind): name for name, (layer, kind) in _layers_of(original).items()}
    found, missing = {}, []
    for name, (layer, kind) in _layers_of(tuned).items():
        twin = twins.get((layer.kohya, kind))
        if twin is not None:
            found[name] = layer, twin
        elif layer.model == "unet":
            missing.append(name)
    if missing or not found:
        raise InputError(
            f"{sources[1].name} lacks {len(missing)} tensors of the UNet of {sources[0].name}"
            f"{f', like {missing[0]}' if missing else ''}.",
            "Give the base that the checkpoint was finetuned from.",
            code="extract_base",
        )
    return found


def _layers_of(tensors: BaseTensors) -> dict[str, tuple[LayerName, str]]:
    """Return the layer and `weight` or `bias` of each tensor that belongs to one with a name in kohya's format."""
    modules = {name: name.rpartition(".")[::2] for name in tensors.names if name.endswith((".weight", ".bias"))}
    outside = (".embeddings.", "text_projection", "logit_scale")
    kept = {name: split for name, split in modules.items() if not any(part in name for part in outside)}
    names = find_layer_names(dict.fromkeys(module for module, _ in kept.values()), is_whole=True)
    return {name: (names[module], kind) for name, (module, kind) in kept.items()}


def _extract_tensor(
    found: _Extraction, layer: LayerName, tuned: Tensor, base: Tensor, rule: RankRule, dtype: str, name: str
) -> None:
    """Add the factors of a layer's difference; the base is rounded to the dtype of the finetuned weight first."""
    if tuned.shape != base.shape:
        raise InputError(
            f"{name} is {list(tuned.shape)} in the finetuned checkpoint and {list(base.shape)} in its base.",
            "Give the base that the checkpoint was finetuned from.",
            code="extract_base",
        )
    if tuned.dtype.itemsize < base.dtype.itemsize:
        base = base.to(tuned.dtype)
    if torch.equal(tuned.float(), base.float()):
        return
    if tuned.dim() < 2:
        found.vectors.append(name)
        return
    difference = tuned.float() - base.float()
    if not torch.isfinite(difference).all():
        raise InputError(
            f"{name} contains NaN or infinity.", "Use an earlier checkpoint of the finetuning.", code="lora_not_finite"
        )
    small = truncate(difference.flatten(1), rule)
    found.tensors |= lora_parts(layer.kohya, small.factors, tuple(tuned.shape[2:]), DTYPES[dtype])
    ranks = min(difference.flatten(1).shape)
    error = small.lost / small.norm if small.norm else 0.0
    found.layers.append(LayerError(layer=layer.kohya, rank_before=ranks, rank=small.rank, error=error))
    found.norms.append((small.norm, small.lost))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*.safetensors"))
