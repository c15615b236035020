"""The UNet's attention without what SDXL's attention layers do not use.

diffusers' own processor divides every answer by 1.0, and has its signature looked up at each call; over SDXL's 140
attention layers both take time, the more so where launching an operation takes longer than the operation.
"""

from __future__ import annotations

import inspect

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lora_studio.lora.fused_qkv import FusedProjections, fuse_projections


class PlainAttention:
    """Attention of hidden states [B, N, C] to themselves or to a text [B, M, D], with nothing added or masked.

    `projections` are its layers that read the same: key and value of a text, or all of query, key and value.
    """

    def __init__(self, projections: FusedProjections | None = None) -> None:
        self.projections = projections

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
        batch, heads = len(hidden_states), attn.heads
        query, key, value = (
            part.view(batch, -1, heads, part.shape[-1] // heads).transpose(1, 2)
            for part in self._project(attn, hidden_states, encoder_hidden_states)
        )
        mixed = scaled_dot_product_attention(query, key, value)
        result: Tensor = attn.to_out[0](mixed.transpose(1, 2).reshape(batch, -1, heads * value.shape[-1]))
        return result

    def _project(self, attn: Attention, hidden: Tensor, text: Tensor | None) -> tuple[Tensor, ...]:
        """Query [B, N, C], key and value [B, N or M, C]."""
        projections = self.projections if self.projections is not None and self.projections.is_active else None
        source = hidden if text is None else text
        if projections is None:
            return attn.to_q(hidden), attn.to_k(source), attn.to_v(source)
        return projections(hidden) if text is None else (attn.to_q(hidden), *projections(text))


# `Attention.forward` asks for it at each call, which is slow to work out and quick to read.
PlainAttention.__call__.__signature__ = inspect.signature(PlainAttention.__call__)  # type: ignore[attr-defined]


def use_plain_attention(unet: UNet2DConditionModel) -> None:
    """Put `PlainAttention` into every attention layer that is as SDXL's are; others keep theirs.

    To be called when the trained weights are in one piece: layers that learn are joined as they lie there.
    """
    for module in unet.modules():
        if isinstance(module, Attention) and _is_plain(module):
            query = [] if module.is_cross_attention else [module.to_q]
            module.set_processor(PlainAttention(fuse_projections([*query, module.to_k, module.to_v])))


def _is_plain(attn: Attention) -> bool:
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross, attn.added_kv_proj_dim)
    return (
        not any(extra is not None and extra is not False for extra in extras)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and attn.to_out[1].p == 0
    )
