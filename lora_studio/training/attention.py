"""The UNet's attention without what SDXL's attention layers do not use.

diffusers' own processor divides every answer by 1.0, and has its signature looked up at each call; over SDXL's 140
attention layers both take time, the more so where launching an operation takes longer than the operation.
"""

from __future__ import annotations

import inspect

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Up to so many pairs of tokens the CPU's kernels for plain matrices are faster than its fused attention, most of all in
# the backward pass, and the matrix of weights still is small.
CPU_PAIRS = 1024 * 1024


class PlainAttention:
    """Attention of hidden states [B, N, C] to themselves or to a text [B, M, D], with nothing added or masked."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The layer's answer [B, N, C]."""
        if attention_mask is not None:
            answer: Tensor = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return answer
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        batch, heads = len(query), attn.heads
        query, key, value = (part.view(batch, -1, heads, part.shape[-1] // heads) for part in (query, key, value))
        mixed = _attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        result: Tensor = attn.to_out[0](mixed.transpose(1, 2).reshape(batch, -1, heads * value.shape[-1]))
        return result


# `Attention.forward` asks for it at each call, which is slow to work out and quick to read.
PlainAttention.__call__.__signature__ = inspect.signature(PlainAttention.__call__)  # type: ignore[attr-defined]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K' / sqrt(d)) V for [B, heads, tokens, d]."""
    if query.device.type != "cpu" or query.shape[2] * key.shape[2] > CPU_PAIRS:
        return scaled_dot_product_attention(query, key, value)
    weights = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(2, 3)).softmax(-1)
    return torch.matmul(weights, value)


def use_plain_attention(unet: UNet2DConditionModel) -> None:
    """Put `PlainAttention` into every attention layer that is as SDXL's are; others keep theirs."""
    for module in unet.modules():
        if isinstance(module, Attention) and _is_plain(module):
            module.set_processor(PlainAttention())


def _is_plain(attn: Attention) -> bool:
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross, attn.added_kv_proj_dim)
    return (
        not any(extra is not None and extra is not False for extra in extras)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and attn.to_out[1].p == 0
    )
