"""Approximate a matrix by one of lower rank, as the factors of a LoRA.

The best approximation of rank r in the Frobenius norm is the first r terms of the singular value decomposition (Eckart
and Young 1936); what it lacks are the other singular values: ||D - D_r||^2 = sum over i > r of s_i^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lora_studio.errors import InputError
from lora_studio.lora.deltas import LowRank

MAX_RANK = 100_000


class Svd(NamedTuple):
    """The singular value decomposition of a matrix [m, n]: `left` [m, k], `values` [k] descending, `right` [k, n]."""

    left: Tensor
    values: Tensor
    right: Tensor


@dataclass(frozen=True)
class RankRule:
    """How many ranks to keep: at most `rank`, and as few as keep the share `keep` of the Frobenius norm."""

    rank: int | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if self.rank is None and self.keep is None:
            raise InputError("Neither a rank nor a share is given.", "Give --rank 16 or --keep 0.95.", code="rank")
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            raise InputError(f"rank is {self.rank}.", "Give a number from 1, for example 16.", code="rank")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise InputError(f"keep is {self.keep:g}.", "Give a share above 0 and up to 1, like 0.95.", code="keep")

    def choose(self, values: Tensor) -> int:
        """Return the rank for these singular values, descending; at least 1."""
        rank = len(values)
        if self.keep is not None:
            kept = values.double().square().cumsum(0).sqrt()
            enough = kept >= self.keep * kept[-1] * (1 - 1e-12)
            rank = int(enough.to(torch.int8).argmax()) + 1
        return max(1, min(rank, self.rank or rank))


class Truncated(NamedTuple):
    """A matrix of lower rank as `up` times `down`, and the norms of the whole one and of what was left out."""

    factors: LowRank
    norm: float
    lost: float

    @property
    def rank(self) -> int:
        """The rank that was kept."""
        return self.factors.down.shape[0]


def svd_of_factors(factors: LowRank) -> Svd:
    """Return the decomposition of `up` times `down` without their product, in fp64."""
    left, left_core = torch.linalg.qr(factors.up.double())
    right, right_core = torch.linalg.qr(factors.down.double().t())
    u, values, vh = torch.linalg.svd(left_core @ right_core.t(), full_matrices=False)
    return Svd(left @ u, values, vh @ right.t())


def svd_of_matrix(matrix: Tensor) -> Svd:
    """Return the decomposition of a matrix, from the eigenvectors of its Gram matrix on the shorter side, in fp64.

    It takes a fraction of the time of a full decomposition; relative errors of singular values below 1e-8 of the
    largest do not matter here.
    """
    whole = matrix.double()
    is_wide = whole.shape[0] <= whole.shape[1]
    gram = whole @ whole.t() if is_wide else whole.t() @ whole
    squares, vectors = torch.linalg.eigh(gram)
    values, vectors = squares.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
    inverse = torch.where(values > 1e-12 * values[0].clamp_min(1e-300), 1 / values, 0)
    if is_wide:
        return Svd(vectors, values, inverse[:, None] * (vectors.t() @ whole))
    return Svd(whole @ vectors * inverse, values, vectors.t())


def truncate(delta: LowRank | Tensor, rule: RankRule) -> Truncated:
    """Return the best approximation of a delta at the rank that the rule chooses; factors of equal size, fp32."""
    svd = svd_of_factors(delta) if isinstance(delta, LowRank) else svd_of_matrix(delta)
    rank = rule.choose(svd.values)
    root = svd.values[:rank].sqrt()
    up, down = svd.left[:, :rank] * root, root[:, None] * svd.right[:rank]
    lost = float(svd.values[rank:].square().sum().sqrt())
    return Truncated(LowRank(up.float(), down.float()), float(svd.values.square().sum().sqrt()), lost)


def lora_parts(kohya: str, factors: LowRank, kernel: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a layer in kohya's format, whose alpha is its rank."""
    rank, area = factors.down.shape[0], 1
    for side in kernel:
        area *= side
    down = factors.down.reshape(rank, factors.down.shape[1] // area, *kernel)
    up = factors.up.reshape(-1, rank, *[1] * len(kernel))
    return {
        f"{kohya}.lora_down.weight": down.to(dtype).contiguous(),
        f"{kohya}.lora_up.weight": up.to(dtype).contiguous(),
        f"{kohya}.alpha": torch.tensor(float(rank), dtype=dtype),
    }
