"""Captions to what SDXL's UNet is conditioned on.

SDXL (Podell et al. 2023, arXiv:2307.01952) joins the hidden states of both text encoders, without a final norm, and
takes the pooled output of the second.

The encoders read 75 tokens at a time. A longer caption is cut into chunks of 75, each with its own marks of begin and
end; the chunks are encoded on their own and their hidden states stand one after the other, marks included, and the
pooled output is the first chunk's. That is how A1111 and ComfyUI read long prompts, so that a LoRA is trained on what
it will be used with. kohya's sd-scripts cuts and pools the same way, but takes the inner marks out (227 places instead
of 231).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel

CHUNK_TOKENS = 75  # tokens of a caption that the encoders read at once, beside the marks of begin and end


def encode_text(
    text_encoders: Sequence[PreTrainedModel],
    tokenizers: Sequence[CLIPTokenizer],
    captions: Sequence[str],
    clip_skip: int,
    max_token_length: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, 77 n, D1 + D2] and pooled embeddings [B, D2] of captions, n being max_token_length / 75.

    What of a caption comes after `max_token_length` tokens is not read. See `encode_tokens` for `clip_skip`.
    """
    tokens = tokenize(tokenizers, captions, max_token_length).to(text_encoders[0].device)
    return encode_tokens(text_encoders, tokens, clip_skip)


def tokenize(
    tokenizers: Sequence[CLIPTokenizer], captions: Sequence[str], max_token_length: int = CHUNK_TOKENS
) -> Tensor:
    """The tokens of B captions for each of the encoders, [encoders, B, n, 77]."""
    return torch.stack(
        [chunk_token_ids(tokenizer, captions, max_token_length // CHUNK_TOKENS) for tokenizer in tokenizers]
    )


def encode_tokens(text_encoders: Sequence[PreTrainedModel], tokens: Tensor, clip_skip: int) -> tuple[Tensor, Tensor]:
    """Embeddings [B, 77 n, D1 + D2] and pooled embeddings [B, D2] of tokens [encoders, B, n, 77] on their device.

    `clip_skip` counts layers from the end: 2 is the second-to-last, with which SDXL was made.
    """
    count, chunks = tokens.shape[1:3]
    hidden = []
    pooled = None
    for number, (encoder, ids) in enumerate(zip(text_encoders, tokens.flatten(1, 2), strict=True), 1):
        pools = number == len(text_encoders)
        if not pools and (unread := unused_layers(encoder, clip_skip)):
            states = _hidden_states_before(encoder, ids, unread)
        else:
            answer = encoder(ids, output_hidden_states=True)
            states = answer.hidden_states[-clip_skip]  # [B n, 77, D]
        hidden.append(states.reshape(count, -1, states.shape[-1]))
        if pools:
            pooled = answer[0][::chunks]  # projected: [B, D2]
    assert pooled is not None
    return torch.cat(hidden, dim=-1), pooled


def unused_layers(encoder: PreTrainedModel, clip_skip: int) -> list[nn.Module]:
    """The last layers of an encoder whose pooled output nobody reads: they come after the one that is read."""
    layers = _clip_encoder(encoder).layers
    return list(layers)[len(layers) + 1 - clip_skip :]


def _clip_encoder(encoder: PreTrainedModel) -> Any:
    stack: Any = getattr(encoder, "text_model", encoder).encoder
    return stack


def _hidden_states_before(encoder: PreTrainedModel, ids: Tensor, unread: Sequence[nn.Module]) -> Tensor:
    """The hidden states [B, 77, D] that go into the unread layers, which are left out.

    transformers notices the layers when it is asked for hidden states first: it is not asked while some are missing.
    """
    stack = _clip_encoder(encoder)
    layers = stack.layers
    found: list[Tensor] = []
    stack.layers = layers[: len(layers) - len(unread)]
    hook = stack.layers[-1].register_forward_hook(lambda layer, given, states: found.append(states))
    try:
        encoder(ids)
    finally:
        hook.remove()
        stack.layers = layers
    return found[0]


def chunk_token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str], chunks: int) -> Tensor:
    """The captions' tokens in chunks [B, chunks, 77]: begin, up to 75 tokens, end, then the tokenizer's padding.

    Several threads may ask at once: cutting off is done here, since a tokenizer would change its own settings for it.
    """
    width = tokenizer.model_max_length
    room = width - 2
    ids = tokenizer(list(captions), add_special_tokens=False, truncation=False, verbose=False).input_ids
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [
        [begin, *part, end, *[pad] * (room - len(part))]
        for caption in ids
        for part in (caption[number * room : (number + 1) * room] for number in range(chunks))
    ]
    return torch.tensor(rows).reshape(len(captions), chunks, width)


def truncated_captions(
    tokenizer: CLIPTokenizer, captions: Sequence[str], max_token_length: int = CHUNK_TOKENS
) -> list[str]:
    """The captions whose end is cut off, since they have more than `max_token_length` tokens (marks not counted)."""
    if not captions:
        return []
    lengths = [len(ids) for ids in tokenizer(list(captions), add_special_tokens=False, truncation=False).input_ids]
    return [text for text, length in zip(captions, lengths, strict=True) if length > max_token_length]
