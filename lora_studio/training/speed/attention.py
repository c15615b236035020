"""An attention processor for the UNet without the steps that SDXL's attention layers do not need.

diffusers' processor divides every output by 1.0, and its signature is inspected at each call. Over SDXL's 140 attention
layers both take time, especially where launching a kernel takes longer than running it.
"""

from __future__ import annotations

import inspect

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lora_studio.lora.fused_qkv import FusedProjections, fuse_projections


class PlainAttention:
    """Scaled dot-product attention of hidden states [B, N, C] to themselves or to text embeddings [B, M, D], unmasked.

    `projections` fuses the layers with the same input: key and value in cross-attention, query, key and value in
    self-attention.
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
        """Return the layer's output [B, N, C]."""
        if attention_mask is not None:
            masked: Tensor = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return masked
        batch, heads = len(hidden_states), attn.heads
        query, key, value = (
            part.view(batch, -1, heads, part.shape[-1] // heads).transpose(1, 2)
            for part in self._project(attn, hidden_states, encoder_hidden_states)
        )
        attended = scaled_dot_product_attention(query, key, value)
        output: Tensor = attn.to_out[0](attended.transpose(1, 2).reshape(batch, -1, heads * value.shape[-1]))
        return output

    def _project(self, attn: Attention, hidden: Tensor, text: Tensor | None) -> tuple[Tensor, ...]:
        """Return query [B, N, C], key and value [B, N or M, C]."""
        projections = self.projections if self.projections is not None and self.projections.is_active else None
        source = hidden if text is None else text
        if projections is None:
            return attn.to_q(hidden), attn.to_k(source), attn.to_v(source)
        return projections(hidden) if text is None else (attn.to_q(hidden), *projections(text))


# `Attention.forward` inspects the signature at each call, which is slow unless it is stored.
PlainAttention.__call__.__signature__ = inspect.signature(PlainAttention.__call__)  # type: ignore[attr-defined]


def use_plain_attention(unet: UNet2DConditionModel) -> None:
    """Use `PlainAttention` in every attention layer that is like SDXL's; other layers keep their processor.

    Call it after `FlatParameters` has put the trained weights into one tensor: projections are fused as views of it.
    """
    for module in unet.modules():
        if isinstance(module, Attention) and _is_plain(module):
            query = [] if module.is_cross_attention else [module.to_q]
            processor = PlainAttention(fuse_projections([*query, module.to_k, module.to_v]))
            module.set_processor(processor)  # type: ignore[arg-type]


def _is_plain(attn: Attention) -> bool:
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k, attn.norm_cross, attn.added_kv_proj_dim)
    return (
        not any(extra is not None and extra is not False for extra in extras)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and bool(attn.to_out[1].p == 0)
    )
