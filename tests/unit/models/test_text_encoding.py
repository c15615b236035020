"""Captions of more than 75 tokens are split into chunks, encoded and cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from lora_studio.models.locate import SDXL_CONFIG
from lora_studio.models.text_encoding import chunk_token_ids, encode_text, tokenize, truncated_captions, unused_layers
from lora_studio.training.data.cache import TextCache
from tests.support.tiny_sdxl import make_pipeline

LENGTHS = [0, 1, 74, 75, 76, 149, 150, 151, 225, 300]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipeline = make_pipeline(tmp_path_factory.mktemp("tokenizers"))
    pipeline.text_encoder.eval()
    pipeline.text_encoder_2.eval()
    return pipeline


def words(count: int) -> str:
    """Return a text of `count` tokens: the tokenizer has single letters."""
    return " ".join("abcdefghij"[index % 10] for index in range(count))


def sliced(tokenizer: Any, text: str, chunks: int) -> list[list[int]]:
    """Split as sd-scripts does: cut one row of 75 n + 2 tokens into chunks, and add begin and end tokens to each."""
    long = tokenizer(text, padding="max_length", truncation=True, max_length=75 * chunks + 2).input_ids
    pieces = []
    for start in range(1, 75 * chunks, 75):
        piece = [long[0], *long[start : start + 75], long[-1]]
        if piece[-2] not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            piece[-1] = tokenizer.eos_token_id
        if piece[1] == tokenizer.pad_token_id:
            piece[1] = tokenizer.eos_token_id
        pieces.append(piece)
    return pieces


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_captions_are_split_into_chunks_as_in_sd_scripts(parts: Any, chunks: int) -> None:
    texts = [words(length) for length in LENGTHS]
    for tokenizer in (parts.tokenizer, parts.tokenizer_2):
        ids = chunk_token_ids(tokenizer, texts, chunks, tokenizer.pad_token_id)
        assert ids.shape == (len(texts), chunks, 77)
        for text, found in zip(texts, ids.tolist(), strict=True):
            if chunks == 1:
                assert found == [tokenizer(text, padding="max_length", truncation=True, max_length=77).input_ids]
            else:
                assert found == sliced(tokenizer, text, chunks)


@torch.no_grad()
def test_chunks_are_encoded_separately_and_pooled_from_the_first(parts: Any) -> None:
    encoders, tokenizers = [parts.text_encoder, parts.text_encoder_2], [parts.tokenizer, parts.tokenizer_2]
    whole, short = words(180), "a b"
    hidden, pooled = encode_text(encoders, tokenizers, [whole, short], 2, 225)
    assert hidden.shape == (2, 231, 40)
    pieces = [" ".join(whole.split()[start : start + 75]) for start in (0, 75, 150)]
    for index, piece in enumerate(pieces):
        alone, alone_pooled = encode_text(encoders, tokenizers, [piece], 2)
        assert torch.allclose(hidden[0, 77 * index : 77 * (index + 1)], alone[0], atol=1e-5)
        if index == 0:
            assert torch.allclose(pooled[0], alone_pooled[0], atol=1e-5)
    empty, _ = encode_text(encoders, tokenizers, [""], 2)
    assert torch.allclose(hidden[1, 77:154], empty[0], atol=1e-5)
    assert torch.allclose(hidden[1, 154:], empty[0], atol=1e-5)
    assert torch.allclose(pooled[1], encode_text(encoders, tokenizers, [short], 2)[1][0], atol=1e-5)


def test_exclamation_marks_are_not_the_padding_of_the_second_encoder() -> None:
    """The expected ids are those of OpenCLIP, A1111, ComfyUI and sd-scripts."""
    tokenizers = [CLIPTokenizer.from_pretrained(SDXL_CONFIG / name) for name in ("tokenizer", "tokenizer_2")]
    first, second = tokenize(tokenizers, ["hello!", "!!!", "! a"])[:, :, 0, 1:5].tolist()
    end = 49407
    assert first == [[3306, 256, end, end], [995, end, end, end], [256, 320, end, end]]
    assert second == [[3306, 256, end, 0], [995, end, 0, 0], [256, 320, end, 0]]


def test_truncation_depends_on_max_token_length(parts: Any) -> None:
    texts = [words(length) for length in LENGTHS]
    for limit in (75, 150, 225):
        cut = truncated_captions(parts.tokenizer, texts, limit)
        assert cut == [text for text, length in zip(texts, LENGTHS, strict=True) if length > limit]


def test_each_max_token_length_has_its_own_cache_file(tmp_path: Path) -> None:
    caches = [TextCache(tmp_path, "x", 2), *(TextCache(tmp_path, "x", 2, limit) for limit in (75, 150, 225))]
    files = [cache.file("a cat") for cache in caches]
    assert files[0] == files[1]
    assert len(set(files)) == 3


@torch.no_grad()
@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_layers_after_clip_skip_are_not_computed(parts: Any, clip_skip: int) -> None:
    encoders, tokenizers = [parts.text_encoder, parts.text_encoder_2], [parts.tokenizer, parts.tokenizer_2]
    states = [
        encoder(tokens[0], output_hidden_states=True).hidden_states[-clip_skip]
        for encoder, tokens in zip(encoders, tokenize(tokenizers, ["a b"]), strict=True)
    ]
    called: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, number=number: called.append(number))
        for number, layer in enumerate(parts.text_encoder.encoder.layers, 1)
    ]
    hidden, _ = encode_text(encoders, tokenizers, ["a b"], clip_skip)
    for hook in hooks:
        hook.remove()
    assert torch.equal(hidden, torch.cat(states, -1))
    assert called == list(range(1, 5 - clip_skip))
    assert unused_layers(parts.text_encoder, clip_skip) == list(parts.text_encoder.encoder.layers)[4 - clip_skip :]
