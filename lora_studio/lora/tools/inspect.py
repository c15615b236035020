"""Describe any .safetensors file: what it is, its networks, ranks, metadata, and how much each block changes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.lora.deltas import delta_matrix, low_rank, rank_of
from lora_studio.lora.header import (
    FOREIGN_KEYS,
    METADATA_FIELDS,
    OTHER_NETWORKS,
    LoraFile,
    lora_file_of,
    read_header,
)
from lora_studio.lora.names import kernel_of_name
from lora_studio.lora.tools.files import LoraReader, Progress, no_progress
from lora_studio.lora.tools.reports import BlockNorm, InspectReport, PartSummary
from lora_studio.models.architectures import kind_of_tensors
from lora_studio.models.locate import SDXL_KEY, SDXL_TEXT_KEY

TOP_TAGS = 30
_BLOCK = re.compile(r"(?:lora_unet_|unet\.)(input|middle|output|down|mid|up)_blocks?[._](\d+)")
_SHORT = {"input": "in", "middle": "mid", "output": "out", "down": "down", "mid": "mid", "up": "up"}
_TEXT = re.compile(r"(?:lora_)?(te1|te2|te_any|text_encoder_2|text_encoder_any|text_encoder)[._]")
_TEXT_MODELS = {"text_encoder": "te1", "text_encoder_2": "te2", "te_any": "te", "text_encoder_any": "te"}
# Entries of kohya's metadata that say how a LoRA was trained.
TRAINING = (
    *("ss_sd_model_name", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"),
    *("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_optimizer", "ss_lr_scheduler", "ss_epoch"),
    *("ss_steps", "ss_num_train_images", "ss_total_batch_size", "ss_resolution", "ss_clip_skip", "ss_seed"),
    *("ss_training_comment", "modelspec.date", "modelspec.prediction_type"),
)


def inspect_file(path: Path | str, *, on_progress: Progress = no_progress) -> InspectReport:
    """Describe a .safetensors file. The weights of a LoRA are read, too, one layer at a time.

    Raises InputError for a file that is missing, a pickle or damaged.
    """
    path = Path(path)
    header, offset = read_header(path)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    given = header.get("__metadata__")
    metadata = {str(key): str(value) for key, value in given.items()} if isinstance(given, dict) else {}
    tensors = [entry for entry in entries.values() if isinstance(entry, dict) and isinstance(entry.get("shape"), list)]
    report = InspectReport(
        path=path,
        bytes=path.stat().st_size,
        kind=_kind_of(entries),
        tensors=len(tensors),
        parameters=sum(prod(entry["shape"]) for entry in tensors),
        dtypes=dict(Counter(str(entry.get("dtype")) for entry in tensors)),
        fields={name: metadata[key] for name, key in METADATA_FIELDS.items() if metadata.get(key)},
        training={key: metadata[key] for key in TRAINING if metadata.get(key) not in (None, "", "None")},
        tags=tag_frequency(metadata),
        metadata=metadata,
    )
    try:
        lora = lora_file_of(path, header, offset)
        report.kind = "a LoRA for SDXL"
        report.embeddings = lora.embeddings
        report.networks = dict(Counter(_network_of(lora, layer) for layer in lora.modules))
        _add_layers(report, lora, on_progress)
    except InputError as error:
        report.problem = str(error)
    return report


def tag_frequency(metadata: Mapping[str, str]) -> dict[str, int]:
    """Return the most frequent tags of all training sets, from kohya's `ss_tag_frequency`; empty if there are none."""
    try:
        sets = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return {}
    found: Counter[str] = Counter()
    for tags in sets.values() if isinstance(sets, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int):
                found[str(tag).strip()] += count
    return dict(found.most_common(TOP_TAGS))


def _kind_of(names: Mapping[str, Any]) -> str:
    """Return what a file with these tensors is, with its article."""
    if SDXL_KEY in names or SDXL_TEXT_KEY in names:
        return "an SDXL checkpoint"
    if kind := kind_of_tensors(names):
        return kind
    if set(names) <= {"clip_l", "clip_g"} and names:
        return "an embedding (textual inversion) for SDXL"
    if any(name.startswith(("control_model.", "controlnet_")) for name in names):
        return "a ControlNet"
    for pattern, what in OTHER_NETWORKS:
        if any(map(pattern.fullmatch, names)):
            return what
    return next((what for pattern, what in FOREIGN_KEYS if any(map(pattern.match, names))), "an unknown kind of model")


def _network_of(lora: LoraFile, layer: str) -> str:
    """Return the network type of a layer by its tensors."""
    parts = lora.modules[layer]
    if lora.vector_parts(layer).keys() - {"diff_b"}:
        return "norm"
    if "on_input" in parts:
        return "IA3"
    for part, name in (("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("lokr_w1_a", "LoKr"), ("diff", "full")):
        if part in parts:
            return f"{name} + DoRA" if "dora_scale" in parts else name
    if "lora_down.weight" not in parts:
        return "bias"
    if "dora_scale" in parts:
        return "DoRA"
    is_convolution = "lora_mid.weight" in parts or kernel_of_name(layer) == (3, 3)
    return "LoCon" if is_convolution else "LoRA"


def _add_layers(report: InspectReport, lora: LoraFile, on_progress: Progress) -> None:
    """Add ranks and alphas of each model, and the norm of each block, to a report."""
    ranks: dict[str, Counter[int]] = {}
    alphas: dict[str, Counter[str]] = {}
    counts: Counter[str] = Counter()
    squares: dict[str, list[float]] = {}
    with LoraReader(lora.path) as reader:
        for number, layer in enumerate(lora.modules):
            text = _TEXT.match(layer)
            model = _TEXT_MODELS.get(text[1], text[1]) if text else "unet"
            counts[model] += 1
            own_ranks, own_alphas = ranks.setdefault(model, Counter()), alphas.setdefault(model, Counter())
            if "on_input" not in lora.modules[layer] and (parts := reader.parts(layer)):
                rank = rank_of(parts)
                alpha = reader.alpha(layer, parts)
                own_ranks[rank] += 1
                if rank:
                    own_alphas[f"{alpha:g}"] += 1
                squares.setdefault(_block_of(layer, model), []).append(_squared_norm(parts, alpha))
            on_progress(number + 1, len(lora.modules))
    report.parts = [
        PartSummary(model=model, layers=counts[model], ranks=dict(ranks[model]), alphas=dict(alphas[model]))
        for model in counts
    ]
    report.norms = [
        BlockNorm(block=block, norm=sum(squares[block]) ** 0.5, layers=len(squares[block]))
        for block in sorted(squares, key=_block_order)
    ]


def _block_of(layer: str, model: str) -> str:
    if model != "unet":
        return model
    match = _BLOCK.match(layer)
    return f"{_SHORT[match[1]]}{match[2]}" if match else "outside"


def _block_order(block: str) -> tuple[int, int]:
    name = block.rstrip("0123456789") if not block.startswith("te") else block
    order = ("te", "te1", "te2", "in", "down", "mid", "out", "up", "outside")
    return order.index(name), int(block.removeprefix(name) or 0)


def _squared_norm(parts: Mapping[str, Tensor], alpha: float) -> float:
    """Return the squared Frobenius norm of a delta; of factors from their Gram matrices [r, r]."""
    if (factors := low_rank(parts, alpha)) is None:
        return float(delta_matrix(parts, alpha).square().sum())
    up, down = factors
    return max(0.0, float(((up.t() @ up) * (down @ down.t())).sum()))
