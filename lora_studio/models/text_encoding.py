"""Encode captions with SDXL's two text encoders.

SDXL (Podell et al. 2023, arXiv:2307.01952) concatenates the hidden states of both text encoders, without the final
layer norm, and uses the pooled output of the second.

The encoders take 75 tokens at a time. A longer caption is split into chunks of 75 tokens, each with its own begin and
end token. The chunks are encoded separately and their hidden states concatenated, begin and end tokens included; the
pooled output is the first chunk's. A1111 and ComfyUI encode long prompts in the same way, so a LoRA is trained on the
embeddings that it is used with. kohya's sd-scripts splits and pools in the same way but drops the inner begin and
end tokens (227 positions instead of 231).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel

CHUNK_TOKENS = 75  # caption tokens that the encoders take at once, without the begin and end tokens


def encode_text(
    text_encoders: Sequence[PreTrainedModel],
    tokenizers: Sequence[CLIPTokenizer],
    captions: Sequence[str],
    clip_skip: int,
    max_token_length: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Return embeddings [B, 77 n, D1 + D2] and pooled embeddings [B, D2] of captions, n = max_token_length / 75.

    Captions are truncated after `max_token_length` tokens. See `encode_tokens` for `clip_skip`.
    """
    tokens = tokenize(tokenizers, captions, max_token_length).to(text_encoders[0].device)
    return encode_tokens(text_encoders, tokens, clip_skip)


def tokenize(
    tokenizers: Sequence[CLIPTokenizer], captions: Sequence[str], max_token_length: int = CHUNK_TOKENS
) -> Tensor:
    """Return the token ids of B captions for each encoder, [encoders, B, n, 77], n = max_token_length / 75.

    All tokenizers have CLIP's vocabulary and differ in the padding only. The first one splits the captions: the second
    has "!" as its padding token and would read an exclamation mark as padding, unlike OpenCLIP.
    """
    chunks = max_token_length // CHUNK_TOKENS
    return torch.stack(
        [chunk_token_ids(tokenizers[0], captions, chunks, tokenizer.pad_token_id) for tokenizer in tokenizers]
    )


def encode_tokens(text_encoders: Sequence[PreTrainedModel], tokens: Tensor, clip_skip: int) -> tuple[Tensor, Tensor]:
    """Return embeddings [B, 77 n, D1 + D2] and pooled embeddings [B, D2] of token ids [encoders, B, n, 77].

    `clip_skip` counts layers from the end: 2 is the second-to-last, which SDXL was trained with.
    """
    count, chunks = tokens.shape[1:3]
    hidden = []
    pooled = None
    for number, (encoder, ids) in enumerate(zip(text_encoders, tokens.flatten(1, 2), strict=True), 1):
        is_pooled = number == len(text_encoders)
        if not is_pooled and (unused := unused_layers(encoder, clip_skip)):
            states = _hidden_states_before(encoder, ids, unused)
        else:
            output = encoder(ids, output_hidden_states=True)
            states = output.hidden_states[-clip_skip]  # [B n, 77, D]
        hidden.append(states.reshape(count, -1, states.shape[-1]))
        if is_pooled:
            pooled = output[0][::chunks]  # projected: [B, D2]
    assert pooled is not None
    return torch.cat(hidden, dim=-1), pooled


def unused_layers(encoder: nn.Module, clip_skip: int) -> list[nn.Module]:
    """Return the layers after the one that `clip_skip` selects; without pooled output, they are never computed."""
    layers = _clip_encoder(encoder).layers
    return list(layers)[len(layers) + 1 - clip_skip :]


def _clip_encoder(encoder: nn.Module) -> Any:
    clip_encoder: Any = getattr(encoder, "text_model", encoder).encoder
    return clip_encoder


def _hidden_states_before(encoder: PreTrainedModel, ids: Tensor, unused: Sequence[nn.Module]) -> Tensor:
    """Return the hidden states [B, 77, D] before the unused last layers, without computing those.

    A hook of our own reads them: transformers registers its hooks at the first call with `output_hidden_states`, which
    must not happen while layers are missing.
    """
    clip_encoder = _clip_encoder(encoder)
    layers = clip_encoder.layers
    found: list[Tensor] = []
    clip_encoder.layers = layers[: len(layers) - len(unused)]
    hook = clip_encoder.layers[-1].register_forward_hook(lambda layer, inputs, states: found.append(states))
    try:
        encoder(ids)
    finally:
        hook.remove()
        clip_encoder.layers = layers
    return found[0]


def chunk_token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str], chunks: int, pad: int) -> Tensor:
    """Return token ids in chunks [B, chunks, 77]: begin token, up to 75 tokens, end token, `pad` tokens.

    It is thread-safe: a tokenizer that truncates changes its own settings, so truncation is done here.
    """
    ids = tokenizer(list(captions), add_special_tokens=False, truncation=False, verbose=False).input_ids
    return chunk_ids(tokenizer, ids, chunks, pad)


def chunk_ids(tokenizer: CLIPTokenizer, ids: Sequence[Sequence[int]], chunks: int, pad: int) -> Tensor:
    """Return the token ids of B captions in chunks [B, chunks, 77], see `chunk_token_ids`."""
    width = tokenizer.model_max_length
    room = width - 2
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [
        [begin, *part, end, *[pad] * (room - len(part))]
        for caption in ids
        for part in (caption[number * room : (number + 1) * room] for number in range(chunks))
    ]
    return torch.tensor(rows).reshape(len(ids), chunks, width)


def truncated_captions(
    tokenizer: CLIPTokenizer, captions: Sequence[str], max_token_length: int = CHUNK_TOKENS
) -> list[str]:
    """Return the captions with more than `max_token_length` tokens, begin and end tokens not counted."""
    if not captions:
        return []
    lengths = [len(ids) for ids in tokenizer(list(captions), add_special_tokens=False, truncation=False).input_ids]
    return [text for text, length in zip(captions, lengths, strict=True) if length > max_token_length]
