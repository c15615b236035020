"""Prompts as A1111 reads them: weights like `(word)`, `(word:1.2)`, `[word]`, and `BREAK`, which starts a new chunk.

The grammar and the arithmetic are those of AUTOMATIC1111's stable-diffusion-webui: `parse_prompt_attention` in
modules/prompt_parser.py, `tokenize_line` in modules/sd_hijack_clip.py and `EmphasisOriginal` in modules/sd_emphasis.py.
A prompt without brackets, backslashes and `BREAK` is encoded exactly as without this module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from math import ceil

import torch
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel

from lora_studio.models.text_encoding import CHUNK_TOKENS, chunk_ids, encode_tokens

ROUND, SQUARE = 1.1, 1 / 1.1
_TOKEN = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
Segments = list[tuple[str, float]]


def parse_prompt(prompt: str) -> list[Segments]:
    """Return the parts of a prompt with their weights, between `BREAK`s; neighbours of equal weight are one part.

    `(a)` multiplies by 1.1, `(a:1.2)` by 1.2, `[a]` divides by 1.1, and nested ones multiply. A backslash makes the
    bracket or backslash after it text. A bracket that is never closed counts to the end, one that was never opened is
    text. Nothing is one part of weight 1. `BREAK` is a word in capitals, and loses the spaces around it. It counts
    between brackets, too, where A1111 takes it for a word with a negative weight.
    """
    texts: list[str | None] = []  # None: BREAK
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for match in _TOKEN.finditer(prompt):
        text, weight = match[0], match[1]
        if text in opened:
            opened[text].append(len(texts))
        elif weight is not None and opened["("]:
            multiply(opened["("].pop(), float(weight))
        elif text == ")" and opened["("]:
            multiply(opened["("].pop(), ROUND)
        elif text == "]" and opened["["]:
            multiply(opened["["].pop(), SQUARE)
        else:
            plain = text[1:] if len(text) > 1 and text[0] == "\\" else text
            first, *others = _BREAK.split(plain)
            added = [first, *(part for other in others for part in (None, other))]
            texts += added
            weights += [1.0] * len(added)
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        for start in opened[bracket]:
            multiply(start, factor)
    groups: list[Segments] = [[]]
    for part, factor in zip(texts, weights, strict=True):
        if part is None:
            groups.append([])
        elif part:
            groups[-1].append((part, factor))
    return [_merged(group) or [("", 1.0)] for group in groups]


def _merged(segments: Segments) -> Segments:
    runs = groupby(segments, key=lambda part: part[1])
    return [("".join(text for text, _ in run), weight) for weight, run in runs]


def encode_prompt(
    text_encoders: Sequence[PreTrainedModel], tokenizers: Sequence[CLIPTokenizer], prompt: str, clip_skip: int
) -> tuple[Tensor, Tensor]:
    """Return embeddings [1, 77 n, D1 + D2] and pooled embeddings [1, D2] of a prompt of any length with its weights.

    It is encoded in n chunks of 75 tokens as captions are, and each `BREAK` ends one. Each part is tokenized by itself
    if there are weights.
    """
    *others, last = [_tokens(tokenizers[0], segments) for segments in parse_prompt(prompt)]
    groups = [*others, *([last] if last[0] or not others else [])]  # nothing follows a BREAK at the end
    counts = [max(1, ceil(len(ids) / CHUNK_TOKENS)) for ids, _ in groups]
    weights = []
    for (_, own), count in zip(groups, counts, strict=True):
        weights += [*own, *[1.0] * (count * CHUNK_TOKENS - len(own))]
    tokens = torch.stack([_chunks(tokenizers[0], groups, counts, tokenizer.pad_token_id) for tokenizer in tokenizers])
    hidden, pooled = encode_tokens(text_encoders, tokens.to(text_encoders[0].device), clip_skip)
    if any(weight != 1 for weight in weights):
        widths = [encoder.config.hidden_size for encoder in text_encoders]
        hidden = _weigh(hidden, torch.tensor(weights), widths)
    return hidden, pooled


def _chunks(
    tokenizer: CLIPTokenizer, groups: Sequence[tuple[list[int], list[float]]], counts: Sequence[int], pad: int
) -> Tensor:
    """Return the token ids of the groups between `BREAK`s in chunks [1, n, 77]; `counts` are the chunks of each."""
    parts = [chunk_ids(tokenizer, [ids], count, pad) for (ids, _), count in zip(groups, counts, strict=True)]
    return torch.cat(parts, dim=1)


def _tokens(tokenizer: CLIPTokenizer, segments: Segments) -> tuple[list[int], list[float]]:
    """Return the token ids of all parts and the weight of each token."""
    texts = [text for text, _ in segments]
    parts = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False).input_ids
    ids = [number for part in parts for number in part]
    return ids, [weight for (_, weight), part in zip(segments, parts, strict=True) for _ in part]


def _weigh(hidden: Tensor, weights: Tensor, widths: Sequence[int]) -> Tensor:
    """Multiply embeddings [1, 77 n, D1 + D2] by the weights of their tokens [75 n], begin and end tokens by 1.

    As in A1111, each encoder's embeddings of a chunk get their mean back, so that weights do not change the total.
    """
    chunks = hidden.shape[1] // (CHUNK_TOKENS + 2)
    factors = torch.nn.functional.pad(weights.view(chunks, CHUNK_TOKENS), (1, 1), value=1.0)
    parts = hidden.float().view(chunks, CHUNK_TOKENS + 2, -1).split(list(widths), dim=-1)
    found = []
    for part in parts:
        weighed = part * factors.to(part.device)[..., None]
        means, before = weighed.mean(dim=(1, 2), keepdim=True), part.mean(dim=(1, 2), keepdim=True)
        found.append(torch.where(means == 0, weighed, weighed * (before / means)))
    return torch.cat(found, dim=-1).view(hidden.shape).to(hidden.dtype)
