"""Rank and module dropout of layers with a down and an up matrix: LoRA, LoCon and DoRA."""

from __future__ import annotations

from dataclasses import dataclass

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lora_studio.lora.fused_linear import FusedLoraLinear


@dataclass(frozen=True)
class LowRankDropout:
    """Drops entries of x A' in training mode, as sd-scripts does (networks/lora.py, `LoRAModule.forward`).

    `rank_dropout` is the probability that a rank is dropped for a sample; the others are multiplied by
    1 / (1 - rank_dropout), so that the expected output stays. `module_dropout` is the probability that all of the
    layer's ranks are dropped for a batch, without compensation. Numbers are drawn from the device's global generator.
    """

    rank_dropout: float
    module_dropout: float

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], low: Tensor) -> Tensor:
        """Return the output of a down projection, [B, ..., r] or [B, r, H, W] of a convolution, after dropout."""
        if not module.training:
            return low
        if self.rank_dropout:
            ranks = 1 if isinstance(module, nn.Conv2d) else low.dim() - 1
            shape = [size if side in (0, ranks) else 1 for side, size in enumerate(low.shape)]
            low = low * low.new_empty(shape).bernoulli_(1 - self.rank_dropout).div_(1 - self.rank_dropout)
        if self.module_dropout:
            low = low * low.new_empty(()).bernoulli_(1 - self.module_dropout)
        return low


def add_dropout(layer: nn.Module, adapter: str, *, rank_dropout: float, module_dropout: float) -> None:
    """Give a LoRA layer rank and module dropout; with both 0, leave it as it is."""
    if not (rank_dropout or module_dropout):
        return
    if isinstance(layer, FusedLoraLinear):
        layer.drops_ranks = True
    if isinstance(layer, LoraLayer):
        layer.lora_A[adapter].register_forward_hook(LowRankDropout(rank_dropout, module_dropout))
