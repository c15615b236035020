"""What the LoRA tools return; no torch, so that the page can show it, too."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel


class Naming(StrEnum):
    """Formats to convert to."""

    KOHYA = "kohya"
    DIFFUSERS = "diffusers"


class LayerError(BaseModel):
    """A layer's rank before and after, and its relative error ||D - D'|| / ||D||, in the Frobenius norm."""

    layer: str
    rank_before: int
    rank: int
    error: float


class TruncationReport(BaseModel):
    """A LoRA that was written at a lower rank: `error` is over all layers, `layers` are the worst first.

    Errors are those of the ranks that were left out, before values are rounded to the file's dtype. `left_out` names
    what the new file lacks.
    """

    out: Path
    error: float
    layers: list[LayerError]
    bytes_before: int
    bytes: int
    left_out: list[str] = []


class ConvertReport(BaseModel):
    """A converted file. `left_out` lists embeddings, which are not carried over."""

    out: Path
    naming: Naming
    layers: int
    left_out: list[str] = []


class PartSummary(BaseModel):
    """What a file changes in one model (unet, te1, te2): number of layers, and the count of each rank and alpha."""

    model: str
    layers: int
    ranks: dict[int, int]
    alphas: dict[str, int]


class BlockNorm(BaseModel):
    """The Frobenius norm of all weight deltas of a block, such as in4, mid1, out3 or te1."""

    block: str
    norm: float
    layers: int


class InspectReport(BaseModel):
    """A .safetensors file. `problem` says why the studio cannot use it as a LoRA, empty if it can.

    `networks` counts the layers of each network type.
    """

    path: Path
    bytes: int
    kind: str
    problem: str = ""
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    networks: dict[str, int] = {}
    parts: list[PartSummary] = []
    embeddings: list[str] = []
    fields: dict[str, str]
    training: dict[str, str]
    tags: dict[str, int]
    norms: list[BlockNorm] = []
    metadata: dict[str, str]
