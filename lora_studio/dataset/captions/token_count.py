"""Count the tokens of captions for SDXL's text encoders, with the CLIP tokenizer that ships with the studio.

The tokenizer is CLIP's byte-level BPE (Radford et al. 2021, arXiv:2103.00020). Loading it here takes a quarter of a
second and does not import torch, unlike the transformers class that training uses.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 75  # of the 77 positions of the encoders, two are the start and end tokens
CACHED_WORDS = 100_000  # words
_FOLDER = Path(__file__).parents[2] / "models" / "sdxl_config" / "tokenizer"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def count_tokens(caption: str) -> int:
    """Return the number of tokens of a caption without the start and end tokens; those after the 75th are truncated."""
    return sum(map(_count_word_tokens, caption.split(" ")))  # no token has parts on both sides of a space


@lru_cache(maxsize=CACHED_WORDS)
def _count_word_tokens(word: str) -> int:
    return len(clip_tokenizer().encode(word).ids)


def truncation_point(caption: str) -> int:
    """Return the number of characters before truncation to 75 tokens; the whole length if nothing is truncated.

    A word that is cut can have more tokens than its part in the whole caption had, so the result may be a little
    shorter: these characters alone have at most 75 tokens.
    """
    ends = [end for _, end in clip_tokenizer().encode(caption).offsets]
    if len(ends) <= MAX_TOKENS:
        return len(caption)
    return next(end for end in reversed(ends[:MAX_TOKENS]) if count_tokens(caption[:end]) <= MAX_TOKENS)


@lru_cache(maxsize=1)
def clip_tokenizer() -> Tokenizer:
    """Return the tokenizer of SDXL's text encoders, which both share, without start and end tokens (cached)."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE.from_file(str(_FOLDER / "vocab.json"), str(_FOLDER / "merges.txt"), end_of_word_suffix="</w>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer
