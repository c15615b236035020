"""Captions to what SDXL's UNet is conditioned on.

SDXL (Podell et al. 2023, arXiv:2307.01952) joins the hidden states of both text encoders, without a final norm, and
takes the pooled output of the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel


def encode_text(
    text_encoders: Sequence[PreTrainedModel],
    tokenizers: Sequence[CLIPTokenizer],
    captions: Sequence[str],
    clip_skip: int,
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, 77, D1 + D2] and pooled embeddings [B, D2] of captions.

    `clip_skip` counts layers from the end: 2 is the second-to-last, with which SDXL was made. Longer captions are cut.
    """
    hidden = []
    pooled = None
    for encoder, tokenizer in zip(text_encoders, tokenizers, strict=True):
        ids = tokenizer(
            list(captions),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        answer = encoder(ids.to(encoder.device), output_hidden_states=True)
        hidden.append(answer.hidden_states[-clip_skip])
        pooled = answer[0]  # of the second encoder, which projects: [B, D2]
    assert pooled is not None
    return torch.cat(hidden, dim=-1), pooled


def truncated(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> list[str]:
    """The captions whose end is cut off, since they have more tokens than the encoders read (75 and two marks)."""
    if not captions:
        return []
    lengths = [len(ids) for ids in tokenizer(list(captions), truncation=False).input_ids]
    return [text for text, length in zip(captions, lengths, strict=True) if length > tokenizer.model_max_length]
